//! How large a packet a tunnel's path takes, found by probes: datagram packetization layer path MTU discovery
//! (RFC 8899). Pure: time and the fate of probes come in, sizes come out. What ICMP says is not believed, so
//! that it does not matter whether it comes.
//!
//! ```text
//!            the first probe, of what the interface takes, is answered
//!  unknown ─────────────────────────────────────────────────────────────► complete ◄──────────────┐
//!     │                                                                    │     ▲                │
//!     │ it is not: 3 lost, while small ones are answered                   │     │ found          │
//!     └───────────────► searching, from 1280 up ◄──────────────────────────┘     │                │
//!                          │ candidates, then halves     3 confirmations lost:   │                │
//!                          │                             a black hole            │                │
//!                          └─────────────────────────────────────────────────────┘                │
//!                                                        raising: 10 s, 20 s, .. 60 s ────────────┘
//! ```
//!
//! All sizes are of inner packets, bytes. While nothing is known, and with a plain WireGuard peer for ever,
//! large packets leave without "don't fragment". Afterwards nothing is fragmented on the way: while the search
//! lasts, what is too large crosses the tunnel in [pieces](super::pieces), and when it is over its sender is
//! told. IPv6 needs 1280 bytes (RFC 8200 section 5), so that is the least that senders are ever told; on a path
//! that takes less, packets up to that size go in pieces for good.

use std::net::SocketAddr;
use std::time::Duration;

use super::Time;

/// What IP, UDP and WireGuard put around an inner packet, bytes: over IPv4, and over IPv6.
const OVERHEAD_V4: u16 = 20 + 8 + super::OVERHEAD as u16;
const OVERHEAD_V6: u16 = 40 + 8 + super::OVERHEAD as u16;

/// What every path is expected to take, and the least that a sender is told (RFC 8200 section 5).
pub(crate) const BASE: u16 = 1280;
/// The smallest size that is tried: no path of today takes less.
const FLOOR: u16 = 496;
/// The largest: a UDP datagram takes no more.
const MOST: u16 = (super::MAX_DATAGRAM - super::OVERHEAD) as u16;
/// Packets larger than this may be too large for a path.
pub(crate) const LARGE: usize = FLOOR as usize;

/// The MTU of an Ethernet, of which it may be assumed that a path takes it.
const USUAL: u16 = 1500;

/// MTUs that paths are known to have, bytes of outer packets.
const COMMON: [u16; 30] = [
    576, 768, 1006, 1152, 1280, 1300, 1320, 1340, 1360, 1380, 1400, 1420, 1440, 1460, 1472, 1480, 1492, 1500,
    1600, 2000, 4352, 4470, 7981, 8500, 8896, 8921, 8951, 8981, 9000, 9001,
];

/// Between these, halves are tried as long as they are no farther apart than so much, and not nearer.
const FINE: std::ops::RangeInclusive<u16> = 9..=260;

/// Between two confirmations while large packets are sent, and while none are.
const CONFIRM: Duration = Duration::from_millis(600);
const CONFIRM_RARELY: Duration = Duration::from_secs(30);
/// How long a probe waits for its answer, at least and at most.
const LEAST_WAIT: Duration = Duration::from_millis(50);
const MOST_WAIT: Duration = Duration::from_secs(2);
/// Between looks at a probe that is late, while it is not known whether anything gets through.
const LOOK: Duration = Duration::from_millis(50);
/// After which a probe says nothing any more.
const FORGET: Duration = Duration::from_secs(5);
/// Between attempts at larger sizes, at first and at most.
const RAISE: Duration = Duration::from_secs(10);
const MAX_RAISE: Duration = Duration::from_secs(60);
/// Losses in a row that refute a size (RFC 8899 section 5.1.2: MAX_PROBES), and at most where all is lossy.
const LOSSES: u32 = 3;
const MAX_LOSSES: u32 = 10;

/// How a tunnel without a measured path is to be used, and what may be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathLimits {
    /// The MTU of the underlay's interface, bytes of outer packets.
    pub underlay: u16,
    /// The largest inner packet that there is, bytes: the TUN's MTU.
    pub largest: u16,
}

