//! What should be: from facts and records to tunnels, routes and rules. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podspan_dataplane::{PeerSpec, RouteSpec, TableSpec};
use podspan_wire::local::PodRoutes;
use podspan_wire::{Cidr, CidrSet, ClusterId, Grant, NodeId, UnixTime};

use crate::config::Tunnel;
use crate::facts::LocalFacts;
use crate::host::{HostDesired, PodDelivery};
use crate::membership::RemoteNode;
use crate::path_mtu::PathMtus;
use crate::pod_delivery::{Delivery, siblings};
use crate::policy::Policy;
use crate::state::Endpoints;
use crate::underlay::USUAL_MTU;

/// Bytes that a tunnel adds to a packet on an IPv6 underlay: IPv6 40, UDP 8, WireGuard data message 32
/// (paper section 5.4.6). What is assumed of a path until it is measured, since a peer's endpoint may change its
/// family at any time.
pub const OVERHEAD: u32 = 80;

/// The same on an IPv4 underlay: the least that a tunnel adds.
pub const LEAST_OVERHEAD: u32 = 60;

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5).
pub const LEAST_MTU: u32 = 1280;

/// Everything that should be, given what is known now.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredState {
    /// Tunnels and the routing between them.
    pub table: TableSpec,
    /// What stands in the kernel.
    pub host: HostDesired,
    /// What pods need to know.
    pub pods: PodRoutes,
    /// What a person should look at.
    pub problems: Vec<String>,
}

/// What [`desired`] reads.
pub struct Inputs<'a> {
    /// This node's settings of the packet path.
    pub tunnel: &'a Tunnel,
    /// This cluster's grant.
    pub grant: &'a Grant,
    /// The facts about this node.
    pub facts: &'a LocalFacts,
    /// The MTU of the underlay, bytes.
    pub underlay_mtu: u32,
    /// The interfaces by which other nodes of the cluster are reached.
    pub underlay: &'a [String],
    /// The nodes of the other clusters.
    pub nodes: &'a BTreeMap<NodeId, RemoteNode>,
    /// What the paths to the other clusters take.
    pub paths: &'a PathMtus,
    /// How their gateways are used.
    pub policy: &'a Policy,
    /// The clusters that are left to the underlay, since none of their gateways answers.
    pub bypassed: &'a BTreeSet<ClusterId>,
    /// How packets get from a gateway to pods on other nodes of the own cluster.
    pub delivery: Delivery,
    /// The other nodes of the own cluster.
    pub siblings: &'a BTreeMap<NodeId, RemoteNode>,
    /// Those to which a gateway hands packets through a tunnel; all, if none.
    pub by_tunnel: Option<&'a BTreeSet<NodeId>>,
    /// Where peers were last heard, for dialling those that nobody published.
    pub endpoints: &'a Endpoints,
    /// The wall-clock time.
    pub now: UnixTime,
}

/// The tunnel interface's MTU for an underlay of this MTU, in bytes: the largest packet that any path can
/// take. What each does take, the routes say.
#[must_use]
pub fn tunnel_mtu(underlay: u32) -> u32 {
    underlay.saturating_sub(LEAST_OVERHEAD).max(LEAST_MTU)
}

/// What is assumed of a path that was not measured yet, in bytes: an Ethernet's, whatever more the interface
/// takes.
#[must_use]
pub fn assumed_mtu(underlay: u32) -> u32 {
    underlay.min(USUAL_MTU).saturating_sub(OVERHEAD).max(LEAST_MTU)
}

