//! How a call to the brokers fails.

use std::time::Duration;

use podspan_wire::Version;
use podspan_wire::api::ApiError;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No broker could be reached; with several, all are named.
    #[error("cannot reach the broker {broker}: {why}")]
    Unreachable {
        /// Which, as `https://HOST:PORT`.
        broker: String,
        /// What happened.
        why: String,
    },
    /// A broker said something that is not of the API.
    #[error("the broker {broker} does not speak the broker's API: {why}")]
    Protocol {
        /// Which, as `https://HOST:PORT`.
        broker: String,
        /// What it said.
        why: String,
    },
    /// A watch was under way and ended.
    #[error("the watch at the broker {broker} ended: {why}")]
    Ended {
        /// Which, as `https://HOST:PORT`.
        broker: String,
        /// How.
        why: String,
    },
    /// The broker refused.
    #[error("the broker refused ({status}): {error}")]
    Refused {
        /// The HTTP status: 4xx lies with the caller, 5xx with the broker.
        status: u16,
        /// What the broker said.
        error: ApiError,
    },
    /// Another version is stored than the call requires.
    #[error("the broker has version {stored}: {error}")]
    Conflict {
        /// The version that is stored.
        stored: Version,
        /// What the broker said.
        error: ApiError,
    },
    /// Nothing is stored for the node.
    #[error("the broker has no record of this node")]
    NotFound,
    /// Too many requests.
    #[error("the broker asks to wait {} s before the next request", after.as_secs())]
    RateLimited {
        /// How long to wait.
        after: Duration,
    },
    /// What was to be sent is not a record.
    #[error("what was to be sent is not a readable record")]
    NotARecord,
}

impl Error {
    /// Whether another broker may do better.
    pub(super) fn is_the_brokers(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Protocol { .. } | Self::Ended { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// One error of what each broker in turn failed with; there is at least one.
    pub(super) fn of_all(mut failures: Vec<Self>) -> Self {
        if failures.len() > 1 && failures.iter().all(|error| matches!(error, Self::Unreachable { .. })) {
            let (brokers, reasons): (Vec<_>, Vec<_>) = failures
                .into_iter()
                .filter_map(|error| match error {
                    Self::Unreachable { broker, why } => Some((broker, why)),
                    _ => None,
                })
                .unzip();
            return Self::Unreachable { broker: brokers.join(", "), why: reasons.join("; ") };
        }
        // A broker that answered tells more than one that cannot be reached.
        let telling = failures.iter().position(|error| !matches!(error, Self::Unreachable { .. }));
        failures.swap_remove(telling.unwrap_or(0))
    }
}

/// An error with all its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
