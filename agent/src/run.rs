//! The agent from start to end.

use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use podspan_broker::client::{Client, ClientConfig};
use podspan_dataplane::{DEFAULT_HANDSHAKE_LIMIT, Dataplane, LaneSecret, Settings};
use podspan_wire::{Lane, RecordState, UnixTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::{AfterTakeover, Config, OnExit, Source};
use crate::controller::{Controller, Inbox, Kept, Outbox, Setup};
use crate::drain;
use crate::host::{Host, HostSettings};
use crate::install::Install;
use crate::publish::{Published, Publisher, Seen};
use crate::start::{self, Desk, Door, Start};
use crate::state::StateDir;
use crate::takeover::heir::{self, Followed, Parts};
use crate::takeover::lender::{Lender, Outcome, Taken, Until};
use crate::takeover::notify;
use crate::takeover::probe::{Phase, Probe};
use crate::{attachments, brokers, bundle_watch, cni_install, departed, files, host};

/// How often it is looked whether another agent has ended.
const LOOK_EVERY: Duration = Duration::from_millis(250);

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

/// Runs the agent until it is told to stop by SIGTERM or SIGINT, or another one has taken over from it.
///
/// # Errors
/// If it cannot start; once it runs, what goes wrong is shown in the status and tried again.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Heard from here on: a signal during the start ends the agent in order, once it has started.
    let mut stop = pin!(stop_signal()?);
    let probe = Probe::start(config.probe_socket.as_deref())?;
    loop {
        let Some(mut parts) = follow(&config, &probe, &mut stop).await? else { return Ok(()) };
        loop {
            match life(&config, &probe, &mut stop, parts).await? {
                Life::Stopped => return Ok(()),
                Life::Back(again) => parts = *again,
                Life::HandedOver => break,
            }
        }
        if config.after_takeover == AfterTakeover::End {
            return Ok(());
        }
        let why = "another agent has taken over from this one, which stands by until it is told to end";
        if aside(&config, &probe, &mut stop, why).await.is_none() {
            return Ok(());
        }
        info!("the other agent has ended: this one takes the node back");
    }
}

