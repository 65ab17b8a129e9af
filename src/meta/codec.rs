//! Bytes of commands, replies and snapshots: one version byte, then bincode (standard
//! configuration: little endian, variable-length integers) of the type.
//!
//! bincode writes enum variants and fields by position. A change of a type that old bytes do not
//! survive needs a new version byte and a decoder for the old one, for commands stay in the log as
//! long as the log is kept.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::command::{Command, Reply};
use super::state::State;

/// Largest encoded command. A proposal above it would make an entry that a peer refuses to read.
pub const MAX_COMMAND_BYTES: usize = 4 * 1024 * 1024;
const MAX_SNAPSHOT_BYTES: usize = 1024 * 1024 * 1024;
const VERSION: u8 = 1;

/// Why bytes are not a command, reply or snapshot.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("empty")]
    Empty,
    #[error("version {0} is unknown, this build reads version {VERSION}")]
    Version(u8),
    #[error("{0}")]
    Malformed(#[from] bincode::error::DecodeError),
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    #[error("{bytes} bytes encoded, the limit is {MAX_COMMAND_BYTES}")]
    TooLarge { bytes: usize },
}

impl Command {
    /// The bytes to propose.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`]: split the change or refuse it.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let bytes = encode(self);
        if bytes.len() > MAX_COMMAND_BYTES {
            return Err(CodecError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Reads what [`Command::encode`] wrote. Allocates in proportion to the input at most.
    ///
    /// # Errors
    /// Any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode::<_, MAX_COMMAND_BYTES>(bytes)
    }
}

impl Reply {
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads what [`Reply::encode`] wrote.
    ///
    /// # Errors
    /// Any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode::<_, MAX_COMMAND_BYTES>(bytes)
    }
}

pub(super) fn encode_state(state: &State) -> Vec<u8> {
    encode(state)
}

pub(super) fn decode_state(bytes: &[u8]) -> Result<State, CodecError> {
    decode::<_, MAX_SNAPSHOT_BYTES>(bytes)
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .expect("plain data into memory: no type here fails to serialize");
    bytes
}

fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, rest) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, read) = bincode::serde::decode_from_slice(rest, config)?;
    if read != rest.len() {
        return Err(CodecError::Trailing(rest.len() - read));
    }
    Ok(value)
}
