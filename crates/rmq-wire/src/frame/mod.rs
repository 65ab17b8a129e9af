//! Remoting frames.
//!
//! ```text
//! i32 length of what follows | i32 mark: type of header << 24, length of header | header | body
//! ```
//!
//! [`Command`] is a frame decoded; its header is JSON (`json`) or RocketMQ's binary form (`binary`),
//! and an answer goes out in the form of its request. [`ExtFields`] is the header's map of strings;
//! what the fields of one request mean is the business of [`crate::header`].
//! The functions [`peek_len`], [`peek`] and [`set_opaque`] work on a frame that stays encoded.

mod binary;
mod ext;
mod json;
#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use ext::ExtFields;

use crate::json::JsonError;

/// Most bytes of a frame, its length field included (`NettySystemConfig`, 16 MiB).
pub const MAX_FRAME: usize = 16 * 1024 * 1024;
/// Most bytes of a header. 32 KiB of properties, each byte of them escaped, still pass.
pub const MAX_HEADER: usize = 256 * 1024;
/// Most fields of a header.
pub const MAX_EXT_FIELDS: usize = 256;
/// The version in our commands: that of RocketMQ 4.9.8 (`MQVersion`), which clients read as "may use
/// SQL filters", and name servers as "reads standard JSON".
pub const VERSION: i32 = 409;

const LEN: usize = 4;
const MARK: usize = 4;
const FLAG_RESPONSE: i32 = 1;
const FLAG_ONEWAY: i32 = 1 << 1;

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {0} bytes, allowed are 4 to {max}", max = MAX_FRAME - LEN)]
    Length(i32),
    #[error("header of {header} bytes in a frame of {frame}")]
    HeaderOverrun { header: usize, frame: usize },
    #[error("header of {0} bytes, allowed are {MAX_HEADER}")]
    HeaderTooLong(usize),
    #[error("unknown type of header {0}")]
    SerializeType(u8),
    #[error("header is no JSON: {0}")]
    Json(#[from] JsonError),
    #[error("header has no {0}")]
    Missing(&'static str),
    #[error("header ends inside {0}")]
    Truncated(&'static str),
    #[error("negative length {len} of {field}")]
    NegativeLength { field: &'static str, len: i32 },
    #[error("more than {MAX_EXT_FIELDS} header fields")]
    TooManyFields,
}

/// The form of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SerializeType {
    #[default]
    Json,
    /// `RocketMQSerializable`. Codes and versions are cut to 16 bits there.
    RocketMq,
}

impl SerializeType {
    fn code(self) -> u8 {
        match self {
            Self::Json => 0,
            Self::RocketMq => 1,
        }
    }

    fn from_code(code: u8) -> Result<Self, FrameError> {
        match code {
            0 => Ok(Self::Json),
            1 => Ok(Self::RocketMq),
            other => Err(FrameError::SerializeType(other)),
        }
    }
}

/// The language of the sender (`LanguageCode`). A number without a name keeps its value; a name without
/// a number becomes [`Language::OTHER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Language(pub u8);

impl Language {
    pub const JAVA: Self = Self(0);
    pub const CPP: Self = Self(1);
    pub const OTHER: Self = Self(7);
    pub const GO: Self = Self(9);
    pub const RUST: Self = Self(12);

    /// In the order of their numbers.
    const NAMES: [&'static str; 14] = [
        "JAVA", "CPP", "DOTNET", "PYTHON", "DELPHI", "ERLANG", "RUBY", "OTHER", "HTTP", "GO",
        "PHP", "OMS", "RUST", "NODE_JS",
    ];

    /// The name in a JSON header.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.get(usize::from(self.0)).unwrap_or(&"OTHER")
    }

    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self::NAMES
            .iter()
            .position(|known| *known == name)
            .and_then(|code| u8::try_from(code).ok())
            .map_or(Self::OTHER, Self)
    }
}

/// A request or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub code: i32,
    pub language: Language,
    pub version: i32,
    /// Number of the request on its connection; a response repeats it.
    pub opaque: i32,
    /// Bit 0: a response; bit 1: one way, never answered.
    pub flag: i32,
    pub remark: Option<String>,
    pub ext: ExtFields,
    /// A slice of the frame it came in.
    pub body: Bytes,
    pub serialize: SerializeType,
}

impl Command {
    /// A request with nothing but its code. The sender numbers it ([`Command::opaque`]).
    ///
    /// Its language is JAVA: the one that every version of every client and server can read.
    #[must_use]
    pub fn request(code: i32) -> Self {
        Self {
            code,
            language: Language::JAVA,
            version: VERSION,
            opaque: 0,
            flag: 0,
            remark: None,
            ext: ExtFields::default(),
            body: Bytes::new(),
            serialize: SerializeType::Json,
        }
    }

    /// The answer to this request: same number, same form of header.
    #[must_use]
    pub fn reply(&self, code: i32) -> Self {
        Self {
            opaque: self.opaque,
            flag: FLAG_RESPONSE,
            serialize: self.serialize,
            ..Self::request(code)
        }
    }

