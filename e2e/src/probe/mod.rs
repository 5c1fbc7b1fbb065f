//! Servers and clients by which the lab looks at the network from within a namespace. They are the lab's own
//! binary, run through hidden subcommands: `lab probe-server`, and `lab probe-client`, which reads jobs as JSON
//! from its standard input and writes outcomes as JSON.
//!
//! # Protocol
//! TCP: the client sends one line, the server answers with the line `ADDRESS PORT`, the client's address as
//! the server sees it; then, by the first word of the client's line:
//!
//! | line | then |
//! | --- | --- |
//! | `echo` | the server sends back what it gets |
//! | `upload BYTES SEED` | the client sends that much of the [`pattern`]; the server checks it and answers `ok SUM`, or `bad OFFSET` |
//! | `download BYTES SEED` | the server sends that much of the pattern |
//! | `arrivals` | the server tells what has arrived of ledgers' messages, as JSON ([`Arrivals`]) |
//! | `flood MILLISECONDS` | the server sends as fast as it can for that time |
//!
//! UDP: every datagram comes back behind a line `ADDRESS PORT`; but a ledger's message ([`ledger`]) comes back
//! as an echo of its own kind.

mod call;
mod client;
mod ledger;
mod pattern;
mod server;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub(crate) use call::{Pending, arrivals, ask, ask_all, bound, start};
pub(crate) use client::run_client;
pub(crate) use ledger::{
    Arrivals, HttpPlan, Plan as TrafficPlan, Report as TrafficReport, TcpPlan, Traffic, TrafficArgs, UdpPlan,
    Window, run as run_traffic,
};
pub(crate) use server::run_server;

/// How long a job may wait for its peer unless it says otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);

/// What a client is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Comes back with the outcome.
    pub(crate) id: String,
    pub(crate) target: SocketAddr,
    pub(crate) task: Task,
    /// For each wait: connect, read, write.
    pub(crate) timeout_ms: u64,
}

/// The kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// A payload of so many bytes is echoed over TCP and compared.
    Tcp { bytes: usize },
    /// The same in one datagram; sent anew every 300 ms until the timeout.
    Udp { bytes: usize },
    /// So many bytes to the server, checked there.
    Upload { bytes: u64 },
    /// So many bytes from the server, checked here.
    Download { bytes: u64 },
    /// Round trips of one byte over one connection.
    Latency { count: usize },
    /// As fast as it goes from the server, for a time.
    Flood { millis: u64 },
    /// One connection that is used all the time: a small message every so often, its echo waited for.
    TcpStream { millis: u64, interval_ms: u64 },
    /// Numbered datagrams at a rate, echoed.
    UdpStream { millis: u64, interval_ms: u64 },
}

/// What came of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) id: String,
    /// What went wrong, if anything.
    pub(crate) error: Option<String>,
    /// The client's address as the server saw it.
    pub(crate) seen_as: Option<IpAddr>,
    /// Bytes of payload that arrived.
    pub(crate) bytes: u64,
    /// How long it took, from connect to the last byte, microseconds.
    pub(crate) micros: u64,
    /// Round trips, microseconds: least and mean.
    pub(crate) rtt_min_us: Option<u64>,
    pub(crate) rtt_mean_us: Option<u64>,
    /// Of the two streams.
    pub(crate) stream: Option<StreamOutcome>,
}

/// What a stream has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StreamOutcome {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Echoes that came a second time.
    pub(crate) duplicated: u64,
    /// Echoes that came after one that was sent later.
    pub(crate) reordered: u64,
    /// The most messages in a row that were never echoed. A busy machine delays messages, it loses none.
    pub(crate) lost_in_a_row: u64,
    /// The longest time without an echo, milliseconds.
    pub(crate) longest_gap_ms: u64,
    /// When the longest gap ended, milliseconds since 1970: what to look for in the logs.
    pub(crate) longest_gap_end: u64,
}

impl StreamOutcome {
    /// Takes note of a time without an echo that ends now.
    pub(crate) fn note_gap(&mut self, gap: Duration) {
        let gap = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
        if gap > self.longest_gap_ms {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.longest_gap_ms = gap;
            self.longest_gap_end = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        }
    }
}

impl Job {
    pub(crate) fn new(id: impl Into<String>, target: SocketAddr, task: Task) -> Self {
        let timeout_ms = u64::try_from(TIMEOUT.as_millis()).unwrap_or(3000);
        Self { id: id.into(), target, task, timeout_ms }
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self
    }
}

impl Outcome {
    pub(crate) fn ok(&self) -> bool {
        self.error.is_none()
    }

    /// Megabits of payload per second.
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    pub(crate) fn megabits_per_second(&self) -> f64 {
        if self.micros == 0 { 0.0 } else { self.bytes as f64 * 8.0 / self.micros as f64 }
    }
}
