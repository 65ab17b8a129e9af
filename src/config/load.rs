//! Brings the sources together: which value of a key wins, which keys there are at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::broker::BrokerConfig;
use super::known::{self, INERT, JAVA_KEYS, Verdict};
use super::namesrv::NamesrvConfig;
use super::properties::{self, Text};
use super::report::{Diagnostic, Level, Place, Report, Snippet};
use super::schema::Schema;
use super::value::BadValue;
use super::{host, suggest};

/// A properties file is larger than this only by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where a configuration comes from; what stands later here wins.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file that `-c` names.
    pub file: Option<PathBuf>,
    /// The environment: `RMQ_` and a key in upper snake case wins over the file; `NAMESRV_ADDR` and
    /// `ROCKETMQ_HOME` are, as for the Java programs, defaults that the file overrides.
    pub environment: Vec<(String, String)>,
    /// Keys and values of the command line.
    pub flags: Vec<(String, String)>,
    /// Whether an unknown key is only a warning.
    pub lenient: bool,
}

impl Sources {
    /// A file, or none, and the environment of this process.
    pub fn new(file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            file,
            environment,
            ..Self::default()
        }
    }

    /// With one more flag, which wins over earlier ones.
    #[must_use]
    pub fn flag(mut self, key: &str, value: impl Into<String>) -> Self {
        self.flags.push((key.to_owned(), value.into()));
        self
    }
}

/// A configuration that can be used, and where its values come from.
#[derive(Debug)]
pub struct Loaded<C> {
    pub config: C,
    /// Warnings only.
    pub report: Report,
    origins: BTreeMap<&'static str, Place>,
}

#[expect(
    private_bounds,
    reason = "the two configurations there are implement it"
)]
impl<C: Schema> Loaded<C> {
    /// All keys that have an effect as `key=value` lines, with `origins` also where each value is
    /// from.
    pub fn print_all(&self, origins: bool) -> String {
        self.print(origins, |_| true)
    }

    /// The same for the keys that RocketMQ marks as important.
    pub fn print_important(&self, origins: bool) -> String {
        self.print(origins, |key| {
            JAVA_KEYS.get(key).is_some_and(|java| java.important)
        })
    }

    fn print(&self, origins: bool, wanted: impl Fn(&str) -> bool) -> String {
        let mut out = String::new();
        for (key, value) in all(&self.config).filter(|(key, _)| wanted(key)) {
            let line = format!("{key}={value}");
            match (origins, self.origins.get(key)) {
                (false, _) => writeln!(out, "{line}"),
                (true, Some(place)) => writeln!(out, "{line:<50} # {place}"),
                (true, None) => writeln!(out, "{line:<50} # default"),
            }
            .expect("writing to a string never fails");
        }
        out
    }
}

/// Keys with their values, in the order of the table.
pub(super) fn all<C: Schema>(config: &C) -> impl Iterator<Item = (&'static str, String)> {
    C::KEYS.iter().map(|key| {
        (
            key.name,
            config
                .get(key.name)
                .expect("get() knows the keys of the same table"),
        )
    })
}

/// Which program a configuration is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Broker,
    Namesrv,
}

impl Program {
    /// Whether a key of RocketMQ or of rmq belongs to this program.
    fn owns(self, key: &str) -> bool {
        let own = match self {
            Self::Broker => BrokerConfig::KEYS,
            Self::Namesrv => NamesrvConfig::KEYS,
        };
        own.iter().any(|k| k.name == key)
            || match JAVA_KEYS.get(key) {
                Some(java) if self == Self::Broker => java.of_broker,
                Some(java) => java.of_namesrv,
                // The extra ones of the list of keys without effect.
                None => INERT.contains_key(key),
            }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Namesrv => "name server",
        }
    }
}

/// Every key of the two programs, with and without effect.
static KNOWN_KEYS: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
    let own = BrokerConfig::KEYS
        .iter()
        .chain(NamesrvConfig::KEYS)
        .map(|key| key.name);
    own.chain(JAVA_KEYS.keys().copied())
        .chain(INERT.keys().copied())
        .collect()
});

/// The same by their names in the environment.
static ENVIRONMENT_KEYS: LazyLock<BTreeMap<String, &str>> =
    LazyLock::new(|| KNOWN_KEYS.iter().map(|key| (env_name(key), *key)).collect());

