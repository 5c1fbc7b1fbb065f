//! One tunnel: a lane of this node and a lane of a peer.
//!
//! ```text
//!            packet to send, dial,                 response taken,
//!            unknown session                       or confirmed by data
//!  asleep ───────────────────────► shaking hands ───────────────────────► session
//!    ▲  no tick, no timer,           one attempt each 1 to 15 s,            │ tick each 250 ms
//!    │  no boringtun state           endpoints in turn                      │ or 1 s; rekeyed
//!    └───────────────── given up, and not wanted ◄──────────────────────────┘ expired after 180 s
//! ```

mod path;
mod probing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podspan_wire::{LaneKey, NodeId};
use tracing::{debug, info};

use super::health::{Demand, Health, State};
use super::io::{Departure, MAX_DATAGRAM, OVERHEAD, Sink, TunnelTag};
use super::noise::{Door, Kind, MAX_HANDSHAKE, Noise, Opened, Shaken, Tick};
use super::pmtu::PathMtu;
use super::queue::Queue;
use super::timers::Jitter;
use super::{Shared, Time};
use crate::counters::{DropCause, TunnelCounters};
use crate::offload::{Ecn, Segments};
use crate::table::PeerIndex;

/// A peer that was sent something and kept silent for so long is not trusted with packets while there is
/// another way: the keepalive it owes is due after 10 s, and 5 s are allowed on top (WireGuard paper,
/// sections 6.1 and 6.5: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT).
pub(crate) const SILENCE: Duration = Duration::from_secs(15);
/// Between two attempts at a handshake (WireGuard paper, section 6.1: REKEY_TIMEOUT).
const RETRY: Duration = Duration::from_secs(5);
/// The same while packets wait for it, or would.
const HURRY: Duration = Duration::from_millis(650);
/// Between the first few attempts without a session: a lost packet, a wrong endpoint, or a peer that
/// learns of this node only now must not cost 5 s each.
const QUICK_RETRY: Duration = Duration::from_secs(1);
/// How many are so quick at least; every known endpoint is tried so once.
const QUICK_ATTEMPTS: usize = 3;
/// The longest wait between attempts at a peer that does not answer.
const MAX_RETRY: Duration = Duration::from_secs(15);
/// Added to each wait, so that peers do not fall into step; the least of it also keeps the wait safely
/// over REKEY_TIMEOUT, before which boringtun would not try again.
const JITTER: Duration = Duration::from_millis(333);
/// How long packets make a tunnel try (WireGuard paper, section 6.1: REKEY_ATTEMPT_TIME).
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a hint makes it try: an endpoint from an earlier life, or a packet of a session that is gone.
const SHORT_PATIENCE: Duration = Duration::from_secs(14);
/// The age at which a session that is to be kept is renewed (WireGuard paper, section 6.1:
/// REKEY_AFTER_TIME) by the end that began it.
const REKEY: Duration = Duration::from_secs(120);
/// The same by the other end, in case the first does not: well before REJECT_AFTER_TIME, 180 s.
const REKEY_AS_RESPONDER: Duration = Duration::from_secs(150);
/// After this a session is worth nothing (WireGuard paper, section 6.1: REJECT_AFTER_TIME).
const REJECT: Duration = Duration::from_secs(180);
/// Who received data and has nothing to say sends a keepalive after so long (WireGuard paper, section 6.5:
/// KEEPALIVE_TIMEOUT). boringtun does it too, but by times as coarse as its ticks, and misses some.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Between ticks of a tunnel that carries packets, and of one that does not.
const TICK: Duration = Duration::from_millis(250);
const IDLE_TICK: Duration = Duration::from_secs(1);
/// An unknown session makes a tunnel without one of its own try a handshake at most so often.
const POKE: Duration = Duration::from_secs(1);
/// The same for a tunnel with a session, which hardly ever needs it: whoever forges the addresses of
/// thousands of peers is not to keep this node busy.
const POKE_WITH_SESSION: Duration = Duration::from_secs(15);

/// What a table says of a tunnel.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) peer: PeerIndex,
    pub(crate) id: NodeId,
    pub(crate) remote: usize,
    /// Endpoints to try: learned ones first, then published ones, none twice.
    pub(crate) candidates: Vec<SocketAddr>,
    pub(crate) dial: bool,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) counters: Arc<TunnelCounters>,
}

impl Profile {
    /// Whether the tunnel is to be up without anybody sending through it.
    fn wanted(&self) -> bool {
        self.dial || self.keepalive.is_some()
    }
}

