//! A run as one page of HTML that needs nothing else: when which fault lasted, who led, how many messages
//! were acknowledged how fast, and when there was nobody to do so.

use std::collections::BTreeMap;

use crate::check;
use crate::client::Outcome;
use crate::history::History;

/// File name of a page.
pub const PAGE: &str = "report.html";
/// Pixels.
const WIDTH: f64 = 1120.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 10.0;
/// Points of time that are drawn at most.
const BUCKETS: u64 = 240;
/// Milliseconds without an acknowledgement that are told of.
const GAP: u64 = 500;

/// What is said of a run beside its history.
#[derive(Debug)]
pub struct About<'a> {
    /// What was run.
    pub title: &'a str,
    /// What repeats it.
    pub command: &'a str,
    /// What came of it, in a line.
    pub summary: &'a str,
    /// What is wrong.
    pub wrong: &'a [String],
    /// Why it proves nothing.
    pub void: &'a [String],
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --text: #333; --dim: #777; --ok: #2a7; --bad: #c33; --lat: #36c; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --dim: #999; --ok: #4c9; --bad: #f66; --lat: #8af; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--text); max-width: 1140px; margin: 2em auto; padding: 0 1em; }
code, td { font-variant-numeric: tabular-nums; } code { font-size: 13px; } pre { overflow-x: auto; }
h1 { font-size: 20px; } h2 { font-size: 15px; margin-top: 1.6em; }
.pass { color: var(--ok); } .fail, .void { color: var(--bad); }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
table { border-collapse: collapse; } td, th { padding: 1px 12px 1px 0; text-align: right; font-weight: normal; }
th { color: var(--dim); } td:first-child, th:first-child { text-align: left; }
";

/// The page.
pub fn render(history: &History, about: &About<'_>) -> String {
    let (class, verdict) = match (about.wrong.is_empty(), about.void.is_empty()) {
        (false, _) => ("fail", "failed"),
        (true, false) => ("void", "void: it proves nothing"),
        (true, true) => ("pass", "passed"),
    };
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style>\n<h1>{title}: <span class=\"{class}\">{verdict}</span></h1>\n\
         <p>{summary}</p>\n<pre><code>{command}</code></pre>\n",
        title = text(about.title),
        summary = text(about.summary),
        command = text(about.command),
    );
    for (heading, lines) in [("Wrong", about.wrong), ("Void", about.void)] {
        if !lines.is_empty() {
            page += &format!("<h2>{heading}</h2>\n<ul>\n");
            for line in lines {
                page += &format!("<li>{}</li>\n", text(line));
            }
            page += "</ul>\n";
        }
    }
    page += &picture(history);
    page += &faults(history);
    page += &gaps(history);
    page += "</html>\n";
    page
}

/// For text between tags and in attributes.
fn text(raw: &str) -> String {
    let raw = raw.replace('&', "&amp;").replace('<', "&lt;");
    raw.replace('>', "&gt;").replace('"', "&quot;")
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// The axis of time.
struct Axis {
    end: f64,
}

impl Axis {
    fn x(&self, nanoseconds: u64) -> f64 {
        LEFT + seconds(nanoseconds) / self.end * (WIDTH - LEFT - RIGHT)
    }
}

/// All that has time as its axis, in one picture.
fn picture(history: &History) -> String {
    let end = history.end().max(1);
    let axis = Axis { end: seconds(end) };
    let mut svg = String::new();
    let mut y = 14.0;
    let lanes_from = y;
    y = fault_lanes(&mut svg, history, &axis, y);
    y = leader_lanes(&mut svg, history, &axis, y + 12.0);
    y = charts(&mut svg, history, &axis, end, y + 24.0);
    // Bands of the faults through all charts, behind them.
    let mut back = String::new();
    for fault in &history.faults {
        let (from, until) = (
            axis.x(fault.from),
            axis.x(fault.until.unwrap_or(fault.from)),
        );
        let width = (until - from).max(1.0);
        let (color, height) = (color(&fault.what), y - lanes_from);
        back.push_str(&format!(
            "<rect x=\"{from:.1}\" y=\"{lanes_from:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\" fill=\"{color}\" opacity=\"0.09\"/>"
        ));
    }
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 600.0];
    let step = step
        .into_iter()
        .find(|step| axis.end / step <= 14.0)
        .unwrap_or(3600.0);
    let mut at = 0.0;
    while at <= axis.end {
        let x = LEFT + at / axis.end * (WIDTH - LEFT - RIGHT);
        back.push_str(&format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{lanes_from:.1}\" y2=\"{y:.1}\" \
             stroke=\"var(--line)\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at} s</text>",
            y + 14.0
        ));
        at += step;
    }
    let height = y + 20.0;
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">{back}{svg}</svg>\n")
}

