//! When each tunnel is to be looked at next. Tunnels that sleep are not in here and cost nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Time;

/// A heap of due times. A tunnel that is put earlier leaves its later entry behind, which is recognised
/// when it comes up because it is not the tunnel's due time any more; a tunnel is put earlier only by
/// rare events (a handshake, a new table), never by packets, so such entries are few.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Time, u32)>>,
}

impl Timers {
    /// Notes that tunnel `slot` is due at `at`.
    pub(crate) fn push(&mut self, at: Time, slot: u32) {
        self.heap.push(Reverse((at, slot)));
    }

    /// The earliest entry, stale or not.
    pub(crate) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out an entry that is due by `now`.
    pub(crate) fn pop(&mut self, now: Time) -> Option<(Time, u32)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

/// Random numbers good enough for jitter (SplitMix64); seeded from outside, so that a run can be repeated.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        super::rendezvous::fold(self.0, 0)
    }

    /// A duration below `most`.
    pub(crate) fn below(&mut self, most: std::time::Duration) -> std::time::Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
        std::time::Duration::from_micros(self.next() % micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_out_in_time() {
        let mut timers = Timers::default();
        for (at, slot) in [(30, 3), (10, 1), (20, 2)] {
            timers.push(Time::from_micros(at), slot);
        }
        assert_eq!(timers.pop(Time::from_micros(9)), None);
        let due: Vec<_> =
            std::iter::from_fn(|| timers.pop(Time::from_micros(25))).map(|(_, slot)| slot).collect();
        assert_eq!(due, [1, 2]);
        assert_eq!(timers.next(), Some(Time::from_micros(30)));
    }
}
