//! How well a tunnel does, judged by the replies to probes. Pure: time comes in, a state comes out.
//!
//! ```text
//!              first reply             3 probes unanswered, the first for
//!  unproven ───────────────► healthy ───150 ms and a round trip───► suspect ──2 s──► dead
//!  (a plain peer,              ▲  │                                   │               │
//!   or none asked yet)         │  └─ 3 of 4 lost, .. 5 of 32, ─► lossy│               │
//!                              │     a sibling loses far less  │      │               │
//!                              └── 1 s, 2 s, .. 60 s ── held down ◄── a reply ◄───────┘
//! ```
//!
//! A peer that never answered a probe may be a plain WireGuard peer; it is judged by WireGuard's own timers.
//! Only replies count, not whatever else is heard, so that a way that works in one direction only is none.

mod loss;

use std::time::Duration;

use super::Time;
use super::pmtu::Link;
use super::probe::{Kind, LEAST, Probe};

/// Between probes of a tunnel that carries packets.
const IN_USE: Duration = Duration::from_millis(100);
/// Between probes of one that would, if another failed.
const STANDBY: Duration = Duration::from_secs(1);
/// Between probes of an idle one, unless the peer wants fewer.
pub(crate) const IDLE: Duration = Duration::from_secs(5);
/// Between probes once an answer is overdue.
const OVERDUE: Duration = Duration::from_millis(50);
/// The same on an idle tunnel, and while nothing at all is answered.
const OVERDUE_IDLE: Duration = Duration::from_millis(250);
/// Between probes of a dead tunnel for which there are packets.
const DEAD_IN_USE: Duration = Duration::from_millis(400);
/// Between probes of one that is avoided for what it loses, while there are packets.
const LOSSY_IN_USE: Duration = Duration::from_millis(200);
/// Between the first few probes of a peer that never answered any, and the longest that it becomes.
const FIRST: Duration = Duration::from_millis(200);
const UNPROVEN: Duration = Duration::from_secs(60);

/// A tunnel is in use for so long after a packet.
pub(crate) const USE: Duration = Duration::from_secs(2);

/// How long probes are unanswered, on top of what a round trip takes, before flows leave.
const SUSPECT: Duration = Duration::from_millis(150);
/// The same before other endpoints and a handshake are tried.
const DOUBT: Duration = Duration::from_millis(400);
/// The same before the tunnel counts as dead.
const DEAD: Duration = Duration::from_secs(2);
/// A reply that comes so late tells of a machine that stood still, not of the path: by it, deaths would be waited for
/// for minutes.
const STANDSTILL: Duration = Duration::from_secs(2);
/// What a reply may be late at least, whatever the round trips so far.
const LATE: Duration = Duration::from_millis(10);

/// The probes by which loss is measured.
const WINDOW: u32 = 32;

/// How long a tunnel that came back is avoided at first, and at most.
const HOLD: Duration = Duration::from_secs(1);
const MAX_HOLD: Duration = Duration::from_secs(60);
/// How long one that failed again has to hold out before it is as good as another that is held down.
const STEADY: Duration = Duration::from_secs(5);
/// Health of this length makes earlier failures forgotten.
const FORGIVEN: Duration = Duration::from_secs(300);

/// A peer that completes so many handshakes without answering a probe has become a plain one.
const IN_VAIN: u32 = 3;

/// A probe after such a pause says nothing of those before it.
const PAUSE: Duration = Duration::from_secs(30);

/// Replies are given out of a store of so many, which fills by one in so long.
const REPLIES: u32 = 20;
const REPLY_EVERY: Duration = Duration::from_millis(10);

/// How much a tunnel matters at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// It carries packets.
    InUse,
    /// It would carry packets, were it or another one in a different state.
    Standby,
    /// There are none, but it is this end's to keep it up.
    Idle,
    /// Nobody here cares.
    Nobody,
}

/// What is thought of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// No probe was ever answered.
    #[default]
    Unproven,
    Healthy,
    /// It came back, and is avoided for a while lest it go again.
    HeldDown,
    Lossy,
    Suspect,
    Dead,
}