pub(crate) struct Tunnel {
    pub(crate) key: LaneKey,
    pub(crate) profile: Profile,
    index: u32,
    /// Made when it is first needed: a peer that is never heard of costs no key exchange and no memory.
    noise: Option<Box<Noise>>,
    /// The address that last authenticated.
    pub(crate) endpoint: Option<SocketAddr>,
    /// When it is to be looked at; the truth about what is in [`super::timers::Timers`].
    pub(crate) due: Option<Time>,
    ticked: Option<Time>,
    /// Whether a packet went either way since the last tick.
    active: bool,
    sent: Time,
    /// Since when data has been sent without anything heard.
    unanswered: Option<Time>,
    /// Since when data has been received without anything sent.
    owes: Option<Time>,
    session: Option<Time>,
    initiator: bool,
    /// Since when handshakes are tried without success.
    shaking: Option<Time>,
    initiated: Time,
    attempts: usize,
    retry_at: Time,
    /// Until when they are tried, unless the tunnel is wanted.
    patience: Time,
    poked: Option<Time>,
    /// Try a handshake at the next tick, come what may.
    force: bool,
    queue: Queue,
    was_up: bool,
    /// Whether the peer ever authenticated.
    was_heard: bool,
    pub(crate) health: Health,
    /// How large a packet the path takes.
    path: PathMtu,
    /// Numbers the packets that go in pieces.
    cut: u16,
    /// How often the peer is still to be told of what changed here, and when it was last.
    announcements: u8,
    announced: Time,
    /// Packets wait for what becomes of the tunnel: try handshakes more often.
    hurry: bool,
    /// The last session ended without an answer.
    lost: bool,
    /// Whether the peer seems to be gone, and whether that is news for its other lanes.
    gone: bool,
    turned: bool,
    /// The peer has moved to a session of whoever follows this dataplane, and answers probes there.
    followed: bool,
}

impl Tunnel {
    pub(crate) fn new(key: LaneKey, index: u32, profile: Profile) -> Self {
        Self {
            key,
            profile,
            index,
            noise: None,
            endpoint: None,
            due: None,
            ticked: None,
            active: false,
            sent: Time::default(),
            unanswered: None,
            owes: None,
            session: None,
            initiator: false,
            shaking: None,
            initiated: Time::default(),
            attempts: 0,
            retry_at: Time::default(),
            patience: Time::default(),
            poked: None,
            force: false,
            queue: Queue::default(),
            was_up: false,
            was_heard: false,
            health: Health::default(),
            path: PathMtu::default(),
            cut: 0,
            announcements: 0,
            announced: Time::default(),
            hurry: false,
            lost: false,
            gone: false,
            turned: false,
            followed: false,
        }
    }

    fn noise(&mut self, door: &Door) -> &mut Noise {
        self.noise.get_or_insert_with(|| Box::new(Noise::new(door, self.key, self.index)))
    }

    pub(super) fn has_session(&self) -> bool {
        self.noise.as_ref().is_some_and(|noise| noise.has_session())
    }

    /// Whether packets may be trusted to it: there is a session, and the peer is not silent.
    pub(crate) fn is_up(&self, now: Time) -> bool {
        self.has_session()
            && self.health.state() != State::Dead
            && self.unanswered.is_none_or(|since| now.since(since) < SILENCE)
    }

    /// Whether there is an address to try.
    pub(crate) fn is_dialable(&self) -> bool {
        self.endpoint.is_some() || !self.profile.candidates.is_empty()
    }

    /// Starts a tunnel's life; returns whether it is to be looked at.
    pub(crate) fn begin(&mut self, now: Time) -> bool {
        self.retry_at = now;
        self.profile.wanted()
    }

    /// Takes over what a new table says. Returns when it wants to be looked at, if that changed.
    pub(crate) fn update(&mut self, now: Time, profile: Profile) -> Option<Time> {
        let before = std::mem::replace(&mut self.profile, profile);
        if !Arc::ptr_eq(&self.profile.counters, &before.counters) {
            self.profile.counters.set_endpoint(self.endpoint);
            self.profile.counters.set_established(self.was_up);
            self.profile.counters.set_health(&self.health);
            self.profile.counters.set_path(&self.path);
            before.counters.set_established(false);
        }
        let news = !before.wanted() || before.candidates != self.profile.candidates;
        if self.profile.wanted() && news && !self.is_up(now) {
            self.retry_at = now;
            self.attempts = 0;
            return Some(now);
        }
        // A session that nobody wanted kept may be kept now.
        (self.profile.wanted() && news).then_some(now + TICK)
    }

