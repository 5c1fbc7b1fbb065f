//! Writes what the API server should know: by the one agent that holds the lease, the PeerClusters and the
//! ClusterSet; by every agent, Events about its own Node.
//!
//! Objects are written by server-side apply, at once when something changed that matters and now and then for
//! the counters. What the API server has is read back, so that what somebody removed or changed is put right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use podspan_kubernetes::conditions::{Wanted, merge};
use podspan_kubernetes::crd::{ClusterSetStatus, PeerClusterStatus};
use podspan_kubernetes::discovery::{About, Contradiction, Objects, Reason, Severity, discover};
use podspan_kubernetes::names::{self, AGENT_MANAGER, CLUSTER_SET, STATUS_LEASE};
use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;
use podspan_wire::{Grant, NodeName};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::client::{describe, is_absent};
use super::events::{News, Teller, reference};
use super::lease::{Election, Pace, RENEW, Step};
use super::source::View;
use super::{changes, ended, objects, report};
use crate::control_socket::Query;
use crate::departed::Present;
use crate::publish::jitter;

/// How often the agent's state is looked at.
const TICK: Duration = Duration::from_secs(2);
/// How soon an object may be written again.
const AGAIN: Duration = Duration::from_secs(5);
/// How often counters are written.
const COUNTERS: Duration = Duration::from_secs(60);
/// How often what the API server has is read back.
const READ_BACK: Duration = Duration::from_secs(15);
/// How long a cluster must be gone before its object is removed.
const GONE_FOR: Duration = Duration::from_secs(30);
/// How long one request may take.
const WITHIN: Duration = Duration::from_secs(5);
/// How many objects are written in one tick.
const PER_TICK: usize = 20;

/// What is written and told by one agent.
pub struct Writer {
    client: Client,
    node: NodeName,
    grant: Grant,
    queries: mpsc::Sender<Query>,
    view: watch::Receiver<Option<View>>,
    present: watch::Sender<Present>,
    teller: Teller,
    election: Election,
    /// Contradictions about the own Node that were told.
    told: BTreeSet<(Reason, String)>,
    tenure: Option<Tenure>,
    complained: String,
}

/// What the holder of the lease knows.
struct Tenure {
    peers: Api<DynamicObject>,
    sets: Api<DynamicObject>,
    /// The PeerClusters as the API server has them.
    stored: BTreeMap<String, Stored<PeerClusterStatus>>,
    set: Option<Stored<ClusterSetStatus>>,
    others: Vec<DynamicObject>,
    nodes: Vec<Node>,
    read: Option<Instant>,
    /// Since when a stored cluster is not known any more.
    gone: BTreeMap<String, Instant>,
    refused: BTreeSet<(String, String)>,
}

struct Stored<S> {
    uid: Option<String>,
    generation: Option<i64>,
    status: Option<S>,
    written: Option<Instant>,
}

impl<S: serde::de::DeserializeOwned> Stored<S> {
    /// A status that is not as it should be counts as none: it is written anew.
    fn of(object: &DynamicObject, written: Option<Instant>) -> Self {
        Self {
            uid: object.metadata.uid.clone(),
            generation: object.metadata.generation,
            status: object.data.get("status").and_then(|status| serde_json::from_value(status.clone()).ok()),
            written,
        }
    }
}

impl Writer {
    /// Nothing is written yet.
    pub fn new(
        client: Client,
        node: NodeName,
        grant: Grant,
        queries: mpsc::Sender<Query>,
        view: watch::Receiver<Option<View>>,
        present: watch::Sender<Present>,
    ) -> Self {
        Self {
            teller: Teller::new(client.clone(), node.as_str()),
            election: Election::new(node.to_string(), STATUS_LEASE.to_owned()),
            client,
            node,
            grant,
            queries,
            view,
            present,
            told: BTreeSet::new(),
            tenure: None,
            complained: String::new(),
        }
    }

