//! What arrived of one flow. No clock: time comes in as an argument.

use std::time::Duration;

use super::{Window, micros};

/// The arrivals of one flow, numbered from 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// A bit for every number so far.
    seen: Vec<u64>,
    highest: Option<u64>,
    /// The window: its first number, when it began, and what was seen in it.
    first: u64,
    begun: Duration,
    last: Duration,
    gap: Duration,
    gap_end: Duration,
    duplicates: u64,
    reordered: u64,
}

impl Tally {
    /// A new window, whose first message is this one.
    pub(super) fn begin(&mut self, now: Duration, first: u64) {
        self.first = first;
        self.begun = now;
        self.last = now;
        self.gap = Duration::ZERO;
        self.gap_end = now;
        self.duplicates = 0;
        self.reordered = 0;
    }

    /// A message has arrived.
    pub(super) fn arrive(&mut self, now: Duration, number: u64) {
        self.note_gap(now);
        self.last = self.last.max(now);
        if self.has(number) {
            self.duplicates += 1;
            return;
        }
        let Ok(word) = usize::try_from(number / 64) else { return };
        // Numbers come from this lab's own senders: a wild one would only cost memory, bounded here to 2^30.
        if word >= 1 << 24 {
            return;
        }
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        self.seen[word] |= 1 << (number % 64);
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
    }

    fn note_gap(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last);
        if gap > self.gap {
            self.gap = gap;
            self.gap_end = now;
        }
    }

    fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|word| self.seen.get(word));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// The number after the highest that has arrived.
    pub(super) fn next(&self) -> u64 {
        self.highest.map_or(0, |highest| highest + 1)
    }

    /// The window, whose last message is the one before `end`; silence until `now` is a gap as well.
    pub(super) fn window(&self, now: Duration, end: u64) -> Window {
        let mut with_silence = self.clone_times();
        with_silence.note_gap(now);
        let (mut received, mut run, mut longest) = (0, 0, 0);
        for number in self.first..end {
            if self.has(number) {
                received += 1;
                run = 0;
            } else {
                run += 1;
                longest = longest.max(run);
            }
        }
        let sent = end.saturating_sub(self.first);
        Window {
            sent,
            received,
            lost: sent - received,
            lost_in_a_row: longest,
            duplicates: self.duplicates,
            reordered: self.reordered,
            gap_us: micros(with_silence.gap),
            gap_end_us: micros(with_silence.gap_end.saturating_sub(self.begun)),
        }
    }

    fn clone_times(&self) -> Self {
        Self { begun: self.begun, last: self.last, gap: self.gap, gap_end: self.gap_end, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_window_tells_what_is_missing_and_how_long_it_was_quiet() {
        let mut tally = Tally::default();
        for number in 0..100 {
            tally.arrive(MS * number, number.into());
        }
        tally.begin(MS * 100, 100);
        for number in (100..110).chain([111, 110, 111]).chain(150..200) {
            tally.arrive(MS * number.max(110), number.into());
        }
        let window = tally.window(MS * 205, 200);
        assert_eq!((window.sent, window.received, window.lost, window.lost_in_a_row), (100, 62, 38, 38));
        assert_eq!((window.duplicates, window.reordered), (1, 1));
        assert_eq!((window.gap_us, window.gap_end_us), (39_000, 50_000));
    }

    #[test]
    fn silence_at_the_end_is_a_gap_and_the_next_window_knows_nothing_of_it() {
        let mut tally = Tally::default();
        tally.begin(MS, 0);
        tally.arrive(MS * 2, 0);
        assert_eq!(tally.window(MS * 502, 10).gap_us, 500_000);
        assert_eq!(tally.window(MS * 502, 10).lost, 9);
        tally.begin(MS * 502, 10);
        tally.arrive(MS * 503, 10);
        // A late one of the window before is no loss of this one, but was overtaken.
        tally.arrive(MS * 504, 5);
        let window = tally.window(MS * 504, 11);
        assert_eq!((window.gap_us, window.lost, window.received, window.reordered), (1000, 0, 1, 1));
    }

    #[test]
    fn a_wild_number_costs_nothing() {
        let mut tally = Tally::default();
        tally.arrive(MS, u64::MAX);
        assert_eq!((tally.seen.len(), tally.next()), (0, 0));
    }
}
