//! What the agent needs before it can run: the cluster's bundle and the facts about the node.
//!
//! On a bare host both are files that a person wrote, and what is wrong with them ends the agent. In
//! Kubernetes they come in any order, after the pod: the agent waits for them, alive but not ready, says
//! what is missing, and takes in the pods that are added meanwhile.

use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use podspan_kubernetes::crd::CniMode;
use podspan_wire::local::{Answer, PodRoutes, Request};
use podspan_wire::{Bundle, VerifiedGrant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::attachments::Attachments;
use crate::config::{Config, KubernetesSource, Source};
use crate::control_socket::{self, ControlSocket, Query};
use crate::departed::Present;
use crate::facts::LocalFacts;
use crate::kube::source::KubernetesFacts;
use crate::kube::{self, Running};
use crate::source::{self, Found};
use crate::state::StateDir;
use crate::takeover::lender::Asked;
use crate::{files, http};

/// How often to look whether what is waited for is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Everything with which the agent can run.
pub struct Start {
    /// The bundle's file as it was read.
    pub bundle_text: Zeroizing<String>,
    /// Who this cluster is.
    pub bundle: Bundle,
    /// This cluster's grant.
    pub grant: VerifiedGrant,
    /// The facts about this node.
    pub facts: LocalFacts,
    /// Later facts.
    pub changes: mpsc::Receiver<Found>,
    /// How podspan joins the node's CNI configuration, where the source says so.
    pub cni: Option<watch::Receiver<Option<CniMode>>>,
    /// The names of all Nodes of the cluster, where this agent is to withdraw those that are gone.
    pub present: Option<watch::Receiver<Present>>,
    /// What runs for the facts, if it must be ended.
    pub source: Option<Running>,
    /// The state directory.
    pub state: Arc<StateDir>,
    /// The socket and the health port.
    pub door: Door,
    /// What serves them.
    pub served: Vec<JoinHandle<()>>,
}

/// The unix socket and the health port, open.
pub struct Door {
    socket: ControlSocket,
    health: Option<StdTcpListener>,
}

impl Door {
    /// Opens both.
    ///
    /// # Errors
    /// If one of them is somebody else's.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let socket = ControlSocket::bind(&config.socket)?;
        let health = match config.health_listen {
            Some(address) => Some(http::bind(address).await?.into_std()?),
            None => None,
        };
        Ok(Self { socket, health })
    }

    /// Those that another agent has handed over; the health port only if it is the one that the settings ask for.
    ///
    /// # Errors
    /// If another health port is asked for, and is somebody else's.
    pub async fn adopt(config: &Config, socket: OwnedFd, health: Option<OwnedFd>) -> anyhow::Result<Self> {
        let socket = ControlSocket::adopt(&config.socket, socket);
        let given = health.map(StdTcpListener::from);
        let wanted = config.health_listen;
        let given = given.filter(|given| given.local_addr().ok() == wanted);
        let health = match (given, wanted) {
            (Some(given), _) => Some(given),
            (None, Some(address)) => Some(http::bind(address).await?.into_std()?),
            (None, None) => None,
        };
        Ok(Self { socket, health })
    }

    /// Serves both; what is asked goes to `queries`, who wants to take over to `asked`.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn serve(
        &self,
        queries: &mpsc::Sender<Query>,
        asked: &mpsc::Sender<Asked>,
    ) -> anyhow::Result<Vec<JoinHandle<()>>> {
        let socket = control_socket::serve(self.socket.listener()?, queries.clone(), asked.clone());
        let mut tasks = vec![tokio::spawn(socket)];
        if let Some(health) = &self.health {
            let listener = TcpListener::from_std(health.try_clone()?)?;
            tasks.push(tokio::spawn(http::serve(listener, queries.clone())));
        }
        Ok(tasks)
    }

    /// Both, for another agent.
    #[must_use]
    pub fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.socket.descriptor(), self.health.as_ref().map(AsFd::as_fd))
    }

    /// Closes both; the socket's file is another agent's.
    pub fn give(self) {
        self.socket.give();
    }

    /// Opens the socket anew, since another agent that has ended may have taken its file away.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn reopen(self, config: &Config) -> anyhow::Result<Self> {
        drop(self.socket);
        Ok(Self { socket: ControlSocket::bind(&config.socket)?, health: self.health })
    }
}

