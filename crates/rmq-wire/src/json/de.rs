//! Reading through serde.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::raw;
use super::read::{JsonError, Reader};

impl Error for JsonError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Value(message.to_string())
    }
}

/// Reads the one value of `text`.
pub(super) fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, JsonError> {
    // An empty object takes two bytes here and a hundred times that as a struct; real ones have names in
    // them. So what is held stays in proportion to what came.
    let mut de = De {
        reader: Reader::new(text),
        structs_left: 64 + text.len() / 16,
    };
    let value = T::deserialize(&mut de)?;
    de.reader.end()?;
    Ok(value)
}

struct De<'a> {
    reader: Reader<'a>,
    structs_left: usize,
}

impl<'a> De<'a> {
    /// A string, or the text of whatever else is there; nothing for null.
    fn text(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.reader.peek()? == b'"' {
            return self.reader.string();
        }
        Ok(Cow::Borrowed(match self.reader.raw()? {
            "null" => "",
            raw => raw,
        }))
    }

    /// A number with or without quotes; 0 for null and for an empty string.
    fn number(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let text = match self.reader.peek()? {
            b'"' => self.reader.string()?,
            _ => Cow::Borrowed(self.reader.word()?),
        };
        Ok(if matches!(&*text, "null" | "") {
            Cow::Borrowed("0")
        } else {
            text
        })
    }

    fn visit_integer<'de, V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, JsonError> {
        let text = self.number()?;
        if let Ok(value) = text.parse::<i64>() {
            return visitor.visit_i64(value);
        }
        match text.parse::<u64>() {
            Ok(value) => visitor.visit_u64(value),
            Err(_) => Err(JsonError::Value(format!("{text:?} is no 64-bit number"))),
        }
    }

    fn take_null(&mut self) -> Result<bool, JsonError> {
        let null = self.reader.peek()? == b'n';
        if null {
            self.reader.word()?;
        }
        Ok(null)
    }

    /// The elements of an object or array; none for null.
    fn elements<T>(
        &mut self,
        (open, close): (u8, u8),
        visit: impl FnOnce(&mut Elements<'_, 'a>) -> Result<T, JsonError>,
    ) -> Result<T, JsonError> {
        let done = self.take_null()?;
        if !done {
            self.reader.open(open)?;
        }
        let mut elements = Elements {
            de: self,
            close,
            first: true,
            done,
        };
        let value = visit(&mut elements)?;
        if elements.next()? {
            return Err(JsonError::Value("more elements than the type has".into()));
        }
        Ok(value)
    }
}

macro_rules! integers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
            self.visit_integer(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut De<'_> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.reader.peek()? {
            b'{' => self.deserialize_map(visitor),
            b'[' => self.deserialize_seq(visitor),
            b'"' => visitor.visit_str(&self.reader.string()?),
            _ => match self.reader.word()? {
                "null" => visitor.visit_unit(),
                "true" => visitor.visit_bool(true),
                "false" => visitor.visit_bool(false),
                number => match (number.parse(), number.parse(), number.parse()) {
                    (Ok(value), _, _) => visitor.visit_i64(value),
                    (_, Ok(value), _) => visitor.visit_u64(value),
                    (_, _, Ok(value)) => visitor.visit_f64(value),
                    _ => Err(JsonError::Value(format!("{number:?} is no number"))),
                },
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        let text = self.text()?;
        match &*text {
            "true" | "1" => visitor.visit_bool(true),
            "false" | "0" | "" => visitor.visit_bool(false),
            other => Err(JsonError::Value(format!("{other:?} is no boolean"))),
        }
    }

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        let text = self.number()?;
        match text.parse() {
            Ok(value) => visitor.visit_f64(value),
            Err(_) => Err(JsonError::Value(format!("{text:?} is no number"))),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        visitor.visit_str(&self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.take_null()? {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.take_null()? {
            visitor.visit_unit()
        } else {
            Err(self.reader.unexpected())
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        if name == raw::TOKEN {
            visitor.visit_str(self.reader.raw()?)
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.elements((b'[', b']'), |elements| visitor.visit_seq(elements))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.elements((b'{', b'}'), |elements| visitor.visit_map(elements))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        self.structs_left = self
            .structs_left
            .checked_sub(1)
            .ok_or_else(|| JsonError::Value("too many objects for so few bytes".into()))?;
        self.deserialize_map(visitor)
    }

    /// An enum without contents: its name, or its number as the old C++ client writes it.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        let text = self.text()?;
        let by_number = text
            .parse::<usize>()
            .ok()
            .and_then(|number| variants.get(number));
        visitor.visit_enum(Variant(by_number.copied().unwrap_or(&text)))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        self.reader.raw()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit_struct }
}

/// What an object or array still has.
struct Elements<'e, 'a> {
    de: &'e mut De<'a>,
    close: u8,
    first: bool,
    done: bool,
}

impl Elements<'_, '_> {
    fn next(&mut self) -> Result<bool, JsonError> {
        if !self.done {
            self.done = !self.de.reader.next_element(&mut self.first, self.close)?;
        }
        Ok(!self.done)
    }
}

impl<'de> SeqAccess<'de> for &mut Elements<'_, '_> {
    type Error = JsonError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, JsonError> {
        if !self.next()? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.de).map(Some)
    }
}

impl<'de> MapAccess<'de> for &mut Elements<'_, '_> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, JsonError> {
        if !self.next()? {
            return Ok(None);
        }
        let key = seed.deserialize(&mut *self.de)?;
        self.de.reader.expect(b':')?;
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, JsonError> {
        seed.deserialize(&mut *self.de)
    }
}

/// The name of a variant without contents.
struct Variant<'v>(&'v str);

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = JsonError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), JsonError> {
        let name: StrDeserializer<'_, JsonError> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = JsonError;

    fn unit_variant(self) -> Result<(), JsonError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, JsonError> {
        Err(with_contents())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, JsonError> {
        Err(with_contents())
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, JsonError> {
        Err(with_contents())
    }
}

fn with_contents() -> JsonError {
    JsonError::Value("an enum of Java has no contents".into())
}
