//! What is wrong with a configuration, told so that it can be mended.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// How grave it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing is started.
    Error,
    Warning,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file, at a line that is counted from 1.
    File(Arc<PathBuf>, usize),
    /// A variable of the environment.
    Environment(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// The line of a file that a diagnostic is about, with what to underline in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snippet {
    /// Counted from 1; of a value that goes on over several lines, not always the first one.
    pub(super) line: usize,
    pub(super) text: String,
    /// In characters.
    pub(super) columns: Range<usize>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub level: Level,
    /// `None` if it is about the configuration as a whole.
    pub place: Option<Place>,
    /// One sentence without a full stop.
    pub message: String,
    /// What to do, or what was meant.
    pub hint: Option<String>,
    pub(super) snippet: Option<Snippet>,
}

/// Characters of a line that are shown on each side of what is underlined.
const SHOWN: usize = 60;

impl Snippet {
    /// The line, cut and with plain spaces where a caret below could go astray, and the underline.
    fn render(&self) -> (String, String) {
        let chars: Vec<char> = self.text.chars().collect();
        let start = self.columns.start.min(chars.len());
        let end = self
            .columns
            .end
            .clamp(start, chars.len())
            .min(start + SHOWN);
        let from = start.saturating_sub(SHOWN);
        let to = (end + SHOWN).min(chars.len());
        let mut shown: String = chars[from..to]
            .iter()
            .map(|c| if c.is_control() { ' ' } else { *c })
            .collect();
        let mut indent = start - from;
        if from > 0 {
            shown.insert(0, '…');
            indent += 1;
        }
        if to < chars.len() {
            shown.push('…');
        }
        (
            shown,
            " ".repeat(indent) + &"^".repeat((end - start).max(1)),
        )
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, &self.snippet) {
            (Some(Place::File(path, _)), Some(snippet)) => {
                write!(f, "{}:{}: ", path.display(), snippet.line)?;
            }
            (Some(place), _) => write!(f, "{place}: ")?,
            (None, _) => {}
        }
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        write!(f, "{level}: {}", self.message)?;
        match &self.snippet {
            Some(snippet) => {
                let (text, underline) = snippet.render();
                let (line, text) = (snippet.line, text.trim_end());
                write!(f, "\n{line:>5} | {text}\n      | {underline}")?;
                if let Some(hint) = &self.hint {
                    write!(f, " {hint}")?;
                }
            }
            None => {
                if let Some(hint) = &self.hint {
                    write!(f, "; {hint}")?;
                }
            }
        }
        Ok(())
    }
}

/// Everything that was found, in the order of the sources and of their lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub(super) fn sort(&mut self) {
        let rank = |d: &Diagnostic| (d.place.is_none(), d.place.clone());
        self.diagnostics.sort_by_key(rank);
    }

    /// All of them.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// How many errors there are.
    pub fn errors(&self) -> usize {
        self.diagnostics
            .iter()
            .filter(|d| d.level == Level::Error)
            .count()
    }

    /// How many warnings there are.
    pub fn warnings(&self) -> usize {
        self.diagnostics.len() - self.errors()
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A line (an error in a file: three) for each, and with errors a last one that counts them.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic}")?;
        }
        match (self.errors(), self.warnings()) {
            (0, _) => Ok(()),
            (errors, 0) => writeln!(f, "{}. Nothing was started.", count(errors, "error")),
            (errors, warnings) => writeln!(
                f,
                "{}, {}. Nothing was started.",
                count(errors, "error"),
                count(warnings, "warning")
            ),
        }
    }
}

impl std::error::Error for Report {}
