//! What a run found and did, for people and scripts.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use crate::Options;
use crate::compare::Comparison;
use crate::dledger::Rewritten;
use crate::estimate::Estimate;
use crate::history::History;
use crate::problem::Problem;
use crate::progress::bytes;
use crate::transfer::Done;
use crate::verify::Verified;

/// A run, finished or only looked at.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub run: String,
    pub from: PathBuf,
    pub to: PathBuf,
    /// Nothing was written.
    pub check: bool,
    /// The target was there already, made by a run with the same inputs.
    pub already_done: bool,
    pub source: String,
    pub clean_stop: bool,
    pub seconds: f64,
    pub segments: usize,
    pub segment_bytes: u64,
    pub log: History,
    /// Why queues were built anew; taken over if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues_rebuilt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index_rebuilt: Option<String>,
    pub queues: usize,
    pub topics: usize,
    pub groups: usize,
    pub consumer_offsets: usize,
    pub pending: Pending,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dledger: Option<Rewritten>,
    pub comparisons: Vec<Comparison>,
    pub files: Done,
    pub bytes_to_copy: u64,
    pub bytes_free: u64,
    /// Of a check: how long the run will take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub genesis: Option<String>,
    pub conf_files: Vec<PathBuf>,
    pub warnings: Vec<Problem>,
    pub blockers: Vec<Problem>,
}

/// Messages that wait for something, as the source's offsets have it. All of them are taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    pub delayed: u64,
    /// Half messages at or behind the progress of their checks, answered ones included.
    pub half: u64,
    pub retry: u64,
    pub dead_letters: u64,
    /// In the timer wheel or before it; kept for a later version.
    pub timer: u64,
    /// In light queues; kept for a later version.
    pub light: u64,
    /// Files of inner-batch queues; kept for a later version.
    pub inner_batch_files: u64,
}