impl Default for PathLimits {
    fn default() -> Self {
        Self { underlay: USUAL, largest: USUAL - OVERHEAD_V4 }
    }
}

impl PathLimits {
    /// The largest inner packet that an interface with this MTU lets out towards `endpoint`.
    fn ceiling(self, endpoint: SocketAddr) -> u16 {
        self.underlay.saturating_sub(overhead(endpoint)).min(self.largest).clamp(FLOOR, MOST)
    }
}

/// What is put around an inner packet on the way to `endpoint`, bytes.
fn overhead(endpoint: SocketAddr) -> u16 {
    if endpoint.ip().to_canonical().is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
}

/// What small probes tell of the tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// How long an answer may take.
    pub(crate) wait: Duration,
    /// When the last small probe was answered.
    pub(crate) replied: Option<Time>,
    /// Small probes lost, and of how many.
    pub(crate) loss: (u32, u32),
}

impl Link {
    fn wait(&self) -> Duration {
        self.wait.clamp(LEAST_WAIT, MOST_WAIT)
    }

    /// How many probes in a row must be lost until it is their size's fault: by chance that happens to less
    /// than 1 % of them.
    fn losses(&self) -> u32 {
        let (lost, of) = self.loss;
        let rate = f64::from(lost) / f64::from(of.max(1));
        (LOSSES..MAX_LOSSES).find(|&n| rate.powi(n as i32) < 0.01).unwrap_or(MAX_LOSSES)
    }
}

/// What happened that a person should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A search has ended: the size.
    Found(u16),
    /// Packets of this size passed and do not any more.
    BlackHole(u16),
}

/// How a packet crosses the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As it is, and routers may fragment it: nothing is known.
    Loose,
    /// As it is.
    Whole,
    /// In pieces of at most so many bytes.
    Pieces(u16),
    /// Not at all: its sender is to be told this size.
    TooBig(u16),
}

/// Why there is a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Nothing is known yet.
    Start,
    /// What was known is not so any more.
    Fall,
    /// More than what is known may pass by now.
    Raise,
}

/// Sizes between which the truth lies.
#[derive(Clone, Copy, Debug)]
struct Search {
    why: Why,
    /// The largest that passes; if not `proven`, it is only hoped for.
    low: u16,
    proven: bool,
    /// The smallest that does not.
    high: u16,
    /// What is tried before anything else: what the interface takes, or what passed before.
    favourite: Option<u16>,
}

/// A probe under way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u32,
    size: u16,
    at: Time,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    endpoint: Option<SocketAddr>,
    /// The largest that the interface takes, and what is put around it.
    ceiling: u16,
    overhead: u16,
    /// What passes whole, once anything is known.
    size: Option<u16>,
    search: Option<Search>,
    sent: Option<Sent>,
    /// Probes of the present size that were lost in a row.
    losses: u32,
    /// The next probe, and the first one that still says something.
    next: u32,
    first: u32,
    confirmed: Time,
    /// Whether large packets were sent since then.
    large: bool,
    raise_at: Time,
    raise_after: Duration,
    /// The interface takes more than it did when more was last tried.
    widened: bool,
    /// When a black hole was found and what passed before, until that passes again.
    black_hole: Option<(Time, u16)>,
    black_holes: u64,
}

impl PathMtu {
    /// The path leads to this endpoint now, and these are the limits: what was found elsewhere is confirmed
    /// at once, and more is tried.
    pub(crate) fn set_path(&mut self, now: Time, endpoint: SocketAddr, limits: PathLimits) {
        let ceiling = limits.ceiling(endpoint);
        let same = self.endpoint.is_some_and(|before| before.ip() == endpoint.ip());
        if same && ceiling == self.ceiling {
            return;
        }
        self.widened |= ceiling > self.ceiling;
        (self.endpoint, self.ceiling, self.overhead) = (Some(endpoint), ceiling, overhead(endpoint));
        self.drop_trial();
        // What was refuted may pass here.
        match self.search.map(|search| search.why) {
            Some(Why::Fall) => self.begin(Why::Fall, BASE.min(ceiling), ceiling),
            _ => self.search = None,
        }
        if let Some(size) = &mut self.size {
            *size = (*size).min(ceiling);
            self.confirmed = Time::default();
            self.large = true;
            (self.raise_at, self.raise_after) = (now, RAISE);
        }
    }