    /// Makes it try a handshake for a while at the next tick, without a packet to send.
    pub(crate) fn hint(&mut self, now: Time) {
        self.force = true;
        self.patience = self.patience.max(now + SHORT_PATIENCE);
    }

    /// A packet of a session unknown here came from the peer's address: perhaps we lost it in a restart.
    /// Whoever can forge that address makes one handshake a second, no more. Returns whether the tunnel is to be looked at.
    pub(crate) fn poke(&mut self, now: Time) -> bool {
        let pause = if self.has_session() { POKE_WITH_SESSION } else { POKE };
        if self.poked.is_some_and(|at| now.since(at) < pause) {
            return false;
        }
        self.poked = Some(now);
        self.hint(now);
        true
    }

    /// What the sink is told instead of the tunnel.
    pub(crate) fn tag(&self) -> TunnelTag {
        TunnelTag(Some(self.index))
    }

    /// Sends inner packets, or queues them and starts a handshake. Returns when to look at the tunnel, if
    /// that changed.
    pub(crate) fn send(
        &mut self,
        now: Time,
        packets: &mut Segments<'_>,
        shared: &mut Shared,
        sink: &mut impl Sink,
    ) -> Option<Time> {
        let mut due = None;
        while let Some(packet) = packets.advance() {
            due = self.send_one(now, packet, shared, sink).or(due);
        }
        due
    }

    fn send_one(
        &mut self,
        now: Time,
        packet: &[u8],
        shared: &mut Shared,
        sink: &mut impl Sink,
    ) -> Option<Time> {
        if packet.len() + OVERHEAD > MAX_DATAGRAM {
            self.profile.counters.drops.count(DropCause::TooBig);
            return None;
        }
        if self.has_session() {
            self.cross(now, packet, shared, sink);
            return None;
        }
        if !self.is_dialable() {
            self.profile.counters.drops.count(DropCause::NoEndpoint);
            return None;
        }
        let dropped = self.queue.push(now, packet, &mut shared.budget);
        self.profile.counters.drops.add(DropCause::QueueFull, dropped);
        self.start(now)
    }

    /// Starts a handshake because there is something to send; the tick does it.
    pub(crate) fn start(&mut self, now: Time) -> Option<Time> {
        self.patience = now + PATIENCE;
        if self.shaking.is_some() || self.due.is_some_and(|due| due <= now) || now < self.retry_at {
            // Under way, or about to be.
            return self.due.is_none().then(|| self.retry_at.max(now));
        }
        self.force = true;
        Some(now)
    }

    /// Drops the packets that have waited too long.
    fn purge(&mut self, now: Time, shared: &mut Shared) {
        let dropped = self.queue.purge(now, &mut shared.budget);
        self.profile.counters.drops.add(DropCause::HandshakeTimeout, dropped);
    }

    /// Drops all packets that wait.
    pub(crate) fn give_up(&mut self, shared: &mut Shared) {
        let dropped = self.queue.clear(&mut shared.budget);
        self.profile.counters.drops.add(DropCause::HandshakeTimeout, dropped);
    }

    fn flush(&mut self, now: Time, shared: &mut Shared, sink: &mut impl Sink) {
        self.purge(now, shared);
        while let Some(packet) = self.queue.pop(&mut shared.budget) {
            self.cross(now, &packet, shared, sink);
        }
    }

    /// Counts an inner packet that has left.
    fn count_sent(&self, packet: &[u8]) {
        self.profile.counters.tx_packets.add(1);
        self.profile.counters.tx_bytes.add(packet.len() as u64);
    }

    /// Seals a packet that has these ECN bits and sends it; returns whether it left.
    fn seal(&mut self, now: Time, packet: &[u8], ecn: Ecn, shared: &Shared, sink: &mut impl Sink) -> bool {
        let (Some(to), Some(noise)) = (self.endpoint, &mut self.noise) else {
            self.profile.counters.drops.count(DropCause::NoEndpoint);
            return false;
        };
        let out = sink.datagram((packet.len() + OVERHEAD).max(MAX_HANDSHAKE));
        let Some(length) = noise.seal(packet, out) else {
            self.profile.counters.drops.count(DropCause::UnknownSession);
            return false;
        };
        self.note_sent(now);
        self.active = true;
        self.unanswered.get_or_insert(now);
        let how = Departure { ecn, ..self.departure(to) };
        emit(length, how, &self.profile, shared, sink)
    }

