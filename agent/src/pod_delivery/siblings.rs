//! The tunnels inside the cluster and what leads into them. Pure.

use podspan_dataplane::{PeerSpec, RouteSpec};
use podspan_wire::{Cidr, CidrSet, NodeId};

use crate::desired::{Inputs, endpoints, owners};
use crate::membership::RemoteNode;

/// What should be of the tunnels inside the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Siblings {
    /// Every gateway of the cluster; for a gateway also every other node.
    pub peers: Vec<PeerSpec>,
    /// Their pod CIDRs.
    pub routes: Vec<RouteSpec>,
    /// Those into which this node hands what came out of a tunnel: none unless it is a gateway.
    pub delivered: Vec<Cidr>,
}

/// Computes it; `remote` is what other clusters own.
#[must_use]
pub fn siblings(inputs: &Inputs<'_>, remote: &CidrSet, problems: &mut Vec<String>) -> Siblings {
    let mut siblings = Siblings::default();
    if !inputs.delivery.has_tunnels() {
        return siblings;
    }
    let is_peer = |node: &RemoteNode| inputs.facts.gateway || node.verified.record().gateway;
    for (id, node) in inputs.siblings {
        if is_peer(node) {
            siblings.peers.push(peer(inputs, id, node, remote, problems));
        }
    }
    for (cidr, node) in holders(inputs, problems) {
        if !is_peer(node) {
            continue;
        }
        let owner = node.verified.record().id();
        siblings.routes.push(RouteSpec { cidr, owner: Some(owner.clone()), gateways: Vec::new() });
        if inputs.facts.gateway && inputs.by_tunnel.is_none_or(|by_tunnel| by_tunnel.contains(&owner)) {
            siblings.delivered.push(cidr);
        }
    }
    siblings
}

fn peer(
    inputs: &Inputs<'_>,
    id: &NodeId,
    node: &RemoteNode,
    remote: &CidrSet,
    problems: &mut Vec<String>,
) -> PeerSpec {
    let record = node.verified.record();
    let endpoints = endpoints(node, remote, problems);
    let keepalive = inputs.tunnel.persistent_keepalive.as_secs();
    PeerSpec {
        id: id.clone(),
        lanes: record.lanes.clone(),
        learned: inputs.endpoints.get(id).cloned().unwrap_or_default(),
        // Ordinary nodes too: inside a cluster there is no NAT. Who publishes no address dials.
        dial: record.gateway || !endpoints.is_empty(),
        endpoints,
        persistent_keepalive: (record.gateway && !inputs.facts.gateway && keepalive > 0)
            .then(|| u16::try_from(keepalive).unwrap_or(u16::MAX)),
        weight: record.gateway_weight(),
        relays: record.gateway,
    }
}

/// Whose each pod CIDR of the cluster is; what is this node's own is nobody else's.
fn holders<'a>(inputs: &Inputs<'a>, problems: &mut Vec<String>) -> Vec<(Cidr, &'a RemoteNode)> {
    let mut held = Vec::new();
    for (cidr, owner, other) in owners(inputs.siblings.values(), inputs.now) {
        let node = &owner.verified.record().node;
        if let Some(own) = inputs.facts.pod_cidrs.iter().find(|own| own.overlaps(&cidr)) {
            problems.push(format!(
                "{node} of this cluster announces {cidr}, which overlaps this node's own {own}: nothing of it is handed \
                 there; give each node a pod CIDR of its own"
            ));
            continue;
        }
        if let Some(other) = other {
            problems.push(format!(
                "{node} and {} of this cluster both announce {cidr}: it is handed to {node}",
                other.verified.record().node
            ));
        }
        held.push((cidr, owner));
    }
    held
}