/// Computes what should be.
#[must_use]
pub fn desired(inputs: &Inputs<'_>) -> DesiredState {
    let mut problems = Vec::new();
    let mut remote = BTreeSet::new();
    let mut clusters: BTreeMap<&ClusterId, Vec<&RemoteNode>> = BTreeMap::new();
    for (id, node) in inputs.nodes {
        clusters.entry(&id.cluster).or_default().push(node);
        remote.extend(node.verified.grant().cidrs().iter().copied());
    }
    let remote: CidrSet = remote.into_iter().collect();
    // Of two clusters with one grant there is none: a CIDR is one cluster's.
    let routed = inputs.nodes.iter().filter(|(id, _)| !inputs.bypassed.contains(&id.cluster));
    let routed: BTreeSet<Cidr> = routed
        .flat_map(|(_, node)| node.verified.grant().cidrs().iter().copied().collect::<Vec<_>>())
        .collect();

    let mut table = TableSpec::default();
    for (cluster, nodes) in &clusters {
        table.clusters.push(inputs.policy.spec(cluster, inputs.bypassed));
        if inputs.bypassed.contains(*cluster) {
            problems.push(format!(
                "cluster {cluster}: no gateway answers, and its routes are left to the underlay, in clear, as the \
                 settings say (bypass)"
            ));
        }
        table.routes.extend(routes(cluster, nodes, inputs.now, &mut problems));
        for node in nodes {
            if let Some(peer) = peer(inputs, node, &remote, &mut problems) {
                table.peers.push(peer);
            }
        }
        if !nodes.iter().any(|node| node.verified.record().gateway) {
            problems.push(format!("cluster {cluster} has no gateway: nothing can be sent to it"));
        }
    }

    let inside = siblings::siblings(inputs, &remote, &mut problems);
    if !inside.peers.is_empty() {
        table.clusters.push(inputs.policy.spec(&inputs.grant.cluster, &BTreeSet::new()));
    }
    table.peers.extend(inside.peers);
    table.routes.extend(inside.routes);

    let mtu = inputs.facts.mtu.or(inputs.tunnel.mtu).unwrap_or_else(|| tunnel_mtu(inputs.underlay_mtu));
    if mtu + LEAST_OVERHEAD > inputs.underlay_mtu {
        problems.push(format!(
            "the tunnel's MTU of {mtu} and {LEAST_OVERHEAD} bytes of encapsulation exceed the underlay's MTU of {}: \
             large packets travel in pieces where their senders do not learn of it",
            inputs.underlay_mtu
        ));
    }
    let mut route_mtus = BTreeMap::new();
    for (cluster, nodes) in &clusters {
        let cidrs: BTreeSet<Cidr> = nodes
            .iter()
            .flat_map(|node| node.verified.grant().cidrs().iter().copied().collect::<Vec<_>>())
            .collect();
        let known = inputs.paths.get(cluster, &cidrs);
        let path = known.unwrap_or_else(|| assumed_mtu(inputs.underlay_mtu)).min(mtu);
        route_mtus.extend(cidrs.into_iter().map(|cidr| (cidr, path)));
    }
    // Pods have one MTU for all: what is safe, unless a path takes less still.
    let safe = inputs.underlay_mtu.saturating_sub(OVERHEAD).max(LEAST_MTU).min(mtu);
    let pods_mtu = route_mtus.values().copied().min().unwrap_or(safe).min(safe);
    let host_addresses = inputs.facts.host_addresses();
    for ipv6 in [false, true] {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        if remote.iter().any(|cidr| cidr.is_ipv6() == ipv6)
            && !host_addresses.iter().any(|a| a.is_ipv6() == ipv6)
        {
            let why = if inputs.facts.pod_cidrs.iter().any(|cidr| cidr.is_ipv6() == ipv6) {
                format!("no address in this node's {family} pod CIDR is its own")
            } else {
                format!("this node owns no {family} pod CIDR")
            };
            problems.push(format!("{why}: its host network cannot reach {family} pods of other clusters"));
        }
    }
    let host = HostDesired {
        interface: inputs.tunnel.interface.clone(),
        mtu,
        addresses: host_addresses,
        table: inputs.tunnel.table,
        rule_priority: inputs.tunnel.rule_priority,
        fwmark: inputs.tunnel.fwmark,
        routes: routed.into_iter().collect(),
        route_mtus,
        local_pod_cidrs: inputs.facts.pod_cidrs.clone(),
        cluster_pod_cidrs: inputs.grant.pod_cidrs.clone(),
        cluster_service_cidrs: inputs.grant.service_cidrs.clone(),
        underlay: inputs.underlay.to_vec(),
        pod_delivery: (inputs.delivery.has_tunnels() && inputs.facts.gateway)
            .then(|| PodDelivery { table: inputs.tunnel.delivery_table(), routes: inside.delivered }),
    };
    DesiredState { table, host, pods: PodRoutes { cidrs: remote, mtu: pods_mtu }, problems }
}