    /// The peer answers no probes any more: nothing is known.
    pub(crate) fn forget(&mut self) {
        if self.size.is_some() || self.search.is_some() {
            let Self { endpoint, ceiling, overhead, next, black_holes, .. } = *self;
            *self = Self { endpoint, ceiling, overhead, next, first: next, black_holes, ..Self::default() };
        }
    }

    /// What crosses the tunnel whole, if that is known and not about to change.
    pub(crate) fn size(&self) -> Option<u16> {
        self.size.filter(|_| self.is_settled())
    }

    /// Whether what is known is so still.
    fn is_settled(&self) -> bool {
        !self.is_searching()
    }

    /// Whether a search is under way that had better end soon.
    pub(crate) fn is_searching(&self) -> bool {
        self.search.is_some_and(|search| search.why == Why::Fall)
    }

    /// When it is to be seen whether a black hole is gone, or whether the path takes what the interface takes since.
    pub(crate) fn heal_at(&self) -> Option<Time> {
        self.may_raise_at().filter(|_| self.widened || self.black_hole.is_some())
    }

    /// Whether that is being found out, or it is time to.
    pub(crate) fn may_heal(&self, now: Time) -> bool {
        let raising = self.search.is_some_and(|search| search.why == Why::Raise);
        self.heal_at().is_some_and(|at| raising || now >= at)
    }

    /// When more is to be tried, on a path that takes less than the interface.
    fn may_raise_at(&self) -> Option<Time> {
        self.size.filter(|&size| size < self.ceiling).map(|_| self.raise_at)
    }