/// Takes over from the agent that runs, if one does; else begins with nothing. `None` if it was told to stop.
async fn follow(
    config: &Config,
    probe: &Probe,
    stop: &mut Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Option<Parts>> {
    probe.tell(Phase::Starting);
    // Whoever is told to stop in the middle of it stops once it runs: then everything is in order.
    match heir::follow(config).await? {
        Followed::Nobody => Ok(Some(Parts::default())),
        Followed::Parts(parts) => Ok(Some(*parts)),
        Followed::Refused(why) => match &config.source {
            Source::File { .. } => bail!(
                "another podspan-agent runs, and this one cannot take over from it ({why}): stop it first, or give \
                 this one a state-dir and a socket of its own"
            ),
            // Both pods are there; the other one goes when this one is ready.
            Source::Kubernetes(_) => {
                let why = format!("another agent runs, and this one cannot take over from it ({why})");
                warn!("{why}; waiting for its end");
                let state = aside(config, probe, stop, &why).await;
                Ok(state.map(|state| Parts { state: Some(Arc::new(state)), ..Parts::default() }))
            }
        },
    }
}

/// Waits until no other agent runs any more; `None` if this one is told to stop.
async fn aside(
    config: &Config,
    probe: &Probe,
    stop: &mut Pin<&mut impl Future<Output = ()>>,
    why: &str,
) -> Option<StateDir> {
    probe.tell(Phase::Aside(why.to_owned()));
    loop {
        tokio::select! {
            () = stop.as_mut() => {
                info!("podspan-agent ends; another one has the node");
                return None;
            }
            () = sleep(LOOK_EVERY) => {
                if let Ok(state) = StateDir::open(&config.state_dir) {
                    return Some(state);
                }
            }
        }
    }
}

/// How a life ended.
enum Life {
    /// As it was told.
    Stopped,
    /// Another agent does everything now.
    HandedOver,
    /// Another agent was to do everything, and has ended: this one goes on with what it has.
    Back(Box<Parts>),
}

/// What the packet path of an agent with these settings is started with.
#[must_use]
pub fn settings(config: &Config, lanes: Vec<LaneSecret>) -> Settings {
    Settings {
        interface: config.tunnel.interface.clone(),
        port: config.tunnel.port,
        fwmark: config.tunnel.fwmark,
        lanes,
        // The interface and its routes outlive a crash: packets wait for the next start instead of
        // leaving by another way in clear.
        persist: true,
        handshake_limit: DEFAULT_HANDSHAKE_LIMIT,
        offload: config.offload,
    }
}

/// From the start of everything that is not among the `parts` to the end of everything.
async fn life(
    config: &Config,
    probe: &Probe,
    stop: &mut Pin<&mut impl Future<Output = ()>>,
    parts: Parts,
) -> anyhow::Result<Life> {
    let Parts { state, door, packets, lender: before } = parts;
    let (query_sender, mut queries) = mpsc::channel(64);
    let (asked_sender, mut asked) = mpsc::channel(1);
    probe.tell(Phase::Running(query_sender.clone()));
    // Everything that may be wrong with the files is found before anything in the kernel is touched.
    let mut install = Install::start(config).await;
    let desk = Desk { sender: &query_sender, queries: &mut queries, asked: &asked_sender };
    let Some(start) = start::start(config, state, door, desk, stop).await? else {
        if install.end().await {
            clean(config).await?;
        }
        return Ok(Life::Stopped);
    };
    let Start { bundle_text, bundle, grant, facts, changes, cni, present, source, state, door, served } =
        start;
    if let Some(cni) = cni {
        install.follow(cni);
    }
    let now: UnixTime = SystemTime::now().into();
    let kept = Kept::load(&state)?;
    // An agent that follows another has as many lanes as that one.
    let count = packets.as_ref().map_or_else(|| config.tunnel.lanes(facts.gateway), |(_, lanes)| lanes.len());
    info!(
        version = env!("CARGO_PKG_VERSION"), cluster = %grant.cluster, node = %facts.node, gateway = facts.gateway,
        lanes = count, "podspan-agent starts"
    );

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
    let (dataplane, lanes) = match packets {
        Some(running) => running,
        None => {
            let secrets = state.lanes(count, now)?;
            let public = |(port, secret): (u16, &LaneSecret)| Lane { key: secret.public(), port };
            let lanes = (config.tunnel.port..).zip(&secrets).map(public).collect();
            (Arc::new(Dataplane::start(settings(config, secrets))?), lanes)
        }
    };
    let lender = Lender {
        interface: config.tunnel.interface.clone(),
        port: config.tunnel.port,
        lanes: lanes.iter().map(|lane| lane.key).collect(),
        dataplane: dataplane.clone(),
    };

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
        lanes: lanes.clone(),
        dataplane: dataplane.clone(),
        host,
    };
    let controller =
        Controller::start(setup, Outbox { announcement, seen: seen_sender, lapsed: lapsed_sender }).await;
    // Before the agent that this one follows ends: a service manager would take that for the service's end.
    notify::running();
    let finishing = before.map(|before| heir::finish(before, dataplane.clone()));

    let announced = announcements.clone();
    let publish = tokio::spawn(publishing.run(announcements));
    let departures = departures.map(tokio::spawn);
    let (until, host) = controller.run(inbox, lender.until(stop, &mut asked)).await;
    if let Some(finishing) = finishing {
        // Unless this was a very short life it has been over for long.
        let _ = finishing.await;
    }
    if matches!(until, Until::Stopped) {
        drain::leave(&dataplane).await;
    }
    // Packets still flow. The CNI plugin goes first, while the agent still answers it.
    let remove = match &until {
        Until::Stopped => install.end().await || config.on_exit == OnExit::Remove,
        Until::Yield(_) => {
            probe.tell(Phase::Aside("another agent takes over from this one".to_owned()));
            install.let_go().await;
            false
        }
    };
    if let Some(source) = source {
        source.end().await;
    }
    for mut task in [publish].into_iter().chain(departures).chain(served) {
        task.abort();
        // Its end is waited for: it holds the state directory or the socket, and a record that is under way
        // must not follow the withdrawal.
        let _ = (&mut task).await;
    }
    if let Until::Yield(taken) = until {
        host.stop().await;
        drop((farewell, lender));
        return hand_over(config, taken, state, door, dataplane, lanes).await;
    }
    if remove {
        let last = announced.borrow().clone();
        if let Some(announcement) = last {
            withdraw(&farewell, &announcement).await;
        }
    }
    drop((door, lender));
    if let Some(dataplane) = Arc::into_inner(dataplane) {
        dataplane.shutdown();
    }
    host.stop().await;
    if remove {
        // Both hold the state directory's lock.
        drop((farewell, state));
        clean(config).await?;
    } else {
        info!("podspan-agent ends; tunnels' routes stay for the next start (--on-exit keep)");
    }
    Ok(Life::Stopped)
}

/// Gives another agent the rest, once nothing of this one writes any more.
async fn hand_over(
    config: &Config,
    taken: Taken,
    state: Arc<StateDir>,
    door: Door,
    dataplane: Arc<Dataplane>,
    lanes: Vec<Lane>,
) -> anyhow::Result<Life> {
    match taken.finish(&state, &door).await {
        Outcome::Gone(talk) => {
            door.give();
            if let Some(dataplane) = Arc::into_inner(dataplane) {
                dataplane.shutdown();
            }
            drop((state, talk));
            Ok(Life::HandedOver)
        }
        Outcome::Back(why) => {
            warn!(why, "the other agent has not taken over: this one goes on as before");
            dataplane.take_back();
            let door = Some(door.reopen(config)?);
            let (state, packets) = (Some(state), Some((dataplane, lanes)));
            Ok(Life::Back(Box::new(Parts { state, door, packets, lender: None })))
        }
    }
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
    let pods = state.as_ref().and_then(|state| match state.attachments() {
        Ok(pods) => Some(pods),
        Err(error) => {
            warn!(error = format!("{error:#}"), "which pods were attached is not known");
            None
        }
    });
    let pods = pods.unwrap_or_default();
    let earlier = config.cni.as_ref().map(cni_install::CniSettings::earlier_pods);
    let pods = tokio::task::spawn_blocking(move || attachments::clean(&pods, earlier.as_ref())).await?;
    if pods > 0 {
        say(&format!("routes inside {pods} pods"));
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
