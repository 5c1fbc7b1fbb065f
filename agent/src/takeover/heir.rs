//! The agent that is started beside another one, and takes over from it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use podspan_dataplane::{Dataplane, LentLane, TableSpec};
use podspan_wire::{Lane, LaneKey, NodeId, Trust, UnixTime};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::talk::{Talk, TalkError};
use super::{Ask, Begin, PROTOCOL, Reply, Session};
use crate::config::{Config, Source};
use crate::desired::{Inputs, desired};
use crate::facts::LocalFacts;
use crate::host;
use crate::kube::client;
use crate::membership::Membership;
use crate::path_mtu::PathMtus;
use crate::run::settings;
use crate::source;
use crate::start::{Door, read_bundle};
use crate::state::{Endpoints, Peek, StateDir};
use crate::underlay::Underlay;

/// How long the lender may take over an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to end its control half, which waits for disks and the API server.
const CONTROL_WITHIN: Duration = Duration::from_secs(45);
/// How often it is looked whether there are sessions.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Peers that have not answered when none has done so for this long are not waited for.
const NO_PROGRESS: Duration = Duration::from_secs(3);
/// How long peers are waited for at all.
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);
/// How long a dead agent's lock may last.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
/// How long the lender may take to end, once it has been told that everything runs.
const END_WITHIN: Duration = Duration::from_secs(10);

/// With what an agent starts that does not begin from nothing.
#[derive(Default)]
pub struct Parts {
    /// The state directory, locked.
    pub state: Option<Arc<StateDir>>,
    /// The unix socket and the health port.
    pub door: Option<Door>,
    /// The packet path, running.
    pub packets: Option<(Arc<Dataplane>, Vec<Lane>)>,
    /// The connection to the agent that has not ended yet.
    pub lender: Option<Talk>,
}

/// How it went.
pub enum Followed {
    /// Nobody answers at the socket: there is nothing to take over.
    Nobody,
    /// This agent is to go on with these.
    Parts(Box<Parts>),
    /// The running agent goes on as before.
    Refused(String),
}

/// Takes over from the agent that answers at the socket, if one does.
///
/// # Errors
/// If the connection cannot be looked after.
pub async fn follow(config: &Config) -> anyhow::Result<Followed> {
    let socket = config.socket.clone();
    let Ok(stream) = spawn_blocking(move || UnixStream::connect(socket)).await? else {
        return Ok(Followed::Nobody);
    };
    let talk = Talk::new(stream);
    match Heir::new(config, talk).await {
        Ok(heir) => Ok(heir.follow().await),
        Err(why) => Ok(unless_dead(config, format!("{why:#}")).await),
    }
}

/// What is refused, and why, unless the other agent is dead or was about to end: a killed one takes connections and
/// holds the lock until the last of its threads is gone.
async fn unless_dead(config: &Config, why: String) -> Followed {
    match lock(&config.state_dir, LOCK_WITHIN).await {
        Some(state) => Followed::Parts(Box::new(Parts { state: Some(Arc::new(state)), ..Parts::default() })),
        None => Followed::Refused(why),
    }
}

struct Heir<'a> {
    config: &'a Config,
    talk: Option<Talk>,
    facts: LocalFacts,
    peek: Peek,
    membership: Membership,
    brokers: Vec<String>,
    grant: podspan_wire::VerifiedGrant,
}

fn now() -> UnixTime {
    SystemTime::now().into()
}

impl<'a> Heir<'a> {
    /// Reads what the running agent has on disk; nothing is written, for that is the other's still.
    async fn new(config: &'a Config, talk: Talk) -> anyhow::Result<Self> {
        let (_, bundle, grant) = read_bundle(&config.bundle)?;
        let peek = StateDir::peek(&config.state_dir, config.tunnel.lanes, now())?;
        let facts = match &config.source {
            Source::File { path } => source::read_file(path, &grant).map_err(anyhow::Error::msg)?,
            Source::Kubernetes(settings) => {
                let node = client::node_name(settings)?;
                let facts = peek.facts.clone().context("no facts about this node are on disk")?;
                if facts.node != node {
                    bail!("this is the node {node} now, not {}", facts.node);
                }
                facts
            }
        };
        let own = NodeId { cluster: grant.cluster.clone(), node: facts.node.clone() };
        let mut peek = peek;
        let known = std::mem::take(&mut peek.known);
        let membership = Membership::new(
            Trust::new(bundle.cluster_set),
            own,
            &grant,
            known,
            config.delivery.has_tunnels(),
            now(),
        );
        let brokers = bundle.brokers.clone();
        Ok(Self { config, talk: Some(talk), facts, peek, membership, brokers, grant })
    }

