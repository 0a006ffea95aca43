//! The first copy: bringing a secondary to where checkpoints can begin, while the guest runs.
//!
//! Disks come first. Their log is started before the first block is read, and blocks, logged writes and pages travel in one stream: whatever
//! is newer arrives later. Then memory, in rounds: all of it, then what was written meanwhile, until that is little or does not get
//! less; what is left is the first checkpoint. Nothing of this counts before that one is complete.

use std::iter;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Inbox, SyncSender as Postbox, sync_channel};
use std::thread;
use std::time::Duration;

use machine::vm::{Vm, VmError};
use memory::encoding::CapturedPages;
use memory::{GuestRam, Harvest, PAGE_BYTES};
use protocol::{Look, LossReason};
use spec::{FtMode, ReplicaId};

use super::message::{
    ACK, Ack, DISK_WRITES, DIVERGED, ExecutionFormat, FAILED, HELLO, Hello, SUMMARY, WELCOME, Welcome,
};
use super::outbox::Bulk;
use super::pause_queue::VmStopped;
use super::primary::Shared;
use super::progress::{Phase, Progress};
use super::sender::{SendError, SenderThread};
use super::session::Session;
use crate::channel::{self, ChannelError, Identity, Receiver, Sender};
use crate::disk::{DiskCopy, DiskProgress, DiskSummary, DiskSyncError, DiskWrite, SummaryReader};

/// How long connecting may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the secondary may take to say whether it can hold the VM.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Rounds of copying memory, beyond which the rest goes with the first checkpoint however much it is.
const ROUNDS_MAX: u32 = 12;
/// Pages that may be left for the first checkpoint: about a millisecond of copying.
const PAGES_LEFT: u64 = 1024;
/// Pages that a checkpoint's buffer has room for from the start.
const BUFFER_PAGES: usize = 2 * PAGES_LEFT as usize;
/// Pieces of the secondary's summary that wait to be read; while there are more, it is not heard.
const SUMMARY_PIECES_MAX: usize = 16;
/// Pages handed to the sender at once.
const PAGES_PER_PIECE: usize = 1024;

/// Longest reason of a peer that is repeated to others, in characters.
const REASON_CHARS_MAX: usize = 500;

