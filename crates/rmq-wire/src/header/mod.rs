//! The headers of requests and responses: what the fields of one frame mean.
//!
//! A struct per header, named like Java's class without "RequestHeader" or "ResponseHeader"; requests
//! that carry the same fields share one. [`SendMessage`] borrows from the fields, for sends are the hot
//! path. Every struct ignores fields it does not know; 5.x adds some to any request (`ns`, `nsd`,
//! `bname`, `oway`, `lo`).
//!
//! Java does not refuse a header that lacks a field it must have, and fails later with the text of an
//! exception. Here it is a [`HeaderError`], which a server answers with.
//!
//! - `client`: produce and consume; `push`: what a broker asks of clients
//! - `namesrv`: name server; `admin`: tools

mod admin;
mod client;
mod namesrv;
mod push;
mod send;

use crate::frame::{Command, ExtFields};

pub use admin::*;
pub use client::*;
pub use namesrv::*;
pub use push::*;
pub use send::{SendMessage, SendMessageResponse};

/// Why the fields of a frame are not those of its header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the custom field <{0}> is null")]
    Missing(&'static str),
    #[error("the custom field <{field}> has the value {value:?}")]
    Invalid { field: &'static str, value: String },
}

impl HeaderError {
    fn invalid(field: &'static str, value: &str) -> Self {
        // Long enough to recognize it, too short to fill a log.
        Self::Invalid {
            field,
            value: value.chars().take(64).collect(),
        }
    }
}

/// A header with a type of its own.
pub trait Header: Sized {
    /// Reads it from the fields of a frame.
    ///
    /// # Errors
    /// [`HeaderError`] for a field that must be there and is not, or has no value of its type.
    fn decode(ext: &ExtFields) -> Result<Self, HeaderError>;

    /// Sets its fields in those of a frame.
    fn encode(&self, ext: &mut ExtFields);
}

impl Command {
    #[must_use]
    pub fn with_header(mut self, header: &impl Header) -> Self {
        header.encode(&mut self.ext);
        self
    }

    /// Reads the header.
    ///
    /// # Errors
    /// See [`Header::decode`].
    pub fn header<H: Header>(&self) -> Result<H, HeaderError> {
        H::decode(&self.ext)
    }
}

/// A value of a header field.
trait Value: Sized {
    fn parse(text: &str) -> Option<Self>;
    fn set(&self, name: &str, ext: &mut ExtFields);
}

macro_rules! values {
    ($($type:ty: $parse:expr;)*) => {$(
        impl Value for $type {
            fn parse(text: &str) -> Option<Self> {
                let parse: fn(&str) -> Option<Self> = $parse;
                parse(text)
            }
            fn set(&self, name: &str, ext: &mut ExtFields) {
                ext.insert(name, self);
            }
        }
    )*};
}

values! {
    String: |text| Some(text.to_owned());
    i32: |text| text.parse().ok();
    i64: |text| text.parse().ok();
    // `Boolean.parseBoolean` knows no wrong value.
    bool: |text| Some(text.eq_ignore_ascii_case("true"));
}

fn optional<T: Value>(ext: &ExtFields, field: &'static str) -> Result<Option<T>, HeaderError> {
    let Some(text) = ext.get(field) else {
        return Ok(None);
    };
    T::parse(text)
        .map(Some)
        .ok_or_else(|| HeaderError::invalid(field, text))
}

fn required<T: Value>(ext: &ExtFields, field: &'static str) -> Result<T, HeaderError> {
    optional(ext, field)?.ok_or(HeaderError::Missing(field))
}

/// Declares headers. A field must be there unless its type is an `Option`, or it is marked `or default`,
/// which is what a missing field of a primitive type is in Java.
macro_rules! headers {
    ($(
        $(#[$about:meta])*
        $header:ident { $(
            $(#[$doc:meta])*
            $field:ident: $type:ident $(<$inner:ident>)? = $name:literal $(or $default:ident)?
        ),* $(,)? }
    )*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $header { $( $(#[$doc])* pub $field: $type $(<$inner>)?, )* }

        impl $crate::header::Header for $header {
            fn decode(ext: &$crate::frame::ExtFields) -> Result<Self, $crate::header::HeaderError> {
                Ok(Self { $( $field: headers!(@get ext, $name, $type $(<$inner>)? $(or $default)?), )* })
            }

            fn encode(&self, ext: &mut $crate::frame::ExtFields) {
                $( headers!(@set ext, $name, self.$field, $type $(<$inner>)?); )*
            }
        }
    )*};
    (@get $ext:ident, $name:literal, Option<$inner:ident>) => {
        $crate::header::optional($ext, $name)?
    };
    (@get $ext:ident, $name:literal, $type:ident) => { $crate::header::required($ext, $name)? };
    (@get $ext:ident, $name:literal, $type:ident or default) => {
        $crate::header::optional::<$type>($ext, $name)?.unwrap_or_default()
    };
    (@set $ext:ident, $name:literal, $value:expr, Option<$inner:ident>) => {
        if let Some(value) = &$value {
            $crate::header::Value::set(value, $name, $ext);
        }
    };
    (@set $ext:ident, $name:literal, $value:expr, $type:ident) => {
        $crate::header::Value::set(&$value, $name, $ext);
    };
}
use headers;

#[cfg(test)]
mod tests;