    fn keys(&self) -> Vec<LaneKey> {
        self.peek.lanes.iter().map(podspan_dataplane::LaneSecret::public).collect()
    }

    async fn follow(mut self) -> Followed {
        let (lanes, sessions) = match self.begin().await {
            Ok(lent) => lent,
            Err(why) => {
                self.talk = None;
                return unless_dead(self.config, why).await;
            }
        };
        let settings = settings(self.config, self.peek.lanes.clone());
        let started = spawn_blocking(move || Dataplane::start_beside(settings, lanes)).await;
        let dataplane = match started.map_err(anyhow::Error::from).and_then(|started| Ok(started?)) {
            Ok(dataplane) => Arc::new(dataplane),
            Err(error) => return Followed::Refused(format!("{error:#}")),
        };
        let table = self.table(&sessions).await;
        if let Err(error) = dataplane.set_table(table) {
            warn!(%error, "not all of the table can be used");
        }
        wait_for(&sessions, &dataplane).await;
        let lanes: Vec<Lane> =
            (self.config.tunnel.port..).zip(self.keys()).map(|(port, key)| Lane { key, port }).collect();
        match self.take(&dataplane).await {
            Ok((state, door)) => Followed::Parts(Box::new(Parts {
                state: Some(state),
                door: Some(door),
                packets: Some((dataplane, lanes)),
                lender: self.talk,
            })),
            Err(why) => {
                // Closed, so that the lender does not wait.
                self.talk = None;
                alone(self.config, dataplane, lanes, &why).await
            }
        }
    }

    /// Says something and hears the answer.
    async fn ask(&mut self, ask: &Ask, within: Duration) -> Result<(Reply, Vec<OwnedFd>), TalkError> {
        let talk = self.talk.take().ok_or(TalkError::Ended)?;
        talk.say(ask, &[])?;
        let (talk, heard) = talk.listen(within).await;
        self.talk = Some(talk);
        heard
    }

