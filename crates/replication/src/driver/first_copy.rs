//! The first copy: bringing a secondary to where checkpoints can begin, while the guest runs.
//!
//! Disks come first. Their log is started before the first block is read, and blocks, logged writes and pages travel in one stream: whatever
//! is newer arrives later. Then memory, in rounds: all of it, then what was written meanwhile, until that is little or does not get
//! less; what is left is the first checkpoint. Disk writes have their turns within rounds, however long these are. Nothing of this counts
//! before the first checkpoint is complete. When a round is the last one, and what becomes of a guest that is too fast, is decided by
//! [`protocol::FirstCopy`].

mod copier;

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender as Postbox, sync_channel};
use std::thread;
use std::time::Duration;

use protocol::{Look, LossReason};
use spec::{FtMode, ReplicaId};

use super::message::{Ack, ExecutionFormat, Hello, Kind, Welcome};
use super::pause_queue::VmStopped;
use super::primary::{NotPaused, Shared};
use super::sender::{SendError, SenderThread};
use super::session::Session;
use crate::channel::{self, ChannelError, Identity, Receiver, Sender};
use crate::disk::DiskSyncError;

/// How long connecting may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the secondary may take to say whether it can hold the VM.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Pieces of the secondary's summary that wait to be read; while there are more, it is not heard.
const SUMMARY_PIECES_MAX: usize = 16;
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
    /// There is nothing sound to copy.
    #[error(transparent)]
    NotPaused(#[from] NotPaused),
    /// Its disks cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskSyncError),
    /// The greeting does not serialize.
    #[error("the VM's description cannot be serialized: {0}")]
    Serialize(#[from] postcard::Error),
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
        suspicion_ms: u32::try_from(shared.options.suspicion.max().as_millis()).unwrap_or(u32::MAX),
        suspicion_ms_min: u32::try_from(shared.options.suspicion.min().as_millis()).unwrap_or(u32::MAX),
        execution: ExecutionFormat::here(),
    };
    sender.send(Kind::Hello, &[&postcard::to_stdvec(&hello)?])?;
    sender.flush()?;
    let executes = match receiver.recv(Some(WELCOME_TIMEOUT))? {
        Some(frame) if Kind::of(&frame) == Ok(Kind::Welcome) => {
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
    spawn("first-copy", shared, &session, move |shared, session| copier::copy(shared, session, summary_pieces));
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
    let sender = SenderThread::new(session, sender, &shared.ram, &shared.options, &shared.meter, &recycle);
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
                match Kind::of(&frame) {
                    Ok(Kind::Ack) => match postcard::from_bytes::<Ack>(frame.payload) {
                        Ok(ack) => {
                            session.heard_clock(ack.sent_at);
                            shared.executed(session, ack.executed, ack.digests);
                            session.set_reaches_network(ack.reaches_network);
                            session.intake.heard(ack.heard);
                            shared.acknowledged(session, &ack.protocol());
                        }
                        Err(_) => break (LossReason::Protocol, "the secondary sent a malformed ack".to_owned()),
                    },
                    // The copier may have ended; then so does the session.
                    Ok(Kind::Summary) => _ = summary.send(frame.payload.to_vec()),
                    Ok(Kind::Failed) => {
                        break (LossReason::Failed, words(&String::from_utf8_lossy(frame.payload)));
                    }
                    Ok(Kind::Diverged) => match <[u8; 8]>::try_from(frame.payload) {
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
                    Ok(kind) => break (LossReason::Protocol, format!("the secondary sent a message of kind {kind:?}")),
                    Err(error) => break (LossReason::Protocol, format!("the secondary sent {error}")),
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

/// What a peer gives as a reason, as far as somebody would read it.
fn words(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}
