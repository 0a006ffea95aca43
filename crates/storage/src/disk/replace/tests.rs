use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const OLD: &[u8] = b"old content";
const NEW_CONTENT: &[u8] = b"new content, which is longer";

fn file(folder: &Path, name: &str, mode: u32) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, OLD).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & MODE
}

/// New content for all of them, complete.
fn replacement(paths: &[&Path]) -> Replacement {
    let mut replacement = Replacement::new();
    for (number, path) in paths.iter().enumerate() {
        replacement.add(path, 0o640).unwrap();
        replacement.file(number).unwrap().write_all(NEW_CONTENT).unwrap();
    }
    replacement
}

/// What is left when the process is killed: its locks are gone, its files are not.
fn crash(mut replacement: Replacement, notes: Vec<(FileLock, PathBuf)>) {
    drop((std::mem::take(&mut replacement.parts), notes));
}

#[test]
fn a_file_keeps_its_mode_its_owner_and_the_link_that_leads_to_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    let target = file(&folder.path().join("elsewhere"), "disk", 0o600);
    // Somebody else's, if we may.
    let _ = std::os::unix::fs::chown(&target, Some(4711), Some(4712));
    let before = fs::metadata(&target).unwrap();
    let (relative, absolute) = (folder.path().join("relative"), folder.path().join("absolute"));
    symlink("elsewhere/disk", &relative).unwrap();
    symlink(&relative, &absolute).unwrap();
    replacement(&[&absolute]).commit().unwrap();
    let private = file(folder.path(), "private", 0o644);
    let mut secret = Replacement::new();
    secret.add_private(&private).unwrap();
    assert_eq!(secret.file(0).unwrap().metadata().unwrap().mode() & MODE, 0o600);
    secret.commit().unwrap();
    assert_eq!(mode(&private), 0o600);
    for link in [&relative, &absolute] {
        assert!(fs::symlink_metadata(link).unwrap().is_symlink());
        assert_eq!(fs::read(link).unwrap(), NEW_CONTENT);
    }
    let metadata = fs::symlink_metadata(&target).unwrap();
    assert!(metadata.is_file());
    assert_eq!((mode(&target), metadata.uid(), metadata.gid()), (0o600, before.uid(), before.gid()));
    assert_eq!(names(&folder.path().join("elsewhere")), ["disk"]);
}

#[test]
fn a_file_that_is_missing_is_made_also_where_a_link_leads() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, link) = (folder.path().join("plain"), folder.path().join("link"));
    symlink("behind", &link).unwrap();
    replacement(&[&plain, &link]).commit().unwrap();
    assert_eq!(names(folder.path()), ["behind", "link", "plain"]);
    for path in [plain, folder.path().join("behind")] {
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (NEW_CONTENT.to_vec(), 0o640));
    }
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_replacement_that_is_not_committed_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (file(folder.path(), "first", 0o600), file(folder.path(), "second", 0o600));
    drop(replacement(&[&first, &second]));
    // Nor does one that cannot be decided: a folder is in the way of the note.
    let undecided = replacement(&[&first, &second]);
    fs::create_dir(folder.path().join("second.restore")).unwrap();
    assert!(undecided.commit().is_err());
    fs::remove_dir(folder.path().join("second.restore")).unwrap();
    assert_eq!(names(folder.path()), ["first", "second"]);
    for path in [first, second] {
        assert_eq!(fs::read(&path).unwrap(), OLD);
    }
}

#[test]
fn what_cannot_be_replaced_at_once_or_is_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |path: &Path| Replacement::new().add(path, 0o600).unwrap_err().to_string();
    let disk = file(folder.path(), "disk", 0o600);
    fs::hard_link(&disk, folder.path().join("other")).unwrap();
    assert!(refusal(&disk).contains("2 names (hard links)"));
    fs::remove_file(folder.path().join("other")).unwrap();
    let held = open_locked(&disk, Access::Read, false).unwrap();
    assert!(refusal(&disk).contains("in use"));
    drop(held);
    assert!(refusal(folder.path()).contains("neither a regular file"));
    assert!(refusal(&folder.path().join("missing/disk")).contains("missing/disk"));
    symlink("loop", folder.path().join("loop")).unwrap();
    assert!(refusal(&folder.path().join("loop")).contains("loop"));
    // Two at once.
    let first = replacement(&[&disk]);
    assert!(refusal(&disk).contains("in use"));
    assert!(first.new_path(0).unwrap().exists() && first.new_path(1).is_none() && first.file(1).is_err());
    for device in ["/dev/loop0", "/dev/vda", "/dev/sda"].map(Path::new).into_iter().filter(|path| path.exists()) {
        let message = refusal(device);
        assert!(message.contains("block device") || message.contains("ermission"), "{message}");
    }
}