/// How good a way is; less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Good,
    /// It does well, and a nearer one is asked for.
    Far,
    HeldDown,
    /// The same, only just: it is not to get flows back from one that has been steady for longer.
    Returned,
    Draining,
    Lossy,
    Suspect,
    NotForwarding,
    /// There is no session, but there may be one soon.
    Unknown,
    Dead,
    /// There is neither a session nor an address: the peer must dial.
    Absent,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: State,
    /// The peer says that it is about to go.
    draining: bool,
    /// Probes through the peer do not come back.
    not_forwarding: bool,
    /// Another gateway is nearer, and the nearest is asked for.
    far: bool,
    /// The sequence of the next probe.
    next: u32,
    /// All probes before this one are settled: answered, or a later one was.
    settled: u32,
    /// When the last [`WINDOW`] probes were sent, by sequence.
    sent: Option<Box<[Time; WINDOW as usize]>>,
    /// Which of them were answered, a bit each.
    answered: u32,
    /// The first probe that counts for loss.
    counted: u32,
    last_sent: Option<Time>,
    last_reply: Option<Time>,
    /// Smoothed round trip and its variation (RFC 6298 section 2).
    rtt: Option<(Duration, Duration)>,
    /// Of 256: how much of a sixteenth is added to the next interval.
    jitter: u8,
    /// What the peer wants between idle probes, seconds.
    pace: u16,
    /// When a packet was last sent, and when one would have been, had it been better.
    used: Option<Time>,
    missed: Option<Time>,
    /// So many of the next probes are not to wait: somebody has to know.
    hastened: u8,
    /// How much it usually loses: a mean over the last [`WINDOW`] or so that outlives failures, of 65,536.
    usual_loss: u32,
    /// It was left for what it loses, and has not shown since that it does not.
    lossy: bool,
    held_until: Time,
    /// Whether it has held out for [`STEADY`] since it came back, and when it will have.
    steady: bool,
    steady_at: Time,
    failures: u32,
    healthy_since: Time,
    /// Handshakes completed since the last reply that no reply followed.
    in_vain: u32,
    /// Moved on by each reply given; what lies between it and now is the store of replies.
    replied: Time,
    changes: u64,
}

impl Health {
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// How good a way it is, if there is a session and the peer is not silent.
    pub(crate) fn rank(&self) -> Rank {
        let rank = match self.state {
            State::Unproven | State::Healthy if self.far => Rank::Far,
            State::Unproven | State::Healthy => Rank::Good,
            State::HeldDown if self.steady => Rank::HeldDown,
            State::HeldDown => Rank::Returned,
            State::Lossy => Rank::Lossy,
            State::Suspect => Rank::Suspect,
            State::Dead => Rank::Dead,
        };
        let draining = if self.draining { Rank::Draining } else { Rank::Good };
        let forwarding = if self.not_forwarding { Rank::NotForwarding } else { Rank::Good };
        rank.max(draining).max(forwarding)
    }

    /// Whether a probe was ever answered.
    pub(crate) fn proven(&self) -> bool {
        self.last_reply.is_some()
    }

