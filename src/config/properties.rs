//! Reads the format of `java.util.Properties` and keeps the place of every character, so that a
//! message can point at what is wrong.
//!
//! Differences from Java, all on purpose: bytes that are valid UTF-8 are read as such (Java reads
//! Latin-1, and only what is not UTF-8 is read so here), and a byte order mark is skipped.

use std::ops::Range;

/// A place in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pos {
    /// Counted from 1.
    pub(super) line: usize,
    /// In characters, counted from 0.
    pub(super) column: usize,
}

/// A key or value after its escapes are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    /// The place of each character, and after them of the end.
    at: Vec<Pos>,
}

impl Text {
    /// A text that stands in no file.
    pub(super) fn loose(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            at: vec![Pos::default(); text.chars().count() + 1],
        }
    }

    fn push(&mut self, c: char, at: Pos) {
        self.text.push(c);
        self.at.push(at);
    }

    fn end(&mut self, at: Pos) {
        self.at.push(at);
    }

    /// Where a byte of the text stands in the file.
    fn place(&self, byte: usize) -> Pos {
        let chars = self
            .text
            .char_indices()
            .take_while(|(i, _)| *i < byte)
            .count();
        self.at[chars.min(self.at.len() - 1)]
    }

    /// The line and columns of a part of the text, at least one column wide; of a part that goes on
    /// in the next line, what stands in its first one.
    pub(super) fn columns(&self, bytes: Range<usize>) -> (usize, Range<usize>) {
        let (start, end) = (self.place(bytes.start), self.place(bytes.end));
        let end = if end.line == start.line {
            end.column
        } else {
            start.column + 1
        };
        (start.line, start.column..end.max(start.column + 1))
    }

    /// Removes white space from the end.
    pub(super) fn trim_end(&mut self) {
        self.text.truncate(self.text.trim_end().len());
        let chars = self.text.chars().count();
        self.at.truncate(chars + 1);
    }
}

/// One `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Text,
    pub(super) value: Text,
}

/// A file as it was read.
#[derive(Debug, Default)]
pub(super) struct Properties {
    pub(super) entries: Vec<Entry>,
    /// The places of `\u` without four hexadecimal digits after it. Java refuses the whole file.
    pub(super) bad_escapes: Vec<Pos>,
    /// The lines of the file, for messages.
    pub(super) lines: Vec<String>,
}

/// Reads a whole file. Everything is accepted except what [`Properties::bad_escapes`] tells.
pub(super) fn parse(bytes: &[u8]) -> Properties {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text).to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    let text = text.replace("\r\n", "\n");
    let mut properties = Properties {
        lines: text.split(['\n', '\r']).map(str::to_owned).collect(),
        ..Properties::default()
    };
    let mut logical: Vec<(char, Pos)> = Vec::new();
    for i in 0..properties.lines.len() {
        let line: Vec<(char, Pos)> = properties.lines[i]
            .chars()
            .enumerate()
            .skip_while(|(_, c)| is_space(*c))
            .map(|(column, c)| {
                (
                    c,
                    Pos {
                        line: i + 1,
                        column,
                    },
                )
            })
            .collect();
        // Only where a logical line begins can a comment stand; in a continued one `#` is text.
        if logical.is_empty() && matches!(line.first(), None | Some(('#' | '!', _))) {
            continue;
        }
        let backslashes = line.iter().rev().take_while(|(c, _)| *c == '\\').count();
        logical.extend(&line);
        if backslashes % 2 == 1 {
            logical.pop();
        } else {
            properties.add(&std::mem::take(&mut logical));
        }
    }
    if !logical.is_empty() {
        properties.add(&logical);
    }
    properties
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0c')
}

