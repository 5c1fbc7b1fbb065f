//! The source `kubernetes`: facts whenever they change, from what is watched at the API server.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use podspan_kubernetes::crd::CniMode;
use podspan_kubernetes::discovery::{Facts, Objects, discover};
use podspan_wire::{Grant, NodeName};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tracing::{info, warn};

use super::client::{describe, is_answer};
use super::ended;
use super::facts::{local, same_network};
use super::objects::Watched;
use super::watches::Shared;
use crate::facts::LocalFacts;
use crate::source::Found;
use crate::state::StateDir;

/// How long changes are collected: they come in bursts.
const TOGETHER: Duration = Duration::from_millis(200);
/// How long the API server may be away before a person is told.
const AWAY: Duration = Duration::from_secs(10);
/// How often to look whether it is back.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long one look may take.
const PROBE_WITHIN: Duration = Duration::from_secs(4);

/// What the API server says, for those parts of the agent that know of it.
#[derive(Clone, Default)]
pub struct View {
    /// What was read.
    pub objects: Arc<Objects>,
    /// What was found in it.
    pub found: Arc<Facts>,
}

/// The running source.
pub struct KubernetesFacts {
    /// Facts, or why there are none; the first good ones may be those of the last life.
    pub facts: mpsc::Receiver<Found>,
    /// How podspan joins the node's CNI configuration, where the ClusterSet says so.
    pub cni: watch::Receiver<Option<CniMode>>,
    /// What the API server says; `None` until it was heard.
    pub view: watch::Receiver<Option<View>>,
}

/// Starts the source. Within a Tokio runtime.
pub fn start(
    client: Client,
    node: NodeName,
    grant: Grant,
    state: Arc<StateDir>,
    stopped: watch::Receiver<bool>,
) -> (KubernetesFacts, JoinHandle<()>) {
    let (facts_sender, facts) = mpsc::channel(1);
    let (cni_sender, cni) = watch::channel(None);
    let (view_sender, view) = watch::channel(None);
    let shared = Arc::new(Shared::default());
    let source = Source {
        watched: Watched::start(client.clone(), node.clone(), shared.clone()),
        client,
        shared,
        node,
        grant,
        state,
        facts: facts_sender,
        cni: cni_sender,
        view: view_sender,
        sent: None,
    };
    let task = tokio::spawn(source.run(stopped));
    (KubernetesFacts { facts, cni, view }, task)
}

struct Source {
    client: Client,
    watched: Watched,
    shared: Arc<Shared>,
    node: NodeName,
    grant: Grant,
    state: Arc<StateDir>,
    facts: mpsc::Sender<Found>,
    cni: watch::Sender<Option<CniMode>>,
    view: watch::Sender<Option<View>>,
    sent: Option<Found>,
}

impl Source {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut good = self.kept();
        if let Some(facts) = &good {
            info!("starting with the facts that the API server told last");
            self.cni.send_replace(facts.cni);
            self.send(Ok(facts.clone())).await;
        }
        loop {
            tokio::select! {
                () = self.shared.changed.notified() => sleep(TOGETHER).await,
                () = sleep(PROBE_EVERY) => self.probe().await,
                () = ended(&mut stopped) => return,
            }
            let Some(found) = self.look(good.as_ref()) else { continue };
            if let Ok(facts) = &found {
                if good.as_ref() != Some(facts) {
                    self.keep(facts).await;
                }
                good = Some(facts.clone());
            }
            self.send(found).await;
        }
    }

    /// A watch that was taken up again says nothing until something changes: whether the API server is back
    /// is asked for.
    async fn probe(&self) {
        if self.shared.away().is_none() {
            return;
        }
        match tokio::time::timeout(PROBE_WITHIN, self.client.apiserver_version()).await {
            Ok(Ok(_)) => self.shared.answered(),
            Ok(Err(error)) => self.shared.failed(describe(&error), is_answer(&error)),
            Err(_) => {}
        }
    }

    /// The facts as they are now, or why there are none; nothing while a watch has only begun.
    fn look(&mut self, before: Option<&LocalFacts>) -> Option<Found> {
        if let Some(away) = self.shared.away()
            && away.since.elapsed() >= AWAY
        {
            return Some(Err(away.told()));
        }
        let Some(mut objects) = self.watched.objects() else {
            return before.is_none().then(|| Err(self.watched.waiting_for()));
        };
        if objects.node.is_none() {
            return Some(Err(self.watched.waiting_for()));
        }
        let mut found = discover(&objects, &self.grant);
        self.watched.set_service(found.settings.service.as_ref());
        if found.settings.service.is_some() {
            // The watch may have been started just now.
            objects = self.watched.objects()?;
            found = discover(&objects, &self.grant);
        }
        self.cni.send_if_modified(|known| std::mem::replace(known, found.settings.cni) != found.settings.cni);
        let facts = local(self.node.clone(), &found, before);
        self.view.send_replace(Some(View { objects: Arc::new(objects), found: Arc::new(found) }));
        Some(Ok(facts))
    }

    async fn send(&mut self, found: Found) {
        // What the last attempt came to is no news by itself.
        let kind = |found: &Found| found.as_ref().err().map(|why| why.split('(').next().map(str::to_owned));
        if self.sent.as_ref().is_some_and(|sent| match (&found, sent) {
            (Err(_), Err(_)) => kind(&found) == kind(sent),
            _ => found == *sent,
        }) {
            return;
        }
        if let (Ok(facts), Some(Ok(before))) = (&found, &self.sent)
            && !same_network(facts, before)
        {
            info!(gateway = facts.gateway, pod_cidrs = %facts.pod_cidrs, "the facts about this node changed");
        }
        self.sent = Some(found.clone());
        // Nobody listens any more: the agent ends.
        let _ = self.facts.send(found).await;
    }

    /// The facts of the last life, if they still fit.
    fn kept(&self) -> Option<LocalFacts> {
        let facts = self
            .state
            .facts()
            .inspect_err(|error| warn!(error = format!("{error:#}"), "the last facts cannot be read"))
            .ok()??;
        let fits = facts.node == self.node && facts.check(&self.grant).is_ok();
        if !fits {
            info!("the facts that were kept are of another node or grant: waiting for the API server");
        }
        fits.then_some(facts)
    }

    async fn keep(&self, facts: &LocalFacts) {
        let (state, facts) = (self.state.clone(), facts.clone());
        let written = spawn_blocking(move || state.keep_facts(&facts)).await;
        if let Ok(Err(error)) = written {
            warn!(error = format!("{error:#}"), "the facts cannot be kept for the next start");
        }
    }
}
