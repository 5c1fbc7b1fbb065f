//! The configuration file: TOML, read whole; every error is reported at once, with its line and key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podspan_wire::ClusterSetId;
use podspan_wire::settings::{Fault, FilePath, ListenAddress, Reader, Section, SettingsError};

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

impl Config {
    /// Reads the configuration in `file`.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(file: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(file).map_err(|why| SettingsError {
            file: file.display().to_string(),
            faults: vec![Fault { line: 0, key: String::new(), message: format!("cannot read it: {why}") }],
        })?;
        Self::parse(&text, file)
    }

    /// Reads a configuration that stood in `file`; relative paths are relative to the file's directory.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SettingsError> {
        let base = file.parent().unwrap_or(Path::new(""));
        let (mut reader, mut top) = Reader::new(text);
        let r = &mut reader;
        let mut listen: Vec<SocketAddr> = Vec::new();
        for ListenAddress(address) in
            top.required_list(r, "listen", "the addresses to listen on, such as [\"[::]:7443\"]")
        {
            if listen.contains(&address) {
                r.fault(&top, "listen", format!("names {address} twice"));
            }
            listen.push(address);
        }
        let cluster_set = top.required(
            r,
            "cluster-set",
            "the root's public key, as `podspan clusterset create` printed it",
        );
        let certificate = top.required::<FilePath>(r, "certificate", "the PEM file of the TLS certificate");
        let private_key = top.required::<FilePath>(r, "private-key", "the PEM file of the TLS private key");
        let data = top.required::<FilePath>(r, "data", "the directory of the store");
        let lease = top.number(r, "lease-seconds", 5..=3600, 30);
        let health_listen = top.optional::<ListenAddress>(r, "health-listen").map(|address| address.0);
        let limits = match top.section(r, "limits") {
            Some(section) => Limits::read(r, section),
            None => Limits::default(),
        };
        top.finish(r);
        let file = file.display().to_string();
        reader.finish(&file)?;
        let (Some(cluster_set), Some(certificate), Some(private_key), Some(data)) =
            (cluster_set, certificate, private_key, data)
        else {
            // Each of these left a fault behind, so that `finish` has returned.
            return Err(SettingsError { file, faults: Vec::new() });
        };
        Ok(Self {
            listen,
            cluster_set,
            certificate: certificate.within(base),
            private_key: private_key.within(base),
            data: data.within(base),
            lease: Duration::from_secs(lease),
            health_listen,
            limits,
        })
    }
}

impl Limits {
    fn read<'t>(r: &mut Reader<'t>, mut section: Section<'t>) -> Self {
        const MOST: u64 = 10_000_000;
        let most = Self::default();
        let mut size = |key, default: usize| {
            usize::try_from(section.number(r, key, 1..=MOST, default as u64)).unwrap_or(default)
        };
        let limits = Self {
            connections: size("connections", most.connections),
            connections_per_address: size("connections-per-address", most.connections_per_address),
            watchers: size("watchers", most.watchers),
            watchers_per_cluster: size("watchers-per-cluster", most.watchers_per_cluster),
            watcher_queue: size("watcher-queue", most.watcher_queue),
            records: size("records", most.records),
            records_per_cluster: size("records-per-cluster", most.records_per_cluster),
            failures_per_second: size("failures-per-second", most.failures_per_second as usize) as u32,
            failures_burst: size("failures-burst", most.failures_burst as usize) as u32,
            requests_per_second: size("requests-per-second", most.requests_per_second as usize) as u32,
            requests_burst: size("requests-burst", most.requests_burst as usize) as u32,
        };
        section.finish(r);
        limits
    }
}