impl Properties {
    fn add(&mut self, line: &[(char, Pos)]) {
        let mut escaped = false;
        let key_end = line
            .iter()
            .position(|(c, _)| {
                let ends = !escaped && (matches!(c, '=' | ':') || is_space(*c));
                escaped = *c == '\\' && !escaped;
                ends
            })
            .unwrap_or(line.len());
        let skip_spaces = |from: usize| {
            from + line[from..]
                .iter()
                .take_while(|(c, _)| is_space(*c))
                .count()
        };
        let mut value_start = skip_spaces(key_end);
        if let Some(('=' | ':', _)) = line.get(value_start) {
            value_start = skip_spaces(value_start + 1);
        }
        let after = |(_, at): &(char, Pos)| Pos {
            column: at.column + 1,
            ..*at
        };
        let end = line.last().map(after).unwrap_or_default();
        let key = self.unescape(
            &line[..key_end],
            line.get(key_end).map_or(end, |(_, at)| *at),
        );
        let value = self.unescape(&line[value_start..], end);
        self.entries.push(Entry { key, value });
    }

    /// `end` is the place after the last character.
    fn unescape(&mut self, raw: &[(char, Pos)], end: Pos) -> Text {
        let mut text = Text::default();
        let mut high_surrogate: Option<(u32, Pos)> = None;
        let mut rest = raw;
        while let [(c, at), tail @ ..] = rest {
            rest = tail;
            let mut unit = u32::from(*c);
            if *c == '\\'
                && let [(escape, _), tail @ ..] = rest
            {
                rest = tail;
                unit = match escape {
                    't' => 0x09,
                    'n' => 0x0a,
                    'f' => 0x0c,
                    'r' => 0x0d,
                    'u' => match hex4(tail) {
                        Some(unit) => {
                            rest = &tail[4..];
                            unit
                        }
                        None => {
                            self.bad_escapes.push(*at);
                            continue;
                        }
                    },
                    other => u32::from(*other),
                };
            }
            if let Some((high, high_at)) = high_surrogate.take() {
                if (0xdc00..0xe000).contains(&unit) {
                    let joined = 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00);
                    text.push(scalar(joined), high_at);
                    continue;
                }
                text.push(char::REPLACEMENT_CHARACTER, high_at);
            }
            if (0xd800..0xdc00).contains(&unit) {
                high_surrogate = Some((unit, *at));
            } else {
                text.push(scalar(unit), *at);
            }
        }
        if let Some((_, at)) = high_surrogate {
            text.push(char::REPLACEMENT_CHARACTER, at);
        }
        text.end(end);
        text
    }
}

