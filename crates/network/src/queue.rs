//! Frames on their way to the VM process.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::InputPosition;

use crate::checksum::complete;
use crate::coalesce;
use crate::offload::{Checksum, FrameOffload, ReceiveOffloads};
use crate::retained::Retained;

/// Frames held at most.
const FRAMES_MAX: usize = 4096;
/// Frame bytes held at most: a few dozen TCP connections with full windows.
const BYTES_MAX: usize = 4 << 20;

/// A bounded queue of frames towards the guest, which outlives the VM process. When it is full new frames are dropped:
/// for TCP, the earlier ones are worth more. Frames that were handed out are kept for the next VM process.
#[derive(Debug, Default)]
pub(crate) struct FrameQueue {
    frames: VecDeque<Queued>,
    bytes: usize,
    accepted: ReceiveOffloads,
    dropped: u64,
    retained: Retained,
}

#[derive(Debug)]
struct Queued {
    frame: Vec<u8>,
    offload: FrameOffload,
    since: Instant,
}

impl FrameQueue {
    /// Whether so much is free that the source should go on.
    pub fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX / 2 && self.frames.len() < FRAMES_MAX / 2
    }

    /// Frames dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What the receiver takes from now on.
    pub fn accept(&mut self, offloads: ReceiveOffloads) {
        self.accepted = offloads;
    }

    /// Appends a frame. Leaves open what `offload` says.
    pub fn push(&mut self, frame: Vec<u8>, offload: FrameOffload) {
        if self.frames.len() >= FRAMES_MAX || self.bytes + frame.len() > BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.bytes += frame.len();
        self.frames.push_back(Queued { frame, offload, since: Instant::now() });
    }

    /// Drops the oldest frames until the source can go on, for a source that would keep older ones than are here.
    pub fn make_room(&mut self) {
        while !self.has_room() {
            self.drop_oldest();
        }
    }

    /// Drops the frames that have waited for longer than `max_age`.
    pub fn drop_older_than(&mut self, max_age: Duration) {
        let now = Instant::now();
        while self.frames.front().is_some_and(|queued| now.saturating_duration_since(queued.since) > max_age) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.frames.pop_front() {
            self.bytes -= oldest.frame.len();
            self.dropped += 1;
        }
    }

    /// Appends a frame whose source vouches for its checksums; TCP segments are joined where the receiver takes that.
    pub fn push_verified(&mut self, frame: Vec<u8>) {
        if self.accepted.tso4
            && self.bytes + frame.len() <= BYTES_MAX
            && let Some(Queued { frame: last, offload, .. }) = self.frames.back_mut()
        {
            let before = last.len();
            if coalesce::append(last, offload, &frame) {
                self.bytes += last.len() - before;
                return;
            }
        }
        self.push(frame, FrameOffload { checksum: Checksum::Verified, ..FrameOffload::default() });
    }

    /// What was handed out, and what of it is to be handed out again.
    pub fn retained(&self) -> &Retained {
        &self.retained
    }

    /// A new receiver has come to the end of this identity, and goes on at `resume`.
    pub fn attach(&mut self, end: u64, resume: Option<InputPosition>) {
        self.retained.attach(end, resume);
    }

    /// Offers the frames with their numbers in turn to `send` until it returns false, which leaves that frame in the
    /// queue. What the receiver does not take is done here, or the frame is dropped.
    ///
    /// # Errors
    /// Those of `send`; the frame is kept.
    pub fn deliver<E>(&mut self, mut send: impl FnMut(u64, &[u8], FrameOffload) -> Result<bool, E>) -> Result<(), E> {
        while let Some((number, frame, offload)) = self.retained.front_again() {
            let fit = adapt(frame, offload, self.accepted);
            if !fit {
                self.dropped += 1;
            } else if !send(number, frame, *offload)? {
                return Ok(());
            }
            self.retained.pass_again(fit);
        }
        while let Some(Queued { mut frame, mut offload, since }) = self.frames.pop_front() {
            self.bytes -= frame.len();
            if !adapt(&mut frame, &mut offload, self.accepted) {
                self.dropped += 1;
                continue;
            }
            let sent = send(self.retained.next_number(), &frame, offload);
            if matches!(sent, Ok(true)) {
                self.retained.keep(frame, offload);
                continue;
            }
            self.bytes += frame.len();
            self.frames.push_front(Queued { frame, offload, since });
            return sent.map(|_| ());
        }
        Ok(())
    }
}

