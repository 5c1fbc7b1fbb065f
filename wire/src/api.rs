//! The broker's HTTP API, version 1: paths and bodies.
//!
//! | method and path | body -> answer |
//! | --- | --- |
//! | `PUT /v1/records/{cluster}/{node}` | [`SignedRecord`] -> [`PutAnswer`] |
//! | `POST /v1/records/{cluster}/{node}/renew` | [`Renew`] -> [`RenewAnswer`] |
//! | `DELETE /v1/records/{cluster}/{node}` | [`SignedRecord`] with state `withdrawn` -> [`PutAnswer`] |
//! | `GET /v1/records` | -> [`List`] |
//! | `GET /v1/watch?from=TOKEN` | -> a stream of [`WatchEvent`], one JSON document per line |
//!
//! Every request carries the header [`GRANT_HEADER`] with the cluster's grant, and is made over TLS with
//! a client certificate of the grant's cluster key: the broker needs no list of clusters, only the root's
//! public key, and a cluster can write only what is its own. Errors are an [`ApiError`] with a status
//! code of 4xx (the caller's) or 5xx (the broker's; try again, or another broker).
//!
//! An entry is replaced, never removed: a deletion is a withdrawal, which the broker keeps until its
//! `notAfter`. Therefore everything that changed since a revision is exactly the entries with a higher
//! one, and a watch resumes from any revision without a log of events.

use serde::{Deserialize, Serialize};

use crate::names::NodeId;
use crate::record::{SignedRecord, Version};

/// Header with the grant: the JSON of its [`crate::Envelope`], in base64.
pub const GRANT_HEADER: &str = "podspan-grant";

/// The largest request body, in bytes.
pub const MAX_BODY: usize = 96 * 1024;

/// Where a watcher stands: the store it read from and the revision it has seen. A broker that lost its
/// store has another id and sends everything anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token {
    /// Random id of the store, made when the store is: 1 to 64 characters of `0-9a-f`.
    pub store: String,
    /// The last revision seen.
    pub revision: u64,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.store, self.revision)
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.to_string()
    }
}

impl TryFrom<String> for Token {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::str::FromStr for Token {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHAT: &str = "not a watch token: expected STORE:REVISION";
        let (store, revision) = text.split_once(':').ok_or(WHAT)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if store.is_empty() || store.len() > 64 || !store.bytes().all(hex) {
            return Err(WHAT);
        }
        Ok(Self { store: store.to_owned(), revision: revision.parse().map_err(|_| WHAT)? })
    }
}

/// Whether the node has renewed its lease in time. Advice, nothing more: a lapsed lease marks a peer
/// stale and tears nothing down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lease {
    /// Renewed in time.
    Fresh,
    /// Not renewed in time.
    Lapsed,
}

/// One entry of the broker's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The revision at which the entry last changed.
    pub revision: u64,
    /// The state of the node's lease.
    pub lease: Lease,
    /// The record as its cluster signed it.
    pub signed: SignedRecord,
}

/// Answer to a put or delete: it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PutAnswer {
    /// The revision at which the record stands.
    pub revision: u64,
    /// How long the lease runs without a renewal, in seconds.
    pub lease_seconds: u64,
}

/// Renews a node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Renew {
    /// The version that the node believes is stored; another is answered with 409 and the stored one.
    pub version: Version,
}

/// Answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewAnswer {
    /// How long the lease runs from now, in seconds.
    pub lease_seconds: u64,
}

/// Everything that is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List {
    /// Watch from here to miss nothing.
    pub token: Token,
    /// The entries, in the order of their revision.
    pub entries: Vec<Entry>,
}

/// One line of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum WatchEvent {
    /// The watcher's token is of another store, or there was none: what follows up to the first
    /// bookmark is everything.
    Reset,
    /// An entry as it is now: new, replaced, withdrawn, or with another lease state.
    Entry(Entry),
    /// All up to this token was sent. Comes after the first entries and at least every 10 s from then on.
    Bookmark {
        /// Where to resume.
        token: Token,
    },
    /// The watcher was too slow and was cut off here: connect again from the last bookmark.
    Resync,
}

/// What went wrong, for a person, and what a program needs to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct ApiError {
    /// What was wrong and what to do.
    pub message: String,
    /// With 409: the version that is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Version>,
    /// Which node it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
}
