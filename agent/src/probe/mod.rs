//! Probes **through** gateways: one that answers but does not forward would otherwise swallow packets for ever.
//!
//! While packets go to a cluster, an ordinary UDP packet from this node's own address goes through the tunnel of
//! each of its gateways to another node of that cluster, whose agent answers; the answer takes whatever way. What
//! follows from them, [`verdict`] says, and the data plane then uses other gateways.
//!
//! ```text
//! controller ──Plan, each second──► prober ──send_through──► data plane ═ gateway ═► node's responder
//!                                     ▲                                                   │
//!                                     └──────────── answer, by whatever way ◄─────────────┘
//! ```
//!
//! In the same way the gateway asks the other nodes of its own cluster whether what comes from other clusters reaches
//! them over the cluster's own network ([`crate::pod_delivery`]).

pub mod packet;
pub mod plan;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use podspan_dataplane::Dataplane;
use podspan_wire::{CidrSet, NodeId, PROBE_PORT};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

pub use plan::Plan;

use crate::pod_delivery::questions;
use crate::pod_delivery::verdict::{self as delivery, Found};
use packet::{LENGTH, Message};
use verdict::Verdicts;

/// Between two looks at what was answered, and between questions where answers are missing.
const TICK: Duration = Duration::from_millis(50);
/// Gateways in use are asked each so many ticks: ten times a second.
const ROUND: u32 = 2;
/// Those that carry nothing are asked each so many.
const STANDBY: u32 = 20;
/// Answers given each second, at most.
const ANSWERS: u32 = 1000;
/// Nodes of the own cluster that are asked in one [`TICK`] at most: 200 a second.
const QUESTIONS: usize = 10;

/// Asks as it is told, and answers. Ends with its last handle.
#[derive(Debug)]
pub struct Prober {
    plans: watch::Sender<Plan>,
    answers: Arc<AtomicU64>,
    deliveries: watch::Receiver<Deliveries>,
}

/// What was found of the other nodes of the own cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    /// Of each that is to be asked.
    pub found: BTreeMap<NodeId, Found>,
    /// Why they cannot be asked, if so.
    pub problem: Option<String>,
}

impl Prober {
    /// Starts it, without anything to do. `remembered` are the nodes of the own cluster that needed the tunnel in the
    /// agent's last life.
    #[must_use]
    pub fn start(dataplane: &Arc<Dataplane>, remembered: BTreeSet<NodeId>) -> Self {
        let (plans, receiver) = watch::channel(Plan::default());
        let (deliveries_end, deliveries) = watch::channel(Deliveries::default());
        let answers = Arc::new(AtomicU64::new(0));
        let task = Task {
            asking: Asking {
                verdicts: delivery::Verdicts::new(remembered),
                sockets: BTreeMap::new(),
                problem: None,
                told: deliveries_end,
            },
            dataplane: Arc::downgrade(dataplane),
            plans: receiver,
            sockets: BTreeMap::new(),
            answers: Arc::clone(&answers),
        };
        tokio::spawn(task.run());
        Self { plans, answers, deliveries }
    }

    /// What was found of the other nodes of the own cluster so far.
    #[must_use]
    pub fn deliveries(&self) -> Deliveries {
        self.deliveries.borrow().clone()
    }

    /// Puts a plan in force. Even an unchanged one has it try again what did not work before.
    pub fn follow(&self, plan: Plan) {
        self.plans.send_replace(plan);
    }

    /// How many questions were answered so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }
}

struct Task {
    /// Not to hold it up when it is to end.
    dataplane: Weak<Dataplane>,
    plans: watch::Receiver<Plan>,
    answers: Arc<AtomicU64>,
    /// One for each of the node's own addresses: nobody else's packets are seen.
    sockets: BTreeMap<IpAddr, UdpSocket>,
    asking: Asking,
}

