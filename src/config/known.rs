//! The keys of RocketMQ: which there are (`keys.tsv`, made by `scripts/config-keys.sh`), and why
//! some have no effect here (`inert.txt`, kept by hand).

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A key of RocketMQ, as the table has it.
#[derive(Debug)]
pub(super) struct JavaKey {
    /// Whether the broker reads it; else only the name server does.
    pub(super) of_broker: bool,
    /// Whether the name server reads it.
    pub(super) of_namesrv: bool,
    /// Whether it is among the important ones that `-m` prints.
    pub(super) important: bool,
    #[cfg(test)]
    pub(super) defaults: [&'static str; 2],
}

/// Every key of RocketMQ 4.9.8 and 5.5.0, by name.
pub(super) static JAVA_KEYS: LazyLock<BTreeMap<&'static str, JavaKey>> = LazyLock::new(|| {
    let rows = include_str!("keys.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'));
    rows.map(|row| {
        let columns: Vec<&str> = row.split('\t').collect();
        let classes = || columns[2].split(',').chain(columns[3].split(','));
        let key = JavaKey {
            of_broker: classes().any(|class| class != "NamesrvConfig" && class != "-"),
            of_namesrv: classes()
                .any(|class| class == "NamesrvConfig" || class.starts_with("Netty")),
            important: columns[6] == "important",
            #[cfg(test)]
            defaults: [columns[4], columns[5]],
        };
        (columns[0], key)
    })
    .collect()
});

/// Why a known key has no effect.
#[derive(Debug)]
pub(super) struct Inert {
    pub(super) reason: &'static str,
    /// The values that ask for what is here anyway; `None` if every value may be ignored.
    harmless: Option<Vec<&'static str>>,
}

/// What to do about a key without effect.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It says what is so anyway.
    Agrees,
    Warn,
    Refuse,
}

impl Inert {
    pub(super) fn judge(&self, value: &str) -> Verdict {
        match &self.harmless {
            None => Verdict::Warn,
            Some(values) if values.iter().any(|v| v.eq_ignore_ascii_case(value)) => Verdict::Agrees,
            Some(_) => Verdict::Refuse,
        }
    }
}

/// Keys without effect, by name: of [`JAVA_KEYS`], and some that no class has but published files.
pub(super) static INERT: LazyLock<BTreeMap<&'static str, Inert>> = LazyLock::new(|| {
    let mut table = BTreeMap::new();
    let mut section: (Option<Vec<&str>>, &str) = (None, "");
    for line in include_str!("inert.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(reason) = line.strip_prefix("= ") {
            section = (None, reason);
        } else if let Some((values, reason)) = line
            .strip_prefix("! ")
            .and_then(|header| header.split_once(" = "))
        {
            section = (Some(values.split(',').map(str::trim).collect()), reason);
        } else {
            for key in line.split(' ') {
                table.insert(
                    key,
                    Inert {
                        reason: section.1,
                        harmless: section.0.clone(),
                    },
                );
            }
        }
    }
    table
});

/// Other spellings of keys that have an effect.
const ALIASES: [(&str, &str); 7] = [
    ("enableDLedgerCommitLog", "enableDLegerCommitLog"),
    ("dLedgerGroup", "dLegerGroup"),
    ("dLedgerPeers", "dLegerPeers"),
    ("dLedgerSelfId", "dLegerSelfId"),
    (OLD_COMMIT_LOG_SIZE, "mappedFileSizeCommitLog"),
    (OLD_CONSUME_QUEUE_SIZE, "mappedFileSizeConsumeQueue"),
    ("preferredLeaderIds", "preferredLeaderId"),
];

/// As `mappedFileSizeCommitLog` was spelled before 4.5.2.
pub(super) const OLD_COMMIT_LOG_SIZE: &str = "mapedFileSizeCommitLog";
/// As `mappedFileSizeConsumeQueue` was spelled before 4.5.2.
pub(super) const OLD_CONSUME_QUEUE_SIZE: &str = "mapedFileSizeConsumeQueue";

/// The name that the tables have for a key as it is written.
pub(super) fn canonical(name: &str) -> &str {
    ALIASES
        .iter()
        .find(|(alias, _)| *alias == name)
        .map_or(name, |(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::Schema;
    use crate::config::{BrokerConfig, NamesrvConfig};

    fn has_effect(name: &str) -> bool {
        BrokerConfig::KEYS
            .iter()
            .chain(NamesrvConfig::KEYS)
            .any(|key| key.name == name)
    }

    #[test]
    fn each_key_of_java_has_an_effect_or_a_reason() {
        assert!(JAVA_KEYS.len() > 500);
        for name in JAVA_KEYS.keys() {
            assert_ne!(has_effect(name), INERT.contains_key(name), "{name}");
        }
    }

    #[test]
    fn no_key_stands_in_two_groups_and_each_reason_has_keys() {
        let lines = || {
            include_str!("inert.txt")
                .lines()
                .filter(|l| !l.is_empty() && !l.starts_with('#'))
        };
        let headers = lines().filter(|l| l.starts_with(['=', '!'])).count();
        let names: Vec<&str> = lines()
            .filter(|l| !l.starts_with(['=', '!']))
            .flat_map(|l| l.split(' '))
            .collect();
        assert_eq!(names.len(), INERT.len());
        let mut reasons: Vec<_> = INERT.values().map(|inert| inert.reason).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), headers);
    }

    #[test]
    fn defaults_are_those_of_java() {
        // Where the two versions differ, 4.9.8 is followed; these are our own.
        let different = ["listenPort", "kvConfigPath", "storePathRootDir"];
        for (name, key) in JAVA_KEYS.iter() {
            for got in [
                BrokerConfig::default().get(name),
                NamesrvConfig::default().get(name),
            ] {
                let want = key.defaults.into_iter().find(|d| *d != "-").unwrap();
                if let Some(got) = got
                    && want != "(by machine)"
                    && !different.contains(name)
                {
                    assert_eq!(got, want, "{name}");
                }
            }
        }
    }

    #[test]
    fn dangerous_keys_are_refused_and_their_off_values_agree() {
        for (key, value, want) in [
            ("aclEnable", "true", Verdict::Refuse),
            ("aclEnable", "FALSE", Verdict::Agrees),
            ("tls.server.mode", "enforcing", Verdict::Refuse),
            ("tls.server.mode", "permissive", Verdict::Agrees),
            ("readOnlyCommitLogStorePaths", "", Verdict::Agrees),
            ("readOnlyCommitLogStorePaths", "/old", Verdict::Refuse),
            ("diskFallRecorded", "true", Verdict::Warn),
        ] {
            assert_eq!(INERT[key].judge(value), want, "{key}={value}");
        }
    }

    #[test]
    fn aliases_lead_to_known_keys() {
        for (alias, key) in ALIASES {
            assert!(
                !JAVA_KEYS.contains_key(alias) && !has_effect(alias),
                "{alias}"
            );
            assert!(JAVA_KEYS.contains_key(key), "{key}");
        }
    }
}
