//! The table: who the peers are and which prefixes lead to them. Immutable once built, swapped whole.

mod build;
mod lookup;
mod recent;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podspan_wire::{Cidr, ClusterId, Lane, LaneKey, NodeId};

use crate::core::Time;
use crate::counters::TunnelCounters;
use crate::status::PeerStatus;
pub(crate) use build::build;
pub(crate) use lookup::Lookup;
pub(crate) use recent::Recent;

/// A peer as the caller wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    /// Which node it is; unique within a table.
    pub id: NodeId,
    /// The peer's lanes in order, 1 to [`podspan_wire::MAX_LANES`]; a plain WireGuard peer has one.
    pub lanes: Vec<Lane>,
    /// Published underlay addresses, the best first; lane `b` listens at each of them on its own port.
    /// Empty for a peer behind NAT: it dials us.
    pub endpoints: Vec<IpAddr>,
    /// (local lane, remote lane, endpoint) known from an earlier life of this node; such a tunnel is
    /// dialled at once, whatever `dial` says, and given up after three attempts unless `dial` is set.
    pub learned: Vec<(usize, usize, SocketAddr)>,
    /// Send something at least every so many seconds, so that a NAT keeps its mapping. Implies that the
    /// session is kept up.
    pub persistent_keepalive: Option<u16>,
    /// Bring the tunnels up at once and keep them up without waiting for traffic.
    pub dial: bool,
    /// How much of the flows to its cluster it takes as a gateway, relative to the others; 0 counts as 1.
    pub weight: u8,
    /// It may pass packets of other clusters on to this node: a gateway of the node's own cluster. What comes from
    /// its own cluster must be its own all the same.
    pub relays: bool,
}

/// A prefix and who it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// The prefix; unique within a table.
    pub cidr: Cidr,
    /// The node that owns the prefix, if one does. It need not be a peer: then packets go to a gateway.
    /// Packets from the prefix are taken from the owner only; without an owner, from any gateway.
    pub owner: Option<NodeId>,
    /// Peers that pass packets for the prefix on; their order does not matter.
    pub gateways: Vec<NodeId>,
}

/// How the gateways of a cluster are used; a cluster of which nothing is said has the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    /// The cluster; unique within a table.
    pub id: ClusterId,
    /// Take the nearest of the gateways that do well, by round trip, instead of all of them.
    pub nearest: bool,
    /// Drop silently what cannot be sent because all gateways are dead, instead of telling the sender.
    pub silent: bool,
    /// Probe the gateways as if packets were waiting: somebody else wants to know when one is back.
    pub watched: bool,
}

/// A whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSpec {
    /// The peers.
    pub peers: Vec<PeerSpec>,
    /// The routes.
    pub routes: Vec<RouteSpec>,
    /// The clusters of which something is to be said.
    pub clusters: Vec<ClusterSpec>,
}

/// One entry of a table that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The node id occurs twice; the first entry counts.
    #[error("peer {0} is listed twice: the first entry is used")]
    DuplicatePeer(NodeId),
    /// No lanes, or too many.
    #[error("peer {id} has {lanes} lanes: there must be 1 to {most}", most = podspan_wire::MAX_LANES)]
    Lanes {
        /// The peer.
        id: NodeId,
        /// How many lanes it lists.
        lanes: usize,
    },
    /// A lane's port is 0.
    #[error("peer {id}, lane {lane}: port 0 cannot be sent to")]
    Port {
        /// The peer.
        id: NodeId,
        /// The lane.
        lane: usize,
    },
    /// A lane's key is a point of small order: no handshake with it would be secret (RFC 7748 section 6.1).
    #[error("peer {id}, lane {lane}: {key} is not a usable key; the node must make new ones")]
    WeakKey {
        /// The peer.
        id: NodeId,
        /// The lane.
        lane: usize,
        /// The key.
        key: LaneKey,
    },
    /// A lane's key is one of this node's own.
    #[error(
        "peer {id}, lane {lane}: {key} is this node's own key; two nodes share a state directory or disk image"
    )]
    OwnKey {
        /// The peer.
        id: NodeId,
        /// The lane.
        lane: usize,
        /// The key.
        key: LaneKey,
    },
    /// Two lanes have one key, so a handshake by it would be nobody's.
    #[error(
        "peer {id}, lane {lane}: {key} is also {other}'s; two nodes share a state directory or disk image"
    )]
    DuplicateKey {
        /// The peer.
        id: NodeId,
        /// The lane.
        lane: usize,
        /// The key.
        key: LaneKey,
        /// The peer that has it too and was listed first.
        other: NodeId,
    },
    /// An endpoint no packet can be sent to; the peer's others are used.
    #[error("peer {id}: {endpoint} is not a unicast address, it cannot be an endpoint")]
    Endpoint {
        /// The peer.
        id: NodeId,
        /// The address.
        endpoint: IpAddr,
    },
    /// The prefix occurs twice; the first entry counts.
    #[error("route {0} is listed twice: the first entry is used")]
    DuplicateRoute(Cidr),
    /// The prefix is not one that pods may have.
    #[error("route {cidr}: the prefix {why}")]
    Route {
        /// The prefix.
        cidr: Cidr,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A gateway is not among the peers; the route's others are used.
    #[error("route {cidr}: gateway {gateway} is not among the peers")]
    UnknownGateway {
        /// The prefix.
        cidr: Cidr,
        /// The gateway.
        gateway: NodeId,
    },
}