impl Task {
    async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut verdicts = Verdicts::default();
        let mut tick = 0_u32;
        let mut answers = Store::default();
        let mut buffer = [0; LENGTH + 1];
        loop {
            let idle = {
                let plan = self.plans.borrow();
                plan.ways.is_empty() && plan.targets.is_empty()
            };
            tokio::select! {
                changed = self.plans.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let own = self.plans.borrow_and_update().own.clone();
                    self.listen(&own);
                    self.asking.follow(&self.plans.borrow());
                }
                _ = ticks.tick(), if !idle => {
                    self.conclude(&mut verdicts);
                    self.ask(tick, &mut verdicts);
                    self.asking.ask(&self.plans.borrow());
                    tick = tick.wrapping_add(1);
                }
                (own, received) = receive(&self.sockets, &mut buffer) => match received {
                    Ok((length, from)) => match Message::read(&buffer[..length]) {
                        Some(Message::Question(nonce)) if self.may_ask(from) && answers.take(Instant::now()) => {
                            self.answer(own, from, nonce);
                        }
                        Some(Message::Answer(nonce)) => drop(verdicts.answer(Instant::now(), nonce)),
                        Some(Message::DeliveryQuestion { nonce, back })
                            if self.may_ask(from)
                                && self.plans.borrow().askers.contains(&back)
                                && answers.take(Instant::now()) =>
                        {
                            self.tell_delivered(own, back, nonce);
                        }
                        Some(Message::Delivered(nonce)) => {
                            self.asking.verdicts.answer(Instant::now(), nonce);
                            self.asking.tell();
                        }
                        _ => {}
                    },
                    Err(error) => {
                        // The address may be gone; the next plan opens it again.
                        debug!(%error, %own, "the socket of probes through gateways");
                        self.sockets.remove(&own);
                    }
                },
            }
        }
    }

    /// Listens at the node's own addresses, as far as they are there yet.
    fn listen(&mut self, own: &[IpAddr]) {
        self.sockets.retain(|address, _| own.contains(address));
        for &address in own {
            if self.sockets.contains_key(&address) {
                continue;
            }
            match bind(address) {
                Ok(socket) => drop(self.sockets.insert(address, socket)),
                // The host sets the address soon after the first plan.
                Err(error) => debug!(%error, %address, "not listening for probes through gateways yet"),
            }
        }
    }

    fn may_ask(&self, from: SocketAddr) -> bool {
        from.port() == PROBE_PORT && self.plans.borrow().members.contains(from.ip().to_canonical())
    }

    fn answer(&self, own: IpAddr, to: SocketAddr, nonce: u64) {
        let Some(socket) = self.sockets.get(&own) else { return };
        match socket.try_send_to(&Message::Answer(nonce).write(), to) {
            Ok(_) => drop(self.answers.fetch_add(1, Relaxed)),
            Err(error) => debug!(%error, %to, "cannot answer a probe"),
        }
    }

    /// Over the cluster's own network: not counted among those of [`Prober::answers`], which use gateways.
    fn tell_delivered(&self, own: IpAddr, back: IpAddr, nonce: u64) {
        let Some(socket) = self.sockets.get(&own).filter(|_| own.is_ipv4() == back.is_ipv4()) else { return };
        if let Err(error) = socket.try_send_to(&Message::Delivered(nonce).write(), (back, PROBE_PORT).into())
        {
            debug!(%error, to = %back, "cannot answer a delivery question");
        }
    }

    fn ask(&self, tick: u32, verdicts: &mut Verdicts) {
        let Some(dataplane) = self.dataplane.upgrade() else { return };
        let now = Instant::now();
        let plan = self.plans.borrow();
        let due = |way: &&plan::Way| {
            tick.is_multiple_of(if way.in_use { ROUND } else { STANDBY })
                || verdicts.is_in_doubt(&way.node, now)
        };
        let due: Vec<&plan::Way> = plan.ways.iter().filter(due).collect();
        for way in due {
            let Ok(nonce) = getrandom::u64() else { continue };
            let question = Message::Question(nonce).write();
            let Some(packet) = packet::packet(way.source, way.destination, PROBE_PORT, &question) else {
                continue;
            };
            verdicts.ask(now, &way.gateway, &way.node, nonce, way.rtt);
            dataplane.send_through(&way.gateway, &packet);
        }
    }

    fn conclude(&self, verdicts: &mut Verdicts) {
        let Some(dataplane) = self.dataplane.upgrade() else { return };
        let now = Instant::now();
        let heard = |gateway: &NodeId| {
            let lanes = dataplane.status().peers.into_iter().find(|peer| peer.id == *gateway)?.lanes;
            // The questions take this node's first lane.
            let mut first = lanes.iter().filter(|lane| lane.local == 0);
            if !first.any(plan::is_answering) {
                return None;
            }
            now.checked_sub(lanes.iter().filter_map(|lane| lane.last_reply_age).min()?)
        };
        for (gateway, forwards) in verdicts.judge(now, heard) {
            if forwards {
                info!(%gateway, "the gateway forwards again");
            } else {
                warn!(
                    %gateway,
                    "the gateway answers but does not forward to other nodes of its cluster: other gateways are used; \
                     look there at net.ipv4.ip_forward, the FORWARD chain and the routes to its cluster's nodes"
                );
            }
            dataplane.set_forwarding(&gateway, forwards);
        }
    }
}

