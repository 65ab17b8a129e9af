//! Loading as a whole: what is said, and which source wins. The children look at a group's keys, at the
//! store's, and at whole files.

mod files;
mod group;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A directory with one file, `broker.conf`.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new(conf: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("broker.conf"), conf).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sources(&self) -> Sources {
        Sources {
            file: Some(self.path("broker.conf")),
            ..Sources::default()
        }
    }

    fn with_environment(&self, variables: &[(&str, &str)]) -> Sources {
        let environment = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Sources {
            environment,
            ..self.sources()
        }
    }

    /// The text of a report, with the directory's name left out.
    fn text(&self, report: &Report) -> String {
        report
            .to_string()
            .replace(&format!("{}/", self.dir.path().display()), "")
    }

    #[track_caller]
    fn refused(&self, sources: &Sources) -> String {
        self.text(&load_broker(sources).expect_err("the configuration is refused"))
    }

    #[track_caller]
    fn loaded(&self, sources: &Sources) -> Loaded<BrokerConfig> {
        load_broker(sources).unwrap_or_else(|report| panic!("{report}"))
    }
}

#[track_caller]
fn refused(conf: &str) -> String {
    let files = Files::new(conf);
    files.refused(&files.sources())
}

/// The configuration and the text of its warnings.
#[track_caller]
fn loaded(conf: &str) -> (BrokerConfig, String) {
    let files = Files::new(conf);
    let loaded = files.loaded(&files.sources());
    let warnings = files.text(&loaded.report);
    (loaded.config, warnings)
}

const GROUP: &str = "\
enableDLegerCommitLog=true
dLegerGroup=g0
dLegerPeers=n0-127.0.0.1:40911;n1-127.0.0.1:40912;n2-127.0.0.1:40913
dLegerSelfId=n0
";

#[test]
fn nothing_given_is_a_broker_with_javas_defaults() {
    let loaded = load_broker(&Sources::default()).unwrap();
    assert_eq!(loaded.report, Report::default());
    assert_eq!(loaded.config, BrokerConfig::default());
    assert_eq!(loaded.config.message_delay_level.len(), 18);
    assert_eq!(
        loaded.config.commit_log_dir(),
        loaded.config.store_path_root_dir.join("commitlog")
    );
    assert_eq!(loaded.config.self_peer(), None);
}

#[test]
fn mistakes_are_shown_with_line_text_and_suggestion() {
    let conf = "\
# a broker
brokerName=a
brokerIp1=10.0.0.5
clusterTopicEnable=true \n\
listenPort=109x1
  flushDiskType : SYNC
longPollingEnable=yes
defaultTopicQueueNums=0
qwertyuiop=1
";
    assert_eq!(
        refused(conf),
        "\
broker.conf:3: error: unknown key `brokerIp1`
    3 | brokerIp1=10.0.0.5
      | ^^^^^^^^^ did you mean `brokerIP1`?
broker.conf:4: warning: trailing space removed: `true ` (RocketMQ reads it as false)
broker.conf:5: error: listenPort: `109x1` is not a whole number from 0 to 65535
    5 | listenPort=109x1
      |            ^^^^^
broker.conf:6: error: flushDiskType: `SYNC` is not one of SYNC_FLUSH, ASYNC_FLUSH
    6 |   flushDiskType : SYNC
      |                   ^^^^
broker.conf:7: error: longPollingEnable: `yes` is not true or false
    7 | longPollingEnable=yes
      |                   ^^^
broker.conf:8: error: defaultTopicQueueNums: `0` is not from 1 to 65535
    8 | defaultTopicQueueNums=0
      |                       ^
broker.conf:9: error: unknown key `qwertyuiop`
    9 | qwertyuiop=1
      | ^^^^^^^^^^ RocketMQ and rmq have no key like this
6 errors, 1 warning. Nothing was started.
"
    );
}

