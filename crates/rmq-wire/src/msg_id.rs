//! Offset message ids: the store host and the physical offset of a record in upper-case hexadecimal.
//!
//! `ip (4 or 16 bytes) port (i32) offset (i64)`, 32 or 56 characters; `MessageDecoder.createMessageId`.
//! Clients take the address to ask and the commit log offset of a transaction from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::json::write::HEX;

/// Why a text is no message id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MsgIdError {
    #[error("a message id has 32 or 56 characters, not {0}")]
    Length(usize),
    #[error("a message id is hexadecimal")]
    NotHex,
    #[error("port {0} of a message id is out of range")]
    Port(u32),
}

/// The id of the record at `offset` in the store of `host`.
#[must_use]
pub fn encode(host: SocketAddr, offset: i64) -> String {
    let mut id = String::with_capacity(56);
    let mut put = |bytes: &[u8]| {
        for byte in bytes {
            for digit in [byte >> 4, byte & 0xF] {
                id.push(char::from(HEX[usize::from(digit)]));
            }
        }
    };
    match host.ip() {
        IpAddr::V4(ip) => put(&ip.octets()),
        IpAddr::V6(ip) => put(&ip.octets()),
    }
    put(&u32::from(host.port()).to_be_bytes());
    put(&offset.to_be_bytes());
    id
}

/// The store host and the physical offset in `id`, in either case of letters.
///
/// # Errors
/// [`MsgIdError`] for a wrong length, a character that is no hexadecimal digit, or a port above 65535.
pub fn decode(id: &str) -> Result<(SocketAddr, i64), MsgIdError> {
    let ip_len = match id.len() {
        32 => 4,
        56 => 16,
        other => return Err(MsgIdError::Length(other)),
    };
    let mut bytes = [0u8; 28];
    for (byte, pair) in bytes.iter_mut().zip(id.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| {
            char::from(c)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        let (high, low) = digit(pair[0])
            .zip(digit(pair[1]))
            .ok_or(MsgIdError::NotHex)?;
        *byte = high << 4 | low;
    }
    let (ip, rest) = bytes.split_at(ip_len);
    let ip = match <[u8; 4]>::try_from(ip) {
        Ok(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(
            <[u8; 16]>::try_from(ip).expect("16 bytes were split off"),
        )),
    };
    let port = u32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
    let offset = i64::from_be_bytes(rest[4..12].try_into().expect("eight bytes"));
    let port = u16::try_from(port).map_err(|_| MsgIdError::Port(port))?;
    Ok((SocketAddr::new(ip, port), offset))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_of_a_java_broker_reads_and_writes() {
        let id = "7F0000010000614F0000000000004940";
        let (host, offset) = decode(id).unwrap();
        assert_eq!(
            (host.to_string().as_str(), offset),
            ("127.0.0.1:24911", 0x4940)
        );
        assert_eq!(encode(host, offset), id);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        assert_eq!(decode(""), Err(MsgIdError::Length(0)));
        assert_eq!(decode(&"é".repeat(16)), Err(MsgIdError::NotHex));
        assert_eq!(
            decode("7F0000010001614F0000000000004940"),
            Err(MsgIdError::Port(0x1_614F))
        );
    }

    proptest! {
        #[test]
        fn ids_round_trip(v6: bool, ip: u128, port: u16, offset: i64) {
            let ip = if v6 { IpAddr::from(ip.to_be_bytes()) } else { IpAddr::from([1, 2, 3, ip.to_be_bytes()[0]]) };
            let host = SocketAddr::new(ip, port);
            let id = encode(host, offset);
            prop_assert_eq!(id.len(), if v6 { 56 } else { 32 });
            prop_assert_eq!(decode(&id.to_lowercase()), Ok((host, offset)));
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _outcome = decode(&text);
        }
    }
}