    /// Whether the peer had better be looked for elsewhere and shaken hands with anew.
    pub(crate) fn doubtful(&self, now: Time) -> bool {
        let long = || self.waiting_since().is_some_and(|since| now.since(since) >= DOUBT);
        self.state == State::Dead || (self.state == State::Suspect && long())
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(crate) fn is_not_forwarding(&self) -> bool {
        self.not_forwarding
    }

    /// Takes over what probes through the peer showed.
    pub(crate) fn set_not_forwarding(&mut self, now: Time, not_forwarding: bool) {
        if self.not_forwarding && !not_forwarding && self.state == State::Healthy {
            self.fail(now, State::HeldDown);
            self.hold(now);
        }
        self.not_forwarding = not_forwarding;
    }

    pub(crate) fn is_far(&self) -> bool {
        self.far
    }

    pub(crate) fn set_far(&mut self, far: bool) {
        self.far = far;
    }

    /// Smoothed round trip and its variation.
    pub(crate) fn rtt(&self) -> Option<(Duration, Duration)> {
        self.rtt
    }

    pub(crate) fn last_reply(&self) -> Option<Time> {
        self.last_reply
    }

    /// What the probes tell of the tunnel, for those that look for its path's MTU.
    pub(crate) fn link(&self, now: Time) -> Link {
        Link { wait: self.patience(), replied: self.last_reply, loss: self.loss(now) }
    }

    /// How often the state has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Notes that a packet takes this tunnel; returns whether it is the first one for some time.
    pub(crate) fn used(&mut self, now: Time) -> bool {
        self.used.replace(now).is_none_or(|at| now.since(at) >= USE)
    }

    /// Notes that a packet would have taken this tunnel, were it better; as for [`Self::used`].
    pub(crate) fn missed(&mut self, now: Time) -> bool {
        self.missed.replace(now).is_none_or(|at| now.since(at) >= USE)
    }

    /// Another lane to the peer found that it is gone, or back: see to it at once, and for a while.
    pub(crate) fn hasten(&mut self, now: Time) {
        self.missed = Some(now);
        if self.state != State::Unproven {
            self.hastened = self.hastened.max(1);
        }
    }

    /// Whether it carries packets.
    pub(crate) fn is_in_use(&self, now: Time) -> bool {
        self.used.is_some_and(|at| now.since(at) < USE)
    }

    pub(crate) fn demand(&self, now: Time, cluster_in_use: bool, dials: bool) -> Demand {
        if self.is_in_use(now) {
            Demand::InUse
        } else if cluster_in_use || self.missed.is_some_and(|at| now.since(at) < USE) {
            Demand::Standby
        } else if dials {
            Demand::Idle
        } else {
            Demand::Nobody
        }
    }

    /// How many probes are not settled.
    fn open(&self) -> u32 {
        self.next.wrapping_sub(self.settled)
    }

    fn sent_at(&self, sequence: u32) -> Option<Time> {
        // At ten a second they last for 13 years; then the tunnel's peer is judged anew.
        let age = self.next.checked_sub(sequence)?;
        if age == 0 || age > WINDOW {
            return None;
        }
        self.sent.as_ref().map(|sent| sent[(sequence % WINDOW) as usize])
    }

    /// When the oldest probe was sent of those that are not settled, or of the last [`WINDOW`].
    fn waiting_since(&self) -> Option<Time> {
        let oldest = self.settled.max(self.next.saturating_sub(WINDOW));
        self.sent_at(oldest).filter(|_| self.open() > 0)
    }

    /// How long an answer may take.
    fn patience(&self) -> Duration {
        self.rtt.map_or(Duration::from_secs(1), |(rtt, variation)| rtt + (4 * variation).max(LATE))
    }

    fn interval(&self, demand: Demand) -> Option<Duration> {
        let idle = IDLE.max(Duration::from_secs(self.pace.into()));
        Some(match (demand, self.state) {
            (Demand::Nobody, _) => return None,
            (_, State::Unproven) => match self.open() {
                0..5 => FIRST,
                n => (STANDBY * 2_u32.saturating_pow(n - 5)).min(UNPROVEN),
            },
            (Demand::Idle, _) => idle,
            (_, State::Dead) => DEAD_IN_USE,
            // One that fails in step with rare probes would look well.
            (Demand::InUse, _) | (_, State::HeldDown) => IN_USE,
            (Demand::Standby, State::Lossy) => LOSSY_IN_USE,
            (Demand::Standby, _) => STANDBY,
        })
    }

    /// When the next probe is due; time that is past if there never was one.
    fn probe_at(&self, demand: Demand) -> Option<Time> {
        let interval = self.interval(demand)?;
        let Some(last) = self.last_sent else { return Some(Time::default()) };
        if self.hastened > 0 {
            return Some(last + OVERDUE);
        }
        let regular = last + interval + interval / 16 * self.jitter.into() / 256;
        let overdue = match self.state {
            State::Unproven | State::Dead => None,
            _ => self.waiting_since().map(|since| {
                let again = match demand {
                    Demand::InUse | Demand::Standby if self.state < State::Suspect => OVERDUE,
                    Demand::InUse | Demand::Standby => IN_USE,
                    Demand::Idle | Demand::Nobody => OVERDUE_IDLE,
                };
                (last + again).max(since + self.patience())
            }),
        };
        Some(overdue.map_or(regular, |overdue| overdue.min(regular)))
    }

    /// When [`Self::judge`] may come to another verdict though no reply comes.
    fn verdict_at(&self) -> Option<Time> {
        match self.state {
            State::HeldDown | State::Healthy | State::Lossy => {
                let next = if self.steady { self.held_until } else { self.held_until.min(self.steady_at) };
                let held = (self.state == State::HeldDown).then_some(next);
                [held, self.suspect_at()].into_iter().flatten().min()
            }
            State::Suspect => self.dead_at(),
            State::Unproven | State::Dead => None,
        }
    }

    fn suspect_at(&self) -> Option<Time> {
        let since = self.waiting_since()?;
        let streak = self.streak();
        if self.open() < streak {
            return None;
        }
        // The last of them must have had its time, too.
        let last = self.sent_at(self.settled.wrapping_add(streak - 1)).unwrap_or(since);
        Some((since + SUSPECT).max(last) + self.patience())
    }

    fn dead_at(&self) -> Option<Time> {
        Some(self.waiting_since()? + DEAD + self.patience())
    }

    /// When it is to be looked at next: for a probe or for a verdict.
    pub(crate) fn due(&self, demand: Demand) -> Option<Time> {
        [
            self.probe_at(demand),
            self.verdict_at().filter(|_| demand != Demand::Nobody || self.state == State::HeldDown),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next probe, if it is time for one.
    pub(crate) fn probe(
        &mut self,
        now: Time,
        demand: Demand,
        jitter: u8,
        draining: bool,
        pace: u16,
    ) -> Option<Probe> {
        if self.probe_at(demand)? > now {
            return None;
        }
        if self.last_sent.is_some_and(|at| now.since(at) >= PAUSE) && self.state != State::Unproven {
            self.settle();
        }
        Some(self.next_probe(now, jitter, draining, pace))
    }

    /// The next probe, whether or not it is time for one.
    pub(crate) fn next_probe(&mut self, now: Time, jitter: u8, draining: bool, pace: u16) -> Probe {
        let sequence = self.next;
        self.next = sequence.wrapping_add(1);
        self.sent.get_or_insert_default()[(sequence % WINDOW) as usize] = now;
        self.answered &= !(1 << (sequence % WINDOW));
        self.last_sent = Some(now);
        self.hastened = self.hastened.saturating_sub(1);
        self.jitter = jitter;
        Probe { kind: Kind::Request, draining, sequence, size: LEAST as u16, pace, stamp: now.as_micros() }
    }

    /// What is under way says nothing any more.
    pub(super) fn settle(&mut self) {
        self.settled = self.next;
        self.counted = self.next;
    }

    /// A handshake that this end began was completed: the way works in both directions. Whether the peer
    /// answers probes is to be seen: until it does, a dead one stays dead for those who send.
    pub(crate) fn shaken(&mut self) {
        if self.state == State::Unproven {
            // Perhaps it is another version of the peer by now.
            self.settled = self.next;
            self.last_sent = None;
        } else if self.state == State::Dead {
            self.settle();
            self.last_sent = None;
            self.in_vain += 1;
            if self.in_vain >= IN_VAIN {
                *self = Self {
                    used: self.used,
                    missed: self.missed,
                    changes: self.changes + 1,
                    ..Self::default()
                };
            }
        }
    }

    /// Takes a reply in; returns whether it answers anything.
    pub(crate) fn reply(&mut self, now: Time, probe: &Probe) -> bool {
        let Some(sent) = self.sent_at(probe.sequence) else { return false };
        let bit = 1 << (probe.sequence % WINDOW);
        if self.answered & bit != 0 {
            return false;
        }
        self.answered |= bit;
        let rtt = now.since(sent);
        if rtt <= STANDSTILL {
            self.rtt = Some(match self.rtt {
                None => (rtt, rtt / 2),
                Some((smooth, variation)) => {
                    (smooth * 7 / 8 + rtt / 8, variation * 3 / 4 + smooth.abs_diff(rtt) / 4)
                }
            });
        }
        self.last_reply = Some(now);
        self.in_vain = 0;
        self.pace = probe.pace;
        let behind = probe.sequence.wrapping_add(1);
        if behind.wrapping_sub(self.settled) <= self.open() {
            self.note_usual(probe.sequence.wrapping_sub(self.settled));
            self.settled = behind;
        }
        match self.state {
            State::Unproven => {
                self.counted = self.settled;
                self.healthy_since = now;
                self.set(State::Healthy);
            }
            // A late reply to one of many is not yet a way back.
            State::Suspect | State::Dead if self.suspect_at().is_none_or(|at| at > now) => {
                self.counted = self.settled;
                if self.lossy { self.set(State::Lossy) } else { self.hold(now) }
            }
            _ => {}
        }
        true
    }

    /// What the peer says of itself in any of its probes; returns whether that is news.
    pub(crate) fn hear(&mut self, draining: bool) -> bool {
        std::mem::replace(&mut self.draining, draining) != draining
    }

    /// Draws the conclusions of time that has passed; returns whether the state changed.
    pub(crate) fn judge(&mut self, now: Time) -> bool {
        let before = self.state;
        let passed = |at: Option<Time>| at.is_some_and(|at| at <= now);
        self.steady |= self.state == State::HeldDown && self.steady_at <= now;
        if self.state == State::HeldDown && self.held_until <= now {
            self.healthy_since = now;
            self.set(State::Healthy);
        }
        if matches!(self.state, State::Healthy | State::HeldDown | State::Lossy) && passed(self.suspect_at())
        {
            self.fail(now, State::Suspect);
        }
        // Only who asked until now may say that nobody answers.
        let asking = self.last_sent.is_some_and(|at| now.since(at) < STANDBY);
        if self.state == State::Suspect && asking && passed(self.dead_at()) {
            self.set(State::Dead);
        }
        if self.state == State::Lossy && self.is_well_again(now) {
            self.forgive_loss(now);
        }
        self.state != before
    }

    fn fail(&mut self, now: Time, state: State) {
        if self.state == State::Healthy && now.since(self.healthy_since) >= FORGIVEN {
            self.failures = 0;
        }
        // What is avoided anyway and fails again has not failed those who use it.
        if state != State::Suspect || !self.lossy {
            self.failures = (self.failures + 1).min(16);
        }
        self.set(state);
    }

    fn hold(&mut self, now: Time) {
        let hold = (HOLD * 2_u32.pow(self.failures.saturating_sub(1).min(16))).min(MAX_HOLD);
        self.held_until = now + hold;
        // After its first failure it is as good as any that is held down.
        self.steady = self.failures <= 1;
        self.steady_at = now + STEADY;
        self.set(State::HeldDown);
    }

    fn set(&mut self, state: State) {
        self.changes += u64::from(self.state != state);
        self.state = state;
    }

    /// Whether a request may be answered: not more often than a tunnel's peer has reason to ask.
    pub(crate) fn may_reply(&mut self, now: Time) -> bool {
        let full = REPLY_EVERY * REPLIES;
        let store = now.since(self.replied).min(full);
        // What is left of the store is the time since a moment that each reply moves on.
        if store < REPLY_EVERY {
            return false;
        }
        let store = store - REPLY_EVERY;
        self.replied = Time::from_micros(now.as_micros().saturating_sub(store.as_micros() as u64));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    /// A tunnel whose probes are answered after `rtt`, or not at all.
    struct Run {
        health: Health,
        now: Time,
        sent: u32,
        replies: Vec<(Time, Probe)>,
    }

    impl Run {
        fn new() -> Self {
            let now = Time::from_micros(1_000_000_000);
            Self { health: Health::default(), now, sent: 0, replies: Vec::new() }
        }

        /// Lets time pass in steps of a millisecond; `answer` says after how long a probe is answered.
        fn run(
            &mut self,
            time: Duration,
            demand: Demand,
            answer: impl Fn(u32) -> Option<Duration>,
        ) -> Vec<State> {
            let end = self.now + time;
            let mut states = vec![self.health.state()];
            while self.now < end {
                self.now = self.now + MS;
                let now = self.now;
                let (due, later): (Vec<_>, Vec<_>) = self.replies.drain(..).partition(|(at, _)| *at <= now);
                self.replies = later;
                for (_, probe) in due {
                    self.health.reply(now, &probe);
                }
                if self.health.due(demand).is_some_and(|at| at <= now) {
                    self.health.judge(now);
                    if let Some(probe) = self.health.probe(now, demand, 0, false, 0) {
                        self.sent += 1;
                        self.replies
                            .extend(answer(probe.sequence).map(|rtt| (now + rtt, probe.reply(false, 0))));
                    }
                }
                states.push(self.health.state());
            }
            states.dedup();
            states
        }
    }

    #[test]
    fn probes_by_demand() {
        for (demand, least, most) in [
            (Demand::InUse, 95, 101),
            (Demand::Standby, 10, 11),
            (Demand::Idle, 2, 3),
            (Demand::Nobody, 0, 0),
        ] {
            let mut run = Run::new();
            run.run(S, Demand::InUse, |_| Some(MS));
            let before = run.sent;
            run.run(10 * S, demand, |_| Some(MS));
            assert!((least..=most).contains(&(run.sent - before)), "{demand:?}: {}", run.sent - before);
        }
    }

    #[test]
    fn states_in_order_and_in_time() {
        use State::{Dead, Healthy, HeldDown, Suspect, Unproven};
        for rtt in [0, 1, 10, 50, 150] {
            let rtt = rtt * MS;
            let mut run = Run::new();
            assert_eq!(run.run(5 * S, Demand::InUse, |_| Some(rtt)), [Unproven, Healthy]);
            assert_eq!(run.run(300 * MS + 2 * rtt, Demand::InUse, |_| None), [Healthy, Suspect], "{rtt:?}");
            assert_eq!(run.run(2 * S, Demand::InUse, |_| None), [Suspect, Dead], "{rtt:?}");
            assert_eq!(run.run(900 * MS, Demand::InUse, |_| Some(rtt)), [Dead, HeldDown], "{rtt:?}");
            assert_eq!(run.run(1500 * MS, Demand::InUse, |_| Some(rtt)), [HeldDown, Healthy], "{rtt:?}");
        }
    }

    #[test]
    fn a_lost_probe_or_two_are_no_reason() {
        let mut run = Run::new();
        run.run(5 * S, Demand::InUse, |_| Some(MS));
        let states = run.run(60 * S, Demand::InUse, |n| (n % 40 > 1).then_some(MS));
        assert_eq!(states, [State::Healthy]);
    }

    #[test]
    fn round_trips_are_measured_and_losses_counted() {
        let mut run = Run::new();
        run.run(10 * S, Demand::InUse, |n| (n % 8 != 0).then_some((20 + 2 * (n % 2)) * MS));
        let (rtt, variation) = run.health.rtt().unwrap();
        assert!((20 * MS..=22 * MS).contains(&rtt), "{rtt:?}");
        assert!((MS / 4..=3 * MS).contains(&variation), "{variation:?}");
        let (lost, of) = run.health.loss(run.now);
        assert!((3..=4).contains(&lost) && of >= 31, "{lost} of {of}");
    }

    #[test]
    fn replies_that_answer_nothing_change_nothing() {
        let mut health = Health::default();
        let now = Time::from_micros(5_000_000);
        let probe = health.next_probe(now, 0, false, 0);
        for sequence in [1, 2, 77, u32::MAX] {
            assert!(!health.reply(now + MS, &Probe { sequence, ..probe.reply(false, 0) }));
        }
        assert_eq!(health.state(), State::Unproven);
        assert!(health.reply(now + MS, &probe.reply(false, 0)));
        assert!(!health.reply(now + 2 * MS, &probe.reply(false, 0)), "a duplicate");
        for _ in 0..100 {
            health.next_probe(now, 0, false, 0);
        }
        assert!(!health.reply(now + MS, &Probe { sequence: 3, ..probe.reply(false, 0) }), "too old");
    }

    #[test]
    fn requests_are_answered_as_often_as_there_is_reason_to() {
        let mut health = Health::default();
        let now = Time::from_micros(5_000_000);
        assert_eq!((0..100).filter(|_| health.may_reply(now)).count(), REPLIES as usize);
        let answered = (0..1000).filter(|&n| health.may_reply(now + n * MS)).count();
        assert!((95..=101).contains(&answered), "{answered}");
    }
}
