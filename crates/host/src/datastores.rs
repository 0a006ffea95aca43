//! Datastores as this host finds them: which it reaches, and what space is left there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use cluster::records::{DatastoreRecord, DatastoreSpace};
use machine::bus::lock;
use rustix::fs::statvfs;
use spec::{DatastoreName, VmId};
use storage::plain_file;

/// The file in a datastore's folder that says which datastore it is.
const MARK: &str = ".twinvm-datastore";
/// Longest such file, in bytes.
const MARK_BYTES_MAX: u64 = 64;
/// How old what was measured may be: a datastore that hangs is not reached.
const FRESH: Duration = Duration::from_secs(3);

/// The datastores that this host reaches. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Datastores(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// They have been looked for since the daemon was started.
    has_looked: bool,
    measured: BTreeMap<DatastoreName, Measured>,
}

/// What was measured of a datastore.
#[derive(Clone, Debug)]
struct Measured {
    record: DatastoreRecord,
    /// Since when it is measured again and again.
    since: Instant,
    /// It is being measured, which may take for ever where a server is gone.
    is_busy: bool,
    /// When it was reached last, and what was found then.
    reached: Option<(Instant, DatastoreSpace)>,
    /// Why it was not reached the last time.
    why_not: Option<String>,
}

impl Datastores {
    /// Measures those of the cluster that this host uses, each on a thread of its own, unless their folders are none that it may use, by `check`. Does not wait for
    /// them: their servers may be gone.
    pub fn measure(&self, records: Vec<DatastoreRecord>, check: impl Fn(&Path) -> Result<()> + Clone + Send + 'static) {
        let mut guard = lock(&self.0);
        let Known { has_looked, measured: known } = &mut *guard;
        *has_looked = true;
        known.retain(|name, measured| records.iter().any(|record| record.name == *name && *record == measured.record));
        for record in records {
            let measured = known.entry(record.name.clone()).or_insert_with(|| Measured {
                record: record.clone(),
                since: Instant::now(),
                is_busy: false,
                reached: None,
                why_not: None,
            });
            if std::mem::replace(&mut measured.is_busy, true) {
                continue;
            }
            let (own, check, name) = (self.clone(), check.clone(), record.name.clone());
            let measure = move || {
                let found = check(&record.path).and_then(|()| measure(&record));
                own.note(&record.name, found);
            };
            if let Err(error) = thread::Builder::new().name("datastore".to_owned()).spawn(measure) {
                measured.is_busy = false;
                tracing::warn!("datastore {name} is not looked at: {error}");
            }
        }
    }

    fn note(&self, name: &DatastoreName, found: Result<DatastoreSpace>) {
        if let Some(measured) = lock(&self.0).measured.get_mut(name) {
            measured.is_busy = false;
            match found {
                Ok(space) => (measured.reached, measured.why_not) = (Some((Instant::now(), space)), None),
                Err(error) => {
                    (measured.reached, measured.why_not) = (None, Some(terminal::error_text::error_text(&error)));
                }
            }
        }
    }

    /// Those that are reached, with their space.
    pub fn reached(&self) -> BTreeMap<DatastoreName, DatastoreSpace> {
        let known = lock(&self.0);
        let fresh = known.measured.iter().filter_map(|(name, measured)| Some((name.clone(), measured.fresh()?)));
        fresh.collect()
    }

    /// Whether it is known if a datastore is reached: it was measured, does not answer, or is none that this host uses.
    pub fn is_known(&self, name: &DatastoreName) -> bool {
        let known = lock(&self.0);
        known.has_looked && known.measured.get(name).is_none_or(Measured::is_known)
    }

    /// The folder on a datastore of a VM's files.
    ///
    /// # Errors
    /// The datastore is not reached, or is not one.
    pub fn folder(&self, name: &DatastoreName, vm: VmId) -> Result<PathBuf> {
        let known = lock(&self.0);
        let measured = known.measured.get(name).ok_or_else(|| {
            anyhow!("there is no datastore {name} that this host uses: see `twinvm datastore list`, and `datastores` in host.toml")
        })?;
        if measured.fresh().is_none() {
            let why = measured.why_not.clone().unwrap_or_else(|| "it does not answer".to_owned());
            bail!("this host does not reach datastore {name}: {why}");
        }
        Ok(measured.record.path.join(vm.to_string()))
    }
}

impl Measured {
    fn is_known(&self) -> bool {
        self.reached.is_some() || self.why_not.is_some() || self.since.elapsed() >= FRESH
    }

    fn fresh(&self) -> Option<DatastoreSpace> {
        self.reached.filter(|(at, _)| at.elapsed() < FRESH).map(|(_, space)| space)
    }
}

