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

#[cfg(test)]
mod tests {
    use podspan_dataplane::LaneStatus;

    use super::*;
    use crate::membership::tests::{NOW, cluster, membership_of_alpha};
    use crate::pod_delivery::verdict::Why;

    fn peer(id: &str, established: &[bool], liveness: Liveness) -> PeerStatus {
        let lane = |&established: &bool| LaneStatus { established, liveness, ..LaneStatus::default() };
        PeerStatus { id: id.parse().unwrap(), lanes: established.iter().map(lane).collect() }
    }

    /// alpha with the gateway node-2 and the ordinary nodes 3 and 4, seen from node-1.
    fn seen(mode: Delivery, gateway: bool, age: u64) -> Option<DeliveryStatus> {
        let alpha = cluster("alpha", 1);
        let mut membership = membership_of_alpha();
        for (node, gateway) in [(2, true), (3, false), (4, false)] {
            membership.handle(0, alpha.entry(&alpha.record(node, gateway, 1)), NOW);
        }
        let found = [
            ("alpha/node-2", Found { tunnel: false, why: Why::Answers }),
            ("alpha/node-3", Found { tunnel: true, why: Why::Silent }),
        ];
        report(Parts {
            mode,
            gateway,
            siblings: membership.siblings(),
            found: &found.map(|(id, found)| (id.parse().unwrap(), found)).into(),
            peers: &[
                peer("alpha/node-2", &[true, true], Liveness::Healthy),
                peer("alpha/node-3", &[true, false], Liveness::Suspect),
                peer("alpha/node-4", &[false], Liveness::Unproven),
                peer("beta/node-1", &[false], Liveness::Dead),
            ],
            now: NOW.after(Duration::from_secs(age)),
        })
    }

    fn short(status: &DeliveryStatus) -> Vec<(&str, Option<&str>, Reachability)> {
        status.nodes.iter().map(|node| (node.node.as_str(), node.by.as_deref(), node.state)).collect()
    }

    #[test]
    fn each_node_by_the_way_that_it_is_handed_packets() {
        use Reachability::{Connecting, Degraded, Down, Up};
        assert_eq!(seen(Delivery::Native, true, 60), None);
        let auto = seen(Delivery::Auto, true, 60).unwrap();
        assert_eq!(
            short(&auto),
            [
                ("node-2", Some("native"), Up),
                ("node-3", Some("tunnel"), Degraded),
                ("node-4", Some("native"), Down)
            ]
        );
        assert_eq!((auto.count("native"), auto.count("tunnel")), (2, 1));
        assert!(auto.nodes[1].why.contains("do not reach it") && auto.nodes[2].why.contains("not asked"));
        assert_eq!(problems(&auto), Vec::<String>::new(), "nobody misses the tunnel to node-4");
        let tunnel = seen(Delivery::Tunnel, true, 60).unwrap();
        assert_eq!((tunnel.count("native"), tunnel.count("tunnel")), (0, 3));
        let problem = problems(&tunnel).remove(0);
        assert!(problem.contains("no tunnel to 1 of 3 nodes of this cluster (node-4)"), "{problem}");
        let young = seen(Delivery::Tunnel, true, 5).unwrap();
        assert_eq!((young.nodes[2].state, problems(&young)), (Connecting, vec![]));
        // Another node only takes.
        let ordinary = seen(Delivery::Tunnel, false, 60).unwrap();
        assert_eq!(short(&ordinary), [("node-2", None, Up)]);
    }

    #[test]
    fn a_tunnel_is_relied_on_if_all_of_its_lanes_work() {
        for (established, liveness, usable) in [
            (&[true, true][..], Liveness::Healthy, true),
            (&[true], Liveness::Unproven, true),
            (&[true], Liveness::HeldDown, true),
            (&[true, false], Liveness::Healthy, false),
            (&[true], Liveness::Suspect, false),
            (&[true], Liveness::Dead, false),
            (&[], Liveness::Healthy, false),
        ] {
            assert_eq!(
                is_usable(&peer("alpha/x", established, liveness)),
                usable,
                "{established:?} {liveness:?}"
            );
        }
    }
}
