//! [`History`]: what a guest has written last.

use std::collections::VecDeque;

use replication::driver::{ConsolePiece, ConsolePlace};

/// What is kept, in bytes.
pub const HISTORY_BYTES_MAX: usize = 64 << 10;

/// The last [`HISTORY_BYTES_MAX`] bytes that a guest has written to its console, and where they stand in all that it has.
pub struct History {
    end: ConsolePlace,
    kept: VecDeque<u8>,
}

impl History {
    /// Of a run in which nothing was written yet.
    pub fn new(run: u64) -> Self {
        Self { end: ConsolePlace { run, bytes: 0 }, kept: VecDeque::new() }
    }

    /// The place after the last byte.
    pub fn end(&self) -> ConsolePlace {
        self.end
    }

    /// Adds what was written next.
    pub fn add(&mut self, bytes: &[u8]) {
        self.end.bytes = self.end.bytes.saturating_add(bytes.len() as u64);
        self.kept.extend(bytes);
        let excess = self.kept.len().saturating_sub(HISTORY_BYTES_MAX);
        self.kept.drain(..excess);
    }

    /// What follows `place`, or the oldest that is kept if that is gone or of another run; at most `bytes_max` bytes.
    pub fn after(&self, place: ConsolePlace, bytes_max: usize) -> ConsolePiece {
        let begin = self.end.bytes.saturating_sub(self.kept.len() as u64);
        let from = if place.run == self.end.run { place.bytes.clamp(begin, self.end.bytes) } else { begin };
        let skipped = usize::try_from(from - begin).unwrap_or(usize::MAX);
        let bytes = self.kept.iter().skip(skipped).take(bytes_max).copied().collect();
        ConsolePiece { from: ConsolePlace { bytes: from, ..self.end }, bytes }
    }

    /// Adds what another replica has passed on. What does not follow on what is kept takes its place.
    pub fn go_on_with(&mut self, piece: &ConsolePiece) {
        if piece.from != self.end {
            self.kept.clear();
            self.end = piece.from;
        }
        self.add(&piece.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(run: u64, bytes: u64) -> ConsolePlace {
        ConsolePlace { run, bytes }
    }

    #[test]
    fn what_follows_a_place_is_found_and_of_what_is_gone_the_oldest_that_is_kept() {
        let mut history = History::new(7);
        assert_eq!(history.after(place(0, 0), 10), ConsolePiece { from: place(7, 0), bytes: Vec::new() });
        history.add(b"boot ");
        history.add(b"login: ");
        for (seen, from, bytes) in [
            (place(7, 0), 0, "boot login: "),
            (place(7, 5), 5, "login: "),
            (place(7, 12), 12, ""),
            // More than there is: the replica that had it is gone.
            (place(7, 900), 12, ""),
            // Of another run.
            (place(6, 5), 0, "boot login: "),
        ] {
            let piece = history.after(seen, usize::MAX);
            assert_eq!((piece.from, piece.bytes.as_slice()), (place(7, from), bytes.as_bytes()));
        }
        assert_eq!(history.after(place(7, 1), 3).bytes, b"oot");
        history.add(&[b'x'; HISTORY_BYTES_MAX]);
        assert_eq!(history.after(place(7, 3), 1).from, place(7, 12));
    }

    #[test]
    fn what_is_passed_on_is_the_same_there() {
        let (mut primary, mut secondary) = (History::new(7), History::new(9));
        secondary.add(b"of another run");
        let mut sent = ConsolePlace::default();
        let mut pass_on = |primary: &History, secondary: &mut History| {
            let piece = primary.after(sent, 100);
            sent = piece.end();
            secondary.go_on_with(&piece);
            piece.bytes.len()
        };
        primary.add(&[b'a'; 250]);
        while pass_on(&primary, &mut secondary) > 0 {}
        assert_eq!((secondary.end(), &secondary.kept), (primary.end(), &primary.kept));
        // More than is kept: the secondary has a gap, and knows where it stands.
        primary.add(&[b'b'; HISTORY_BYTES_MAX + 1]);
        while pass_on(&primary, &mut secondary) > 0 {}
        assert_eq!((secondary.end(), &secondary.kept), (primary.end(), &primary.kept));
    }

    #[test]
    fn numbers_of_a_peer_that_lies_do_no_harm() {
        let mut history = History::new(7);
        history.go_on_with(&ConsolePiece { from: place(7, u64::MAX), bytes: b"abc".to_vec() });
        history.add(b"def");
        assert_eq!(history.after(place(7, 0), usize::MAX).bytes, b"abcdef");
        assert_eq!(history.after(place(7, u64::MAX), 1).bytes.len(), 0);
    }
}