/// A crash after each step: notes written, then the first so many renamed.
#[test]
fn a_crash_leaves_all_old_or_all_new_and_nothing_else() {
    for renamed in [None, Some(0), Some(1), Some(2), Some(3)] {
        let folder: [TempDir; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let first = file(folder[0].path(), "first", 0o600);
        let second = file(folder[1].path(), "second", 0o600);
        let third = folder[0].path().join("third");
        symlink(file(folder[1].path(), "behind", 0o600), &third).unwrap();
        let interrupted = replacement(&[&first, &second, &third]);
        let mut notes = Vec::new();
        if let Some(renamed) = renamed {
            interrupted.write_notes(&mut notes).unwrap();
            for part in interrupted.parts.iter().take(renamed) {
                part.rename().unwrap();
            }
            // While it is under way, nobody else may use them.
            let refused = settle(&third).unwrap_err().to_string();
            assert!(refused.contains("in use by another disk of this process"), "{refused}");
        }
        crash(interrupted, notes);
        let expected = if renamed.is_some_and(|renamed| renamed > 0) { NEW_CONTENT } else { OLD };
        // In any order.
        for path in [&third, &first, &second] {
            settle(path).unwrap();
            assert_eq!(fs::read(path).unwrap(), expected, "{renamed:?}: {}", path.display());
        }
        assert_eq!(names(folder[0].path()), ["first", "third"], "{renamed:?}");
        assert_eq!(names(folder[1].path()), ["behind", "second"], "{renamed:?}");
    }
}

#[test]
fn a_note_that_was_cut_short_decides_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = file(folder.path(), "disk", 0o600);
    for text in ["", "{", "{\"first\":\"/x\"}"] {
        fs::write(folder.path().join("disk.restore"), text).unwrap();
        fs::write(folder.path().join("disk.restoring-1a-2-3"), NEW_CONTENT).unwrap();
        settle(&disk).unwrap();
        assert_eq!((fs::read(&disk).unwrap(), names(folder.path())), (OLD.to_vec(), vec!["disk".to_owned()]));
    }
}

#[test]
fn a_note_names_no_other_file_than_new_content_beside_the_old() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, first) = (file(folder.path(), "disk", 0o600), file(folder.path(), "first", 0o600));
    fs::create_dir(folder.path().join("disk.restoring-1a-2-3")).unwrap();
    let secret = file(folder.path(), "secret", 0o600);
    fs::write(&secret, NEW_CONTENT).unwrap();
    let metadata = fs::metadata(&first).unwrap();
    for new in ["secret", "../secret", "disk.restoring-1a-2-3/../secret", secret.to_str().unwrap()] {
        let note = Note { first: first.clone(), first_new: FileId::of(&metadata), new: new.into() };
        fs::write(folder.path().join("disk.restore"), serde_json::to_vec(&note).unwrap()).unwrap();
        settle(&disk).unwrap();
        assert_eq!((fs::read(&disk).unwrap(), fs::read(&secret).unwrap()), (OLD.to_vec(), NEW_CONTENT.to_vec()));
    }
}

/// After a reboot a device may have another number.
#[test]
fn a_decided_replacement_is_carried_through_where_the_device_has_another_number() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (file(folder.path(), "first", 0o600), file(folder.path(), "second", 0o600));
    let interrupted = replacement(&[&first, &second]);
    let mut notes = Vec::new();
    interrupted.write_notes(&mut notes).unwrap();
    interrupted.parts[0].rename().unwrap();
    crash(interrupted, notes);
    let note = folder.path().join("second.restore");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
    text["first_new"]["device"] = serde_json::json!(4711);
    fs::write(&note, text.to_string()).unwrap();
    settle(&second).unwrap();
    assert_eq!(
        (fs::read(&second).unwrap(), names(folder.path())),
        (NEW_CONTENT.to_vec(), vec!["first".to_owned(), "second".to_owned()])
    );
}

#[test]
fn files_of_others_with_names_like_those_of_a_restore_stay() {
    let folder = tempfile::tempdir().unwrap();
    let disk = file(folder.path(), "disk", 0o600);
    for name in ["disk.restoring-notes", "disk.restoring-1", "disk.restore", "disk2.restoring-1-2-3"] {
        file(folder.path(), name, 0o600);
    }
    let fifo = |name: &str| {
        let made = std::process::Command::new("mkfifo").arg(folder.path().join(name)).status().unwrap();
        assert!(made.success());
    };
    fifo("disk.restoring-1-2-3");
    symlink(&disk, folder.path().join("disk.restoring-1-2-4")).unwrap();
    let before = names(folder.path());
    settle(&disk).unwrap();
    assert_eq!(names(folder.path()), before);
    fs::remove_file(folder.path().join("disk.restore")).unwrap();
    fifo("disk.restore");
    settle(&disk).unwrap();
    assert_eq!((names(folder.path()), fs::read(&disk).unwrap()), (before, OLD.to_vec()));
}

/// Between its making and its lock, somebody who is about to use the disk may take a file for left behind.
#[test]
fn a_file_that_somebody_removes_before_it_is_locked_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    let made = File::create_new(&path).unwrap();
    let settling = File::options().read(true).write(true).open(&path).unwrap();
    let lock = FileLock::try_new(&settling).unwrap().unwrap();
    assert!(lock_own(&made).unwrap().is_none());
    fs::remove_file(&path).unwrap();
    drop(lock);
    assert!(lock_own(&made).unwrap().is_none());
    assert!(lock_own(&File::create_new(&path).unwrap()).unwrap().is_some());
}
