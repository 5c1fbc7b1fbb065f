//! How much a tunnel loses, by its probes, and whether a sibling loses less.
//!
//! A few losses in a row are enough to look at the siblings: they are probed in haste, and if one of them is clearly
//! better the flows leave, within half a second. Where all lose it is the path, and flows stay where they are.

use super::{Health, Rank, State, WINDOW};
use crate::core::Time;
use std::time::Duration;

/// Losing much: so many lost of at most so many of the last probes. The first are 3 of 4, the last 5 of 32, over 15 %.
const MUCH: [(u32, u32); 4] = [(3, 4), (4, 8), (5, 14), (5, WINDOW)];
/// So few probes say no more of a rate than that many would.
const LEAST: u32 = 8;
/// Losing some, so that it and its siblings are to be asked more often.
const SOME: (u32, u32) = (1, 4);
/// Not losing much any more: under 4 %.
const NOT_LOSSY: u32 = 1;

/// A sibling is better if it loses so many times less,
const TIMES: u32 = 6;
/// and nothing of so many probes, all of them
const FINE: u32 = 6;
/// so fresh.
const FRESH: Duration = Duration::from_secs(1);

/// How many probes in a row are to be unanswered before flows leave: at least, with each so many usually lost of
/// [`WINDOW`] one more, and at most. On a path that loses much, a few in a row are bad luck.
const STREAK: u32 = 3;
const STREAK_PER_LOST: u32 = 3;
const MOST_STREAK: u32 = 7;

/// All, in the units of what is usually lost.
const ALL: u32 = 1 << 16;
/// Hardly anything, in the same.
const HARDLY: u32 = ALL / 64;

/// Probes lost, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) lost: u32,
    pub(crate) of: u32,
}

impl Loss {
    /// Whether its rate is at least `times` that of `other`.
    fn exceeds(self, times: u32, other: Self) -> bool {
        let (own, theirs) = (u64::from(self.lost) * u64::from(other.of), u64::from(other.lost));
        theirs * u64::from(times * self.of.max(LEAST)) <= own
    }
}

impl Health {
    /// The last probes that were answered or have had their time, the newest first: when each was sent, and
    /// whether it was lost.
    fn outcomes(&self, now: Time) -> impl Iterator<Item = (Time, bool)> {
        let count = self.next.wrapping_sub(self.counted).min(WINDOW);
        let patience = self.patience();
        (1..=count).filter_map(move |back| {
            let sequence = self.next.wrapping_sub(back);
            let answered = self.answered & (1 << (sequence % WINDOW)) != 0;
            let sent = self.sent_at(sequence)?;
            (answered || now.since(sent) >= patience).then_some((sent, !answered))
        })
    }

    /// Probes lost, of how many: the last ones that have had their time.
    pub(crate) fn loss(&self, now: Time) -> (u32, u32) {
        self.outcomes(now).fold((0, 0), |(lost, of), (_, missing)| (lost + u32::from(missing), of + 1))
    }

    /// The same without those after the last answer: whether that is loss or death is not known yet.
    fn settled_outcomes(&self, now: Time) -> impl Iterator<Item = (Time, bool)> {
        self.outcomes(now).skip_while(|&(_, missing)| missing)
    }

    /// How much it loses, if that is so much that another way would be better.
    pub(crate) fn loses_much(&self, now: Time) -> Option<Loss> {
        if !matches!(self.state, State::Healthy | State::HeldDown) {
            return None;
        }
        let mut loss = Loss { lost: 0, of: 0 };
        let mut worst: Option<Loss> = None;
        for (_, missing) in self.settled_outcomes(now) {
            loss = Loss { lost: loss.lost + u32::from(missing), of: loss.of + 1 };
            let much = missing && MUCH.iter().any(|&(lost, of)| loss.lost >= lost && loss.of <= of);
            let rate = |loss: Loss| (loss.lost * WINDOW) / loss.of.max(LEAST);
            if much && worst.is_none_or(|worst| rate(loss) > rate(worst)) {
                worst = Some(loss);
            }
        }
        worst
    }

