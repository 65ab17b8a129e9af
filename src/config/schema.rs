//! One table per program: each key with its type, default and range, from which the struct, the
//! reader and the printer are made.

use std::ops::RangeInclusive;

use super::value::{BadValue, Value};

/// What a program's configuration offers to the loader, which knows keys only by name.
pub(super) trait Schema: Default {
    /// Every key that has an effect, in the order in which they are printed.
    const KEYS: &'static [Key];

    /// Takes the value of one of [`Schema::KEYS`]; `None` when there is no such key.
    fn set(&mut self, key: &str, text: &str) -> Option<Result<(), BadValue>>;

    /// The value of one of [`Schema::KEYS`] as a properties file would have it.
    fn get(&self, key: &str) -> Option<String>;
}

/// A key that has an effect.
#[derive(Debug)]
pub(super) struct Key {
    /// As it is spelled in a properties file.
    pub(super) name: &'static str,
    /// What it means, with its unit, in lines; for the reference, which a test keeps.
    #[cfg(test)]
    pub(super) doc: &'static [&'static str],
    /// Smallest and largest value, where there is a bound.
    pub(super) range: Option<RangeInclusive<u64>>,
}

pub(super) fn in_range<T: Value>(
    value: T,
    range: Option<&RangeInclusive<u64>>,
    text: &str,
) -> Result<T, BadValue> {
    match (range, value.number()) {
        (Some(range), Some(number)) if !range.contains(&number) => {
            let (low, high) = (range.start(), range.end());
            Err(BadValue::want(format_args!("from {low} to {high}"), text))
        }
        _ => Ok(value),
    }
}

macro_rules! config_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:literal => $field:ident: $ty:ty = $default:expr $(, in $range:expr)?;
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $(
                $(#[doc = $doc])*
                #[doc = concat!("\n\nKey `", $key, "`.")]
                pub $field: $ty,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::config::schema::Schema for $name {
            const KEYS: &'static [$crate::config::schema::Key] = &[
                $($crate::config::schema::Key {
                    name: $key,
                    #[cfg(test)]
                    doc: &[$($doc),*],
                    range: $crate::config::schema::config_struct!(@range $($range)?),
                },)*
            ];

            fn set(
                &mut self,
                key: &str,
                text: &str,
            ) -> Option<Result<(), $crate::config::value::BadValue>> {
                let range = Self::KEYS.iter().find(|k| k.name == key)?.range.as_ref();
                Some(match key {
                    $($key => <$ty as $crate::config::value::Value>::parse(text)
                        .and_then(|v| $crate::config::schema::in_range(v, range, text))
                        .map(|v| self.$field = v),)*
                    _ => return None,
                })
            }

            fn get(&self, key: &str) -> Option<String> {
                Some(match key {
                    $($key => $crate::config::value::Value::show(&self.$field),)*
                    _ => return None,
                })
            }
        }
    };
    (@range) => { None };
    (@range $range:expr) => { Some($range) };
}
pub(super) use config_struct;