/// Why a secondary does not come about.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    /// No connection.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The secondary cannot hold the VM.
    #[error("the secondary cannot hold the VM: {0}")]
    Refused(String),
    /// What it answers makes no sense.
    #[error("the secondary does not answer as one")]
    NotASecondary,
    /// Lockstep is wanted, and the two hosts would not compute the same.
    #[error(
        "the secondary could not execute what the primary does: its processor's x87 unit computes differently, or its version of \
         twinvm is another one; mode mirror does not need that"
    )]
    CannotExecute,
    /// There is one already.
    #[error("the VM has a secondary already, on {0}")]
    HasSecondary(ReplicaId),
    /// The VM has ended.
    #[error(transparent)]
    Stopped(#[from] VmStopped),
    /// Its disks cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskSyncError),
    /// The greeting does not serialize.
    #[error("the VM's description cannot be serialized: {0}")]
    Serialize(#[from] postcard::Error),
}

/// Why a first copy did not get to its end.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the connection to the secondary is closed")]
    Closed,
    #[error(transparent)]
    Disk(#[from] DiskSyncError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Stopped(#[from] VmStopped),
}

/// Connects, agrees on what the VM is, and starts the threads that do the rest.
pub(super) fn start(
    shared: &Arc<Shared>,
    secondary: ReplicaId,
    socket: TcpStream,
    identity: &Identity,
) -> Result<(), ProtectError> {
    let connection = channel::connect_over(socket, identity, secondary.as_str(), CONNECT_TIMEOUT)?;
    let (mut sender, mut receiver, closer) = connection.split();
    let hello = Hello {
        config: shared.config.clone(),
        primary: shared.options.host.clone(),
        generation: shared.generation(),
        engine: shared.engine,
        profile: shared.profile.clone(),
        disks: shared.disks.describe()?,
        suspicion_ms: u32::try_from(shared.options.suspicion.as_millis()).unwrap_or(u32::MAX),
        execution: ExecutionFormat::here(),
    };
    sender.send(HELLO, &[&postcard::to_stdvec(&hello)?])?;
    sender.flush()?;
    let executes = match receiver.recv(Some(WELCOME_TIMEOUT))? {
        Some(frame) if frame.kind == WELCOME => {
            match postcard::from_bytes(frame.payload).map_err(|_| ProtectError::NotASecondary)? {
                Welcome::Accepted { executes } => executes,
                Welcome::Refused(reason) => return Err(ProtectError::Refused(words(&reason))),
            }
        }
        _ => return Err(ProtectError::NotASecondary),
    };
    if !executes && shared.wanted() == FtMode::Lockstep {
        return Err(ProtectError::CannotExecute);
    }
    let suspicion = shared.options.suspicion;
    let session = shared.open_session(|id| Session::new(id, secondary, executes, suspicion, closer))?;
    let (pieces, summary_pieces) = sync_channel(SUMMARY_PIECES_MAX);
    spawn("mirror-send", shared, &session, move |shared, session| send(shared, session, sender));
    spawn("mirror-acks", shared, &session, move |shared, session| receive(shared, session, receiver, &pieces));
    spawn("first-copy", shared, &session, move |shared, session| {
        if let Err(error) = copy(shared, session, summary_pieces) {
            shared.end_session(session.id, LossReason::Protocol, &format!("first copy: {error}"));
        }
    });
    Ok(())
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    work: impl FnOnce(&Arc<Shared>, &Arc<Session>) + Send + 'static,
) {
    let (shared, own) = (shared.clone(), session.clone());
    let started = thread::Builder::new().name(name.to_owned()).spawn({
        let session = own.clone();
        let shared = shared.clone();
        move || work(&shared, &session)
    });
    if let Err(error) = started {
        shared.end_session(own.id, LossReason::Protocol, &format!("cannot start a thread: {error}"));
    }
}

fn send(shared: &Arc<Shared>, session: &Arc<Session>, sender: Sender) {
    let recycle = |pages| shared.recycle(pages);
    let cache_bytes_max = shared.options.cache_bytes_max;
    let sender = SenderThread::new(session, sender, &shared.ram, cache_bytes_max, &shared.meter, &recycle);
    match sender.run(|| shared.consider()) {
        Ok(()) => {}
        // Whoever receives has yet to hear the secondary's last words: why it failed, if it did.
        Err(SendError::Channel(error)) => {
            tracing::debug!(%error, "cannot send to the secondary");
            session.close();
        }
        Err(error) => shared.end_session(session.id, LossReason::Protocol, &error.to_string()),
    }
}

/// Takes what the secondary says.
fn receive(shared: &Arc<Shared>, session: &Arc<Session>, mut receiver: Receiver, summary: &Postbox<Vec<u8>>) {
    let (reason, why) = loop {
        let look = session.look();
        match receiver.recv(Some(look.wait())) {
            Ok(Some(frame)) => {
                session.heard();
                match frame.kind {
                    ACK => match postcard::from_bytes::<Ack>(frame.payload) {
                        Ok(ack) => {
                            shared.executed(session, ack.executed, ack.digests);
                            session.set_reaches_network(ack.reaches_network);
                            if let Some(epoch) = ack.epoch
                                && session.is_fresh(ack.heard)
                            {
                                shared.acknowledged(session, epoch);
                            }
                        }
                        Err(_) => break (LossReason::Protocol, "the secondary sent a malformed ack".to_owned()),
                    },
                    // The copier may have ended; then so does the session.
                    SUMMARY => _ = summary.send(frame.payload.to_vec()),
                    FAILED => {
                        break (LossReason::Failed, words(&String::from_utf8_lossy(frame.payload)));
                    }
                    DIVERGED => match <[u8; 8]>::try_from(frame.payload) {
                        Ok(instructions) => {
                            let instructions = u64::from_le_bytes(instructions);
                            shared.diverged(session, instructions);
                            break (
                                LossReason::Diverged,
                                format!("its state differs after {instructions} instructions"),
                            );
                        }
                        Err(_) => break (LossReason::Protocol, "the secondary sent a malformed message".to_owned()),
                    },
                    kind => break (LossReason::Protocol, format!("the secondary sent a message of kind {kind}")),
                }
            }
            Ok(None) if look == Look::Last => {
                break (LossReason::Silent, "the secondary is silent".to_owned());
            }
            Ok(None) => {}
            Err(ChannelError::Closed) => {
                break (LossReason::Closed, "the secondary has closed the connection".to_owned());
            }
            Err(error) => break (LossReason::Protocol, error.to_string()),
        }
    };
    shared.end_session(session.id, reason, &why);
}

fn copy(shared: &Arc<Shared>, session: &Arc<Session>, summary: Inbox<Vec<u8>>) -> Result<(), CopyError> {
    *session.progress() = Progress { phase: Phase::ComparingDisks, ..Progress::default() };
    let summary = read_summary(shared, summary)?;
    copy_disks(shared, session, summary)?;
    copy_memory(shared, session)
}

/// The pieces' end is dropped here: a secondary that goes on sending them is not heard.
fn read_summary(shared: &Shared, pieces: Inbox<Vec<u8>>) -> Result<DiskSummary, CopyError> {
    let mut reader = SummaryReader::new(&shared.disks)?;
    loop {
        // The other end is dropped with the session.
        let piece = pieces.recv().map_err(|_| CopyError::Closed)?;
        if let Some(summary) = reader.push(&piece)? {
            return Ok(summary);
        }
    }
}

fn copy_disks(shared: &Arc<Shared>, session: &Arc<Session>, summary: DiskSummary) -> Result<(), CopyError> {
    let mut copy = DiskCopy::new(&shared.disks, summary)?;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        let more = copy.next_piece(&mut piece)?;
        let DiskProgress { done_bytes, total_bytes } = copy.progress();
        *session.progress() = Progress { phase: Phase::CopyingDisks, done_bytes, total_bytes };
        if !piece.is_empty() {
            push(session, Bulk::Message { kind: DISK_WRITES, payload: std::mem::take(&mut piece) })?;
        }
        if !more {
            return Ok(());
        }
    }
}

