//! Keys and values by namespace, such as the order of topics that operators set; kept in one file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

/// What keeps a stranger's keys from filling the memory.
const BYTES_MAX: usize = 4 << 20;

/// Namespace, key, value.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Table {
    /// The name in Java's file (`KVConfigSerializeWrapper`).
    #[serde(rename = "configTable", default)]
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, thiserror::Error)]
pub enum KvError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a key-value file: {source}")]
    Syntax {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("keys and values would exceed {BYTES_MAX} bytes")]
    Full,
}

/// The table, and the file that it is kept in, if any.
#[derive(Debug)]
pub(super) struct Kv {
    table: Mutex<Table>,
    path: Option<PathBuf>,
}

impl Kv {
    /// Reads the file; one that is not there is empty.
    pub(super) async fn open(path: Option<PathBuf>) -> Result<Self, KvError> {
        let table = match &path {
            Some(path) => load(path).await?,
            None => Table::default(),
        };
        Ok(Self {
            table: Mutex::new(table),
            path,
        })
    }

    pub(super) async fn get(&self, namespace: &str, key: &str) -> Option<String> {
        self.table
            .lock()
            .await
            .namespaces
            .get(namespace)?
            .get(key)
            .cloned()
    }

    pub(super) async fn namespace(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.table.lock().await.namespaces.get(namespace).cloned()
    }

    /// The value is in the file when this returns; after an error nothing has changed.
    pub(super) async fn put(
        &self,
        namespace: String,
        key: String,
        value: String,
    ) -> Result<(), KvError> {
        self.change(|table| {
            table
                .namespaces
                .entry(namespace)
                .or_default()
                .insert(key, value);
        })
        .await
    }

    /// As [`Kv::put`]; a key that is not there is no error.
    pub(super) async fn delete(&self, namespace: &str, key: &str) -> Result<(), KvError> {
        self.change(|table| {
            if let Some(keys) = table.namespaces.get_mut(namespace) {
                keys.remove(key);
            }
        })
        .await
    }

    async fn change(&self, change: impl FnOnce(&mut Table)) -> Result<(), KvError> {
        let mut table = self.table.lock().await;
        let mut next = table.clone();
        change(&mut next);
        let text = serde_json::to_vec(&next).expect("strings are representable");
        if text.len() > BYTES_MAX {
            return Err(KvError::Full);
        }
        if let Some(path) = &self.path {
            save(path, text).await.map_err(|source| KvError::Io {
                path: path.clone(),
                source,
            })?;
        }
        *table = next;
        Ok(())
    }
}

async fn load(path: &Path) -> Result<Table, KvError> {
    match tokio::fs::read(path).await {
        Ok(text) => serde_json::from_slice(&text).map_err(|source| KvError::Syntax {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Table::default()),
        Err(source) => Err(KvError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Replaces the file as a whole, so that a crash leaves the old or the new one.
async fn save(path: &Path, text: Vec<u8>) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    let new = path.with_added_extension("new");
    let file = tokio::fs::File::create(&new).await?;
    let mut file = file.into_std().await;
    tokio::task::spawn_blocking(move || {
        io::Write::write_all(&mut file, &text)?;
        file.sync_data()
    })
    .await
    .map_err(io::Error::other)??;
    tokio::fs::rename(&new, path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_survive_reopening_and_deletion_is_final() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("namesrv/kvConfig.json");
        let kv = Kv::open(Some(path.clone())).await.unwrap();
        kv.put("ns".into(), "a".into(), "1".into()).await.unwrap();
        kv.put("ns".into(), "b".into(), "2".into()).await.unwrap();
        kv.delete("ns", "a").await.unwrap();
        kv.delete("other", "a").await.unwrap();

        let kv = Kv::open(Some(path)).await.unwrap();
        assert_eq!(kv.get("ns", "a").await, None);
        assert_eq!(kv.get("ns", "b").await.as_deref(), Some("2"));
        assert_eq!(kv.namespace("ns").await.unwrap().len(), 1);
        assert!(kv.namespace("other").await.is_none());
    }

    #[tokio::test]
    async fn a_file_of_the_java_name_server_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvConfig.json");
        let text = r#"{"configTable":{"ORDER_TOPIC_CONFIG":{"T":"broker-a:4;broker-b:4"}}}"#;
        std::fs::write(&path, text).unwrap();
        let kv = Kv::open(Some(path)).await.unwrap();
        let value = kv.get("ORDER_TOPIC_CONFIG", "T").await;
        assert_eq!(value.as_deref(), Some("broker-a:4;broker-b:4"));
    }

    #[tokio::test]
    async fn what_cannot_be_kept_changes_nothing() {
        let kv = Kv::open(None).await.unwrap();
        kv.put("ns".into(), "a".into(), "1".into()).await.unwrap();
        let huge = "x".repeat(BYTES_MAX);
        assert!(matches!(
            kv.put("ns".into(), "a".into(), huge).await,
            Err(KvError::Full)
        ));
        assert_eq!(kv.get("ns", "a").await.as_deref(), Some("1"));

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvConfig.json");
        let kv = Kv::open(Some(path.clone())).await.unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(kv.put("ns".into(), "a".into(), "1".into()).await.is_err());
        assert_eq!(kv.get("ns", "a").await, None);

        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "[[[").unwrap();
        assert!(matches!(
            Kv::open(Some(path)).await,
            Err(KvError::Syntax { .. })
        ));
    }
}
