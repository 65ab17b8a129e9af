use super::crash::{PAGE, index};
use super::*;

fn read(disk: &SimDisk, path: &Path) -> Option<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read).ok()?;
    let mut buf = vec![0; index(file.size().unwrap())];
    file.read_at(0, &mut buf).unwrap();
    Some(buf)
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_any_of_the_rest() {
    let disk = SimDisk::default();
    let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
    disk.create_dir_all(dir).unwrap();
    let file = disk.open(path, OpenMode::Create).unwrap();
    file.allocate(2 * PAGE as u64).unwrap();
    file.write_at(0, &[IoSlice::new(&[1; PAGE])]).unwrap();
    file.sync().unwrap();
    disk.sync_dir(dir).unwrap();
    let synced = disk.done();
    file.write_at(PAGE as u64 - 1, &[IoSlice::new(&[2, 2])])
        .unwrap();
    let all = disk.done();

    let last = |disk: &SimDisk| read(disk, path).map(|bytes| bytes[PAGE - 1..=PAGE].to_vec());
    assert_eq!(last(&disk.killed_at(all)).unwrap(), [2, 2]);
    assert_eq!(last(&disk.cut_at(synced, &mut |_| 0)).unwrap(), [1, 0]);
    assert!(
        read(&disk.cut_at(synced - 1, &mut |_| 0), path).is_none(),
        "no directory entry"
    );
    let mut seed = 0_usize;
    let mut dice = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % n
    };
    let seen: BTreeSet<Vec<u8>> = (0..100)
        .map(|_| last(&disk.cut_at(all, &mut dice)).unwrap())
        .collect();
    assert_eq!(seen.len(), 4, "each of the two pages is old or new");
}

#[test]
fn what_a_failed_sync_forgot_a_later_one_does_not_write() {
    let disk = SimDisk::default();
    let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
    disk.create_dir_all(dir).unwrap();
    let file = disk.open(path, OpenMode::Create).unwrap();
    let page = |byte: u8| vec![byte; PAGE];
    for n in 0..2 {
        file.write_at(n * PAGE as u64, &[IoSlice::new(&page(1))])
            .unwrap();
    }
    file.sync().unwrap();
    disk.sync_dir(dir).unwrap();
    for n in 0..2 {
        file.write_at(n * PAGE as u64, &[IoSlice::new(&page(2))])
            .unwrap();
    }
    disk.fail(Fault::Sync, "/d/f", 0);
    assert!(file.sync().is_err());
    file.write_at(0, &[IoSlice::new(&page(3))]).unwrap();
    file.sync().unwrap();
    let left = |disk: &SimDisk| {
        let bytes = read(disk, path).unwrap();
        (bytes[0], bytes[PAGE])
    };
    assert_eq!(left(&disk.killed_at(disk.done())), (3, 2));
    assert_eq!(left(&disk.cut_at(disk.done(), &mut |_| 0)), (3, 1));
}

#[test]
fn nothing_is_done_after_the_end() {
    let disk = SimDisk::default();
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.open(Path::new("/d/f"), OpenMode::Create).unwrap();
    disk.end_after(1);
    file.write_at(0, &[IoSlice::new(b"a")]).unwrap();
    assert!(!disk.has_ended());
    assert!(file.write_at(1, &[IoSlice::new(b"b")]).is_err());
    assert!(file.sync().is_err());
    assert!(disk.has_ended());
    let left = disk.killed_at(disk.done());
    assert_eq!(read(&left, Path::new("/d/f")).unwrap(), b"a");
    let file = left.open(Path::new("/d/f"), OpenMode::Write).unwrap();
    file.write_at(1, &[IoSlice::new(b"b")]).unwrap();
}

#[test]
fn a_file_is_moved_as_a_whole() {
    let disk = SimDisk::default();
    for dir in ["/a", "/b"] {
        disk.create_dir_all(Path::new(dir)).unwrap();
    }
    let (from, to) = (Path::new("/a/f"), Path::new("/b/f"));
    let file = disk.open(from, OpenMode::Create).unwrap();
    file.write_at(0, &[IoSlice::new(b"x")]).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/a")).unwrap();
    disk.rename(from, to).unwrap();
    for choice in 0..4 {
        let mut dice = [choice & 1, choice >> 1].into_iter();
        let left = disk.cut_at(disk.done(), &mut |_| dice.next().unwrap_or(0));
        let found = [from, to].map(|path| read(&left, path).is_some());
        assert_eq!(found, [choice == 0, choice != 0]);
    }
}

#[test]
fn a_fault_strikes_once() {
    let disk = SimDisk::default();
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.open(Path::new("/d/f"), OpenMode::Create).unwrap();
    disk.fail(Fault::Sync, "/d/f", 1);
    assert!(file.sync().is_ok());
    assert!(file.sync().is_err());
    assert!(file.sync().is_ok());
    disk.fail(Fault::Full, "/other", 0);
    file.write_at(0, &[IoSlice::new(b"x")]).unwrap();
    disk.fail(Fault::Full, "/d/f", 0);
    let error = file.write_at(0, &[IoSlice::new(b"ab")]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(read(&disk, Path::new("/d/f")).unwrap(), b"a");
}