/// Makes a frame fit for a receiver; false if it cannot be made so. Long frames are not cut: only those from before
/// the receiver changed its mind are too long for it.
fn adapt(frame: &mut [u8], offload: &mut FrameOffload, accepted: ReceiveOffloads) -> bool {
    if !accepted.checksum {
        if complete(frame, *offload).is_err() {
            return false;
        }
        offload.checksum = Checksum::Complete;
    }
    accepted.allow(*offload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{Gso, Segmentation};

    const ALL: ReceiveOffloads = ReceiveOffloads { checksum: true, tso4: true, tso6: true };

    fn drain(queue: &mut FrameQueue) -> Vec<(Vec<u8>, FrameOffload)> {
        let mut out = Vec::new();
        let send = |_, frame: &[u8], offload| {
            out.push((frame.to_vec(), offload));
            Ok::<_, ()>(true)
        };
        queue.deliver(send).unwrap();
        out
    }

    #[test]
    fn a_guest_that_is_gone_costs_bounded_memory() {
        let mut queue = FrameQueue::default();
        queue.accept(ALL);
        for _ in 0..20_000 {
            queue.push_verified(vec![0; 1514]);
            queue.push(vec![0; 1514], FrameOffload::default());
        }
        assert!(queue.bytes <= BYTES_MAX && queue.frames.len() <= FRAMES_MAX && !queue.has_room());
        let kept = drain(&mut queue).len() as u64;
        assert_eq!(kept + queue.dropped(), 40_000);
        assert_eq!((queue.bytes, queue.has_room()), (0, true));
    }

    #[test]
    fn frames_that_have_waited_for_too_long_are_dropped() {
        let mut queue = FrameQueue::default();
        (0..3).for_each(|number| queue.push(vec![number; 60], FrameOffload::default()));
        queue.drop_older_than(Duration::from_secs(60));
        assert_eq!(queue.dropped(), 0);
        for queued in queue.frames.iter_mut().take(2) {
            queued.since = queued.since.checked_sub(Duration::from_secs(61)).unwrap();
        }
        queue.drop_older_than(Duration::from_secs(60));
        assert_eq!(queue.dropped(), 2);
        assert_eq!(drain(&mut queue).iter().map(|(frame, _)| frame[0]).collect::<Vec<_>>(), [2]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn room_is_made_by_dropping_what_is_oldest() {
        let mut queue = FrameQueue::default();
        (0..3000u32).for_each(|number| queue.push(number.to_le_bytes().to_vec(), FrameOffload::default()));
        queue.make_room();
        assert!(queue.has_room());
        let last = drain(&mut queue).pop().unwrap().0;
        assert_eq!(last, 2999u32.to_le_bytes());
    }

    #[test]
    fn a_frame_that_finds_no_room_is_offered_again_first() {
        let mut queue = FrameQueue::default();
        queue.push_verified(vec![1; 60]);
        queue.push_verified(vec![2; 60]);
        queue.deliver(|_, _, _| Ok::<_, ()>(false)).unwrap();
        assert_eq!(queue.deliver(|_, _, _| Err("gone")), Err("gone"));
        let order: Vec<u8> = drain(&mut queue).iter().map(|(frame, _)| frame[0]).collect();
        assert_eq!(order, [1, 2]);
    }

    #[test]
    fn a_frame_handed_out_again_is_made_fit_for_its_new_receiver() {
        let partial = Checksum::Partial { start: 14, offset: 0 };
        let long = FrameOffload { checksum: partial, gso: Gso::TcpV4(Segmentation { mss: 10, header_len: 54 }) };
        let mut queue = FrameQueue::default();
        queue.accept(ALL);
        queue.push(vec![0; 60], FrameOffload { checksum: partial, gso: Gso::None });
        queue.push(vec![0; 60], long);
        queue.push_verified(vec![7; 60]);
        assert_eq!(drain(&mut queue).len(), 3);
        queue.push_verified(vec![8; 60]);

        // What waits is never joined to what was handed out, and follows it.
        queue.accept(ReceiveOffloads::default());
        queue.attach(7, Some(InputPosition { end: 7, frames: 0 }));
        let mut numbers = Vec::new();
        let send = |number, frame: &[u8], offload| {
            assert_eq!(offload, FrameOffload::default());
            numbers.push((number, frame[0], frame.len()));
            Ok::<_, ()>(true)
        };
        queue.deliver(send).unwrap();
        assert_eq!(numbers, [(1, 0, 60), (3, 7, 60), (4, 8, 60)]);
        assert_eq!((queue.dropped(), queue.retained().resent()), (1, 2));
    }

    #[test]
    fn what_the_receiver_does_not_take_is_done_for_it_or_dropped() {
        let partial = Checksum::Partial { start: 14, offset: 0 };
        let long = FrameOffload { checksum: partial, gso: Gso::TcpV4(Segmentation { mss: 10, header_len: 54 }) };
        let fill = |queue: &mut FrameQueue| {
            queue.push(vec![0; 60], FrameOffload { checksum: partial, gso: Gso::None });
            queue.push(vec![0; 60], long);
            queue.push_verified(vec![0; 60]);
        };
        let mut queue = FrameQueue::default();
        fill(&mut queue);
        let plain = drain(&mut queue);
        assert_eq!(plain.len(), 2);
        assert!(plain.iter().all(|(_, offload)| *offload == FrameOffload::default()));
        assert_eq!(plain[0].0[14..16], [0xff, 0xff]);
        queue.accept(ALL);
        fill(&mut queue);
        assert_eq!(drain(&mut queue).iter().filter(|(_, offload)| *offload == long).count(), 1);
    }
}