/// A color for each kind of fault; green is for what is acknowledged.
fn color(what: &str) -> &'static str {
    const COLORS: [(&str, &str); 13] = [
        ("partition", "#e07b00"),
        ("slow", "#b8860b"),
        ("flaky", "#8d6e63"),
        ("kill", "#d32f2f"),
        ("pause", "#7b1fa2"),
        ("restart", "#ad1457"),
        ("transfer", "#5c6bc0"),
        ("power", "#37474f"),
        ("full", "#0277bd"),
        ("eio", "#00838f"),
        ("damage", "#c2185b"),
        ("lost", "#4e342e"),
        ("saturate", "#9e9d24"),
    ];
    let kind = what.split(['-', ' ']).next().unwrap_or_default();
    let known = COLORS.iter().find(|(name, _)| *name == kind);
    known.map_or("#777777", |(_, color)| color)
}

/// A bar for each fault, in as many rows as overlap. The y below.
fn fault_lanes(svg: &mut String, history: &History, axis: &Axis, top: f64) -> f64 {
    const ROW: f64 = 16.0;
    // How far each row is taken, in pixels: names stand to the right of where a bar begins.
    let mut rows: Vec<f64> = Vec::new();
    svg.push_str(&format!(
        "<text x=\"4\" y=\"{:.1}\">faults</text>",
        top + 11.0
    ));
    for fault in &history.faults {
        let (from, until) = (
            axis.x(fault.from),
            axis.x(fault.until.unwrap_or(fault.from)),
        );
        let needs = (until - from).max(6.2 * fault.what.chars().count() as f64 + 8.0);
        let row = match rows.iter().position(|taken| *taken <= from) {
            Some(row) => row,
            None => {
                rows.push(0.0);
                rows.len() - 1
            }
        };
        rows[row] = from + needs + 2.0;
        let (y, width) = (top + ROW * row as f64, (until - from).max(2.0));
        svg.push_str(&format!(
            "<g><title>{what}: {a:.1} s to {b:.1} s</title><rect x=\"{from:.1}\" y=\"{y:.1}\" \
             width=\"{width:.1}\" height=\"{h}\" fill=\"{color}\" opacity=\"0.45\" rx=\"2\"/>\
             <text x=\"{tx:.1}\" y=\"{ty:.1}\" style=\"fill:var(--text)\">{what}</text></g>",
            what = text(&fault.what),
            a = seconds(fault.from),
            b = seconds(fault.until.unwrap_or(fault.from)),
            h = ROW - 3.0,
            color = color(&fault.what),
            tx = from + 3.0,
            ty = y + 10.0,
        ));
    }
    top + ROW * rows.len().max(1) as f64
}

/// Who led, a row for each node. The y below.
fn leader_lanes(svg: &mut String, history: &History, axis: &Axis, top: f64) -> f64 {
    const ROW: f64 = 14.0;
    /// Two sightings so far apart are of one time as a leader.
    const JOINED: u64 = 1_500_000_000;
    let mut nodes: BTreeMap<u64, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for lead in &history.leads {
        let spans = nodes.entry(lead.node).or_default();
        match spans.last_mut() {
            Some((_, until, term)) if *term == lead.term && lead.at < *until + JOINED => {
                *until = lead.at;
            }
            _ => spans.push((lead.at, lead.at, lead.term)),
        }
    }
    let mut y = top;
    for (node, spans) in nodes {
        svg.push_str(&format!(
            "<text x=\"4\" y=\"{:.1}\">n{node} leads</text>",
            y + 10.0
        ));
        for (from, until, term) in spans {
            let (x, width) = (axis.x(from), (axis.x(until) - axis.x(from)).max(2.0));
            svg.push_str(&format!(
                "<g><title>term {term}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                 height=\"{h}\" fill=\"var(--ok)\" opacity=\"0.6\"/></g>",
                h = ROW - 3.0
            ));
            if width > 14.0 {
                svg.push_str(&format!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" style=\"fill:var(--text)\">{term}</text>",
                    x + 3.0,
                    y + 10.0
                ));
            }
        }
        y += ROW;
    }
    y
}

