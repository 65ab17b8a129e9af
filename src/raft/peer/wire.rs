//! Frames between the nodes of a group. A frame is a fixed header, a small *head* that is decoded,
//! and *raw* bytes that are handed on untouched (extents of the log, a client's frame):
//!
//! ```text
//! 0   u32  length of everything behind this field
//! 4   u8   kind
//! 5   u8   flags: 1 = answer, 2 = the answer is a refusal
//! 6   u16  zero
//! 8   u64  id of the request, repeated by its answer
//! 16  u32  length of the head
//! 20  u32  CRC-32C of bytes 4..20 and the head
//! 24       head, then raw bytes to the end of the frame
//! ```
//!
//! All numbers are big endian. The raw bytes are outside the checksum: an extent carries its own,
//! which the log verifies before it writes it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes before the head.
pub(super) const HEADER_LEN: usize = 24;
/// The longest frame of a peer that has introduced itself: a batch of 4 MiB, or one entry of the
/// largest message that a remoting frame can bring (16 MiB), with room to spare.
pub(super) const MAX_FRAME: usize = 32 << 20;
/// The most raw bytes beside a head that does not grow with them.
pub(super) const MAX_RAW: usize = MAX_FRAME - (64 << 10);
/// The longest frame of a peer that has not: enough for a `Hello`.
pub(super) const MAX_HELLO_FRAME: usize = 64 << 10;

const FLAG_ANSWER: u8 = 1;
const FLAG_REFUSAL: u8 = 2;
/// Slices handed to the kernel in one call; its own limit is 1024.
const MAX_SLICES: usize = 256;

/// What a frame is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The first frame of each connection: who calls, and for what.
    Hello = 1,
    /// Entries for a follower; those of one connection are handled and answered in order.
    Append = 2,
    /// An append without entries, handled out of order.
    Heartbeat = 3,
    Vote = 4,
    PreVote = 5,
    TransferLeader = 6,
    /// The first membership of a new group.
    Form = 7,
    /// A node asks to become a member.
    Join = 8,
    /// A client's frame for the leader.
    Forward = 9,
    /// Asks for a sign of life.
    Ping = 10,
    /// A leader has a snapshot for a node.
    Offer = 11,
    /// Bytes of a snapshot; those of one connection are handled and answered in order.
    Chunk = 12,
    /// All of a snapshot was sent.
    Finish = 13,
    /// Asks whether there is space for messages.
    Full = 14,
    /// After a loss of power: asks for a node's condition, or says who is to lead.
    Recover = 15,
    /// Asks for committed bytes of the log, to mend the own ones.
    Read = 16,
    /// The caller's process has ended, which somebody else proves.
    Dead = 17,
    /// Asks whether the node could lead now.
    CanLead = 18,
}

impl Kind {
    fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Hello,
            2 => Self::Append,
            3 => Self::Heartbeat,
            4 => Self::Vote,
            5 => Self::PreVote,
            6 => Self::TransferLeader,
            7 => Self::Form,
            8 => Self::Join,
            9 => Self::Forward,
            10 => Self::Ping,
            11 => Self::Offer,
            12 => Self::Chunk,
            13 => Self::Finish,
            14 => Self::Full,
            15 => Self::Recover,
            16 => Self::Read,
            17 => Self::Dead,
            18 => Self::CanLead,
            _ => return None,
        })
    }
}

/// Whether a frame asks or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Request,
    Answer,
    /// An answer whose head is a [`super::messages::Refusal`].
    Refusal,
}

/// A frame as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) role: Role,
    pub(super) id: u64,
    pub(super) head: Bytes,
    pub(super) raw: Bytes,
}

/// Why bytes are no frame. The connection they came from is of no further use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum FrameError {
    #[error("frame of {len} bytes, {min} to {max} are allowed")]
    Length { len: usize, min: usize, max: usize },
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    #[error("frame with flags {0:#x}")]
    Flags(u8),
    #[error("head of {head} bytes in a frame of {frame}")]
    Head { head: usize, frame: usize },
    #[error("frame checksum is {computed:#010x}, not {stored:#010x}")]
    Checksum { stored: u32, computed: u32 },
}

/// A failed read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the connection ended within a frame")]
    Truncated,
}

/// A frame to be sent: header and head in one piece, and the raw slices, never copied.
#[derive(Debug)]
pub(super) struct OutFrame {
    pub(super) lead: Bytes,
    pub(super) raw: Vec<Bytes>,
}

