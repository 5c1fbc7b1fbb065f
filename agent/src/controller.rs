//! The controller: the one place where everything comes together.
//!
//! `record stream + local facts -> DesiredState -> apply -> status`: events come in, what is known is
//! brought up to date, what should be is computed whole and handed to the data plane, the kernel and the
//! pods. Each of these takes the whole and finds out itself what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use podspan_broker::client::Event;
use podspan_dataplane::{Dataplane, PathLimits, PeerStatus};
use podspan_wire::local::{Answer, AttachmentDetail, PodRoutes, Request};
use podspan_wire::status::BrokerStatus;
use podspan_wire::{Bundle, Lane, NodeId, Record, Trust, UnixTime, VerifiedGrant};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::attachments::{self, Attachments};
use crate::brokers::{BrokerIndex, Watches};
use crate::cni_install::CniSettings;
use crate::config::Config;
use crate::control_socket::Query;
use crate::desired::{self, DesiredState, Inputs};
use crate::disk::{Disk, Job, What};
use crate::drain::Drain;
use crate::facts::LocalFacts;
use crate::host::{self, Host, HostEvent};
use crate::liveness_log::LivenessLog;
use crate::membership::{Changes, Membership};
use crate::overview::{self, Parts};
use crate::path_mtu::PathMtus;
use crate::pod_delivery::{Delivery, questions, report};
use crate::policy::Bypass;
use crate::probe::plan::Planner;
use crate::probe::{self, Deliveries, Prober};
use crate::publish::{Announcement, Published, Seen};
use crate::source::Found;
use crate::state::{DRAINED, Endpoints, Known, StateDir};
use crate::underlay::Underlay;

/// How often counters and clocks are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often it looks for gateways that answer again while a cluster is left to the underlay: what goes there is in
/// clear.
const BYPASS_TICK: Duration = Duration::from_millis(100);
/// How often what peers' endpoints are is written down, if it changed.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(5);
/// How often old records are forgotten and the keys' last use is noted.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(60);

/// How often what could not be written is tried again.
const REWRITE_EVERY: Duration = Duration::from_secs(10);

/// How many events of the broker are taken in before the others get their turn.
const MAX_TOGETHER: usize = 256;

/// How many records may be refused in one [`TICK`] before the broker is no longer read from until the next:
/// whoever sends what nobody signed must not get all of a processor for it.
const REFUSALS_PER_TICK: u64 = 500;

/// What the controller starts with.
pub struct Setup {
    /// The agent's settings.
    pub config: Config,
    /// Who this cluster is.
    pub bundle: Arc<Bundle>,
    /// This cluster's grant.
    pub grant: VerifiedGrant,
    /// The facts about this node.
    pub facts: LocalFacts,
    /// The state directory.
    pub state: Arc<StateDir>,
    /// What the state directory held.
    pub kept: Kept,
    /// This node's lanes as they are announced.
    pub lanes: Vec<Lane>,
    /// The packet path.
    pub dataplane: Arc<Dataplane>,
    /// The hand on the kernel.
    pub host: Host,
}

/// What the state directory held at the start.
pub struct Kept {
    /// The other clusters.
    pub known: Known,
    /// Where peers were heard.
    pub endpoints: Endpoints,
    /// The nodes of the own cluster that were found to need a tunnel.
    pub by_tunnel: BTreeSet<NodeId>,
    /// The pods.
    pub attachments: Attachments,
}

impl Kept {
    /// Reads it.
    ///
    /// # Errors
    /// If a file cannot be read; one that is damaged is set aside.
    pub fn load(state: &Arc<StateDir>) -> anyhow::Result<Self> {
        Ok(Self {
            known: state.known()?,
            endpoints: state.endpoints()?,
            by_tunnel: state.delivery()?,
            attachments: Attachments::load(state.clone())?,
        })
    }
}

