//! The store in one process: what it keeps, refuses and tells when the file cannot be used.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cluster::store::{Changes, Entry, Op, Outcome, SqliteStore, Store, StoreError};
use tempfile::TempDir;

/// Longer than anything takes that does not hang.
const HUNG: Duration = Duration::from_secs(60);

fn store() -> (TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::create(&folder.path().join("cluster.db")).unwrap();
    (folder, store)
}

fn put(store: &dyn Store, key: &str, value: &[u8]) -> u64 {
    match store.transact(&[], &[Op::Put { key, value, lease: None }]).unwrap() {
        Outcome::Done { revision } => revision,
        Outcome::Conflict => panic!("a transaction without compares had a conflict"),
    }
}

#[track_caller]
fn assert_unreachable<T: std::fmt::Debug>(result: Result<T, StoreError>, words: &str) {
    match result {
        Err(StoreError::Unreachable(message)) => assert!(message.contains(words), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_there_when_the_file_is_opened_again() {
    let (folder, store) = store();
    let revision = put(&store, "a", b"1");
    drop(store);
    let store = SqliteStore::open(&folder.path().join("cluster.db")).unwrap();
    assert_eq!(store.list("").unwrap().entries, [("a".to_owned(), Entry { value: b"1".to_vec(), version: revision })]);
    assert_eq!(put(&store, "a", b"2"), revision + 1);
}

#[test]
fn a_store_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, store) = store();
    put(&store, "a", b"secret");
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
    }
}

#[test]
fn deletions_are_forgotten_and_a_watch_says_so() {
    let (_folder, store) = store();
    let since = put(&store, "first", b"");
    for number in 0..12 {
        let names: Vec<String> = (0..100).map(|name| format!("vm-{number}-{name}")).collect();
        store
            .transact(&[], &names.iter().map(|key| Op::Put { key, value: b"", lease: None }).collect::<Vec<_>>())
            .unwrap();
        store.transact(&[], &names.iter().map(|key| Op::Delete { key }).collect::<Vec<_>>()).unwrap();
    }
    assert_eq!(store.watch("", since, Duration::ZERO).unwrap(), Changes::Compacted);
    let listing = store.list("").unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert!(matches!(store.watch("", listing.revision, Duration::ZERO).unwrap(), Changes::Seen { .. }));
    assert_eq!(store.watch("", listing.revision + 1, Duration::ZERO).unwrap(), Changes::Compacted, "of another store");
}

/// Names the store for the child.
const STORE: &str = "TWINVM_TEST_STORE";

/// How many entries a process finds in the store whose machine was booted so much earlier. Linux lets a process have another time since the boot than
/// others, but not another time of day: so what ends there ends by the former. None where nobody may do that.
fn entries_seen_after(passed_s: u64, store: &Path) -> Option<String> {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--time", "--fork", "--boottime", &passed_s.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_process_of_another_time", "--ignored", "--nocapture"])
        .env(STORE, store)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() && said.is_empty() {
        return None;
    }
    Some(said.lines().find_map(|line| line.strip_prefix("entries: ")).unwrap_or_else(|| panic!("{said}")).to_owned())
}

#[test]
fn leases_end_by_the_time_since_the_boot_and_not_by_the_calendar() {
    let (folder, store) = store();
    let lease = store.grant_lease(Duration::from_secs(3600)).unwrap();
    store.transact(&[], &[Op::Put { key: "alive", value: b"", lease: Some(lease) }]).unwrap();
    let path = folder.path().join("cluster.db");
    let Some(at_once) = entries_seen_after(0, &path) else {
        let _ = writeln!(std::io::stderr(), "SKIPPED leases_end_by_the_time_since_the_boot: no time namespaces here");
        return;
    };
    let [before, after] = [3000, 4000].map(|passed_s| entries_seen_after(passed_s, &path).unwrap());
    assert_eq!([at_once.as_str(), &before, &after], ["alive", "alive", ""]);
}

#[test]
#[ignore = "the part of a child process"]
fn as_a_process_of_another_time() {
    let store = SqliteStore::open(Path::new(&std::env::var_os(STORE).unwrap())).unwrap();
    let keys: Vec<String> = store.list("").unwrap().entries.into_iter().map(|(key, _)| key).collect();
    println!("entries: {}", keys.join(" "));
}

#[test]
fn a_lock_that_is_held_for_long_is_not_waited_for_for_ever() {
    let (folder, store) = store();
    put(&store, "a", b"1");
    let path = folder.path().join("cluster.db");
    let hasty = SqliteStore::open_with_timeout(&path, Duration::from_millis(200)).unwrap();
    let holder = rusqlite::Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let started = Instant::now();
    assert_unreachable(
        hasty.transact(&[], &[Op::Put { key: "a", value: b"2", lease: None }]),
        "kept it locked for 200 ms",
    );
    assert!(started.elapsed() < HUNG);
    // Several at a time do not wait for each other.
    let hasty = Arc::new(hasty);
    let started = Instant::now();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let hasty = hasty.clone();
            thread::spawn(move || hasty.transact(&[], &[Op::Delete { key: "a" }]))
        })
        .collect();
    for caller in callers {
        assert_unreachable(caller.join().unwrap(), "locked");
    }
    assert!(started.elapsed() < HUNG);
    assert_eq!(hasty.get("a").unwrap().unwrap().value, b"1", "readers wait for nobody");
    assert!(matches!(hasty.list("").unwrap().entries.len(), 1));
    holder.execute_batch("ROLLBACK").unwrap();
    put(&*hasty, "a", b"3");
}

