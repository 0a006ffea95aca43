//! Repositories, and what may happen to them.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use backup::{Backup, BackupError, CHUNK_BYTES, GRACE, RecoveryPoint, Repository, RepositoryKey, When};

use support::{Place, files, noise, of, read};

const CHUNK: u64 = CHUNK_BYTES as u64;

/// A disk of one volume, with data in some places.
fn back_up(repository: &Repository, vm: &str, at: u64, bytes: u64, data: &[(u64, Vec<u8>)]) -> RecoveryPoint {
    let mut backup = Backup::begin(repository, of(vm, at)).unwrap();
    backup.begin_volume("disk0", bytes).unwrap();
    data.iter().for_each(|(offset, data)| backup.data(*offset, data).unwrap());
    backup.commit().unwrap()
}

#[test]
fn a_disk_comes_back_and_what_is_there_already_is_kept_once() {
    let place = Place::new();
    let repository = place.open();
    let bytes = 40 * CHUNK + 512;
    let mut disk = vec![0; bytes as usize];
    let parts = [
        (0, noise(1, 1000)),
        (CHUNK - 3, noise(2, 7)),
        (20 * CHUNK, noise(3, 3 * CHUNK_BYTES)),
        (bytes - 5, vec![9; 5]),
    ];
    for (offset, data) in &parts {
        disk[*offset as usize..][..data.len()].copy_from_slice(data);
    }
    let mut backup = Backup::begin(&repository, of("shop", 5)).unwrap();
    backup.begin_volume("kernel", 10).unwrap();
    backup.data(0, b"0123456789").unwrap();
    backup.begin_volume("disk0", bytes).unwrap();
    parts.iter().for_each(|(offset, data)| backup.data(*offset, data).unwrap());
    backup.begin_volume("disk1", 0).unwrap();
    let first = backup.commit().unwrap();
    assert_eq!(read(&repository, &first, "disk0").unwrap(), disk);
    assert_eq!(read(&repository, &first, "kernel").unwrap(), b"0123456789");
    assert!(read(&repository, &first, "disk1").unwrap().is_empty());
    assert!(first.added_bytes > 3 * CHUNK && first.added_bytes < 6 * CHUNK, "{}", first.added_bytes);
    // The same again, by another process, and a copy of a part of it on another disk.
    let second = back_up(&place.open(), "shop", 6, bytes, &parts);
    assert_eq!((second.added_bytes, second.packs.len()), (0, 1));
    let other = back_up(&repository, "other", 7, 3 * CHUNK, &[(0, parts[2].1.clone())]);
    assert!(other.added_bytes < CHUNK, "only the names of its chunks are new: {}", other.added_bytes);
    let listed = place.open().points().unwrap();
    assert_eq!((&listed.points[..], listed.unreadable.len()), (&[first.clone(), second.clone(), other][..], 0));
    assert_eq!(repository.find("latest:shop").unwrap(), second);
    assert_eq!(repository.find(&first.id.as_str()[..9]).unwrap(), first);
    for none in ["", "x", "latest:nobody"] {
        assert!(matches!(repository.find(none), Err(BackupError::NoPoint(_))), "{none}");
    }
    assert!(repository.verify(|_| ()).unwrap().is_good());
}

#[test]
fn a_disk_with_nothing_on_it_costs_nothing_however_big_it_is() {
    let place = Place::new();
    let bytes = (64 << 40) - 512;
    let point = back_up(&place.open(), "shop", 1, bytes, &[((63 << 40) + 5, b"x".to_vec())]);
    assert!(point.added_bytes < 3000, "{}", point.added_bytes);
    let mut found = Vec::new();
    let volume = point.volume("disk0").unwrap();
    let sink = |at: u64, data: &[u8]| {
        found.push((at, data.to_vec()));
        Ok(())
    };
    place.open().read_volume(volume, sink).unwrap();
    assert_eq!((found.len(), found[0].0, found[0].1.len()), (1, 63 << 40, CHUNK_BYTES));
    assert_eq!(found[0].1.iter().position(|&byte| byte == b'x'), Some(5));
}

