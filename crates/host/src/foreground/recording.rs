//! The life of a VM, kept for `twinvm replay`: a snapshot of how it begins, and the log of what reaches the guest from outside.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use machine::bus::lock;
use machine::engine::soft::{InputMode, host_signature};
use machine::vm::Vm;
use network::InputPosition;
use protocol::Epoch;
use replication::lockstep::file::{LogEnd, LogFileHead, LogFileWriter, snapshot_digest};
use replication::lockstep::log::SegmentWriter;
use replication::lockstep::{ClosedSegment, LogRecorder, StateDigest, next_digest_at};
use spec::EngineKind;
use spec::VmSpec;
use terminal::error_text::error_text;

use super::snapshots::{self, Holds, SnapshotDisks};

/// The epoch after which a recording begins.
const EPOCH: Epoch = Epoch::NONE;

/// A VM's life from one power-on to the next, or from when it was restored.
pub struct Recording {
    log: PathBuf,
    snapshot: PathBuf,
    recorder: Arc<LogRecorder>,
    output: Arc<Mutex<Output>>,
    cards: usize,
}

/// Where the log goes.
enum Output {
    /// Nothing has happened.
    NotBegun,
    File(LogFileWriter<File>),
    /// It could not be written any more.
    Failed(io::Error),
    /// Nothing is written any more, and everybody knows why.
    Over,
}

impl Recording {
    /// Refuses an engine that cannot record the VM, if its spec asks for that.
    pub fn check(spec: &VmSpec, engine: EngineKind) -> Result<()> {
        match (&spec.record, engine) {
            (Some(folder), EngineKind::Kvm) => bail!(
                "record = {:?}: on the kvm engine nobody can tell at which instruction something reaches the guest; \
                 use --engine soft, or leave record out",
                folder.display().to_string()
            ),
            _ => Ok(()),
        }
    }

    /// A recording of the VM that is about to be made and has retired `instructions`, if its spec asks for one.
    pub fn new(spec: &VmSpec, instructions: u64) -> Result<Option<Self>> {
        let Some(folder) = &spec.record else { return Ok(None) };
        let (log, snapshot) =
            free_names(folder, &spec.name).with_context(|| format!("cannot use {}", folder.display()))?;
        let cards = spec.networks.len();
        let positions = vec![InputPosition::default(); cards];
        let output = Arc::new(Mutex::new(Output::NotBegun));
        let on_closed = {
            let output = output.clone();
            move |segment: ClosedSegment| {
                let mut output = lock(&output);
                if let Output::File(file) = &mut *output
                    && let Err(error) = file.segment(&segment.bytes)
                {
                    *output = Output::Failed(error);
                }
            }
        };
        let writer = SegmentWriter::new(EPOCH, instructions, &positions);
        let recorder = Arc::new(LogRecorder::new(writer, instructions, Box::new(on_closed)));
        Ok(Some(Self { log, snapshot, recorder, output, cards }))
    }

    /// The mode that the VM is to be made in.
    pub fn mode(&self) -> InputMode {
        InputMode::Record(self.recorder.clone())
    }

    /// The log's file.
    pub fn path(&self) -> &Path {
        &self.log
    }

    /// Keeps how the VM is, which has not run yet.
    pub fn begin(&self, vm: &mut Vm, spec: &VmSpec, disks: &SnapshotDisks) -> Result<()> {
        snapshots::write(vm, spec, disks, &self.snapshot, Holds::Memory)?;
        snapshots::note_snapshot(&self.snapshot);
        // A replay, too, counts pages as touched from here on.
        vm.harvest()?.acknowledge();
        let name = self.snapshot.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let head = LogFileHead {
            epoch: EPOCH,
            instructions: vm.instructions().unwrap_or_default(),
            host_signature: host_signature(),
            snapshot: name.to_owned(),
            snapshot_digest: snapshot_digest(&self.snapshot)?,
            positions: vec![InputPosition::default(); self.cards],
            bases: disks.identities()?,
        };
        let file = File::create_new(&self.log).and_then(|file| LogFileWriter::new(file, &head));
        *lock(&self.output) = Output::File(file.with_context(|| format!("cannot write {}", self.log.display()))?);
        Ok(())
    }

