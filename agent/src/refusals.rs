//! What was refused: counted by kind, and the latest named, bounded whatever a broker sends.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use podspan_wire::status::RefusedRecord;
use podspan_wire::{Refusal, RefusalKind, SignedRecord, UnixTime};

/// How many refusals are remembered with their reasons.
const MAX_REFUSED: usize = 32;

/// How long a refusal is a problem to look at. Every node signs its record anew within a day, so that
/// what is still wrong is refused again in this time.
const A_PROBLEM_FOR: Duration = Duration::from_secs(86_400);

/// The refusals since the start.
#[derive(Default)]
pub struct Refusals {
    counts: BTreeMap<RefusalKind, u64>,
    latest: VecDeque<RefusedRecord>,
    total: u64,
}

impl Refusals {
    /// Counts a refusal and remembers its reason.
    pub fn note(&mut self, signed: &SignedRecord, refusal: &Refusal, now: UnixTime) {
        self.total += 1;
        *self.counts.entry(refusal.kind).or_default() += 1;
        let claimed = signed.claim().map(|(id, _)| id);
        let same = |known: &RefusedRecord| known.claimed == claimed && known.kind == refusal.kind;
        let times = match self.latest.iter().position(same) {
            Some(index) => self.latest.remove(index).map_or(0, |known| known.times),
            None => 0,
        };
        self.latest.push_front(RefusedRecord {
            claimed,
            kind: refusal.kind,
            detail: refusal.detail.clone(),
            at: now,
            times: times + 1,
        });
        self.latest.truncate(MAX_REFUSED);
    }

    /// Counts a refusal that nobody needs to look at.
    pub fn count(&mut self, kind: RefusalKind) {
        self.total += 1;
        *self.counts.entry(kind).or_default() += 1;
    }

    /// How many there were, by kind.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<RefusalKind, u64> {
        &self.counts
    }

    /// How many there were in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The latest, newest first; one for each claimed node and kind.
    pub fn latest(&self) -> impl Iterator<Item = &RefusedRecord> {
        self.latest.iter()
    }

    /// Those of the latest that a person should still look at.
    pub fn problems(&self, now: UnixTime) -> impl Iterator<Item = &RefusedRecord> {
        self.latest.iter().filter(move |refused| now.since(refused.at) <= A_PROBLEM_FOR)
    }
}