/// The ends of the channels that lead here.
pub struct Inbox {
    /// Facts that changed.
    pub facts: mpsc::Receiver<Found>,
    /// What the brokers say.
    pub broker: Watches,
    /// What happens in the kernel.
    pub host: mpsc::Receiver<HostEvent>,
    /// Questions from the unix socket and the health port.
    pub queries: mpsc::Receiver<Query>,
    /// How publishing goes.
    pub published: watch::Receiver<Published>,
    /// What is wrong with the bundle file, if anything.
    pub bundle: watch::Receiver<Option<String>>,
    /// What is wrong with the CNI plugin's place on the node, if anything.
    pub cni: watch::Receiver<Option<String>>,
}

/// The ends of the channels that lead away from here.
pub struct Outbox {
    /// What is to be announced.
    pub announcement: watch::Sender<Option<Announcement>>,
    /// What was seen of this very node at the broker.
    pub seen: watch::Sender<Seen>,
    /// The nodes of this cluster behind which nobody stands any more.
    pub lapsed: watch::Sender<Vec<Record>>,
}

/// See the module.
pub struct Controller {
    config: Config,
    grant: VerifiedGrant,
    facts: LocalFacts,
    disk: Disk,
    lanes: Vec<Lane>,
    dataplane: Arc<Dataplane>,
    host: Host,
    underlay: Underlay,
    membership: Membership,
    attachments: Attachments,
    broker: BrokerStatus,
    /// The brokers that are heard.
    connected: BTreeMap<BrokerIndex, String>,
    published: Published,
    outbox: Outbox,
    started: UnixTime,
    begun: Instant,
    desired: Option<DesiredState>,
    /// Where peers were heard in the last life: for the data plane to dial. Never changed, so that the
    /// table is not.
    learned: Endpoints,
    /// Where they are heard now, as it was last written down.
    endpoints: Endpoints,
    endpoints_written: Instant,
    housekept: Instant,
    up: BTreeMap<NodeId, bool>,
    paths: PathMtus,
    path_limits: Option<PathLimits>,
    repaired: mpsc::Receiver<Vec<AttachmentDetail>>,
    repair: watch::Sender<attachments::Repair>,
    /// What was learned since the last write, and since the last time it was applied.
    unsaved: bool,
    unapplied: bool,
    rewritten: Instant,
    /// How many more records may be refused until the next tick.
    refusals_left: u64,
    facts_problem: Option<String>,
    underlay_problem: Option<String>,
    bundle_problem: Option<String>,
    cni_problem: Option<String>,
    /// Parts of the agent that ended though they should not have.
    ended: Vec<&'static str>,
    table_problems: Vec<String>,
    drain: Drain,
    begun_at: Instant,
    bypass: Bypass,
    liveness: LivenessLog,
    planner: Planner,
    prober: Prober,
    /// What was found of the other nodes of the own cluster, and those of them that are handed packets through a
    /// tunnel, where that is to be found out.
    deliveries: Deliveries,
    by_tunnel: BTreeSet<NodeId>,
    /// Whether that is to be written down.
    delivery_unwritten: bool,
}

fn now() -> UnixTime {
    SystemTime::now().into()
}

impl Controller {
    /// Takes up what was known, and brings everything to the state it should have by that.
    pub async fn start(setup: Setup, outbox: Outbox) -> Self {
        let Setup { config, bundle, grant, facts, state, kept, lanes, dataplane, host } = setup;
        let Kept { known, endpoints, by_tunnel, mut attachments } = kept;
        let by_tunnel = if config.delivery == Delivery::Auto { by_tunnel } else { BTreeSet::new() };
        let own = NodeId { cluster: grant.cluster.clone(), node: facts.node.clone() };
        let inside = config.delivery.has_tunnels();
        let membership = Membership::new(Trust::new(bundle.cluster_set), own, &grant, known, inside, now());
        let late = attachments.take_pending(&config.socket);
        if late > 0 {
            info!(pods = late, "took in pods that were added while no agent ran");
        }
        let (repair, repaired) = attachments::spawn_repair();
        let mut controller = Self {
            broker: BrokerStatus { addresses: bundle.brokers.clone(), ..BrokerStatus::default() },
            underlay: Underlay::default(),
            desired: None,
            learned: endpoints.clone(),
            endpoints,
            endpoints_written: Instant::now(),
            housekept: Instant::now(),
            up: BTreeMap::new(),
            paths: PathMtus::after(host.standing_mtus().clone()),
            path_limits: None,
            unsaved: false,
            unapplied: false,
            rewritten: Instant::now(),
            refusals_left: REFUSALS_PER_TICK,
            facts_problem: None,
            underlay_problem: None,
            bundle_problem: None,
            cni_problem: None,
            ended: Vec::new(),
            table_problems: Vec::new(),
            begun_at: Instant::now(),
            bypass: Bypass::default(),
            liveness: LivenessLog::default(),
            planner: Planner::default(),
            prober: Prober::start(&dataplane, by_tunnel.clone()),
            deliveries: Deliveries::default(),
            by_tunnel,
            delivery_unwritten: false,
            drain: Drain::load(&config.state_dir.join(DRAINED)),
            connected: BTreeMap::new(),
            published: Published::default(),
            started: now(),
            begun: Instant::now(),
            disk: Disk::start(state),
            dataplane,
            config,
            grant,
            facts,
            lanes,
            host,
            membership,
            attachments,
            outbox,
            repaired,
            repair,
        };
        controller.look_at_underlay().await;
        controller.tell_seen();
        controller.announce();
        controller.apply();
        controller.drain.tell(&controller.facts, &controller.dataplane);
        controller
    }

