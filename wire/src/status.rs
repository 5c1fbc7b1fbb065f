//! What an agent tells of itself: the document behind `podspan status --output json`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::cidr::{Cidr, CidrSet};
use crate::keys::LaneKey;
use crate::names::{ClusterId, ClusterSetId, NodeId, NodeName};
use crate::record::Version;
use crate::time::UnixTime;
use crate::trust::RefusalKind;

/// The state of one agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The agent's clock.
    pub now: UnixTime,
    /// When the agent started.
    pub started: UnixTime,
    /// This node.
    pub node: LocalNode,
    /// The brokers and what was last heard of them.
    pub broker: BrokerStatus,
    /// The other clusters, by id.
    pub clusters: Vec<ClusterStatus>,
    /// How what comes from other clusters gets from a gateway to pods on other nodes of this cluster; none where it
    /// takes the cluster's own network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryStatus>,
    /// What podspan has in the kernel, and what of it does not stand as it should.
    pub kernel: KernelStatus,
    /// Pods attached through the CNI plugin.
    pub attachments: usize,
    /// Records and grants that were refused: how many of each kind since the start.
    pub refusals: BTreeMap<RefusalKind, u64>,
    /// The latest refusals, each with its reason, newest first; at most 32, one for each node and kind.
    pub refused: Vec<RefusedRecord>,
    /// The packet workers, one for each lane.
    pub workers: Vec<WorkerStatus>,
    /// What a person should look at, worst first; empty when all is well.
    pub problems: Vec<String>,
}

/// What this node is and announces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalNode {
    /// The cluster set.
    pub cluster_set: ClusterSetId,
    /// Cluster and node.
    pub id: NodeId,
    /// Whether other clusters may dial this node.
    pub gateway: bool,
    /// Why peers are asked to take other gateways, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<String>,
    /// The addresses at which they do.
    pub endpoints: Vec<IpAddr>,
    /// The lanes' public keys and ports.
    pub lanes: Vec<LocalLane>,
    /// The pod CIDRs that this node owns.
    pub pod_cidrs: CidrSet,
    /// The cluster's service CIDRs.
    pub service_cidrs: CidrSet,
    /// The addresses with which the host itself goes to other clusters.
    pub host_addresses: Vec<IpAddr>,
    /// The version of the record that was last signed.
    pub record: Option<Version>,
    /// The tunnel's MTU, bytes.
    pub mtu: u32,
    /// The MTU of the underlay's interface, bytes; 0 where it is not known.
    #[serde(default)]
    pub underlay_mtu: u32,
    /// Where the facts about the node come from, such as `file`.
    pub source: String,
    /// What of them was discovered, and what contradicts it; empty where a person wrote them down.
    #[serde(default, skip_serializing_if = "Discovery::is_empty")]
    pub discovery: Discovery,
    /// The last second in which this cluster's grant holds.
    pub grant_not_after: UnixTime,
}

/// What a source of facts found by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Discovery {
    /// What was found, and where.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<Discovered>,
    /// What was not used or does not fit, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contradictions: Vec<Contradiction>,
}

impl Discovery {
    /// Whether there is nothing to show.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty() && self.contradictions.is_empty()
    }
}

/// A fact, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Discovered {
    /// What it is: `pod CIDR`, `service CIDR`, `endpoint`, `MTU`.
    pub kind: String,
    /// The fact.
    pub value: String,
    /// Where it was found, such as `Node node-1 spec.podCIDRs`.
    pub from: String,
}

/// Something that was not used or does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contradiction {
    /// Why, in one word, such as `OutsideGrant`.
    pub reason: String,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// Whether it is to be put right; if not, it is only good to know.
    pub problem: bool,
}

/// One lane of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalLane {
    /// The public key.
    pub key: LaneKey,
    /// The UDP port.
    pub port: u16,
}

/// What is known of the brokers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// The addresses that are tried.
    pub addresses: Vec<String>,
    /// The one in use, if any.
    pub connected: Option<String>,
    /// When one was last heard.
    pub last_heard: Option<UnixTime>,
    /// When this node's record or lease was last acknowledged.
    pub last_published: Option<UnixTime>,
    /// The last error of each broker that does not work.
    pub errors: BTreeMap<String, String>,
}

