//! What the configuration of a store has to be to itself and to what lies on the disk.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rmq_store::ENTRY_OVERHEAD_BYTES;

use super::broker::BrokerConfig;
use super::known::{OLD_COMMIT_LOG_SIZE, OLD_CONSUME_QUEUE_SIZE};
use super::load::Settings;

/// Bytes of an entry of a consume queue.
const CONSUME_QUEUE_UNIT: u32 = 20;

pub(super) fn check_file_sizes(config: &mut BrokerConfig, settings: &mut Settings) {
    let old_spelling = |settings: &Settings, key: &str, old: &str| {
        settings
            .get(key)
            .is_some_and(|setting| setting.name.text == old)
    };
    // Old brokers knew the old spellings and newer ones ignore them, so which value an existing
    // store was written with can only be read off its files.
    let key = "mappedFileSizeCommitLog";
    if old_spelling(settings, key, OLD_COMMIT_LOG_SIZE) {
        let said = format!(
            "{OLD_COMMIT_LOG_SIZE} is an old spelling of {key}, which RocketMQ ignores since 4.5.2"
        );
        let existing = first_segment_bytes(&config.commit_log_dir());
        match existing.filter(|bytes| *bytes != config.mapped_file_size_commit_log) {
            Some(bytes) => {
                config.mapped_file_size_commit_log = bytes;
                settings.warn(
                    key,
                    format!("{said}; the files there have {bytes} bytes, which is taken"),
                );
            }
            None => settings.warn(key, format!("{said}; it is taken here")),
        }
    }
    let key = "mappedFileSizeConsumeQueue";
    if old_spelling(settings, key, OLD_CONSUME_QUEUE_SIZE) {
        let said = format!(
            "{OLD_CONSUME_QUEUE_SIZE} is an old spelling of {key}, which RocketMQ ignores since 4.5.2"
        );
        match first_consume_queue_bytes(&config.store_path_root_dir.join("consumequeue")) {
            Some(bytes) => {
                config.mapped_file_size_consume_queue = bytes;
                settings.warn(
                    key,
                    format!("{said}; the files there have {bytes} bytes, which is taken"),
                );
            }
            None => {
                let default = BrokerConfig::default().mapped_file_size_consume_queue;
                config.mapped_file_size_consume_queue = default;
                settings.warn(
                    key,
                    format!(
                        "{said}; it may mean entries or bytes, and no file is there to tell, so the \
                         default of {default} bytes ({} entries) is taken",
                        default / CONSUME_QUEUE_UNIT
                    ),
                );
            }
        }
    }
    let bytes = config.mapped_file_size_consume_queue;
    let whole = bytes.next_multiple_of(CONSUME_QUEUE_UNIT);
    if bytes != whole {
        config.mapped_file_size_consume_queue = whole;
        settings.warn(
            key,
            format!("{key} is a multiple of {CONSUME_QUEUE_UNIT}; {whole} is taken"),
        );
    }

    let (file, body) = (config.mapped_file_size_commit_log, config.max_message_size);
    if u64::from(file) < u64::from(body) + ENTRY_OVERHEAD_BYTES
        && !settings.is_bad("mappedFileSizeCommitLog")
        && !settings.is_bad("maxMessageSize")
    {
        let anchor = match settings.get("mappedFileSizeCommitLog") {
            Some(_) => "mappedFileSizeCommitLog",
            None => "maxMessageSize",
        };
        settings.error(
            anchor,
            format!("mappedFileSizeCommitLog={file} is too small for maxMessageSize={body}"),
            Some(format!(
                "a file must hold the largest message and {ENTRY_OVERHEAD_BYTES} bytes more"
            )),
        );
    }
}

/// Refuses to leave history behind: a commit log that is not where the broker would look for it, or
/// that is in the format of Java's DLedger.
pub(super) fn check_paths(config: &BrokerConfig, settings: &mut Settings) {
    if settings.is_bad("storePathRootDir") || settings.is_bad("storePathCommitLog") {
        return;
    }
    let root = &config.store_path_root_dir;
    let log = config.commit_log_dir();
    if log.to_str().is_some_and(|dir| dir.contains(',')) {
        let hint = Some("bring the files into one directory".to_owned());
        let message = "storePathCommitLog: a commit log in several directories is not supported";
        return settings.error("storePathCommitLog", message, hint);
    }
    if let Err((dir, error)) = find_history(config, settings, root, &log) {
        let key = if dir.starts_with(root) {
            "storePathRootDir"
        } else {
            "storePathCommitLog"
        };
        settings.error(
            key,
            format!("{key}: {} cannot be read: {error}", dir.display()),
            None,
        );
    }
}

type Unreadable = (PathBuf, io::Error);

