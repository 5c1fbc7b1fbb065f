//! From what the caller wants to a table that workers can use: everything is checked here, and only here.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use podspan_wire::{LaneKey, MAX_LANES, NodeId};
use x25519_dalek::{PublicKey, StaticSecret};

use super::{
    Cluster, ClusterIndex, Peer, PeerIndex, PeerSpec, Rejected, Route, Table, TableSpec, TunnelEntry,
};
use crate::core::{lanes, rendezvous};
use crate::counters::TunnelCounters;

pub(crate) fn build(spec: TableSpec, own: &[LaneKey], before: &Table) -> (Table, Vec<Rejected>) {
    let mut rejected = Vec::new();
    let mut specs = Vec::with_capacity(spec.peers.len());
    let mut ids = HashSet::new();
    let mut keys: HashMap<LaneKey, NodeId> = HashMap::new();
    let known: HashSet<LaneKey> =
        before.peers.iter().flat_map(|p| p.spec.lanes.iter().map(|l| l.key)).collect();
    for mut peer in spec.peers {
        if ids.contains(&peer.id) {
            rejected.push(Rejected::DuplicatePeer(peer.id));
            continue;
        }
        if let Some(why) = fault(&peer, own, &keys, &known) {
            rejected.push(why);
            continue;
        }
        peer.endpoints.retain(|&endpoint| {
            let good = is_endpoint(endpoint);
            if !good {
                rejected.push(Rejected::Endpoint { id: peer.id.clone(), endpoint });
            }
            good
        });
        // What an earlier life remembered is a hint; a bad one is worth no error.
        peer.learned.retain(|(_, _, endpoint)| is_endpoint(endpoint.ip()) && endpoint.port() != 0);
        ids.insert(peer.id.clone());
        keys.extend(peer.lanes.iter().map(|lane| (lane.key, peer.id.clone())));
        specs.push(peer);
    }
    specs.sort_by(|a, b| a.id.cmp(&b.id));
    let mut table = Table::default();
    let said = spec.clusters;
    let mut peers: Vec<Peer> = Vec::with_capacity(specs.len());
    for spec in specs {
        // Peers are sorted by id, so those of a cluster stand together.
        if table.clusters.last().is_none_or(|cluster| cluster.id != spec.id.cluster) {
            let said = said.iter().find(|said| said.id == spec.id.cluster);
            table.clusters.push(Cluster {
                id: spec.id.cluster.clone(),
                gateways: Box::default(),
                nearest: said.is_some_and(|said| said.nearest),
                silent: said.is_some_and(|said| said.silent),
                watched: said.is_some_and(|said| said.watched),
            });
        }
        peers.push(index_peer(spec, table.clusters.len() as u32 - 1, own.len(), before));
    }

    let by_id: HashMap<&NodeId, PeerIndex> =
        peers.iter().enumerate().map(|(i, peer)| (&peer.spec.id, i as PeerIndex)).collect();
    let mut gateways_of = vec![BTreeSet::new(); table.clusters.len()];
    for route in spec.routes {
        if let Some(why) = route.cidr.not_announceable() {
            rejected.push(Rejected::Route { cidr: route.cidr, why });
            continue;
        }
        if !table.lookup.insert(route.cidr, table.routes.len() as u32) {
            rejected.push(Rejected::DuplicateRoute(route.cidr));
            continue;
        }
        let mut gateways = BTreeSet::new();
        for gateway in route.gateways {
            match by_id.get(&gateway) {
                // Peers are sorted by id, so their indices are too.
                Some(&index) => {
                    gateways.insert(index);
                }
                None => rejected.push(Rejected::UnknownGateway { cidr: route.cidr, gateway }),
            }
        }
        for &gateway in &gateways {
            gateways_of[peers[gateway as usize].cluster as usize].insert(gateway);
        }
        let owner = route.owner.as_ref().and_then(|owner| by_id.get(owner).copied());
        let any = gateways.first().copied().or(owner);
        let mut weights = gateways.iter().map(|&gateway| peers[gateway as usize].spec.weight.max(1));
        let first = weights.next();
        let weighted = weights.any(|weight| Some(weight) != first);
        table.routes.push(Route {
            owned: route.owner.is_some(),
            owner,
            gateways: gateways.into_iter().collect(),
            weighted,
            cluster: any.map(|peer| peers[peer as usize].cluster),
        });
    }
    drop(by_id);
    for (cluster, gateways) in table.clusters.iter_mut().zip(gateways_of) {
        cluster.gateways = gateways.into_iter().collect();
    }
    table.peers = peers;
    (table, rejected)
}