/// How well a cluster or node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reachability {
    /// All its gateways that should have a session have one.
    Up,
    /// Some have.
    Degraded,
    /// Nothing was tried yet, or the first handshakes are under way.
    Connecting,
    /// None has.
    Down,
    /// No tunnel is meant to be held to it: it is reached through its gateways.
    Via,
}

impl Reachability {
    /// The word for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Connecting => "connecting",
            Self::Down => "down",
            Self::Via => "via",
        }
    }
}

/// Another cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Its id.
    pub cluster: ClusterId,
    /// How well it can be reached.
    pub state: Reachability,
    /// The CIDRs that lead to it.
    pub cidrs: CidrSet,
    /// The MTU of the routes to it, bytes: the least that its working tunnels' paths take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// Those of them that are of services.
    #[serde(default, skip_serializing_if = "CidrSet::is_empty")]
    pub service_cidrs: CidrSet,
    /// Its nodes, by name.
    pub nodes: Vec<NodeStatus>,
}

/// A node of another cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Cluster and node.
    pub id: NodeId,
    /// Whether it is a gateway.
    pub gateway: bool,
    /// How well it can be reached.
    pub state: Reachability,
    /// Whether its lease lapsed or its record is over its time: still used, no longer confirmed.
    pub stale: bool,
    /// The version of its record.
    pub version: Version,
    /// The pod CIDRs it owns.
    pub pod_cidrs: CidrSet,
    /// The tunnels to it, by local and remote lane; empty where none is held.
    pub lanes: Vec<LaneStatus>,
}

impl NodeStatus {
    /// What probes say of the node: the worst of its lanes, but for those that were not probed yet.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        let proven = self.lanes.iter().map(|lane| lane.probes.liveness).filter(|l| *l != Liveness::Unproven);
        proven.max().unwrap_or_default()
    }

    /// The mean loss of its lanes, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        let losses: Vec<f64> = self.lanes.iter().filter_map(|lane| lane.probes.loss).collect();
        (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
    }
}

/// One tunnel: a lane of this node and a lane of a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaneStatus {
    /// Index of the lane here.
    pub local: usize,
    /// Index of the lane there.
    pub remote: usize,
    /// Where packets are sent.
    pub endpoint: Option<SocketAddr>,
    /// Whether there is a session that both ends confirmed.
    pub established: bool,
    /// Seconds since the last handshake.
    pub handshake_age: Option<f64>,
    /// Round trip: smoothed over the probes, or that of the last handshake before one was answered;
    /// microseconds.
    pub rtt_us: Option<u64>,
    /// What probes inside the tunnel tell of it.
    #[serde(default)]
    pub probes: ProbeStatus,
    /// How large a packet its path takes.
    #[serde(default, skip_serializing_if = "PathStatus::is_unknown")]
    pub path: PathStatus,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Inner packets received.
    pub rx_packets: u64,
    /// Inner packets sent.
    pub tx_packets: u64,
    /// Packets dropped, by cause.
    pub drops: BTreeMap<String, u64>,
}

/// What probes inside a tunnel tell of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProbeStatus {
    /// The verdict.
    pub liveness: Liveness,
    /// How often it has changed.
    pub changes: u64,
    /// Mean deviation of the round trips (RFC 6298 section 2), microseconds.
    pub jitter_us: Option<u64>,
    /// The part of the last probes, at most 32, that was not answered; 0 to 1.
    pub loss: Option<f64>,
    /// Seconds since the last answer.
    pub last_answer_age: Option<f64>,
    /// Probes sent.
    pub sent: u64,
    /// Answers to them that came.
    pub answered: u64,
    /// Answers given to the peer's probes.
    pub given: u64,
}

/// How large a packet the path of a tunnel takes, found by probes of different sizes (RFC 8899).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathStatus {
    /// The largest inner packet that crosses whole, bytes; none before the first packets had it measured, and with
    /// a plain WireGuard peer. Under 1280, larger ones up to that cross in pieces.
    pub mtu: Option<u32>,
    /// Set while less passes than did before, though nobody said so.
    pub black_hole: Option<BlackHole>,
    /// How many of these were found.
    pub black_holes: u64,
    /// Probes sent.
    pub probes: u64,
}

