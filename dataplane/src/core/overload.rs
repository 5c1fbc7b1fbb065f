//! What is dropped when more comes in than a worker can open.
//!
//! The kernel drops what does not fit a socket's buffer, whoever sent it: then a peer that sends little loses as large a
//! part as the one that floods. So while the buffer overflows, a worker takes datagrams out of it faster than it opens
//! them, and drops what is beyond an even share before the cipher sees it, which costs next to nothing. Who sends
//! less than the share loses nothing; handshakes are not counted at all.
//!
//! An overflow is heard of late, since datagrams tell of it that lie behind a whole buffer of others, and seldom, since
//! the kernel gives room back by quarters of the buffer. So it only begins with one: from then on a worker that does not
//! empty the buffer with one batch is behind, and opens less and less of each, until it has caught up; what comes then it
//! opens whole.

use std::time::Duration;

use super::Time;

/// Each level opens half as much as the one below: the last one a thirty-second part.
const LEVELS: u32 = 5;
/// A level has so long to show what it is worth.
const STEP: Duration = Duration::from_millis(5);
/// Without overflow and not behind for so long, it goes down one level.
const CALM: Duration = Duration::from_millis(50);

/// How many packets of a tunnel there are in a batch; later, how many of them are still admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    tunnel: u32,
    packets: usize,
}

#[derive(Debug, Default)]
pub(super) struct Overload {
    level: u32,
    changed: Time,
    /// When it overflowed or was behind last.
    strained: Time,
    shares: Vec<Share>,
}

impl Overload {
    /// The socket's buffer has overflowed.
    pub(super) fn note(&mut self, now: Time) {
        self.strained = now;
        if self.level == 0 || now.since(self.changed) >= STEP {
            self.level = (self.level + 1).min(LEVELS);
            self.changed = now;
        }
    }

    /// Begins with a batch whose data packets are for these `tunnels`; `behind` is whether it took no more, so that some
    /// may wait. Returns whether [`Self::admits`] is to be asked.
    pub(super) fn begin(&mut self, now: Time, behind: bool, tunnels: impl Iterator<Item = u32>) -> bool {
        if self.level > 0 && now.since(self.changed.max(self.strained)) >= CALM {
            self.level -= 1;
            self.changed = now;
        }
        if self.level == 0 || !behind {
            return false;
        }
        self.note(now);
        self.shares.clear();
        for tunnel in tunnels {
            match self.find(tunnel) {
                Some(share) => share.packets += 1,
                None => self.shares.push(Share { tunnel, packets: 1 }),
            }
        }
        let total: usize = self.shares.iter().map(|share| share.packets).sum();
        let limit = even_share(&mut self.shares, (total >> self.level).max(1));
        self.shares.iter_mut().for_each(|share| share.packets = share.packets.min(limit));
        true
    }

    /// Whether the next packet for `tunnel` is to be opened.
    pub(super) fn admits(&mut self, tunnel: u32) -> bool {
        match self.find(tunnel) {
            Some(Share { packets: 0, .. }) => false,
            Some(share) => {
                share.packets -= 1;
                true
            }
            None => true,
        }
    }

    /// Those that come in a row are found at once: the last one found is kept in front.
    fn find(&mut self, tunnel: u32) -> Option<&mut Share> {
        let at = self.shares.iter().position(|share| share.tunnel == tunnel)?;
        self.shares.swap(0, at);
        self.shares.first_mut()
    }
}

/// The most that each may have for all together to have no more than `budget`; at least one.
fn even_share(shares: &mut [Share], budget: usize) -> usize {
    shares.sort_unstable_by_key(|share| share.packets);
    let mut left = budget;
    for (i, share) in shares.iter().enumerate() {
        let even = left / (shares.len() - i);
        if share.packets > even {
            return even.max(1);
        }
        left -= share.packets;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// How many packets of each tunnel are admitted.
    fn admitted(overload: &mut Overload, now: Time, batch: &[(u32, usize)]) -> Vec<usize> {
        let all = || batch.iter().flat_map(|&(tunnel, n)| std::iter::repeat_n(tunnel, n));
        let asked = overload.begin(now, true, all());
        let mut counts = vec![0; batch.len()];
        for tunnel in all() {
            if !asked || overload.admits(tunnel) {
                counts[batch.iter().position(|&(t, _)| t == tunnel).unwrap()] += 1;
            }
        }
        counts
    }

    #[test]
    fn who_sends_little_loses_nothing() {
        let (mut overload, now) = (Overload::default(), Time::default());
        let batch = [(7, 1000), (1, 3), (8, 400), (2, 1), (3, 20)];
        assert_eq!(admitted(&mut overload, now, &batch), [1000, 3, 400, 1, 20]);
        overload.note(now);
        assert_eq!(admitted(&mut overload, now, &batch), [344, 3, 344, 1, 20], "712 of 1424");
        // Overflowing goes on: less and less is opened, and never a share of those that send little.
        let mut now = now;
        for _ in 0..20 {
            now = now + STEP;
            overload.note(now);
        }
        assert_eq!(admitted(&mut overload, now, &batch), [13, 3, 13, 1, 13], "a thirty-second part");
        // One alone is limited, too: whoever waits behind it in the socket cannot be seen from here.
        assert_eq!(admitted(&mut overload, now, &[(7, 64)]), [2]);
        assert_eq!(admitted(&mut overload, now, &[(7, 1)]), [1]);
        assert_eq!(admitted(&mut overload, now, &[]), [0; 0]);
    }

    #[test]
    fn who_is_behind_opens_less_until_he_has_caught_up() {
        let (mut overload, mut now) = (Overload::default(), Time::default());
        let opens = |overload: &mut Overload, now, behind| {
            let asked = overload.begin(now, behind, std::iter::repeat_n(1, 1600));
            (0..1600).filter(|_| !asked || overload.admits(1)).count()
        };
        // Full batches alone are nothing unusual.
        assert_eq!(opens(&mut overload, now, true), 1600);
        // But after an overflow they are, even if nothing is heard of another one.
        overload.note(now);
        for expected in [400, 200, 100, 50, 50] {
            now = now + 10 * MS;
            assert_eq!(opens(&mut overload, now, true), expected);
        }
        assert_eq!(opens(&mut overload, now, false), 1600);
        // The next time it catches up as fast, unless it was long without.
        now = now + 10 * MS;
        assert_eq!(opens(&mut overload, now, true), 50);
        for _ in 0..4 {
            now = now + CALM;
            assert_eq!(opens(&mut overload, now, false), 1600);
        }
        assert_eq!(opens(&mut overload, now, true), 800);
    }

    #[test]
    fn it_is_over_when_nothing_overflows() {
        let (mut overload, mut now) = (Overload::default(), Time::default());
        // Of many notes at one time one counts.
        (0..100).for_each(|_| overload.note(now));
        assert_eq!(admitted(&mut overload, now, &[(1, 100)]), [50]);
        now = now + (CALM - MS);
        assert_eq!(admitted(&mut overload, now, &[(1, 100)]), [25], "it was behind all the time");
        for expected in [50, 100, 100] {
            now = now + CALM;
            assert_eq!(admitted(&mut overload, now, &[(1, 100)]), [expected]);
        }
    }
}
