//! What a person sees of the tunnels inside the cluster. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use podspan_dataplane::PeerStatus;
use podspan_wire::status::{DeliveryNode, DeliveryStatus, Liveness, Reachability};
use podspan_wire::{NodeId, UnixTime};

use super::Delivery;
use super::verdict::Found;
use crate::membership::RemoteNode;

/// How long a tunnel may take before its absence is a problem to show.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// So many nodes are named in a problem.
const NAMED: usize = 5;

/// What [`report`] reads.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// The setting.
    pub mode: Delivery,
    /// Whether this node is a gateway.
    pub gateway: bool,
    /// The other nodes of the cluster.
    pub siblings: &'a BTreeMap<NodeId, RemoteNode>,
    /// What was found of them, where the setting is to find out.
    pub found: &'a BTreeMap<NodeId, Found>,
    /// The state of the tunnels.
    pub peers: &'a [PeerStatus],
    /// The wall-clock time.
    pub now: UnixTime,
}

/// Whether the tunnel to a node can be relied on.
#[must_use]
pub fn is_usable(peer: &PeerStatus) -> bool {
    let bad = |liveness| matches!(liveness, Liveness::Suspect | Liveness::Dead);
    !peer.lanes.is_empty() && peer.lanes.iter().all(|lane| lane.established && !bad(lane.liveness))
}

/// The part of the status document; none where there are no tunnels inside the cluster.
#[must_use]
pub fn report(parts: Parts<'_>) -> Option<DeliveryStatus> {
    if !parts.mode.has_tunnels() {
        return None;
    }
    let peers: BTreeMap<&NodeId, &PeerStatus> = parts.peers.iter().map(|peer| (&peer.id, peer)).collect();
    let shown = parts.siblings.iter().filter(|(_, node)| parts.gateway || node.verified.record().gateway);
    let nodes = shown.map(|(id, node)| {
        let found = parts.found.get(id).copied().unwrap_or_default();
        let (tunnel, why) = match parts.mode {
            Delivery::Auto => (found.tunnel, found.why.meaning()),
            _ => (true, "the settings say so"),
        };
        let peer = peers.get(id);
        let young = parts.now.since(node.since) < CONNECT_TIME;
        DeliveryNode {
            node: id.node.clone(),
            gateway: node.verified.record().gateway,
            by: parts.gateway.then(|| if tunnel { "tunnel" } else { "native" }.to_owned()),
            why: if parts.gateway { why } else { "" }.to_owned(),
            state: match peer.map_or(0, |peer| peer.lanes.iter().filter(|lane| lane.established).count()) {
                0 if young => Reachability::Connecting,
                0 => Reachability::Down,
                n if peer.is_some_and(|peer| n == peer.lanes.len()) => Reachability::Up,
                _ => Reachability::Degraded,
            },
            liveness: peer
                .and_then(|peer| {
                    let proven = peer.lanes.iter().map(|lane| lane.liveness);
                    proven.filter(|liveness| *liveness != Liveness::Unproven).max()
                })
                .unwrap_or_default(),
        }
    });
    Some(DeliveryStatus { mode: parts.mode.label().to_owned(), nodes: nodes.collect() })
}

/// What of it a person should look at.
#[must_use]
pub fn problems(status: &DeliveryStatus) -> Vec<String> {
    let down: Vec<&str> = status
        .nodes
        .iter()
        .filter(|node| node.state == Reachability::Down)
        // Where packets take the cluster's own network, a tunnel that is missing is missed by nobody.
        .filter(|node| node.by.as_deref() != Some("native"))
        .map(|node| node.node.as_str())
        .collect();
    if down.is_empty() {
        return Vec::new();
    }
    let more = match down.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let named = down.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    vec![format!(
        "delivery {}: no tunnel to {} of {} nodes of this cluster ({named}{more}), so that packets of other clusters do \
         not get from a gateway to pods there; are their UDP ports open inside the cluster, and does every agent of it \
         have the same setting?",
        status.mode,
        down.len(),
        status.nodes.len()
    )]
}
