//! A value that is kept as its text.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use super::read::{JsonError, Reader};

/// Tells our reader and writer that a newtype is a [`Raw`].
pub(super) const TOKEN: &str = "$rmq_wire::json::Raw";

/// The text of one value, read without looking into it and written as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw(String);

impl Raw {
    /// Takes the text of a value.
    ///
    /// # Errors
    /// [`JsonError`] if it is not exactly one.
    pub fn new(text: impl Into<String>) -> Result<Self, JsonError> {
        let text = text.into();
        let mut reader = Reader::new(&text);
        reader.raw()?;
        reader.end()?;
        Ok(Self(text))
    }

    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(TOKEN, &self.0)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw(text.to_owned()))
            }

            // Other formats keep the text in a string, which need not hold a value.
            fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
                Raw::new(String::deserialize(d)?).map_err(Error::custom)
            }
        }
        deserializer.deserialize_newtype_struct(TOKEN, Text)
    }
}
