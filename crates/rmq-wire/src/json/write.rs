//! Strings of the dialect.

use std::fmt::{Result, Write};

/// Writes `text` in double quotes. Control characters are escaped, everything else goes as it is.
pub(crate) fn string(out: &mut impl Write, text: &str) -> Result {
    out.write_char('"')?;
    let mut done = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.write_str(&text[done..at])?;
        done = at + 1;
        match byte {
            b'"' => out.write_str("\\\"")?,
            b'\\' => out.write_str("\\\\")?,
            b'\n' => out.write_str("\\n")?,
            b'\r' => out.write_str("\\r")?,
            b'\t' => out.write_str("\\t")?,
            0x08 => out.write_str("\\b")?,
            0x0C => out.write_str("\\f")?,
            _ => write!(out, "\\u{byte:04X}")?,
        }
    }
    out.write_str(&text[done..])?;
    out.write_char('"')
}
