//! The binary form of a header, as `RocketMQSerializable` of 4.9.8 writes it:
//!
//! ```text
//! i16 code | i8 language | i16 version | i32 opaque | i32 flag | i32 n, remark
//! i32 length of the fields | { i16 n, name | i32 n, value } …
//! ```
//!
//! A string of length 0 is one that is not there.

use bytes::{Buf, BufMut, BytesMut};

use super::{Command, ExtFields, FrameError, FrameHead, Language, MAX_EXT_FIELDS, SerializeType};

const OPAQUE_AT: usize = 5;
const FLAG_END: usize = 13;

pub(super) fn decode(mut header: &[u8]) -> Result<Command, FrameError> {
    if header.len() < FLAG_END {
        return Err(FrameError::Truncated("fixed fields"));
    }
    let code = i32::from(header.get_i16());
    let language = Language(header.get_u8());
    let version = i32::from(header.get_i16());
    let opaque = header.get_i32();
    let flag = header.get_i32();
    let remark = long_bytes(&mut header, "remark")?;
    let fields = long_bytes(&mut header, "extFields")?;
    Ok(Command {
        code,
        language,
        version,
        opaque,
        flag,
        remark: (!remark.is_empty()).then(|| String::from_utf8_lossy(remark).into_owned()),
        ext: ext_fields(fields)?,
        body: bytes::Bytes::new(),
        serialize: SerializeType::RocketMq,
    })
}

fn ext_fields(mut fields: &[u8]) -> Result<ExtFields, FrameError> {
    let mut ext = ExtFields::with_room(fields.len());
    let mut seen = 0;
    while !fields.is_empty() {
        seen += 1;
        if seen > MAX_EXT_FIELDS {
            return Err(FrameError::TooManyFields);
        }
        let name = short_bytes(&mut fields, "field name")?;
        let value = long_bytes(&mut fields, "field value")?;
        ext.read_field(|text| {
            text.push_str(&String::from_utf8_lossy(name));
            let middle = text.len();
            text.push_str(&String::from_utf8_lossy(value));
            Ok((!name.is_empty() && !value.is_empty()).then_some(middle))
        })?;
    }
    Ok(ext)
}

fn long_bytes<'a>(from: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], FrameError> {
    let len = from
        .try_get_i32()
        .map_err(|_| FrameError::Truncated(field))?;
    split(from, len, field)
}

fn short_bytes<'a>(from: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], FrameError> {
    let len = from
        .try_get_i16()
        .map_err(|_| FrameError::Truncated(field))?;
    split(from, len.into(), field)
}

fn split<'a>(from: &mut &'a [u8], len: i32, field: &'static str) -> Result<&'a [u8], FrameError> {
    let n = usize::try_from(len).map_err(|_| FrameError::NegativeLength { field, len })?;
    from.split_off(..n).ok_or(FrameError::Truncated(field))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the form has 16 bits for code and version, and Java cuts them off just so"
)]
pub(super) fn encode(command: &Command, out: &mut BytesMut) {
    out.put_i16(command.code as i16);
    out.put_u8(command.language.0);
    out.put_i16(command.version as i16);
    out.put_i32(command.opaque);
    out.put_i32(command.flag);
    put_long(out, command.remark.as_deref().unwrap_or(""));
    let fields_at = out.len();
    out.put_u32(0);
    for (name, value) in command.ext.iter() {
        // Names are ours, or came in with a 16-bit length or within a header's bound; one that does not
        // fit cannot be written in this form, and no reader asks for it.
        let Ok(len) = i16::try_from(name.len()) else {
            continue;
        };
        out.put_i16(len);
        out.put_slice(name.as_bytes());
        put_long(out, value);
    }
    let len = length(out.len() - fields_at - 4);
    out[fields_at..fields_at + 4].copy_from_slice(&len.to_be_bytes());
}

fn put_long(out: &mut BytesMut, text: &str) {
    out.put_i32(length(text.len()));
    out.put_slice(text.as_bytes());
}

fn length(len: usize) -> i32 {
    i32::try_from(len).expect("a header is shorter than 2 GiB")
}

pub(super) fn peek(mut header: &[u8]) -> Result<FrameHead, FrameError> {
    if header.len() < FLAG_END {
        return Err(FrameError::Truncated("fixed fields"));
    }
    let code = i32::from(header.get_i16());
    header.advance(3);
    Ok(FrameHead {
        code,
        opaque: header.get_i32(),
        flag: header.get_i32(),
    })
}

pub(super) fn set_opaque(header: &mut [u8], opaque: i32) -> Result<(), FrameError> {
    let number = header
        .get_mut(OPAQUE_AT..OPAQUE_AT + 4)
        .ok_or(FrameError::Truncated("fixed fields"))?;
    number.copy_from_slice(&opaque.to_be_bytes());
    Ok(())
}