    /// An answer that carries words for the user of the client.
    #[must_use]
    pub fn reply_error(&self, code: i32, remark: impl Into<String>) -> Self {
        Self {
            remark: Some(remark.into()),
            ..self.reply(code)
        }
    }

    #[must_use]
    pub fn with_body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    #[must_use]
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    #[must_use]
    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    pub fn mark_oneway(&mut self) {
        self.flag |= FLAG_ONEWAY;
    }

    /// Decodes a frame without its length field. The body is a slice of it.
    ///
    /// # Errors
    /// [`FrameError`]; the connection cannot go on, for the sender does not speak the protocol.
    pub fn decode(mut frame: Bytes) -> Result<Self, FrameError> {
        let (serialize, header_len) = mark(&frame)?;
        frame.advance(MARK);
        let header = frame.split_to(header_len);
        let mut command = match serialize {
            SerializeType::Json => json::decode(&header)?,
            SerializeType::RocketMq => binary::decode(&header)?,
        };
        command.body = frame;
        Ok(command)
    }

    /// Appends the frame with its length field to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_head(self.body.len(), out);
        out.extend_from_slice(&self.body);
    }

    /// Appends the frame up to its body to `out`; the caller sends `body_len` bytes after it, in place of
    /// [`Command::body`].
    ///
    /// # Panics
    /// If header and body are longer than 2 GiB.
    pub fn encode_head(&self, body_len: usize, out: &mut BytesMut) {
        let start = out.len();
        out.put_u64(0);
        match self.serialize {
            SerializeType::Json => json::encode(self, out),
            SerializeType::RocketMq => binary::encode(self, out),
        }
        let header_len = out.len() - start - LEN - MARK;
        let frame_len = MARK + header_len + body_len;
        let field = |len| {
            i32::try_from(len)
                .expect("a frame is shorter than 2 GiB")
                .to_be_bytes()
        };
        out[start..start + LEN].copy_from_slice(&field(frame_len));
        out[start + LEN..start + LEN + MARK].copy_from_slice(&field(header_len));
        out[start + LEN] = self.serialize.code();
    }
}

/// The type and length of the header of a frame without its length field.
fn mark(frame: &[u8]) -> Result<(SerializeType, usize), FrameError> {
    let mark: [u8; MARK] = frame
        .get(..MARK)
        .and_then(|m| m.try_into().ok())
        .ok_or(FrameError::Truncated("mark"))?;
    let serialize = SerializeType::from_code(mark[0])?;
    let header = usize::from(mark[1]) << 16 | usize::from(mark[2]) << 8 | usize::from(mark[3]);
    if header > MAX_HEADER {
        return Err(FrameError::HeaderTooLong(header));
    }
    if header > frame.len() - MARK {
        return Err(FrameError::HeaderOverrun {
            header,
            frame: frame.len(),
        });
    }
    Ok((serialize, header))
}

/// The length of the frame at the head of `buffer`, its own 4 bytes not counted; `None` while fewer than
/// those have arrived.
///
/// # Errors
/// [`FrameError::Length`] if it is no length that a frame can have.
pub fn peek_len(buffer: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(len) = buffer.first_chunk::<LEN>() else {
        return Ok(None);
    };
    let len = i32::from_be_bytes(*len);
    match usize::try_from(len) {
        Ok(n) if (MARK..=MAX_FRAME - LEN).contains(&n) => Ok(Some(n)),
        _ => Err(FrameError::Length(len)),
    }
}

/// What routes a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    pub code: i32,
    pub opaque: i32,
    pub flag: i32,
}

/// Code, number and flags of a frame without its length field, as [`Command::decode`] would find them;
/// none of its fields is kept.
///
/// # Errors
/// [`FrameError`] where the header cannot be walked.
pub fn peek(frame: &[u8]) -> Result<FrameHead, FrameError> {
    let (serialize, header_len) = mark(frame)?;
    let header = &frame[MARK..MARK + header_len];
    match serialize {
        SerializeType::Json => json::peek(header),
        SerializeType::RocketMq => binary::peek(header),
    }
}

/// A copy of `frame` (both without length field) with another number; all other bytes stay.
///
/// # Errors
/// [`FrameError`] where the header cannot be read, or has no number.
pub fn set_opaque(frame: &[u8], opaque: i32) -> Result<BytesMut, FrameError> {
    let (serialize, header_len) = mark(frame)?;
    let header = &frame[MARK..MARK + header_len];
    match serialize {
        SerializeType::RocketMq => {
            let mut copy = BytesMut::from(frame);
            binary::set_opaque(&mut copy[MARK..MARK + header_len], opaque)?;
            Ok(copy)
        }
        SerializeType::Json => {
            let number = json::opaque_span(header)?;
            let text = opaque.to_string();
            let new_len = header_len - number.len() + text.len();
            let mark = u32::try_from(new_len).map_err(|_| FrameError::HeaderTooLong(new_len))?;
            let mut copy = BytesMut::with_capacity(frame.len() + text.len());
            copy.put_u32(mark);
            copy.put_slice(&header[..number.start]);
            copy.put_slice(text.as_bytes());
            copy.put_slice(&frame[MARK + number.end..]);
            Ok(copy)
        }
    }
}