impl OutFrame {
    /// Lays out the frame. `raw` may be empty.
    pub(super) fn new(kind: Kind, role: Role, id: u64, head: &[u8], raw: Vec<Bytes>) -> Self {
        let raw_len: usize = raw.iter().map(Bytes::len).sum();
        let flags = match role {
            Role::Request => 0,
            Role::Answer => FLAG_ANSWER,
            Role::Refusal => FLAG_ANSWER | FLAG_REFUSAL,
        };
        let mut lead = BytesMut::with_capacity(HEADER_LEN + head.len());
        lead.put_u32(wire_len(HEADER_LEN - 4 + head.len() + raw_len));
        lead.put_u8(kind as u8);
        lead.put_u8(flags);
        lead.put_u16(0);
        lead.put_u64(id);
        lead.put_u32(wire_len(head.len()));
        let crc = crc32c::crc32c_append(crc32c::crc32c(&lead[4..20]), head);
        lead.put_u32(crc);
        lead.put_slice(head);
        Self {
            lead: lead.freeze(),
            raw,
        }
    }

    /// Bytes on the wire.
    pub(super) fn len(&self) -> usize {
        self.lead.len() + self.raw.iter().map(Bytes::len).sum::<usize>()
    }
}

fn wire_len(len: usize) -> u32 {
    u32::try_from(len).expect("a frame is far shorter than 4 GiB")
}

/// Takes one frame from the front of `buf`, if it is there whole. The frame shares `buf`'s memory.
pub(super) fn decode(buf: &mut BytesMut, max: usize) -> Result<Option<Frame>, FrameError> {
    let Some(len) = peek_len(buf, max)? else {
        return Ok(None);
    };
    if buf.len() < len {
        return Ok(None);
    }
    let mut frame = buf.split_to(len).freeze();
    let kind = Kind::from_u8(frame[4]).ok_or(FrameError::Kind(frame[4]))?;
    let role = match frame[5] {
        0 => Role::Request,
        FLAG_ANSWER => Role::Answer,
        flags if flags == FLAG_ANSWER | FLAG_REFUSAL => Role::Refusal,
        flags => return Err(FrameError::Flags(flags)),
    };
    let id = (&frame[8..16]).get_u64();
    let head_len = (&frame[16..20]).get_u32() as usize;
    let stored = (&frame[20..24]).get_u32();
    if head_len > len - HEADER_LEN {
        return Err(FrameError::Head {
            head: head_len,
            frame: len,
        });
    }
    let head_end = HEADER_LEN + head_len;
    let computed =
        crc32c::crc32c_append(crc32c::crc32c(&frame[4..20]), &frame[HEADER_LEN..head_end]);
    if computed != stored {
        return Err(FrameError::Checksum { stored, computed });
    }
    let raw = frame.split_off(head_end);
    let head = frame.split_off(HEADER_LEN);
    Ok(Some(Frame {
        kind,
        role,
        id,
        head,
        raw,
    }))
}

/// The length of the frame at the front of `buf`, header included, once its length field is there.
fn peek_len(buf: &[u8], max: usize) -> Result<Option<usize>, FrameError> {
    let Some((mut field, _)) = buf.split_at_checked(4) else {
        return Ok(None);
    };
    let len = field.get_u32() as usize + 4;
    if (HEADER_LEN..=max).contains(&len) {
        Ok(Some(len))
    } else {
        Err(FrameError::Length {
            len,
            min: HEADER_LEN,
            max,
        })
    }
}

/// Reads frames from a connection.
pub(super) struct FrameReader<R> {
    source: R,
    buf: BytesMut,
    max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader that refuses frames longer than `max` bytes.
    pub(super) fn new(source: R, max: usize) -> Self {
        Self {
            source,
            buf: BytesMut::new(),
            max,
        }
    }

    /// Sets how long a frame may be from now on.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// The next frame, or `None` where the connection ends between two frames. Cancel safe: what
    /// was read so far stays for the next call.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        /// Room for a read when nothing is known about what comes.
        const READ_AHEAD: usize = 16 << 10;
        loop {
            if let Some(frame) = decode(&mut self.buf, self.max)? {
                return Ok(Some(frame));
            }
            let wanted = peek_len(&self.buf, self.max)?.unwrap_or(HEADER_LEN);
            self.buf
                .reserve(wanted.saturating_sub(self.buf.len()).max(READ_AHEAD));
            if self.source.read_buf(&mut self.buf).await? == 0 {
                return if self.buf.is_empty() {
                    Ok(None)
                } else {
                    Err(ReadError::Truncated)
                };
            }
        }
    }
}