/// The routes to one cluster: each node's pod CIDRs lead to the node, or else to the gateways; all that
/// is granted and nobody's in particular leads to the gateways.
fn routes(
    cluster: &ClusterId,
    nodes: &[&RemoteNode],
    now: UnixTime,
    problems: &mut Vec<String>,
) -> Vec<RouteSpec> {
    let gateways: Vec<NodeId> =
        nodes.iter().filter(|n| n.verified.record().gateway).map(|n| n.verified.record().id()).collect();
    let mut routes: BTreeMap<Cidr, RouteSpec> = BTreeMap::new();
    let shared = |cidr: Cidr, gateways: Vec<NodeId>| RouteSpec { cidr, owner: None, gateways };
    for node in nodes {
        for cidr in &node.verified.grant().pod_cidrs {
            routes.entry(*cidr).or_insert_with(|| shared(*cidr, gateways.clone()));
        }
        for cidr in &node.verified.grant().service_cidrs {
            if routes.contains_key(cidr) {
                continue;
            }
            let translating: Vec<NodeId> = nodes
                .iter()
                .map(|n| n.verified.record())
                .filter(|record| record.gateway && record.service_cidrs.iter().any(|own| own.overlaps(cidr)))
                .map(podspan_wire::Record::id)
                .collect();
            // Where no gateway says that it translates, all of them are asked: kube-proxy runs everywhere.
            let via = if translating.is_empty() { gateways.clone() } else { translating };
            routes.insert(*cidr, shared(*cidr, via));
        }
    }
    for (cidr, owner, other) in owners(nodes.iter().copied(), now) {
        let owner = owner.verified.record().id();
        if let Some(other) = other {
            problems.push(format!(
                "{} and {} of cluster {cluster} both announce {cidr}: it is sent to {owner}",
                owner.node,
                other.verified.record().node
            ));
        }
        routes.insert(cidr, RouteSpec { cidr, owner: Some(owner), gateways: gateways.clone() });
    }
    routes.into_values().collect()
}

/// Whose each pod CIDR is, and who claims it besides. Of two nodes that claim one, the one that is confirmed holds it,
/// then the one that began last: a node that was replaced is often not withdrawn.
pub(crate) fn owners<'a>(
    nodes: impl Iterator<Item = &'a RemoteNode>,
    now: UnixTime,
) -> Vec<(Cidr, &'a RemoteNode, Option<&'a RemoteNode>)> {
    let mut claims: BTreeMap<Cidr, Vec<&RemoteNode>> = BTreeMap::new();
    for node in nodes {
        for cidr in &node.verified.record().pod_cidrs {
            claims.entry(*cidr).or_default().push(node);
        }
    }
    let rank = |node: &&RemoteNode| {
        let record = node.verified.record();
        (node.stale(now), std::cmp::Reverse(record.version), record.id())
    };
    let held = claims.into_iter().map(|(cidr, mut claimants)| {
        claimants.sort_by_cached_key(rank);
        (cidr, claimants[0], claimants.get(1).copied())
    });
    held.collect()
}

/// The endpoints of a node that can be sent to; `remote` is what is reached through tunnels itself.
pub(crate) fn endpoints(node: &RemoteNode, remote: &CidrSet, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let record = node.verified.record();
    let mut endpoints = record.endpoints.clone();
    endpoints.retain(|endpoint| {
        let within = remote.iter().find(|cidr| cidr.contains(*endpoint));
        if let Some(cidr) = within {
            problems.push(format!(
                "the endpoint {endpoint} of {} lies within {cidr}, which is reached through the tunnels themselves: it \
                 is not used",
                record.id()
            ));
        }
        within.is_none()
    });
    endpoints
}

