//! The controller: the one place where everything comes together.
//!
//! `record stream + local facts -> DesiredState -> apply -> status`: events come in, what is known is
//! brought up to date, what should be is computed whole and handed to the data plane, the kernel and the
//! pods. Each of these takes the whole and finds out itself what changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use podspan_broker::client::{Event, Watch};
use podspan_dataplane::Dataplane;
use podspan_wire::local::{Answer, Attachment, PodRoutes, Request};
use podspan_wire::status::BrokerStatus;
use podspan_wire::{Bundle, Lane, NodeId, Trust, UnixTime, VerifiedGrant, Version};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::attachments::{self, Attachments};
use crate::config::Config;
use crate::control_socket::Query;
use crate::desired::{self, DesiredState, Inputs};
use crate::facts::LocalFacts;
use crate::host::{self, Host, HostEvent};
use crate::membership::{Changes, Membership};
use crate::overview::{self, Parts};
use crate::publish::{Announcement, Published};
use crate::source::Found;
use crate::state::{Endpoints, StateDir};
use crate::underlay::Underlay;

/// How often counters and clocks are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often what peers' endpoints are is written down, if it changed.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(5);
/// How often old records are forgotten and the keys' last use is noted.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(60);

/// How many events of the broker are taken in before the others get their turn.
const MAX_TOGETHER: usize = 1024;

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
    /// This node's lanes as they are announced.
    pub lanes: Vec<Lane>,
    /// The packet path.
    pub dataplane: Dataplane,
    /// The hand on the kernel.
    pub host: Host,
}

/// The ends of the channels that lead here.
pub struct Inbox {
    /// Facts that changed.
    pub facts: mpsc::Receiver<Found>,
    /// What the brokers say.
    pub broker: Watch,
    /// What happens in the kernel.
    pub host: mpsc::Receiver<HostEvent>,
    /// Questions from the unix socket and the health port.
    pub queries: mpsc::Receiver<Query>,
    /// How publishing goes.
    pub published: watch::Receiver<Published>,
}

/// The ends of the channels that lead away from here.
pub struct Outbox {
    /// What is to be announced.
    pub announcement: watch::Sender<Option<Announcement>>,
    /// The highest version of this node that was seen.
    pub seen: watch::Sender<Option<Version>>,
}

/// See the module.
pub struct Controller {
    config: Config,
    grant: VerifiedGrant,
    facts: LocalFacts,
    state: Arc<StateDir>,
    lanes: Vec<Lane>,
    dataplane: Dataplane,
    host: Host,
    underlay: Underlay,
    membership: Membership,
    attachments: Attachments,
    broker: BrokerStatus,
    published: Published,
    outbox: Outbox,
    started: UnixTime,
    desired: Option<DesiredState>,
    /// Where peers were heard in the last life: for the data plane to dial. Never changed, so that the
    /// table is not.
    learned: Endpoints,
    /// Where they are heard now, as it was last written down.
    endpoints: Endpoints,
    endpoints_written: Instant,
    housekept: Instant,
    up: BTreeMap<NodeId, bool>,
    repaired: mpsc::Receiver<Vec<Attachment>>,
    repair: watch::Sender<attachments::Repair>,
    facts_problem: Option<String>,
    table_problems: Vec<String>,
}

fn now() -> UnixTime {
    SystemTime::now().into()
}

impl Controller {
    /// Takes up what was known, and brings everything to the state it should have by that.
    ///
    /// # Errors
    /// If the state directory cannot be read, or the data plane not be opened.
    pub async fn start(setup: Setup, outbox: Outbox) -> anyhow::Result<Self> {
        let Setup { config, bundle, grant, facts, state, lanes, dataplane, host } = setup;
        let own = NodeId { cluster: grant.cluster.clone(), node: facts.node.clone() };
        let known = state.known()?;
        let membership = Membership::new(Trust::new(bundle.cluster_set), own, &grant, known, now());
        let mut attachments = Attachments::load(state.clone())?;
        let late = attachments.take_pending(&config.socket);
        if late > 0 {
            info!(pods = late, "took in pods that were added while no agent ran");
        }
        let learned = state.endpoints()?;
        let (repair, repaired) = attachments::spawn_repair();
        let mut controller = Self {
            broker: BrokerStatus { addresses: bundle.brokers.clone(), ..BrokerStatus::default() },
            underlay: Underlay::default(),
            desired: None,
            endpoints: learned.clone(),
            endpoints_written: Instant::now(),
            housekept: Instant::now(),
            up: BTreeMap::new(),
            facts_problem: None,
            table_problems: Vec::new(),
            published: Published::default(),
            started: now(),
            dataplane,
            config,
            grant,
            facts,
            state,
            lanes,
            host,
            membership,
            attachments,
            outbox,
            learned,
            repaired,
            repair,
        };
        controller.look_at_underlay().await;
        controller.outbox.seen.send_replace(controller.membership.own_high_water());
        controller.announce();
        controller.apply();
        Ok(controller)
    }

