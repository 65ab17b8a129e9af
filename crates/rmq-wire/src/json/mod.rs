//! The dialect of JSON that fastjson 1 writes and Java tools expect.
//!
//! It differs from JSON in the keys of a map: they may be integers without quotes (`{0:"a"}`) and whole
//! objects (`{{"brokerName":"b","queueId":0,"topic":"t"}:1}`). Everything that is JSON is also read.
//!
//! [`read`] is the cursor over a text that the rest builds on, also the header of a frame.

pub(crate) mod read;
pub(crate) mod write;

pub use read::{JsonError, MAX_DEPTH};