    /// Runs until the agent ends, then gives up the lease.
    pub async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &super::client::namespace());
        let mut elect = Instant::now();
        loop {
            tokio::select! {
                () = ended(&mut stopped) => break,
                () = sleep(TICK) => {}
            }
            let Some(view) = self.view.borrow().clone() else { continue };
            let work = async {
                self.tell_of_node(&view).await;
                if Instant::now() >= elect {
                    let pace = if view.found.gateway { Pace::GATEWAY } else { Pace::NODE };
                    self.elect(&leases, pace).await;
                    let holds = self.election.holds(Instant::now());
                    elect = Instant::now() + if holds { RENEW } else { jitter(pace.look) };
                }
                if self.election.holds(Instant::now()) {
                    self.write(&view).await;
                } else if self.tenure.take().is_some() {
                    self.present.send_replace(None);
                    info!("another agent writes the status of the cluster now");
                }
            };
            tokio::select! {
                () = ended(&mut stopped) => break,
                () = work => {}
            }
        }
        self.resign(&leases).await;
    }

    async fn elect(&mut self, leases: &Api<Lease>, pace: Pace) {
        let lease = match within(leases.get(STATUS_LEASE)).await {
            Ok(lease) => Some(lease),
            Err(Failure::Api(error)) if is_absent(&error) => None,
            Err(failure) => return self.complain("the status Lease cannot be read", &failure),
        };
        let asked = Instant::now();
        let step = self.election.step(lease.as_ref(), pace, asked, Timestamp::now());
        let written = match &step {
            Step::Wait => return,
            Step::Create(lease) => within(leases.create(&PostParams::default(), lease)).await,
            Step::Replace(lease) => within(leases.replace(STATUS_LEASE, &PostParams::default(), lease)).await,
        };
        match written {
            Ok(lease) => {
                if !self.election.holds(asked) {
                    info!("this agent writes the status of the cluster now");
                }
                self.election.done(&lease, asked);
            }
            Err(Failure::Api(kube::Error::Api(status))) if status.code == 409 => self.election.lost(),
            Err(failure) => self.complain("the status Lease cannot be written", &failure),
        }
    }

    async fn resign(&mut self, leases: &Api<Lease>) {
        if !self.election.holds(Instant::now()) {
            return;
        }
        if let Ok(lease) = within(leases.get(STATUS_LEASE)).await
            && let Some(released) = self.election.release(&lease)
            && let Err(failure) =
                within(leases.replace(STATUS_LEASE, &PostParams::default(), &released)).await
        {
            debug!(%failure, "the status Lease could not be given up; it ends by itself");
        }
    }

    /// Tells what is wrong with this node, once for as long as it is.
    async fn tell_of_node(&mut self, view: &View) {
        let wrong: BTreeSet<(Reason, String)> = view
            .found
            .contradictions
            .iter()
            .filter(|wrong| wrong.severity == Severity::Problem && wrong.about == About::Node)
            .map(|wrong| (wrong.reason, wrong.message.clone()))
            .collect();
        let uid = view.objects.node.as_ref().and_then(|node| node.metadata.uid.clone());
        for (reason, note) in wrong.difference(&self.told) {
            let news = News {
                about: reference("v1", "Node", self.node.as_str(), uid.clone()),
                warning: true,
                reason: report::word(*reason).to_owned(),
                note: note.clone(),
            };
            self.teller.tell(news).await;
        }
        self.told = wrong;
    }

    async fn status(&self) -> Option<Box<Status>> {
        let (answer, answered) = oneshot::channel();
        self.queries.send(Query { request: Request::Status, answer }).await.ok()?;
        match timeout(WITHIN, answered).await {
            Ok(Ok(Answer::Status(status))) => Some(status),
            _ => None,
        }
    }

    async fn write(&mut self, view: &View) {
        let Some(status) = self.status().await else { return };
        let mut tenure = self.tenure.take().unwrap_or_else(|| Tenure::new(&self.client));
        match self.serve(&mut tenure, view, &status).await {
            Ok(()) => self.complained.clear(),
            Err((what, failure)) => self.complain(what, &failure),
        }
        self.tenure = Some(tenure);
    }

    async fn serve(
        &mut self,
        tenure: &mut Tenure,
        view: &View,
        status: &Status,
    ) -> Result<(), (&'static str, Failure)> {
        if tenure.read.is_none_or(|read| read.elapsed() >= READ_BACK) {
            if let Err(failure) = tenure.read(&self.client).await {
                // What was read before may be old.
                self.present.send_replace(None);
                return Err(failure);
            }
            let names = tenure.nodes.iter().filter_map(|node| node.metadata.name.as_deref()?.parse().ok());
            self.present.send_replace(Some(names.collect()));
        }
        let peers = self.write_peers(tenure, status).await;
        let set = self.write_set(tenure, view, status).await;
        self.tell_refused(tenure, status).await;
        peers.and(set)
    }

    async fn write_peers(
        &mut self,
        tenure: &mut Tenure,
        status: &Status,
    ) -> Result<(), (&'static str, Failure)> {
        let mut result = Ok(());
        let mut written = 0;
        for cluster in &status.clusters {
            let name = cluster.cluster.to_string();
            let stored = tenure.stored.get(&name);
            let before = stored.and_then(|stored| stored.status.as_ref());
            let now = report::peer(status, cluster, before);
            let change = changes::peer(&name, before, &now);
            let age = stored.and_then(|stored| stored.written).map(|at| at.elapsed());
            let due = match before {
                None => age.is_none_or(|age| age >= AGAIN),
                Some(before) if report::differs(before, &now) => age.is_none_or(|age| age >= AGAIN),
                Some(_) => age.is_none_or(|age| age >= COUNTERS),
            };
            if !due || written >= PER_TICK {
                continue;
            }
            written += 1;
            match tenure.apply_peer(&name, &now).await {
                Ok(stored) => {
                    let uid = stored.uid.clone();
                    tenure.stored.insert(name.clone(), Stored { status: Some(now), ..stored });
                    if let Some((warning, reason, note)) = change {
                        let about = peer_reference(&name, uid);
                        self.teller.tell(News { about, warning, reason: reason.to_owned(), note }).await;
                    }
                }
                // The others are written all the same.
                Err(failure) => {
                    let stored = tenure.stored.entry(name).or_insert_with(Stored::nothing);
                    stored.written = Some(Instant::now());
                    result = Err(("the status of a PeerCluster cannot be written", failure));
                }
            }
        }
        self.remove_peers(tenure, status).await.and(result)
    }

    /// Removes the objects of clusters that are gone: not before a broker was heard, since an agent that has
    /// just started may know nobody.
    async fn remove_peers(
        &mut self,
        tenure: &mut Tenure,
        status: &Status,
    ) -> Result<(), (&'static str, Failure)> {
        let known: BTreeSet<String> = status.clusters.iter().map(|c| c.cluster.to_string()).collect();
        if status.broker.connected.is_none() {
            tenure.gone.clear();
            return Ok(());
        }
        tenure.gone.retain(|name, _| !known.contains(name));
        let stored: Vec<String> =
            tenure.stored.keys().filter(|name| !known.contains(*name)).cloned().collect();
        for name in stored {
            let since = *tenure.gone.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() < GONE_FOR {
                continue;
            }
            match within(tenure.peers.delete(&name, &DeleteParams::default())).await {
                Ok(_) => {}
                Err(Failure::Api(error)) if is_absent(&error) => {}
                Err(failure) => return Err(("a PeerCluster cannot be removed", failure)),
            }
            info!(cluster = name, "the cluster has left the cluster set");
            tenure.stored.remove(&name);
            tenure.gone.remove(&name);
            let news = News {
                about: set_reference(tenure.set.as_ref().and_then(|set| set.uid.clone())),
                warning: false,
                reason: "PeerLeft".to_owned(),
                note: format!("cluster {name} has left the cluster set"),
            };
            self.teller.tell(news).await;
        }
        Ok(())
    }

    async fn write_set(
        &mut self,
        tenure: &mut Tenure,
        view: &View,
        status: &Status,
    ) -> Result<(), (&'static str, Failure)> {
        for other in &tenure.others {
            tenure.refuse(other, status).await?;
        }
        let Some(set) = &tenure.set else { return Ok(()) };
        let (gateways, contradictions) = self.look_at_nodes(tenure, view);
        let pod_cidrs = podspan_kubernetes::discovery::cluster_pod_cidrs(
            &view.objects,
            &view.found.settings,
            &tenure.nodes,
        );
        let own = report::Own {
            nodes: tenure.nodes.len(),
            gateways,
            contradictions: &contradictions,
            pod_cidrs: &pod_cidrs,
            service_cidrs: &view.found.service_cidrs,
            generation: set.generation,
        };
        let now = report::cluster_set(status, &own, set.status.as_ref());
        let due = set.written.is_none_or(|at| at.elapsed() >= AGAIN);
        if !due || set.status.as_ref() == Some(&now) {
            return Ok(());
        }
        let news: Vec<News> = now
            .conditions
            .iter()
            .filter(|condition| condition.type_ != "BrokerConnected")
            .filter_map(|condition| {
                let known = set.status.iter().flat_map(|before| &before.conditions);
                let before = known.into_iter().find(|before| before.type_ == condition.type_);
                let bad = condition.status == "False";
                let changed = before.is_none_or(|before| {
                    before.status != condition.status || (bad && before.message != condition.message)
                });
                (changed && (bad || before.is_some())).then(|| News {
                    about: set_reference(set.uid.clone()),
                    warning: bad,
                    reason: condition.reason.clone(),
                    note: condition.message.clone(),
                })
            })
            .collect();
        let applied = tenure.apply_status("ClusterSet", &tenure.sets, CLUSTER_SET, &now).await;
        let Some(set) = &mut tenure.set else { return Ok(()) };
        set.written = Some(Instant::now());
        applied.map_err(|failure| ("the status of the ClusterSet cannot be written", failure))?;
        set.status = Some(now);
        for news in news {
            self.teller.tell(news).await;
        }
        Ok(())
    }

    /// How many gateways there are, and what is wrong with the cluster and its nodes. Of other nodes only
    /// what the Nodes themselves say is judged: the objects of their network are theirs to judge.
    fn look_at_nodes(&self, tenure: &Tenure, view: &View) -> (usize, Vec<Contradiction>) {
        let of_set = |wrong: &&Contradiction| wrong.about == About::ClusterSet;
        let mut wrong: Vec<Contradiction> =
            view.found.contradictions.iter().filter(of_set).cloned().collect();
        let by_node = view.objects.calico_blocks.is_empty() && view.objects.cilium_node.is_none();
        let mut gateways = 0;
        for node in &tenure.nodes {
            let objects = Objects {
                node: Some(node.clone()),
                cluster_set: view.objects.cluster_set.clone(),
                endpoint_service: view.objects.endpoint_service.clone(),
                ..Objects::default()
            };
            let found = discover(&objects, &self.grant);
            gateways += usize::from(found.gateway);
            wrong.extend(found.contradictions.into_iter().filter(|wrong| {
                let by_cidrs =
                    matches!(wrong.reason, Reason::NoPodCidr | Reason::OutsideGrant | Reason::Disagreement);
                wrong.about == About::Node && (by_node || !by_cidrs)
            }));
        }
        let service = view.found.settings.service.as_ref();
        if let Some(service) = service.filter(|_| gateways > 1) {
            wrong.push(Contradiction::problem(
                About::ClusterSet,
                Reason::ConflictingOverrides,
                format!(
                    "{gateways} gateways share Service {}/{}: a tunnel is held with one node, and the balancer may \
                     lead to any; give each gateway its own address by the annotation {}",
                    service.namespace,
                    service.name,
                    names::ENDPOINTS_ANNOTATION
                ),
            ));
        }
        (gateways, wrong)
    }

    async fn tell_refused(&mut self, tenure: &mut Tenure, status: &Status) {
        let mut now = BTreeSet::new();
        for refused in report::refused(status) {
            let claimed = refused.claimed.as_ref();
            let key = (claimed.map(ToString::to_string).unwrap_or_default(), refused.detail.clone());
            now.insert(key.clone());
            if tenure.refused.contains(&key) {
                continue;
            }
            let peer = claimed.and_then(|claimed| {
                let name = claimed.cluster.to_string();
                let uid = tenure.stored.get(&name)?.uid.clone();
                Some(peer_reference(&name, uid))
            });
            let about =
                peer.unwrap_or_else(|| set_reference(tenure.set.as_ref().and_then(|set| set.uid.clone())));
            let note =
                format!("a record of {} was refused: {}", if key.0.is_empty() { "?" } else { &key.0 }, key.1);
            self.teller.tell(News { about, warning: true, reason: "RecordRefused".into(), note }).await;
        }
        tenure.refused = now;
    }

    /// Says what does not work, once for as long as it does not.
    fn complain(&mut self, what: &str, failure: &Failure) {
        let complaint = format!("{what}: {failure}");
        if complaint != self.complained {
            warn!("{complaint}");
            self.complained = complaint;
        }
    }
}

