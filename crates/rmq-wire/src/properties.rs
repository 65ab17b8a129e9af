//! Message properties: `name 0x01 value 0x02 name 0x01 value …`, as in a record and in the send header.
//!
//! A writer of 4.9 leaves out the last 0x02, one of 5.x keeps it; readers take both. Like Java's reader
//! (`MessageDecoder.string2messageProperties`), pairs with an empty name or an empty value are passed over.

use std::fmt::Write as _;

/// Stands between a name and its value.
pub const NAME_VALUE_SEPARATOR: char = '\u{1}';
/// Stands after a pair.
pub const PROPERTY_SEPARATOR: char = '\u{2}';
/// Most bytes that a record can hold: the length field is a signed 16-bit number.
pub const MAX_LEN: usize = i16::MAX as usize;

/// Stands between the words of [`KEYS`].
pub const KEY_SEPARATOR: char = ' ';

pub const KEYS: &str = "KEYS";
pub const TAGS: &str = "TAGS";
pub const WAIT_STORE_MSG_OK: &str = "WAIT";
pub const DELAY_TIME_LEVEL: &str = "DELAY";
pub const RETRY_TOPIC: &str = "RETRY_TOPIC";
pub const REAL_TOPIC: &str = "REAL_TOPIC";
pub const REAL_QUEUE_ID: &str = "REAL_QID";
pub const TRANSACTION_PREPARED: &str = "TRAN_MSG";
pub const PRODUCER_GROUP: &str = "PGROUP";
pub const MIN_OFFSET: &str = "MIN_OFFSET";
pub const MAX_OFFSET: &str = "MAX_OFFSET";
pub const ORIGIN_MESSAGE_ID: &str = "ORIGIN_MESSAGE_ID";
pub const RECONSUME_TIME: &str = "RECONSUME_TIME";
pub const MSG_REGION: &str = "MSG_REGION";
pub const TRACE_SWITCH: &str = "TRACE_ON";
pub const UNIQ_KEY: &str = "UNIQ_KEY";
pub const MAX_RECONSUME_TIMES: &str = "MAX_RECONSUME_TIMES";
pub const TRANSACTION_PREPARED_QUEUE_OFFSET: &str = "TRAN_PREPARED_QUEUE_OFFSET";
pub const TRANSACTION_CHECK_TIMES: &str = "TRANSACTION_CHECK_TIMES";
pub const TRANSACTION_ID: &str = "__transactionId__";
pub const CHECK_IMMUNITY_TIME_IN_SECONDS: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
pub const INSTANCE_ID: &str = "INSTANCE_ID";
pub const CORRELATION_ID: &str = "CORRELATION_ID";
pub const REPLY_TO_CLIENT: &str = "REPLY_TO_CLIENT";
pub const TTL: &str = "TTL";
pub const REPLY_MESSAGE_ARRIVE_TIME: &str = "ARRIVE_TIME";
pub const PUSH_REPLY_TIME: &str = "PUSH_REPLY_TIME";
pub const CLUSTER: &str = "CLUSTER";
pub const MESSAGE_TYPE: &str = "MSG_TYPE";
pub const INNER_NUM: &str = "INNER_NUM";
pub const INNER_MULTI_DISPATCH: &str = "INNER_MULTI_DISPATCH";
pub const INNER_MULTI_QUEUE_OFFSET: &str = "INNER_MULTI_QUEUE_OFFSET";
pub const SHARDING_KEY: &str = "__SHARDINGKEY";
pub const TIMER_DELAY_SEC: &str = "TIMER_DELAY_SEC";
pub const TIMER_DELAY_MS: &str = "TIMER_DELAY_MS";
pub const TIMER_DELIVER_MS: &str = "TIMER_DELIVER_MS";
pub const TIMER_OUT_MS: &str = "TIMER_OUT_MS";
pub const TIMER_DEL_UNIQKEY: &str = "TIMER_DEL_UNIQKEY";
pub const DLQ_ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
pub const DLQ_ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
pub const CRC32: &str = "__CRC32#";

/// The pairs of `text` in their order; a name may come twice, and Java then keeps the last.
pub fn iter(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(PROPERTY_SEPARATOR)
        .filter_map(|pair| pair.split_once(NAME_VALUE_SEPARATOR))
        .filter(|(name, value)| !name.is_empty() && !value.is_empty())
}

/// The value of `name`, the last one if it comes more than once.
#[must_use]
pub fn get<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    iter(text)
        .filter(|(n, _)| *n == name)
        .map(|(_, value)| value)
        .last()
}

/// The text of `pairs`, without a separator at its end, as 4.9 writes it.
///
/// A name or a value with a separator in it would be read back as something else; the caller keeps
/// them out, as the clients do.
pub fn format<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        push(&mut text, name, value);
    }
    text
}

/// Appends one pair, with a separator before it where `text` does not end in one.
pub fn push(text: &mut String, name: &str, value: impl std::fmt::Display) {
    if !text.is_empty() && !text.ends_with(PROPERTY_SEPARATOR) {
        text.push(PROPERTY_SEPARATOR);
    }
    write!(text, "{name}{NAME_VALUE_SEPARATOR}{value}").expect("a String takes every write");
}

/// `text` without the pairs named `name`; other pairs keep their order.
#[must_use]
pub fn without(text: &str, name: &str) -> String {
    format(iter(text).filter(|(n, _)| *n != name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn with_or_without_a_last_separator_reads_the_same() {
        let pairs = vec![("TAGS", "a"), ("KEYS", "k1 k2")];
        for text in [
            "TAGS\u{1}a\u{2}KEYS\u{1}k1 k2",
            "TAGS\u{1}a\u{2}KEYS\u{1}k1 k2\u{2}",
        ] {
            assert_eq!(iter(text).collect::<Vec<_>>(), pairs);
        }
        assert_eq!(format(pairs), "TAGS\u{1}a\u{2}KEYS\u{1}k1 k2");
    }

    #[test]
    fn pairs_without_name_value_or_separator_are_passed_over() {
        let text = "\u{2}a\u{2}\u{1}b\u{2}c\u{1}\u{2}d\u{1}1\u{1}2\u{2}\u{2}";
        assert_eq!(iter(text).collect::<Vec<_>>(), [("d", "1\u{1}2")]);
    }

    #[test]
    fn the_last_of_a_name_counts_and_a_pair_can_be_taken_out() {
        let mut text = String::from("a\u{1}1\u{2}b\u{1}2\u{2}");
        push(&mut text, "a", 3);
        assert_eq!(text, "a\u{1}1\u{2}b\u{1}2\u{2}a\u{1}3");
        assert_eq!(get(&text, "a"), Some("3"));
        assert_eq!(without(&text, "a"), "b\u{1}2");
        assert_eq!(get(&text, "c"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pairs in proptest::collection::vec(("[^\u{1}\u{2}]{1,9}", "[^\u{1}\u{2}]{1,9}"), 0..9)) {
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (&**n, &**v)).collect();
            let text = format(pairs.iter().copied());
            prop_assert_eq!(iter(&text).collect::<Vec<_>>(), pairs);
        }
    }
}
