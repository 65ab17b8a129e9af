//! Writing through serde.

use std::io::Write as _;

use serde::ser::{
    Error, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple,
    SerializeTupleStruct, Serializer,
};

use super::{JsonError, raw, write as text};

/// How an integer is written that is the key of a map.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum IntegerKeys {
    Quoted,
    Bare,
}

pub(super) fn write<T: Serialize + ?Sized>(value: &T, integer_keys: IntegerKeys) -> Vec<u8> {
    let mut ser = Ser {
        out: Vec::new(),
        integer_keys,
        place: Place::Value,
    };
    value
        .serialize(&mut ser)
        .expect("the type can be written as JSON");
    ser.out
}

impl Error for JsonError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Value(message.to_string())
    }
}

struct Ser {
    out: Vec<u8>,
    integer_keys: IntegerKeys,
    place: Place,
}

/// What the next scalar is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Value,
    Key,
    /// The text of a value, to be written as it is.
    Raw,
}

impl Ser {
    /// Writes a number or a boolean.
    fn word(&mut self, word: impl std::fmt::Display) -> Result<(), JsonError> {
        let quote = self.place == Place::Key && self.integer_keys == IntegerKeys::Quoted;
        let written = if quote {
            write!(self.out, "\"{word}\"")
        } else {
            write!(self.out, "{word}")
        };
        written.map_err(Error::custom)
    }

    fn open(&mut self, open: u8, close: u8) -> Elements<'_> {
        self.out.push(open);
        let place = std::mem::replace(&mut self.place, Place::Value);
        Elements {
            key_at: self.out.len(),
            ser: self,
            place,
            close,
            first: true,
        }
    }
}

macro_rules! words {
    ($($method:ident $type:ty,)*) => {$(
        fn $method(self, value: $type) -> Result<(), JsonError> {
            self.word(value)
        }
    )*};
}

impl<'s> Serializer for &'s mut Ser {
    type Ok = ();
    type Error = JsonError;
    type SerializeSeq = Elements<'s>;
    type SerializeTuple = Elements<'s>;
    type SerializeTupleStruct = Elements<'s>;
    type SerializeTupleVariant = Impossible<(), JsonError>;
    type SerializeMap = Elements<'s>;
    type SerializeStruct = Elements<'s>;
    type SerializeStructVariant = Impossible<(), JsonError>;

    words! {
        serialize_bool bool,
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64,
    }

    fn serialize_f32(self, value: f32) -> Result<(), JsonError> {
        self.serialize_f64(value.into())
    }

    /// With a point or an exponent, as in Java; null where there is no number.
    fn serialize_f64(self, value: f64) -> Result<(), JsonError> {
        if value.is_finite() {
            self.word(format_args!("{value:?}"))
        } else {
            self.word("null")
        }
    }

    fn serialize_char(self, value: char) -> Result<(), JsonError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), JsonError> {
        if self.place == Place::Raw {
            self.out.extend_from_slice(value.as_bytes());
            return Ok(());
        }
        text::string(&mut self.out, value);
        Ok(())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), JsonError> {
        Err(unsupported("bytes"))
    }

    fn serialize_none(self) -> Result<(), JsonError> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), JsonError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), JsonError> {
        self.word("null")
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), JsonError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), JsonError> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), JsonError> {
        if name != raw::TOKEN {
            return value.serialize(self);
        }
        let place = std::mem::replace(&mut self.place, Place::Raw);
        value.serialize(&mut *self)?;
        self.place = place;
        Ok(())
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), JsonError> {
        Err(unsupported("an enum with contents"))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'s>, JsonError> {
        Ok(self.open(b'[', b']'))
    }

    fn serialize_tuple(self, _: usize) -> Result<Elements<'s>, JsonError> {
        Ok(self.open(b'[', b']'))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Elements<'s>, JsonError> {
        Ok(self.open(b'[', b']'))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, JsonError> {
        Err(unsupported("an enum with contents"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Elements<'s>, JsonError> {
        Ok(self.open(b'{', b'}'))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Elements<'s>, JsonError> {
        Ok(self.open(b'{', b'}'))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, JsonError> {
        Err(unsupported("an enum with contents"))
    }
}

fn unsupported(what: &str) -> JsonError {
    JsonError::Value(format!("{what} cannot be written as JSON"))
}

/// An object or array being written.
struct Elements<'s> {
    ser: &'s mut Ser,
    /// What the whole is.
    place: Place,
    close: u8,
    first: bool,
    /// Where the last key begins, with the comma before it.
    key_at: usize,
}

impl Elements<'_> {
    fn separate(&mut self) {
        self.key_at = self.ser.out.len();
        if !std::mem::take(&mut self.first) {
            self.ser.out.push(b',');
        }
    }

    fn key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), JsonError> {
        self.separate();
        self.ser.place = Place::Key;
        key.serialize(&mut *self.ser)?;
        self.ser.place = Place::Value;
        self.ser.out.push(b':');
        Ok(())
    }

    /// Writes the value of the last key, or takes the key back if the value is null.
    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        let value_at = self.ser.out.len();
        value.serialize(&mut *self.ser)?;
        if self.ser.out[value_at..] == *b"null" {
            self.first = self.ser.out[self.key_at] != b',';
            self.ser.out.truncate(self.key_at);
        }
        Ok(())
    }

    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.separate();
        value.serialize(&mut *self.ser)
    }

    fn finish(self) {
        self.ser.out.push(self.close);
        self.ser.place = self.place;
    }
}

impl SerializeMap for Elements<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), JsonError> {
        self.key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
        self.value(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.finish();
        Ok(())
    }
}

impl SerializeStruct for Elements<'_> {
    type Ok = ();
    type Error = JsonError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), JsonError> {
        self.key(name)?;
        self.value(value)
    }

    fn end(self) -> Result<(), JsonError> {
        self.finish();
        Ok(())
    }
}

macro_rules! sequences {
    ($($sequence:ident $method:ident,)*) => {$(
        impl $sequence for Elements<'_> {
            type Ok = ();
            type Error = JsonError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), JsonError> {
                self.element(value)
            }

            fn end(self) -> Result<(), JsonError> {
                self.finish();
                Ok(())
            }
        }
    )*};
}

sequences! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
}