fn peer_reference(name: &str, uid: Option<String>) -> k8s_openapi::api::core::v1::ObjectReference {
    reference(&format!("{}/{}", names::GROUP, names::VERSION), "PeerCluster", name, uid)
}

fn set_reference(uid: Option<String>) -> k8s_openapi::api::core::v1::ObjectReference {
    reference(&format!("{}/{}", names::GROUP, names::VERSION), "ClusterSet", CLUSTER_SET, uid)
}

impl<S> Stored<S> {
    fn nothing() -> Self {
        Self { uid: None, generation: None, status: None, written: None }
    }
}

impl Tenure {
    fn new(client: &Client) -> Self {
        Self {
            peers: objects::peer_clusters(client),
            sets: objects::cluster_sets(client),
            stored: BTreeMap::new(),
            set: None,
            others: Vec::new(),
            nodes: Vec::new(),
            read: None,
            gone: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    async fn read(&mut self, client: &Client) -> Result<(), (&'static str, Failure)> {
        let all = ListParams::default();
        let peers = within(self.peers.list(&all))
            .await
            .map_err(|failure| ("PeerClusters cannot be read", failure))?;
        let mut stored = BTreeMap::new();
        for object in &peers.items {
            let Some(name) = object.metadata.name.clone() else { continue };
            let written = self.stored.get(&name).and_then(|known| known.written);
            stored.insert(name, Stored::of(object, written));
        }
        self.stored = stored;
        let sets =
            within(self.sets.list(&all)).await.map_err(|failure| ("ClusterSets cannot be read", failure))?;
        let (own, others) = sets
            .items
            .into_iter()
            .partition::<Vec<_>, _>(|object| object.metadata.name.as_deref() == Some(CLUSTER_SET));
        let written = self.set.as_ref().and_then(|known| known.written);
        self.set = own.first().map(|object| Stored::of(object, written));
        self.others = others;
        // The API server's own copy is new enough, and costs it nothing.
        let cached = ListParams::default().match_any();
        let nodes: Api<Node> = Api::all(client.clone());
        self.nodes =
            within(nodes.list(&cached)).await.map_err(|failure| ("Nodes cannot be read", failure))?.items;
        self.read = Some(Instant::now());
        Ok(())
    }

    async fn apply_status<S: Serialize>(
        &self,
        kind: &str,
        api: &Api<DynamicObject>,
        name: &str,
        status: &S,
    ) -> Result<DynamicObject, Failure> {
        let object = object(kind, name, Some(status));
        within(api.patch_status(name, &apply(), &Patch::Apply(&object))).await
    }

    async fn apply_peer(
        &self,
        name: &str,
        status: &PeerClusterStatus,
    ) -> Result<Stored<PeerClusterStatus>, Failure> {
        let applied = match self.apply_status("PeerCluster", &self.peers, name, status).await {
            Err(Failure::Api(error)) if is_absent(&error) => {
                let mut object = object::<()>("PeerCluster", name, None);
                object["spec"] = json!({});
                within(self.peers.patch(name, &apply(), &Patch::Apply(&object))).await?;
                self.apply_status("PeerCluster", &self.peers, name, status).await?
            }
            applied => applied?,
        };
        Ok(Stored::of(&applied, Some(Instant::now())))
    }

    /// Only one ClusterSet counts; another one says so itself.
    async fn refuse(&self, other: &DynamicObject, status: &Status) -> Result<(), (&'static str, Failure)> {
        let name = other.metadata.name.clone().unwrap_or_default();
        let before: ClusterSetStatus = other
            .data
            .get("status")
            .and_then(|status| serde_json::from_value(status.clone()).ok())
            .unwrap_or_default();
        let wanted = Wanted::new(
            report::READY,
            false,
            "NotUsed",
            format!(
                "only the ClusterSet named {CLUSTER_SET} counts: move the settings there and delete this one"
            ),
        );
        let generation = other.metadata.generation;
        let conditions = merge(&before.conditions, &[wanted], generation, &report::time(status.now));
        let now =
            ClusterSetStatus { conditions, observed_generation: generation, ..ClusterSetStatus::default() };
        if now == before {
            return Ok(());
        }
        self.apply_status("ClusterSet", &self.sets, &name, &now)
            .await
            .map(|_| ())
            .map_err(|failure| ("the status of a ClusterSet cannot be written", failure))
    }
}

fn apply() -> PatchParams {
    // Nobody else has a say in what agents write.
    PatchParams::apply(AGENT_MANAGER).force()
}

fn object<S: Serialize>(kind: &str, name: &str, status: Option<&S>) -> Value {
    let mut object = json!({
        "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
        "kind": kind,
        "metadata": {"name": name},
    });
    if let Some(status) = status {
        object["status"] = json!(status);
    }
    object
}

/// Why a request did not succeed.
#[derive(Debug)]
enum Failure {
    Api(kube::Error),
    Late,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Api(error) => f.write_str(&describe(error)),
            Self::Late => write!(f, "no answer within {} s", WITHIN.as_secs()),
        }
    }
}

async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match timeout(WITHIN, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Api(error)),
        Err(_) => Err(Failure::Late),
    }
}