    /// Whether a probe is under way.
    pub(crate) fn is_waiting(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether anything is known, so that packets need not be fragmented on the way.
    pub(crate) fn is_known(&self) -> bool {
        self.size.is_some()
    }

    /// When a black hole was found for packets that had passed before, and how large these were, as long as
    /// they do not pass again.
    pub(crate) fn black_hole(&self) -> Option<(Time, u16)> {
        self.black_hole
    }

    /// How many black holes were found.
    pub(crate) fn black_holes(&self) -> u64 {
        self.black_holes
    }

    /// The way of a packet of `length` bytes. `firm`: it may not be fragmented, so its sender expects to be told.
    pub(crate) fn way(&mut self, length: usize, firm: impl FnOnce() -> bool) -> Way {
        self.large |= length > LARGE;
        let Some(size) = self.size else { return Way::Loose };
        if length <= usize::from(size) {
            return Way::Whole;
        }
        if length <= usize::from(BASE) || !self.is_settled() || !firm() {
            return Way::Pieces(size);
        }
        Way::TooBig(size.max(BASE))
    }

    /// Draws conclusions from the time that has passed.
    pub(crate) fn judge(&mut self, now: Time, link: &Link) -> Option<News> {
        let sent = self.sent?;
        if now.since(sent.at) < link.wait() {
            return None;
        }
        if link.replied.is_none_or(|at| at <= sent.at) {
            if now.since(sent.at) >= FORGET {
                self.sent = None;
            }
            return None;
        }
        self.sent = None;
        self.losses += 1;
        if self.losses < link.losses() {
            return None;
        }
        self.losses = 0;
        self.refuted(now, sent.size)
    }

    /// The next probe, if one is due: its number and size. For tunnels in use whose peer answers probes.
    pub(crate) fn probe(&mut self, now: Time) -> Option<(u32, u16)> {
        if self.sent.is_some() || self.endpoint.is_none() {
            return None;
        }
        let confirm = self.losses > 0 || now >= self.confirm_at();
        if self.search.is_none() {
            match self.size {
                None => self.begin(Why::Start, BASE.min(self.ceiling), self.ceiling),
                Some(size) if size < self.ceiling && now >= self.raise_at && !confirm => {
                    self.begin(Why::Raise, size, self.ceiling);
                }
                Some(_) => {}
            }
        }
        let size = match self.search {
            Some(search) => search.trial(self.overhead)?,
            None => self.size.filter(|_| confirm)?,
        };
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.sent = Some(Sent { number, size, at: now });
        Some((number, size))
    }

    fn confirm_at(&self) -> Time {
        self.confirmed + if self.large { CONFIRM } else { CONFIRM_RARELY }
    }

    /// When [`Self::judge`] or [`Self::probe`] has something to say, on a tunnel in use.
    pub(crate) fn due(&self, now: Time, link: &Link) -> Option<Time> {
        self.endpoint?;
        if let Some(sent) = self.sent {
            let at = sent.at + link.wait();
            return Some(if at > now { at } else { now + LOOK });
        }
        if self.search.is_some() || self.size.is_none() || self.losses > 0 {
            return Some(now);
        }
        [Some(self.confirm_at()), self.may_raise_at()].into_iter().flatten().min()
    }

    /// A probe was answered: it arrived with this size.
    pub(crate) fn reply(&mut self, now: Time, number: u32, size: u16) -> Option<News> {
        let since_first = number.wrapping_sub(self.first);
        if since_first >= self.next.wrapping_sub(self.first) || size > self.ceiling {
            return None;
        }
        if self.sent.is_some_and(|sent| sent.number == number) {
            self.sent = None;
            self.losses = 0;
        }
        match &mut self.search {
            Some(search) => {
                if size >= search.low {
                    (search.low, search.proven) = (size, true);
                }
                // It was late, not lost.
                search.high = search.high.max(size.saturating_add(1));
                self.finish(now)
            }
            None => {
                if self.size.is_some_and(|known| size >= known) {
                    self.confirmed = now;
                    self.large = false;
                }
                None
            }
        }
    }

    fn drop_trial(&mut self) {
        self.sent = None;
        self.losses = 0;
        self.first = self.next;
    }

    fn begin(&mut self, why: Why, low: u16, favourite: u16) {
        let (proven, high) = (why == Why::Raise, favourite.saturating_add(1));
        self.search = Some(Search { why, low, proven, high, favourite: Some(favourite) });
        self.drop_trial();
    }

    /// Probes of this size get lost.
    fn refuted(&mut self, now: Time, size: u16) -> Option<News> {
        if let Some(search) = &mut self.search {
            search.high = search.high.min(size);
            if size <= search.low {
                // Not even that much. What is below the floor is left to chance.
                search.proven = search.low <= FLOOR;
                search.low = FLOOR;
                search.high = search.high.max(FLOOR + 1);
                if !search.proven && self.size.is_some() {
                    self.size = Some(FLOOR);
                }
            }
            return self.finish(now);
        }
        if size <= FLOOR {
            self.confirmed = now;
            return None;
        }
        let low = if size > BASE { BASE } else { FLOOR };
        // Perhaps it was chance: what passed before is tried again, before anybody is told of less.
        self.begin(Why::Fall, low, size);
        self.size = Some(low);
        self.black_holes += 1;
        self.black_hole.get_or_insert((now, size));
        Some(News::BlackHole(size))
    }

    /// Ends the search if there is nothing left to try.
    fn finish(&mut self, now: Time) -> Option<News> {
        let search = self.search?;
        if search.trial(self.overhead).is_some() {
            if search.why == Why::Fall && search.proven {
                self.size = Some(search.low);
            }
            return None;
        }
        self.search = None;
        self.widened = false;
        self.drop_trial();
        let before = self.size.filter(|_| search.why == Why::Raise);
        self.size = Some(search.low);
        self.confirmed = now;
        self.large = false;
        let in_vain = before == Some(search.low);
        self.raise_after = if in_vain { (self.raise_after * 2).min(MAX_RAISE) } else { RAISE };
        self.raise_at = now + self.raise_after;
        if self.black_hole.is_some_and(|(_, passed)| search.low >= passed) {
            self.black_hole = None;
        }
        (!in_vain).then_some(News::Found(search.low))
    }
}

impl Search {
    /// The size to try next; none if the truth is known well enough.
    fn trial(&self, overhead: u16) -> Option<u16> {
        let within = |size: &u16| *size > self.low && *size < self.high;
        let favourite = self.favourite.filter(within);
        let hope = (!self.proven).then_some(self.low);
        let first = match self.why {
            // After a fall it is more urgent to know what carries the packets that are under way.
            Why::Fall => hope.or(favourite),
            Why::Start | Why::Raise => favourite.or(hope),
        };
        if first.is_some() {
            return first;
        }
        let candidates = || COMMON.iter().map(|mtu| mtu - overhead).filter(within);
        let n = candidates().count();
        if n > 0 {
            return candidates().nth(n / 2);
        }
        let gap = self.high - self.low;
        (self.why != Why::Raise && FINE.contains(&gap)).then(|| self.low + gap / 2)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const RTT: Duration = Duration::from_millis(20);

    fn endpoint(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 51840)
    }

