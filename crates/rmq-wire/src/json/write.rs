//! Strings of the dialect.

use bytes::BufMut;

pub(crate) const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Writes `text` in double quotes. Control characters are escaped, everything else goes as it is.
pub(crate) fn string(out: &mut impl BufMut, text: &str) {
    let bytes = text.as_bytes();
    out.put_u8(b'"');
    let mut done = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.put_slice(&bytes[done..at]);
        done = at + 1;
        match byte {
            b'"' | b'\\' => out.put_slice(&[b'\\', byte]),
            b'\n' => out.put_slice(b"\\n"),
            b'\r' => out.put_slice(b"\\r"),
            b'\t' => out.put_slice(b"\\t"),
            0x08 => out.put_slice(b"\\b"),
            0x0C => out.put_slice(b"\\f"),
            _ => {
                let low = HEX[usize::from(byte & 0xF)];
                out.put_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], low]);
            }
        }
    }
    out.put_slice(&bytes[done..]);
    out.put_u8(b'"');
}

/// Writes a number.
pub(crate) fn integer(out: &mut impl BufMut, value: i32) {
    // A sign and ten digits, filled from the end.
    let mut text = [0; 11];
    let mut at = text.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        text[at] = HEX[usize::from((rest % 10).to_le_bytes()[0])];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        text[at] = b'-';
    }
    out.put_slice(&text[at..]);
}
