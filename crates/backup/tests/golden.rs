//! A repository that version 1 has written, which every later version reads.

#[allow(dead_code, reason = "the tests of repositories use the rest")]
mod support;

use std::fs;
use std::path::Path;

use backup::{Backup, CHUNK_BYTES, Repository, RepositoryKey};

use support::{of, read};

/// Where it is, with its key.
fn golden() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"))
}

/// What is on its disk: text, zeros, and the beginning of another chunk.
fn disk() -> Vec<u8> {
    let mut disk = b"a block that was written by version 1\n".repeat(1000);
    disk.resize(3 * CHUNK_BYTES, 0);
    disk.extend(b"the end");
    disk.resize(3 * CHUNK_BYTES + 512, 0);
    disk
}

#[test]
fn a_repository_of_version_1_is_read() {
    let copy = tempfile::tempdir().unwrap();
    // Git keeps no folders without files.
    for folder in ["packs", "points", "doomed", "suspect"] {
        fs::create_dir(copy.path().join(folder)).unwrap();
    }
    let copy_file = |path: &str| {
        fs::copy(golden().join(path), copy.path().join(path)).unwrap();
    };
    copy_file("repository");
    for folder in ["packs", "points"] {
        for entry in fs::read_dir(golden().join(folder)).unwrap() {
            copy_file(&format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    let key = RepositoryKey::from_text(&fs::read_to_string(golden().join("key")).unwrap()).unwrap();
    let repository = Repository::open(copy.path(), &key).unwrap();
    assert!(repository.verify(|_| ()).unwrap().is_good());
    let point = repository.find("latest:shop").unwrap();
    assert_eq!((point.host.as_str(), point.taken_unix_ms), ("a", 1_700_000_000_000));
    assert_eq!(read(&repository, &point, "kernel").unwrap(), b"kernel");
    assert!(read(&repository, &point, "disk0").unwrap() == disk());
    // And it is built upon: names of chunks are as they were.
    let mut backup = Backup::begin(&repository, of("shop", 1)).unwrap();
    backup.begin_volume("disk0", disk().len() as u64).unwrap();
    backup.data(0, &disk()).unwrap();
    assert_eq!(backup.commit().unwrap().added_bytes, 0);
}

/// How it was written, once.
#[test]
#[ignore = "the repository is there, and stays as it is"]
fn write_the_golden_repository() {
    let key = RepositoryKey::random().unwrap();
    let repository = Repository::create(golden(), &key).unwrap();
    let mut backup = Backup::begin(&repository, of("shop", 1_700_000_000_000)).unwrap();
    backup.begin_volume("kernel", 6).unwrap();
    backup.data(0, b"kernel").unwrap();
    backup.begin_volume("disk0", disk().len() as u64).unwrap();
    backup.data(0, &disk()).unwrap();
    backup.commit().unwrap();
    fs::write(golden().join("key"), key.escrow_text("of this test")).unwrap();
}