/// What ended in one stretch of time.
#[derive(Default, Clone)]
struct Bucket {
    acknowledged: Vec<u64>,
    refused: u64,
    unknown: u64,
    lost: u64,
}

/// Throughput and latency. The y below.
fn charts(svg: &mut String, history: &History, axis: &Axis, end: u64, top: f64) -> f64 {
    const HEIGHT: f64 = 130.0;
    let width = (end / BUCKETS).max(1);
    let mut buckets = vec![Bucket::default(); usize::try_from(end / width).unwrap_or(0) + 1];
    let lost = check::lost_bodies(history);
    for send in &history.sends {
        let bucket = usize::try_from(send.ended.min(end) / width).unwrap_or(0);
        let bucket = &mut buckets[bucket];
        match send.outcome {
            Outcome::Ok(_) => bucket.acknowledged.push(send.ended - send.invoked),
            Outcome::Fail(_) => bucket.refused += 1,
            Outcome::Unknown(_) => bucket.unknown += 1,
        }
        bucket.lost += u64::from(lost.contains(send.body.as_str()));
    }
    let per_second = |count: usize| count as f64 / seconds(width);
    let most = buckets
        .iter()
        .map(|b| b.acknowledged.len())
        .max()
        .unwrap_or(1)
        .max(1);
    let most = per_second(most);
    let base = top + HEIGHT;
    svg.push_str(&format!(
        "<text x=\"4\" y=\"{:.1}\">acknowledged</text><text x=\"4\" y=\"{:.1}\">{most:.0}/s at most</text>",
        top + 12.0,
        top + 26.0
    ));
    for (n, bucket) in (0u64..).zip(&mut buckets) {
        let x = axis.x(n * width);
        let w = (axis.x((n + 1) * width) - x).max(0.5);
        let h = per_second(bucket.acknowledged.len()) / most * HEIGHT;
        svg.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{w:.2}\" height=\"{h:.1}\" fill=\"var(--ok)\"/>",
            base - h
        ));
        for (count, color, y) in [
            (bucket.unknown, "var(--bad)", base + 2.0),
            (bucket.refused, "var(--dim)", base + 7.0),
            (bucket.lost, "var(--bad)", top),
        ] {
            if count > 0 {
                let h = if y == top { HEIGHT } else { 4.0 };
                svg.push_str(&format!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.2}\" height=\"{h}\" \
                     fill=\"{color}\"><title>{count}</title></rect>"
                ));
            }
        }
        bucket.acknowledged.sort_unstable();
    }
    svg.push_str(&format!(
        "<text x=\"4\" y=\"{:.1}\">unknown, refused</text>",
        base + 9.0
    ));
    let top = base + 26.0;
    let base = top + HEIGHT;
    // From 0.1 ms to 10 s.
    let y_of = |nanoseconds: u64| {
        let decades = (nanoseconds.max(1) as f64 / 1e5).log10().clamp(0.0, 5.0);
        base - decades / 5.0 * HEIGHT
    };
    for (label, nanoseconds) in [
        ("0.1 ms", 100_000),
        ("1 ms", 1_000_000),
        ("10 ms", 10_000_000),
        ("100 ms", 100_000_000),
        ("1 s", 1_000_000_000),
        ("10 s", 10_000_000_000),
    ] {
        let y = y_of(nanoseconds);
        svg.push_str(&format!(
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"var(--line)\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 4.0,
            y + 4.0
        ));
    }
    svg.push_str(&format!(
        "<text x=\"4\" y=\"{:.1}\">latency</text>",
        top + 4.0
    ));
    for (quantile, color, line) in [
        (0.5, "var(--lat)", 1.6),
        (0.99, "#e80", 1.0),
        (1.0, "var(--bad)", 0.6),
    ] {
        let mut path = String::new();
        let mut pen = 'M';
        for (n, bucket) in (0u64..).zip(&buckets) {
            let times = &bucket.acknowledged;
            let Some(last) = times.len().checked_sub(1) else {
                pen = 'M';
                continue;
            };
            let time = times[(last as f64 * quantile) as usize];
            path.push_str(&format!(
                "{pen}{:.1} {:.1}",
                axis.x(n * width + width / 2),
                y_of(time)
            ));
            pen = 'L';
        }
        svg.push_str(&format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{line}\">\
             <title>quantile {quantile}</title></path>"
        ));
    }
    svg.push_str(&format!(
        "<text x=\"{LEFT}\" y=\"{:.1}\">median (blue), 99th percentile (orange), worst (red)</text>",
        top - 4.0
    ));
    base
}

