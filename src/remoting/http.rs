//! The questions of load balancers: `GET /path` on a port of remoting frames, answered by a status and
//! the end of the connection. The first four bytes tell them apart, for no frame is as long as `GET `
//! would make it.

use bytes::Bytes;

use super::Health;

/// What a question begins with.
const METHOD: &[u8] = b"GET ";
/// Bytes of a whole question at most.
const HEAD_MAX: usize = 8 * 1024;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq)]
pub(super) enum Head<'a> {
    /// Frames.
    No,
    /// A question, of which more is to come.
    Partial,
    /// Longer than a question may be, or no text.
    Bad,
    /// For this path.
    Path(&'a str),
}

pub(super) fn head(bytes: &[u8]) -> Head<'_> {
    if !bytes.starts_with(METHOD) {
        return Head::No;
    }
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() < HEAD_MAX {
            Head::Partial
        } else {
            Head::Bad
        };
    };
    let path = std::str::from_utf8(&bytes[METHOD.len()..end])
        .ok()
        .and_then(|text| text.split([' ', '\r', '?']).next());
    path.map_or(Head::Bad, Head::Path)
}

pub(super) fn answer(health: Option<Health>) -> Bytes {
    let (status, body) = match health {
        Some(Health { ok: true, body }) => ("200 OK", body),
        Some(Health { ok: false, body }) => ("503 Service Unavailable", body),
        None => ("404 Not Found", String::new()),
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_told_from_frames() {
        assert_eq!(head(&[0, 0, 0, 12]), Head::No);
        assert_eq!(head(b"GET"), Head::No);
        assert_eq!(head(b"GET /leader HTTP/1.1\r\nHost: a\r\n"), Head::Partial);
        let whole = b"GET /leader HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(head(whole), Head::Path("/leader"));
        assert_eq!(head(b"GET /a?b HTTP/1.0\r\n\r\n"), Head::Path("/a"));
        assert_eq!(head(b"GET \xff\r\n\r\n"), Head::Bad);
        assert_eq!(head(&[METHOD, &[b'x'; HEAD_MAX]].concat()), Head::Bad);
    }
}
