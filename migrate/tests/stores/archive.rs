//! Archives of Java stores. Tests of whole processes use this file, too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;
use serde_json::Value;

/// Files longer than this are unpacked with holes.
const SPARSE_BYTES: u64 = 8 << 20;

/// Unpacks those stores of an archive that are wanted: of each a directory with `store` and
/// `broker.conf`.
pub(crate) fn unpack(archive: &Path, to: &Path, wanted: impl Fn(&str) -> bool) {
    let zstd = BufReader::new(File::open(archive.join("store.tar.zst")).unwrap());
    let mut tar = tar::Archive::new(StreamingDecoder::new(zstd).unwrap());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let store = path.iter().find(|part| *part != ".");
        if !store.is_some_and(|store| wanted(store.to_str().unwrap())) {
            continue;
        }
        if entry.header().entry_type().is_dir() || entry.size() <= SPARSE_BYTES {
            entry.unpack_in(to).unwrap();
            continue;
        }
        let to = to.join(&path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let file = File::create(to).unwrap();
        file.set_len(entry.size()).unwrap();
        let mut buf = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            let read = entry.read(&mut buf).unwrap();
            if read == 0 {
                break;
            }
            if buf[..read].iter().any(|byte| *byte != 0) {
                file.write_all_at(&buf[..read], at).unwrap();
            }
            at += read as u64;
        }
    }
}

/// Lines of JSON in a compressed file, each behind `skip` characters.
pub(crate) fn json_lines(path: &Path, skip: usize) -> Vec<(String, Value)> {
    let xz = BufReader::new(File::open(path).unwrap());
    let lines = BufReader::new(XzReader::new(xz, true)).lines();
    let parse = |line: String| {
        let (mark, json) = line.split_at(skip);
        (mark.to_owned(), serde_json::from_str(json).unwrap())
    };
    lines.map(|line| parse(line.unwrap())).collect()
}

/// Every file under a directory: length, checksum and time of its last change.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, (u64, u32, i64)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                dirs.push(path);
                continue;
            }
            let (file, mut buf) = (File::open(&path).unwrap(), vec![0; 1 << 20]);
            let mut crc = 0;
            loop {
                match (&file).read(&mut buf).unwrap() {
                    0 => break,
                    read => crc = crc32c::crc32c_append(crc, &buf[..read]),
                }
            }
            let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (meta.len(), crc, time));
        }
    }
    found
}
