//! Lockstep on the primary: the log of what the guest does from a checkpoint on, in place of more checkpoints.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use machine::engine::soft::InputMode;
use machine::vm::{Vm, VmError};
use network::InputPosition;
use protocol::Epoch;
use spec::FtMode;

use super::Shared;
use crate::driver::clock;
use crate::driver::message::Kind;
use crate::driver::outbox::Bulk;
use crate::driver::session::{ActiveLog, Session};
use crate::lockstep::log::SegmentWriter;
use crate::lockstep::{
    ClosedSegment, EvidenceRing, LogProgress, LogRecorder, StateDigest, next_digest_at, write_evidence,
};

impl Shared {
    /// What a new checkpoint is to be followed by.
    pub fn wanted(&self) -> FtMode {
        self.core().mode
    }

    /// The secondary is behind by more than it may be, or does not take what there is to execute.
    fn is_behind(&self, session: &Session) -> bool {
        session.sending().is_behind(&self.bounds)
    }

    /// Begins the log of a VM that is paused at the checkpoint which ends `epoch`, with frames taken as far as `positions` say.
    pub(super) fn begin_log(
        self: &Arc<Self>,
        vm: &mut Vm,
        session: &Arc<Session>,
        epoch: Epoch,
        positions: &[InputPosition],
    ) -> Result<(), VmError> {
        let core = self.core();
        if core.session.as_ref().is_none_or(|current| current.id != session.id) {
            return Ok(());
        }
        // What follows is in the log, and done by the secondary itself.
        self.disks.stop_log();
        self.pass_inputs_on(session);
        drop(core);
        let instructions = vm.instructions().unwrap_or_default();
        let (shared, own) = (Arc::downgrade(self), Arc::downgrade(session));
        let on_closed = Box::new(move |segment| {
            if let (Some(shared), Some(session)) = (shared.upgrade(), own.upgrade()) {
                shared.segment_closed(&session, segment);
            }
        });
        let writer = SegmentWriter::new(epoch, instructions, positions);
        let recorder = Arc::new(LogRecorder::new(writer, instructions, on_closed));
        *session.log() = Some(ActiveLog {
            recorder: recorder.clone(),
            progress: LogProgress::new(instructions),
            evidence: EvidenceRing::default(),
        });
        vm.set_input_mode(InputMode::Record(recorder))
    }

    /// A segment ends: its output waits for it, and it is sent.
    fn segment_closed(&self, session: &Session, segment: ClosedSegment) {
        let ClosedSegment { reached, inbound_bytes, bytes, .. } = segment;
        let mut core = self.core();
        if core.session.as_ref().is_none_or(|current| current.id != session.id) {
            return;
        }
        core.epoch = core.epoch.next();
        let epoch = core.epoch;
        drop(core);
        self.gate.close_epoch(epoch);
        session.mirror().epochs.segment_closed(epoch, clock::now());
        if let Some(log) = session.log().as_mut() {
            log.progress.sent(reached, bytes.len(), inbound_bytes);
        }
        session.outbox.push_bulk(Bulk::Message { kind: Kind::Log, payload: bytes });
        if self.is_behind(session) {
            self.control.pause();
        }
    }

    /// Up to which instruction the guest runs before its next digest is taken; without end while there is no log.
    pub(super) fn digest_due_at(&self, vm: &Vm) -> Option<u64> {
        let session = self.core().session.clone()?;
        session.log().as_ref()?;
        vm.instructions().map(next_digest_at)
    }

    /// The guest is paused where a digest is due.
    pub(super) fn take_digest(&self, vm: &mut Vm) -> Result<(), VmError> {
        let Some(session) = self.core().session.clone() else { return Ok(()) };
        let Some(recorder) = session.log().as_ref().map(|log| log.recorder.clone()) else { return Ok(()) };
        let state = StateDigest::take(vm)?;
        recorder.digest(state.instructions, state.digest);
        if let Some(log) = session.log().as_mut() {
            log.evidence.keep(state);
        }
        Ok(())
    }

    /// The secondary says how far it has executed the log.
    pub fn executed(&self, session: &Session, instructions: u64, digests: u64) {
        if let Some(log) = session.log().as_mut() {
            log.progress.executed(instructions, digests);
            log.evidence.compared_before(instructions);
        }
    }

    /// The secondary says that its state after so many instructions is not the one that this replica had.
    pub fn diverged(&self, session: &Session, instructions: u64) {
        self.divergences.fetch_add(1, Ordering::Relaxed);
        tracing::error!(instructions, "divergence: the two replicas are not the same any more");
        // A copy: the guest must not wait for what is written.
        let state = session.log().as_ref().and_then(|log| log.evidence.find(instructions).cloned());
        let (Some(state), Some(folder)) = (state, &self.options.evidence_folder) else { return };
        match write_evidence(folder, "primary", &state, None) {
            Ok(path) => tracing::error!(path = %path.display(), "the state here is kept"),
            Err(error) => tracing::error!(%error, "the state here cannot be kept"),
        }
    }

    /// The guest, which is paused, is followed by checkpoints again. The first of them is the difference from the state in which the log ends,
    /// and which the secondary reaches by executing it.
    pub(super) fn end_log(self: &Arc<Self>, vm: &mut Vm, session: &Arc<Session>) -> Result<(), VmError> {
        self.close_segment(vm, session);
        let harvest = vm.harvest()?;
        let core = self.core();
        if core.session.as_ref().is_none_or(|current| current.id != session.id) {
            return Ok(());
        }
        harvest.acknowledge();
        self.disks.start_log();
        session.mirror().epochs.log_ended(clock::now());
        self.pass_inputs_on(session);
        drop(core);
        if let Some(log) = session.log().take() {
            log.recorder.stop();
        }
        session.outbox.push_bulk(Bulk::EndOfLog);
        Ok(())
    }

    /// Ends the segment under way, if there is one, with the guest paused.
    pub(super) fn close_segment(&self, vm: &Vm, session: &Session) {
        let recorder = session.log().as_ref().map(|log| log.recorder.clone());
        if let (Some(recorder), Some(instructions)) = (recorder, vm.instructions()) {
            recorder.close(instructions);
        }
    }
}
