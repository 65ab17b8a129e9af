//! The body of a batch send: messages one after the other, without what they share.
//!
//! ```text
//! i32 size | i32 magic | i32 crc | i32 flag | i32 n, body | i16 n, properties
//! ```
//!
//! Clients fill in flag, body and properties only (`MessageDecoder.encodeMessage`); a broker ignores
//! size, magic and CRC, and so do we.

use bytes::Buf;

/// Why a body is no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("message {index} of the batch ends inside its {field}")]
    Truncated { index: usize, field: &'static str },
    #[error("message {index} of the batch has a {field} of length {len}")]
    NegativeLength {
        index: usize,
        field: &'static str,
        len: i32,
    },
}

/// One message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMessage<'a> {
    pub flag: i32,
    pub body: &'a [u8],
    /// As the client wrote them; those of the batch come after them in the record.
    pub raw_properties: &'a [u8],
}

/// The messages in the body of a batch send.
///
/// # Errors
/// Each item is a message or the [`BatchError`] that ends the iteration.
pub fn split_batch(body: &[u8]) -> impl Iterator<Item = Result<BatchMessage<'_>, BatchError>> {
    let mut rest = body;
    let mut index = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = message(&mut rest, index);
        index += 1;
        if message.is_err() {
            rest = &[];
        }
        Some(message)
    })
}

fn message<'a>(rest: &mut &'a [u8], index: usize) -> Result<BatchMessage<'a>, BatchError> {
    let truncated = |field| BatchError::Truncated { index, field };
    if rest.len() < 20 {
        return Err(truncated("head"));
    }
    rest.advance(12);
    let flag = rest.get_i32();
    let body_len = rest.get_i32();
    let body = part(rest, index, "body", body_len)?;
    let properties_len = rest.try_get_i16().map_err(|_| truncated("properties"))?;
    let raw_properties = part(rest, index, "properties", properties_len.into())?;
    Ok(BatchMessage {
        flag,
        body,
        raw_properties,
    })
}

fn part<'a>(
    rest: &mut &'a [u8],
    index: usize,
    field: &'static str,
    len: i32,
) -> Result<&'a [u8], BatchError> {
    let n = usize::try_from(len).map_err(|_| BatchError::NegativeLength { index, field, len })?;
    rest.split_off(..n)
        .ok_or(BatchError::Truncated { index, field })
}
