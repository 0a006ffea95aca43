//! The thread that sends to the secondary: encodes what is long, and lets urgent messages and heartbeats through in between.

use std::time::{Duration, Instant};

use memory::encoding::{CapturedPages, Encoding, PageEncoder};
use memory::{GuestRam, PAGE_BYTES, PAGE_SHIFT};
use protocol::{Amount, TakenIn, heartbeat_interval};

use super::capture::{Capture, Pages};
use super::console::{ConsoleHistory, ConsolePlace};
use super::figures::Meter;
use super::message::{CheckpointEnd, Heartbeat, Kind, PIECE_BYTES_MAX};
use super::outbox::{Bulk, Next, Piece};
use super::session::Session;
use crate::channel::{ChannelError, Sender};
use crate::disk::{DiskWrite, encode_writes};

/// Page records are sent when so many bytes of them have come together: small enough that sending and encoding overlap.
const RECORDS_BYTES: usize = 48 << 10;

/// Why the sender ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The VM's state does not serialize.
    #[error("the VM's state cannot be serialized: {0}")]
    State(#[from] postcard::Error),
}

/// Bytes of the console that go with a heartbeat or a checkpoint: many times what a serial line carries, and little beside either.
const CONSOLE_BYTES_MAX: usize = 16 << 10;

pub(super) struct SenderThread<'a> {
    session: &'a Session,
    sender: Sender,
    ram: &'a GuestRam,
    encoder: PageEncoder,
    cache_bytes_max: u64,
    records: Vec<u8>,
    meter: &'a Meter,
    next_heartbeat: Instant,
    /// The console, and how much of it the secondary was sent.
    console: Option<&'a dyn ConsoleHistory>,
    console_sent: ConsolePlace,
    /// Gets the buffers of checkpoints that are sent.
    recycle: &'a (dyn Fn(CapturedPages) + Sync),
}

impl<'a> SenderThread<'a> {
    pub fn new(
        session: &'a Session,
        sender: Sender,
        ram: &'a GuestRam,
        cache_bytes_max: u64,
        meter: &'a Meter,
        console: Option<&'a dyn ConsoleHistory>,
        recycle: &'a (dyn Fn(CapturedPages) + Sync),
    ) -> Self {
        Self {
            session,
            sender,
            ram,
            encoder: PageEncoder::new(cache_bytes_max),
            cache_bytes_max,
            records: Vec::with_capacity(2 * RECORDS_BYTES),
            meter,
            next_heartbeat: Instant::now(),
            console,
            console_sent: ConsolePlace::default(),
            recycle,
        }
    }

    /// Sends what the outbox gives until it is closed; `tick` is called at least as often as heartbeats are sent, and whenever something
    /// long was sent.
    pub fn run(mut self, tick: impl Fn() -> Duration) -> Result<(), SendError> {
        loop {
            self.heartbeat_if_due()?;
            let until = self.next_heartbeat.min(Instant::now() + tick());
            match self.session.outbox.next(until) {
                Next::Closed => return Ok(()),
                Next::Idle => {}
                Next::Urgent(urgent) => {
                    for message in urgent {
                        self.sender.send(message.kind, &[&message.payload])?;
                    }
                    self.sender.flush()?;
                }
                Next::Bulk(bulk) => {
                    self.bulk(bulk)?;
                    self.sender.flush()?;
                }
            }
        }
    }

    fn interval(&self) -> Duration {
        heartbeat_interval(self.session.suspicion)
    }

    fn heartbeat_if_due(&mut self) -> Result<(), ChannelError> {
        if Instant::now() < self.next_heartbeat {
            return Ok(());
        }
        let number = self.session.number_heartbeat();
        self.heartbeat(number)
    }

    fn heartbeat(&mut self, number: u64) -> Result<(), ChannelError> {
        self.next_heartbeat = Instant::now() + self.interval();
        self.console()?;
        let heartbeat = Heartbeat { number, guest_clock: self.session.guest_clock() };
        // A structure of integers always serializes.
        self.sender.send(Kind::Heartbeat, &[&postcard::to_stdvec(&heartbeat).unwrap_or_default()])?;
        self.sender.flush()
    }

    /// Passes on what the guest has written to its console since this was last called.
    fn console(&mut self) -> Result<(), ChannelError> {
        let Some(piece) = self.console.map(|console| console.after(self.console_sent, CONSOLE_BYTES_MAX)) else {
            return Ok(());
        };
        self.console_sent = piece.end();
        // A structure of integers and bytes always serializes.
        match postcard::to_stdvec(&piece) {
            Ok(payload) if !piece.bytes.is_empty() => self.sender.send(Kind::Console, &[&payload]),
            _ => Ok(()),
        }
    }

