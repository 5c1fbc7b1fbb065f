//! Another program that takes podspan's entry out again is not fought in a loop. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// What was lost longer ago counts no more.
const MEMORY: Duration = Duration::from_secs(3600);
/// How long to wait after the first, second, ... loss within [`MEMORY`]. A primary that starts anew and
/// writes its file once is answered at once.
const WAITS: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600)];
/// From so many losses on it is a fight.
pub const MANY: usize = 3;

/// The losses of late. Times are since any fixed moment.
#[derive(Clone, Debug, Default)]
pub struct Fight {
    losses: VecDeque<Duration>,
}

impl Fight {
    /// podspan's entry was found to be gone at `now`.
    pub fn lost(&mut self, now: Duration) {
        self.forget(now);
        // More are not told apart.
        if self.losses.len() > WAITS.len() {
            self.losses.pop_front();
        }
        self.losses.push_back(now);
    }

    /// How often it was lost of late.
    pub fn count(&mut self, now: Duration) -> usize {
        self.forget(now);
        self.losses.len()
    }

    /// How long to wait, from `now`, before it is put there again.
    pub fn wait(&mut self, now: Duration) -> Duration {
        self.forget(now);
        let Some(last) = self.losses.back() else { return Duration::ZERO };
        let wait = WAITS[self.losses.len().min(WAITS.len()) - 1];
        (*last + wait).saturating_sub(now)
    }

    /// Begins anew: by another way, or with another mode.
    pub fn reset(&mut self) {
        self.losses.clear();
    }

    fn forget(&mut self, now: Duration) {
        while self.losses.front().is_some_and(|first| now.saturating_sub(*first) > MEMORY) {
            self.losses.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_each_time_and_forgets_in_an_hour() {
        let s = Duration::from_secs;
        let mut fight = Fight::default();
        assert_eq!(fight.wait(s(0)), s(0));
        fight.lost(s(0));
        assert_eq!(fight.wait(s(0)), s(0), "once is no fight");
        fight.lost(s(1));
        assert_eq!(fight.wait(s(2)), s(9));
        fight.lost(s(11));
        assert_eq!((fight.count(s(11)), fight.wait(s(11))), (MANY, s(60)));
        for i in 0..100 {
            fight.lost(s(100 + i));
        }
        assert_eq!(fight.wait(s(199)), s(600), "never more often than that");
        assert_eq!(fight.wait(s(200 + 3600)), s(0));
        assert_eq!(fight.count(s(200 + 3600)), 0);
    }

    /// However a fight goes, it costs few writes: an hour of it, with an opponent who answers in a second.
    #[test]
    fn an_hour_of_it_is_a_handful_of_writes() {
        let (mut fight, mut now, mut writes) = (Fight::default(), Duration::ZERO, 0);
        while now < Duration::from_secs(3600) {
            fight.lost(now);
            now += fight.wait(now);
            writes += 1;
            now += Duration::from_secs(1);
        }
        assert!((5..=10).contains(&writes), "{writes}");
    }
}
