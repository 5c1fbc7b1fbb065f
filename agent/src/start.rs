//! What the agent needs before it can run: the cluster's bundle and the facts about the node.
//!
//! On a bare host both are files that a person wrote, and what is wrong with them ends the agent. In
//! Kubernetes they come in any order, after the pod: the agent waits for them, alive but not ready, says
//! what is missing, and takes in the pods that are added meanwhile.

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
use crate::control_socket::{ControlSocket, Query};
use crate::departed::Present;
use crate::facts::LocalFacts;
use crate::kube::source::KubernetesFacts;
use crate::kube::{self, Running};
use crate::source::{self, Found};
use crate::state::StateDir;
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
    /// The socket and the health port, if they are served already.
    pub door: Option<Vec<JoinHandle<()>>>,
}

/// The unix socket and the health port, open and not served yet.
pub struct Door {
    socket: ControlSocket,
    health: Option<TcpListener>,
}

impl Door {
    /// Opens both.
    ///
    /// # Errors
    /// If one of them is somebody else's.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let socket = ControlSocket::bind(&config.socket)?;
        let health = match config.health_listen {
            Some(address) => Some(http::bind(address).await?),
            None => None,
        };
        Ok(Self { socket, health })
    }

    /// Serves both; what is asked goes to `queries`.
    #[must_use]
    pub fn serve(self, queries: &mpsc::Sender<Query>) -> Vec<JoinHandle<()>> {
        let socket = tokio::spawn(self.socket.serve(queries.clone()));
        let health = self.health.map(|listener| tokio::spawn(http::serve(listener, queries.clone())));
        [socket].into_iter().chain(health).collect()
    }
}

/// Gets what the agent needs; `None` if it was told to stop before it was there.
///
/// # Errors
/// If something is wrong that waiting does not mend.
pub async fn start(
    config: &Config,
    sender: &mpsc::Sender<Query>,
    queries: &mut mpsc::Receiver<Query>,
    stop: &mut Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Option<Start>> {
    match &config.source {
        Source::File { path } => from_files(config, path).map(Some),
        Source::Kubernetes(settings) => in_kubernetes(config, settings, sender, queries, stop).await,
    }
}

fn read_bundle(path: &Path) -> anyhow::Result<(Zeroizing<String>, Bundle, VerifiedGrant)> {
    let text = files::read_secret(path).context("bundle")?;
    let (bundle, grant) = Bundle::parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    Ok((text, bundle, grant))
}

fn from_files(config: &Config, path: &Path) -> anyhow::Result<Start> {
    let (bundle_text, bundle, grant) = read_bundle(&config.bundle)?;
    let facts = source::read_file(path, &grant).map_err(|why| anyhow!("{why}"))?;
    let state = Arc::new(StateDir::open(&config.state_dir)?);
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
        door: None,
    })
}

async fn in_kubernetes(
    config: &Config,
    settings: &KubernetesSource,
    sender: &mpsc::Sender<Query>,
    queries: &mut mpsc::Receiver<Query>,
    stop: &mut Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Option<Start>> {
    let node = kube::client::node_name(settings)?;
    let client = kube::client::client(settings).await?;
    let state = Arc::new(StateDir::open(&config.state_dir)?);
    let door = Door::open(config).await?.serve(sender);
    let mut room = WaitingRoom { attachments: Attachments::load(state.clone())?, told: String::new() };
    room.attachments.take_pending(&config.socket);

    let bundle = room.until(queries, stop, || look_for_bundle(&config.bundle)).await;
    let Some((bundle_text, bundle, grant)) = bundle else { return end(door).await };
    let (mut source, running) = kube::start(client, node, &grant, &state, sender.clone());
    let mut why = "the API server has not told them yet".to_owned();
    let facts = room.until(queries, stop, || look_for_facts(&mut source, &mut why)).await;
    let Some(facts) = facts else {
        drop(source);
        running.end().await;
        return end(door).await;
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
        door: Some(door),
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