    /// Whether it loses so much that its siblings had better be asked.
    pub(crate) fn loses_some(&self, now: Time) -> bool {
        let (lost, of) = SOME;
        self.state <= State::HeldDown
            && self.settled_outcomes(now).take(of as usize).filter(|&(_, missing)| missing).count()
                >= lost as usize
    }

    /// Answered and lost of what was sent lately.
    fn fresh(&self, now: Time) -> (u32, u32) {
        let fresh = self.outcomes(now).take_while(|&(sent, _)| now.since(sent) <= FRESH);
        fresh.fold((0, 0), |(answered, lost), (_, missing)| {
            (answered + u32::from(!missing), lost + u32::from(missing))
        })
    }

    /// Has its next probes sent in haste, unless it is known, or will be, whether it is fit to take over; tells
    /// whether it does.
    pub(crate) fn compare(&mut self, now: Time) -> bool {
        let (answered, lost) = self.fresh(now);
        // One in use is asked ten times a second anyway, which is too slow for one that loses.
        let enough = if self.loses_some(now) { 2 * FINE } else { FINE };
        let unknown = self.state != State::Unproven && answered + lost < enough && self.hastened == 0;
        if unknown {
            self.hastened = FINE as u8 + 1;
        }
        unknown
    }

    /// Whether it is fit to take over from one that loses so much.
    pub(crate) fn is_better_than(&self, now: Time, other: Loss) -> bool {
        let (lost, of) = self.loss(now);
        let (answered, missing) = self.fresh(now);
        self.rank() <= Rank::Returned
            && self.proven()
            && (answered >= FINE && missing == 0)
            && other.exceeds(TIMES, Loss { lost, of })
            // What it usually loses is remembered for longer than what it lost last, unless it is clearly over.
            && ((lost, of) == (0, WINDOW) || other.exceeds(TIMES, Loss { lost: self.usual_loss, of: ALL }))
    }

    /// Whether it has lost next to nothing for long: it is no luck that it seems better.
    pub(crate) fn is_known_to_be_fine(&self) -> bool {
        self.usual_loss <= HARDLY
    }

    /// Another way is better.
    pub(crate) fn set_lossy(&mut self, now: Time) {
        self.lossy = true;
        self.fail(now, State::Lossy);
    }

    /// Whether it was avoided for what it loses, and does not lose it any more.
    pub(super) fn is_well_again(&self, now: Time) -> bool {
        let (lost, of) = self.loss(now);
        of >= WINDOW && lost <= NOT_LOSSY
    }

    /// Whether it is avoided for what it loses, though a sibling that is used in its place loses half as much and
    /// more.
    pub(crate) fn is_as_good_as(&self, now: Time, sibling: &Self) -> bool {
        let ((lost, of), (theirs, of_theirs)) = (self.loss(now), sibling.loss(now));
        self.state == State::Lossy
            && of >= WINDOW
            && of_theirs >= WINDOW / 2
            && lost * of_theirs <= theirs * of * 2
    }

    /// It is as good as the others.
    pub(crate) fn forgive_loss(&mut self, now: Time) {
        self.lossy = false;
        self.hold(now);
    }

    /// Takes note of an answered probe before which so many were lost. More than the longest streak are an outage,
    /// which says nothing of how the path is at other times.
    pub(super) fn note_usual(&mut self, lost: u32) {
        if lost <= MOST_STREAK {
            for _ in 0..lost {
                self.usual_loss += (ALL - self.usual_loss) / WINDOW;
            }
            self.usual_loss -= self.usual_loss / WINDOW;
        }
    }

    /// How many probes in a row are to be unanswered before flows leave.
    pub(super) fn streak(&self) -> u32 {
        let usual = self.usual_loss * WINDOW / ALL;
        (STREAK + usual / STREAK_PER_LOST).min(MOST_STREAK)
    }
}
