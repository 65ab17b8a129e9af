//! The part of EDN that a history is written in: nil, booleans, integers, strings, keywords, vectors, maps.

use std::fmt;

use anyhow::{Context, bail, ensure};

/// Maps and vectors within each other; what nests deeper is no history.
const DEPTH: usize = 32;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edn {
    /// `nil`
    Nil,
    /// `true`
    Bool(bool),
    /// `7`
    Int(i64),
    /// `"text"`
    Text(String),
    /// `:name`
    Key(String),
    /// `[1 2]`
    List(Vec<Edn>),
    /// `{:key "value"}`, in this order.
    Map(Vec<(Edn, Edn)>),
}

impl Edn {
    /// A keyword.
    pub fn key(name: &str) -> Self {
        Self::Key(name.into())
    }

    /// A map with keywords.
    pub fn map<const N: usize>(entries: [(&str, Edn); N]) -> Self {
        let entries = entries.into_iter();
        Self::Map(
            entries
                .map(|(key, value)| (Self::key(key), value))
                .collect(),
        )
    }

    /// A map's value of a keyword.
    pub fn get(&self, key: &str) -> Option<&Edn> {
        let Self::Map(entries) = self else {
            return None;
        };
        let is = |of: &Edn| matches!(of, Self::Key(name) if name == key);
        entries
            .iter()
            .find(|(of, _)| is(of))
            .map(|(_, value)| value)
    }

    /// A whole number from 0 on.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The text of a string or the name of a keyword.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Key(text) => Some(text),
            _ => None,
        }
    }

    /// A vector's values.
    pub fn list(&self) -> Option<&[Edn]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// All values of a text, each with the number of the line where it begins.
    ///
    /// # Errors
    /// Where the text is not of the part of EDN that is read, with the line.
    pub fn read_all(text: &str) -> anyhow::Result<Vec<(usize, Self)>> {
        let mut reader = Reader {
            rest: text,
            line: 1,
        };
        let mut all = Vec::new();
        loop {
            reader.skip();
            let line = reader.line;
            if reader.rest.is_empty() {
                return Ok(all);
            }
            let value = reader.value(0).with_context(|| format!("line {line}"))?;
            all.push((line, value));
        }
    }
}

impl From<u64> for Edn {
    fn from(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Edn {
    fn from(n: u32) -> Self {
        Self::Int(n.into())
    }
}

impl From<&str> for Edn {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Edn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Key(name) => write!(f, ":{name}"),
            Self::Text(text) => {
                f.write_str("\"")?;
                for c in text.chars() {
                    match c {
                        '"' | '\\' => write!(f, "\\{c}")?,
                        '\n' => f.write_str("\\n")?,
                        c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                        c => write!(f, "{c}")?,
                    }
                }
                f.write_str("\"")
            }
            Self::List(list) => {
                f.write_str("[")?;
                for (n, value) in list.iter().enumerate() {
                    let gap = if n == 0 { "" } else { " " };
                    write!(f, "{gap}{value}")?;
                }
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{")?;
                for (n, (key, value)) in entries.iter().enumerate() {
                    let gap = if n == 0 { "" } else { ", " };
                    write!(f, "{gap}{key} {value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.line += usize::from(c == '\n');
        Some(c)
    }

    /// Blanks, commas and comments.
    fn skip(&mut self) {
        while let Some(c) = self.rest.chars().next() {
            if c == ';' {
                while self.next().is_some_and(|c| c != '\n') {}
            } else if c.is_whitespace() || c == ',' {
                self.next();
            } else {
                return;
            }
        }
    }

    fn value(&mut self, depth: usize) -> anyhow::Result<Edn> {
        ensure!(depth < DEPTH, "more than {DEPTH} values within each other");
        self.skip();
        match self.rest.chars().next() {
            None => bail!("it ends within a value"),
            Some('[') => Ok(Edn::List(self.until(']', depth)?)),
            Some('{') => {
                let mut flat = self.until('}', depth)?.into_iter();
                let mut entries = Vec::new();
                while let Some(key) = flat.next() {
                    entries.push((key, flat.next().context("a map's key has no value")?));
                }
                Ok(Edn::Map(entries))
            }
            Some('"') => self.string(),
            Some(_) => self.atom(),
        }
    }

    fn until(&mut self, end: char, depth: usize) -> anyhow::Result<Vec<Edn>> {
        self.next();
        let mut list = Vec::new();
        loop {
            self.skip();
            if self.rest.starts_with(end) {
                self.next();
                return Ok(list);
            }
            list.push(self.value(depth + 1)?);
        }
    }

    fn string(&mut self) -> anyhow::Result<Edn> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next().context("a string has no end")? {
                '"' => return Ok(Edn::Text(text)),
                '\\' => match self.next().context("a string has no end")? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'u' => {
                        let hex: String = (0..4).filter_map(|_| self.next()).collect();
                        let c = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                        text.push(c.with_context(|| format!("\\u{hex} is no character"))?);
                    }
                    c => text.push(c),
                },
                c => text.push(c),
            }
        }
    }

    fn atom(&mut self) -> anyhow::Result<Edn> {
        let is_end = |c: char| c.is_whitespace() || ",;[]{}\"".contains(c);
        let end = self.rest.find(is_end).unwrap_or(self.rest.len());
        let (atom, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(match atom {
            "nil" => Edn::Nil,
            "true" => Edn::Bool(true),
            "false" => Edn::Bool(false),
            _ => match atom.strip_prefix(':') {
                Some(name) if !name.is_empty() => Edn::key(name),
                _ => Edn::Int(atom.parse().with_context(|| {
                    format!("{atom:?} is no number, keyword, string, vector or map")
                })?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let text = "{:index 0, :value [[:send 7 [52 \"a\\\"\\\\ \\u0007ö\"]]], :ok true, :none nil, :n -3}";
        let read = Edn::read_all(&format!("; a comment\n{text}\n{text}")).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].0, read[1].0), (2, 3));
        assert_eq!(read[0].1.to_string(), text);
        assert_eq!(read[0].1.get("index").and_then(Edn::number), Some(0));
    }

    #[test]
    fn what_is_no_value_is_refused_with_its_line() {
        let deep = "[".repeat(100_000);
        for bad in [
            "[1",
            "{:a}",
            "\"x",
            "word",
            "]",
            "\"\\uzzzz\"",
            "#{1}",
            ":",
            &deep,
        ] {
            let error = Edn::read_all(&format!("1\n{bad}")).unwrap_err();
            assert!(
                format!("{error:#}").starts_with("line 2"),
                "{bad}: {error:#}"
            );
        }
    }
}