/// Where what is asked comes in.
pub struct Desk<'a> {
    /// Questions, to be sent.
    pub sender: &'a mpsc::Sender<Query>,
    /// Questions, received.
    pub queries: &'a mut mpsc::Receiver<Query>,
    /// Who wants to take over.
    pub asked: &'a mpsc::Sender<Asked>,
}

/// Gets what the agent needs; `None` if it was told to stop before it was there.
///
/// # Errors
/// If something is wrong that waiting does not mend.
pub async fn start(
    config: &Config,
    state: Option<Arc<StateDir>>,
    door: Option<Door>,
    desk: Desk<'_>,
    stop: &mut Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Option<Start>> {
    match &config.source {
        Source::File { path } => from_files(config, path, state, door, desk).await.map(Some),
        Source::Kubernetes(settings) => in_kubernetes(config, settings, state, door, desk, stop).await,
    }
}

fn open_state(config: &Config, state: Option<Arc<StateDir>>) -> anyhow::Result<Arc<StateDir>> {
    match state {
        Some(state) => Ok(state),
        None => StateDir::open(&config.state_dir).map(Arc::new),
    }
}

async fn open_door(config: &Config, door: Option<Door>) -> anyhow::Result<Door> {
    match door {
        Some(door) => Ok(door),
        None => Door::open(config).await,
    }
}

/// Reads the bundle.
///
/// # Errors
/// If it cannot be read or used.
pub fn read_bundle(path: &Path) -> anyhow::Result<(Zeroizing<String>, Bundle, VerifiedGrant)> {
    let text = files::read_secret(path).context("bundle")?;
    let (bundle, grant) = Bundle::parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    Ok((text, bundle, grant))
}

async fn from_files(
    config: &Config,
    path: &Path,
    state: Option<Arc<StateDir>>,
    door: Option<Door>,
    desk: Desk<'_>,
) -> anyhow::Result<Start> {
    let (bundle_text, bundle, grant) = read_bundle(&config.bundle)?;
    let facts = source::read_file(path, &grant).map_err(|why| anyhow!("{why}"))?;
    let state = open_state(config, state)?;
    let door = open_door(config, door).await?;
    let served = door.serve(desk.sender, desk.asked)?;
    let changes = source::watch_file(path.to_owned(), (*grant).clone(), Ok(facts.clone()));
    Ok(Start {
        bundle_text,
        bundle,
        grant,
        facts,
        changes,
        cni: None,
        present: None,
        source: None,
        state,
        door,
        served,
    })
}

async fn in_kubernetes(
    config: &Config,
    settings: &KubernetesSource,
    state: Option<Arc<StateDir>>,
    door: Option<Door>,
    Desk { sender, queries, asked }: Desk<'_>,
    stop: &mut Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Option<Start>> {
    let node = kube::client::node_name(settings)?;
    let client = kube::client::client(settings).await?;
    let state = open_state(config, state)?;
    let door = open_door(config, door).await?;
    let served = door.serve(sender, asked)?;
    let mut room = WaitingRoom { attachments: Attachments::load(state.clone())?, told: String::new() };
    room.attachments.take_pending(&config.socket);

    let bundle = room.until(queries, stop, || look_for_bundle(&config.bundle)).await;
    let Some((bundle_text, bundle, grant)) = bundle else { return end(served).await };
    let (mut source, running) = kube::start(client, node, &grant, &state, sender.clone());
    let mut why = "the API server has not told them yet".to_owned();
    let facts = room.until(queries, stop, || look_for_facts(&mut source, &mut why)).await;
    let Some(facts) = facts else {
        drop(source);
        running.end().await;
        return end(served).await;
    };
    let (changes, cni, present) = (source.facts, Some(source.cni), Some(running.present.clone()));
    Ok(Some(Start {
        bundle_text,
        bundle,
        grant,
        facts,
        changes,
        cni,
        present,
        source: Some(running),
        state,
        door,
        served,
    }))
}

/// Ends what was begun: nothing of it may be left when the agent ends.
async fn end(door: Vec<JoinHandle<()>>) -> anyhow::Result<Option<Start>> {
    for mut task in door {
        task.abort();
        let _ = (&mut task).await;
    }
    info!("podspan-agent ends; it has not run yet");
    Ok(None)
}

fn look_for_bundle(path: &Path) -> Result<(Zeroizing<String>, Bundle, VerifiedGrant), String> {
    if !path.exists() {
        return Err(format!(
            "waiting for the bundle of this cluster, {} is not there: run `podspan join --bundle FILE` with the file that `podspan cluster grant` wrote",
            path.display()
        ));
    }
    read_bundle(path).map_err(|error| format!("waiting for a bundle that can be used: {error:#}"))
}

/// `why` is what was told last: it is told once, and holds until something else is.
fn look_for_facts(source: &mut KubernetesFacts, why: &mut String) -> Result<LocalFacts, String> {
    while let Ok(found) = source.facts.try_recv() {
        match found {
            Ok(facts) => return Ok(facts),
            Err(reason) => *why = reason,
        }
    }
    Err(format!("waiting for the facts about this node: {why}"))
}

/// Answers while the agent waits.
struct WaitingRoom {
    attachments: Attachments,
    told: String,
}

impl WaitingRoom {
    /// Waits until `look` finds what is needed; `None` if `stop` comes first.
    async fn until<T>(
        &mut self,
        queries: &mut mpsc::Receiver<Query>,
        stop: &mut Pin<&mut impl Future<Output = ()>>,
        mut look: impl FnMut() -> Result<T, String>,
    ) -> Option<T> {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reason = String::new();
        loop {
            tokio::select! {
                () = stop.as_mut() => return None,
                Some(query) = queries.recv() => {
                    let answer = self.answer(query.request, &reason);
                    let _ = query.answer.send(answer);
                }
                _ = ticks.tick() => match look() {
                    Ok(found) => return Some(found),
                    Err(why) => {
                        self.tell(&why);
                        reason = why;
                    }
                },
            }
        }
    }

    fn tell(&mut self, why: &str) {
        if self.told != why {
            warn!("{why}");
            self.told = why.to_owned();
        }
    }

    /// Pods are added whether or not the cluster has joined: they are remembered, and get their routes later.
    fn answer(&mut self, request: Request, reason: &str) -> Answer {
        match request {
            Request::Status => Answer::Error { message: reason.to_owned() },
            Request::Ready => Answer::Done,
            Request::Drain { .. } => Answer::Error {
                message: "the agent has not started yet: it waits for its bundle or its facts; try again"
                    .into(),
            },
            Request::Attach(detail) => match self.attachments.attach(detail) {
                Ok(()) => Answer::Routes(PodRoutes::default()),
                Err(error) => Answer::Error { message: format!("{error:#}") },
            },
            Request::Detach(attachment) => {
                self.attachments.detach(&attachment);
                Answer::Done
            }
            Request::Check(attachment) if self.attachments.contains(&attachment) => {
                Answer::Routes(PodRoutes::default())
            }
            Request::Check(_) => Answer::Unknown,
            Request::Collect { network, valid } => {
                self.attachments.collect(&network, &valid);
                Answer::Done
            }
        }
    }
}

/// How long what runs may take to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Ends a task in order, or else at once.
pub(crate) async fn end_task(mut task: JoinHandle<()>) {
    if timeout(END_WITHIN, &mut task).await.is_err() {
        task.abort();
        let _ = task.await;
    }
}
