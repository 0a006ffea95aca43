//! Frames for the guest: the client that sends them, the network ends, and what `replication::driver` and `host::replica` do with them.

use protocol::{FED_FRAMES_MAX, InputPath, InputPosition, Kept, waiting_max};

use crate::coverage::Occurrence;
use crate::ends::{Frame, FrameId, Inbound, NetworkEnd};
use crate::history::{Deed, StateId};
use crate::mutation::Mutation;
use crate::network::{ConnectionId, Message, Side};
use crate::time::Nanoseconds;
use crate::violation::Violation;
use crate::world::World;

/// Bytes of a client's frame.
const FRAME_BYTES: usize = 60;
/// Of how many frames, the last ones that a primary took, it is looked whether they are lost.
const LOOKED_AT: usize = 16;

impl World {
    // The network.

    fn end_of(&self, host: usize) -> usize {
        if self.plan.is_bridged { host } else { 0 }
    }

    pub fn end(&mut self, host: usize) -> &mut NetworkEnd {
        let number = self.end_of(host);
        &mut self.ends[number]
    }

    /// Whether a replica on the host could connect to its network.
    pub fn reaches_network(&self, host: usize) -> bool {
        self.hosts[host].unready_until <= self.now && !self.ends[self.end_of(host)].is_dead
    }

    /// The client sends something to the guest, where the network has seen that last; to all, now and then, on a bridge.
    pub fn client_sends(&mut self, is_flooded: bool) {
        let frame = self.frames.len() as FrameId;
        let is_flooded = is_flooded && self.plan.is_bridged;
        self.frames.push(Frame { is_flooded, ..Frame::default() });
        for host in 0..self.ends.len() {
            if is_flooded || host == self.end_of(self.located) {
                let now = self.clock(host);
                self.ends[host].comes(frame, now);
            }
        }
    }

    /// The end of a host dies, with what it has for the guest.
    pub fn end_dies(&mut self, host: usize, duration: Nanoseconds) {
        let until = self.until(duration);
        self.end_is_gone(host);
        self.end(host).dead_until = until;
        self.coverage.note(Occurrence::EndDied);
    }

    /// The end of a host is no more, until its daemon starts another one.
    pub fn end_is_gone(&mut self, host: usize) {
        self.next_end += 1;
        let identity = self.next_end;
        let end = self.end(host);
        *end = NetworkEnd::new(identity);
        end.is_dead = true;
    }

    /// Whoever looks after the ends of a host starts them again, and has its replica connected.
    pub fn look_at_ends(&mut self, host: usize) {
        let (now, is_up) = (self.now, self.hosts[host].is_up);
        let end = self.end(host);
        if end.is_dead && end.dead_until <= now && is_up {
            end.is_dead = false;
        }
        let Some(id) = self.process_id(host) else { return };
        if self.is_paused(host) || self.end(host).client == Some(id) {
            return;
        }
        if let Some(state) = self.runner(host).map(|runner| runner.state) {
            let position = self.history.position(state);
            self.plug(host, Some(position));
        }
    }

    // The primary.

    /// A replica that runs the guest connects to its network end.
    pub fn plug(&mut self, host: usize, resume: Option<InputPosition>) {
        let now = self.clock(host);
        let age_max = waiting_max(self.plan.suspicion().max(), self.plan.is_bridged);
        let age_max = age_max.filter(|_| self.mutation != Some(Mutation::DeliverOldInput));
        let resume = resume.filter(|_| self.mutation != Some(Mutation::ForgetPosition));
        let generation = self.generation(host);
        let Some(id) = self.process_id(host) else { return };
        if self.end(host).attach(id, generation, resume, age_max, now) {
            if let Some(runner) = self.runner(host) {
                runner.has_end = true;
            }
            self.lets_out_late(host);
        }
    }

    /// The guest's frames reach whatever it sends through a network end that takes nothing.
    pub fn is_stalled(&mut self, host: usize) -> bool {
        let now = self.now;
        let has_end = self.runner(host).is_some_and(|runner| runner.has_end);
        !has_end || self.end(host).stalled_until > now
    }

