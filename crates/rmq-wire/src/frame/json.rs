//! The JSON form of a header, written with its keys in the order that Java has.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{BufMut, BytesMut};

use super::{Command, ExtFields, FrameError, FrameHead, Language, MAX_EXT_FIELDS, SerializeType};
use crate::json::read::{Reader, lossy};
use crate::json::{JsonError, write};

pub(super) fn decode(header: &[u8]) -> Result<Command, FrameError> {
    // Java reads what is not UTF-8 as U+FFFD, and some C++ programs send keys in their local encoding.
    let text = lossy(header);
    let mut reader = Reader::new(&text);
    let mut code = None;
    let mut command = Command {
        version: 0,
        language: Language::OTHER,
        ..Command::request(0)
    };
    keys(&mut reader, |key, reader| {
        match key {
            "code" => code = Some(integer(reader)?),
            "version" => command.version = integer(reader)?,
            "opaque" => command.opaque = integer(reader)?,
            "flag" => command.flag = integer(reader)?,
            "language" if reader.peek()? == b'"' => {
                command.language = Language::from_name(&reader.string()?);
            }
            "remark" if reader.peek()? == b'"' => {
                command.remark = Some(reader.string()?.into_owned());
            }
            "extFields" if reader.peek()? == b'{' => {
                command.ext = ext_fields(reader, text.len())?;
            }
            _ => {
                reader.raw()?;
            }
        }
        Ok(())
    })?;
    reader.end()?;
    command.code = code.ok_or(FrameError::Missing("code"))?;
    command.serialize = SerializeType::Json;
    Ok(command)
}

/// Calls `read` with each key of the object at the cursor. Every way of reading a header walks it to its
/// end, so that all take the same value of a key that comes twice: the last.
fn keys<'a>(
    reader: &mut Reader<'a>,
    mut read: impl FnMut(&str, &mut Reader<'a>) -> Result<(), FrameError>,
) -> Result<(), FrameError> {
    reader.open(b'{')?;
    let mut first = true;
    while reader.next_element(&mut first, b'}')? {
        let key = match reader.peek()? {
            b'"' => reader.string()?,
            _ => Cow::Borrowed(reader.raw()?),
        };
        reader.expect(b':')?;
        read(&key, reader)?;
    }
    Ok(())
}

/// A number, with or without quotes; null is 0, as in a Java int.
fn integer(reader: &mut Reader<'_>) -> Result<i32, FrameError> {
    let text = match reader.peek()? {
        b'"' => reader.string()?,
        _ => Cow::Borrowed(reader.token()?),
    };
    match &*text {
        "null" => Ok(0),
        digits => digits
            .parse()
            .map_err(|_| JsonError::Value(format!("{digits:?} is no 32-bit number")).into()),
    }
}

fn ext_fields(reader: &mut Reader<'_>, header_len: usize) -> Result<ExtFields, FrameError> {
    let mut ext = ExtFields::with_room(header_len);
    reader.open(b'{')?;
    let mut first = true;
    let mut seen = 0;
    while reader.next_element(&mut first, b'}')? {
        seen += 1;
        if seen > MAX_EXT_FIELDS {
            return Err(FrameError::TooManyFields);
        }
        ext.read_field(|text| {
            if reader.peek()? == b'"' {
                reader.string_into(text)?;
            } else {
                text.push_str(reader.raw()?);
            }
            reader.expect(b':')?;
            let middle = text.len();
            if reader.peek()? == b'"' {
                reader.string_into(text)?;
            } else {
                // Java turns what is no string into its text.
                match reader.raw()? {
                    "null" => return Ok(None),
                    raw => text.push_str(raw),
                }
            }
            Ok(Some(middle))
        })?;
    }
    Ok(ext)
}

pub(super) fn encode(command: &Command, out: &mut BytesMut) {
    out.put_slice(b"{\"code\":");
    write::integer(out, command.code);
    if !command.ext.is_empty() {
        let mut separator: &[u8] = b",\"extFields\":{";
        for (name, value) in command.ext.iter() {
            out.put_slice(separator);
            write::string(out, name);
            out.put_u8(b':');
            write::string(out, value);
            separator = b",";
        }
        out.put_u8(b'}');
    }
    out.put_slice(b",\"flag\":");
    write::integer(out, command.flag);
    out.put_slice(b",\"language\":");
    write::string(out, command.language.name());
    out.put_slice(b",\"opaque\":");
    write::integer(out, command.opaque);
    if let Some(remark) = &command.remark {
        out.put_slice(b",\"remark\":");
        write::string(out, remark);
    }
    out.put_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
    write::integer(out, command.version);
    out.put_u8(b'}');
}

pub(super) fn peek(header: &[u8]) -> Result<FrameHead, FrameError> {
    let text = lossy(header);
    let (mut code, mut opaque, mut flag) = (None, None, None);
    keys(&mut Reader::new(&text), |key, reader| {
        match key {
            "code" => code = Some(integer(reader)?),
            "opaque" => opaque = Some(integer(reader)?),
            "flag" => flag = Some(integer(reader)?),
            _ => {
                reader.raw()?;
            }
        }
        Ok(())
    })?;
    Ok(FrameHead {
        code: code.ok_or(FrameError::Missing("code"))?,
        opaque: opaque.unwrap_or(0),
        flag: flag.unwrap_or(0),
    })
}

/// Where the number of the frame stands in the bytes of its header.
pub(super) fn opaque_span(header: &[u8]) -> Result<Range<usize>, FrameError> {
    let text = std::str::from_utf8(header).map_err(|e| {
        FrameError::Json(JsonError::Value(format!(
            "not UTF-8 at byte {}",
            e.valid_up_to()
        )))
    })?;
    let mut span = None;
    keys(&mut Reader::new(text), |key, reader| {
        let raw = reader.raw()?.len();
        if key == "opaque" {
            span = Some(reader.at() - raw..reader.at());
        }
        Ok(())
    })?;
    span.ok_or(FrameError::Missing("opaque"))
}
