//! What a host's copy of a VM's disks is, in words, and whether a VM may start from it.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use api::time::{Elapsed, unix_ms_now};
use protocol::{NotStartable, may_start};
use replication::disk::{CopyMark, CopyState};

/// What may be started from: as in `generation 7 of the VM, last written 12 s ago`; nothing where no mark says what the copy in `folder` is.
/// `is_forced`: it is not the copy of the host that ran the VM last.
///
/// # Errors
/// The copy is incomplete, or nobody can say whether it is: nothing may start from it.
pub fn startable(folder: &Path, is_forced: bool) -> Result<Option<String>> {
    let ago = |unix_ms: u64| format!("{} ago", Elapsed(unix_ms_now().saturating_sub(unix_ms)));
    let read = CopyMark::of(folder).read();
    let noted =
        read.with_context(|| format!("what the copy of the disks in {} is cannot be read", folder.display()))?;
    match (may_start(noted.map(CopyState::copy), is_forced), noted) {
        (Err(NotStartable::Incomplete), noted) => {
            let since = noted.map_or(0, |noted| noted.since_unix_ms());
            bail!(
                "the copy of the disks in {} is incomplete: a first copy to it began {} and did not come to its end, so it holds parts \
                 of different times; start the VM on a host with a whole copy, or protect it again from there",
                folder.display(),
                ago(since)
            )
        }
        (Err(NotStartable::Unknown), _) => bail!(
            "nothing says whether the copy of the disks in {} is whole: it is from an older version of twinvm; start the VM on the host \
             that ran it last",
            folder.display()
        ),
        (Ok(()), Some(noted)) => {
            let since = noted.since_unix_ms();
            let written = last_written_unix_ms(folder).unwrap_or(since).max(since);
            let generation = noted.generation();
            Ok(Some(format!("generation {generation} of the VM, last written {}", ago(written))))
        }
        (Ok(()), None) => Ok(None),
    }
}

/// When a disk in the folder was last written.
fn last_written_unix_ms(folder: &Path) -> Option<u64> {
    let disks = fs::read_dir(folder).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let is_disk = entry.file_name().to_str().is_some_and(|name| name.starts_with("disk"));
        let modified = entry.metadata().ok().filter(|_| is_disk)?.modified().ok()?;
        u64::try_from(modified.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
    });
    disks.max()
}

#[cfg(test)]
mod tests {
    use protocol::Generation;

    use super::*;

    #[test]
    fn a_copy_says_what_it_is_and_an_incomplete_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(startable(folder.path(), false).unwrap(), None);
        let error = startable(folder.path(), true).unwrap_err().to_string();
        assert!(error.contains("nothing says") && error.contains("the host that ran it last"), "{error}");
        let mark = CopyMark::of(folder.path());
        mark.write(CopyState::consistent(Generation::new(7))).unwrap();
        fs::write(folder.path().join("disk0.raw"), "x").unwrap();
        let text = startable(folder.path(), true).unwrap().unwrap();
        assert!(text.starts_with("generation 7 of the VM, last written ") && text.ends_with(" s ago"), "{text}");
        mark.write(CopyState::incomplete(Generation::new(8))).unwrap();
        let error = startable(folder.path(), true).unwrap_err().to_string();
        assert!(error.contains("incomplete") && error.contains("a host with a whole copy"), "{error}");
        fs::write(folder.path().join("copy.json"), "?").unwrap();
        assert!(startable(folder.path(), false).is_err());
    }
}