/// Half of a pair of surrogates is no character.
fn scalar(unit: u32) -> char {
    char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn hex4(raw: &[(char, Pos)]) -> Option<u32> {
    raw.get(..4)?
        .iter()
        .try_fold(0, |unit, (c, _)| Some(unit << 4 | c.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(bytes: &[u8]) -> Vec<(String, String)> {
        parse(bytes)
            .entries
            .into_iter()
            .map(|e| (e.key.text, e.value.text))
            .collect()
    }

    #[track_caller]
    fn check(file: &str, want: &[(&str, &str)]) {
        let want: Vec<_> = want
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        assert_eq!(pairs(file.as_bytes()), want);
    }

    #[test]
    fn separators_are_equals_colon_and_space() {
        check(
            "a=1\nb:2\nc 3\nd = 4\ne\t:\t5\nf = = 6\ng\nh=\n =i\n",
            &[
                ("a", "1"),
                ("b", "2"),
                ("c", "3"),
                ("d", "4"),
                ("e", "5"),
                ("f", "= 6"),
                ("g", ""),
                ("h", ""),
                ("", "i"),
            ],
        );
    }

    #[test]
    fn comments_and_blank_lines_are_left_out() {
        check(
            "# a=1\n  ! b=2\n\n \t\nc=3 # not a comment \\\n",
            &[("c", "3 # not a comment ")],
        );
    }

    #[test]
    fn a_backslash_continues_a_line_and_drops_the_space_after() {
        check("a=x;\\\n    y;\\\r\n\t# z\n", &[("a", "x;y;# z")]);
        check("a=x\\\\\nb=y\\\\\\\nz", &[("a", "x\\"), ("b", "y\\z")]);
        check("a=1\\\n\nb=2", &[("a", "1"), ("b", "2")]);
        check("\\\n# comment\na=1\\", &[("a", "1")]);
        check("# comment \\\na=1", &[("a", "1")]);
    }

    #[test]
    fn all_three_line_ends_count() {
        check(
            "a=1\rb=2\r\nc=3\nd=4",
            &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")],
        );
        assert_eq!(
            parse(b"a=1\rb=2\r\nc=3").entries[2].value.columns(0..1),
            (3, 2..3)
        );
    }

    #[test]
    fn escapes_are_replaced() {
        check(
            r"a\=b\ c=\t\n\f\r\q\\ \u4e2d\uD83D\uDE00x",
            &[("a=b c", "\t\n\x0c\rq\\ \u{4e2d}\u{1f600}x")],
        );
        check(r"a=\ud83d.\ude00", &[("a", "\u{fffd}.\u{fffd}")]);
    }

    #[test]
    fn a_bad_unicode_escape_is_told_with_its_place() {
        let properties = parse(b"a=1\nb=x\\u12g4y\nc=\\u12");
        let at = |line, column| Pos { line, column };
        assert_eq!(properties.bad_escapes, [at(2, 3), at(3, 2)]);
        assert_eq!(properties.entries.len(), 3);
    }

    #[test]
    fn both_encodings_are_read() {
        check("\u{feff}a=主\n", &[("a", "主")]);
        assert_eq!(pairs(b"a=caf\xe9"), [("a".into(), "caf\u{e9}".into())]);
    }

    #[test]
    fn places_follow_escapes_and_continued_lines() {
        let properties = parse("# first\nkey = \\u0041b;\\\n   cd\n".as_bytes());
        let Entry { key, value } = &properties.entries[0];
        assert_eq!(value.text, "Ab;cd");
        assert_eq!(key.columns(0..3), (2, 0..3));
        assert_eq!(value.columns(0..1), (2, 6..12));
        assert_eq!(value.columns(3..5), (3, 3..5));
        assert_eq!(value.columns(0..5), (2, 6..7));
        assert_eq!(value.columns(5..5), (3, 5..6));
    }

    /// What `java.util.Properties.load` (JDK 17) made of files put together at random from the
    /// characters that matter to the format; written by `scripts/PropertiesGolden.java`.
    #[test]
    fn reads_what_java_reads() {
        let golden: Vec<(String, Vec<(String, String)>)> =
            serde_json::from_str(include_str!("testdata/properties.json")).unwrap();
        assert!(golden.len() > 100);
        for (file, mut want) in golden {
            let mut got: Vec<(String, String)> = Vec::new();
            for (key, value) in pairs(file.as_bytes()) {
                got.retain(|(other, _)| *other != key);
                got.push((key, value));
            }
            got.sort();
            want.sort();
            assert_eq!(got, want, "{file:?}");
        }
    }

    /// The escapes that `java.util.Properties.store` writes.
    fn escape(text: &str, key: bool) -> String {
        let mut out = String::new();
        for (i, c) in text.chars().enumerate() {
            match c {
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\x0c' => out.push_str("\\f"),
                ' ' if key || i == 0 => out.push_str("\\ "),
                '=' | ':' | '#' | '!' | '\\' => out.extend(['\\', c]),
                ' '..='~' => out.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04X}"));
                    }
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let properties = parse(&bytes);
            for entry in &properties.entries {
                for text in [&entry.key, &entry.value] {
                    let (line, columns) = text.columns(0..text.text.len());
                    prop_assert!(line <= properties.lines.len());
                    prop_assert!(columns.start < columns.end);
                }
            }
        }

        #[test]
        fn any_text_of_the_format_is_read(text in "[a#!=: \\\\\t\r\nu0-9é]{0,60}") {
            parse(text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read_again(
            pairs_in in prop::collection::vec((any::<String>(), any::<String>()), 0..8)
        ) {
            let file: String = pairs_in
                .iter()
                .map(|(k, v)| format!("{}={}\n", escape(k, true), escape(v, false)))
                .collect();
            prop_assert_eq!(pairs(file.as_bytes()), pairs_in);
        }
    }
}