    async fn begin(&mut self) -> Result<(Vec<LentLane>, Vec<Session>), String> {
        let begin = Ask::Begin(Begin {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            interface: self.config.tunnel.interface.clone(),
            port: self.config.tunnel.port,
            lanes: self.keys(),
        });
        match self.ask(&begin, ANSWER_WITHIN).await {
            Ok((Reply::Lent { version, pid, masks, sessions }, fds)) => {
                if fds.len() != masks.len() * 3 {
                    return Err(format!("{} descriptors came for {} lanes", fds.len(), masks.len()));
                }
                info!(pid, version, sessions = sessions.len(), "taking over from the running agent");
                let mut fds = fds.into_iter();
                let lanes = masks
                    .into_iter()
                    .filter_map(|mask| {
                        let [socket, queue, relay] = [fds.next()?, fds.next()?, fds.next()?];
                        Some(LentLane { socket, queue, relay, mask })
                    })
                    .collect();
                Ok((lanes, sessions))
            }
            Ok((Reply::Refused { why }, _)) => Err(why),
            Ok((other, _)) => Err(format!("it answers {other:?}")),
            Err(TalkError::Other(said)) if said.contains("not a request") => {
                Err("its version knows nothing of taking over".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// The tunnels and routes between them, as the running agent has them by what is on disk.
    async fn table(&mut self, sessions: &[Session]) -> TableSpec {
        let mut endpoints = Endpoints::new();
        for session in sessions {
            let known = endpoints.entry(session.peer.clone()).or_default();
            known.push((session.local, session.remote, session.endpoint));
        }
        let underlay = match host::facts().await {
            Ok(found) => Underlay::find(&found, &self.facts, &self.config.tunnel.interface, &self.brokers),
            Err(_) => Underlay::default(),
        };
        self.membership.set_underlay(&self.grant, &underlay.needed, now());
        let desired = desired(&Inputs {
            // Of no account: it is the table that is wanted.
            paths: &PathMtus::default(),
            tunnel: &self.config.tunnel,
            grant: &self.grant,
            facts: &self.facts,
            underlay_mtu: underlay.mtu,
            underlay: &underlay.interfaces,
            nodes: self.membership.nodes(),
            policy: &self.config.policy,
            bypassed: &BTreeSet::new(),
            delivery: self.config.delivery,
            siblings: self.membership.siblings(),
            by_tunnel: None,
            endpoints: &endpoints,
            now: now(),
        });
        desired.table
    }

    /// From the cut on.
    async fn take(&mut self, dataplane: &Dataplane) -> Result<(Arc<StateDir>, Door), String> {
        let other = |reply: Reply| format!("it answers {reply:?}");
        let failed = |error: TalkError| error.to_string();
        match self.ask(&Ask::Cut, ANSWER_WITHIN).await.map_err(failed)?.0 {
            Reply::Cut => dataplane.read_tun(),
            reply => return Err(other(reply)),
        }
        info!("this agent sends all packets now");
        let (health, fds) = match self.ask(&Ask::Control, CONTROL_WITHIN).await.map_err(failed)? {
            (Reply::Control { health }, fds) => (health, fds),
            (reply, _) => return Err(other(reply)),
        };
        let mut fds = fds.into_iter();
        let (Some(lock), Some(socket)) = (fds.next(), fds.next()) else {
            return Err("the lock and the socket did not come".to_owned());
        };
        let health = fds.next().filter(|_| health);
        match self.ask(&Ask::Commit, ANSWER_WITHIN).await.map_err(failed)?.0 {
            Reply::Committed => {}
            reply => return Err(other(reply)),
        }
        let state = Arc::new(StateDir::adopt(&self.config.state_dir, lock));
        let door = Door::adopt(self.config, socket, health).await.map_err(|error| format!("{error:#}"))?;
        Ok((state, door))
    }
}

/// Waits until all of these tunnels have a session here, or those that have none do not seem to get one.
async fn wait_for(sessions: &[Session], dataplane: &Dataplane) {
    let begun = Instant::now();
    let (mut best, mut progress) = (0, begun);
    loop {
        let status = dataplane.status();
        let up = |session: &&Session| {
            let peer = status.peers.iter().find(|peer| peer.id == session.peer);
            peer.is_some_and(|peer| {
                let of = |lane: &&podspan_dataplane::LaneStatus| {
                    (lane.local, lane.remote) == (session.local, session.remote)
                };
                peer.lanes.iter().find(of).is_some_and(|lane| lane.established)
            })
        };
        let up = sessions.iter().filter(up).count();
        if up > best {
            (best, progress) = (up, Instant::now());
        }
        let enough = up == sessions.len();
        if enough || progress.elapsed() >= NO_PROGRESS || begun.elapsed() >= SESSIONS_WITHIN {
            let after_ms = begun.elapsed().as_millis() as u64;
            info!(up, of = sessions.len(), after_ms, "sessions beside the running agent's");
            return;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The conversation has broken off: either the other agent is dead, or it has taken everything back.
async fn alone(config: &Config, dataplane: Arc<Dataplane>, lanes: Vec<Lane>, why: &str) -> Followed {
    match lock(&config.state_dir, LOCK_WITHIN).await {
        Some(state) => {
            warn!(why, "the running agent has ended in the middle of the takeover: going on alone");
            dataplane.own();
            Followed::Parts(Box::new(Parts {
                state: Some(Arc::new(state)),
                door: None,
                packets: Some((dataplane, lanes)),
                lender: None,
            }))
        }
        None => Followed::Refused(why.to_owned()),
    }
}

/// Waits so long for the lock of the state directory.
async fn lock(path: &Path, within: Duration) -> Option<StateDir> {
    let deadline = Instant::now() + within;
    loop {
        if let Ok(state) = StateDir::open(path) {
            return Some(state);
        }
        if Instant::now() >= deadline {
            return None;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Tells the lender that this agent runs, waits for its end, and then reads the sockets.
#[must_use]
pub fn finish(lender: Talk, dataplane: Arc<Dataplane>) -> JoinHandle<()> {
    tokio::spawn(async move {
        if lender.say(&Ask::Running, &[]).is_ok() {
            // It says nothing more; it only ends.
            let _ = timeout(END_WITHIN, lender.listen::<Reply>(END_WITHIN)).await;
        }
        dataplane.own();
        info!("the agent before this one has ended; taken over");
    })
}
