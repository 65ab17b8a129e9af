use std::fs;

use rmq_store::FlushMode;

use super::{Files, GROUP, loaded, refused, write_segment};
use crate::config::{BrokerConfig, Sources};

#[test]
fn the_store_is_opened_with_what_the_keys_say() {
    let (config, _) = loaded(
        "storePathRootDir=/s\nflushDiskType=SYNC_FLUSH\nmappedFileSizeConsumeQueue=2001\n\
         maxIndexNum=30\nmaxHashSlotNum=10\nmappedFileSizeCommitLog=8388608\n",
    );
    let store = config.store_config();
    assert_eq!(store.check(), Ok(()));
    assert_eq!(store.root().to_str(), Some("/s"));
    assert_eq!(store.commit_log_dir.to_str(), Some("/s/commitlog"));
    assert_eq!(store.segment_bytes, 8_388_608);
    assert_eq!(store.consume_queue_file_bytes, 2020);
    assert_eq!((store.index_slots, store.index_entries), (10, 30));
    assert!(matches!(store.flush, FlushMode::Sync));
    let store = BrokerConfig::default().store_config();
    assert!(matches!(store.flush, FlushMode::Async { interval_ms: 500 }));
    assert_eq!(store.segment_bytes, 1 << 30);
}

#[test]
fn a_file_too_small_for_the_largest_message_names_both_keys() {
    assert_eq!(
        refused("maxMessageSize=4194304\nmappedFileSizeCommitLog=4194304\n"),
        "\
broker.conf:2: error: mappedFileSizeCommitLog=4194304 is too small for maxMessageSize=4194304
    2 | mappedFileSizeCommitLog=4194304
      |                         ^^^^^^^ a file must hold the largest message and 131072 bytes more
1 error. Nothing was started.
"
    );
    loaded("maxMessageSize=65536\nmappedFileSizeCommitLog=196608\n");
}

#[test]
fn memory_for_requests_has_room_for_a_frame() {
    assert_eq!(
        refused("requestMemoryMaxBytes=134217727\n"),
        "\
broker.conf:1: error: requestMemoryMaxBytes: 134217727 bytes have no room for a frame of the largest size
    1 | requestMemoryMaxBytes=134217727
      |                       ^^^^^^^^^ want 134217728 or more, or 0 for a quarter of the memory
1 error. Nothing was started.
"
    );
    for bytes in [0, 134_217_728] {
        let (config, _) = loaded(&format!("requestMemoryMaxBytes={bytes}\n"));
        assert_eq!(config.request_memory_max_bytes, bytes);
    }
}

#[test]
fn old_spellings_of_file_sizes_are_understood() {
    let files = Files::new(
        "mapedFileSizeCommitLog=1048576\nmapedFileSizeConsumeQueue=300000\nmaxMessageSize=65536\n",
    );
    let root = files.path("store");
    let sources = files
        .sources()
        .flag("storePathRootDir", root.to_str().unwrap());
    let fresh = files.loaded(&sources);
    assert_eq!(
        files.text(&fresh.report),
        "\
broker.conf:1: warning: mapedFileSizeCommitLog is an old spelling of mappedFileSizeCommitLog, which \
RocketMQ ignores since 4.5.2; it is taken here
broker.conf:2: warning: mapedFileSizeConsumeQueue is an old spelling of mappedFileSizeConsumeQueue, \
which RocketMQ ignores since 4.5.2; it may mean entries or bytes, and no file is there to tell, so the \
default of 6000000 bytes (300000 entries) is taken
"
    );
    assert_eq!(fresh.config.mapped_file_size_commit_log, 1_048_576);
    assert_eq!(fresh.config.mapped_file_size_consume_queue, 6_000_000);

    write_segment(&root.join("commitlog"), 262_144);
    write_segment(&root.join("consumequeue/T/3"), 300_000);
    let existing = files.loaded(&sources);
    assert_eq!(existing.config.mapped_file_size_commit_log, 262_144);
    assert_eq!(existing.config.mapped_file_size_consume_queue, 300_000);
    let text = files.text(&existing.report);
    assert!(
        text.contains("the files there have 262144 bytes, which is taken"),
        "{text}"
    );
    assert!(
        text.contains("the files there have 300000 bytes, which is taken"),
        "{text}"
    );
}