/// What is wrong with a peer's lanes, if anything is.
fn fault(
    peer: &PeerSpec,
    own: &[LaneKey],
    keys: &HashMap<LaneKey, NodeId>,
    known: &HashSet<LaneKey>,
) -> Option<Rejected> {
    let id = || peer.id.clone();
    if peer.lanes.is_empty() || peer.lanes.len() > MAX_LANES {
        return Some(Rejected::Lanes { id: id(), lanes: peer.lanes.len() });
    }
    for (lane, entry) in peer.lanes.iter().enumerate() {
        let key = entry.key;
        if entry.port == 0 {
            return Some(Rejected::Port { id: id(), lane });
        }
        if own.contains(&key) {
            return Some(Rejected::OwnKey { id: id(), lane, key });
        }
        if let Some(other) = keys.get(&key) {
            return Some(Rejected::DuplicateKey { id: id(), lane, key, other: other.clone() });
        }
        if peer.lanes[..lane].iter().any(|earlier| earlier.key == key) {
            return Some(Rejected::DuplicateKey { id: id(), lane, key, other: id() });
        }
        if !known.contains(&key) && is_weak(key) {
            return Some(Rejected::WeakKey { id: id(), lane, key });
        }
    }
    None
}

/// Whether every exchange with `key` gives zero (RFC 7748 section 6.1): any scalar shows it.
fn is_weak(key: LaneKey) -> bool {
    let shared = StaticSecret::from([1; 32]).diffie_hellman(&PublicKey::from(*key.as_bytes()));
    !shared.was_contributory()
}

