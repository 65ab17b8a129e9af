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
/// Version of a snapshot. One of version 1 lacks the last field, which is 0 where it says nothing.
const STATE_VERSION: u8 = 2;

/// Why bytes are not a command, reply or snapshot.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("empty")]
    Empty,
    #[error("version {0} is unknown to this build")]
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
    let mut bytes = encode(state);
    bytes[0] = STATE_VERSION;
    bytes
}

pub(super) fn decode_state(bytes: &[u8]) -> Result<State, CodecError> {
    let (&version, rest) = bytes.split_first().ok_or(CodecError::Empty)?;
    match version {
        1 => decode_plain::<_, MAX_SNAPSHOT_BYTES>(&[rest, &[0]].concat()),
        STATE_VERSION => decode_plain::<_, MAX_SNAPSHOT_BYTES>(rest),
        other => Err(CodecError::Version(other)),
    }
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
    decode_plain::<_, LIMIT>(rest)
}

fn decode_plain<T: DeserializeOwned, const LIMIT: usize>(rest: &[u8]) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, read) = bincode::serde::decode_from_slice(rest, config)?;
    if read != rest.len() {
        return Err(CodecError::Trailing(rest.len() - read));
    }
    Ok(value)
}