#[test]
fn lenient_makes_unknown_keys_warnings() {
    let files = Files::new("brokerIp1=10.0.0.5\n");
    let loaded = files.loaded(&Sources {
        lenient: true,
        ..files.sources()
    });
    assert_eq!(
        files.text(&loaded.report),
        "\
broker.conf:1: warning: unknown key `brokerIp1`
    1 | brokerIp1=10.0.0.5
      | ^^^^^^^^^ did you mean `brokerIP1`?
"
    );
}

#[test]
fn keys_without_effect_say_why_and_dangerous_ones_are_refused() {
    let (_, warnings) =
        loaded("diskFallRecorded=true\naclEnable=false\nsendMessageThreadPoolNums=16\n");
    assert_eq!(
        warnings,
        "\
broker.conf:1: warning: diskFallRecorded has no effect here: the disk counts as full by \
diskSpaceWarningLevelRatio alone
broker.conf:3: warning: sendMessageThreadPoolNums has no effect here: requests are served by shared \
worker threads, without a pool and a queue for each kind
"
    );
    assert_eq!(
        refused("aclEnable=true\nenableControllerMode=true\n"),
        "\
broker.conf:1: error: aclEnable=true: access control is not built yet, and without it everyone would \
be let in
    1 | aclEnable=true
      |           ^^^^
broker.conf:2: error: enableControllerMode=true: controllers do not exist here, and without one this \
would be a second master; make the brokers a Raft group (enableDLegerCommitLog, dLegerGroup, \
dLegerPeers, dLegerSelfId)
    2 | enableControllerMode=true
      |                      ^^^^
2 errors. Nothing was started.
"
    );
}

fn write_segment(dir: &Path, bytes: u64) {
    fs::create_dir_all(dir).unwrap();
    let file = fs::File::create(dir.join("00000000000000000000")).unwrap();
    file.set_len(bytes).unwrap();
}

#[test]
fn hours_and_shares_of_the_disk_are_what_they_can_be() {
    let (config, warnings) = loaded("deleteWhen=4;16\ndiskMaxUsedSpaceRatio=99\n");
    assert_eq!(config.delete_when, Hours(vec![4, 16]));
    assert_eq!(config.disk_max_used_space_ratio, 95);
    assert_eq!(
        warnings,
        "broker.conf:2: warning: diskMaxUsedSpaceRatio is kept from 10 to 95; 95 is taken\n"
    );
    for bad in ["24", "4,16", "", "-1", "4;"] {
        let text = refused(&format!("deleteWhen={bad}\n"));
        assert!(text.contains("hours from 00 to 23"), "{bad}: {text}");
    }
}

#[test]
fn flag_wins_over_environment_over_file_over_default() {
    let files = Files::new("listenPort=1001\nregionId=file\ntraceOn=false\n");
    let environment = [
        ("RMQ_LISTEN_PORT", "1002"),
        ("RMQ_REGION_ID", "environment"),
    ];
    let sources = files
        .with_environment(&environment)
        .flag("listenPort", "1003");
    let loaded = files.loaded(&sources);
    assert_eq!(loaded.report, Report::default());
    assert_eq!(loaded.config.listen_port, 1003);
    assert_eq!(loaded.config.region_id, "environment");
    assert!(!loaded.config.trace_on);
    let printed = loaded
        .print_all(true)
        .replace(files.dir.path().to_str().unwrap(), "DIR");
    for want in [
        "listenPort=1003                                    # command line\n",
        "regionId=environment                               # environment RMQ_REGION_ID\n",
        "traceOn=false                                      # DIR/broker.conf:3\n",
        "brokerPermission=6                                 # default\n",
    ] {
        assert!(printed.contains(want), "{want}{printed}");
    }
}

