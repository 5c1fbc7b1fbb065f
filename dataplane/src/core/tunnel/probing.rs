//! The probes of a tunnel.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::debug;

use super::{SILENCE, Tunnel, emit};
use crate::core::health::{Demand, Rank, State};
use crate::core::io::{OVERHEAD, Sink};
use crate::core::noise::MAX_HANDSHAKE;
use crate::core::probe::{Kind, LEAST, Probe};
use crate::core::timers::Jitter;
use crate::core::{Shared, Time};
use crate::counters::DropCause;

/// A peer that was there before and does not answer handshakes for so long is gone.
const GONE: Duration = Duration::from_secs(3);
/// The same for one that was never heard: it may have been announced before it was reachable.
const NEVER_THERE: Duration = Duration::from_secs(15);
/// How often it is said that this node is about to go, should nobody answer.
const ANNOUNCEMENTS: u8 = 3;
/// Between these.
const AGAIN: Duration = Duration::from_millis(100);

impl Tunnel {
    /// How good a way the tunnel is now. What was dead is so until it answers, though sessions end and handshakes
    /// begin anew meanwhile.
    pub(crate) fn rank(&self, now: Time) -> Rank {
        let silent = self.unanswered.is_some_and(|since| now.since(since) >= SILENCE);
        let dead = self.health.state() == State::Dead || (self.lost && self.profile.wanted());
        match self.has_session() {
            true if silent => Rank::Dead,
            true => self.health.rank(),
            false if dead || self.is_failing(now) => Rank::Dead,
            false if self.is_dialable() => Rank::Unknown,
            false => Rank::Absent,
        }
    }

    /// Whether handshakes have been in vain for so long that nothing is to be hoped for.
    pub(super) fn is_failing(&self, now: Time) -> bool {
        let limit = if self.was_heard { GONE } else { NEVER_THERE };
        self.shaking.is_some_and(|since| now.since(since) >= limit)
    }

    /// Sends probes that are due and draws conclusions. Returns when to do so again.
    pub(super) fn tick_probes(
        &mut self,
        now: Time,
        demand: Demand,
        jitter: &mut Jitter,
        shared: &Shared,
        sink: &mut impl Sink,
    ) -> Option<Time> {
        if !self.has_session() {
            self.announcements = 0;
            return None;
        }
        if self.followed {
            return None;
        }
        if self.health.judge(now) {
            self.note_health(now);
        }
        // Whether a large probe is lost is seen by the small ones after it.
        let demand = if demand == Demand::Idle && self.path.is_waiting() { Demand::Standby } else { demand };
        let (draining, pace) = (shared.draining, shared.pace);
        let jitter = jitter.next() as u8;
        let probe = match self.health.probe(now, demand, jitter, draining, pace) {
            None if self.announcements > 0 && now >= self.announced + AGAIN => {
                Some(self.health.next_probe(now, jitter, draining, pace))
            }
            probe => probe,
        };
        if let Some(probe) = probe {
            self.announcements = self.announcements.saturating_sub(1);
            self.announced = now;
            if let Some(to) = self.endpoint {
                self.send_probe(now, &probe, to, shared, sink);
            }
            if self.health.doubtful(now)
                && let Some(to) = self.elsewhere(probe.sequence)
            {
                self.send_probe(now, &probe, to, shared, sink);
            }
        }
        let again = (self.announcements > 0).then(|| self.announced + AGAIN);
        let path = self.tick_path(now, demand, shared, sink);
        [self.health.due(demand), again, path].into_iter().flatten().min()
    }

    /// Whether the peer answers by sessions of another dataplane: then it is neither asked nor judged by its silence here.
    /// Doubt would have it looked for at other addresses, and a peer follows whoever has a session with it.
    pub(crate) fn follow(&mut self, followed: bool) {
        if self.followed && !followed {
            self.health.settle();
        }
        self.followed = followed;
        self.unanswered = None;
    }

    /// Tells the peer soon that this node is about to go, or is not.
    pub(crate) fn announce(&mut self) {
        self.announcements = ANNOUNCEMENTS;
        self.announced = Time::default();
    }

