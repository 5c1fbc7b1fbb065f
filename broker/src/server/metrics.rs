//! What the broker counts, in the OpenMetrics text format.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Which operation: `put`, `renew`, `delete`, `list`, `watch` or `other`.
    pub route: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// The label of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// Why.
    pub kind: &'static str,
}

/// All metrics of the broker. Made once.
pub struct Metrics {
    registry: Registry,
    /// Requests answered, by route and status.
    pub requests: Family<RequestLabels, Counter>,
    /// Requests refused, by kind.
    pub refusals: Family<KindLabel, Counter>,
    /// Connections refused or broken off, by kind.
    pub connections_refused: Family<KindLabel, Counter>,
    /// Connections taken in.
    pub connections_accepted: Counter,
    /// Connections open now.
    pub connections: Gauge,
    /// Requests answered with 429.
    pub rate_limited: Counter,
    /// Watchers now.
    pub watchers: Gauge,
    /// Watchers that were cut off for being slow.
    pub watchers_overflowed: Counter,
    /// Entries stored.
    pub entries: Gauge,
    /// The last revision.
    pub revision: Gauge,
    /// Leases that lapsed.
    pub leases_lapsed: Counter,
    /// How long a durable commit takes.
    pub commit_seconds: Histogram,
    /// Failures of the store.
    pub store_failures: Counter,
    /// Stored entries that could not be read when the store was opened.
    pub store_skipped: Gauge,
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("podspan_broker");
        let metrics = Self {
            requests: Family::default(),
            refusals: Family::default(),
            connections_refused: Family::default(),
            connections_accepted: Counter::default(),
            connections: Gauge::default(),
            rate_limited: Counter::default(),
            watchers: Gauge::default(),
            watchers_overflowed: Counter::default(),
            entries: Gauge::default(),
            revision: Gauge::default(),
            leases_lapsed: Counter::default(),
            // 0.5 ms to 8 s.
            commit_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
            store_failures: Counter::default(),
            store_skipped: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "requests",
            "Requests answered, by route and HTTP status",
            metrics.requests.clone(),
        );
        registry.register("refusals", "Requests refused, by kind", metrics.refusals.clone());
        registry.register(
            "connections_refused",
            "Connections refused or broken off, by kind",
            metrics.connections_refused.clone(),
        );
        registry.register(
            "connections_accepted",
            "Connections taken in by the listener",
            metrics.connections_accepted.clone(),
        );
        registry.register("connections", "Connections open now", metrics.connections.clone());
        registry.register(
            "rate_limited",
            "Requests answered with 429 because a rate limit was reached",
            metrics.rate_limited.clone(),
        );
        registry.register("watchers", "Watchers connected now", metrics.watchers.clone());
        registry.register(
            "watchers_overflowed",
            "Watchers that were too slow and were told to resync",
            metrics.watchers_overflowed.clone(),
        );
        registry.register("entries", "Records stored, withdrawals included", metrics.entries.clone());
        registry.register("revision", "The last revision given out", metrics.revision.clone());
        registry.register(
            "leases_lapsed",
            "Leases that were not renewed in time",
            metrics.leases_lapsed.clone(),
        );
        registry.register_with_unit(
            "store_commit",
            "Time that a durable commit of the store takes",
            Unit::Seconds,
            metrics.commit_seconds.clone(),
        );
        registry.register(
            "store_failures",
            "Commits and openings of the store that failed",
            metrics.store_failures.clone(),
        );
        registry.register(
            "store_skipped_entries",
            "Stored records that were not good when the store was opened and are left out",
            metrics.store_skipped.clone(),
        );
        Self { registry, ..metrics }
    }

    /// Counts a refused request.
    pub fn refused(&self, kind: &'static str) {
        self.refusals.get_or_create(&KindLabel { kind }).inc();
    }

    /// Counts a refused or broken connection.
    pub fn connection_refused(&self, kind: &'static str) {
        self.connections_refused.get_or_create(&KindLabel { kind }).inc();
    }

    /// Counts an answered request.
    pub fn answered(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// All of them as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