fn faults(history: &History) -> String {
    let mut table = "<h2>Faults</h2>\n<table><tr><th>what<th>from, s<th>lasted, s<th>felt\
                     <th>next acknowledgement, ms</tr>\n"
        .to_owned();
    for fault in &history.faults {
        let lasted = fault.until.map_or_else(String::new, |until| {
            format!("{:.1}", seconds(until - fault.from))
        });
        let seen = fault.seen.map_or_else(String::new, |seen| seen.to_string());
        let next = history.first_ack(fault.from).map_or_else(
            || "never".to_owned(),
            |ack| ((ack - fault.from) / 1_000_000).to_string(),
        );
        table.push_str(&format!(
            "<tr><td>{}<td>{:.1}<td>{lasted}<td>{seen}<td>{next}</tr>\n",
            text(&fault.what),
            seconds(fault.from)
        ));
    }
    table + "</table>\n"
}

/// The longest times without an acknowledgement.
fn gaps(history: &History) -> String {
    let mut gaps = check::gaps(history);
    gaps.retain(|(from, until)| until - from > GAP * 1_000_000);
    let all: u64 = gaps.iter().map(|(from, until)| until - from).sum();
    let mut table = format!(
        "<h2>Away</h2>\n<p>{} times without an acknowledgement for more than {GAP} ms, {:.1} s \
         in all. The longest:</p>\n<table><tr><th>from, s<th>ms</tr>\n",
        gaps.len(),
        seconds(all)
    );
    gaps.sort_by_key(|(from, until)| std::cmp::Reverse(until - from));
    for (from, until) in gaps.iter().take(10) {
        table.push_str(&format!(
            "<tr><td>{:.2}<td>{}</tr>\n",
            seconds(*from),
            (until - from) / 1_000_000
        ));
    }
    table + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Fault, Lead, Send};

    #[test]
    fn a_page_is_whole_and_escapes_what_it_quotes() {
        let send = |n: u64, outcome| Send {
            process: 0,
            queue: 0,
            body: format!("0:{n}"),
            invoked: n * 1_000_000_000,
            ended: n * 1_000_000_000 + 2_000_000,
            outcome,
        };
        let history = History {
            sends: vec![
                send(0, Outcome::Ok(0)),
                send(3, Outcome::Unknown("?".into())),
                send(4, Outcome::Ok(1)),
            ],
            faults: vec![Fault {
                what: "kill-leader <n1>".into(),
                from: 1_000_000_000,
                until: Some(3_000_000_000),
                seen: Some(1),
            }],
            leads: vec![Lead {
                at: 5,
                node: 1,
                term: 2,
            }],
            ..History::default()
        };
        let about = About {
            title: "queue & kill",
            command: "jepsen test",
            summary: "3 sends",
            wrong: &["lost".to_owned()],
            void: &[],
        };
        let page = render(&history, &about);
        assert!(page.contains("queue &amp; kill: <span class=\"fail\">failed"));
        assert!(page.contains("kill-leader &lt;n1&gt;") && !page.contains("<n1>"));
        assert!(
            page.contains("1 times without an acknowledgement"),
            "{page}"
        );
        for tag in ["svg", "table", "g", "title", "ul"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(!render(&History::default(), &about).is_empty());
    }
}