    /// An endpoint that the peer may have and does not answer from, in turn.
    fn elsewhere(&self, turn: u32) -> Option<SocketAddr> {
        let others = self.profile.candidates.iter().copied().filter(|&c| Some(c) != self.endpoint);
        let n = others.clone().count();
        if n == 0 { None } else { others.clone().nth(turn as usize % n) }
    }

    fn send_probe(
        &mut self,
        now: Time,
        probe: &Probe,
        to: SocketAddr,
        shared: &Shared,
        sink: &mut impl Sink,
    ) {
        let Some(noise) = &mut self.noise else { return };
        let out = sink.datagram((LEAST + OVERHEAD).max(MAX_HANDSHAKE));
        let Some(length) = noise.seal(&probe.write(), out) else { return };
        self.note_sent(now);
        // A plain peer owes no answer, nor does anybody to a reply.
        if probe.kind == Kind::Request && self.health.proven() {
            self.unanswered.get_or_insert(now);
        }
        let how = self.departure(to);
        if emit(length, how, &self.profile, shared, sink) {
            match probe.kind {
                Kind::Request => self.profile.counters.probes_sent.add(1),
                Kind::Reply => self.profile.counters.replies_sent.add(1),
            }
        }
    }

    /// Sends a packet if there is a session, and drops it else.
    pub(crate) fn send_at_once(
        &mut self,
        now: Time,
        packet: &[u8],
        shared: &mut Shared,
        sink: &mut impl Sink,
    ) {
        if self.has_session() {
            self.seal(now, packet, crate::offload::Ecn::of(packet), shared, sink);
        } else {
            self.profile.counters.drops.count(DropCause::UnknownSession);
        }
    }

    /// Takes a probe in that came through the tunnel. Returns when the tunnel is to be looked at.
    ///
    /// # Errors
    /// Why it was not answered.
    pub(crate) fn probed(
        &mut self,
        now: Time,
        probe: &Probe,
        shared: &Shared,
        sink: &mut impl Sink,
    ) -> Result<Option<Time>, DropCause> {
        let news = self.health.hear(probe.draining);
        let before = self.health.state();
        match probe.kind {
            Kind::Request => {
                if !self.health.may_reply(now) {
                    return Err(DropCause::ProbeLimit);
                }
                if let Some(to) = self.endpoint {
                    self.send_probe(now, &probe.reply(shared.draining, shared.pace), to, shared, sink);
                }
            }
            Kind::Reply if Self::is_of_path(probe) => {
                self.path_replied(now, probe);
                return Ok(Some(now));
            }
            Kind::Reply => {
                if self.health.reply(now, probe) {
                    self.announcements = 0;
                    self.profile.counters.probes_answered.add(1);
                    self.note_round_trip(now);
                }
            }
        }
        let changed = self.health.state() != before;
        if changed || news {
            self.note_health(now);
        }
        Ok(changed.then_some(now))
    }

    fn note_round_trip(&self, now: Time) {
        let (lost, of) = self.health.loss(now);
        self.profile.counters.set_probed(self.health.rtt(), (lost, of), self.health.last_reply());
    }

    /// Whether the peer was found to be gone, or back, since this was last asked.
    pub(crate) fn has_turned(&mut self) -> bool {
        std::mem::take(&mut self.turned)
    }

    /// Another lane to the peer found that it is gone, or back.
    pub(crate) fn hasten(&mut self, now: Time) {
        self.health.hasten(now);
    }

    /// Tells the world of a change.
    pub(crate) fn note_health(&mut self, now: Time) {
        let gone = self.health.state() >= State::Suspect;
        self.turned |= gone != self.gone;
        self.gone = gone;
        let health = &self.health;
        self.profile.counters.set_health(health);
        self.note_round_trip(now);
        debug!(
            peer = %self.profile.id, remote = self.profile.remote, state = ?health.state(),
            draining = health.is_draining(), forwarding = !health.is_not_forwarding(), "state of the tunnel"
        );
        self.note_state(now);
    }

    /// Takes over what probes through the peer showed.
    pub(crate) fn set_not_forwarding(&mut self, now: Time, not_forwarding: bool) {
        if self.health.is_not_forwarding() != not_forwarding {
            self.health.set_not_forwarding(now, not_forwarding);
            self.note_health(now);
        }
    }
}