/// Writes the frames with as few calls as the kernel allows, without copying the raw slices.
pub(super) async fn write_frames<W>(
    out: &mut W,
    frames: impl IntoIterator<Item = OutFrame>,
) -> io::Result<()>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut pieces: VecDeque<Bytes> = frames
        .into_iter()
        .flat_map(|frame| std::iter::once(frame.lead).chain(frame.raw))
        .filter(|piece| !piece.is_empty())
        .collect();
    while !pieces.is_empty() {
        let mut written = {
            let slices: Vec<IoSlice<'_>> = pieces
                .iter()
                .take(MAX_SLICES)
                .map(|piece| IoSlice::new(piece))
                .collect();
            out.write_vectored(&slices).await?
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while written > 0 {
            let front = pieces.front_mut().expect("no more was written than given");
            if written < front.len() {
                front.advance(written);
                break;
            }
            written -= front.len();
            pieces.pop_front();
        }
    }
    out.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn bytes_of(frame: &OutFrame) -> BytesMut {
        let mut all = BytesMut::from(&frame.lead[..]);
        for piece in &frame.raw {
            all.extend_from_slice(piece);
        }
        all
    }

    fn frame_strategy() -> impl Strategy<Value = (u8, u8, u64, Vec<u8>, Vec<Vec<u8>>)> {
        let piece = || proptest::collection::vec(any::<u8>(), 0..60);
        (
            1..=16u8,
            0..3u8,
            any::<u64>(),
            piece(),
            proptest::collection::vec(piece(), 0..4),
        )
    }

    fn build(
        (kind, role, id, head, raw): &(u8, u8, u64, Vec<u8>, Vec<Vec<u8>>),
    ) -> (Frame, OutFrame) {
        let kind = Kind::from_u8(*kind).unwrap();
        let role = [Role::Request, Role::Answer, Role::Refusal][usize::from(*role)];
        let raw: Vec<Bytes> = raw.iter().map(|piece| piece.clone().into()).collect();
        let frame = Frame {
            kind,
            role,
            id: *id,
            head: head.clone().into(),
            raw: raw.concat().into(),
        };
        (frame, OutFrame::new(kind, role, *id, head, raw))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn frames_round_trip_whole_and_not_before(parts in frame_strategy()) {
            let (expected, out) = build(&parts);
            let all = bytes_of(&out);
            prop_assert_eq!(all.len(), out.len());
            for cut in 0..all.len() {
                let mut part = BytesMut::from(&all[..cut]);
                prop_assert_eq!(decode(&mut part, MAX_FRAME), Ok(None));
                prop_assert_eq!(part.len(), cut);
            }
            let mut whole = all;
            whole.extend_from_slice(b"next");
            prop_assert_eq!(decode(&mut whole, MAX_FRAME), Ok(Some(expected)));
            prop_assert_eq!(&whole[..], b"next");
        }

        #[test]
        fn a_changed_bit_before_the_raw_bytes_is_refused_or_changes_the_length(
            parts in frame_strategy(), at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let (_, out) = build(&parts);
            let mut all = bytes_of(&out);
            let at = 4 + at.index(out.lead.len() - 4);
            all[at] ^= 1 << bit;
            prop_assert!(decode(&mut all, MAX_FRAME).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_refused_or_waited_for(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let before = bytes.len();
            let mut buf = BytesMut::from(&bytes[..]);
            if let Ok(None) = decode(&mut buf, MAX_HELLO_FRAME) {
                prop_assert_eq!(buf.len(), before);
            }
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_frame_is_there() {
        for len in [0u32, 19, u32::MAX, 65_000] {
            let mut buf = BytesMut::from(&len.to_be_bytes()[..]);
            assert!(matches!(
                decode(&mut buf, 1000),
                Err(FrameError::Length { .. })
            ));
        }
    }

    #[tokio::test]
    async fn frames_written_in_one_go_are_read_one_by_one() {
        let (mut a, b) = tokio::io::duplex(37);
        let frames: Vec<_> = (0..600u64)
            .map(|id| {
                let raw = vec![Bytes::from(vec![7; 100]), Bytes::new()];
                OutFrame::new(Kind::Append, Role::Request, id, &id.to_be_bytes(), raw)
            })
            .collect();
        let writer = tokio::spawn(async move {
            write_frames(&mut a, frames).await.unwrap();
        });
        let mut reader = FrameReader::new(b, MAX_FRAME);
        for id in 0..600u64 {
            let frame = reader.next().await.unwrap().unwrap();
            assert_eq!((frame.id, frame.raw.len()), (id, 100));
            assert_eq!(&frame.head[..], id.to_be_bytes());
        }
        writer.await.unwrap();
        assert!(reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_end_within_a_frame_is_an_error() {
        let frame = OutFrame::new(Kind::Ping, Role::Request, 1, b"abc", vec![]);
        let cut = frame.lead.slice(..frame.lead.len() - 1);
        let mut reader = FrameReader::new(&cut[..], MAX_FRAME);
        assert!(matches!(reader.next().await, Err(ReadError::Truncated)));
    }
}
