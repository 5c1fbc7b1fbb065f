//! The path itself: a queue of packets in virtual time. No socket, no clock: time comes in as an argument, and
//! what is random comes from the plan's seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::packet;
use super::plan::{Counts, Fault, Plan, QUEUE_BYTES};
use crate::random::Random;

/// All that is under way may take so many bytes; more is dropped and counted as overflow: 64 MiB.
const CEILING: usize = 64 * 1024 * 1024;

/// A path with faults.
#[derive(Debug)]
pub(crate) struct Path {
    plan: Plan,
    /// One for each rule of the plan.
    links: Vec<Link>,
    under_way: BinaryHeap<Reverse<Waiting>>,
    bytes: usize,
    /// Number of the next packet: those due at the same time leave in the order in which they came.
    next: u64,
    counts: Counts,
}

/// A packet and when it is due, since an arbitrary beginning. Ordered by time, then number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Duration,
    number: u64,
    packet: Vec<u8>,
}

/// What a rule remembers.
#[derive(Debug)]
struct Link {
    random: Random,
    /// Until when the link is busy sending what it was given.
    busy: Duration,
    /// When the last packet leaves that keeps its order.
    last: Duration,
}

/// What a link does to one packet.
struct Fate {
    copies: usize,
    due: Duration,
    held: bool,
    corrupt: bool,
}

impl Path {
    /// A path without faults.
    pub(crate) fn new() -> Self {
        Self {
            plan: Plan::default(),
            links: Vec::new(),
            under_way: BinaryHeap::new(),
            bytes: 0,
            next: 0,
            counts: Counts::default(),
        }
    }

    /// From now on this is done. What is under way already arrives as it would have; counts begin anew.
    pub(crate) fn set(&mut self, plan: Plan) {
        let link = |number: usize| Link {
            random: Random::new(plan.seed.wrapping_mul(1009).wrapping_add(number as u64)),
            busy: Duration::ZERO,
            last: Duration::ZERO,
        };
        self.links = (0..plan.rules.len()).map(link).collect();
        self.plan = plan;
        self.counts = Counts::default();
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A packet enters.
    pub(crate) fn take(&mut self, now: Duration, packet: Vec<u8>) {
        self.counts.seen += 1;
        let Some((from, to)) = packet::addresses(&packet) else {
            self.counts.foreign += 1;
            return;
        };
        let mut copies = vec![(now, packet)];
        for (rule, link) in self.plan.rules.iter().zip(&mut self.links) {
            if !rule.matches(from, to) {
                continue;
            }
            let mut passed = Vec::with_capacity(copies.len());
            for (at, mut packet) in copies {
                let Some(fate) = link.pass(&rule.fault, at, packet.len(), &mut self.counts) else { continue };
                if fate.corrupt && packet::corrupt(&mut packet, &mut link.random) {
                    self.counts.corrupted += 1;
                }
                self.counts.held += u64::from(fate.held);
                for _ in 1..fate.copies {
                    self.counts.duplicated += 1;
                    passed.push((fate.due, packet.clone()));
                }
                passed.push((fate.due, packet));
            }
            copies = passed;
        }
        for (due, packet) in copies {
            self.push(due, packet);
        }
    }

    fn push(&mut self, due: Duration, packet: Vec<u8>) {
        if self.bytes + packet.len() > CEILING {
            self.counts.overflowed += 1;
            return;
        }
        self.bytes += packet.len();
        self.under_way.push(Reverse(Waiting { due, number: self.next, packet }));
        self.next += 1;
    }

    /// When the next packet leaves.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.under_way.peek().map(|Reverse(waiting)| waiting.due)
    }

    /// The next packet that is due.
    pub(crate) fn leave(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(waiting) = self.under_way.pop()?;
        self.bytes -= waiting.packet.len();
        self.counts.sent += 1;
        Some(waiting.packet)
    }
}

impl Link {
    /// None: it is dropped. Each packet draws the same numbers, whatever becomes of it.
    fn pass(&mut self, fault: &Fault, at: Duration, length: usize, counts: &mut Counts) -> Option<Fate> {
        let lost = self.random.chance(fault.loss);
        let duplicate = self.random.chance(fault.duplicate);
        let held = self.random.chance(fault.reorder);
        let corrupt = self.random.chance(fault.corrupt);
        let jitter =
            self.random.below(usize::try_from(fault.jitter_us).unwrap_or(usize::MAX).saturating_add(1));
        if fault.mtu.is_some_and(|mtu| length > mtu as usize) {
            counts.too_big += 1;
            return None;
        }
        if lost {
            counts.lost += 1;
            return None;
        }
        let Some(out) = self.queue(fault, at, length) else {
            counts.overflowed += 1;
            return None;
        };
        let delayed = out + Duration::from_micros(fault.delay_us) + Duration::from_micros(jitter as u64);
        let due = if held {
            delayed + Duration::from_micros(fault.hold_us)
        } else {
            self.last = self.last.max(delayed);
            self.last
        };
        Some(Fate { copies: if duplicate { 2 } else { 1 }, due, held, corrupt })
    }

