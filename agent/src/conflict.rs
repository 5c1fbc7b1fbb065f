//! What to do when the broker has another version of this node than the one just offered. Pure.
//!
//! Three things look alike: this node lost its state and begins anew; a second agent announces itself by
//! the same name; the broker does not tell the truth. The first must recover at once, the second must not
//! become a fight in which every other node changes its tunnels to and fro, and the third must not push
//! this node's versions to where no later one can follow.

use std::time::Duration;

use podspan_wire::{UnixTime, Version};

use crate::membership::OwnRecord;

/// How far ahead of this node's clock the epoch of a version may lie that is only the broker's word.
/// Epochs are times; a record shows any other itself.
const PLAUSIBLE_AHEAD: Duration = Duration::from_secs(86_400);

/// What was seen of this very node at the broker, from records that were verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The highest version ever seen.
    pub highest: Option<Version>,
    /// What is stored there now.
    pub stored: Option<OwnRecord>,
}

/// How to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The broker is behind: it gets the same record again.
    PutAgain,
    /// It is of a former life of this node, or was taken to be: a version above it.
    GoAbove,
    /// Another agent has taken this node's name while this one was using it.
    Usurped,
    /// Nothing proves what the broker says: wait for the record itself.
    Unproven,
}

/// Decides. `signed` is the version that was offered, `stored` the one the broker says it has,
/// `acknowledged` whether a broker has taken a record of this agent before.
#[must_use]
pub fn way(signed: Version, stored: Version, acknowledged: bool, seen: &Seen, now: UnixTime) -> Way {
    if stored < signed {
        return Way::PutAgain;
    }
    let proven = seen.highest >= Some(stored);
    if !proven && stored.epoch > now.after(PLAUSIBLE_AHEAD).0 {
        Way::Unproven
    } else if acknowledged {
        Way::Usurped
    } else {
        Way::GoAbove
    }
}

/// The next version to sign with: the next sequence of the own epoch, or a new epoch where another
/// version than one's own is known, which is that of a former life whose state was lost. `None` if there
/// is none left, which only a foul record of this cluster's own key can bring about.
#[must_use]
pub fn next_version(own: Option<Version>, known: Option<Version>, now: UnixTime) -> Option<Version> {
    let highest = own.unwrap_or_default().max(known.unwrap_or_default());
    let successor =
        highest.sequence.checked_add(1).map(|sequence| Version { epoch: highest.epoch, sequence });
    if own == Some(highest) && successor.is_some() {
        return successor;
    }
    match highest.epoch.checked_add(1) {
        Some(next) => Some(Version { epoch: now.0.max(next), sequence: 1 }),
        None => successor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = u64::MAX;

    fn v(epoch: u64, sequence: u64) -> Version {
        Version { epoch, sequence }
    }

    #[test]
    fn versions_go_up_whatever_was_lost() {
        let now = UnixTime(1_000);
        let cases = [
            ("a new node", None, None, v(1_000, 1)),
            ("an ordinary restart", Some(v(900, 4)), Some(v(900, 4)), v(900, 5)),
            ("signed, never put", Some(v(900, 5)), Some(v(900, 4)), v(900, 6)),
            ("state lost", None, Some(v(900, 4)), v(1_000, 1)),
            ("state lost, clock behind", None, Some(v(2_000, 4)), v(2_001, 1)),
            ("an old backup was restored", Some(v(900, 2)), Some(v(900, 4)), v(1_000, 1)),
            ("the sequence is used up", Some(v(900, MAX)), None, v(1_000, 1)),
            ("the last epoch, a former life's", None, Some(v(MAX, 4)), v(MAX, 5)),
            ("the last epoch, one's own", Some(v(MAX, 4)), Some(v(MAX, 4)), v(MAX, 5)),
        ];
        for (what, own, known, next) in cases {
            assert_eq!(next_version(own, known, now), Some(next), "{what}");
            assert!(next > known.unwrap_or_default() && next > own.unwrap_or_default(), "{what}");
        }
        assert_eq!(next_version(Some(v(MAX, MAX)), None, now), None);
        assert_eq!(next_version(None, Some(v(MAX, MAX)), now), None);
    }

    #[test]
    fn ways() {
        let now = UnixTime(1_000_000);
        let seen = |highest| Seen { highest: Some(highest), stored: None };
        let cases = [
            ("a broker that missed the last one", v(9, 2), v(9, 1), true, Seen::default(), Way::PutAgain),
            ("state lost", v(9, 1), v(9, 7), false, Seen::default(), Way::GoAbove),
            ("state lost, the same version", v(9, 1), v(9, 1), false, Seen::default(), Way::GoAbove),
            ("a second agent of the name", v(9, 1), v(10, 1), true, Seen::default(), Way::Usurped),
            ("a lie", v(9, 1), v(MAX - 1, 1), false, Seen::default(), Way::Unproven),
            ("a lie to one that runs", v(9, 1), v(MAX - 1, 1), true, Seen::default(), Way::Unproven),
            ("far ahead, and signed", v(9, 1), v(MAX - 1, 1), false, seen(v(MAX - 1, 1)), Way::GoAbove),
            ("a clock an hour behind", v(9, 1), v(1_003_600, 1), false, Seen::default(), Way::GoAbove),
        ];
        for (what, signed, stored, acknowledged, seen, expected) in cases {
            assert_eq!(way(signed, stored, acknowledged, &seen, now), expected, "{what}");
        }
    }
}