/// The variable of the environment for a key: `brokerIP1` is `RMQ_BROKER_IP1`.
fn env_name(key: &str) -> String {
    // One word in two spellings, and neither is D-Leger.
    let key = key
        .replace("DLe", "Dle")
        .replace("dLe", "dle")
        .replace('.', "_");
    let chars: Vec<char> = key.chars().collect();
    let mut name = String::from("RMQ_");
    for (i, c) in chars.iter().enumerate() {
        let starts_word = c.is_ascii_uppercase()
            && i > 0
            && (!chars[i - 1].is_ascii_uppercase()
                || chars.get(i + 1).is_some_and(char::is_ascii_lowercase));
        if starts_word && chars[i - 1] != '_' {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// A value of a key, as one source has it.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The key as it is written there.
    pub(super) name: Text,
    pub(super) value: Text,
    pub(super) place: Place,
}

/// The winning values, and what was found wrong on the way.
pub(super) struct Settings {
    program: Program,
    lenient: bool,
    lines: Vec<String>,
    winners: BTreeMap<String, Setting>,
    /// Values of the file that a later line replaced, with their keys.
    replaced: Vec<(String, Setting)>,
    /// Keys whose value could not be used.
    bad: BTreeSet<String>,
    report: Report,
}

impl Settings {
    pub(super) fn get(&self, key: &str) -> Option<&Setting> {
        self.winners.get(key)
    }

    /// Whether the key was given and its value could not be used.
    pub(super) fn is_bad(&self, key: &str) -> bool {
        self.bad.contains(key)
    }

    /// The value of a key that a later line of the file replaced.
    pub(super) fn replaced(&self, key: &str) -> Option<&Setting> {
        self.replaced
            .iter()
            .rev()
            .find(|(k, _)| k == key)
            .map(|(_, setting)| setting)
    }

    /// An error about the value of a key, or about the configuration as a whole if it is not given.
    pub(super) fn error(&mut self, key: &str, message: impl Into<String>, hint: Option<String>) {
        self.bad.insert(key.to_owned());
        let setting = self.winners.get(key).cloned();
        let snippet = setting
            .as_ref()
            .and_then(|s| self.snippet(s, &s.value, None));
        self.push(
            Level::Error,
            setting.map(|s| s.place),
            message.into(),
            hint,
            snippet,
        );
    }

    /// A warning about the value of a key, or about the configuration as a whole.
    pub(super) fn warn(&mut self, key: &str, message: impl Into<String>) {
        let place = self.winners.get(key).map(|s| s.place.clone());
        self.push(Level::Warning, place, message.into(), None, None);
    }

    fn push(
        &mut self,
        level: Level,
        place: Option<Place>,
        message: String,
        hint: Option<String>,
        snippet: Option<Snippet>,
    ) {
        self.report.push(Diagnostic {
            level,
            place,
            message,
            hint,
            snippet,
        });
    }

    /// The line where a part (or all) of a key or value stands, if it is in the file.
    fn snippet(
        &self,
        setting: &Setting,
        text: &Text,
        bytes: Option<Range<usize>>,
    ) -> Option<Snippet> {
        if !matches!(setting.place, Place::File(..)) {
            return None;
        }
        let (line, columns) = text.columns(bytes.unwrap_or(0..text.text.len()));
        Some(Snippet {
            line,
            text: self.lines.get(line.checked_sub(1)?)?.clone(),
            columns,
        })
    }

    fn read_file(&mut self, path: &Path) {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            std::fs::File::open(path)?
                .take(MAX_FILE_BYTES + 1)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) if bytes.len() as u64 <= MAX_FILE_BYTES => bytes,
            Ok(_) => {
                let message = format!(
                    "{}: more than {MAX_FILE_BYTES} bytes, so this is no properties file",
                    path.display()
                );
                return self.push(Level::Error, None, message, None, None);
            }
            Err(error) => {
                let message = format!("{}: cannot be read: {error}", path.display());
                return self.push(Level::Error, None, message, None, None);
            }
        };
        let file = properties::parse(&bytes);
        self.lines = file.lines;
        let path = Arc::new(path.to_owned());
        for at in file.bad_escapes {
            let text = self.lines.get(at.line - 1).cloned().unwrap_or_default();
            let snippet = Snippet {
                line: at.line,
                text,
                columns: at.column..at.column + 2,
            };
            let message = "\\u without four hexadecimal digits".to_owned();
            let hint = Some("write \\\\ for a backslash".to_owned());
            let place = Place::File(Arc::clone(&path), at.line);
            self.push(Level::Error, Some(place), message, hint, Some(snippet));
        }
        for entry in file.entries {
            let (line, _) = entry.key.columns(0..0);
            self.take_line(entry, Place::File(Arc::clone(&path), line));
        }
    }

    fn take_line(&mut self, entry: properties::Entry, place: Place) {
        let mut setting = Setting {
            name: entry.key,
            value: entry.value,
            place,
        };
        let written = setting.value.text.clone();
        setting.value.trim_end();
        if setting.value.text != written {
            let note = match setting.value.text.eq_ignore_ascii_case("true") {
                true => " (RocketMQ reads it as false)",
                false => "",
            };
            let message = format!("trailing space removed: `{written}`{note}");
            self.push(
                Level::Warning,
                Some(setting.place.clone()),
                message,
                None,
                None,
            );
        }
        let key = known::canonical(&setting.name.text).to_owned();
        if self.program.owns(&key) {
            self.take(key, setting);
        } else if KNOWN_KEYS.contains(key.as_str()) {
            let message = format!(
                "{key} has no effect here: it is not a key of the {}",
                self.program.name()
            );
            self.push(Level::Warning, Some(setting.place), message, None, None);
        } else {
            let near = suggest::nearest(&key, KNOWN_KEYS.iter().copied());
            let level = if self.lenient {
                Level::Warning
            } else {
                Level::Error
            };
            let message = format!("unknown key `{key}`");
            let hint = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => "RocketMQ and rmq have no key like this".to_owned(),
            };
            let snippet = self.snippet(&setting, &setting.name, None);
            self.push(level, Some(setting.place), message, Some(hint), snippet);
        }
    }

    /// Makes a value the winning one.
    fn take(&mut self, key: String, setting: Setting) {
        let Some(before) = self.winners.insert(key.clone(), setting) else {
            return;
        };
        let now = &self.winners[&key];
        match (&before.place, &now.place) {
            (Place::File(..), Place::File(_, line)) => {
                let message = format!("{key} is given again in line {line}, which wins");
                self.push(
                    Level::Warning,
                    Some(before.place.clone()),
                    message,
                    None,
                    None,
                );
                self.replaced.push((key, before));
            }
            (Place::Environment(name), Place::File(..)) if before.value.text != now.value.text => {
                let message = format!(
                    "{name}={} of the environment is not used, because {key} is given here",
                    before.value.text
                );
                let place = Some(now.place.clone());
                self.push(Level::Warning, place, message, None, None);
            }
            _ => {}
        }
    }

    fn take_environment(&mut self, environment: &[(String, String)]) {
        let keys = &*ENVIRONMENT_KEYS;
        for (name, value) in environment
            .iter()
            .filter(|(name, _)| name.starts_with("RMQ_"))
        {
            let spelled = name.replace("DLEDGER", "DLEGER");
            match keys.get(name).or_else(|| keys.get(&spelled)) {
                Some(key) if self.program.owns(key) => {
                    let place = Place::Environment(name.clone());
                    self.take((*key).to_owned(), loose(key, value, place));
                }
                Some(_) => {}
                // Not an error, because others name variables like this: Kubernetes sets
                // RMQ_SERVICE_HOST for a service called rmq.
                None => {
                    if let Some(near) = suggest::nearest(name, keys.keys().map(String::as_str)) {
                        let message = format!("{name} has no effect; did you mean `{near}`?");
                        self.push(Level::Warning, None, message, None, None);
                    }
                }
            }
        }
    }

    fn take_flags(&mut self, flags: &[(String, String)]) {
        for (name, value) in flags {
            let key = known::canonical(name);
            if self.program.owns(key) {
                self.take(key.to_owned(), loose(name, value, Place::Flag));
            } else {
                let near = suggest::nearest(
                    key,
                    KNOWN_KEYS.iter().copied().filter(|k| self.program.owns(k)),
                );
                let hint = near.map(|near| format!("did you mean `{near}`?"));
                let message = format!("unknown key `{name}`");
                self.push(Level::Error, Some(Place::Flag), message, hint, None);
            }
        }
    }

    /// Gives the winning values to the configuration, or says why not.
    fn apply<C: Schema>(&mut self, config: &mut C) {
        for (key, setting) in self.winners.clone() {
            if let Some(inert) = INERT.get(key.as_str()) {
                match inert.judge(&setting.value.text) {
                    Verdict::Agrees => {}
                    Verdict::Warn => {
                        self.warn(&key, format!("{key} has no effect here: {}", inert.reason));
                    }
                    Verdict::Refuse => {
                        let message = format!("{key}={}: {}", setting.value.text, inert.reason);
                        self.error(&key, message, None);
                    }
                }
                continue;
            }
            let expanded = self.expand(&setting.value.text);
            let result = expanded.and_then(|text| match config.set(&key, &text) {
                Some(Err(mut bad)) if text != setting.value.text => {
                    bad.span = None;
                    Err(bad)
                }
                Some(result) => result,
                None => Ok(()),
            });
            if let Err(bad) = result {
                self.bad.insert(key.clone());
                let snippet = self.snippet(&setting, &setting.value, bad.span);
                let message = format!("{key}: {}", bad.message);
                self.push(Level::Error, Some(setting.place), message, None, snippet);
            }
        }
    }

    /// Replaces `${user.home}` and `${ROCKETMQ_HOME}`.
    fn expand(&self, text: &str) -> Result<String, BadValue> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let start = text.len() - rest.len() + at;
            let end = rest[at..]
                .find('}')
                .map_or(rest.len(), |close| at + close + 1);
            let bad = |message: String| BadValue {
                message,
                span: Some(start..start + end - at),
            };
            out.push_str(&rest[..at]);
            match &rest[at..end] {
                "${user.home}" => out.push_str(&host::user_home().display().to_string()),
                "${ROCKETMQ_HOME}" => match self.get("rocketmqHome") {
                    Some(home) if !home.value.text.contains("${") => out.push_str(&home.value.text),
                    _ => return Err(bad("ROCKETMQ_HOME is not set".to_owned())),
                },
                other => {
                    return Err(bad(format!(
                        "`{other}` is not replaced here; only ${{user.home}} and ${{ROCKETMQ_HOME}} are"
                    )));
                }
            }
            rest = &rest[end..];
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// A value that stands in no file.
fn loose(key: &str, value: &str, place: Place) -> Setting {
    Setting {
        name: Text::loose(key),
        value: Text::loose(value.trim()),
        place,
    }
}

