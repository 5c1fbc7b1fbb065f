//! The configuration file: TOML, read whole; every error is reported at once, with its line and key.

mod reader;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podspan_wire::ClusterSetId;

use reader::Reader;

/// The configuration, checked. Paths are absolute or relative to the working directory.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the API listens.
    pub listen: Vec<SocketAddr>,
    /// The cluster set that the broker serves.
    pub cluster_set: ClusterSetId,
    /// PEM file of the TLS certificate chain.
    pub certificate: PathBuf,
    /// PEM file of the TLS private key.
    pub private_key: PathBuf,
    /// Directory of the store.
    pub data: PathBuf,
    /// How long a lease runs.
    pub lease: Duration,
    /// Where `/healthz`, `/readyz` and `/metrics` are served over plain HTTP, if anywhere.
    pub health_listen: Option<SocketAddr>,
    /// What clients may use.
    pub limits: Limits,
}

/// What clients may use: table `[limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address (IPv6: from one /64).
    pub connections_per_address: usize,
    /// Failed handshakes and refused grants a second from one address, before it is turned away.
    pub failures_per_second: u32,
    /// How many of those at once.
    pub failures_burst: u32,
    /// Requests a second of one cluster.
    pub requests_per_second: u32,
    /// How many of those at once.
    pub requests_burst: u32,
    /// Watchers in all.
    pub watchers: usize,
    /// Watchers of one cluster.
    pub watchers_per_cluster: usize,
    /// Changes that may wait for one watcher.
    pub watcher_queue: usize,
    /// Records in all.
    pub records: usize,
    /// Records of one cluster.
    pub records_per_cluster: usize,
}

impl Default for Limits {
    /// Enough for some thousand nodes, each with a watch and a request under way.
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_address: 4096,
            failures_per_second: 10,
            failures_burst: 100,
            requests_per_second: 500,
            requests_burst: 2000,
            watchers: 8192,
            watchers_per_cluster: 4096,
            watcher_queue: 1024,
            records: 50_000,
            records_per_cluster: 5000,
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, counted from 1; `None` for a key that is missing.
    pub line: Option<usize>,
    /// The key, such as `limits.records`; empty if the text itself cannot be read there.
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
}

/// Everything that is wrong with a configuration, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// At least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        write!(f, "{}: {count} error{}", self.file.display(), if count == 1 { "" } else { "s" })?;
        for fault in &self.faults {
            write!(f, "\n  ")?;
            if let Some(line) = fault.line {
                write!(f, "line {line}: ")?;
            }
            if !fault.key.is_empty() {
                write!(f, "{}: ", fault.key)?;
            }
            write!(f, "{}", fault.what)?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the configuration in `file`.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|why| ConfigError {
            file: file.to_owned(),
            faults: vec![Fault { line: None, key: String::new(), what: format!("cannot read it: {why}") }],
        })?;
        Self::parse(&text, file)
    }

    /// Reads a configuration that stood in `file`; relative paths are relative to the file's directory.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let base = file.parent().unwrap_or(Path::new(""));
        let (table, mut syntax) = reader::parse(text);
        let mut top = Reader::new(text, String::new(), Some(table));
        let listen = top.addresses("listen");
        let cluster_set = top.parsed::<ClusterSetId>(
            "cluster-set",
            "the root's public key, as `podspan clusterset create` printed it",
        );
        let certificate = top.path("certificate", base);
        let private_key = top.path("private-key", base);
        let data = top.path("data", base);
        let lease = top.number("lease-seconds", 5..=3600, 30);
        let health_listen = top.address("health-listen");
        let mut table = top.table("limits");
        let most = Limits::default();
        let mut size = |key, most: usize| {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            usize::try_from(table.number(key, 1..=10_000_000, most)).unwrap_or(1)
        };
        let connections = size("connections", most.connections);
        let connections_per_address = size("connections-per-address", most.connections_per_address);
        let watchers = size("watchers", most.watchers);
        let watchers_per_cluster = size("watchers-per-cluster", most.watchers_per_cluster);
        let watcher_queue = size("watcher-queue", most.watcher_queue);
        let records = size("records", most.records);
        let records_per_cluster = size("records-per-cluster", most.records_per_cluster);
        let mut rate =
            |key, most: u32| u32::try_from(table.number(key, 1..=10_000_000, most.into())).unwrap_or(1);
        let limits = Limits {
            connections,
            connections_per_address,
            failures_per_second: rate("failures-per-second", most.failures_per_second),
            failures_burst: rate("failures-burst", most.failures_burst),
            requests_per_second: rate("requests-per-second", most.requests_per_second),
            requests_burst: rate("requests-burst", most.requests_burst),
            watchers,
            watchers_per_cluster,
            watcher_queue,
            records,
            records_per_cluster,
        };
        let mut faults = table.finish();
        faults.extend(top.finish());
        // After a syntax error some keys may be missing only because they could not be read.
        if !syntax.is_empty() {
            faults.retain(|fault| fault.line.is_some());
        }
        faults.append(&mut syntax);
        faults.sort_by_key(|fault| (fault.line.is_none(), fault.line));
        let complete = (listen, cluster_set, certificate, private_key, data);
        match complete {
            (listen, Some(cluster_set), Some(certificate), Some(private_key), Some(data))
                if faults.is_empty() =>
            {
                let lease = Duration::from_secs(lease.unsigned_abs());
                Ok(Self { listen, cluster_set, certificate, private_key, data, lease, health_listen, limits })
            }
            _ => Err(ConfigError { file: file.to_owned(), faults }),
        }
    }
}
