//! The dialect of JSON that fastjson 1 writes and Java tools expect.
//!
//! It differs from JSON in the keys of a map: they may be integers without quotes (`{0:"a"}`) and whole
//! objects (`{{"brokerName":"b","queueId":0,"topic":"t"}:1}`). Everything that is JSON is read too.
//!
//! Types come and go through serde, so a map with such keys is a map with integers or structs for keys.
//! - Reading forgives what Java forgives: numbers and booleans in quotes, enums by number, null for
//!   anything (it reads as empty, zero or false).
//! - Writing leaves out what is null, and puts fields in the order of their declaration, which is
//!   alphabetical in [`crate::body`] as in Java. Structs as keys are written as objects, the only form
//!   Java tools read. Integers as keys go in quotes ([`to_vec`]), which every client reads, or without
//!   ([`to_java_string`]), as in Java's own files.
//!
//! `read` is the cursor that all this stands on, also the header of a frame; `de` and `ser` join serde to
//! it; [`Raw`] is a value that passes through unread.

mod de;
mod raw;
pub(crate) mod read;
mod ser;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use raw::Raw;
pub use read::{JsonError, MAX_DEPTH};

/// Reads a value. Bytes that are not UTF-8 read as U+FFFD, as in Java.
///
/// # Errors
/// [`JsonError`]: not the dialect, deeper than [`MAX_DEPTH`], or not a value of that type.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    match read::lossy(bytes) {
        Cow::Borrowed(text) => from_str(text),
        Cow::Owned(text) => from_str(&text),
    }
}

/// Reads a value.
///
/// # Errors
/// See [`from_slice`].
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    de::read(text)
}

/// Writes a value for the wire, with integer keys in quotes.
///
/// # Panics
/// If its type cannot be written: a map whose keys are neither strings, integers nor structs.
#[must_use]
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    ser::write(value, ser::IntegerKeys::Quoted)
}

/// Writes a value as Java's files have it, with integer keys without quotes.
///
/// # Panics
/// See [`to_vec`].
#[must_use]
pub fn to_java_string<T: Serialize + ?Sized>(value: &T) -> String {
    String::from_utf8(ser::write(value, ser::IntegerKeys::Bare)).expect("JSON is text")
}