    /// A path of this MTU, on which small probes are answered every 100 ms, and large packets are sent.
    struct World {
        now: Time,
        path: PathMtu,
        endpoint: SocketAddr,
        mtu: u16,
        /// Of a thousand packets so many are lost.
        loss: u64,
        rng: u64,
        probes: u32,
        news: Vec<News>,
        /// Answers under way.
        answers: Vec<(Time, u32, u16)>,
    }

    impl World {
        fn new(address: &str, underlay: u16, mtu: u16) -> Self {
            let (mut path, endpoint) = (PathMtu::default(), endpoint(address));
            let largest = underlay - OVERHEAD_V4;
            path.set_path(Time::default(), endpoint, PathLimits { underlay, largest });
            Self {
                now: Time::from_micros(1_000_000),
                path,
                endpoint,
                mtu,
                loss: 0,
                rng: 1,
                probes: 0,
                news: Vec::new(),
                answers: Vec::new(),
            }
        }

        fn lost(&mut self) -> bool {
            self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.rng >> 33) % 1000 < self.loss
        }

        fn passes(&self, size: u16) -> bool {
            size + overhead(self.endpoint) <= self.mtu
        }

        /// What a packet of this size, which may not be fragmented, comes to.
        fn way(&mut self, size: u16) -> Way {
            self.path.way(size.into(), || true)
        }

        fn step(&mut self) {
            self.now = self.now + MS;
            let now = self.now;
            let small = Time::from_micros(now.as_micros() / 100_000 * 100_000);
            let lost = self.loss as u32 * 32 / 1000;
            let link = Link { wait: RTT + 10 * MS, replied: Some(small), loss: (lost, 32) };
            for (at, number, size) in std::mem::take(&mut self.answers) {
                if at > now {
                    self.answers.push((at, number, size));
                } else {
                    self.news.extend(self.path.reply(now, number, size));
                }
            }
            self.news.extend(self.path.judge(now, &link));
            if let Some((number, size)) = self.path.probe(now) {
                self.probes += 1;
                if self.passes(size) && !self.lost() {
                    self.answers.push((now + RTT, number, size));
                }
                assert!(self.path.due(now, &link).is_some_and(|at| at > now));
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.way(1200);
                self.step();
            }
        }

        /// Runs until the size is this; how long it took.
        fn until(&mut self, size: u16, most: Duration) -> Duration {
            let begin = self.now;
            while self.path.size() != Some(size) {
                self.way(1200);
                self.step();
                assert!(self.now.since(begin) < most, "{size} not found: {:?}", self.path);
            }
            self.now.since(begin)
        }
    }