fn find_history(
    config: &BrokerConfig,
    settings: &mut Settings,
    root: &Path,
    log: &Path,
) -> Result<(), Unreadable> {
    // Every start of this broker makes the directory, and no other one does.
    let own_store = is_dir(&root.join("raftindex"))?;
    let group = config.enable_dleger_commit_log;
    if group && !own_store {
        let dledger = match settings.get("storePathDLedgerCommitLog") {
            Some(setting) => PathBuf::from(&setting.value.text),
            None => root
                .join(format!("dledger-{}", config.dleger_self_id))
                .join("data"),
        };
        if has_segments(&dledger)? {
            let to = with_suffix(root, "-rmq");
            settings.error(
                "storePathRootDir",
                format!(
                    "{} has the log of a Java DLedger group, which is in another format",
                    dledger.display()
                ),
                Some(format!(
                    "{}, then storePathRootDir={}",
                    migrate(root, &to),
                    to.display()
                )),
            );
            return Ok(());
        }
    }

    let default_log = root.join("commitlog");
    if same_path(log, &default_log) {
        return Ok(());
    }
    let line = match settings
        .get("storePathCommitLog")
        .map(|setting| setting.place.to_string())
    {
        Some(place) => format!("storePathCommitLog ({place})"),
        None => "storePathCommitLog".to_owned(),
    };
    match (has_segments(log)?, has_segments(&default_log)?) {
        (false, true) => settings.error(
            "storePathCommitLog",
            format!(
                "storePathCommitLog has no commit log, but {} under storePathRootDir has one",
                default_log.display()
            ),
            Some("remove this line, or move the files".to_owned()),
        ),
        (true, true) if group => settings.error(
            "storePathCommitLog",
            format!(
                "there are two commit logs, this one and {} under storePathRootDir",
                default_log.display()
            ),
            Some("remove this line if that one is the group's".to_owned()),
        ),
        (true, false) if group && !own_store => {
            let command = migrate(&old_root(log, settings), root);
            settings.error(
                "storePathCommitLog",
                format!(
                    "storePathCommitLog has the history of an older broker, but storePathRootDir is {}, \
                     where the group would start without it",
                    root.display()
                ),
                Some(format!("run `{command}` first, then remove this line")),
            );
        }
        (false, false) if group && !is_dir(log)? => settings.warn(
            "storePathCommitLog",
            format!(
                "{line} lies outside storePathRootDir{} and does not exist, so the group starts with an \
                 empty log there; if an older broker's history belongs to it, stop and see rmq-migrate",
                match settings.get("storePathRootDir") {
                    Some(root) => format!(" ({})", root.place),
                    None => String::new(),
                }
            ),
        ),
        _ => {}
    }
    Ok(())
}

/// The root directory of the store whose commit log is `log`.
fn old_root(log: &Path, settings: &Settings) -> PathBuf {
    let parent = log.parent().unwrap_or(log);
    match settings.replaced("storePathRootDir") {
        Some(earlier) if !log.ends_with("commitlog") => PathBuf::from(&earlier.value.text),
        _ => parent.to_owned(),
    }
}

fn migrate(from: &Path, to: &Path) -> String {
    format!("rmq-migrate --from {} --to {}", shell(from), shell(to))
}

/// A path as one word of a shell command.
fn shell(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+".contains(c);
    if path.chars().all(plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Whether two paths are the same without looking at the disk.
fn same_path(a: &Path, b: &Path) -> bool {
    fn parts(path: &Path) -> impl Iterator<Item = Component<'_>> {
        path.components().filter(|part| *part != Component::CurDir)
    }
    parts(a).eq(parts(b))
}

fn is_dir(path: &Path) -> Result<bool, Unreadable> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err((path.to_owned(), error)),
    }
}

/// Files named by 20 digits, as all of RocketMQ's logs have them, with their lengths.
fn segments(dir: &Path) -> Result<Vec<u64>, Unreadable> {
    let unreadable = |error| (dir.to_owned(), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut lengths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        if name.len() == 20 && name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            lengths.push(entry.metadata().map_err(unreadable)?.len());
        }
    }
    Ok(lengths)
}

fn has_segments(dir: &Path) -> Result<bool, Unreadable> {
    Ok(segments(dir)?.iter().any(|bytes| *bytes > 0))
}

/// The length of one of the files, which all have the same; `None` if there is none to be read.
fn first_segment_bytes(dir: &Path) -> Option<u32> {
    segments(dir)
        .ok()?
        .into_iter()
        .find(|bytes| *bytes > 0)
        .and_then(|bytes| bytes.try_into().ok())
}

/// The same for any queue of any topic.
fn first_consume_queue_bytes(dir: &Path) -> Option<u32> {
    let subdirectories = |dir: &Path| {
        fs::read_dir(dir)
            .ok()
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
    };
    subdirectories(dir)
        .flat_map(|topic| subdirectories(&topic))
        .find_map(|queue| first_segment_bytes(&queue))
}