    /// Lets through what must not wait.
    fn breathe(&mut self) -> Result<(), ChannelError> {
        self.heartbeat_if_due()?;
        let urgent = self.session.outbox.take_urgent().ok_or(ChannelError::Closed)?;
        if urgent.is_empty() {
            return Ok(());
        }
        for message in urgent {
            self.sender.send(message.kind, &[&message.payload])?;
        }
        self.sender.flush()
    }

    fn bulk(&mut self, bulk: Bulk) -> Result<(), SendError> {
        match bulk {
            Bulk::Message { kind, payload } => {
                self.console()?;
                Ok(self.sender.send(kind, &[&payload])?)
            }
            Bulk::Piece(piece) => Ok(self.piece(piece)?),
            Bulk::Checkpoint(capture) => self.checkpoint(*capture),
            Bulk::EndOfLog => {
                // The secondary has changed its memory since, by executing the log.
                self.encoder = PageEncoder::new(self.cache_bytes_max);
                Ok(self.sender.send(Kind::Mirror, &[])?)
            }
        }
    }

    fn writes(&mut self, writes: &[DiskWrite]) -> Result<(), ChannelError> {
        // Sent as they are made: compressing a long log takes longer than the secondary would stand the silence.
        let mut sent = Ok(());
        encode_writes(writes, |piece| {
            if sent.is_ok() {
                sent = self.sender.send(Kind::DiskWrites, &[piece]).and_then(|()| self.breathe());
            }
        });
        sent
    }

    /// A piece of the first copy, and the heartbeat that tells when the secondary has it.
    fn piece(&mut self, piece: Piece) -> Result<(), ChannelError> {
        let mut sent = TakenIn::default();
        match piece {
            Piece::Pages(pages) => {
                let wire_bytes = self.live_pages(&pages)?;
                sent.memory = Amount { bytes: pages.len() as u64 * PAGE_BYTES, wire_bytes };
            }
            Piece::Writes { messages, bytes } => {
                for message in &messages {
                    self.sender.send(Kind::DiskWrites, &[message])?;
                    self.breathe()?;
                }
                let wire_bytes = messages.iter().map(|message| message.len() as u64).sum();
                sent.disks = Amount { bytes, wire_bytes };
            }
        }
        let number = self.session.number_heartbeat();
        self.session.intake.sent(number, sent);
        self.heartbeat(number)
    }

    /// Returns the bytes sent.
    fn live_pages(&mut self, pages: &[u64]) -> Result<u64, ChannelError> {
        let mut sent = 0;
        let mut content = [0; PAGE_BYTES as usize];
        for &page in pages {
            if self.ram.read_offset(page << PAGE_SHIFT, &mut content) {
                self.encoder.encode(page, &content, &mut self.records);
            }
            sent += self.send_records(RECORDS_BYTES)?;
        }
        Ok(sent + self.send_records(1)?)
    }

    /// Sends the records gathered if they are at least so long; returns the bytes sent.
    fn send_records(&mut self, at_least: usize) -> Result<u64, ChannelError> {
        if self.records.len() < at_least {
            return Ok(0);
        }
        self.sender.send(Kind::Pages, &[&self.records])?;
        let sent = self.records.len() as u64;
        self.records.clear();
        self.breathe()?;
        Ok(sent)
    }

    fn checkpoint(&mut self, mut capture: Capture) -> Result<(), SendError> {
        let before = *self.encoder.counts();
        let (mut sent, mut pages) = (0, 0);
        self.sender.send(Kind::Begin, &[&capture.epoch.number().to_le_bytes()])?;
        capture.pages.try_each(|page, content| {
            let encoding = self.encoder.encode(page, content, &mut self.records);
            pages += u64::from(encoding != Encoding::Unchanged);
            sent += self.send_records(RECORDS_BYTES)?;
            Ok::<(), ChannelError>(())
        })?;
        sent += self.send_records(1)?;
        self.writes(&capture.writes)?;
        let state = postcard::to_stdvec(&capture.state)?;
        let output = postcard::to_stdvec(&capture.output)?;
        for (kind, bytes) in [(Kind::State, &state), (Kind::Output, &output)] {
            for piece in bytes.chunks(PIECE_BYTES_MAX) {
                self.sender.send(kind, &[piece])?;
            }
        }
        let end = CheckpointEnd {
            epoch: capture.epoch,
            heartbeat: self.session.number_heartbeat(),
            pages,
            state_bytes: state.len() as u64,
            output_bytes: output.len() as u64,
            writes: capture.writes.len() as u64,
            guest_clock: self.session.guest_clock(),
            inputs: capture.inputs,
            then: capture.then,
        };
        self.console()?;
        self.session.mirror().epochs.sent(end.epoch);
        self.sender.send(Kind::Checkpoint, &[&postcard::to_stdvec(&end)?])?;
        self.sender.flush()?;
        self.meter.sent(sent + state.len() as u64, &before, self.encoder.counts());
        if let Pages::Copied(pages) = capture.pages {
            (self.recycle)(pages);
        }
        Ok(())
    }
}
