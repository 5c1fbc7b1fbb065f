//! The agent from start to end.

use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use podspan_broker::client::{Client, ClientConfig};
use podspan_dataplane::{DEFAULT_HANDSHAKE_LIMIT, Dataplane, Settings};
use podspan_wire::{Lane, RecordState, UnixTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::{Config, OnExit};
use crate::controller::{Controller, Inbox, Kept, Outbox, Setup};
use crate::host::{Host, HostSettings};
use crate::install::Install;
use crate::publish::{Published, Publisher, Seen};
use crate::start::{self, Door, Start};
use crate::state::StateDir;
use crate::{brokers, bundle_watch, cni_install, departed, files, host};

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
    // Heard from here on: a signal during the start ends the agent in order, once it has started.
    let mut stop = pin!(stop_signal()?);
    let (query_sender, mut queries) = mpsc::channel(64);
    // Everything that may be wrong with the files is found before anything in the kernel is touched.
    let mut install = Install::start(&config).await;
    let Some(start) = start::start(&config, &query_sender, &mut queries, &mut stop).await? else {
        if install.end().await {
            clean(&config).await?;
        }
        return Ok(());
    };
    let Start { bundle_text, bundle, grant, facts, changes, cni, present, source, state, door } = start;
    if let Some(cni) = cni {
        install.follow(cni);
    }
    let now: UnixTime = SystemTime::now().into();
    let secrets = state.lanes(config.tunnel.lanes, now)?;
    let kept = Kept::load(&state)?;
    let lanes: Vec<Lane> = (config.tunnel.port..)
        .zip(&secrets)
        .map(|(port, secret)| Lane { key: secret.public(), port })
        .collect();
    info!(
        version = env!("CARGO_PKG_VERSION"), cluster = %grant.cluster, node = %facts.node, gateway = facts.gateway,
        lanes = lanes.len(), "podspan-agent starts"
    );

    let door = match door {
        Some(open) => open,
        None => Door::open(&config).await?.serve(&query_sender),
    };
    let client = Arc::new(
        Client::new(ClientConfig::from(&bundle))
            .map_err(|error| anyhow!("{}: {error}", config.bundle.display()))?,
    );
    let bundle = Arc::new(bundle);

    let host_settings = HostSettings { state_dir: state.file("host") };
    Host::claim(&host_settings, &config.tunnel.interface)?;
    let (host, host_events) = Host::start(host_settings).await?;
    let (announcement, announcements) = watch::channel(None);
    let (seen_sender, seen) = watch::channel(Seen::default());
    let (lapsed_sender, lapsed) = watch::channel(Vec::new());
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
        offload: config.offload,
    };
    let dataplane = Dataplane::start(settings)?;

    let inbox = Inbox {
        facts: changes,
        broker: brokers::watch(&client),
        host: host_events,
        queries,
        published,
        bundle: bundle_watch::watch(config.bundle.clone(), bundle_text),
        cni: install.chain(),
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
    let departures = present
        .map(|present| departed::run(facts.node.clone(), client.clone(), bundle.clone(), present, lapsed));
    let setup = Setup {
        config: config.clone(),
        bundle: bundle.clone(),
        grant: grant.clone(),
        facts,
        state: state.clone(),
        kept,
        lanes,
        dataplane,
        host,
    };
    let controller =
        Controller::start(setup, Outbox { announcement, seen: seen_sender, lapsed: lapsed_sender }).await;

    let announced = announcements.clone();
    let publish = tokio::spawn(publishing.run(announcements));
    let departures = departures.map(tokio::spawn);
    let (dataplane, host) = controller.run(inbox, stop).await;
    // Packets still flow. The CNI plugin goes first, while the agent still answers it.
    let remove = install.end().await || config.on_exit == OnExit::Remove;
    if let Some(source) = source {
        source.end().await;
    }
    for mut task in [publish].into_iter().chain(departures).chain(door) {
        task.abort();
        // Its end is waited for: it holds the state directory or the socket, and a record that is under way
        // must not follow the withdrawal.
        let _ = (&mut task).await;
    }
    if remove {
        let last = announced.borrow().clone();
        if let Some(announcement) = last {
            withdraw(&farewell, &announcement).await;
        }
    }
    dataplane.shutdown();
    host.stop().await;
    if remove {
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
        let signed = publisher.sign(announcement, RecordState::Withdrawn)?;
        publisher.withdraw(&signed).await.map_err(anyhow::Error::from)
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
/// If the agent runs, or something cannot be removed; the rest is, and what is needed to remove it later
/// stays.
pub async fn clean(config: &Config) -> anyhow::Result<()> {
    // Locked until the end: an agent that runs would only put everything back.
    let state = match config.state_dir.exists() {
        true => Some(StateDir::open(&config.state_dir)?),
        false => None,
    };
    if UnixStream::connect(&config.socket).is_ok() {
        bail!(
            "an agent answers at {}, with another state directory than {}: stop it first",
            config.socket.display(),
            config.state_dir.display()
        );
    }
    if let Some(settings) = &config.cni {
        cni_install::uninstall(settings, &config.state_dir, false).await?.iter().for_each(|what| say(what));
    }
    let host_dir: PathBuf = config.state_dir.join("host");
    match host::clean(&HostSettings { state_dir: host_dir }, &config.tunnel).await {
        Ok(removed) => removed.iter().for_each(|what| say(what)),
        Err(error) => {
            error.removed.iter().for_each(|what| say(what));
            return Err(error.into());
        }
    }
    if let Some(state) = state {
        state.remove()?;
        say(&config.state_dir.display().to_string());
    }
    let pending = podspan_cni::pending::directory(&config.socket);
    if pending.exists() {
        std::fs::remove_dir_all(&pending).with_context(|| format!("cannot remove {}", pending.display()))?;
        say(&pending.display().to_string());
    }
    if std::fs::symlink_metadata(&config.socket).is_ok_and(|there| there.file_type().is_socket()) {
        std::fs::remove_file(&config.socket)
            .with_context(|| format!("cannot remove {}", config.socket.display()))?;
        say(&config.socket.display().to_string());
    }
    Ok(())
}

/// Prints what was removed. That nobody reads it any more is no reason to stop half-way.
fn say(what: &str) {
    let _ = writeln!(std::io::stdout(), "removed {what}");
}