impl Report {
    /// Shows the report, and writes it where it was asked for.
    pub fn publish(&self, options: &Options) -> Result<(), Problem> {
        match options.report.as_deref() {
            Some(path) if path.as_os_str() == "-" => say(self.json().trim_end()),
            other => {
                if let Some(path) = other {
                    std::fs::write(path, self.json())
                        .map_err(|error| Problem::writing(path, &error))?;
                }
                say(self.text().trim_end());
            }
        }
        match self.blockers.first() {
            None => Ok(()),
            Some(first) => Err(first.clone()),
        }
    }

    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data");
        text.push('\n');
        text
    }

    /// Figures with their names.
    fn figures(&self) -> Vec<(&'static str, String)> {
        let Self {
            log,
            files,
            pending,
            ..
        } = self;
        let taken = |reason: &Option<String>| match reason {
            None => "taken over".to_owned(),
            Some(reason) => format!("built anew: {reason}"),
        };
        if self.segments == 0 {
            // Nothing is known of it: what is in the way says why.
            return vec![
                ("source", self.from.display().to_string()),
                ("target", self.to.display().to_string()),
            ];
        }
        let mut rows = vec![
            (
                "source",
                format!("{} ({})", self.from.display(), self.source),
            ),
            ("target", self.to.display().to_string()),
            (
                "log",
                format!(
                    "{} in {} segments, positions {} to {}",
                    bytes(log.end - log.start),
                    self.segments,
                    log.start,
                    log.end
                ),
            ),
            (
                "records read",
                format!("{} in {}", log.records_checked, bytes(log.bytes_checked)),
            ),
            (
                "queues",
                format!("{}, {}", self.queues, taken(&self.queues_rebuilt)),
            ),
            ("index", taken(&self.index_rebuilt)),
            (
                "metadata",
                format!(
                    "{} topics, {} groups, {} offsets",
                    self.topics, self.groups, self.consumer_offsets
                ),
            ),
            (
                "waiting",
                format!(
                    "{} delayed, {} half, {} retry, {} dead letters, {} timer, {} light, {} inner-batch files",
                    pending.delayed,
                    pending.half,
                    pending.retry,
                    pending.dead_letters,
                    pending.timer,
                    pending.light,
                    pending.inner_batch_files
                ),
            ),
        ];
        if self.check {
            rows.push((
                "space",
                format!(
                    "{} to copy at most, {} free",
                    bytes(self.bytes_to_copy),
                    bytes(self.bytes_free)
                ),
            ));
        } else {
            rows.push((
                "files",
                format!(
                    "{} linked ({}), {} reflinked ({}), {} copied ({}), {} from an earlier run",
                    files.linked_files,
                    bytes(files.linked_bytes),
                    files.reflinked_files,
                    bytes(files.reflinked_bytes),
                    files.copied_files,
                    bytes(files.copied_bytes),
                    files.earlier_files
                ),
            ));
        }
        for other in &self.comparisons {
            let end = other.first_difference.map_or_else(
                || {
                    format!(
                        "equal up to {}, its own end {}",
                        other.common_end, other.its_end
                    )
                },
                |at| format!("differs at {at}"),
            );
            rows.push(("compared with", format!("{}: {end}", other.with.display())));
        }
        if let Some(seen) = self.verified {
            rows.push((
                "verified",
                format!(
                    "{} records in {}, {} in their queues, {} superseded, {} keys: no difference",
                    seen.records,
                    bytes(seen.bytes),
                    seen.queued,
                    seen.superseded,
                    seen.keys
                ),
            ));
        }
        if let Some(genesis) = &self.genesis {
            rows.push(("genesis", genesis.clone()));
        }
        if let Some(estimate) = &self.estimate {
            rows.push(("will take", estimate.text()));
        }
        rows.push(("time", format!("{:.1} s", self.seconds)));
        rows
    }

    /// What to do next.
    fn next(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.check {
            lines.push(if self.blockers.is_empty() {
                "Nothing was written. Run it without --check to migrate.".to_owned()
            } else {
                "Nothing was written.".to_owned()
            });
            return lines;
        }
        if self.already_done {
            lines.push("The target was complete already; nothing was done.".to_owned());
        }
        let to = self.to.display();
        if self.files.linked_files > 0 {
            lines.push(
                "Linked files share their blocks with the source until they expire; deleting the source frees no room before."
                    .to_owned(),
            );
        }
        for path in &self.conf_files {
            lines.push(format!("Properties file: {}", path.display()));
        }
        lines.push(format!(
            "Next: copy {to} to the other nodes, or leave their directories empty; then start them with mqbroker -c."
        ));
        lines.push(format!(
            "Undo, until the group has accepted messages: rmq-migrate --rollback --to {to}"
        ));
        lines
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for (name, value) in self.figures() {
            writeln!(out, "{name:14} {value}").expect("text into memory");
        }
        for (kind, problems) in [("warning", &self.warnings), ("blocker", &self.blockers)] {
            for problem in problems {
                writeln!(out, "{kind}: {problem}").expect("text into memory");
            }
        }
        let counts = (self.blockers.len(), self.warnings.len());
        writeln!(out, "{} blockers, {} warnings.", counts.0, counts.1).expect("text into memory");
        for line in self.next() {
            writeln!(out, "{line}").expect("text into memory");
        }
        out
    }

    /// A page that stands alone.
    pub fn html(&self) -> String {
        let mut out = String::from(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
             <title>rmq-migrate</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em \
             auto;padding:0 1em;color-scheme:light dark}td,th{text-align:left;vertical-align:top;padding:.2em 1em \
             .2em 0}pre{overflow:auto;white-space:pre-wrap}</style><h1>Migration ",
        );
        escape(&mut out, &self.run);
        out.push_str("</h1><table>");
        for (name, value) in self.figures() {
            out.push_str("<tr><th>");
            escape(&mut out, name);
            out.push_str("<td>");
            escape(&mut out, &value);
        }
        out.push_str("</table>");
        for (title, problems) in [("Blockers", &self.blockers), ("Warnings", &self.warnings)] {
            write!(out, "<h2>{title}: {}</h2>", problems.len()).expect("text into memory");
            for problem in problems {
                out.push_str("<pre>");
                escape(&mut out, &problem.to_string());
                out.push_str("</pre>");
            }
        }
        if !self.log.cut.is_empty() {
            write!(
                out,
                "<h2>Left out: {} records behind the cut</h2><table><tr><th>Position<th>Topic<th>Queue<th>Offset",
                self.log.cut_records
            )
            .expect("text into memory");
            for cut in &self.log.cut {
                write!(out, "<tr><td>{}<td>", cut.position).expect("text into memory");
                escape(&mut out, &cut.topic);
                write!(out, "<td>{}<td>{}", cut.queue_id, cut.queue_offset)
                    .expect("text into memory");
            }
            out.push_str("</table>");
        }
        out.push_str("<h2>Next</h2>");
        for line in self.next() {
            out.push_str("<p>");
            escape(&mut out, &line);
        }
        out.push('\n');
        out
    }
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c => out.push(c),
        }
    }
}

/// To the standard output. Whoever does not read it misses nothing that is not in the files.
pub(crate) fn say(text: &str) {
    let _unread = writeln!(std::io::stdout(), "{text}");
}

/// To the standard error.
pub(crate) fn complain(problem: &Problem) {
    tell(&format!("error: {problem}"));
}

pub(crate) fn tell(text: &str) {
    let _unread = writeln!(std::io::stderr(), "{text}");
}
