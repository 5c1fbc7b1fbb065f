//! Traffic with a ledger: what was sent, what arrived, where, when, how often. It runs for as long as a scenario
//! likes and tells at any time what became of everything since the last look.
//!
//! `lab traffic` sends from a pod and keeps the ledger of what came back. The probe server keeps one of what
//! arrived at a pod, and complains about what was meant for somebody else.

mod http;
mod message;
mod receiver;
mod sender;
mod tally;
mod tcp;
mod traffic;
mod udp;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub(crate) use sender::Traffic;
pub(crate) use traffic::{TrafficArgs, run};

pub(super) use message::Message;
pub(super) use receiver::Receiver;

/// What a sender is to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The pod from which it sends, such as `alpha/pod5`.
    pub(crate) from: String,
    pub(crate) udp: Vec<UdpPlan>,
    pub(crate) tcp: Vec<TcpPlan>,
    pub(crate) http: Vec<HttpPlan>,
}

/// Numbered datagrams, echoed, from several sockets: each flow takes the way that its ports give it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UdpPlan {
    /// The pod or service for which they are meant, such as `beta/pod3` or `beta/svc-all`.
    pub(crate) to: String,
    pub(crate) target: SocketAddr,
    pub(crate) flows: usize,
    /// Of all flows together.
    pub(crate) packets_per_second: u64,
}

/// Connections that are used all the time: a small message every so often, its echo waited for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TcpPlan {
    pub(crate) to: String,
    pub(crate) target: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) interval_ms: u64,
}

/// Requests, each over a connection of its own, tried a second time if the first fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HttpPlan {
    pub(crate) to: String,
    pub(crate) target: SocketAddr,
    pub(crate) interval_ms: u64,
    /// For each of the two tries.
    pub(crate) timeout_ms: u64,
}

/// What became of everything since the last [`Request::Begin`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Each flow.
    pub(crate) udp: Vec<UdpReport>,
    pub(crate) tcp: Vec<TcpReport>,
    pub(crate) http: Vec<HttpReport>,
    /// What came from somebody whom it was not sent to, and the like: the first few in words.
    pub(crate) wrong: Vec<String>,
    /// The longest that the sender itself was not let run by its machine, microseconds: no gap is known better.
    pub(crate) own_stall_us: u64,
}

/// One flow of datagrams.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct UdpReport {
    pub(crate) to: String,
    pub(crate) ipv6: bool,
    pub(crate) window: Window,
}

/// What arrived in a time, of numbered messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) sent: u64,
    /// Different ones.
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) lost_in_a_row: u64,
    /// Arrived a second time.
    pub(crate) duplicates: u64,
    /// Arrived after one that was sent later.
    pub(crate) reordered: u64,
    /// The longest time without an arrival, microseconds.
    pub(crate) gap_us: u64,
    /// When it ended, microseconds after the window began.
    pub(crate) gap_end_us: u64,
}

/// Some connections to one target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TcpReport {
    pub(crate) to: String,
    pub(crate) ipv6: bool,
    /// Those that stand.
    pub(crate) connections: usize,
    pub(crate) echoed: u64,
    pub(crate) broken: u64,
    /// The longest that a message waited for its echo, microseconds; one that still waits counts.
    pub(crate) stall_us: u64,
    /// What broke them, the first few.
    pub(crate) errors: Vec<String>,
}

/// Some requests to one target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HttpReport {
    pub(crate) to: String,
    pub(crate) ipv6: bool,
    pub(crate) requests: u64,
    /// Answered at the second try.
    pub(crate) retried: u64,
    /// Not answered at the second try either.
    pub(crate) failed: u64,
    /// The longest that one took, both tries together, microseconds.
    pub(crate) longest_us: u64,
    pub(crate) errors: Vec<String>,
}

/// What a sender is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// A new window begins now.
    Begin,
    /// The window so far.
    Report,
    /// How many datagrams came back since the start, at once.
    Count,
}

/// What a sender answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done,
    Report(Box<Report>),
    Count(u64),
}

/// What arrived at a pod, as its probe server tells it; windows begin with each look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Arrivals {
    pub(crate) flows: Vec<Arrived>,
    /// Messages for somebody else, since the start: how many, and the first few in words.
    pub(crate) wrong: u64,
    pub(crate) examples: Vec<String>,
}

/// One flow at its receiver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Arrived {
    pub(crate) flow: u64,
    pub(crate) from: String,
    pub(crate) window: Window,
}

/// Microseconds, as far as they go.
fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// At most this many errors are told in words.
const TOLD: usize = 5;

impl Report {
    /// The longest gap of all flows, microseconds.
    pub(crate) fn gap_us(&self) -> u64 {
        self.udp.iter().map(|flow| flow.window.gap_us).max().unwrap_or(0)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.udp.iter().map(|flow| flow.window.lost).sum()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.udp.iter().map(|flow| flow.window.sent).sum()
    }

    pub(crate) fn broken(&self) -> u64 {
        self.tcp.iter().map(|connections| connections.broken).sum()
    }

    /// The longest that any message of a connection waited for its echo, microseconds.
    pub(crate) fn stall_us(&self) -> u64 {
        self.tcp.iter().map(|connections| connections.stall_us).max().unwrap_or(0)
    }
}
