//! [`LogRecorder`]: writes the log of a running guest.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use machine::input::{Input, Recorder};
use protocol::{MonotonicTime, SegmentLoad, SegmentUnderWay};

use super::log::SegmentWriter;

/// A segment that has just ended.
#[derive(Debug)]
pub struct ClosedSegment {
    /// The instruction count at which it ends.
    pub reached: u64,
    /// Output waits for it.
    pub has_output: bool,
    /// Bytes of frames that it holds.
    pub inbound_bytes: u64,
    /// The segment, encoded.
    pub bytes: Vec<u8>,
}

/// Takes segments as they end, in the thread of the VM.
pub type OnClosed = Box<dyn Fn(ClosedSegment) + Send + Sync>;

/// Writes the log of a guest, until it is [stopped](LogRecorder::stop).
pub struct LogRecorder {
    on_closed: OnClosed,
    output_waits: AtomicBool,
    stopped: AtomicBool,
    state: Mutex<State>,
}

struct State {
    writer: SegmentWriter,
    /// From when on segments' ages are counted.
    begun: Instant,
    segment: SegmentUnderWay,
    reached: u64,
    inbound_bytes: u64,
}

impl State {
    fn now(&self) -> MonotonicTime {
        MonotonicTime::new(self.begun.elapsed())
    }
}

impl LogRecorder {
    /// A recorder of the log that begins at `instructions`, which gives what it has written to `on_closed`.
    pub fn new(writer: SegmentWriter, instructions: u64, on_closed: OnClosed) -> Self {
        let segment = SegmentUnderWay::new(MonotonicTime::default());
        let state = State { writer, begun: Instant::now(), segment, reached: instructions, inbound_bytes: 0 };
        Self {
            on_closed,
            output_waits: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest has sent something, which waits: the segment is to end soon. To be called in the thread of the vCPU.
    pub fn output_waits(&self) {
        self.output_waits.store(true, Ordering::Release);
    }

    /// Notes a digest of the guest, which is paused at `instructions`.
    pub fn digest(&self, instructions: u64, digest: u128) {
        self.state().writer.digest(instructions, digest);
    }

    /// Nothing is written any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Ends the segment under way, with the guest paused at `instructions`. It counts as one that output waits for.
    pub fn close(&self, instructions: u64) {
        if !self.stopped.load(Ordering::Acquire) {
            self.output_waits();
            self.close_locked(&mut self.state(), instructions);
        }
    }

    fn close_locked(&self, state: &mut State, instructions: u64) {
        let has_output = self.output_waits.swap(false, Ordering::AcqRel);
        let bytes = state.writer.finish(instructions, has_output);
        let inbound_bytes = std::mem::take(&mut state.inbound_bytes);
        (state.segment, state.reached) = (SegmentUnderWay::new(state.now()), instructions);
        (self.on_closed)(ClosedSegment { reached: instructions, has_output, inbound_bytes, bytes });
    }
}

impl Recorder for LogRecorder {
    fn entered(&self, instructions: u64, input: &Input) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state();
        state.writer.input(instructions, input);
        match input {
            Input::Frame { frame, .. } => {
                state.inbound_bytes += frame.len() as u64;
                state.segment.urgent_input();
            }
            Input::Link { .. } | Input::Console(_) | Input::PowerButton => state.segment.urgent_input(),
            Input::ClockStep(_) | Input::Entropy(_) | Input::DiskFailed { .. } => {}
        }
        // A segment has to fit into a message. What enters at the same count can be split, but for what a replay needs ahead of that count.
        if state.writer.is_full() && !input.is_ahead() {
            self.close_locked(&mut state, instructions);
        }
    }

    fn reached(&self, instructions: u64) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state();
        let load = SegmentLoad {
            is_new: instructions != state.reached || !state.writer.is_empty(),
            output_waits: self.output_waits.load(Ordering::Acquire),
            is_full: state.writer.is_full(),
        };
        if state.segment.is_due(load, state.now()) {
            self.close_locked(&mut state, instructions);
        }
    }

    fn is_waiting(&self) -> bool {
        self.output_waits.load(Ordering::Acquire) && !self.stopped.load(Ordering::Acquire)
    }
}

impl fmt::Debug for LogRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogRecorder").field("reached", &self.state().reached).finish_non_exhaustive()
    }
}
