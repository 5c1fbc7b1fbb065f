//! Conditions of a status, as the API conventions have them: the time of a condition is that of its last
//! change of status, whoever writes it and however often.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The longest message, in bytes; the API server takes 32768.
const MAX_MESSAGE: usize = 4096;

/// A condition that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its type.
    pub kind: &'static str,
    /// Whether it holds; `None` for unknown.
    pub holds: Option<bool>,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, for a person.
    pub message: String,
}

impl Wanted {
    /// A condition that holds or not.
    #[must_use]
    pub fn new(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: Some(holds), reason, message: message.into() }
    }
}

/// What is to be written: times are kept from `before` where the status did not change.
#[must_use]
pub fn merge(before: &[Condition], wanted: &[Wanted], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    wanted
        .iter()
        .map(|want| {
            let status = match want.holds {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = before
                .iter()
                .find(|known| known.type_ == want.kind && known.status == status)
                .map_or_else(|| now.clone(), |known| known.last_transition_time.clone());
            Condition {
                type_: want.kind.to_owned(),
                status: status.to_owned(),
                reason: want.reason.to_owned(),
                message: shorten(&want.message, MAX_MESSAGE),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

/// At most `most` bytes of `text`, cut at a character.
#[must_use]
pub fn shorten(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_time_is_that_of_the_last_change() {
        let ready = |holds, reason| Wanted::new("Ready", holds, reason, "m");
        let first = merge(&[], &[ready(true, "A")], Some(1), &at(100));
        assert_eq!((first[0].status.as_str(), &first[0].last_transition_time), ("True", &at(100)));
        let reworded = merge(&first, &[ready(true, "B")], Some(2), &at(200));
        assert_eq!(
            (reworded[0].reason.as_str(), &reworded[0].last_transition_time, reworded[0].observed_generation),
            ("B", &at(100), Some(2))
        );
        let changed = merge(&reworded, &[ready(false, "C")], Some(2), &at(300));
        assert_eq!((changed[0].status.as_str(), &changed[0].last_transition_time), ("False", &at(300)));
        let unknown = Wanted { holds: None, ..ready(true, "D") };
        assert_eq!(merge(&changed, &[unknown], None, &at(400))[0].status, "Unknown");
    }

    #[test]
    fn messages_are_bounded() {
        assert_eq!(shorten("short", 10), "short");
        let long = shorten(&"ä".repeat(100), 11);
        assert!(long.len() <= 11 && long.ends_with('…'), "{long}");
    }
}
