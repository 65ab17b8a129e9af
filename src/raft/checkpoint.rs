//! The applied state on disk: metadata, the entry up to which it was applied, and the membership at
//! that entry. A start begins from here instead of from the first entry of the log.

use bytes::{Buf, BufMut, Bytes};

use super::types::{
    LeaderId, LogId, MembershipDecodeError, StoredMembership, decode_membership, encode_membership,
};

/// The file's name under the store's root.
pub(super) const FILE_NAME: &str = rmq_store::APPLIED_FILE;
const MAGIC: [u8; 4] = *b"rmqA";
const VERSION: u16 = 1;
/// magic, version, CRC-32C of all that follows.
const HEAD_LEN: usize = 4 + 2 + 4;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    /// The last applied entry.
    pub(super) applied: LogId,
    /// The last applied membership.
    pub(super) membership: StoredMembership,
    /// `Meta::snapshot` after `applied`.
    pub(super) meta: Bytes,
}

/// Why a file is no checkpoint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum CheckpointError {
    #[error("file of {0} bytes is no checkpoint of applied state")]
    Magic(usize),
    #[error("checkpoint has layout version {0}, this build reads {VERSION}")]
    Version(u16),
    #[error("checkpoint has CRC {stated:#010x}, its content {actual:#010x}")]
    Crc { stated: u32, actual: u32 },
    #[error("checkpoint ends before its last field")]
    Short,
    #[error(transparent)]
    Membership(#[from] MembershipDecodeError),
}

impl Checkpoint {
    /// Big endian: `"rmqA" | version u16 | crc32c u32 | applied | 0 or 1 and the id of the
    /// membership's entry | length u32 and membership | metadata`, an id being
    /// `term u64 | node u64 | index u64`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_LEN + 128 + self.meta.len());
        out.put_slice(&MAGIC);
        out.put_u16(VERSION);
        out.put_u32(0);
        put_id(&mut out, &self.applied);
        match self.membership.log_id() {
            Some(id) => {
                out.put_u8(1);
                put_id(&mut out, id);
            }
            None => out.put_u8(0),
        }
        let members = encode_membership(self.membership.membership());
        out.put_u32(u32::try_from(members.len()).expect("a membership is small"));
        out.put_slice(&members);
        out.put_slice(&self.meta);
        let crc = crc32c::crc32c(&out[HEAD_LEN..]);
        out[HEAD_LEN - 4..HEAD_LEN].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads what [`Checkpoint::encode`] wrote.
    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, CheckpointError> {
        let len = bytes.len();
        if len < HEAD_LEN || bytes[..MAGIC.len()] != MAGIC {
            return Err(CheckpointError::Magic(len));
        }
        bytes.advance(MAGIC.len());
        let version = bytes.get_u16();
        if version != VERSION {
            return Err(CheckpointError::Version(version));
        }
        let stated = bytes.get_u32();
        let actual = crc32c::crc32c(&bytes);
        if stated != actual {
            return Err(CheckpointError::Crc { stated, actual });
        }
        let short = |_| CheckpointError::Short;
        let applied = take_id(&mut bytes)?;
        let changed_at = match bytes.try_get_u8().map_err(short)? {
            0 => None,
            _ => Some(take_id(&mut bytes)?),
        };
        let members_len = bytes.try_get_u32().map_err(short)? as usize;
        if members_len > bytes.len() {
            return Err(CheckpointError::Short);
        }
        let members = decode_membership(&bytes.split_to(members_len))?;
        let membership = StoredMembership::new(changed_at, members);
        Ok(Self {
            applied,
            membership,
            meta: bytes,
        })
    }
}

fn put_id(out: &mut Vec<u8>, id: &LogId) {
    out.put_u64(id.leader_id.term);
    out.put_u64(id.leader_id.node_id);
    out.put_u64(id.index);
}

fn take_id(bytes: &mut Bytes) -> Result<LogId, CheckpointError> {
    let mut field = || bytes.try_get_u64().map_err(|_| CheckpointError::Short);
    let leader_id = LeaderId {
        term: field()?,
        node_id: field()?,
    };
    Ok(LogId {
        leader_id,
        index: field()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use crate::raft::types::{BrokerNode, Membership};

    fn id(term: u64, node_id: u64, index: u64) -> LogId {
        LogId {
            leader_id: LeaderId { term, node_id },
            index,
        }
    }

    fn checkpoint() -> Checkpoint {
        let node = BrokerNode {
            raft_addr: "n0:40911".into(),
            broker_addr: "n0:10911".into(),
        };
        let members = Membership::new(vec![[7].into()], BTreeMap::from([(7, node)])).unwrap();
        Checkpoint {
            applied: id(3, 7, 99),
            membership: StoredMembership::new(Some(id(1, 7, 0)), members),
            meta: Bytes::from_static(b"metadata"),
        }
    }

    #[test]
    fn round_trips() {
        let full = checkpoint();
        assert_eq!(Checkpoint::decode(full.encode().into()), Ok(full.clone()));
        let bare = Checkpoint {
            membership: StoredMembership::default(),
            meta: Bytes::new(),
            ..full
        };
        assert_eq!(Checkpoint::decode(bare.encode().into()), Ok(bare));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_changed_or_cut_file_is_refused(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
            let bytes = checkpoint().encode();
            let mut changed = bytes.clone();
            changed[at % bytes.len()] ^= 1 << bit;
            prop_assert!(Checkpoint::decode(changed.into()).is_err());
            let mut cut_off = bytes.clone();
            cut_off.truncate(cut % bytes.len());
            prop_assert!(Checkpoint::decode(cut_off.into()).is_err());
        }
    }
}
