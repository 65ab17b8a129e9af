//! What was in a store that the nodes took over.

use crate::history::{History, Kept};

/// Each node that was asked has each message as it was, and no queue, group or level of delay has gone back. Each was
/// asked of some node.
pub fn adopted(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    for adopted in &history.adopted {
        let (place, had) = (&adopted.place, &adopted.had);
        if adopted.shown.is_empty() {
            wrong.push(format!("{place} was not shown by any node"));
        }
        for (node, shown) in &adopted.shown {
            let is_kept = match (had, shown) {
                (Kept::Offset(had), Some(Kept::Offset(shown))) => had <= shown,
                (had, shown) => Some(had) == shown.as_ref(),
            };
            if !is_kept {
                let shown = shown.as_ref().map_or_else(|| "nothing".to_owned(), words);
                wrong.push(format!(
                    "n{node} has {shown} at {place}, where {} was taken over",
                    words(had)
                ));
            }
        }
    }
    wrong
}

fn words(kept: &Kept) -> String {
    match kept {
        Kept::Message(digest) => format!("message {digest}"),
        Kept::Offset(offset) => offset.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Adopted;

    fn judged(had: Kept, shown: &[(u64, Option<Kept>)]) -> Vec<String> {
        let adopted_one = Adopted {
            place: "T/0".into(),
            had,
            shown: shown.iter().cloned().collect(),
        };
        adopted(&History {
            adopted: vec![adopted_one],
            ..History::default()
        })
    }

    #[test]
    fn messages_stay_as_they_are_and_offsets_do_not_go_back() {
        let message = |digest: &str| Kept::Message(digest.into());
        let good = [(0, Some(message("a"))), (2, Some(message("a")))];
        assert_eq!(judged(message("a"), &good), Vec::<String>::new());
        let ahead = [(0, Some(Kept::Offset(7))), (1, Some(Kept::Offset(9)))];
        assert_eq!(judged(Kept::Offset(7), &ahead), Vec::<String>::new());
        for bad in [
            judged(message("a"), &[]),
            judged(message("a"), &[(0, Some(message("a"))), (1, None)]),
            judged(message("a"), &[(1, Some(message("b")))]),
            judged(message("a"), &[(1, Some(Kept::Offset(7)))]),
            judged(Kept::Offset(7), &[(1, Some(Kept::Offset(6)))]),
            judged(Kept::Offset(7), &[(1, None)]),
        ] {
            assert_eq!(bad.len(), 1, "{bad:?}");
        }
    }
}