/// Loads a configuration, of which `check` looks at what goes beyond single values.
pub(super) fn load<C: Schema>(
    sources: &Sources,
    program: Program,
    check: impl FnOnce(&mut C, &mut Settings),
) -> Result<Loaded<C>, Report> {
    let mut settings = Settings {
        program,
        lenient: sources.lenient,
        lines: Vec::new(),
        winners: BTreeMap::new(),
        replaced: Vec::new(),
        bad: BTreeSet::new(),
        report: Report::default(),
    };
    for (name, key) in [
        ("NAMESRV_ADDR", "namesrvAddr"),
        ("ROCKETMQ_HOME", "rocketmqHome"),
    ] {
        let value = sources
            .environment
            .iter()
            .find(|(n, v)| n == name && !v.trim().is_empty());
        if let Some((_, value)) = value
            && program.owns(key)
        {
            let place = Place::Environment(name.to_owned());
            settings.take(key.to_owned(), loose(key, value, place));
        }
    }
    if let Some(path) = &sources.file {
        settings.read_file(path);
    }
    settings.take_environment(&sources.environment);
    settings.take_flags(&sources.flags);
    let mut config = C::default();
    settings.apply(&mut config);
    check(&mut config, &mut settings);
    settings.report.sort();
    if settings.report.errors() > 0 {
        return Err(settings.report);
    }
    let origin = |key: &'static str| Some((key, settings.get(key)?.place.clone()));
    let origins = C::KEYS.iter().filter_map(|key| origin(key.name)).collect();
    Ok(Loaded {
        config,
        report: settings.report,
        origins,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_environment_are_words_in_upper_case() {
        for (key, want) in [
            ("listenPort", "RMQ_LISTEN_PORT"),
            ("brokerIP1", "RMQ_BROKER_IP1"),
            ("useTLS", "RMQ_USE_TLS"),
            ("dLegerPeers", "RMQ_DLEGER_PEERS"),
            ("enableDLegerCommitLog", "RMQ_ENABLE_DLEGER_COMMIT_LOG"),
            (
                "storePathDLedgerCommitLog",
                "RMQ_STORE_PATH_DLEDGER_COMMIT_LOG",
            ),
            (
                "cleanRocksDBDirtyCQIntervalMin",
                "RMQ_CLEAN_ROCKS_DB_DIRTY_CQ_INTERVAL_MIN",
            ),
            ("tls.server.mode", "RMQ_TLS_SERVER_MODE"),
        ] {
            assert_eq!(env_name(key), want);
        }
    }

    #[test]
    fn no_two_keys_share_a_name_in_the_environment() {
        assert_eq!(ENVIRONMENT_KEYS.len(), KNOWN_KEYS.len());
    }
}
