//! The map of strings in a header.

use std::fmt::{self, Display, Write as _};

use super::FrameError;

/// Header fields in the order they came.
///
/// All names and values lie in one text: decoding a header takes two allocations, not two per field.
/// Two maps are equal if they have the same fields, in whatever order.
#[derive(Clone, Default)]
pub struct ExtFields {
    text: String,
    fields: Vec<Field>,
    /// A bit for every kind of name that is there ([`kind`]), so that most names which are not there are
    /// known without a walk.
    kinds: u64,
}

/// A name is `text[start..middle]`, its value `text[middle..end]`.
#[derive(Clone, Copy)]
struct Field {
    start: usize,
    middle: usize,
    end: usize,
}

impl ExtFields {
    /// A map with room for a header of `header_len` bytes.
    pub(super) fn with_room(header_len: usize) -> Self {
        Self {
            text: String::with_capacity(header_len),
            fields: Vec::with_capacity(16),
            kinds: 0,
        }
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.position(name).map(|at| self.value(self.fields[at]))
    }

    /// Sets a field; one of that name is replaced and keeps its place.
    pub fn insert(&mut self, name: &str, value: impl Display) {
        if self.fields.is_empty() {
            // What most headers have, and no growing in steps.
            self.text.reserve(256);
            self.fields.reserve(8);
        }
        let start = self.text.len();
        self.text.push_str(name);
        let middle = self.text.len();
        write!(self.text, "{value}").expect("a String takes every write");
        self.put(Field {
            start,
            middle,
            end: self.text.len(),
        });
    }

    /// Adds a field whose name and value `read` appends to the text; `read` returns where the value
    /// starts, or `None` for a field to be left out.
    pub(super) fn read_field(
        &mut self,
        read: impl FnOnce(&mut String) -> Result<Option<usize>, FrameError>,
    ) -> Result<(), FrameError> {
        let start = self.text.len();
        match read(&mut self.text)? {
            Some(middle) => self.put(Field {
                start,
                middle,
                end: self.text.len(),
            }),
            None => self.text.truncate(start),
        }
        Ok(())
    }

    fn put(&mut self, field: Field) {
        let name = self.name(field);
        match self.position(name) {
            Some(at) => self.fields[at] = field,
            None => {
                self.kinds |= kind(name);
                self.fields.push(field);
            }
        }
    }

    pub fn remove(&mut self, name: &str) {
        if let Some(at) = self.position(name) {
            self.fields.remove(at);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|&field| (self.name(field), self.value(field)))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    // At most 256 fields, and ten in practice: a walk is quicker than a hash.
    fn position(&self, name: &str) -> Option<usize> {
        if self.kinds & kind(name) == 0 {
            return None;
        }
        self.fields
            .iter()
            .position(|&field| self.name(field) == name)
    }

    fn name(&self, field: Field) -> &str {
        &self.text[field.start..field.middle]
    }

    fn value(&self, field: Field) -> &str {
        &self.text[field.middle..field.end]
    }
}

/// One bit out of 64, by the length and the first byte of a name.
fn kind(name: &str) -> u64 {
    let first = name.as_bytes().first().map_or(0, |&byte| usize::from(byte));
    1 << ((first + 7 * name.len()) % 64)
}

impl PartialEq for ExtFields {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self
                .iter()
                .all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Eq for ExtFields {}

impl fmt::Debug for ExtFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>, V: Display> FromIterator<(N, V)> for ExtFields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        let mut ext = Self::default();
        for (name, value) in fields {
            ext.insert(name.as_ref(), value);
        }
        ext
    }
}
