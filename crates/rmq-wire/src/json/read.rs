//! A cursor over a text of the dialect: strings, numbers, and values passed over, with a bound on depth.

use std::borrow::Cow;

/// Deepest nesting of objects and arrays that is read.
pub const MAX_DEPTH: u32 = 32;

/// Why a text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("text ends at byte {0} inside a value")]
    End(usize),
    #[error("unexpected byte {byte:#04x} at {at}")]
    Unexpected { byte: u8, at: usize },
    #[error("bad escape at byte {0}")]
    Escape(usize),
    #[error("nested deeper than {MAX_DEPTH} at byte {0}")]
    TooDeep(usize),
    #[error("text goes on after the value at byte {0}")]
    Trailing(usize),
    #[error("{0}")]
    Value(String),
}

/// The text of `bytes`, with U+FFFD for what is not UTF-8. (`String::from_utf8_lossy` goes byte by byte
/// also where all is well.)
pub(crate) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

/// A position in a text.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
        }
    }

    /// The byte position.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next byte that is no white space, left where it is.
    pub(crate) fn peek(&mut self) -> Result<u8, JsonError> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Ok(byte);
            }
            self.at += 1;
        }
        Err(JsonError::End(self.at))
    }

    /// Takes `byte` if it comes next.
    pub(crate) fn take(&mut self, byte: u8) -> Result<bool, JsonError> {
        let found = self.peek()? == byte;
        if found {
            self.at += 1;
        }
        Ok(found)
    }

    /// Takes `byte`, which must come next.
    pub(crate) fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.take(byte)? {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    /// Nothing but white space may be left.
    pub(crate) fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            Ok(_) => Err(JsonError::Trailing(self.at)),
            Err(_) => Ok(()),
        }
    }

    /// The error for the byte at the cursor.
    pub(crate) fn unexpected(&self) -> JsonError {
        match self.text.as_bytes().get(self.at) {
            Some(&byte) => JsonError::Unexpected { byte, at: self.at },
            None => JsonError::End(self.at),
        }
    }

    /// Enters an object or array; `open` is its first byte.
    pub(crate) fn open(&mut self, open: u8) -> Result<(), JsonError> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(JsonError::TooDeep(self.at));
        }
        Ok(())
    }

    /// Goes on to the next element of an object or array: true when there is one. At the end the
    /// closing byte has been taken.
    pub(crate) fn next_element(&mut self, first: &mut bool, close: u8) -> Result<bool, JsonError> {
        if self.take(close)? {
            self.depth -= 1;
            return Ok(false);
        }
        if !std::mem::take(first) {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// A string in double quotes, borrowed from the text where it has no escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.expect(b'"')?;
        let run = self.run()?;
        if self.take_raw(b'"') {
            return Ok(Cow::Borrowed(run));
        }
        let mut out = String::from(run);
        self.string_rest(&mut out)?;
        Ok(Cow::Owned(out))
    }

    /// Appends a string in double quotes to `out`.
    pub(crate) fn string_into(&mut self, out: &mut String) -> Result<(), JsonError> {
        self.expect(b'"')?;
        self.string_rest(out)
    }

    /// The characters up to a quote or a backslash. Control characters are taken as they come.
    fn run(&mut self) -> Result<&'a str, JsonError> {
        let rest = &self.text[self.at..];
        let len = rest
            .bytes()
            .position(|b| matches!(b, b'"' | b'\\'))
            .ok_or(JsonError::End(self.text.len()))?;
        self.at += len;
        Ok(&rest[..len])
    }

    fn take_raw(&mut self, byte: u8) -> bool {
        let found = self.text.as_bytes().get(self.at) == Some(&byte);
        if found {
            self.at += 1;
        }
        found
    }

    fn string_rest(&mut self, out: &mut String) -> Result<(), JsonError> {
        loop {
            out.push_str(self.run()?);
            if self.take_raw(b'"') {
                return Ok(());
            }
            self.at += 1;
            out.push(self.escape()?);
        }
    }

    /// The character of the escape whose backslash has been taken.
    fn escape(&mut self) -> Result<char, JsonError> {
        let byte = *self
            .text
            .as_bytes()
            .get(self.at)
            .ok_or(JsonError::End(self.at))?;
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(JsonError::Escape(self.at - 1)),
        })
    }

    /// One half of a pair of surrogates alone becomes U+FFFD, for a Rust string cannot hold it.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let high = self.hex4()?;
        if (0xD800..0xDC00).contains(&high) {
            let mut ahead = self.clone();
            if ahead.take_raw(b'\\')
                && ahead.take_raw(b'u')
                && let Ok(low @ 0xDC00..0xE000) = ahead.hex4()
            {
                self.at = ahead.at;
                let code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
        }
        Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self
            .text
            .as_bytes()
            .get(self.at..self.at + 4)
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .ok_or(JsonError::Escape(self.at))?;
        let value = digits.iter().fold(0, |value, &d| {
            value << 4 | char::from(d).to_digit(16).unwrap_or_default()
        });
        self.at += 4;
        Ok(value)
    }

    /// The text of a number, `true`, `false` or `null`.
    pub(crate) fn word(&mut self) -> Result<&'a str, JsonError> {
        self.peek()?;
        let start = self.at;
        let word = self.token()?;
        let number = word.parse::<f64>().is_ok_and(f64::is_finite);
        if !number && !matches!(word, "true" | "false" | "null") {
            self.at = start;
            return Err(self.unexpected());
        }
        Ok(word)
    }

    /// What may be a word, for a caller that looks closer at it.
    pub(crate) fn token(&mut self) -> Result<&'a str, JsonError> {
        self.peek()?;
        let rest = &self.text[self.at..];
        let len = rest
            .bytes()
            .position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')))
            .unwrap_or(rest.len());
        self.at += len;
        Ok(&rest[..len])
    }

    /// Passes over a value of any kind and returns its text.
    pub(crate) fn raw(&mut self) -> Result<&'a str, JsonError> {
        self.peek()?;
        let start = self.at;
        self.skip()?;
        Ok(&self.text[start..self.at])
    }

    fn skip(&mut self) -> Result<(), JsonError> {
        match self.peek()? {
            b'"' => self.skip_string(),
            open @ (b'{' | b'[') => {
                self.open(open)?;
                // '{' and '}' are as far apart as '[' and ']'.
                let close = open + 2;
                let mut first = true;
                while self.next_element(&mut first, close)? {
                    self.skip()?;
                    if open == b'{' {
                        self.expect(b':')?;
                        self.skip()?;
                    }
                }
                Ok(())
            }
            _ => self.word().map(drop),
        }
    }

    fn skip_string(&mut self) -> Result<(), JsonError> {
        self.expect(b'"')?;
        loop {
            self.run()?;
            if self.take_raw(b'"') {
                return Ok(());
            }
            self.at += 1;
            self.escape()?;
        }
    }
}