fn is_endpoint(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

fn index_peer(spec: PeerSpec, cluster: ClusterIndex, own: usize, before: &Table) -> Peer {
    let old = before.peers.binary_search_by(|peer| peer.spec.id.cmp(&spec.id)).ok().map(|i| &before.peers[i]);
    let tunnels = lanes::pairs(own, spec.lanes.len())
        .map(|(local, remote)| {
            let unchanged = old
                .filter(|old| {
                    old.spec.lanes.get(remote).is_some_and(|lane| lane.key == spec.lanes[remote].key)
                })
                .and_then(|old| old.tunnels.iter().find(|t| (t.local, t.remote) == (local, remote)));
            let counters = match unchanged {
                Some(tunnel) => Arc::clone(&tunnel.counters),
                None => Arc::new(TunnelCounters::default()),
            };
            TunnelEntry { local, remote, counters }
        })
        .collect();
    Peer { cluster, seed: rendezvous::seed(spec.id.to_string().as_bytes()), spec, tunnels }
}

#[cfg(test)]
mod tests {
    use podspan_wire::Lane;

    use super::*;
    use crate::secret::LaneSecret;
    use crate::table::{RouteSpec, TableError};

    fn key(n: u8) -> LaneKey {
        LaneSecret::from_bytes([n; 32]).public()
    }

    fn peer(id: &str, keys: &[u8]) -> PeerSpec {
        PeerSpec {
            id: id.parse().unwrap(),
            lanes: keys.iter().map(|&n| Lane { key: key(n), port: 51840 }).collect(),
            endpoints: vec!["192.0.2.1".parse().unwrap()],
            learned: vec![],
            persistent_keepalive: None,
            dial: false,
            weight: 10,
            relays: false,
        }
    }

    fn route(cidr: &str, owner: Option<&str>, gateways: &[&str]) -> RouteSpec {
        RouteSpec {
            cidr: cidr.parse().unwrap(),
            owner: owner.map(|id| id.parse().unwrap()),
            gateways: gateways.iter().map(|id| id.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn bad_entries_are_named_and_good_ones_kept() {
        let own = [key(100)];
        let mut weak = peer("b/weak", &[9]);
        weak.lanes[0].key = LaneKey::from_bytes([0; 32]);
        let mut no_port = peer("b/noport", &[10]);
        no_port.lanes[0].port = 0;
        let mut odd_endpoint = peer("b/odd", &[11]);
        odd_endpoint.endpoints.push("224.0.0.1".parse().unwrap());
        let spec = TableSpec {
            peers: vec![
                peer("b/one", &[1, 2]),
                peer("b/one", &[3]),
                peer("b/twin", &[2]),
                peer("b/self", &[4, 4]),
                peer("b/own", &[100]),
                peer("b/none", &[]),
                weak,
                no_port,
                odd_endpoint,
            ],
            routes: vec![
                route("10.2.0.0/16", None, &["b/one", "b/ghost"]),
                route("10.2.0.0/16", None, &["b/odd"]),
                route("0.0.0.0/0", None, &["b/one"]),
                route("10.2.1.0/24", Some("b/elsewhere"), &["b/one"]),
            ],
            clusters: vec![],
        };
        let (table, rejected) = build(spec, &own, &Table::default());
        let ids: Vec<_> = table.peers.iter().map(|p| p.spec.id.to_string()).collect();
        assert_eq!(ids, ["b/odd", "b/one"]);
        assert_eq!(table.peers[0].spec.endpoints.len(), 1);
        assert_eq!(table.routes.len(), 2);
        let text = TableError { rejected: rejected.clone() }.to_string();
        assert_eq!(rejected.len(), 11, "{text}");
        for kind in [
            rejected.iter().any(|r| matches!(r, Rejected::DuplicatePeer(_))),
            rejected.iter().any(|r| matches!(r, Rejected::WeakKey { .. })),
            rejected.iter().any(|r| matches!(r, Rejected::Port { .. })),
            rejected.iter().any(|r| matches!(r, Rejected::OwnKey { .. })),
            rejected.iter().any(|r| matches!(r, Rejected::Lanes { .. })),
            rejected.iter().any(|r| matches!(r, Rejected::Endpoint { .. })),
            rejected.iter().any(|r| matches!(r, Rejected::Route { .. })),
            rejected.iter().any(|r| matches!(r, Rejected::DuplicateRoute(_))),
            rejected.iter().any(|r| matches!(r, Rejected::UnknownGateway { .. })),
        ] {
            assert!(kind, "{text}");
        }
        assert!(text.ends_with("and 3 more"), "{text}");
    }

    #[test]
    fn who_may_send_from_a_prefix() {
        let spec = TableSpec {
            peers: vec![peer("b/g1", &[1]), peer("b/g2", &[2]), peer("b/n", &[3])],
            routes: vec![
                route("10.2.0.0/16", None, &["b/g2", "b/g1"]),
                route("10.2.1.0/24", Some("b/n"), &["b/g1", "b/g2"]),
                route("10.2.2.0/24", Some("b/far"), &["b/g1"]),
            ],
            clusters: vec![],
        };
        let (table, rejected) = build(spec, &[key(100)], &Table::default());
        assert_eq!(rejected, []);
        let may = |address: &str, peer| table.route(address.parse().unwrap()).unwrap().may_send(peer);
        assert!(may("10.2.0.1", 0) && may("10.2.0.1", 1) && !may("10.2.0.1", 2));
        assert!(!may("10.2.1.1", 0) && may("10.2.1.1", 2));
        assert!(!may("10.2.2.1", 0) && !may("10.2.2.1", 2));
        assert_eq!(*table.route("10.2.0.1".parse().unwrap()).unwrap().gateways, [0, 1]);
    }

    #[test]
    fn a_gateway_of_the_own_cluster_passes_on_what_comes_from_others_only() {
        let relay = |id, keys: &[u8]| PeerSpec { relays: true, ..peer(id, keys) };
        let spec = TableSpec {
            peers: vec![relay("a/g", &[1]), peer("a/n", &[2]), relay("b/liar", &[3]), peer("b/n", &[4])],
            routes: vec![
                route("10.1.1.0/24", Some("a/g"), &[]),
                route("10.1.2.0/24", Some("a/n"), &[]),
                route("10.1.3.0/24", Some("a/far"), &[]),
                route("10.2.0.0/16", None, &["b/liar"]),
                route("10.2.4.0/24", Some("b/n"), &["b/liar"]),
                route("10.3.0.0/16", Some("c/unknown"), &[]),
            ],
            clusters: vec![],
        };
        let (table, rejected) = build(spec, &[key(100)], &Table::default());
        assert_eq!(rejected, []);
        let (gateway, ordinary) = (0, 1);
        let may = |address: &str, peer| {
            table.route(address.parse().unwrap()).is_some_and(|route| table.may_send(peer, route))
        };
        for (address, from_gateway, from_ordinary) in [
            ("10.1.1.1", true, false),
            ("10.1.2.1", false, true),
            // A third node's, whether it is a peer or not; this node's own has no route at all.
            ("10.1.3.1", false, false),
            ("10.1.9.1", false, false),
            ("10.2.4.1", true, false),
            ("10.2.0.1", true, false),
            // Nobody to answer by.
            ("10.3.0.1", false, false),
        ] {
            assert_eq!(
                (may(address, gateway), may(address, ordinary)),
                (from_gateway, from_ordinary),
                "{address}"
            );
        }
    }

    #[test]
    fn counters_live_as_long_as_their_key() {
        let own = [key(100)];
        let spec = |keys: &[u8]| TableSpec { peers: vec![peer("b/one", keys)], ..TableSpec::default() };
        let (first, _) = build(spec(&[1, 2]), &own, &Table::default());
        first.peers[0].tunnels[0].counters.rx_packets.add(7);
        first.peers[0].tunnels[1].counters.rx_packets.add(8);
        let (second, _) = build(spec(&[1, 3]), &own, &first);
        assert_eq!(second.peers[0].tunnels[0].counters.rx_packets.get(), 7);
        assert_eq!(second.peers[0].tunnels[1].counters.rx_packets.get(), 0);
    }
}
