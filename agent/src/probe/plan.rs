//! Which gateways are probed through, and to which nodes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::Duration;

use podspan_dataplane::{LaneStatus, Liveness, PeerStatus};
use podspan_wire::{CidrSet, ClusterId, NodeId};

use crate::membership::RemoteNode;
use crate::pod_delivery::questions::Target;

/// A cluster is in use for so many looks after the last packet to it.
const LOOKS: u32 = 3;
/// So many nodes of a cluster are asked.
const TARGETS: usize = 2;

/// What is to be asked from now on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// This node's own addresses, at which it asks and answers.
    pub own: Vec<IpAddr>,
    /// Whose questions are answered.
    pub members: CidrSet,
    /// The questions of a round.
    pub ways: Vec<Way>,
    /// What is asked of the other nodes of the own cluster.
    pub targets: Vec<Target>,
    /// To which addresses delivery questions are answered.
    pub askers: BTreeSet<IpAddr>,
}

/// A question of each round.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    /// The gateway that it goes through.
    pub gateway: NodeId,
    /// The node that it goes to; the gateway itself, if it is to be another gateway's witness.
    pub node: NodeId,
    /// This node's address.
    pub source: IpAddr,
    /// That node's address.
    pub destination: IpAddr,
    /// Whether the gateway carries packets; otherwise it is asked less often.
    pub in_use: bool,
    /// The round trip to the gateway.
    pub rtt: Duration,
}

/// Sees which gateways are in use.
#[derive(Debug, Default)]
pub struct Planner {
    /// Packets sent to each gateway so far, and looks since there was one more.
    sent: HashMap<NodeId, (u64, u32)>,
    /// Answers given so far.
    answers: u64,
}

impl Planner {
    /// The plan for now. `status` is of the data plane, `answers` what was answered so far; call it about once a
    /// second.
    #[must_use]
    pub fn plan(
        &mut self,
        me: &NodeId,
        own: &[IpAddr],
        members: CidrSet,
        nodes: &BTreeMap<NodeId, RemoteNode>,
        status: &[PeerStatus],
        answers: u64,
    ) -> Plan {
        // Answers to others' questions are no use of a gateway: they would keep all asking for ever.
        let answered = answers.saturating_sub(std::mem::replace(&mut self.answers, answers));
        let mut plan = Plan { own: own.to_vec(), members, ..Plan::default() };
        let mut clusters: BTreeMap<&ClusterId, Vec<Gateway<'_>>> = BTreeMap::new();
        for peer in status {
            let Some(node) = nodes.get(&peer.id).filter(|node| node.verified.record().gateway) else {
                continue;
            };
            let sent: u64 = peer.lanes.iter().map(|lane| lane.tx_packets).sum();
            let (before, idle) = self.sent.entry(peer.id.clone()).or_insert((sent, LOOKS));
            let busy = sent.saturating_sub(*before) > answered;
            *idle = if busy { 0 } else { idle.saturating_add(1) };
            *before = sent;
            let first = peer.lanes.iter().find(|lane| lane.local == 0);
            let answers = first.is_some_and(is_answering);
            clusters.entry(&peer.id.cluster).or_default().push(Gateway {
                id: &peer.id,
                node,
                answers,
                in_use: *idle < LOOKS,
                rtt: first.and_then(|lane| lane.rtt).unwrap_or(Duration::from_millis(200)),
            });
        }
        self.sent.retain(|id, _| nodes.contains_key(id));
        for (cluster, gateways) in clusters {
            if gateways.iter().any(|gateway| gateway.in_use) {
                plan.ways.extend(ways(me, own, cluster, &gateways, nodes));
            }
        }
        plan
    }
}

/// Whether a gateway itself answers by this lane.
pub(super) fn is_answering(lane: &LaneStatus) -> bool {
    (lane.established && lane.liveness < Liveness::Suspect) || lane.liveness == Liveness::NotForwarding
}

struct Gateway<'a> {
    id: &'a NodeId,
    node: &'a RemoteNode,
    answers: bool,
    in_use: bool,
    rtt: Duration,
}

fn ways(
    me: &NodeId,
    own: &[IpAddr],
    cluster: &ClusterId,
    gateways: &[Gateway<'_>],
    nodes: &BTreeMap<NodeId, RemoteNode>,
) -> Vec<Way> {
    // Without a second way there is no evidence.
    if gateways.iter().filter(|gateway| gateway.answers).count() < 2 {
        return Vec::new();
    }
    let address = |node: &RemoteNode| {
        let theirs = node.verified.record().host_addresses();
        own.iter().find_map(|&source| {
            let destination = theirs.iter().find(|address| address.is_ipv4() == source.is_ipv4())?;
            Some((source, *destination))
        })
    };
    // Ordinary nodes are the better witnesses; each node of ours has others, so that none is asked by all.
    let ordinary =
        nodes.iter().filter(|(id, node)| id.cluster == *cluster && !node.verified.record().gateway);
    let mut targets: Vec<(u64, &NodeId, (IpAddr, IpAddr))> =
        ordinary.filter_map(|(id, node)| Some((rank(me, id), id, address(node)?))).collect();
    targets.sort();
    targets.truncate(TARGETS);
    let mut ways = Vec::new();
    for gateway in gateways.iter().filter(|gateway| gateway.answers) {
        let mut ask = |node: &NodeId, (source, destination)| {
            ways.push(Way {
                gateway: gateway.id.clone(),
                node: node.clone(),
                source,
                destination,
                in_use: gateway.in_use || gateways.len() < 3,
                rtt: gateway.rtt,
            });
        };
        if targets.is_empty() {
            // The gateways are each other's witnesses, and each its own for the others.
            for other in gateways.iter().filter(|other| other.answers) {
                if let Some(addresses) = address(other.node) {
                    ask(other.id, addresses);
                }
            }
        }
        for &(_, node, addresses) in &targets {
            ask(node, addresses);
        }
    }
    ways
}

fn rank(me: &NodeId, node: &NodeId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (me.to_string(), node.to_string()).hash(&mut hasher);
    hasher.finish()
}
