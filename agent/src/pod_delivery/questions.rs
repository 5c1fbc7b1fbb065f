//! What is asked of the other nodes of the cluster, and how: the plan is pure, the socket is at the end.
//!
//! A question is an ordinary UDP packet with the address of a node of another cluster as its source, sent over the
//! cluster's own network, as the kernel forwards packets of other clusters. It names the address to which the answer
//! is to go: the gateway's own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use podspan_dataplane::PeerStatus;
use podspan_wire::{ClusterId, NodeId, PROBE_PORT};
use std::os::fd::AsRawFd as _;

use super::report::is_usable;
use crate::membership::RemoteNode;

/// What is asked of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The node.
    pub node: NodeId,
    /// Whether the tunnel to it works.
    pub usable: bool,
    /// One question for each address family.
    pub ways: Vec<Way>,
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The source: an address of a node of another cluster.
    pub foreign: IpAddr,
    /// Where the answer is to go: this gateway's own address.
    pub back: IpAddr,
    /// The node's own address.
    pub to: IpAddr,
}

/// Who is asked what. A family in which this gateway, the node or all other clusters have no address is left out.
#[must_use]
pub fn targets(
    own: &[IpAddr],
    others: &BTreeMap<NodeId, RemoteNode>,
    bypassed: &BTreeSet<ClusterId>,
    siblings: &BTreeMap<NodeId, RemoteNode>,
    peers: &[PeerStatus],
) -> Vec<Target> {
    let usable: BTreeSet<&NodeId> =
        peers.iter().filter(|peer| is_usable(peer)).map(|peer| &peer.id).collect();
    let ends: Vec<(IpAddr, IpAddr)> = [false, true]
        .into_iter()
        .filter_map(|ipv6| {
            let back = own.iter().copied().find(|address| address.is_ipv6() == ipv6)?;
            // The same for as long as there is no other reason: the first.
            let known = others.iter().filter(|(id, _)| !bypassed.contains(&id.cluster));
            let mut addresses = known.flat_map(|(_, node)| node.verified.record().host_addresses());
            Some((addresses.find(|address| address.is_ipv6() == ipv6)?, back))
        })
        .collect();
    let ways = |node: &RemoteNode| {
        let theirs = node.verified.record().host_addresses();
        let to = |ipv6: bool| theirs.iter().copied().find(|address| address.is_ipv6() == ipv6);
        let all =
            ends.iter().filter_map(|&(foreign, back)| Some(Way { foreign, back, to: to(back.is_ipv6())? }));
        all.collect::<Vec<_>>()
    };
    siblings
        .iter()
        .map(|(id, node)| Target { node: id.clone(), usable: usable.contains(id), ways: ways(node) })
        .collect()
}

/// The addresses to which answers may go: those of the gateways of the cluster.
#[must_use]
pub fn askers(siblings: &BTreeMap<NodeId, RemoteNode>) -> BTreeSet<IpAddr> {
    let gateways = siblings.values().map(|node| node.verified.record()).filter(|record| record.gateway);
    gateways.flat_map(podspan_wire::Record::host_addresses).collect()
}

/// A socket that sends with an address that is not this host's (`IP_TRANSPARENT`, ip(7)).
///
/// # Errors
/// If the agent may not (it needs `CAP_NET_ADMIN`), or another program has the port at this address.
pub fn open(foreign: IpAddr) -> io::Result<UdpSocket> {
    let family = if foreign.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Datagram, flags, None)?;
    // The kernel keeps one flag for both families, and takes it by this name for both.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(foreign, PROBE_PORT)))?;
    Ok(UdpSocket::from(socket))
}

#[cfg(test)]
mod tests {
    use podspan_dataplane::{LaneStatus, Liveness};

    use super::*;
    use crate::membership::tests::{NOW, cluster, membership_of_alpha};

    #[test]
    fn each_family_that_all_have_is_asked_for() {
        let (alpha, beta) = (cluster("alpha", 1), cluster("beta", 2));
        let mut membership = membership_of_alpha();
        let addresses = |record: podspan_wire::Record, addresses: &[&str]| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            podspan_wire::Record { extensions: podspan_wire::Record::extensions(None, &addresses), ..record }
        };
        let second = addresses(alpha.record(2, true, 1), &["10.1.2.0", "fd00:10:1:2::"]);
        let third = addresses(alpha.record(3, false, 1), &["10.1.3.0"]);
        membership.handle(0, alpha.entry(&second), NOW);
        membership.handle(0, alpha.entry(&third), NOW);
        let own: Vec<IpAddr> = ["10.1.1.0", "fd00:10:1:1::"].map(|address| address.parse().unwrap()).into();
        let lane = |established, liveness| LaneStatus { established, liveness, ..LaneStatus::default() };
        let peers = [
            PeerStatus {
                id: "alpha/node-2".parse().unwrap(),
                lanes: vec![lane(true, Liveness::Healthy), lane(true, Liveness::Unproven)],
            },
            PeerStatus {
                id: "alpha/node-3".parse().unwrap(),
                lanes: vec![lane(true, Liveness::Healthy), lane(true, Liveness::Dead)],
            },
        ];
        let none = BTreeSet::new();
        let targets_of = |m: &crate::membership::Membership, bypassed| {
            let targets = targets(&own, m.nodes(), bypassed, m.siblings(), &peers);
            targets.iter().map(|t| (t.node.node.to_string(), t.usable, t.ways.len())).collect::<Vec<_>>()
        };
        // Nobody of another cluster is known.
        let nobody = [("node-2".to_owned(), true, 0), ("node-3".to_owned(), false, 0)];
        assert_eq!(targets_of(&membership, &none), nobody);
        let foreign = addresses(beta.record(1, true, 1), &["10.2.1.0", "fd00:10:2:1::"]);
        membership.handle(0, beta.entry(&foreign), NOW);
        assert_eq!(
            targets_of(&membership, &none),
            [("node-2".to_owned(), true, 2), ("node-3".to_owned(), false, 1)]
        );
        assert_eq!(targets_of(&membership, &BTreeSet::from(["beta".parse().unwrap()])), nobody);
        let way = targets(&own, membership.nodes(), &none, membership.siblings(), &peers)[0].ways[1];
        assert_eq!(
            (way.foreign.to_string(), way.back, way.to.to_string()),
            ("fd00:10:2:1::".into(), own[1], "fd00:10:1:2::".into())
        );
        let askers: Vec<String> = askers(membership.siblings()).iter().map(ToString::to_string).collect();
        assert_eq!(askers, ["10.1.2.0", "fd00:10:1:2::"], "the gateway's, and no other's");
    }
}
