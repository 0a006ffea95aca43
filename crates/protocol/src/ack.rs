//! [`Ack`]: what a secondary says of what it holds, and what its primary makes of that.

use std::time::Duration;

use super::{Committed, Epoch, Epochs, Heartbeats, MonotonicTime, NotSent, Silence};

/// What a secondary says: with each checkpoint, with the segments of the log for which output waits, and regularly as its own heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// It holds everything through this epoch; nothing before its first checkpoint.
    pub epoch: Option<Epoch>,
    /// The last heartbeat of its primary that it has heard; 0 before the first.
    pub heard: u64,
    /// For how long after that it does not take its primary for lost for its silence, whatever else it hears.
    pub patience: Duration,
}

/// What an ack says to the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckSays {
    /// Nothing: whoever sent it may have taken over by now. It commits nothing, and is no reason to give the secondary up.
    Stale,
    /// The secondary lives, and holds what it was known to hold.
    Nothing,
    /// It holds these epochs, which it was not known to hold; there is at least one.
    Commits(Vec<Committed>),
}

impl Ack {
    /// The secondary hears a heartbeat of its primary, after `silence` has [heard](Silence::heard) the message that it came with. Number and patience are
    /// said together: what is promised counts from the one that it was promised for.
    pub fn hears(&mut self, heartbeat: u64, silence: &Silence) {
        (self.heard, self.patience) = (heartbeat, silence.patience());
    }

    /// The secondary holds everything through `epoch`.
    pub fn holds(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
    }

    /// What this says to a primary that has sent these heartbeats and epochs on the connection by which it came.
    ///
    /// # Errors
    /// [`NotSent`]: whoever says so is no secondary.
    pub fn says(&self, heartbeats: &Heartbeats, epochs: &mut Epochs, now: MonotonicTime) -> Result<AckSays, NotSent> {
        let Some(epoch) = self.epoch else { return Ok(AckSays::Nothing) };
        if !heartbeats.is_fresh(self.heard, self.patience, now) {
            return Ok(AckSays::Stale);
        }
        let committed = epochs.acknowledged(epoch)?;
        Ok(if committed.is_empty() { AckSays::Nothing } else { AckSays::Commits(committed) })
    }
}

#[cfg(test)]
mod tests {
    use spec::FtMode;

    use super::super::Suspicion;
    use super::*;

    const MAX: Duration = Duration::from_millis(80);

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    #[test]
    fn a_fresh_ack_commits_what_was_sent_once() {
        let (mut heartbeats, mut epochs) = (Heartbeats::new(Suspicion::up_to(MAX)), Epochs::default());
        epochs.begin(at(0));
        epochs.captured(Epoch::new(1), FtMode::Mirror, at(1), at(1));
        epochs.sent(Epoch::new(1));
        let mut ack = Ack { heard: heartbeats.number_next(at(1)), patience: MAX, ..Ack::default() };
        assert_eq!(ack.says(&heartbeats, &mut epochs, at(2)), Ok(AckSays::Nothing));
        ack.holds(Epoch::new(1));
        // Stale: it commits nothing, and the same commits when it is fresh.
        assert_eq!(ack.says(&heartbeats, &mut epochs, at(500)), Ok(AckSays::Stale));
        let committed = vec![Committed { epoch: Epoch::new(1), ended_at: at(1) }];
        assert_eq!(ack.says(&heartbeats, &mut epochs, at(2)), Ok(AckSays::Commits(committed)));
        assert_eq!(ack.says(&heartbeats, &mut epochs, at(3)), Ok(AckSays::Nothing));
        ack.holds(Epoch::new(2));
        assert!(ack.says(&heartbeats, &mut epochs, at(4)).is_err(), "it was not sent");
    }

    #[test]
    fn what_is_promised_goes_with_the_heartbeat_that_it_is_promised_for() {
        let mut silence = Silence::new(Suspicion::up_to(MAX), at(0));
        let mut ack = Ack::default();
        silence.heard(at(10));
        ack.hears(1, &silence);
        assert_eq!((ack.heard, ack.patience), (1, MAX));
    }
}
