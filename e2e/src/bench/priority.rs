//! Going before what else the machine does.

use std::path::Path;

/// Where the kernel keeps the priority of a session (sched(7), autogroup).
const SESSION: &str = "/proc/self/autogroup";

/// Some thirty times the weight of an ordinary session.
const NICE: i32 = -15;

/// While it lives, this session goes before others of ordinary priority: load and contenders alike, so that it changes
/// nothing between them, and nothing at all where the machine does nothing else.
#[derive(Debug)]
pub(super) struct Raised {
    /// What it was, if it could be changed.
    before: Option<i32>,
}

impl Raised {
    /// Where it is refused, or there is no such thing, the figures are what the machine gives.
    pub(super) fn take() -> Self {
        let before = std::fs::read_to_string(SESSION).ok().and_then(|text| nice(&text));
        let is_raised = before.is_some() && set(NICE);
        Self { before: before.filter(|_| is_raised) }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set(before);
        }
    }
}

fn set(nice: i32) -> bool {
    std::fs::write(Path::new(SESSION), nice.to_string()).is_ok()
}

/// Reads `/autogroup-6631 nice 0`.
fn nice(text: &str) -> Option<i32> {
    text.split_once("nice ")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_priority_is_read() {
        assert_eq!(nice("/autogroup-6631 nice 0\n"), Some(0));
        assert_eq!(nice("/autogroup-1 nice -15\n"), Some(-15));
        assert_eq!(nice(""), None);
    }
}