/// A group whose file still names the commit log of the master that it is to replace.
struct Upgrade {
    files: Files,
    sources: Sources,
}

impl Upgrade {
    fn new() -> Self {
        let files = Files::new("");
        let dir = files.dir.path().display();
        let conf = format!(
            "storePathRootDir={dir}/store\nstorePathCommitLog={dir}/store/commitlog\n{GROUP}\
             storePathRootDir={dir}/store/dledger_store\n"
        );
        fs::write(files.path("broker.conf"), conf).unwrap();
        let sources = files.sources();
        Self { files, sources }
    }
}

#[test]
fn an_upgrade_that_would_leave_the_history_behind_is_refused_with_the_command() {
    let Upgrade { files, sources } = Upgrade::new();
    write_segment(&files.path("store/commitlog"), 4096);
    assert_eq!(
        files.refused(&sources),
        "\
broker.conf:1: warning: storePathRootDir is given again in line 7, which wins
broker.conf:2: error: storePathCommitLog has the history of an older broker, but storePathRootDir is \
store/dledger_store, where the group would start without it
    2 | storePathCommitLog=store/commitlog
      |                    ^^^^^^^^^^^^^^^ run `rmq-migrate --from store --to store/dledger_store` \
first, then remove this line
1 error, 1 warning. Nothing was started.
"
        .replace("^^^^^^^^^^^^^^^", &"^".repeat(caret_width(&files, "store/commitlog")))
    );
}

/// Underlines are as long as the path in the file, whose directory [`Files::text`] leaves out.
fn caret_width(files: &Files, name: &str) -> usize {
    files.path(name).display().to_string().len().min(60)
}

#[test]
fn an_upgrade_without_history_starts_with_warnings_that_name_the_lines() {
    let Upgrade { files, sources } = Upgrade::new();
    let loaded = files.loaded(&sources);
    assert_eq!(
        files.text(&loaded.report),
        "\
broker.conf:1: warning: storePathRootDir is given again in line 7, which wins
broker.conf:2: warning: storePathCommitLog (broker.conf:2) lies outside storePathRootDir \
(broker.conf:7) and does not exist, so the group starts with an empty log there; if an older \
broker's history belongs to it, stop and see rmq-migrate
"
    );
}

#[test]
fn a_migrated_group_does_not_start_on_the_old_commit_log() {
    let Upgrade { files, sources } = Upgrade::new();
    write_segment(&files.path("store/commitlog"), 4096);
    write_segment(&files.path("store/dledger_store/commitlog"), 4096);
    let text = files.refused(&sources);
    assert!(
        text.contains("there are two commit logs, this one and"),
        "{text}"
    );
    fs::remove_dir_all(files.path("store/commitlog")).unwrap();
    let text = files.refused(&sources);
    assert!(
        text.contains("storePathCommitLog has no commit log, but"),
        "{text}"
    );
}

#[test]
fn a_commit_log_on_another_disk_is_the_groups_own_after_its_first_start() {
    let Upgrade { files, sources } = Upgrade::new();
    write_segment(&files.path("store/commitlog"), 4096);
    fs::create_dir_all(files.path("store/dledger_store/raftindex")).unwrap();
    let loaded = files.loaded(&sources);
    assert_eq!(
        loaded.config.commit_log_dir(),
        files.path("store/commitlog")
    );
}

#[test]
fn a_log_in_the_format_of_dledger_is_refused_with_the_command() {
    let files = Files::new(GROUP);
    let sources = files
        .sources()
        .flag("storePathRootDir", files.path("s").to_str().unwrap());
    files.loaded(&sources);
    write_segment(&files.path("s/dledger-n0/data"), 4096);
    assert_eq!(
        files.refused(&sources),
        "\
command line: error: s/dledger-n0/data has the log of a Java DLedger group, which is in another \
format; rmq-migrate --from s --to s-rmq, then storePathRootDir=s-rmq
1 error. Nothing was started.
"
    );
}

#[test]
fn several_commit_log_directories_are_refused() {
    let text = refused("storePathCommitLog=/a/commitlog,/b/commitlog\n");
    assert!(
        text.contains("a commit log in several directories is not supported"),
        "{text}"
    );
}