fn push(session: &Session, bulk: Bulk) -> Result<(), CopyError> {
    if session.outbox.push_bulk(bulk) { Ok(()) } else { Err(CopyError::Closed) }
}

/// A round's harvest: which pages and disk writes came up since the last one.
fn harvest(vm: &mut Vm, shared: &Shared, session: &Session) -> Result<(Harvest, Vec<DiskWrite>), CopyError> {
    // A later session may be under way by now, which needs what there is to harvest.
    let writes = shared.take_log(session).ok_or(CopyError::Closed)?;
    Ok((vm.harvest()?, writes))
}

/// What a peer gives as a reason, as far as somebody would read it.
fn words(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

/// All pages that may hold anything but zeros.
fn allocated_pages(ram: &GuestRam) -> Vec<u64> {
    let ranges = iter::successors(ram.allocated_pages(0), |range| ram.allocated_pages(range.end));
    ranges.flatten().collect()
}

fn copy_memory(shared: &Arc<Shared>, session: &Arc<Session>) -> Result<(), CopyError> {
    let mut left_before = u64::MAX;
    for round in 0..ROUNDS_MAX {
        let (own, copied) = (shared.clone(), session.clone());
        let (harvest, writes) = shared.pause.run(&shared.control, move |vm| harvest(vm, &own, &copied))??;
        push(session, Bulk::Writes(writes))?;
        // A secondary's memory begins with zeros, like all that was never touched here.
        let pages: Vec<u64> = if round == 0 { allocated_pages(&shared.ram) } else { harvest.pages().collect() };
        // Whatever becomes of this session: the next one begins with all pages.
        harvest.acknowledge();
        let total_bytes = pages.len() as u64 * PAGE_BYTES;
        let phase = if round == 0 { Phase::CopyingMemory } else { Phase::CopyingChanges };
        *session.progress() = Progress { phase, done_bytes: 0, total_bytes };
        for piece in pages.chunks(PAGES_PER_PIECE) {
            push(session, Bulk::LivePages(piece.to_vec()))?;
        }
        if !session.outbox.wait_until_sent() {
            return Err(CopyError::Closed);
        }
        let left = shared.dirty_pages();
        if round > 0 && (left <= PAGES_LEFT || left >= left_before) {
            break;
        }
        left_before = left;
    }
    if !shared.engine.can_freeze_pages() {
        // Checkpoints will copy their pages in the pause: not into memory that is touched for the first time then.
        let mut buffer = CapturedPages::new();
        buffer.reserve(BUFFER_PAGES);
        shared.recycle(buffer);
    }
    let (own, joined) = (shared.clone(), session.clone());
    Ok(shared.pause.run(&shared.control, move |vm| own.begin_mirroring(vm, &joined))??)
}