/// Entries of a table that were left out. **Everything else of the table is in force.**
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableError {
    /// The entries, each with its reason; never empty.
    pub rejected: Vec<Rejected>,
}

impl std::error::Error for TableError {}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries of the table were left out: ", self.rejected.len())?;
        for (i, rejected) in self.rejected.iter().take(8).enumerate() {
            write!(f, "{}{rejected}", if i == 0 { "" } else { "; " })?;
        }
        if self.rejected.len() > 8 {
            write!(f, "; and {} more", self.rejected.len() - 8)?;
        }
        Ok(())
    }
}

/// Index of a peer in [`Table::peers`].
pub(crate) type PeerIndex = u32;
/// Index of a cluster in [`Table::clusters`].
pub(crate) type ClusterIndex = u32;

/// A peer, checked.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) spec: PeerSpec,
    /// Its cluster: an index of [`Table::clusters`].
    pub(crate) cluster: ClusterIndex,
    /// Stands for the node in the rendezvous hash: the same at every node and after every restart.
    pub(crate) seed: u64,
    /// The tunnels to it, by local and remote lane.
    pub(crate) tunnels: Vec<TunnelEntry>,
}

/// One tunnel of a peer: the pair of lanes, and where its worker writes what it counts.
#[derive(Clone, Debug)]
pub(crate) struct TunnelEntry {
    pub(crate) local: usize,
    pub(crate) remote: usize,
    pub(crate) counters: Arc<TunnelCounters>,
}

/// A cluster that peers belong to.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) id: ClusterId,
    /// Its peers that routes name as gateways, in the order of their ids.
    pub(crate) gateways: Box<[PeerIndex]>,
    pub(crate) nearest: bool,
    pub(crate) silent: bool,
    pub(crate) watched: bool,
}

/// Where a prefix leads.
#[derive(Debug)]
pub(crate) struct Route {
    /// Whether the prefix has an owner at all, peer or not.
    pub(crate) owned: bool,
    /// The owner, if it is a peer.
    pub(crate) owner: Option<PeerIndex>,
    /// In the order of node ids.
    pub(crate) gateways: Box<[PeerIndex]>,
    /// Whether the gateways differ in their weights.
    pub(crate) weighted: bool,
    /// The cluster of the first of these peers, gateways before the owner.
    pub(crate) cluster: Option<ClusterIndex>,
}

impl Route {
    /// Whether packets whose source lies in the prefix may come from `peer`.
    pub(crate) fn may_send(&self, peer: PeerIndex) -> bool {
        if self.owned { self.owner == Some(peer) } else { self.gateways.contains(&peer) }
    }
}

/// A table, checked and indexed.
#[derive(Debug, Default)]
pub struct Table {
    /// In the order of node ids.
    pub(crate) peers: Vec<Peer>,
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) routes: Vec<Route>,
    pub(crate) lookup: Lookup,
}

impl Table {
    /// Checks `spec` and makes the table of it, for a node with these lane keys; `before` is the table
    /// in force until now, whose counters go on where a tunnel stays what it was.
    ///
    /// Also tells which entries were left out.
    #[must_use]
    pub fn new(spec: TableSpec, own: &[LaneKey], before: &Self) -> (Self, Vec<Rejected>) {
        build(spec, own, before)
    }

    /// Whether packets whose source lies in the prefix of `route` may come from `peer`: its own, or those of another
    /// cluster, if it passes such packets on.
    pub(crate) fn may_send(&self, peer: PeerIndex, route: &Route) -> bool {
        route.may_send(peer) || self.may_relay(peer, route)
    }

    #[cold]
    fn may_relay(&self, peer: PeerIndex, route: &Route) -> bool {
        let Some(peer) = self.peers.get(peer as usize) else { return false };
        peer.spec.relays && route.cluster.is_some_and(|cluster| cluster != peer.cluster)
    }

    /// The number of the route with the longest prefix that holds `address`, in the order in which routes were listed.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<u32> {
        self.lookup.get(address)
    }

    /// What the workers have told of the peers' tunnels, as of `now`.
    #[must_use]
    pub fn status(&self, now: Time) -> Vec<PeerStatus> {
        let lanes = |peer: &Peer| {
            peer.tunnels.iter().map(|t| t.counters.status(now, t.local, t.remote)).collect::<Vec<_>>()
        };
        self.peers.iter().map(|peer| PeerStatus { id: peer.spec.id.clone(), lanes: lanes(peer) }).collect()
    }

    /// The cluster in which `peer` is a gateway.
    pub(crate) fn cluster_of(&self, peer: PeerIndex) -> Option<ClusterIndex> {
        let cluster = self.peers.get(peer as usize)?.cluster;
        self.clusters[cluster as usize].gateways.binary_search(&peer).ok().map(|_| cluster)
    }

    /// The route of the longest prefix that holds `address`, by way of what was asked before.
    pub(crate) fn route_by(&self, recent: &mut Recent, address: IpAddr) -> Option<&Route> {
        self.routes.get(recent.get(&self.lookup, address)? as usize)
    }

    /// The route of the longest prefix that holds `address`.
    #[cfg(test)]
    pub(crate) fn route(&self, address: IpAddr) -> Option<&Route> {
        self.routes.get(self.lookup.get(address)? as usize)
    }
}