    /// Opens a data packet into the sink's room for inner packets. Also tells whether it confirmed a
    /// session, so that the tunnel is to be looked at soon.
    pub(crate) fn open(
        &mut self,
        now: Time,
        from: SocketAddr,
        datagram: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(Opened, bool), DropCause> {
        let Some(noise) = &mut self.noise else { return Err(DropCause::UnknownSession) };
        let had_session = noise.has_session();
        let opened = noise.open(datagram, sink.packet(datagram.len()))?;
        self.active = true;
        self.heard(from);
        if opened != Opened::Keepalive {
            self.owes.get_or_insert(now);
        }
        if !had_session {
            // The peer has confirmed the session that it began.
            self.note_state(now);
        }
        Ok((opened, !had_session))
    }

    /// After [`Self::open`], once its packet has left the sink's room: sends what has waited.
    pub(crate) fn after_open(&mut self, now: Time, shared: &mut Shared, sink: &mut impl Sink) {
        if !self.queue.is_empty() {
            self.flush(now, shared, sink);
        }
    }

    fn note_sent(&mut self, now: Time) {
        self.sent = now;
        self.owes = None;
    }

    /// Something authenticated came from `from`.
    fn heard(&mut self, from: SocketAddr) {
        self.unanswered = None;
        self.was_heard = true;
        self.attempts = 0;
        if self.endpoint != Some(from) {
            if let Some(before) = self.endpoint {
                debug!(peer = %self.profile.id, remote = self.profile.remote, %before, after = %from, "the peer has moved");
            }
            self.endpoint = Some(from);
            self.profile.counters.set_endpoint(Some(from));
        }
    }

    /// Whether a handshake of ours may be under way, so that what answers it is worth a look.
    pub(crate) fn expects_answer(&self) -> bool {
        self.noise.is_some()
    }

    /// Takes a handshake message of this tunnel in.
    pub(crate) fn shake(
        &mut self,
        now: Time,
        from: SocketAddr,
        kind: Kind,
        message: &[u8],
        shared: &mut Shared,
        sink: &mut impl Sink,
    ) -> Result<(), DropCause> {
        self.wake(now, shared, sink);
        let out = sink.datagram(MAX_HANDSHAKE);
        match self.noise(&shared.door).shake(kind, message, out)? {
            Shaken::Cookie => debug!(peer = %self.profile.id, "the peer is under load and sent a cookie"),
            Shaken::Responded(length) => {
                self.established(now, from, false, shared);
                emit(length, self.departure(from), &self.profile, shared, sink);
                self.note_sent(now);
                // Should the initiator's confirmation get lost, whoever has something to send tries again.
                self.retry_at = now + RETRY;
            }
            Shaken::Completed(length) => {
                self.profile.counters.set_rtt(now.since(self.initiated));
                self.established(now, from, true, shared);
                self.health.shaken();
                self.note_health(now);
                emit(length, self.departure(from), &self.profile, shared, sink);
                self.note_sent(now);
                self.flush(now, shared, sink);
            }
        }
        self.note_state(now);
        Ok(())
    }

    fn established(&mut self, now: Time, from: SocketAddr, initiator: bool, shared: &Shared) {
        self.heard(from);
        self.session = Some(now);
        self.initiator = initiator;
        self.shaking = None;
        self.lost = false;
        self.force = false;
        self.active = true;
        self.profile.counters.set_handshake(now);
        shared.counters.handshakes.add(1);
        debug!(peer = %self.profile.id, remote = self.profile.remote, endpoint = %from, initiator, "handshake");
    }

    /// Brings boringtun's clock up to date if the tunnel was not looked at lately.
    fn wake(&mut self, now: Time, shared: &mut Shared, sink: &mut impl Sink) {
        if self.noise.is_some() && self.ticked.is_some_and(|at| now.since(at) < TICK) {
            return;
        }
        self.ticked = Some(now);
        let out = sink.datagram(MAX_HANDSHAKE);
        // An initiation that would have been repeated now is not needed: a handshake is here.
        if let Tick::Keepalive(length) = self.noise(&shared.door).tick(out) {
            self.sent_by_timer(now, length, false, shared, sink);
        }
    }

    /// Looks at the timers: retries, keepalives, expiry. Returns when to do so again.
    pub(crate) fn tick(
        &mut self,
        now: Time,
        demand: Demand,
        jitter: &mut Jitter,
        shared: &mut Shared,
        sink: &mut impl Sink,
    ) -> Option<Time> {
        self.hurry = matches!(demand, Demand::InUse | Demand::Standby)
            && (self.health.doubtful(now) || !self.is_up(now));
        if self.hurry && self.retry_at > now + HURRY + JITTER {
            self.retry_at = now;
        }
        let probes = self.tick_probes(now, demand, jitter, shared, sink);
        // boringtun has nothing to do for a tunnel that was only looked at for a probe.
        let early = self
            .ticked
            .filter(|&at| self.has_session() && !self.force && !self.hurry && now.since(at) < TICK);
        let timers = match early {
            Some(at) => Some(at + TICK),
            None => self.tick_timers(now, jitter, shared, sink),
        };
        // A session may have come or gone with that.
        [probes, timers].into_iter().flatten().min()
    }

    fn tick_timers(
        &mut self,
        now: Time,
        jitter: &mut Jitter,
        shared: &mut Shared,
        sink: &mut impl Sink,
    ) -> Option<Time> {
        shared.counters.ticks.add(1);
        self.purge(now, shared);
        self.ticked = Some(now);
        let mut initiated = false;
        if !self.has_session() && !self.profile.wanted() && !self.force && now >= self.patience {
            self.shaking = None;
            self.give_up(shared);
        }
        let out = sink.datagram(MAX_HANDSHAKE);
        match self.noise(&shared.door).tick(out) {
            Tick::Nothing => {}
            Tick::Initiation(_) if self.shaking.is_none() && !self.has_session() => {}
            // Whoever follows this dataplane has sessions of its own.
            Tick::Initiation(_) if shared.lent && self.has_session() => {}
            Tick::Initiation(length) => {
                self.sent_by_timer(now, length, true, shared, sink);
                initiated = true;
            }
            Tick::Keepalive(length) => self.sent_by_timer(now, length, false, shared, sink),
            Tick::Expired => {
                self.lost |= self.is_failing(now);
                self.shaking = None;
                self.session = None;
            }
        }
        if !initiated {
            initiated = self.maybe_initiate(now, shared, sink);
        }
        if initiated {
            self.force = false;
            self.retry_at = now + self.wait(jitter);
        }
        let due = self.owes.is_some_and(|since| now.since(since) >= KEEPALIVE)
            || self.profile.keepalive.is_some_and(|every| now.since(self.sent) >= every);
        if due && self.has_session() {
            self.keepalive(now, shared, sink);
        }
        if self.session.is_some_and(|at| now.since(at) >= REJECT) {
            self.session = None;
        }
        self.note_state(now);
        let active = std::mem::take(&mut self.active);
        self.next_tick(now, active)
    }

    /// Starts or repeats a handshake if there is a reason to; returns whether it did.
    fn maybe_initiate(&mut self, now: Time, shared: &mut Shared, sink: &mut impl Sink) -> bool {
        if !self.is_dialable() || (shared.lent && self.has_session()) {
            self.force = false;
            return false;
        }
        let wanted = self.profile.wanted();
        let reason = if self.has_session() {
            let limit = if self.initiator { REKEY } else { REKEY_AS_RESPONDER };
            let old = wanted && self.session.is_some_and(|at| now.since(at) >= limit);
            let silent = self.unanswered.is_some_and(|since| now.since(since) >= SILENCE);
            // boringtun repeats by itself what is under way.
            let doubtful = self.health.doubtful(now) || (silent && self.hurry);
            (self.shaking.is_none() && (old || silent)) || (doubtful && now >= self.retry_at)
        } else {
            let needed = wanted || self.shaking.is_some() || !self.queue.is_empty();
            needed && now >= self.retry_at
        };
        if !reason && !self.force {
            return false;
        }
        let out = sink.datagram(MAX_HANDSHAKE);
        let Some(length) = self.noise(&shared.door).initiate(out) else { return false };
        self.sent_by_timer(now, length, true, shared, sink);
        true
    }

    fn keepalive(&mut self, now: Time, shared: &mut Shared, sink: &mut impl Sink) {
        let out = sink.datagram(MAX_HANDSHAKE);
        if let Some(length) = self.noise(&shared.door).seal(&[], out) {
            self.sent_by_timer(now, length, false, shared, sink);
        }
    }

    /// Sends what boringtun wrote into the sink's room.
    fn sent_by_timer(
        &mut self,
        now: Time,
        length: usize,
        initiation: bool,
        shared: &mut Shared,
        sink: &mut impl Sink,
    ) {
        self.note_sent(now);
        let to = if initiation {
            shared.initiations += 1;
            self.initiated = now;
            self.shaking.get_or_insert(now);
            let to = self.candidate();
            self.attempts += 1;
            to
        } else {
            self.endpoint
        };
        let Some(to) = to else {
            self.profile.counters.drops.count(DropCause::NoEndpoint);
            return;
        };
        if initiation {
            debug!(peer = %self.profile.id, remote = self.profile.remote, endpoint = %to, attempt = self.attempts, why = self.occasion(now), "trying a handshake");
            if self.endpoint.is_none() {
                self.profile.counters.set_endpoint(Some(to));
            }
        }
        emit(length, self.departure(to), &self.profile, shared, sink);
    }

    /// Why a handshake is tried, for the log.
    fn occasion(&self, now: Time) -> &'static str {
        match self.session {
            _ if !self.has_session() => "no session",
            // boringtun's clock is as coarse as its ticks.
            Some(since) if now.since(since) + IDLE_TICK >= REKEY => "rekey",
            _ => "doubt",
        }
    }

