//! Packets that wait for a tunnel's handshake: few, and not for long.

use std::collections::VecDeque;
use std::time::Duration;

use super::Time;

/// Packets that wait for one tunnel, at most; the oldest gives way to the newest.
pub(crate) const TUNNEL_PACKETS: usize = 64;
/// Bytes that wait on one worker, at most, whatever the number of tunnels.
pub const QUEUE_BYTES: usize = 8 << 20;
/// A packet that has waited for longer is worth nothing to who sent it.
const QUEUE_TIME: Duration = Duration::from_secs(3);

/// The bytes that all queues of a worker hold.
#[derive(Debug, Default)]
pub(crate) struct Budget(usize);

/// The queue of one tunnel. Every function that drops packets returns how many.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<(Time, Box<[u8]>)>);

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a packet, in place of the oldest if there are too many; not at all if the worker's budget is
    /// spent.
    pub(crate) fn push(&mut self, now: Time, packet: &[u8], budget: &mut Budget) -> u64 {
        let mut dropped = 0;
        if self.0.len() >= TUNNEL_PACKETS {
            dropped += u64::from(self.pop(budget).is_some());
        }
        if budget.0 + packet.len() > QUEUE_BYTES {
            return dropped + 1;
        }
        budget.0 += packet.len();
        self.0.push_back((now, packet.into()));
        dropped
    }

    /// Takes the oldest packet out.
    pub(crate) fn pop(&mut self, budget: &mut Budget) -> Option<Box<[u8]>> {
        let (_, packet) = self.0.pop_front()?;
        budget.0 -= packet.len();
        Some(packet)
    }

    /// Drops the packets that have waited too long.
    pub(crate) fn purge(&mut self, now: Time, budget: &mut Budget) -> u64 {
        let mut dropped = 0;
        while self.0.front().is_some_and(|&(at, _)| now.since(at) >= QUEUE_TIME) {
            dropped += u64::from(self.pop(budget).is_some());
        }
        dropped
    }

    /// Drops all packets.
    pub(crate) fn clear(&mut self, budget: &mut Budget) -> u64 {
        std::iter::from_fn(|| self.pop(budget)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_share_one_budget_and_give_it_back() {
        let mut budget = Budget::default();
        let mut queues: Vec<Queue> = (0..10).map(|_| Queue::default()).collect();
        let packet = vec![0; 60_000];
        let now = Time::default();
        let mut dropped = 0;
        for queue in &mut queues {
            dropped += (0..TUNNEL_PACKETS).map(|_| queue.push(now, &packet, &mut budget)).sum::<u64>();
        }
        assert!(budget.0 <= QUEUE_BYTES && budget.0 > QUEUE_BYTES - packet.len());
        assert_eq!(dropped as usize, 10 * TUNNEL_PACKETS - QUEUE_BYTES / packet.len());
        let late = now + QUEUE_TIME;
        let purged: u64 = queues[..2].iter_mut().map(|queue| queue.purge(late, &mut budget)).sum();
        assert_eq!(purged as usize, 2 * TUNNEL_PACKETS);
        let cleared: u64 = queues[2..].iter_mut().map(|queue| queue.clear(&mut budget)).sum();
        assert_eq!((purged + cleared) as usize, QUEUE_BYTES / packet.len());
        assert_eq!(budget.0, 0);
    }

    #[test]
    fn the_oldest_gives_way() {
        let (mut budget, mut queue) = (Budget::default(), Queue::default());
        let dropped: u64 = (0..70).map(|n| queue.push(Time::default(), &[n], &mut budget)).sum();
        assert_eq!(dropped, 6);
        assert_eq!(queue.pop(&mut budget).unwrap()[0], 6);
    }
}