    /// When the packet has left a link of limited rate; none if its queue is full.
    fn queue(&mut self, fault: &Fault, at: Duration, length: usize) -> Option<Duration> {
        let Some(rate) = fault.rate_kbit else { return Some(at) };
        // Bits over kilobits per second are milliseconds; times a million, nanoseconds.
        let nanos = |bytes: u64| bytes.saturating_mul(8_000_000) / rate.max(1);
        let limit = if fault.queue_bytes == 0 { QUEUE_BYTES } else { fault.queue_bytes };
        let begin = self.busy.max(at);
        if begin - at > Duration::from_nanos(nanos(limit)) {
            return None;
        }
        self.busy = begin + Duration::from_nanos(nanos(length as u64));
        Some(self.busy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::udp;
    use super::super::plan::Rule;
    use super::*;

    const A: &str = "192.0.2.11";
    const B: &str = "198.51.100.11";
    const MS: Duration = Duration::from_millis(1);

    fn path(fault: Fault) -> Path {
        seeded(7, fault)
    }

    fn seeded(seed: u64, fault: Fault) -> Path {
        let mut path = Path::new();
        let rule = Rule::between(&[A.parse().unwrap()], &[], fault);
        path.set(Plan { seed, rules: vec![rule] });
        path
    }

    fn numbered(number: u32) -> Vec<u8> {
        udp(A, B, &[&number.to_be_bytes()[..], &[0; 96]].concat())
    }

    fn number(packet: &[u8]) -> u32 {
        u32::from_be_bytes(packet[28..32].try_into().unwrap())
    }

    /// Sends so many packets, one each millisecond; gives when each arrived, and which.
    fn run(path: &mut Path, count: u32) -> Vec<(Duration, u32)> {
        let mut arrived = Vec::new();
        let mut sent = 0;
        let mut now = Duration::ZERO;
        while sent < count || path.next_due().is_some() {
            if sent < count {
                path.take(now, numbered(sent));
                sent += 1;
            }
            now += MS;
            // Leaves exactly when it is due, however coarse the look.
            while let Some(due) = path.next_due().filter(|due| *due < now) {
                let packet = path.leave(due).unwrap();
                arrived.push((due, number(&packet)));
            }
        }
        arrived
    }

    #[test]
    fn without_a_fault_all_passes_at_once_and_in_order() {
        let arrived = run(&mut path(Fault::default()), 1000);
        assert_eq!(arrived, (0..1000).map(|n| (MS * n, n)).collect::<Vec<_>>());
    }

    #[test]
    fn loss_has_its_rate_and_the_rest_keeps_order_and_time() {
        for loss in [0.0, 0.01, 0.3, 0.9, 1.0] {
            let mut path = path(Fault::lossy(loss));
            let arrived = run(&mut path, 20_000);
            let lost = 1.0 - f64::from(u32::try_from(arrived.len()).unwrap()) / 20_000.0;
            assert!((lost - loss).abs() < 0.01, "{loss}: {lost}");
            assert!(arrived.windows(2).all(|pair| pair[0].1 < pair[1].1));
            assert!(arrived.iter().all(|(due, n)| *due == MS * *n));
            assert_eq!(path.counts().lost + path.counts().sent, 20_000);
        }
    }

    #[test]
    fn delay_and_jitter_are_within_their_bounds_and_keep_the_order() {
        let fault = Fault { delay_us: 40_000, jitter_us: 10_000, ..Fault::default() };
        let arrived = run(&mut path(fault), 10_000);
        assert_eq!(arrived.len(), 10_000);
        assert!(arrived.windows(2).all(|pair| pair[0].1 < pair[1].1));
        let delays: Vec<_> = arrived.iter().map(|(due, n)| *due - MS * *n).collect();
        assert!(delays.iter().all(|delay| (MS * 40..=MS * 50).contains(delay)));
        assert!(delays.iter().any(|delay| *delay < MS * 43) && delays.iter().any(|delay| *delay > MS * 49));
    }

    #[test]
    fn what_is_held_is_overtaken_and_nothing_else() {
        let fault = Fault { reorder: 0.1, hold_us: 5_500, ..Fault::default() };
        let mut path = path(fault);
        let arrived = run(&mut path, 10_000);
        assert_eq!(arrived.len(), 10_000);
        let late = arrived.iter().filter(|(due, n)| *due > MS * *n).count() as u64;
        assert_eq!(late, path.counts().held);
        assert!((900..1100).contains(&late), "{late}");
        // Each of them comes after the five that were sent behind it.
        let place = |n: u32| arrived.iter().position(|(_, m)| *m == n).unwrap();
        let (_, held) = arrived.iter().find(|(due, n)| *due > MS * *n).unwrap();
        assert!(place(*held) > place(held + 5).min(place(held + 4)));
    }

    #[test]
    fn duplicates_and_damage_have_their_rate() {
        let mut path = path(Fault { duplicate: 0.2, corrupt: 0.1, ..Fault::default() });
        for n in 0..10_000 {
            path.take(MS * n, numbered(n));
        }
        let mut damaged = 0;
        while let Some(packet) = path.leave(MS * 20_000) {
            // A bit was turned in the number or in what follows it, which is zero.
            damaged += u32::from(packet[32..].iter().any(|byte| *byte != 0));
        }
        let counts = path.counts().clone();
        assert_eq!(counts.sent, 10_000 + counts.duplicated);
        assert!((1900..2100).contains(&counts.duplicated), "{counts:?}");
        assert!((900..1100).contains(&counts.corrupted), "{counts:?}");
        assert!(damaged > 800, "{damaged}");
    }

    #[test]
    fn a_slow_link_has_its_rate_and_drops_what_its_queue_cannot_hold() {
        // 128 bytes each millisecond are 1024 kbit/s; half of that passes.
        let fault = Fault { rate_kbit: Some(512), queue_bytes: 12_800, ..Fault::default() };
        let mut path = path(fault);
        let arrived = run(&mut path, 10_000);
        let expected = 5_000 + 100;
        assert!(arrived.len().abs_diff(expected) < 20, "{}", arrived.len());
        let worst = arrived.iter().map(|(due, n)| *due - MS * *n).max().unwrap();
        assert!((MS * 195..=MS * 210).contains(&worst), "100 packets of 2 ms: {worst:?}");
        assert_eq!(path.counts().overflowed + path.counts().sent, 10_000);
    }

    #[test]
    fn a_black_hole_takes_the_large_ones_only() {
        let mut path = path(Fault { mtu: Some(1400), ..Fault::default() });
        path.take(MS, udp(A, B, &[0; 1400 - 28]));
        path.take(MS, udp(A, B, &[0; 1401 - 28]));
        assert_eq!(path.leave(MS).map(|packet| packet.len()), Some(1400));
        assert_eq!(path.leave(MS * 100), None);
        assert_eq!(path.counts().too_big, 1);
    }

    #[test]
    fn a_rule_meets_its_direction_only_and_several_add_up() {
        let mut path = Path::new();
        let delay = |delay_us| Fault { delay_us, ..Fault::default() };
        let (a, b) = (A.parse().unwrap(), B.parse().unwrap());
        let rules = vec![Rule::between(&[a], &[b], delay(1000)), Rule::between(&[a], &[], delay(2000))];
        path.set(Plan { seed: 1, rules });
        path.take(Duration::ZERO, udp(A, B, b"x"));
        assert_eq!(path.next_due(), Some(MS * 3));
        path.leave(MS * 3).unwrap();
        path.take(MS * 4, udp(B, A, b"x"));
        assert_eq!(path.next_due(), Some(MS * 4));
    }

    #[test]
    fn a_seed_repeats_and_another_one_differs() {
        let fault = || Fault { loss: 0.2, duplicate: 0.1, reorder: 0.1, hold_us: 3000, ..Fault::default() };
        assert_eq!(run(&mut seeded(7, fault()), 2000), run(&mut seeded(7, fault()), 2000));
        assert_ne!(run(&mut seeded(7, fault()), 2000), run(&mut seeded(8, fault()), 2000));
    }

    #[test]
    fn what_is_under_way_arrives_when_the_plan_changes_and_memory_is_bounded() {
        let mut path = path(Fault { delay_us: 1_000_000, ..Fault::default() });
        for n in 0..600_000 {
            path.take(Duration::ZERO, numbered(n));
        }
        assert!(path.counts().overflowed > 0 && path.bytes <= CEILING);
        let under_way = path.under_way.len();
        path.set(Plan::default());
        let mut left = 0;
        while path.leave(MS * 1000).is_some() {
            left += 1;
        }
        assert_eq!(left, under_way);
    }
}
