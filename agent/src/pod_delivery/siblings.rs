//! The tunnels inside the cluster and what leads into them. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podspan_dataplane::{PeerSpec, RouteSpec};
use podspan_wire::{Cidr, CidrSet, NodeId};

use crate::desired::Inputs;
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
    for (cidr, owner, node) in owners(inputs, problems) {
        if !is_peer(node) {
            continue;
        }
        siblings.routes.push(RouteSpec { cidr, owner: Some(owner.clone()), gateways: Vec::new() });
        if inputs.facts.gateway && inputs.by_tunnel.is_none_or(|by_tunnel| by_tunnel.contains(owner)) {
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
    let mut endpoints: Vec<IpAddr> = Vec::new();
    for endpoint in &record.endpoints {
        if let Some(cidr) = remote.iter().find(|cidr| cidr.contains(*endpoint)) {
            problems.push(format!(
                "the endpoint {endpoint} of {id} lies within {cidr}, which is reached through the tunnels \
                 themselves: it is not used"
            ));
        } else {
            endpoints.push(*endpoint);
        }
    }
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

/// Whose each pod CIDR of the cluster is. Of two nodes that claim one, the one that is confirmed holds it, then the
/// one that began last; what is this node's own is nobody else's.
fn owners<'a>(inputs: &Inputs<'a>, problems: &mut Vec<String>) -> Vec<(Cidr, &'a NodeId, &'a RemoteNode)> {
    let mut claims: BTreeMap<Cidr, Vec<(&'a NodeId, &'a RemoteNode)>> = BTreeMap::new();
    for (id, node) in inputs.siblings {
        for cidr in &node.verified.record().pod_cidrs {
            if let Some(own) = inputs.facts.pod_cidrs.iter().find(|own| own.overlaps(cidr)) {
                problems.push(format!(
                    "{} of this cluster announces {cidr}, which overlaps this node's own {own}: nothing of it \
                     is handed there; give each node a pod CIDR of its own",
                    id.node
                ));
                continue;
            }
            claims.entry(*cidr).or_default().push((id, node));
        }
    }
    let rank =
        |node: &RemoteNode| (node.stale(inputs.now), std::cmp::Reverse(node.verified.record().version));
    let mut owners = Vec::new();
    for (cidr, mut claimants) in claims {
        claimants.sort_by_key(|(id, node)| (rank(node), *id));
        let (owner, node) = claimants[0];
        if let Some((other, _)) = claimants.get(1) {
            problems.push(format!(
                "{} and {} of this cluster both announce {cidr}: it is handed to {}",
                owner.node, other.node, owner.node
            ));
        }
        owners.push((cidr, owner, node));
    }
    owners
}
