//! When a step may be tried again: back-off after failures, and against a tug of war.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// The first pause after a failure; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// So often within [`WINDOW`] a thing is put back at once; then another program keeps changing it, and
/// answering each time would only keep both busy.
const AT_ONCE: u32 = 8;
const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Attempt {
    error: Option<String>,
    failures: u32,
    healed: u32,
    window: Instant,
    next: Instant,
}

/// The attempts at each thing, by the step's subject.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<String, Attempt>);

impl Attempts {
    fn entry(&mut self, subject: &str, now: Instant) -> &mut Attempt {
        self.0.entry(subject.to_owned()).or_insert_with(|| Attempt {
            error: None,
            failures: 0,
            healed: 0,
            window: now,
            next: now,
        })
    }

    /// Whether the thing may be tried now.
    pub(super) fn may(&self, subject: &str, now: Instant) -> bool {
        self.0.get(subject).is_none_or(|attempt| attempt.next <= now)
    }

    /// Lets everything be tried at once: what is wanted has changed, so the reasons may have too.
    pub(super) fn forgive(&mut self, now: Instant) {
        for attempt in self.0.values_mut() {
            attempt.next = now;
            attempt.failures = 0;
        }
    }

    /// Notes a failure.
    pub(super) fn failed(&mut self, subject: &str, error: String, now: Instant) {
        let attempt = self.entry(subject, now);
        attempt.failures += 1;
        attempt.error = Some(error);
        attempt.next = now + pause(attempt.failures);
    }

    /// Notes a success; `healed` says that the thing had stood before. Whether it counts as healed: not if
    /// it had been failing.
    pub(super) fn done(&mut self, subject: &str, healed: bool, now: Instant) -> bool {
        let attempt = self.entry(subject, now);
        let first = attempt.failures == 0;
        attempt.failures = 0;
        attempt.error = None;
        if !healed {
            return false;
        }
        if now - attempt.window > WINDOW + LONGEST_PAUSE {
            attempt.window = now;
            attempt.healed = 0;
        }
        attempt.healed += 1;
        if attempt.healed > AT_ONCE {
            let wait = pause(attempt.healed - AT_ONCE);
            attempt.next = now + wait;
            attempt.window = now;
            attempt.error = Some(format!(
                "another program changes it again and again; it is put back, but now only every {} s. Find that \
                 program (a second agent, a firewall or network manager) and let it leave podspan's things alone",
                wait.as_secs()
            ));
        }
        first
    }

    /// What fails of `wanted`, the subjects that are to be done, or is fought over.
    pub(super) fn failing(&mut self, wanted: &BTreeSet<String>, now: Instant) -> Vec<String> {
        self.0.retain(|subject, attempt| {
            wanted.contains(subject) || attempt.next > now || now - attempt.window < WINDOW + LONGEST_PAUSE
        });
        for (subject, attempt) in &mut self.0 {
            // It stands now, by whosever doing; only a tug of war is still worth telling.
            if !wanted.contains(subject) && attempt.failures > 0 {
                attempt.failures = 0;
                attempt.error = None;
            }
            if attempt.healed > AT_ONCE && now - attempt.window > WINDOW + LONGEST_PAUSE {
                attempt.error = None;
            }
        }
        self.0.iter().filter_map(|(subject, a)| a.error.as_ref().map(|e| format!("{subject}: {e}"))).collect()
    }

    /// When the next of `wanted` may be tried.
    pub(super) fn next(&self, wanted: &BTreeSet<String>) -> Option<Instant> {
        self.0.iter().filter(|(subject, _)| wanted.contains(*subject)).map(|(_, attempt)| attempt.next).min()
    }
}

fn pause(times: u32) -> Duration {
    (FIRST_PAUSE * 2u32.saturating_pow(times.saturating_sub(1).min(8))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_back_off_from_one_to_fifteen_seconds() {
        let now = Instant::now();
        let mut attempts = Attempts::default();
        let wanted = BTreeSet::from(["x".to_owned()]);
        for seconds in [1, 2, 4, 8, 15, 15] {
            attempts.failed("x", "no".into(), now);
            assert!(!attempts.may("x", now + Duration::from_millis(seconds * 1000 - 1)));
            assert!(attempts.may("x", now + Duration::from_secs(seconds)));
            assert_eq!(attempts.next(&wanted), Some(now + Duration::from_secs(seconds)));
        }
        assert_eq!(attempts.failing(&wanted, now), ["x: no"]);
        attempts.forgive(now);
        assert!(attempts.may("x", now));
        assert!(!attempts.done("x", true, now) || attempts.failing(&wanted, now).is_empty());
        assert_eq!(attempts.failing(&wanted, now), Vec::<String>::new());
    }

    #[test]
    fn what_stands_by_others_doing_fails_no_more() {
        let now = Instant::now();
        let mut attempts = Attempts::default();
        attempts.failed("x", "no".into(), now);
        assert_eq!(attempts.failing(&BTreeSet::new(), now), Vec::<String>::new());
    }

    #[test]
    fn a_tug_of_war_is_slowed_and_told_and_forgotten() {
        let now = Instant::now();
        let mut attempts = Attempts::default();
        for _ in 0..AT_ONCE {
            assert!(attempts.may("x", now));
            assert!(attempts.done("x", true, now));
        }
        attempts.done("x", true, now);
        assert!(!attempts.may("x", now));
        assert!(attempts.failing(&BTreeSet::new(), now)[0].contains("again and again"));
        let later = now + Duration::from_secs(60);
        assert!(attempts.may("x", later));
        assert!(attempts.failing(&BTreeSet::new(), later).is_empty());
    }
}
