//! Keeps `docs/configuration.md`, which is made of the tables of keys.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::known::{INERT, JAVA_KEYS};
use super::load::all;
use super::schema::Schema;
use super::{BrokerConfig, NamesrvConfig};

const HEAD: &str = "\
# Configuration

Made from the tables in `src/config`; `UPDATE_DOCS=1 cargo test -p rmq --lib reference` writes it anew.

A program reads a Java properties file (`-c FILE`), with the keys of RocketMQ 4.9.8 and 5.5.0. Of several
values of a key the command line wins, then the environment, then the file, then the default. In the
environment a key is `RMQ_` and its words in upper case: `brokerIP1` is `RMQ_BROKER_IP1`, `dLegerPeers` is
`RMQ_DLEGER_PEERS`. `NAMESRV_ADDR` and `ROCKETMQ_HOME` are read as the Java programs read them: as defaults
that the file overrides. `${user.home}` and `${ROCKETMQ_HOME}` are replaced in values. `dLeger` may be
spelled `dLedger` in the keys of a group and in all names of the environment. Intervals are in milliseconds unless their name says otherwise.

`--check` says what is wrong with a configuration and starts nothing; a wrong one ends with exit code 78.
`--lenient` makes unknown keys of the file warnings. `--set KEY=VALUE` sets a key on the command line. `-p` prints all keys with
an effect, `-m` those that RocketMQ marks as important; with `--origins` also where each value is from.
";

fn keys<C: Schema>(out: &mut String, title: &str) {
    writeln!(
        out,
        "\n## {title}\n\n| key | default | range | |\n|---|---|---|---|"
    )
    .unwrap();
    for ((name, default), key) in all(&C::default()).zip(C::KEYS) {
        let of_java = JAVA_KEYS
            .get(name)
            .map(|java| java.defaults)
            .unwrap_or_default();
        let of_machine = of_java
            .into_iter()
            .find(|d| d.starts_with('(') || d.contains("${user"));
        let default = of_machine.map_or(default, str::to_owned);
        let default = if default.is_empty() {
            default
        } else {
            format!("`{default}`")
        };
        let range = key
            .range
            .as_ref()
            .map(|r| format!("{} to {}", r.start(), r.end()));
        let own = if JAVA_KEYS.contains_key(name) {
            ""
        } else {
            " *(not in RocketMQ)*"
        };
        let doc: String = key.doc.concat();
        let (range, doc) = (range.unwrap_or_default(), doc.trim());
        writeln!(out, "| `{name}` | {default} | {range} | {doc}{own} |").unwrap();
    }
}

fn reference() -> String {
    let mut out = HEAD.to_owned();
    keys::<BrokerConfig>(&mut out, "Broker");
    keys::<NamesrvConfig>(&mut out, "Name server");
    out.push_str(
        "\n## Keys of RocketMQ without effect\n\nThey are accepted with a warning that gives the reason; \
         where it would be dangerous to\nignore a value, it is refused.\n",
    );
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, inert) in INERT.iter() {
        reasons.entry(inert.reason).or_default().push(key);
    }
    for (reason, keys) in reasons {
        writeln!(out, "\n- {reason}: `{}`", keys.join("` `")).unwrap();
    }
    out
}

#[test]
fn the_reference_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(
        written == reference(),
        "docs/configuration.md is old: see its second paragraph"
    );
}
