//! When a worker lets packets gather before it wakes up for them.
//!
//! Going to sleep and waking up costs more than a small packet itself. While packets come one by one at a pace that
//! has the worker sleep and wake thousands of times a second, it therefore rests for a fixed, short time before it
//! looks again, and finds several: what network cards do with their interrupts. It does so on trial: senders that
//! wait for answers would be slowed down, and are found out by packets becoming fewer. Then it stops, and
//! the next trial is twice as far away.

use std::time::Duration;

use crate::core::Time;

/// How long packets gather. The delay that it adds, half of this on average, is a small part of any round trip
/// between two sites.
pub(super) const PAUSE: Duration = Duration::from_micros(120);
/// A wait that was shorter was none: the packets were there.
pub(super) const SLEPT: Duration = Duration::from_micros(4);
/// A turn with more packets is worth waking up for.
const FEW: usize = 4;
/// Turns that are looked at together.
const WINDOW: u32 = 16;
/// The least pace of wake-ups at which letting packets gather pays: as many in so short a time.
const WINDOW_TIME: Duration = Duration::from_millis(2);
/// Windows until the first trial, and between trials at most: a quarter of a minute at 10,000 wake-ups a second.
const FIRST_TRIAL: u32 = 1;
const RAREST_TRIAL: u32 = 1 << 13;

/// A measured pace: packets, and the time in which they came.
#[derive(Clone, Copy, Debug)]
struct Rate {
    packets: u64,
    time: Duration,
}

impl Rate {
    /// Whether this is at least four fifths of `other`.
    fn is_about(self, other: Self) -> bool {
        let this = u128::from(self.packets) * other.time.as_nanos();
        let other = u128::from(other.packets) * self.time.as_nanos();
        this * 5 >= other * 4
    }
}

#[derive(Debug)]
enum Mode {
    /// Wakes up for each packet; a trial comes after so many windows that call for one.
    Each { left: u32 },
    /// Lets packets gather, which were `before` when it did not.
    Gather { before: Rate },
}

/// Decides from what the turns brought.
#[derive(Debug)]
pub(super) struct Pace {
    mode: Mode,
    /// Windows between the last trial and the next.
    apart: u32,
    /// The window that is being looked at.
    since: Time,
    turns: u32,
    packets: u64,
}

impl Default for Pace {
    fn default() -> Self {
        let mode = Mode::Each { left: FIRST_TRIAL };
        Self { mode, apart: FIRST_TRIAL, since: Time::default(), turns: 0, packets: 0 }
    }
}

impl Pace {
    /// How long to rest before the next look.
    pub(super) fn pause(&self) -> Option<Duration> {
        matches!(self.mode, Mode::Gather { .. }).then_some(PAUSE)
    }

    /// Takes note of a turn that brought `packets`, after a wait for them of `waited`.
    pub(super) fn note(&mut self, now: Time, waited: Duration, packets: usize) {
        if packets == 0 {
            return;
        }
        let gathers = self.pause().is_some();
        // Packets that were there already, or many at once: nothing is to be gained.
        if !gathers && (packets > FEW || waited < SLEPT) {
            return self.begin(now);
        }
        self.turns += 1;
        self.packets += packets as u64;
        if self.turns < WINDOW {
            return;
        }
        let rate = Rate { packets: self.packets, time: now.since(self.since) };
        match &mut self.mode {
            Mode::Each { left } if rate.time <= WINDOW_TIME => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.mode = Mode::Gather { before: rate };
                }
            }
            Mode::Each { .. } => {}
            Mode::Gather { before } => {
                let gathered = rate.packets >= u64::from(2 * WINDOW);
                if gathered && rate.is_about(*before) {
                    *before = rate;
                    self.apart = FIRST_TRIAL;
                } else {
                    // Packets became fewer by themselves, or because of the trial: find out later.
                    self.apart = (self.apart * 2).min(RAREST_TRIAL);
                    self.mode = Mode::Each { left: self.apart };
                }
            }
        }
        self.begin(now);
    }

    fn begin(&mut self, now: Time) {
        (self.since, self.turns, self.packets) = (now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// A sender and a worker: what the worker finds when it looks, and how often it wakes up.
    struct Run {
        pace: Pace,
        now: Time,
        wakes: u64,
        packets: u64,
        gathering: u64,
    }

    impl Run {
        fn new() -> Self {
            Self { pace: Pace::default(), now: Time::default(), wakes: 0, packets: 0, gathering: 0 }
        }

        /// Packets come each `gap`, whatever the worker does.
        fn steady(&mut self, gap: Duration, time: Duration) {
            let end = self.now + time;
            let mut next = self.now + gap;
            while self.now < end {
                let rest = self.pace.pause();
                self.gathering += u64::from(rest.is_some());
                let look = self.now + rest.unwrap_or_default();
                let waited = next.max(look).since(self.now);
                self.now = next.max(look);
                let mut packets = 0;
                while next <= self.now {
                    next = next + gap;
                    packets += 1;
                }
                self.wakes += 1;
                self.packets += packets;
                self.pace.note(self.now, waited, packets as usize);
            }
        }

        /// Each packet comes a time after the one before was looked at.
        fn in_turn(&mut self, round_trip: Duration, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                let rest = self.pace.pause();
                self.gathering += u64::from(rest.is_some());
                let waited = round_trip.max(rest.unwrap_or_default());
                self.now = self.now + waited;
                self.wakes += 1;
                self.packets += 1;
                self.pace.note(self.now, waited, 1);
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_steady_flow_gathers() {
        let mut run = Run::new();
        run.steady(50 * US, SECOND);
        assert!(run.packets >= 2 * run.wakes, "{} packets, {} wake-ups", run.packets, run.wakes);
        // It goes on so, and stops when there is little left to gather.
        run.steady(1000 * US, SECOND);
        let before = run.gathering;
        run.steady(1000 * US, SECOND);
        assert_eq!(run.gathering, before);
        assert!(run.pace.pause().is_none());
        // And begins again.
        (run.packets, run.wakes) = (0, 0);
        run.steady(40 * US, SECOND);
        assert!(run.packets >= 2 * run.wakes, "{} packets, {} wake-ups", run.packets, run.wakes);
    }

    #[test]
    fn who_waits_for_answers_is_hardly_slowed_down() {
        for round_trip in [30, 60, 100, 119] {
            let mut run = Run::new();
            run.in_turn(round_trip * US, 20 * SECOND);
            assert!(run.gathering * 100 < run.packets, "{} of {}", run.gathering, run.packets);
        }
    }

    #[test]
    fn slow_flows_and_great_masses_are_left_alone() {
        let mut run = Run::new();
        run.steady(200 * US, SECOND);
        assert_eq!(run.gathering, 0);
        for _ in 0..1000 {
            run.now = run.now + 30 * US;
            run.pace.note(run.now, 20 * US, 40);
            run.now = run.now + 2 * US;
            run.pace.note(run.now, US, 1);
            assert!(run.pace.pause().is_none());
        }
    }
}