fn measure(record: &DatastoreRecord) -> Result<DatastoreSpace> {
    let mark = record.path.join(MARK);
    match read_mark(&mark)? {
        Some(id) if id == record.id => {}
        Some(_) => bail!("{} is that of another datastore", record.path.display()),
        None => bail!("{} is not the datastore: is it mounted?", record.path.display()),
    }
    let found = statvfs(&record.path).with_context(|| format!("cannot look at {}", record.path.display()))?;
    Ok(DatastoreSpace {
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

fn read_mark(mark: &Path) -> Result<Option<String>> {
    match plain_file::read(mark, MARK_BYTES_MAX) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", mark.display())),
    }
}

/// Makes a folder the datastore with this id, unless it is one already; the id that it has.
///
/// # Errors
/// The folder cannot be written to.
pub fn mark(folder: &Path, id: &str) -> Result<String> {
    let mark = folder.join(MARK);
    if let Some(found) = read_mark(&mark)? {
        return Ok(found);
    }
    let made = File::options().write(true).create_new(true).mode(0o644).open(&mark).and_then(|mut file| {
        file.write_all(id.as_bytes())?;
        file.sync_all()
    });
    match made {
        Ok(()) => Ok(id.to_owned()),
        // Another host was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(read_mark(&mark)?.unwrap_or_default()),
        Err(error) => {
            // What was begun is no mark.
            let _ = fs::remove_file(&mark);
            Err(error).with_context(|| format!("cannot write {}", mark.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::records::DatastoreKind;

    use super::*;

    fn record(folder: &Path, id: &str) -> DatastoreRecord {
        DatastoreRecord {
            name: "nfs".parse().unwrap(),
            kind: DatastoreKind::Shared,
            path: folder.to_owned(),
            id: id.to_owned(),
            unknown: Default::default(),
        }
    }

    #[test]
    fn a_folder_that_is_not_mounted_is_not_the_datastore() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(mark(folder.path(), "one").unwrap(), "one");
        assert_eq!(mark(folder.path(), "two").unwrap(), "one", "it is a datastore already");
        let record = |id: &str| record(folder.path(), id);
        assert!(measure(&record("one")).unwrap().total_bytes > 0);
        assert!(measure(&record("two")).unwrap_err().to_string().contains("another datastore"));
        fs::remove_file(folder.path().join(MARK)).unwrap();
        assert!(measure(&record("one")).unwrap_err().to_string().contains("is it mounted?"));
    }

    #[test]
    fn what_is_not_reached_keeps_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        mark(folder.path(), "one").unwrap();
        let record = record(folder.path(), "one");
        let id: VmId = "b0ffe3a1-0000-4000-8000-000000000001".parse().unwrap();
        let datastores = Datastores::default();
        let refused = |datastores: &Datastores| datastores.folder(&record.name, id).unwrap_err().to_string();
        assert!(refused(&datastores).contains("twinvm datastore list"));
        datastores.measure(vec![record.clone()], |_| Ok(()));
        let deadline = Instant::now() + Duration::from_secs(60);
        while datastores.reached().is_empty() {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(5));
        }
        assert!(datastores.folder(&record.name, id).unwrap().starts_with(folder.path()));
        datastores.note(&record.name, Err(anyhow!("stale file handle")));
        assert!(refused(&datastores).contains("stale file handle"));
        datastores.measure(Vec::new(), |_| Ok(()));
        assert!(refused(&datastores).contains("twinvm datastore list"));
    }

    /// A daemon that had just been started gave VMs up that were its to restart, as if their datastore were gone.
    #[test]
    fn a_datastore_is_known_when_it_was_measured_or_does_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        mark(folder.path(), "one").unwrap();
        let record = record(folder.path(), "one");
        let datastores = Datastores::default();
        assert!(!datastores.is_known(&record.name), "nobody has looked");
        datastores.measure(Vec::new(), |_| Ok(()));
        assert!(datastores.is_known(&record.name), "this host does not use it");
        let hangs = Arc::new(Mutex::new(()));
        let server = lock(&hangs);
        let gone = hangs.clone();
        datastores.measure(vec![record.clone()], move |_| {
            drop(lock(&gone));
            Ok(())
        });
        assert!(!datastores.is_known(&record.name), "it is being measured");
        if let Some(measured) = lock(&datastores.0).measured.get_mut(&record.name) {
            measured.since = Instant::now().checked_sub(FRESH).unwrap();
        }
        assert!(datastores.is_known(&record.name) && datastores.reached().is_empty(), "it does not answer");
        drop(server);
        let deadline = Instant::now() + Duration::from_secs(60);
        while datastores.reached().is_empty() {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(5));
        }
        assert!(datastores.is_known(&record.name));
    }
}