/// The tunnel to a node of another cluster, if there is to be one: to its gateways from every node, and
/// at a gateway also from its ordinary nodes, which dial.
fn peer(
    inputs: &Inputs<'_>,
    node: &RemoteNode,
    remote: &CidrSet,
    problems: &mut Vec<String>,
) -> Option<PeerSpec> {
    let record = node.verified.record();
    if !record.gateway && !inputs.facts.gateway {
        return None;
    }
    let id = record.id();
    // An ordinary node may sit behind NAT, where its own addresses mean nothing: it dials.
    let endpoints = if record.gateway { endpoints(node, remote, problems) } else { Vec::new() };
    let keepalive = inputs.tunnel.persistent_keepalive.as_secs();
    Some(PeerSpec {
        learned: inputs.endpoints.get(&id).cloned().unwrap_or_default(),
        id,
        lanes: record.lanes.clone(),
        endpoints,
        persistent_keepalive: (record.gateway && !inputs.facts.gateway && keepalive > 0)
            .then(|| u16::try_from(keepalive).unwrap_or(u16::MAX)),
        dial: record.gateway,
        weight: record.gateway_weight(),
        relays: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::{NOW, cluster, membership_of_alpha};
    use podspan_wire::api::WatchEvent;

    fn state(gateway: bool, change: impl FnOnce(&mut LocalFacts), events: Vec<WatchEvent>) -> DesiredState {
        state_with(Delivery::Native, None, gateway, change, events)
    }

    fn state_with(
        delivery: Delivery,
        by_tunnel: Option<&BTreeSet<NodeId>>,
        gateway: bool,
        change: impl FnOnce(&mut LocalFacts),
        events: Vec<WatchEvent>,
    ) -> DesiredState {
        state_after(&BTreeMap::new(), delivery, by_tunnel, gateway, change, events)
    }

    fn state_after(
        standing: &BTreeMap<Cidr, u32>,
        delivery: Delivery,
        by_tunnel: Option<&BTreeSet<NodeId>>,
        gateway: bool,
        change: impl FnOnce(&mut LocalFacts),
        events: Vec<WatchEvent>,
    ) -> DesiredState {
        let mut membership = membership_of_alpha();
        for event in events {
            membership.handle(0, event, NOW);
        }
        assert_eq!(membership.refusals().total(), 0);
        let mut facts = LocalFacts {
            gateway,
            endpoints: vec!["192.0.2.11".parse().unwrap()],
            pod_cidrs: vec!["10.1.1.0/24".parse().unwrap(), "fd00:10:1:1::/64".parse().unwrap()].into(),
            ..LocalFacts::new("node-1".parse().unwrap())
        };
        change(&mut facts);
        desired(&Inputs {
            tunnel: &Tunnel::default(),
            grant: &cluster("alpha", 1).grant,
            facts: &facts,
            underlay_mtu: 1500,
            underlay: &["eth0".into()],
            nodes: membership.nodes(),
            paths: &PathMtus::after(standing.clone()),
            policy: &Policy::default(),
            bypassed: &BTreeSet::new(),
            delivery,
            siblings: membership.siblings(),
            by_tunnel,
            endpoints: &Endpoints::new(),
            now: NOW,
        })
    }

    fn beta_events() -> Vec<WatchEvent> {
        let beta = cluster("beta", 2);
        vec![
            beta.entry(&beta.record(1, true, 1)),
            beta.entry(&beta.record(2, false, 1)),
            beta.entry(&beta.record(3, true, 1)),
        ]
    }

    fn route<'a>(state: &'a DesiredState, cidr: &str) -> &'a RouteSpec {
        state
            .table
            .routes
            .iter()
            .find(|r| r.cidr.to_string() == cidr)
            .unwrap_or_else(|| panic!("{cidr}: {state:#?}"))
    }

    fn names(ids: &[NodeId]) -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_ordinary_node_dials_gateways_only() {
        let state = state(false, |_| (), beta_events());
        let peers: Vec<(String, bool, Option<u16>)> =
            state.table.peers.iter().map(|p| (p.id.to_string(), p.dial, p.persistent_keepalive)).collect();
        assert_eq!(peers, [("beta/node-1".into(), true, Some(25)), ("beta/node-3".into(), true, Some(25))]);
    }

    #[test]
    fn a_gateway_also_holds_the_ordinary_nodes_that_dial_it() {
        let state = state(true, |_| (), beta_events());
        let peers: Vec<(String, bool, usize)> =
            state.table.peers.iter().map(|p| (p.id.to_string(), p.dial, p.endpoints.len())).collect();
        assert_eq!(
            peers,
            [
                ("beta/node-1".into(), true, 1),
                ("beta/node-2".into(), false, 0),
                ("beta/node-3".into(), true, 1)
            ]
        );
    }

    #[test]
    fn routes_begin_with_what_an_earlier_agent_found_out_about_the_paths() {
        let after = |standing: &[(&str, u32)]| {
            let standing = standing.iter().map(|(cidr, mtu)| (cidr.parse().unwrap(), *mtu)).collect();
            let state = state_after(&standing, Delivery::Native, None, false, |_| (), beta_events());
            let mtus: BTreeSet<u32> = state.host.route_mtus.values().copied().collect();
            (mtus.into_iter().collect::<Vec<_>>(), state.pods.mtu)
        };
        assert_eq!(after(&[]), (vec![1420], 1420));
        // One path for the whole cluster, whichever of its CIDRs were routed; pods have what is safe.
        assert_eq!(after(&[("10.2.0.0/16", 1440), ("fd00:10:2::/48", 1440)]), (vec![1440], 1420));
        assert_eq!(after(&[("10.2.0.0/16", 1440), ("10.102.0.0/16", 1300)]), (vec![1300], 1300));
        // The underlay has become narrower meanwhile, and what is another cluster's says nothing.
        assert_eq!(after(&[("10.2.0.0/16", 8920)]), (vec![1440], 1420));
        assert_eq!(after(&[("10.3.0.0/16", 1300)]), (vec![1420], 1420));
    }

    #[test]
    fn routes_lead_to_owners_and_gateways() {
        let state = state(false, |_| (), beta_events());
        let gateways = ["beta/node-1", "beta/node-3"];
        for (cidr, owner) in [
            ("10.2.0.0/16", None),
            ("fd00:10:2::/48", None),
            ("10.102.0.0/16", None),
            ("10.2.1.0/24", Some("beta/node-1")),
            ("10.2.2.0/24", Some("beta/node-2")),
            ("fd00:10:2:2::/64", Some("beta/node-2")),
        ] {
            let route = route(&state, cidr);
            assert_eq!(route.owner.as_ref().map(ToString::to_string).as_deref(), owner, "{cidr}");
            assert_eq!(names(&route.gateways), gateways, "{cidr}");
        }
        // The kernel only needs to know what leads into the tunnel.
        assert_eq!(state.host.routes.len(), 3);
        assert_eq!(state.pods.cidrs.len(), 3);
        assert_eq!((state.host.mtu, state.pods.mtu), (1440, 1420));
        assert!(state.host.routes.iter().all(|cidr| state.host.route_mtu(cidr) == Some(1420)));
        assert_eq!(state.problems, Vec::<String>::new());
    }

    #[test]
    fn services_lead_to_the_gateways_that_translate_them() {
        let beta = cluster("beta", 2);
        let mut plain = beta.record(3, true, 1);
        plain.service_cidrs = CidrSet::default();
        let state = state(false, |_| (), vec![beta.entry(&beta.record(1, true, 1)), beta.entry(&plain)]);
        assert_eq!(names(&route(&state, "10.102.0.0/16").gateways), ["beta/node-1"]);
    }

    #[test]
    fn a_replaced_node_hands_its_cidr_over() {
        let beta = cluster("beta", 2);
        let mut new = beta.record(4, false, 1);
        new.version.epoch = 7;
        new.pod_cidrs = beta.record(2, false, 1).pod_cidrs;
        let mut events = beta_events();
        events.push(beta.entry(&new));
        let state = state(false, |_| (), events);
        assert_eq!(route(&state, "10.2.2.0/24").owner.as_ref().unwrap().to_string(), "beta/node-4");
        assert_eq!(state.problems.len(), 2, "one for each family: {:?}", state.problems);
    }

    #[test]
    fn endpoints_inside_a_tunnelled_cidr_are_not_used() {
        let (beta, gamma) = (cluster("beta", 2), cluster("gamma", 3));
        let mut record = beta.record(1, true, 1);
        record.endpoints.insert(0, "10.3.0.9".parse().unwrap());
        let state = state(false, |_| (), vec![gamma.entry(&gamma.record(1, true, 1)), beta.entry(&record)]);
        assert_eq!(state.table.peers[0].endpoints.len(), 1);
        assert!(state.problems.iter().any(|p| p.contains("10.3.0.9")), "{:?}", state.problems);
    }

    #[test]
    fn a_cluster_without_gateway_and_a_missing_family_are_named() {
        let beta = cluster("beta", 2);
        let state = state(
            false,
            |facts| facts.pod_cidrs = vec!["10.1.1.0/24".parse().unwrap()].into(),
            vec![beta.entry(&beta.record(2, false, 1))],
        );
        assert!(state.problems.iter().any(|p| p.contains("no gateway")), "{:?}", state.problems);
        assert!(state.problems.iter().any(|p| p.contains("IPv6")), "{:?}", state.problems);
    }

    /// beta as above, and of the own cluster the gateway node-2 and the ordinary nodes 3 and 4.
    fn with_siblings() -> Vec<WatchEvent> {
        let alpha = cluster("alpha", 1);
        let mut hidden = alpha.record(4, false, 1);
        hidden.endpoints.clear();
        let mut events = beta_events();
        events.push(alpha.entry(&alpha.record(2, true, 1)));
        events.push(alpha.entry(&alpha.record(3, false, 1)));
        events.push(alpha.entry(&hidden));
        events
    }

    fn own(state: &DesiredState) -> Vec<(&str, bool, bool)> {
        let own = state.table.peers.iter().filter(|peer| peer.id.cluster.as_str() == "alpha");
        own.map(|peer| (peer.id.node.as_str(), peer.dial, peer.relays)).collect()
    }

    fn texts(cidrs: &[Cidr]) -> Vec<String> {
        cidrs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn delivered_natively_siblings_are_nothing() {
        let (without, with) = (state(true, |_| (), beta_events()), state(true, |_| (), with_siblings()));
        assert_eq!(with, without);
        assert_eq!(with.host.pod_delivery, None);
        assert!(with.table.peers.iter().all(|peer| !peer.relays));
    }

    #[test]
    fn a_gateway_has_all_nodes_of_its_cluster_as_peers_and_hands_packets_to_them() {
        let state = state_with(Delivery::Tunnel, None, true, |_| (), with_siblings());
        // Who publishes no address dials.
        assert_eq!(own(&state), [("node-2", true, true), ("node-3", true, false), ("node-4", false, false)]);
        let delivery = state.host.pod_delivery.as_ref().unwrap();
        assert_eq!(delivery.table, 7184);
        assert_eq!(
            texts(&delivery.routes),
            [
                "10.1.2.0/24",
                "10.1.3.0/24",
                "10.1.4.0/24",
                "fd00:10:1:2::/64",
                "fd00:10:1:3::/64",
                "fd00:10:1:4::/64"
            ]
        );
        let sibling = route(&state, "10.1.3.0/24");
        assert_eq!(sibling.owner.as_ref().map(ToString::to_string).as_deref(), Some("alpha/node-3"));
        assert!(sibling.gateways.is_empty());
        // Neither the kernel's table of other clusters nor the pods know of it.
        assert_eq!((state.host.routes.len(), state.pods.cidrs.len()), (3, 3));
        assert_eq!(state.problems, Vec::<String>::new());
    }

    #[test]
    fn an_ordinary_node_has_the_gateways_of_its_cluster_as_peers_and_hands_nothing_on() {
        let state = state_with(Delivery::Tunnel, None, false, |_| (), with_siblings());
        assert_eq!(own(&state), [("node-2", true, true)]);
        assert_eq!(state.host.pod_delivery, None);
        let routed: Vec<_> = state
            .table
            .routes
            .iter()
            .map(|r| r.cidr.to_string())
            .filter(|cidr| cidr.starts_with("10.1."))
            .collect();
        assert_eq!(routed, ["10.1.2.0/24"]);
    }

    #[test]
    fn what_was_found_to_need_a_tunnel_has_one() {
        let by_tunnel = BTreeSet::from(["alpha/node-3".parse().unwrap()]);
        let state = state_with(Delivery::Auto, Some(&by_tunnel), true, |_| (), with_siblings());
        assert_eq!(own(&state).len(), 3, "tunnels are there beforehand");
        let delivery = state.host.pod_delivery.unwrap();
        assert_eq!(texts(&delivery.routes), ["10.1.3.0/24", "fd00:10:1:3::/64"]);
    }

    #[test]
    fn what_is_this_nodes_own_or_another_ones_too_is_handed_to_one() {
        let alpha = cluster("alpha", 1);
        // A node that this one replaced, and one that was replaced by node-3.
        let mut former = alpha.record(8, false, 1);
        former.pod_cidrs = alpha.record(1, false, 1).pod_cidrs;
        let mut replaced = alpha.record(9, false, 0);
        replaced.pod_cidrs = alpha.record(3, false, 1).pod_cidrs;
        let mut events = with_siblings();
        events.extend([alpha.entry(&former), alpha.entry(&replaced)]);
        let state = state_with(Delivery::Tunnel, None, true, |_| (), events);
        assert!(state.table.routes.iter().all(|route| route.cidr.to_string() != "10.1.1.0/24"));
        assert_eq!(route(&state, "10.1.3.0/24").owner.as_ref().unwrap().to_string(), "alpha/node-3");
        assert_eq!(state.problems.len(), 4, "one for each family: {:?}", state.problems);
    }

    #[test]
    fn the_tunnel_follows_the_underlay() {
        for (underlay, tunnel, assumed) in
            [(1500, 1440, 1420), (9000, 8940, 1420), (1360, 1300, 1280), (1280, 1280, 1280), (0, 1280, 1280)]
        {
            assert_eq!((tunnel_mtu(underlay), assumed_mtu(underlay)), (tunnel, assumed), "{underlay}");
        }
    }
}
