//! What discovery yields: values, each with where it came from, and what speaks against them.

use std::fmt;

/// A value, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it was found, for a person: `Node node-1 spec.podCIDRs`.
    pub from: String,
}

impl<T> Sourced<T> {
    /// `value`, found at `from`.
    pub fn new(value: T, from: impl Into<String>) -> Self {
        Self { value, from: from.into() }
    }
}

/// How much a person must care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know when something does not work.
    Note,
    /// Something is not used, or does not fit: to be put right.
    Problem,
}

/// Why something is not used, or does not fit; the reason of conditions and Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A label whose value has no meaning.
    InvalidLabel,
    /// An annotation that cannot be read.
    InvalidAnnotation,
    /// A setting of a ClusterSet that cannot be used.
    InvalidSetting,
    /// An object holds something that cannot be read.
    InvalidObject,
    /// What was found is not in the cluster's grant, and so could never be announced.
    OutsideGrant,
    /// A gateway without an address at which it can be reached.
    NoAddress,
    /// A node without pod CIDRs.
    NoPodCidr,
    /// A node without an address of its own within its pod CIDRs.
    NoHostAddress,
    /// Two sources say different things.
    Disagreement,
    /// Two overrides say different things.
    ConflictingOverrides,
    /// A source could not be read.
    Unreadable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a contradiction is about: the object at which a person puts it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The Node.
    Node,
    /// The ClusterSet, or the cluster as a whole.
    ClusterSet,
}

/// Something that is not used, or does not fit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// How much a person must care.
    pub severity: Severity,
    /// What it is about.
    pub about: About,
    /// Why, in one word.
    pub reason: Reason,
    /// What is wrong, where, what is done about it, and what to do.
    pub message: String,
}

impl Contradiction {
    /// Something to be put right.
    pub fn problem(about: About, reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, about, reason, message: message.into() }
    }

    /// Something good to know.
    pub fn note(about: About, reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, about, reason, message: message.into() }
    }
}

/// Shortens what is quoted from an object: it may be anything.
#[must_use]
pub(super) fn quote(text: &str) -> String {
    let shown: String = text.chars().take(80).collect();
    format!("{shown:?}")
}