    /// Takes the next frame for the guest, and has it passed on before the guest sees it.
    pub fn takes_frame(&mut self, host: usize) -> Option<Inbound> {
        let id = self.process_id(host)?;
        let end = self.end(host);
        if end.client != Some(id) {
            return None;
        }
        let inbound = end.hand_out()?;
        if inbound.waited_before > self.plan.suspicion().max() && self.plan.is_bridged {
            self.broken(Violation::StaleInput(self.name(host)));
        }
        let mutation = self.mutation;
        if let Some(session) = self.session(host) {
            let connection = session.connection;
            let is_mirrored = session.epochs.has_begun() && !session.epochs.follows_log();
            let path = session.epochs.input_path();
            if is_mirrored {
                self.network.note_taken(connection, inbound.frame);
            }
            match (path, mutation) {
                (InputPath::Unshared | InputPath::Logged, _) | (_, Some(Mutation::DoNotForward)) => {}
                (InputPath::Forwarded, Some(Mutation::ForwardWithCheckpoint)) => {
                    if let Some(session) = self.session(host) {
                        session.unforwarded.push((inbound.frame, inbound.position));
                    }
                }
                (InputPath::Forwarded, _) => self.forward(connection, inbound.frame, inbound.position),
            }
        }
        Some(inbound)
    }

    fn forward(&mut self, connection: ConnectionId, frame: FrameId, position: InputPosition) {
        self.send(connection, Side::Primary, Message::Inbound { frame, position });
    }

    /// [`Mutation::ForwardWithCheckpoint`].
    pub fn forward_late(&mut self, host: usize) {
        let Some(session) = self.session(host) else { return };
        let (connection, late) = (session.connection, std::mem::take(&mut session.unforwarded));
        late.into_iter().for_each(|(frame, position)| self.forward(connection, frame, position));
    }

    /// The guest takes a frame, by which it gets from one state to another.
    pub fn note_taken(&mut self, host: usize, before: StateId, state: StateId, frame: FrameId) {
        let (old, new) = (self.history.position(before), self.history.position(state));
        let known = &self.frames[frame as usize];
        let is_again = !known.is_flooded && known.takings().any(|earlier| self.history.leads_to(earlier, state));
        if is_again {
            self.broken(Violation::InputTwice(self.name(host)));
        }
        if !new.follows(old) {
            self.broken(Violation::InputLost(self.name(host)));
        }
        let taken = &mut self.frames[frame as usize];
        taken.taken_before.extend(taken.taken_in.replace(state));
    }

    // The secondary.

    /// A frame was passed on.
    pub fn inbound_arrives(&mut self, host: usize, frame: FrameId, position: InputPosition) {
        if let Some(follower) = self.follower(host) {
            follower.inbound.push(Kept { card: 0, position, len: FRAME_BYTES, frame });
        }
    }

    /// What is held by now has consumed what the guest had taken by `state`.
    pub fn inbound_is_consumed(&mut self, host: usize, state: StateId) {
        let position = self.history.position(state);
        if self.mutation != Some(Mutation::FeedConsumed)
            && let Some(follower) = self.follower(host)
        {
            follower.inbound.consumed(&[position]);
        }
    }

    /// A takeover: feeds the guest, which is in `state`, what the last commit has not consumed; the state after that.
    pub fn feeds(&mut self, host: usize, mut state: StateId, connection: ConnectionId) -> StateId {
        let mut positions = [self.history.position(state)];
        let Some(follower) = self.follower(host) else { return state };
        let mut inbound = std::mem::take(&mut follower.inbound);
        if self.mutation == Some(Mutation::FeedConsumed) {
            positions = [InputPosition::default()];
        }
        let kept = inbound.len();
        let following = inbound.take_following(&mut positions);
        // The newest are left to the network end once there is no room. It hands them out again, or a gap is found when the guest takes the next one.
        let left_out = if following.len() == FED_FRAMES_MAX { kept - FED_FRAMES_MAX } else { 0 };
        if self.mutation != Some(Mutation::DoNotFeed) {
            for Kept { frame, position, .. } in following {
                self.coverage.note(Occurrence::InputFed);
                let before = state;
                state = self.history.step(before, Deed { input: Some(position), ..Deed::default() });
                self.note_taken(host, before, state, frame);
            }
        }
        self.check_fed(host, state, connection, left_out);
        if self.mutation == Some(Mutation::DoNotFeed) {
            // The network end believes that it was.
            state = self.history.step(state, Deed { input: Some(positions[0]), ..Deed::default() });
        }
        state
    }

    /// Of what the primary had taken before it sent something that has arrived, nothing may be lost but the newest that there was no room for.
    fn check_fed(&mut self, host: usize, state: StateId, connection: ConnectionId, left_out: usize) {
        let is_lost = |frame: FrameId| {
            !self.frames[frame as usize].takings().any(|earlier| self.history.leads_to(earlier, state))
        };
        // Whatever was taken last is lost first.
        if self.network.taken_before_what_arrived(connection).rev().skip(left_out).take(LOOKED_AT).any(is_lost) {
            self.broken(Violation::InputLost(self.name(host)));
        }
    }
}
