//! The thread that sends to the secondary: encodes what is long, and lets urgent messages and heartbeats through in between.

use std::mem;
use std::time::{Duration, Instant};

use memory::encoding::{CapturedPages, EncodedPages, Encoding, PageContent, ParallelEncoder};
use memory::{GuestRam, PAGE_BYTES, PAGE_SHIFT};
use protocol::{Amount, TakenIn, heartbeat_interval};

use super::capture::{Capture, Pages};
use super::console::ConsolePlace;
use super::figures::Meter;
use super::message::{CheckpointEnd, Heartbeat, Kind, PIECE_BYTES_MAX};
use super::options::MirrorOptions;
use super::outbox::{Bulk, Next, Piece};
use super::session::Session;
use crate::channel::{ChannelError, Sender};
use crate::disk::{DiskWrite, encode_writes};

/// Page records are sent when so many bytes of them have come together: small enough that sending and encoding overlap.
const RECORDS_BYTES: usize = 48 << 10;
/// Where there are many pages, so many are encoded at once by several threads. Nothing is sent meanwhile, for some milliseconds at the most,
/// heartbeats included.
const PAGES_AT_ONCE: usize = 2048;

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
    options: &'a MirrorOptions,
    encoder: ParallelEncoder,
    records: Vec<u8>,
    /// Records of many pages.
    encoded: EncodedPages,
    meter: &'a Meter,
    next_heartbeat: Instant,
    /// How much of the console the secondary was sent.
    console_sent: ConsolePlace,
    /// Gets the buffers of checkpoints that are sent.
    recycle: &'a (dyn Fn(CapturedPages) + Sync),
}

impl<'a> SenderThread<'a> {
    pub fn new(
        session: &'a Session,
        sender: Sender,
        ram: &'a GuestRam,
        options: &'a MirrorOptions,
        meter: &'a Meter,
        recycle: &'a (dyn Fn(CapturedPages) + Sync),
    ) -> Self {
        Self {
            session,
            sender,
            ram,
            encoder: encoder(options),
            options,
            records: Vec::with_capacity(2 * RECORDS_BYTES),
            encoded: EncodedPages::default(),
            meter,
            next_heartbeat: Instant::now(),
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
        let console = self.options.console.as_deref();
        let Some(piece) = console.map(|console| console.after(self.console_sent, CONSOLE_BYTES_MAX)) else {
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
                self.encoder = encoder(self.options);
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

    /// Encodes pages by several threads and sends the records; returns the bytes sent, and how many records there were.
    fn many_pages(&mut self, pages: &[(u64, &PageContent)]) -> Result<(u64, u64), ChannelError> {
        let mut encoded = mem::take(&mut self.encoded);
        self.encoder.encode_all(pages, RECORDS_BYTES, &mut encoded);
        let mut sent = 0;
        for piece in encoded.pieces() {
            self.sender.send(Kind::Pages, &[piece])?;
            sent += piece.len() as u64;
            self.breathe()?;
        }
        let changed = encoded.changed();
        self.encoded = encoded;
        Ok((sent, changed))
    }

    /// Sends the pages of a checkpoint; returns the bytes sent, and how many records there were.
    fn checkpoint_pages(&mut self, pages: &mut Pages) -> Result<(u64, u64), ChannelError> {
        let (mut sent, mut changed) = (0, 0);
        if let Pages::Copied(copies) = pages
            && self.encoder.is_faster(copies.len())
        {
            let copies: Vec<_> = copies.iter().collect();
            for pages in copies.chunks(PAGES_AT_ONCE) {
                let (bytes, records) = self.many_pages(pages)?;
                sent += bytes;
                changed += records;
            }
            return Ok((sent, changed));
        }
        pages.try_each(|page, content| {
            let encoding = self.encoder.encode(page, content, &mut self.records);
            changed += u64::from(encoding != Encoding::Unchanged);
            sent += self.send_records(RECORDS_BYTES)?;
            Ok::<(), ChannelError>(())
        })?;
        Ok((sent + self.send_records(1)?, changed))
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
        let before = self.encoder.counts();
        self.sender.send(Kind::Begin, &[&capture.epoch.number().to_le_bytes()])?;
        let (sent, pages) = self.checkpoint_pages(&mut capture.pages)?;
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
        self.meter.sent(sent + state.len() as u64, &before, &self.encoder.counts());
        if let Pages::Copied(pages) = capture.pages {
            (self.recycle)(pages);
        }
        Ok(())
    }
}

fn encoder(options: &MirrorOptions) -> ParallelEncoder {
    ParallelEncoder::new(options.cache_bytes_max, options.encoding_threads)
}