    /// How a message of the tunnel's own goes.
    fn departure(&self, to: SocketAddr) -> Departure {
        Departure { to, ecn: Ecn::NotEct, whole: self.path.is_known(), tunnel: self.tag() }
    }

    /// The endpoint for the next attempt: the one in use, then all known ones in turn.
    fn candidate(&self) -> Option<SocketAddr> {
        let others = self.profile.candidates.iter().copied().filter(|&c| Some(c) != self.endpoint);
        let mut all = self.endpoint.into_iter().chain(others);
        let n = all.clone().count();
        if n == 0 { None } else { all.nth(self.attempts % n) }
    }

    /// How long to wait before the next attempt.
    fn wait(&self, jitter: &mut Jitter) -> Duration {
        let known = self.profile.candidates.len().max(1);
        let wait = match self.attempts / known {
            _ if self.hurry => HURRY,
            _ if !self.has_session() && self.attempts <= known.max(QUICK_ATTEMPTS) => QUICK_RETRY,
            0..=6 => RETRY,
            7..=9 => RETRY * 2,
            _ => MAX_RETRY - JITTER,
        };
        wait + JITTER / 16 + jitter.below(JITTER - JITTER / 16)
    }

    /// When the tunnel is to be looked at next, if ever.
    pub(crate) fn next_tick(&self, now: Time, active: bool) -> Option<Time> {
        if self.has_session() {
            return Some(now + if active { TICK } else { IDLE_TICK });
        }
        if self.profile.wanted() || self.shaking.is_some() || !self.queue.is_empty() {
            // Without anybody to try, there is nothing to wait for: the peer dials us, or a table comes.
            let retry = self.retry_at.max(now + TICK);
            // What has waited too long is not to wait for the next attempt to be dropped.
            let next = if self.queue.is_empty() { retry } else { retry.min(now + IDLE_TICK) };
            return self.is_dialable().then_some(next);
        }
        // A session that was never confirmed still has keys that must not outlive it.
        self.session.map(|_| now + RETRY)
    }