    #[test]
    fn what_the_interface_takes_is_confirmed_by_one_probe() {
        for (address, underlay, size) in [
            ("192.0.2.1", 1500, 1440),
            ("2001:db8::1", 1500, 1420),
            ("192.0.2.1", 9000, 8940),
            ("::ffff:192.0.2.1", 1500, 1440),
        ] {
            let mut world = World::new(address, underlay, underlay);
            assert_eq!(world.way(size), Way::Loose);
            assert!(world.until(size, 100 * MS) <= RTT + 2 * MS);
            assert_eq!((world.probes, world.news.as_slice()), (1, &[News::Found(size)][..]));
            assert_eq!((world.way(size), world.way(size + 1)), (Way::Whole, Way::TooBig(size)));
            // Confirmed now and then, and more often while large packets are sent.
            world.run(Duration::from_secs(6));
            assert!((8..=12).contains(&world.probes), "{}", world.probes);
            assert_eq!(world.path.black_hole(), None);
        }
    }

    #[test]
    fn any_path_is_found_with_few_probes_and_nearly_exactly() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            for underlay in [1500, 9001] {
                for mtu in (600..=1500).step_by(7).chain([576, 1280, 1400, 1492, 1500, 8921, 9000, 9001]) {
                    let mut world = World::new(address, underlay, mtu);
                    world.run(Duration::from_secs(4));
                    let most = mtu.min(underlay) - overhead(world.endpoint);
                    let size = world.path.size().unwrap_or_else(|| panic!("{mtu}: nothing"));
                    let near = if COMMON.contains(&mtu) { 0 } else { *FINE.start() };
                    assert!(
                        size <= most && (size + near >= most || size == FLOOR),
                        "{address}, {mtu} of {underlay}: found {size}, truth {most}"
                    );
                    assert!(world.probes <= 45, "{mtu} of {underlay}: {} probes", world.probes);
                }
            }
        }
    }

    #[test]
    fn a_black_hole_is_found_in_a_second_and_left_when_it_is_gone() {
        for (mtu, size) in [(1400, 1340), (1280, 1220), (1492, 1432)] {
            let mut world = World::new("192.0.2.1", 1500, 1500);
            world.run(Duration::from_secs(3));
            (world.mtu, world.news) = (mtu, Vec::new());
            let mut told = None;
            let mut gap = Duration::ZERO;
            for _ in 0..4000 {
                world.step();
                match world.way(1440) {
                    Way::Whole if world.passes(1440) => {}
                    Way::Pieces(most) if world.passes(most) => {}
                    Way::TooBig(told_size) => told = told.or(Some(told_size)),
                    _ => gap += MS,
                }
            }
            assert!(gap < Duration::from_millis(1500), "{mtu}: packets vanished for {gap:?}");
            assert_eq!(world.news, [News::BlackHole(1440), News::Found(size)], "{mtu}");
            // Nobody was told of a size on the way to the truth.
            assert_eq!(told, Some(size.max(BASE)), "{mtu}");
            assert_eq!(world.path.black_hole().map(|(_, passed)| passed), Some(1440));
            if size < BASE {
                assert_eq!(world.way(BASE), Way::Pieces(size));
            }
            world.mtu = 1500;
            let took = world.until(1440, MAX_RAISE + Duration::from_secs(2));
            assert!(took < MAX_RAISE, "{took:?}");
            assert_eq!((world.path.black_hole(), world.path.black_holes()), (None, 1));
        }
    }

    #[test]
    fn raising_is_tried_more_rarely_and_costs_little() {
        let mut world = World::new("192.0.2.1", 9000, 1500);
        world.until(1440, Duration::from_secs(3));
        let before = world.probes;
        world.run(Duration::from_secs(600));
        let confirmations = 600 * 1000 / 620;
        assert!(world.probes - before < confirmations + 12 * 30, "{}", world.probes - before);
        assert_eq!(world.path.size(), Some(1440));
        world.mtu = 9000;
        world.until(8940, Duration::from_secs(62));
    }

    #[test]
    fn loss_is_not_taken_for_a_black_hole() {
        for (loss, rng) in [(20, 1), (50, 2), (150, 3), (300, 4)] {
            let mut world = World::new("192.0.2.1", 1500, 1500);
            (world.loss, world.rng) = (loss, rng);
            world.until(1440, Duration::from_secs(20));
            let (mut other, mut told) = (0, 0);
            for _ in 0..120_000 {
                world.step();
                match world.way(1440) {
                    Way::Whole => {}
                    Way::TooBig(_) => told += 1,
                    _ => other += 1,
                }
            }
            assert!(other < 6_000 && told == 0, "{loss}: {other} ms in doubt, {told} ms too small");
        }
    }

    #[test]
    fn an_outage_says_nothing_about_size() {
        let mut world = World::new("192.0.2.1", 1500, 1500);
        world.run(Duration::from_secs(2));
        let link = Link { wait: RTT, replied: Some(world.now), loss: (32, 32) };
        for ms in 1..20_000 {
            let now = world.now + MS * ms;
            world.way(1440);
            assert_eq!(world.path.judge(now, &link), None);
            world.path.probe(now);
        }
        assert_eq!(world.path.size(), Some(1440));
    }

    #[test]
    fn another_path_is_confirmed_at_once() {
        let mut world = World::new("192.0.2.1", 1500, 1400);
        world.until(1340, Duration::from_secs(3));
        let limits = PathLimits { underlay: 1500, largest: 1440 };
        let probes = world.probes;
        world.mtu = 1500;
        world.path.set_path(world.now, endpoint("192.0.2.1"), limits);
        world.run(Duration::from_millis(300));
        assert_eq!(world.probes, probes, "nothing has changed");
        world.path.set_path(world.now, endpoint("203.0.113.9"), limits);
        world.until(1440, Duration::from_millis(200));
        // A smaller interface limits at once, a larger one has more tried.
        world.path.set_path(world.now, endpoint("203.0.113.9"), PathLimits { underlay: 1400, largest: 1440 });
        assert_eq!(world.path.size(), Some(1340));
        world.mtu = 9000;
        let limits = PathLimits { underlay: 9000, largest: 8940 };
        world.path.set_path(world.now, endpoint("203.0.113.9"), limits);
        world.until(8940, Duration::from_millis(200));
        world.endpoint = endpoint("2001:db8::7");
        world.path.set_path(world.now, world.endpoint, limits);
        assert_eq!(world.path.size(), Some(8920));
    }

    #[test]
    fn answers_to_nothing_are_ignored() {
        let mut world = World::new("192.0.2.1", 1500, 1500);
        assert_eq!(world.path.reply(world.now, 0, 1440), None);
        world.until(1440, Duration::from_secs(1));
        assert_eq!(world.path.reply(world.now, 1, 9000), None);
        assert_eq!(world.path.reply(world.now, u32::MAX, 1300), None);
        assert_eq!(world.path.size(), Some(1440));
        world.path.forget();
        assert_eq!((world.path.size(), world.way(1440)), (None, Way::Loose));
    }

    proptest! {
        /// Whatever the path does: what is sent whole has passed before, unless nothing is known, and a path
        /// that stays as it is gets found.
        #[test]
        fn never_larger_than_what_was_answered(
            mtus in prop::collection::vec((560_u16..2000, 1_u64..8000), 1..8),
            loss in 0_u64..100,
            seed in any::<u64>(),
        ) {
            let mut world = World::new("192.0.2.1", 2000, 2000);
            (world.loss, world.rng) = (loss, seed);
            let mut answered = 0;
            for (mtu, time) in mtus {
                world.mtu = mtu;
                for _ in 0..time {
                    answered = world
                        .answers
                        .iter()
                        .filter(|(at, ..)| *at <= world.now + MS)
                        .map(|&(.., size)| size)
                        .fold(answered, u16::max);
                    world.step();
                    if world.way(1900) == Way::Whole {
                        prop_assert!(1900 <= answered);
                    }
                    if let Some(size) = world.path.size() {
                        prop_assert!(size <= answered.max(FLOOR));
                    }
                }
            }
            world.loss = 0;
            world.run(Duration::from_secs(75));
            let most = world.mtu - OVERHEAD_V4;
            let size = world.path.size();
            prop_assert!(size.is_some_and(|size| size <= most), "{size:?} of {most}");
        }
    }
}