#[test]
fn javas_own_variables_are_defaults_that_the_file_overrides() {
    let files = Files::new("storePathRootDir=${ROCKETMQ_HOME}/store\n");
    let sources = files.with_environment(&[
        ("NAMESRV_ADDR", "10.0.0.1:9876"),
        ("ROCKETMQ_HOME", "/opt/rocketmq"),
    ]);
    let loaded = files.loaded(&sources);
    assert_eq!(loaded.config.namesrv_addr, ["10.0.0.1:9876"]);
    assert_eq!(
        loaded.config.store_path_root_dir,
        Path::new("/opt/rocketmq/store")
    );

    let files = Files::new("namesrvAddr=10.0.0.2:9876;10.0.0.3:9876\n");
    let sources = files.with_environment(&[("NAMESRV_ADDR", "10.0.0.1:9876")]);
    let loaded = files.loaded(&sources);
    assert_eq!(
        loaded.config.namesrv_addr,
        ["10.0.0.2:9876", "10.0.0.3:9876"]
    );
    assert_eq!(
        files.text(&loaded.report),
        "broker.conf:1: warning: NAMESRV_ADDR=10.0.0.1:9876 of the environment is not used, because \
         namesrvAddr is given here\n"
    );
    let sources = files.with_environment(&[("RMQ_NAMESRV_ADDR", "10.0.0.4:9876")]);
    assert_eq!(
        files.loaded(&sources).config.namesrv_addr,
        ["10.0.0.4:9876"]
    );
}

#[test]
fn both_spellings_work_in_the_environment_and_others_variables_are_left_alone() {
    let files = Files::new("");
    let sources = files.with_environment(&[
        ("RMQ_ENABLE_DLEDGER_COMMIT_LOG", "true"),
        ("RMQ_DLEGER_GROUP", "g"),
        ("RMQ_DLEDGER_PEERS", "n3-h:1"),
        ("RMQ_DLEGER_SELF_ID", "n3"),
        ("RMQ_BROKER_IP1", "10.0.0.9"),
        ("RMQ_SERVICE_HOST", "10.96.0.1"),
        ("RMQ_PORT", "tcp://10.96.0.1:10911"),
        ("RMQ_KV_CONFIG_PATH", "/kv"),
        ("RMQ_LISTNE_PORT", "1"),
    ]);
    let loaded = files.loaded(&sources);
    assert_eq!(loaded.config.self_peer().unwrap().addr(), "h:1");
    assert_eq!(loaded.config.broker_ip1, "10.0.0.9");
    assert_eq!(
        files.text(&loaded.report),
        "warning: RMQ_LISTNE_PORT has no effect; did you mean `RMQ_LISTEN_PORT`?\n"
    );
}

#[test]
fn errors_in_environment_and_flags_name_their_source() {
    let files = Files::new("");
    let sources = files
        .with_environment(&[("RMQ_LISTEN_PORT", "x")])
        .flag("brokerPermission", "9")
        .flag("lisenPort", "1");
    assert_eq!(
        files.refused(&sources),
        "\
environment RMQ_LISTEN_PORT: error: listenPort: `x` is not a whole number from 0 to 65535
command line: error: unknown key `lisenPort`; did you mean `listenPort`?
command line: error: brokerPermission: `9` is not from 0 to 7
3 errors. Nothing was started.
"
    );
}