    /// Runs until `stop` is done, then gives back the data plane and the hand on the kernel.
    ///
    /// # Errors
    /// If something happened that only a restart can mend.
    pub async fn run(
        mut self,
        mut inbox: Inbox,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<(Dataplane, Host)> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(query) = inbox.queries.recv() => {
                    let answer = self.answer(query.request);
                    let _ = query.answer.send(answer);
                }
                Some(event) = inbox.broker.next() => {
                    let mut changes = self.heard(event);
                    // What came together is kept and applied together.
                    for _ in 0..MAX_TOGETHER {
                        let Some(Some(event)) = inbox.broker.next().now_or_never() else { break };
                        changes |= self.heard(event);
                    }
                    self.membership_changed(changes);
                }
                Some(found) = inbox.facts.recv() => self.found(found).await,
                Some(event) = inbox.host.recv() => self.kernel(event).await,
                Some(gone) = self.repaired.recv() => {
                    for attachment in &gone {
                        if let Err(error) = self.attachments.detach(attachment) {
                            warn!(error = format!("{error:#}"), "the attachments cannot be kept");
                        }
                    }
                }
                Ok(()) = inbox.published.changed() => self.published = inbox.published.borrow_and_update().clone(),
                _ = ticks.tick() => self.tick(),
            }
        }
        self.write_endpoints();
        Ok((self.dataplane, self.host))
    }

    fn heard(&mut self, event: Event) -> Changes {
        match event {
            Event::Connected { broker } => {
                info!(broker, "connected to a broker");
                self.broker.errors.remove(&broker);
                self.broker.connected = Some(broker);
                self.broker.last_heard = Some(now());
                Changes { nodes: false, status: true }
            }
            Event::Disconnected { broker, why } => {
                let why = why.to_string();
                if self.broker.errors.insert(broker.clone(), why.clone()).as_ref() != Some(&why) {
                    warn!(broker, why, "not connected to a broker; what is known stays in use");
                }
                self.broker.connected = None;
                Changes { nodes: false, status: true }
            }
            Event::Event(event) => {
                self.broker.last_heard = Some(now());
                self.membership.handle(event, now())
            }
        }
    }

    fn membership_changed(&mut self, changes: Changes) {
        self.outbox.seen.send_if_modified(|seen| {
            let latest = self.membership.own_high_water();
            let changed = *seen != latest;
            *seen = latest;
            changed
        });
        if changes.nodes {
            // On disk first: what was seen once must not be replayed after a crash.
            if let Err(error) = self.state.keep_known(&self.membership.known()) {
                warn!(error = format!("{error:#}"), "what is known of the other clusters cannot be kept");
                self.table_problems = vec![format!("what is known cannot be kept on disk: {error:#}")];
            }
        }
        if changes.nodes || changes.status {
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
                self.facts = facts;
                self.look_at_underlay().await;
                self.announce();
                self.apply();
            }
            Err(why) => {
                warn!(why, "the facts about this node cannot be used; the last good ones stay in use");
                self.facts_problem =
                    Some(format!("the facts about this node cannot be used, the last good ones stay: {why}"));
            }
        }
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
            HostEvent::UnderlayChanged => {
                self.look_at_underlay().await;
                self.apply();
            }
        }
    }

    async fn look_at_underlay(&mut self) {
        let found = match host::facts().await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "the underlay cannot be looked at");
                return;
            }
        };
        let interface = &self.config.tunnel.interface;
        let underlay = Underlay::find(&found, &self.facts, interface, &self.broker.addresses);
        if underlay != self.underlay {
            info!(interfaces = underlay.interfaces.join(","), mtu = underlay.mtu, "the underlay");
            self.underlay = underlay;
            let needed = self.underlay.needed.clone();
            let changes = self.membership.set_underlay(&self.grant, &needed, now());
            self.membership_changed(Changes { nodes: changes.nodes, status: false });
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
        };
        self.outbox.announcement.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&announcement);
            *known = Some(announcement);
            changed
        });
    }

    /// Computes what should be and hands it to those who bring it about.
    fn apply(&mut self) {
        let desired = desired::desired(&Inputs {
            tunnel: &self.config.tunnel,
            grant: &self.grant,
            facts: &self.facts,
            underlay_mtu: self.underlay.mtu,
            underlay: &self.underlay.interfaces,
            nodes: self.membership.nodes(),
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
            routes: self.pod_routes(),
        });
    }

    fn tick(&mut self) {
        let status = self.dataplane.status();
        let mut fresh = false;
        for peer in &status.peers {
            let up = peer.lanes.iter().any(|lane| lane.established);
            if self.up.insert(peer.id.clone(), up) != Some(up) {
                fresh |= up;
                if up {
                    info!(peer = %peer.id, "tunnel up");
                } else {
                    debug!(peer = %peer.id, "tunnel not up");
                }
            }
        }
        self.up.retain(|id, _| status.peers.iter().any(|peer| &peer.id == id));
        if fresh || self.endpoints_written.elapsed() >= ENDPOINTS_EVERY {
            self.write_endpoints();
        }
        if self.housekept.elapsed() >= HOUSEKEEPING_EVERY {
            self.housekept = Instant::now();
            if let Err(error) = self.state.touch_lanes(now()) {
                warn!(error = format!("{error:#}"), "the use of the lanes' keys cannot be noted");
            }
            let up = &self.up;
            let changes = self.membership.forget(now(), |id| up.get(id).copied().unwrap_or(false));
            self.membership_changed(Changes { nodes: changes.nodes, status: true });
            self.attachments.take_pending(&self.config.socket);
            self.repair_pods();
        }
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
        if endpoints != self.endpoints {
            match self.state.keep_endpoints(&endpoints) {
                Ok(()) => self.endpoints = endpoints,
                Err(error) => warn!(error = format!("{error:#}"), "the endpoints of peers cannot be kept"),
            }
        }
    }

    fn pod_routes(&self) -> PodRoutes {
        self.desired.as_ref().map(|desired| desired.pods.clone()).unwrap_or_default()
    }

    fn answer(&mut self, request: Request) -> Answer {
        let done = |result: anyhow::Result<()>| match result {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Error { message: format!("{error:#}") },
        };
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Ready => Answer::Done,
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
            Request::Detach(attachment) => done(self.attachments.detach(&attachment)),
            Request::Check(attachment) if self.attachments.contains(&attachment) => {
                Answer::Routes(self.pod_routes())
            }
            Request::Check(_) => Answer::Unknown,
            Request::Collect { network, valid } => done(self.attachments.collect(&network, &valid)),
        }
    }

    fn status(&self) -> podspan_wire::status::Status {
        let dataplane = self.dataplane.status();
        let mut problems: Vec<String> = Vec::new();
        problems.extend(self.facts_problem.clone());
        problems.extend(self.table_problems.iter().cloned());
        problems.extend(self.desired.iter().flat_map(|desired| desired.problems.iter().cloned()));
        problems.extend(self.host.notes());
        overview::overview(Parts {
            now: now(),
            started: self.started,
            grant: &self.grant,
            facts: &self.facts,
            source: self.config.source.kind(),
            lanes: &self.lanes,
            mtu: self.desired.as_ref().map_or(0, |desired| desired.host.mtu),
            membership: &self.membership,
            dataplane: &dataplane,
            kernel: self.host.status(),
            broker: &self.broker,
            published: &self.published,
            attachments: self.attachments.len(),
            problems: &problems,
        })
    }
}