    /// Goes on without a log that could not be begun, for the reason that [`Self::failure`] then says.
    pub fn give_up(&self, error: &anyhow::Error) {
        *lock(&self.output) = Output::Failed(io::Error::other(error_text(error)));
    }

    /// Up to which instruction the VM is to run before its next digest.
    pub fn digest_due_at(&self, vm: &Vm) -> Option<u64> {
        matches!(*lock(&self.output), Output::File(_)).then(|| vm.instructions().map(next_digest_at)).flatten()
    }

    /// Takes the digest of a VM that stands where one is due.
    pub fn digest(&self, vm: &mut Vm) -> Result<()> {
        let state = StateDigest::take(vm)?;
        self.recorder.digest(state.instructions, state.digest);
        Ok(())
    }

    /// Why the log cannot be written any more, if that is so; said once.
    pub fn failure(&self) -> Option<io::Error> {
        let mut output = lock(&self.output);
        match std::mem::replace(&mut *output, Output::Over) {
            Output::Failed(error) => {
                self.recorder.stop();
                Some(error)
            }
            other => {
                *output = other;
                None
            }
        }
    }

    /// Ends the log with the VM as it is, which does not run any more. `None` if the log could not be written to its end.
    pub fn end(self, vm: &mut Vm) -> Result<Option<LogEnd>> {
        let instructions = vm.instructions().unwrap_or_default();
        self.recorder.close(instructions);
        self.recorder.stop();
        let end = LogEnd { instructions, digest: vm.digest()? };
        match std::mem::replace(&mut *lock(&self.output), Output::Over) {
            Output::File(file) => {
                let written = file.end(&end).and_then(|file| file.sync_all());
                written.with_context(|| format!("cannot write {}", self.log.display()))?;
                Ok(Some(end))
            }
            Output::Failed(error) => Err(error).with_context(|| format!("cannot write {}", self.log.display())),
            Output::NotBegun | Output::Over => Ok(None),
        }
    }
}

/// `NAME-N.log` and `NAME-N.snapshot` in a folder, which is created if need be, with the first number after all that are there.
fn free_names(folder: &Path, name: &str) -> io::Result<(PathBuf, PathBuf)> {
    fs::create_dir_all(folder)?;
    let mut last = 0;
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name();
        let number = file.to_str().and_then(|file| {
            let rest = file.strip_prefix(name)?.strip_prefix('-')?;
            rest.split('.').next()?.parse::<u64>().ok()
        });
        last = last.max(number.unwrap_or(0));
    }
    let number = last.checked_add(1).ok_or_else(|| io::Error::other("a file there has too large a number"))?;
    Ok((folder.join(format!("{name}-{number}.log")), folder.join(format!("{name}-{number}.snapshot"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was the end of a VM whose disks had been replaced.
    #[test]
    fn a_recording_that_cannot_begin_is_given_up_and_says_why_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = VmSpec::parse("name = \"vm\"\nmemory = \"64M\"\nkernel = \"kernel\"\n").unwrap();
        spec.record = Some(folder.path().to_owned());
        let recording = Recording::new(&spec, 0).unwrap().unwrap();
        assert!(recording.failure().is_none());
        recording.give_up(&anyhow::anyhow!("no space").context("cannot write"));
        assert_eq!(recording.failure().unwrap().to_string(), "cannot write: no space");
        assert!(recording.failure().is_none());
    }

    #[test]
    fn a_recording_comes_after_all_that_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let next = |name: &str| free_names(&folder, name).unwrap().0.file_name().unwrap().to_owned();
        assert_eq!(next("shop"), "shop-1.log");
        for file in
            ["shop-1.log", "shop-9.snapshot", "shop-10.snapshot.part", "shop-x.log", "shop-old-77.log", "other-50.log"]
        {
            File::create(folder.join(file)).unwrap();
        }
        assert_eq!(next("shop"), "shop-11.log");
        assert_eq!(next("shop-old"), "shop-old-78.log");
    }
}