impl PathStatus {
    /// Whether nothing was measured yet.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// Large packets vanish though small ones pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlackHole {
    /// When it was found.
    pub found: UnixTime,
    /// The largest inner packet that had passed before, bytes.
    pub passed: u32,
}

/// What the answers to probes say of a tunnel, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// All is well.
    Healthy,
    /// No probe was answered yet: the peer was not asked, or is a plain WireGuard peer, which WireGuard's own
    /// timers judge.
    #[default]
    Unproven,
    /// It came back and is avoided for a while, longer each time.
    HeldDown,
    /// The peer says that it is about to go.
    Draining,
    /// It loses over 15 % of the probes while another gateway of the cluster loses none.
    Lossy,
    /// The last probes are not answered.
    Suspect,
    /// The peer answers, but does not forward.
    NotForwarding,
    /// No probe was answered for 2 s.
    Dead,
}

impl Liveness {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Healthy,
        Self::Unproven,
        Self::HeldDown,
        Self::Draining,
        Self::Lossy,
        Self::Suspect,
        Self::NotForwarding,
        Self::Dead,
    ];

    /// The word for it, the same as in JSON.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unproven => "unproven",
            Self::HeldDown => "held-down",
            Self::Draining => "draining",
            Self::Lossy => "lossy",
            Self::Suspect => "suspect",
            Self::NotForwarding => "not-forwarding",
            Self::Dead => "dead",
        }
    }

    /// What it means, for a person.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Healthy => "it answers",
            Self::Unproven => "it has not answered a probe yet",
            Self::HeldDown => "it answers again and is held down for a while",
            Self::Draining => "it is about to go",
            Self::Lossy => "it loses many packets while another gateway loses none",
            Self::Suspect => "it stopped answering",
            Self::NotForwarding => "it answers but does not forward to other nodes of its cluster",
            Self::Dead => "it has not answered for 2 s and more",
        }
    }

    /// Whether packets take another way where there is one.
    #[must_use]
    pub fn is_avoided(self) -> bool {
        self > Self::Unproven
    }
}

/// One packet worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// The lane it owns.
    pub lane: usize,
    /// Its UDP port.
    pub port: u16,
    /// Whether it runs; if not, why.
    pub failed: Option<String>,
    /// Packets dropped that no peer could be charged with, by cause.
    pub drops: BTreeMap<String, u64>,
}

/// The tunnels inside this cluster, and what they are used for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryStatus {
    /// The setting: `tunnel` or `auto`.
    pub mode: String,
    /// The nodes of this cluster with which tunnels are held, by name: the gateways; seen from a gateway all.
    pub nodes: Vec<DeliveryNode>,
}

impl DeliveryStatus {
    /// How many nodes are handed packets `by` this way: `native` or `tunnel`.
    #[must_use]
    pub fn count(&self, by: &str) -> usize {
        self.nodes.iter().filter(|node| node.by.as_deref() == Some(by)).count()
    }
}

/// Another node of this cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryNode {
    /// Its name.
    pub node: NodeName,
    /// Whether it is a gateway.
    pub gateway: bool,
    /// How it is handed packets, `native` or `tunnel`; none unless this node is a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// How well the tunnel to it stands.
    pub state: Reachability,
    /// What probes say of the tunnel.
    #[serde(default)]
    pub liveness: Liveness,
}

/// What podspan has in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelStatus {
    /// The TUN interface.
    pub interface: String,
    /// The routing table's number.
    pub table: u32,
    /// The remote CIDRs that are routed.
    pub routes: Vec<Cidr>,
    /// How often something was found missing or changed and put right since the start.
    pub healed: u64,
    /// What could not be put right, each with its error; tried again until it works.
    pub failing: Vec<String>,
}

/// A refused record, for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedRecord {
    /// The node the record claims to be about, if it could be read.
    pub claimed: Option<NodeId>,
    /// The kind of refusal.
    pub kind: RefusalKind,
    /// Why, and what to do.
    pub detail: String,
    /// When it was last refused.
    pub at: UnixTime,
    /// How often.
    pub times: u64,
}
