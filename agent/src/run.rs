//! The agent from start to end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use podspan_broker::client::{Client, ClientConfig};
use podspan_dataplane::{DEFAULT_HANDSHAKE_LIMIT, Dataplane, Settings};
use podspan_wire::{Bundle, Lane, RecordState, UnixTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::{Config, OnExit};
use crate::control_socket::ControlSocket;
use crate::controller::{Controller, Inbox, Outbox, Setup};
use crate::host::{Host, HostSettings};
use crate::publish::{Published, Publisher};
use crate::state::{self, StateDir};
use crate::{files, host, http};

/// How long a withdrawal may take before the agent ends without it.
const WITHDRAW_TIME: Duration = Duration::from_secs(5);

/// Reads the settings file.
///
/// # Errors
/// If it is missing, or everything that is wrong with it at once.
pub fn read_config(path: &Path) -> anyhow::Result<Config> {
    let text = files::read(path)?.with_context(|| {
        format!("{} does not exist: name the settings file with --config", path.display())
    })?;
    Ok(Config::parse(path, &text)?)
}

/// Runs the agent until it is told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start; once it runs, what goes wrong is shown in the status and tried again.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Everything that may be wrong with the files is found before anything in the kernel is touched.
    let bundle_text = files::read_secret(&config.bundle).context("bundle")?;
    let (bundle, grant) =
        Bundle::parse(&bundle_text).map_err(|error| anyhow!("{}: {error}", config.bundle.display()))?;
    let facts = config.source.read(&grant).map_err(|why| anyhow!("{why}"))?;
    let state = Arc::new(StateDir::open(&config.state_dir)?);
    let now: UnixTime = SystemTime::now().into();
    let secrets = state.lanes(config.tunnel.lanes, now)?;
    let lanes: Vec<Lane> = (config.tunnel.port..)
        .zip(&secrets)
        .map(|(port, secret)| Lane { key: secret.public(), port })
        .collect();
    info!(
        version = env!("CARGO_PKG_VERSION"), cluster = %grant.cluster, node = %facts.node, gateway = facts.gateway,
        lanes = lanes.len(), "podspan-agent starts"
    );

    let socket = ControlSocket::bind(&config.socket)?;
    let health = match config.health_listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let client = Arc::new(
        Client::new(ClientConfig::from(&bundle))
            .map_err(|error| anyhow!("{}: {error}", config.bundle.display()))?,
    );
    let bundle = Arc::new(bundle);

    let (host, host_events) = Host::start(HostSettings { state_dir: state.file("host") }).await?;
    let (query_sender, queries) = mpsc::channel(64);
    let (announcement, announcements) = watch::channel(None);
    let (seen_sender, seen) = watch::channel(None);
    let (published_sender, published) = watch::channel(Published::default());
    let settings = Settings {
        interface: config.tunnel.interface.clone(),
        port: config.tunnel.port,
        fwmark: config.tunnel.fwmark,
        lanes: secrets,
        // The interface and its routes outlive a crash: packets wait for the next start instead of
        // leaving by another way in clear.
        persist: true,
        handshake_limit: DEFAULT_HANDSHAKE_LIMIT,
    };
    let dataplane = Dataplane::start(settings)?;

    let inbox = Inbox {
        facts: config.source.clone().watch((*grant).clone(), Ok(facts.clone())),
        broker: client.watch(None),
        host: host_events,
        queries,
        published,
    };
    let publisher = |published| Publisher {
        client: client.clone(),
        bundle: bundle.clone(),
        cluster: grant.cluster.clone(),
        state: state.clone(),
        seen: seen.clone(),
        published,
    };
    let publishing = publisher(published_sender);
    let farewell = publisher(watch::channel(Published::default()).0);
    let setup = Setup {
        config: config.clone(),
        bundle: bundle.clone(),
        grant: grant.clone(),
        facts,
        state: state.clone(),
        lanes,
        dataplane,
        host,
    };
    let controller = Controller::start(setup, Outbox { announcement, seen: seen_sender }).await?;

    let announced = announcements.clone();
    let publish = tokio::spawn(publishing.run(announcements));
    let serve = tokio::spawn(socket.serve(query_sender.clone()));
    let health = health.map(|listener| tokio::spawn(http::serve(listener, query_sender)));

    let (dataplane, host) = controller.run(inbox, stop_signal()?).await?;
    publish.abort();
    serve.abort();
    if let Some(health) = health {
        health.abort();
    }
    if config.on_exit == OnExit::Remove {
        let last = announced.borrow().clone();
        if let Some(announcement) = last {
            withdraw(&farewell, &announcement).await;
        }
    }
    dataplane.shutdown();
    host.stop().await;
    if config.on_exit == OnExit::Remove {
        // Both hold the state directory's lock.
        drop((farewell, state));
        clean(&config).await?;
    } else {
        info!("podspan-agent ends; tunnels' routes stay for the next start (--on-exit keep)");
    }
    Ok(())
}

async fn withdraw(publisher: &Publisher, announcement: &crate::publish::Announcement) {
    let withdrawn = async {
        let (signed, _) = publisher.sign(announcement, RecordState::Withdrawn)?;
        publisher.client.withdraw(&signed).await.map_err(anyhow::Error::from)
    };
    match timeout(WITHDRAW_TIME, withdrawn).await {
        Ok(Ok(_)) => info!("this node is withdrawn"),
        Ok(Err(error)) => {
            warn!(error = format!("{error:#}"), "this node could not be withdrawn; its record ends by itself")
        }
        Err(_) => warn!("no broker took the withdrawal in time; this node's record ends by itself"),
    }
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => info!("told to stop by SIGTERM"),
            _ = int.recv() => info!("told to stop by SIGINT"),
        }
    })
}

/// Takes out everything that podspan put onto this node: what stands in the kernel, the state directory
/// and the socket. Safe when repeated, and after a crash. Each thing that was removed is printed.
///
/// # Errors
/// If the agent runs, or something cannot be removed.
pub async fn clean(config: &Config) -> anyhow::Result<()> {
    if config.state_dir.exists() {
        // Locks it: an agent that runs would only put everything back.
        drop(StateDir::open(&config.state_dir)?);
    }
    let host_dir: PathBuf = config.state_dir.join("host");
    let removed = host::clean(&HostSettings { state_dir: host_dir }, &config.tunnel).await?;
    for what in removed {
        println!("removed {what}");
    }
    if state::remove(&config.state_dir)? {
        println!("removed {}", config.state_dir.display());
    }
    let pending = podspan_cni::pending::directory(&config.socket);
    if pending.exists() {
        std::fs::remove_dir_all(&pending).with_context(|| format!("cannot remove {}", pending.display()))?;
        println!("removed {}", pending.display());
    }
    // A socket at which somebody answers is an agent's of another state directory.
    if std::os::unix::net::UnixStream::connect(&config.socket).is_err()
        && std::fs::remove_file(&config.socket).is_ok()
    {
        println!("removed {}", config.socket.display());
    }
    Ok(())
}