#[test]
fn a_missing_file_is_not_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.db");
    assert_unreachable(SqliteStore::open(&path).map(drop), "there is no such file");
    assert!(!path.exists());
    assert_unreachable(SqliteStore::create(&folder.path().join("nowhere/cluster.db")).map(drop), "cannot be created");
    assert_unreachable(SqliteStore::open(folder.path()).map(drop), "check that the file is there");
}

#[test]
fn a_file_that_is_deleted_or_replaced_is_not_written_to() {
    let (folder, store) = store();
    let (path, aside) = (folder.path().join("cluster.db"), folder.path().join("aside"));
    put(&store, "a", b"1");
    fs::rename(&path, &aside).unwrap();
    assert_unreachable(store.get("a"), "deleted or moved");
    assert_unreachable(store.transact(&[], &[Op::Delete { key: "a" }]), "deleted or moved");
    fs::write(&path, "").unwrap();
    assert_unreachable(store.transact(&[], &[Op::Delete { key: "a" }]), "another file has taken its place");
    fs::rename(&aside, &path).unwrap();
    assert!(store.get("a").unwrap().is_some());
}

#[test]
fn files_of_others_are_refused_and_left_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage");
    fs::write(&garbage, vec![0x5a; 8192]).unwrap();
    for open in [SqliteStore::open, SqliteStore::create] {
        let Err(StoreError::Corrupt(message)) = open(&garbage).map(drop) else { panic!() };
        assert!(message.contains("is not a cluster store"), "{message}");
    }
    assert_eq!(fs::read(&garbage).unwrap(), vec![0x5a; 8192]);

    let foreign = folder.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE songs (name TEXT)").unwrap();
    assert!(matches!(SqliteStore::open(&foreign).map(drop), Err(StoreError::Corrupt(_))));
    let tables: i64 = rusqlite::Connection::open(&foreign)
        .unwrap()
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 1);
}

#[test]
fn a_newer_layout_is_refused() {
    let (folder, store) = store();
    drop(store);
    let path = folder.path().join("cluster.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 3).unwrap();
    let Err(error) = SqliteStore::open(&path).map(drop) else { panic!() };
    assert_eq!(error, StoreError::TooNew { path: path.display().to_string(), found: 3, known: 2 });
    assert!(error.to_string().contains("use a newer twinvm"));
}

#[test]
fn a_file_whose_creation_was_cut_short_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.db");
    fs::write(&path, "").unwrap();
    put(&SqliteStore::open(&path).unwrap(), "a", b"1");
}

#[test]
fn content_that_cannot_be_right_is_no_panic() {
    let (folder, store) = store();
    put(&store, "a", b"1");
    let path = folder.path().join("cluster.db");
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute("INSERT INTO entries VALUES ('huge', zeroblob(3000000), 1, NULL)", []).unwrap();
    assert!(matches!(store.get("huge"), Err(StoreError::Corrupt(_))));
    assert!(matches!(store.list(""), Err(StoreError::Corrupt(_))));
    assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
    raw.execute("UPDATE entries SET version = -1 WHERE key = 'a'", []).unwrap();
    assert!(matches!(store.get("a"), Err(StoreError::Corrupt(_))));
    raw.execute("DELETE FROM state", []).unwrap();
    assert!(matches!(store.list("a"), Err(StoreError::Corrupt(_))));
    raw.execute("DROP TABLE entries", []).unwrap();
    assert!(matches!(store.get("a"), Err(StoreError::Corrupt(_))));
}

/// Runs a test of this file by name in a mount namespace of its own, with a small file system at the path that it gets.
fn in_small_file_system(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=400k none \"$SMALL\" && exec \"$0\" --exact {test} --ignored");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("SMALL", folder.path())
        .output()
        .expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn small_file_system() -> PathBuf {
    Path::new(&std::env::var_os("SMALL").expect("run by another test")).join("cluster.db")
}

#[test]
fn a_full_disk_is_said_and_got_over() {
    in_small_file_system("fill_the_disk");
}

#[test]
#[ignore = "run by a_full_disk_is_said_and_got_over"]
fn fill_the_disk() {
    let path = small_file_system();
    let store = SqliteStore::create(&path).unwrap();
    let first = put(&store, "vms/a/claim", b"1");
    let ballast = path.with_file_name("ballast");
    // As far as it goes.
    let _ = fs::write(&ballast, vec![1; 400 << 10]);
    let value = vec![7; 64 << 10];
    assert_unreachable(store.transact(&[], &[Op::Put { key: "large", value: &value, lease: None }]), "free some space");
    assert_eq!(store.get("vms/a/claim").unwrap(), Some(Entry { value: b"1".to_vec(), version: first }));
    assert_eq!(store.get("large").unwrap(), None);
    fs::remove_file(&ballast).unwrap();
    put(&store, "large", &value);
    assert_eq!(SqliteStore::open(&path).unwrap().get("large").unwrap().unwrap().value, value);
}

#[test]
fn a_file_system_that_is_read_only_is_said() {
    in_small_file_system("write_to_what_is_read_only");
}

#[test]
#[ignore = "run by a_file_system_that_is_read_only_is_said"]
fn write_to_what_is_read_only() {
    let path = small_file_system();
    put(&SqliteStore::create(&path).unwrap(), "a", b"1");
    let folder = path.parent().unwrap();
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(folder).status().unwrap();
    assert!(remounted.success());
    assert_unreachable(SqliteStore::open(&path).map(drop), "writable");
}