/// Asks the other nodes of the own cluster.
struct Asking {
    verdicts: delivery::Verdicts,
    /// One for each foreign address.
    sockets: BTreeMap<IpAddr, std::net::UdpSocket>,
    problem: Option<String>,
    told: watch::Sender<Deliveries>,
}

impl Asking {
    /// Takes in whom to ask, and opens what is needed for it.
    fn follow(&mut self, plan: &Plan) {
        let nodes: Vec<(&NodeId, bool)> =
            plan.targets.iter().map(|target| (&target.node, target.usable)).collect();
        self.verdicts.follow(Instant::now(), &nodes);
        let foreign: BTreeSet<IpAddr> =
            plan.targets.iter().flat_map(|target| &target.ways).map(|way| way.foreign).collect();
        self.sockets.retain(|address, _| foreign.contains(address));
        self.problem = None;
        for address in foreign {
            if self.sockets.contains_key(&address) {
                continue;
            }
            match questions::open(address) {
                Ok(socket) => drop(self.sockets.insert(address, socket)),
                Err(error) => {
                    self.problem = Some(format!(
                        "delivery auto: the nodes of this cluster cannot be asked with the address {address} of another \
                         one, so that those not yet found to need a tunnel have none: {error} (the agent needs \
                         CAP_NET_ADMIN)"
                    ));
                }
            }
        }
        self.tell();
    }

    fn ask(&mut self, plan: &Plan) {
        let now = Instant::now();
        self.verdicts.judge(now);
        let due = match self.problem {
            // Who cannot be asked has not been silent.
            Some(_) => Vec::new(),
            None => self.verdicts.due(now, QUESTIONS),
        };
        for node in due {
            let Ok(at) = plan.targets.binary_search_by(|target| target.node.cmp(&node)) else { continue };
            let mut nonces = Vec::new();
            for way in &plan.targets[at].ways {
                let (Some(socket), Ok(nonce)) = (self.sockets.get(&way.foreign), getrandom::u64()) else {
                    continue;
                };
                let question = Message::DeliveryQuestion { nonce, back: way.back }.write();
                match socket.send_to(&question, (way.to, PROBE_PORT)) {
                    Ok(_) => nonces.push(nonce),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // As good as a network that does not bring it.
                    Err(error) => {
                        debug!(%error, %node, "cannot send a delivery question");
                        nonces.push(nonce);
                    }
                }
            }
            self.verdicts.ask(now, &node, nonces);
        }
        self.tell();
    }

    fn tell(&mut self) {
        let news = self.verdicts.news();
        if news.is_some() || self.told.borrow().problem != self.problem {
            self.told.send_modify(|told| {
                told.found = news.unwrap_or_else(|| std::mem::take(&mut told.found));
                told.problem.clone_from(&self.problem);
            });
        }
    }
}

/// How many answers may still be given: a store that is full again within a second.
#[derive(Debug, Default)]
struct Store {
    given: u32,
    since: Option<Instant>,
}

impl Store {
    fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since >= Duration::from_secs(1)) {
            *self = Self { given: 0, since: Some(now) };
        }
        self.given = self.given.saturating_add(1);
        self.given <= ANSWERS
    }
}

fn bind(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((address, PROBE_PORT))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Waits for a datagram at any of the sockets.
async fn receive(
    sockets: &BTreeMap<IpAddr, UdpSocket>,
    buffer: &mut [u8],
) -> (IpAddr, io::Result<(usize, SocketAddr)>) {
    let ready = |(&own, socket)| Box::pin(readable(own, socket));
    let waits: Vec<_> = sockets.iter().map(ready).collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    let ((own, ready), ..) = futures_util::future::select_all(waits).await;
    let received = match (ready, sockets.get(&own)) {
        (Err(error), _) => Err(error),
        (Ok(()), Some(socket)) => match socket.try_recv_from(buffer) {
            // Woken for nothing: an empty datagram is no message.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((0, SocketAddr::new(own, 0))),
            // An earlier answer met nobody: that is told here, once.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Ok((0, SocketAddr::new(own, 0)))
            }
            received => received,
        },
        (Ok(()), None) => Ok((0, SocketAddr::new(own, 0))),
    };
    (own, received)
}

async fn readable(own: IpAddr, socket: &UdpSocket) -> (IpAddr, io::Result<()>) {
    (own, socket.readable().await)
}

/// Everybody who may ask: this cluster's nodes and those of the others.
#[must_use]
pub fn members<'a>(sets: impl Iterator<Item = &'a CidrSet>) -> CidrSet {
    sets.flat_map(|set| set.iter().copied()).collect()
}