    /// Tells the world when the tunnel comes up or goes down.
    fn note_state(&mut self, now: Time) {
        let up = self.is_up(now);
        if up == self.was_up {
            return;
        }
        self.was_up = up;
        self.profile.counters.set_established(up);
        let (id, remote, endpoint) = (&self.profile.id, self.profile.remote, self.endpoint);
        if up {
            info!(peer = %id, remote, ?endpoint, "tunnel up");
        } else if self.unanswered.is_some() {
            info!(peer = %id, remote, ?endpoint, "tunnel down: the peer does not answer");
        } else if self.profile.wanted() {
            info!(peer = %id, remote, ?endpoint, "tunnel down: the session is too old");
        } else {
            debug!(peer = %id, remote, ?endpoint, "tunnel asleep: nothing was sent for long");
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.profile.counters.set_established(false);
    }
}

/// Sends what is in the sink's room and counts it; returns whether it left.
fn emit(length: usize, how: Departure, profile: &Profile, shared: &Shared, sink: &mut impl Sink) -> bool {
    match sink.send(length, how) {
        Ok(()) => {
            shared.counters.tx_outer_packets.add(1);
            shared.counters.tx_outer_bytes.add(length as u64);
            true
        }
        Err(cause) => {
            profile.counters.drops.count(cause);
            false
        }
    }
}