    /// Runs until `stop` is done, then gives back what that said, and the hand on the kernel.
    pub async fn run<T>(mut self, mut inbox: Inbox, stop: impl Future<Output = T>) -> (T, Host) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut bypass_ticks = interval(BYPASS_TICK);
        bypass_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut broker, mut facts, mut published) = (true, true, true);
        tokio::pin!(stop);
        let said = loop {
            // What is being written must be on disk before it is used: no more is taken in until then.
            let hear = broker && self.refusals_left > 0 && !self.disk.busy(What::Known);
            tokio::select! {
                said = &mut stop => break said,
                Some(query) = inbox.queries.recv() => {
                    let answer = self.answer(query.request);
                    let _ = query.answer.send(answer);
                }
                event = inbox.broker.next(), if hear => match event {
                    Some(event) => self.hear(event, &mut inbox.broker),
                    None => {
                        broker = false;
                        self.broker.connected = None;
                        self.has_ended("the watch of the brokers");
                    }
                },
                found = inbox.facts.recv(), if facts => match found {
                    Some(found) => self.found(found).await,
                    None => {
                        facts = false;
                        self.has_ended("the source of the facts about this node");
                    }
                },
                changed = inbox.published.changed(), if published => match changed {
                    Ok(()) => self.published = inbox.published.borrow_and_update().clone(),
                    Err(_) => {
                        published = false;
                        self.has_ended("publishing of this node's record");
                    }
                },
                Ok(()) = inbox.bundle.changed() => {
                    self.bundle_problem = inbox.bundle.borrow_and_update().clone();
                }
                Ok(()) = inbox.cni.changed() => {
                    self.cni_problem = inbox.cni.borrow_and_update().clone();
                }
                Some(event) = inbox.host.recv() => self.kernel(event).await,
                Some(gone) = self.repaired.recv() => self.attachments.forget(&gone),
                Some(_) = self.disk.next() => self.flush(false),
                _ = ticks.tick() => self.tick().await,
                _ = bypass_ticks.tick(), if !self.bypass.clusters().is_empty() => self.look_at_bypass(),
            }
        };
        self.write_endpoints();
        self.disk.finish().await;
        (said, self.host)
    }

    /// Every part runs for as long as the agent does. If one ended all the same, its panic is in the log,
    /// and a person must know that what is shown of it is old.
    fn has_ended(&mut self, part: &'static str) {
        warn!(part, "a part of the agent has ended");
        self.ended.push(part);
    }

    fn hear(&mut self, first: (BrokerIndex, Event), broker: &mut Watches) {
        let refused = self.membership.refusals().total();
        let mut changes = self.heard(first);
        // What came together is kept and applied together.
        for _ in 1..MAX_TOGETHER {
            let Some(Some(event)) = broker.next().now_or_never() else { break };
            changes |= self.heard(event);
        }
        let refused = self.membership.refusals().total() - refused;
        self.refusals_left = self.refusals_left.saturating_sub(refused);
        self.membership_changed(changes);
    }

    fn heard(&mut self, (index, event): (BrokerIndex, Event)) -> Changes {
        match event {
            Event::Connected { broker } => {
                info!(broker, "connected to a broker");
                self.broker.errors.remove(&broker);
                self.connected.insert(index, broker);
                self.tell_connected();
                self.broker.last_heard = Some(now());
                Changes { nodes: false, status: true }
            }
            Event::Disconnected { broker, why } => {
                let why = why.to_string();
                if self.broker.errors.insert(broker.clone(), why.clone()).as_ref() != Some(&why) {
                    warn!(broker, why, "not connected to a broker; what is known stays in use");
                }
                self.connected.remove(&index);
                self.tell_connected();
                let others = !self.connected.is_empty();
                Changes { status: true, ..self.membership.disconnected(index, others) }
            }
            Event::Event(event) => {
                self.broker.last_heard = Some(now());
                self.membership.handle(index, event, now())
            }
        }
    }

    fn tell_connected(&mut self) {
        let all: Vec<&str> = self.connected.values().map(String::as_str).collect();
        self.broker.connected = (!all.is_empty()).then(|| all.join(", "));
    }

    fn tell_seen(&self) {
        let latest = Seen { highest: self.membership.own_high_water(), stored: self.membership.own_stored() };
        self.outbox.seen.send_if_modified(|seen| {
            let changed = *seen != latest;
            *seen = latest;
            changed
        });
        let lapsed = self.membership.lapsed_siblings();
        self.outbox.lapsed.send_if_modified(|known| std::mem::replace(known, lapsed.clone()) != lapsed);
    }

    fn membership_changed(&mut self, changes: Changes) {
        self.tell_seen();
        self.unsaved |= changes.nodes;
        self.unapplied |= changes.nodes || changes.status;
        self.flush(false);
    }

    /// Has what was learned written, and applied once that is done: what was seen once must not be
    /// replayed after a crash. While a broker sends everything anew the rest of it is waited for, unless
    /// `now`: a write costs the same for one record as for all.
    fn flush(&mut self, now: bool) {
        if self.disk.busy(What::Known) {
            return;
        }
        if self.unsaved {
            if now || !self.membership.resetting() {
                self.unsaved = false;
                self.unapplied = true;
                self.disk.write(Job::Known(self.membership.known()));
            }
        } else if self.unapplied {
            self.apply();
        }
    }

    async fn found(&mut self, found: Found) {
        match found {
            Ok(facts) if facts.node != self.facts.node => {
                self.facts_problem = Some(format!(
                    "the facts name this node {} now; it runs as {} until it is restarted",
                    facts.node, self.facts.node
                ));
            }
            Ok(facts) => {
                self.facts_problem = None;
                if let Some(facts) = self.drain.admit(&self.facts, facts, &self.dataplane) {
                    self.use_facts(facts).await;
                }
            }
            Err(why) => {
                warn!(why, "the facts about this node cannot be used; the last good ones stay in use");
                self.facts_problem =
                    Some(format!("the facts about this node cannot be used, the last good ones stay: {why}"));
            }
        }
    }

    async fn use_facts(&mut self, facts: LocalFacts) {
        self.facts = facts;
        self.drain.tell(&self.facts, &self.dataplane);
        self.look_at_underlay().await;
        self.announce();
        self.unapplied = true;
        self.flush(false);
    }

    async fn kernel(&mut self, event: HostEvent) {
        match event {
            // The data plane makes it anew within a second, and the host then sets it up again.
            HostEvent::InterfaceGone => {
                warn!(
                    interface = self.config.tunnel.interface,
                    "somebody deleted the interface; it is made anew"
                );
            }
            HostEvent::UnderlayChanged => self.look_at_underlay().await,
        }
    }

    async fn look_at_underlay(&mut self) {
        let found = match host::facts().await {
            Ok(found) => found,
            Err(error) => {
                let problem = format!("the underlay cannot be looked at, trying again: {error}");
                if self.underlay_problem.as_ref() != Some(&problem) {
                    warn!("{problem}");
                }
                self.underlay_problem = Some(problem);
                return;
            }
        };
        self.underlay_problem = None;
        let interface = &self.config.tunnel.interface;
        let underlay = Underlay::find(&found, &self.facts, interface, &self.broker.addresses);
        if underlay != self.underlay {
            info!(interfaces = underlay.interfaces.join(","), mtu = underlay.mtu, "the underlay");
            self.underlay = underlay;
            let needed = self.underlay.needed.clone();
            let changes = self.membership.set_underlay(&self.grant, &needed, now());
            self.membership_changed(Changes { nodes: changes.nodes, status: true });
        }
    }

    fn announce(&self) {
        let announcement = Announcement {
            node: self.facts.node.clone(),
            lanes: self.lanes.clone(),
            endpoints: self.facts.endpoints.clone(),
            pod_cidrs: self.facts.pod_cidrs.clone(),
            service_cidrs: self.facts.service_cidrs.clone(),
            gateway: self.facts.gateway,
            gateway_weight: self.facts.gateway_weight,
            host_addresses: self.facts.host_addresses(),
        };
        self.outbox.announcement.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&announcement);
            *known = Some(announcement);
            changed
        });
    }

    /// Computes what should be and hands it to those who bring it about.
    fn apply(&mut self) {
        self.unapplied = false;
        let desired = desired::desired(&Inputs {
            paths: &self.paths,
            tunnel: &self.config.tunnel,
            grant: &self.grant,
            facts: &self.facts,
            underlay_mtu: self.underlay.mtu,
            underlay: &self.underlay.interfaces,
            nodes: self.membership.nodes(),
            policy: &self.config.policy,
            bypassed: self.bypass.clusters(),
            delivery: self.config.delivery,
            siblings: self.membership.siblings(),
            by_tunnel: (self.config.delivery == Delivery::Auto).then_some(&self.by_tunnel),
            endpoints: &self.learned,
            now: now(),
        });
        let before = self.desired.replace(desired);
        let Some(desired) = &self.desired else { return };
        if before.as_ref().is_none_or(|before| before.table != desired.table) {
            self.table_problems = match self.dataplane.set_table(desired.table.clone()) {
                Ok(()) => Vec::new(),
                Err(error) => {
                    warn!(%error, "not all of the table can be used");
                    vec![error.to_string()]
                }
            };
        }
        let limits = PathLimits {
            underlay: u16::try_from(self.underlay.mtu).unwrap_or(u16::MAX),
            largest: u16::try_from(desired.host.mtu).unwrap_or(u16::MAX),
        };
        if self.path_limits.replace(limits) != Some(limits) {
            self.dataplane.set_path_limits(limits);
        }
        if before.as_ref().is_none_or(|before| before.host != desired.host) {
            self.host.set(desired.host.clone());
        }
        if before.as_ref().is_none_or(|before| before.pods != desired.pods) {
            self.repair_pods();
        }
    }

    /// Has the routes inside every pod looked at.
    fn repair_pods(&self) {
        self.repair.send_replace(attachments::Repair {
            details: self.attachments.details(),
            earlier: self.config.cni.as_ref().map(CniSettings::earlier_pods),
            routes: self.pod_routes(),
        });
    }

    async fn tick(&mut self) {
        self.refusals_left = REFUSALS_PER_TICK;
        if let Some(facts) = self.drain.retired(&self.dataplane) {
            self.use_facts(facts).await;
        }
        self.drain.tell(&self.facts, &self.dataplane);
        let status = self.dataplane.status();
        self.look_at_gateways(&status.peers);
        self.look_at_deliveries();
        let since = self.begun.elapsed();
        self.unapplied |= self.paths.observe(since, &status.peers);
        let mut fresh = false;
        let before = std::mem::take(&mut self.up);
        for peer in status.peers {
            let up = peer.lanes.iter().any(|lane| lane.established);
            if before.get(&peer.id) != Some(&up) {
                fresh |= up;
                if up {
                    info!(peer = %peer.id, "tunnel up");
                } else {
                    debug!(peer = %peer.id, "tunnel not up");
                }
            }
            self.up.insert(peer.id, up);
        }
        if fresh || self.endpoints_written.elapsed() >= ENDPOINTS_EVERY {
            self.write_endpoints();
        }
        if self.underlay_problem.is_some() {
            self.look_at_underlay().await;
        }
        if self.housekept.elapsed() >= HOUSEKEEPING_EVERY {
            self.housekeep().await;
        }
        if self.rewritten.elapsed() >= REWRITE_EVERY {
            self.rewritten = Instant::now();
            self.unsaved |= self.disk.failed(What::Known);
            self.delivery_unwritten |= self.disk.failed(What::Delivery);
            self.attachments.keep_again();
        }
        self.flush(true);
    }

    /// Has the gateways probed through that carry packets, and tells what has become of them.
    fn look_at_gateways(&mut self, peers: &[PeerStatus]) {
        self.liveness.look(&self.grant.cluster, peers);
        self.look_for_answers(peers);
        let nodes = self.membership.nodes();
        let id = NodeId { cluster: self.grant.cluster.clone(), node: self.facts.node.clone() };
        let members = probe::members(nodes.values().map(|node| &node.verified.record().pod_cidrs));
        let own = self.facts.host_addresses();
        let mut plan = self.planner.plan(&id, &own, members, nodes, peers, self.prober.answers());
        if self.config.delivery == Delivery::Auto {
            let siblings = self.membership.siblings();
            plan.askers = questions::askers(siblings);
            if self.facts.gateway {
                plan.targets = questions::targets(&own, nodes, self.bypass.clusters(), siblings, peers);
            }
        }
        self.prober.follow(plan);
    }

    /// Takes over which nodes of the cluster were found to need a tunnel.
    fn look_at_deliveries(&mut self) {
        if self.config.delivery != Delivery::Auto || !self.facts.gateway {
            self.deliveries = Deliveries::default();
            return;
        }
        self.deliveries = self.prober.deliveries();
        let siblings = self.membership.siblings();
        let mut by_tunnel: BTreeSet<NodeId> =
            self.by_tunnel.iter().filter(|id| siblings.contains_key(id)).cloned().collect();
        for (id, found) in &self.deliveries.found {
            let why = found.why.meaning();
            if found.tunnel && by_tunnel.insert(id.clone()) {
                info!(node = %id, why, "packets of other clusters for its pods take a tunnel from now on");
            } else if !found.tunnel && by_tunnel.remove(id) {
                info!(node = %id, why, "packets of other clusters for its pods take the cluster's own network again");
            }
        }
        let changed = by_tunnel != self.by_tunnel;
        self.unapplied |= changed;
        self.by_tunnel = by_tunnel;
        self.delivery_unwritten |= changed;
        if self.delivery_unwritten && !self.disk.busy(What::Delivery) {
            self.delivery_unwritten = false;
            self.disk.write(Job::Delivery(self.by_tunnel.clone()));
        }
    }

    fn look_for_answers(&mut self, peers: &[PeerStatus]) {
        let nodes = self.membership.nodes();
        let is_gateway = |id: &NodeId| nodes.get(id).is_some_and(|node| node.verified.record().gateway);
        self.unapplied |= self.bypass.look(&self.config.policy, self.begun_at.elapsed(), peers, is_gateway);
    }

    /// Takes the routes back from the underlay as soon as a gateway answers.
    fn look_at_bypass(&mut self) {
        self.look_for_answers(&self.dataplane.status().peers);
        self.flush(false);
    }

    async fn housekeep(&mut self) {
        self.housekept = Instant::now();
        self.disk.write(Job::LanesInUse(now()));
        // What changed while nobody listened yet.
        self.look_at_underlay().await;
        let up = &self.up;
        let changes = self.membership.forget(now(), |id| up.get(id).copied().unwrap_or(false));
        self.membership_changed(Changes { nodes: changes.nodes, status: true });
        self.attachments.take_pending(&self.config.socket);
        self.repair_pods();
    }

    /// Writes down where peers are heard, if it changed: a gateway that starts anew can so dial nodes
    /// behind NAT, whose mappings still stand.
    fn write_endpoints(&mut self) {
        self.endpoints_written = Instant::now();
        let mut endpoints = Endpoints::new();
        for peer in self.dataplane.status().peers {
            let heard: Vec<_> = peer
                .lanes
                .iter()
                .filter(|lane| lane.handshake_age.is_some())
                .filter_map(|lane| lane.endpoint.map(|endpoint| (lane.local, lane.remote, endpoint)))
                .collect();
            // A peer that is silent for the moment keeps what is known of it.
            let heard = if heard.is_empty() {
                self.endpoints.get(&peer.id).cloned().unwrap_or_default()
            } else {
                heard
            };
            if !heard.is_empty() {
                endpoints.insert(peer.id, heard);
            }
        }
        if (endpoints != self.endpoints || self.disk.failed(What::Endpoints))
            && !self.disk.busy(What::Endpoints)
        {
            self.endpoints = endpoints.clone();
            self.disk.write(Job::Endpoints(endpoints));
        }
    }

    fn pod_routes(&self) -> PodRoutes {
        self.desired.as_ref().map(|desired| desired.pods.clone()).unwrap_or_default()
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Ready => Answer::Done,
            Request::Drain { drain } => {
                let file = self.config.state_dir.join(DRAINED);
                let done = self.drain.set(drain, &self.facts, &file);
                self.drain.tell(&self.facts, &self.dataplane);
                match done {
                    Ok(()) => Answer::Done,
                    Err(error) => Answer::Error { message: format!("{error:#}") },
                }
            }
            Request::Attach(detail) => {
                let name = detail.pod.clone().unwrap_or_else(|| detail.attachment.container_id.clone());
                match self.attachments.attach(detail) {
                    Ok(()) => {
                        debug!(pod = name, "a pod is attached");
                        Answer::Routes(self.pod_routes())
                    }
                    Err(error) => Answer::Error { message: format!("{error:#}") },
                }
            }
            Request::Detach(attachment) => {
                self.attachments.detach(&attachment);
                Answer::Done
            }
            Request::Check(attachment) if self.attachments.contains(&attachment) => {
                Answer::Routes(self.pod_routes())
            }
            Request::Check(_) => Answer::Unknown,
            Request::Collect { network, valid } => {
                self.attachments.collect(&network, &valid);
                Answer::Done
            }
        }
    }

    fn status(&self) -> podspan_wire::status::Status {
        let dataplane = self.dataplane.status();
        let mut problems: Vec<String> = Vec::new();
        problems.extend(self.ended.iter().map(|part| {
            format!("{part} has ended by a fault of podspan's: restart the agent; what is shown of it is old")
        }));
        problems.extend(self.disk.problems().cloned());
        problems.extend(self.attachments.problem().map(str::to_owned));
        problems.extend(self.underlay_problem.clone());
        problems.extend(self.bundle_problem.clone());
        problems.extend(self.cni_problem.clone());
        problems.extend(self.facts_problem.clone());
        problems.extend(self.config.tunnel.too_few_lanes(self.facts.gateway, self.lanes.len()));
        let contradictions = self.facts.discovery.contradictions.iter();
        problems.extend(contradictions.filter(|wrong| wrong.problem).map(|wrong| wrong.message.clone()));
        problems.extend(self.table_problems.iter().cloned());
        problems.extend(self.desired.iter().flat_map(|desired| desired.problems.iter().cloned()));
        problems.extend(self.host.notes());
        problems.extend(self.deliveries.problem.clone());
        overview::overview(Parts {
            now: now(),
            started: self.started,
            grant: &self.grant,
            facts: &self.facts,
            source: self.config.source.kind(),
            lanes: &self.lanes,
            mtu: self.desired.as_ref().map_or(0, |desired| desired.host.mtu),
            underlay_mtu: self.underlay.mtu,
            route_mtus: self.desired.as_ref().map(|desired| &desired.host.route_mtus),
            membership: &self.membership,
            dataplane: &dataplane,
            kernel: self.host.status(),
            broker: &self.broker,
            published: &self.published,
            delivery: report::report(report::Parts {
                mode: self.config.delivery,
                gateway: self.facts.gateway,
                siblings: self.membership.siblings(),
                found: &self.deliveries.found,
                peers: &dataplane.peers,
                now: now(),
            }),
            draining: self.drain.reason(&self.facts).as_deref(),
            attachments: self.attachments.len(),
            problems: &problems,
        })
    }
}