#[test]
fn a_source_that_makes_no_sense_is_refused() {
    let place = Place::new();
    let repository = place.open();
    let mut backup = Backup::begin(&repository, of("shop", 1)).unwrap();
    assert!(backup.data(0, b"x").is_err());
    assert!(backup.begin_volume("disk0", u64::MAX).is_err());
    backup.begin_volume("disk0", 3 * CHUNK).unwrap();
    for (offset, length) in [(3 * CHUNK, 1), (u64::MAX, 1), (3 * CHUNK - 1, 2)] {
        assert!(backup.data(offset, &vec![1; length]).is_err(), "{offset}");
    }
    backup.data(CHUNK, b"x").unwrap();
    assert!(backup.data(CHUNK, b"x").is_err());
    assert!(backup.begin_volume("disk0", 5).is_err());
    (0..63).for_each(|n| backup.begin_volume(&format!("d{n}"), 5).unwrap());
    assert!(backup.begin_volume("more", 5).is_err());
}

#[test]
fn what_is_not_the_repository_of_this_key_and_version_is_refused_by_name() {
    let place = Place::new();
    let other = RepositoryKey::random().unwrap();
    assert!(matches!(Repository::open(&place.folder(), &other), Err(BackupError::WrongKey(_))));
    assert!(matches!(Repository::create(&place.folder(), &other), Err(BackupError::NotEmpty(_))));
    assert!(matches!(
        Repository::open(&place.root.path().join("packs"), &other),
        Err(BackupError::NotARepository { .. })
    ));
    let head = place.folder().join("repository");
    let good = fs::read_to_string(&head).unwrap();
    fs::write(&head, good.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let error = Repository::open(&place.folder(), &place.key).err().unwrap().to_string();
    assert!(error.contains("format 2") && error.contains("reads format 1"), "{error}");
    for bad in ["", "{}", "[1]", "{\"format\": \"twinvm backup repository\"}", &"x".repeat(5000)] {
        fs::write(&head, bad).unwrap();
        assert!(Repository::open(&place.folder(), &place.key).is_err(), "{bad}");
    }
    fs::write(&head, good).unwrap();
    // A newer point, and a newer pack: the rest goes on.
    let point = back_up(&place.open(), "shop", 1, CHUNK, &[(0, noise(1, 100))]);
    let second = back_up(&place.open(), "shop", 2, CHUNK, &[(0, noise(2, 100))]);
    let file = fs::File::options().write(true).open(place.folder().join("points").join(point.id.as_str())).unwrap();
    file.write_all_at(&[9], 8).unwrap();
    let listed = place.open().points().unwrap();
    assert_eq!(listed.points, [second]);
    assert!(listed.unreadable[0].1.why.contains("format 9"), "{listed:?}");
}

#[test]
fn any_one_file_that_is_damaged_or_gone_is_named_and_the_rest_restores() {
    let place = Place::new();
    let points: Vec<_> =
        (0..3).map(|n| back_up(&place.open(), "shop", n, 4 * CHUNK, &[(0, noise(n, 2 * CHUNK_BYTES))])).collect();
    assert_eq!(place.packs().len(), 3);
    let mut all = place.packs();
    all.extend(files(&place.folder().join("points")));
    for path in all {
        let good = fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            bad
        };
        let middle = good.len() / 2;
        let bad = [
            Some(flipped(0)),
            Some(flipped(20)),
            Some(flipped(middle)),
            Some(flipped(good.len() - 1)),
            Some(good[..middle].to_vec()),
            Some(Vec::new()),
            None,
        ];
        let is_point = path.parent().unwrap().ends_with("points");
        for (number, bad) in bad.into_iter().enumerate() {
            match &bad {
                Some(bad) => fs::write(&path, bad).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let found = place.open().verify(|_| ()).unwrap();
            if is_point && bad.is_none() {
                // Nothing says that there was one.
                assert_eq!(found.points.len(), 2);
            } else {
                let named: Vec<_> = found.damaged.iter().filter_map(|damage| damage.file.as_ref()).collect();
                assert_eq!(named, [&path], "{number}: {found:?}");
                assert_eq!(found.points.iter().filter(|point| !point.whole).count(), 1, "{number}: {found:?}");
            }
            let restores = |(n, point): (usize, &RecoveryPoint)| {
                let read = read(&place.open(), point, "disk0");
                read.is_ok_and(|read| read[..2 * CHUNK_BYTES] == noise(n as u64, 2 * CHUNK_BYTES))
            };
            let whole = points.iter().enumerate().filter(|&which| restores(which)).count();
            assert!(whole >= 2, "{}: {number}", path.display());
            fs::write(&path, &good).unwrap();
        }
        assert!(place.open().verify(|_| ()).unwrap().is_good());
    }
}

#[test]
fn what_verify_has_found_damaged_the_next_backup_heals() {
    let place = Place::new();
    let data = [(0, noise(1, CHUNK_BYTES))];
    let point = back_up(&place.open(), "shop", 1, CHUNK, &data);
    let file = fs::File::options().write(true).open(&place.packs()[0]).unwrap();
    file.write_all_at(b"damage", 100).unwrap();
    assert!(!place.open().verify(|_| ()).unwrap().points[0].whole);
    back_up(&place.open(), "shop", 2, CHUNK, &data);
    assert_eq!(read(&place.open(), &point, "disk0").unwrap(), data[0].1);
    let found = place.open().verify(|_| ()).unwrap();
    assert!(found.damaged.len() == 1 && found.points.iter().all(|point| point.whole), "{found:?}");
}

#[test]
fn prune_gives_space_back_after_a_while_and_never_what_a_backup_relies_on() {
    let place = Place::new();
    let repository = place.open();
    let data = [(0, noise(1, CHUNK_BYTES))];
    let first = back_up(&repository, "shop", 1, CHUNK, &data);
    let second = back_up(&repository, "shop", 2, CHUNK, &[(0, noise(2, CHUNK_BYTES))]);
    let now = SystemTime::now();
    assert_eq!(repository.prune(When::Later, now).unwrap().kept_packs, 2);
    // One that has begun before, and uses what the first one has left.
    let under_way = place.open();
    let mut backup = Backup::begin(&under_way, of("shop", 3)).unwrap();
    backup.begin_volume("disk0", CHUNK).unwrap();
    backup.data(0, &data[0].1).unwrap();
    repository.forget(&first.id).unwrap();
    let pruned = repository.prune(When::Later, now).unwrap();
    assert_eq!((pruned.doomed_packs, pruned.removed_packs, pruned.kept_packs), (1, 0, 1));
    assert!(matches!(place.open().prune(When::Now, now), Err(BackupError::InUse(_))));
    let third = backup.commit().unwrap();
    assert_eq!(third.added_bytes, 0);
    // One that begins now does not use what is doomed.
    assert!(back_up(&repository, "shop", 4, CHUNK, &data).added_bytes > CHUNK);
    let later = now + GRACE;
    let pruned = repository.prune(When::Later, later).unwrap();
    assert_eq!((pruned.doomed_packs, pruned.removed_packs, pruned.kept_packs), (0, 0, 3));
    assert_eq!(read(&repository, &third, "disk0").unwrap(), data[0].1);
    // What nobody needs is gone when its time has come, and not before.
    repository.forget(&second.id).unwrap();
    let before = place.bytes();
    assert_eq!(repository.prune(When::Later, later).unwrap().doomed_packs, 1);
    assert_eq!(repository.prune(When::Later, later + GRACE - Duration::from_secs(1)).unwrap().doomed_packs, 1);
    let pruned = repository.prune(When::Later, later + GRACE).unwrap();
    assert_eq!((pruned.removed_packs, pruned.removed_bytes), (1, before - place.bytes()));
    assert!(fs::read_dir(place.folder().join("doomed")).unwrap().next().is_none());
    assert!(repository.verify(|_| ()).unwrap().is_good());
}

#[test]
fn a_backup_that_took_too_long_fails_rather_than_rely_on_what_may_be_removed() {
    let place = Place::new();
    let repository = place.open();
    let data = [(0, noise(1, CHUNK_BYTES))];
    let first = back_up(&repository, "shop", 1, CHUNK, &data);
    let mut backup = Backup::begin(&repository, of("shop", 2)).unwrap();
    backup.begin_volume("disk0", CHUNK).unwrap();
    backup.data(0, &data[0].1).unwrap();
    repository.forget(&first.id).unwrap();
    let long_ago = SystemTime::now() - GRACE / 2 - Duration::from_secs(60);
    place.open().prune(When::Later, long_ago).unwrap();
    assert!(matches!(backup.commit(), Err(BackupError::TookTooLong)));
    assert!(place.open().points().unwrap().points.is_empty());
}

#[test]
fn prune_at_once_removes_all_that_nobody_needs() {
    let place = Place::new();
    let point = back_up(&place.open(), "shop", 1, CHUNK, &[(0, noise(1, CHUNK_BYTES))]);
    fs::write(place.folder().join("packs/.new-left"), "left").unwrap();
    place.open().forget(&point.id).unwrap();
    assert_eq!(place.open().prune(When::Now, SystemTime::now()).unwrap().removed_packs, 1);
    assert!(files(&place.folder().join("packs")).is_empty());
}

#[test]
fn nothing_is_pruned_while_it_is_not_known_what_a_point_needs() {
    let place = Place::new();
    let point = back_up(&place.open(), "shop", 1, CHUNK, &[(0, noise(1, CHUNK_BYTES))]);
    let path = place.folder().join("points").join(point.id.as_str());
    fs::write(&path, "damaged").unwrap();
    let error = place.open().prune(When::Now, SystemTime::now()).unwrap_err();
    assert!(error.to_string().contains(point.id.as_str()), "{error}");
    assert_eq!(place.packs().len(), 1);
    place.open().forget(&point.id).unwrap();
    assert_eq!(place.open().prune(When::Now, SystemTime::now()).unwrap().removed_packs, 1);
}

/// What is in a repository can be told from noise, or from another repository's content, by nobody who has not the key.
#[test]
fn nothing_of_a_guest_can_be_seen_without_the_key() {
    let place = Place::new();
    let secret = b"the number of the account is 4711".repeat(1000);
    let point = back_up(&place.open(), "secret-name", 1, CHUNK, &[(0, secret.clone())]);
    let other = Place::new();
    let same = back_up(&other.open(), "secret-name", 1, CHUNK, &[(0, secret)]);
    assert_ne!(point.volume("disk0").unwrap().segments, same.volume("disk0").unwrap().segments);
    for path in ["packs", "points"].iter().flat_map(|name| files(&place.folder().join(name))) {
        let content = fs::read(&path).unwrap();
        for text in ["4711", "secret-name", "disk0"] {
            assert!(!content.windows(text.len()).any(|window| window == text.as_bytes()), "{}", path.display());
        }
    }
}

/// Not a test: what the test below kills.
#[test]
#[ignore = "only as a process of its own"]
fn backs_up_and_prunes_without_end() {
    let folder = PathBuf::from(std::env::var_os("TWINVM_BACKUP_FOLDER").unwrap());
    let key = RepositoryKey::from_text(&std::env::var("TWINVM_BACKUP_KEY").unwrap()).unwrap();
    let seed: u64 = std::env::var("TWINVM_BACKUP_SEED").unwrap().parse().unwrap();
    for n in 0.. {
        let repository = Repository::open(&folder, &key).unwrap();
        let data = [(0, noise(seed, 20 * CHUNK_BYTES)), (30 * CHUNK, noise(seed + n, 9 * CHUNK_BYTES))];
        let point = back_up(&repository, "shop", seed + n, 40 * CHUNK, &data);
        println!("done {}", point.id);
        if n % 2 == 1 {
            let oldest = repository.points().unwrap().points.remove(0);
            println!("forgets {}", oldest.id);
            repository.forget(&oldest.id).unwrap();
            // It removes what nothing needed long before all backups that are under way.
            repository.prune(When::Later, SystemTime::now()).unwrap();
        }
    }
}

#[test]
fn whenever_backup_and_prune_are_killed_every_point_that_was_done_is_whole() {
    let place = Place::new();
    let start = |seed: u64| {
        Command::new(std::env::current_exe().unwrap())
            .args(["backs_up_and_prunes_without_end", "--exact", "--ignored", "--nocapture"])
            .env("TWINVM_BACKUP_FOLDER", place.folder())
            .env("TWINVM_BACKUP_KEY", place.key.to_text())
            .env("TWINVM_BACKUP_SEED", seed.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let (mut kept, mut doomed) = (std::collections::BTreeSet::new(), 0);
    for round in 0..10u64 {
        // Two at once: they find each other's chunks, and prune beside each other. The process that prunes takes other points than its own as well.
        let children: Vec<_> = (0..2).map(|n| start(1000 * n + round)).collect();
        std::thread::sleep(Duration::from_millis(100 + 83 * round));
        for mut child in children {
            child.kill().unwrap();
            let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
            for line in said.lines() {
                match line.split_once(' ') {
                    Some(("done", id)) => kept.insert(id.to_owned()),
                    Some(("forgets", id)) => kept.insert(format!("-{id}")),
                    _ => false,
                };
            }
        }
        let found = place.open().verify(|_| ()).unwrap();
        assert!(found.is_good(), "round {round}: {found:?}");
        let there: Vec<&str> = found.points.iter().map(|point| point.id.as_str()).collect();
        let lost =
            |id: &&String| !id.starts_with('-') && !kept.contains(&format!("-{id}")) && !there.contains(&id.as_str());
        assert_eq!(kept.iter().find(lost), None, "round {round}");
        // Nothing is under way: what is not needed now is removed by the next ones, as if it had not been needed for long.
        place.open().prune(When::Later, SystemTime::now() - 2 * GRACE).unwrap();
        doomed += files(&place.folder().join("doomed")).len();
    }
    assert!(doomed > 0, "nothing was to be removed");
    assert!(kept.iter().any(|id| !id.starts_with('-')), "no backup was finished");
    for point in place.open().points().unwrap().points {
        read(&place.open(), &point, "disk0").unwrap();
    }
    // What was left of those that were killed is removed.
    let is_left = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(".new-");
    place.open().prune(When::Later, SystemTime::now()).unwrap();
    assert_eq!(files(&place.folder().join("packs")).iter().filter(|path| is_left(path)).count(), 0);
}

#[test]
fn a_repository_that_is_full_fails_the_backup_and_keeps_what_it_had() {
    let place = Place::new();
    let point = back_up(&place.open(), "shop", 1, CHUNK, &[(0, noise(1, 1000))]);
    // Files cannot get longer than a MiB or two there, which fails as a full file system does.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["backs_up_and_prunes_without_end", "--exact", "--ignored", "--nocapture"])
        .env("TWINVM_BACKUP_FOLDER", place.folder())
        .env("TWINVM_BACKUP_KEY", place.key.to_text())
        .env("TWINVM_BACKUP_SEED", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("\"write\"") && said.contains("packs"), "{said}");
    let found = place.open().verify(|_| ()).unwrap();
    assert!(found.is_good() && found.points.len() == 1 && found.points[0].id == point.id, "{found:?}");
    assert_eq!(place.packs().len(), 1, "nothing is left of it");
}
