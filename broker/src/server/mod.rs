//! The discovery endpoint.
//!
//! ```text
//! listen (TLS, limits) -> auth (grant, key) -> api -> engine (one thread) -> registry (pure) + store
//!                                              api <- watch  <- engine
//! ```
//!
//! [`Broker::start`] opens the store and the listeners; [`Broker::stop`] drains them.

pub mod api;
pub mod auth;
mod config;
pub mod engine;
pub mod failure;
mod health;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod registry;
pub mod store;
pub mod tls;
mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podspan_wire::Trust;
use tokio::net::TcpListener;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use config::{Config, Limits};

use api::Shared;
use auth::Gate;
use engine::{Engine, Settings};
use limits::Buckets;
use listen::{Connections, Door};
use metrics::Metrics;
use registry::Capacity;
use store::{RedbStore, Store};

/// How long the requests under way have to end once the broker is to stop.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How many connections the health listener serves at once.
const HEALTH_CONNECTIONS: usize = 64;

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {why}: is the address this host's, and the port free?")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        why: std::io::Error,
    },
}

/// A running broker.
pub struct Broker {
    addresses: Vec<SocketAddr>,
    health_address: Option<SocketAddr>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    draining: Sender<bool>,
    stopped: Sender<bool>,
    api: JoinSet<()>,
    health: JoinSet<()>,
    store: std::thread::JoinHandle<()>,
}

impl Broker {
    /// Opens the store and the listeners and serves from now on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let store = Box::new(RedbStore::new(&config.data, config.cluster_set));
        Self::start_with(config, store).await
    }

    /// As [`Self::start`], over another store.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with(config: &Config, store: Box<dyn Store>) -> Result<Self, StartError> {
        let tls = tls::server_config(&config.certificate, &config.private_key)?;
        let limits = config.limits;
        let metrics = Arc::new(Metrics::new());
        let trust = Trust::new(config.cluster_set);
        let mut listeners = Vec::new();
        for address in &config.listen {
            listeners.push(bind(*address, "listen").await?);
        }
        let health_listener = match config.health_listen {
            Some(address) => Some(bind(address, "health-listen").await?),
            None => None,
        };
        let settings = Settings {
            lease: config.lease,
            capacity: Capacity { records: limits.records, records_per_cluster: limits.records_per_cluster },
            watchers: limits.watchers,
            watchers_per_cluster: limits.watchers_per_cluster,
            watcher_queue: limits.watcher_queue,
        };
        let counted = metrics.clone();
        let opened =
            tokio::task::spawn_blocking(move || Engine::start(store, trust, settings, counted)).await;
        let (engine, store) = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;

        let (draining, is_draining) = channel(false);
        let (stopped, is_stopped) = channel(false);
        let gate = Arc::new(Gate::new(trust, limits.failures_per_second, limits.failures_burst));
        let shared = Arc::new(Shared {
            gate: gate.clone(),
            engine: engine.clone(),
            metrics: metrics.clone(),
            lease: config.lease,
            requests: Mutex::new(Buckets::new(limits.requests_per_second, limits.requests_burst)),
            list: tokio::sync::Mutex::default(),
            start: Instant::now(),
            stopping: is_draining.clone(),
        });
        let connections =
            Arc::new(Connections::new(limits.connections, limits.connections_per_address, metrics.clone()));
        let door = Door {
            tls: TlsAcceptor::from(Arc::new(tls)),
            gate,
            connections,
            metrics: metrics.clone(),
            router: api::router(shared),
            stopping: is_draining.clone(),
        };
        let mut addresses = Vec::new();
        let mut api = JoinSet::new();
        for (listener, address) in listeners {
            tracing::info!(%address, "listening");
            addresses.push(address);
            api.spawn(listen::serve_api(listener, door.clone()));
        }
        let mut health = JoinSet::new();
        let mut health_address = None;
        if let Some((listener, address)) = health_listener {
            tracing::info!(%address, "health and metrics");
            health_address = Some(address);
            let router = health::router(engine, metrics.clone(), is_draining);
            health.spawn(listen::serve_plain(listener, router, HEALTH_CONNECTIONS, is_stopped));
        }
        Ok(Self { addresses, health_address, metrics, draining, stopped, api, health, store })
    }

    /// Where the API listens, with the ports that the system chose where 0 was asked for.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where health and metrics are, if anywhere.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// Stops: accepts nothing more, ends the watches, lets requests end within `deadline`, breaks the rest
    /// off, and closes the store. Returns whether all ended by themselves.
    pub async fn stop(mut self, deadline: Duration) -> bool {
        self.draining.send_replace(true);
        let drained = tokio::time::timeout(deadline, async { while self.api.join_next().await.is_some() {} });
        let in_time = drained.await.is_ok();
        self.api.shutdown().await;
        self.stopped.send_replace(true);
        self.health.shutdown().await;
        // With the last handler the way to the store's thread is gone, and it ends after its last commit.
        let store = self.store;
        let joined = tokio::task::spawn_blocking(move || store.join().is_ok());
        let closed = matches!(tokio::time::timeout(DRAIN_WITHIN, joined).await, Ok(Ok(true)));
        if !closed {
            tracing::error!("the store did not close in time; what was acknowledged is on disk all the same");
        }
        in_time && closed
    }
}

/// Returns once `stopping` is true, or nobody is left to say so.
async fn stopped(stopping: &mut Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn bind(address: SocketAddr, key: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|why| StartError::Listen { key, address, why })
}