#[test]
fn what_is_not_replaced_is_refused() {
    let text = refused("brokerName=${HOSTNAME}\nstorePathRootDir=${ROCKETMQ_HOME}/s\n");
    assert_eq!(
        text,
        "\
broker.conf:1: error: brokerName: `${HOSTNAME}` is not replaced here; only ${user.home} and \
${ROCKETMQ_HOME} are
    1 | brokerName=${HOSTNAME}
      |            ^^^^^^^^^^^
broker.conf:2: error: storePathRootDir: ROCKETMQ_HOME is not set
    2 | storePathRootDir=${ROCKETMQ_HOME}/s
      |                  ^^^^^^^^^^^^^^^^
2 errors. Nothing was started.
"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let files = Files::new("");
    let sources = Sources {
        file: Some(files.path("absent.conf")),
        ..Sources::default()
    };
    assert_eq!(
        files.refused(&sources),
        "error: absent.conf: cannot be read: No such file or directory (os error 2)\n\
         1 error. Nothing was started.\n"
    );
    let sources = Sources {
        file: Some(files.dir.path().to_owned()),
        ..Sources::default()
    };
    assert!(files.refused(&sources).contains("cannot be read"));
    let files = Files::new(&"#\n".repeat(1 << 20));
    assert!(
        files
            .refused(&files.sources())
            .contains("so this is no properties file")
    );
}

#[test]
fn the_name_server_has_its_own_keys() {
    let files = Files::new("listenPort=9877\nbrokerName=a\nclusterTest=false\nbrokerNmae=b\n");
    let report = load_namesrv(&files.sources()).unwrap_err();
    assert_eq!(
        files.text(&report),
        "\
broker.conf:2: warning: brokerName has no effect here: it is not a key of the name server
broker.conf:3: warning: clusterTest has no effect here: this name server has no such setting yet
broker.conf:4: error: unknown key `brokerNmae`
    4 | brokerNmae=b
      | ^^^^^^^^^^ did you mean `brokerName`?
1 error, 2 warnings. Nothing was started.
"
    );
    let config = load_namesrv(&Sources::default()).unwrap().config;
    assert_eq!(config, NamesrvConfig::default());
    assert_eq!(config.listen_port, 9876);
}

#[test]
fn important_keys_are_those_that_rocketmq_marks() {
    let printed = load_broker(&Sources::default())
        .unwrap()
        .print_important(false);
    assert!(
        printed.contains("brokerClusterName=DefaultCluster\n"),
        "{printed}"
    );
    assert!(printed.contains("flushDiskType=ASYNC_FLUSH\n"), "{printed}");
    assert!(!printed.contains("regionId"), "{printed}");
}

#[test]
fn what_is_printed_can_be_loaded_again() {
    let files = Files::new(&format!(
        "{GROUP}messageDelayLevel=1s 90s 2h 3d\nbindAddress=::1\n"
    ));
    let first = files.loaded(&files.sources());
    assert_eq!(
        first.config.message_delay_level,
        [1, 90, 7_200, 259_200].map(Duration::from_secs)
    );
    fs::write(files.path("broker.conf"), first.print_all(false)).unwrap();
    let second = files.loaded(&files.sources());
    assert_eq!(first.config, second.config);
    assert_eq!(first.config.get_all(), second.config.get_all());
}

#[test]
fn the_register_period_is_kept_as_java_keeps_it() {
    let (config, warnings) = loaded("registerNameServerPeriod=1000\n");
    assert_eq!(config.register_name_server_period, Duration::from_secs(10));
    assert_eq!(
        warnings,
        "broker.conf:1: warning: registerNameServerPeriod is kept from 10000 to 60000; 10000 is taken\n"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_file_is_loaded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let files = Files::new("");
        fs::write(files.path("broker.conf"), &bytes).unwrap();
        if let Err(report) = load_broker(&files.sources()) {
            prop_assert!(report.errors() > 0);
            prop_assert!(report.to_string().ends_with("Nothing was started.\n"));
        }
        drop(load_namesrv(&files.sources()));
    }

    #[test]
    fn any_value_of_a_known_key_is_taken_or_refused(
        key in prop::sample::select(
            BrokerConfig::default().get_all().into_iter().map(|(k, _)| k).collect::<Vec<_>>(),
        ),
        value in "[-a-z0-9.:;, ${}\\\\é\u{3000}\u{7f}]{0,40}",
    ) {
        let files = Files::new(&format!("{GROUP}{key}={value}\n"));
        if let Err(report) = load_broker(&files.sources()) {
            prop_assert!(report.to_string().contains("error: "));
        }
    }
}
