//! What should stand in the kernel, and what was read back from it: plain data, no IO.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podspan_wire::{Cidr, CidrSet};

/// What podspan wants in this host's kernel: the whole of it, each time.
///
/// Built by the agent from the facts of the node and the verified records; compared with what stands by
/// [`plan`](super::plan::plan). The interface itself is not in it: the data plane makes it, because packets
/// flow only while somebody holds its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDesired {
    /// The TUN interface, such as [`podspan_wire::INTERFACE`]; at most 15 bytes.
    pub interface: String,
    /// Its MTU in bytes, the largest inner packet. Under 1280 the kernel takes no IPv6 on it (RFC 8200,
    /// section 5): IPv6 is then left out, and [`Host::notes`](super::Host::notes) says so.
    pub mtu: u32,
    /// The host's own addresses towards remote clusters, at most one of each family is used as preferred
    /// source: the first. Set as /32 and /128.
    pub addresses: Vec<IpAddr>,
    /// podspan's own routing table.
    pub table: u32,
    /// Priority of the routing rules that lead there.
    pub rule_priority: u32,
    /// The mark of outer packets: what carries it is never routed into the tunnel.
    pub fwmark: u32,
    /// The remote CIDRs that lead into the tunnel.
    pub routes: Vec<Cidr>,
    /// What the path to these takes, bytes, where it is known to be less than the interface's MTU or may be.
    pub route_mtus: BTreeMap<Cidr, u32>,
    /// The pod CIDRs of this node.
    pub local_pod_cidrs: CidrSet,
    /// The pod CIDRs of this node's cluster.
    pub cluster_pod_cidrs: CidrSet,
    /// The service CIDRs of this node's cluster.
    pub cluster_service_cidrs: CidrSet,
    /// The interfaces by which the other nodes of this cluster are reached.
    pub underlay: Vec<String>,
    /// What a gateway hands to other nodes of its cluster through tunnels; none where the cluster's own network
    /// brings everything there.
    pub pod_delivery: Option<PodDelivery>,
}

/// What goes from a gateway to pods on other nodes of its cluster through tunnels, instead of over the cluster's own
/// network: of that which came out of podspan's interface, and of nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDelivery {
    /// The routing table that only such packets look up.
    pub table: u32,
    /// The pod CIDRs of the other nodes. These routes have no MTU: what a path takes, the data plane says, whose
    /// messages suit translated connections too.
    pub routes: Vec<Cidr>,
}

impl HostDesired {
    /// podspan's routing tables.
    pub fn tables(&self) -> impl Iterator<Item = u32> {
        [self.table].into_iter().chain(self.pod_delivery.as_ref().map(|delivery| delivery.table))
    }

    /// The pod CIDRs that are handed to other nodes, sorted, and why others are not: what is this node's own would
    /// go out by the way it came in.
    #[must_use]
    pub fn usable_deliveries(&self) -> (Vec<Cidr>, Vec<String>) {
        let mut refused = Vec::new();
        let Some(delivery) = &self.pod_delivery else { return (Vec::new(), refused) };
        let wanted: CidrSet = delivery.routes.iter().copied().collect();
        let usable = wanted
            .iter()
            .copied()
            .filter(|route| match self.local_pod_cidrs.iter().find(|own| own.overlaps(route)) {
                Some(own) => {
                    refused.push(format!(
                        "route {route} to another node of this cluster: not installed, it overlaps this node's pod \
                         CIDR {own}; give each node a pod CIDR of its own"
                    ));
                    false
                }
                None => true,
            })
            .collect();
        (usable, refused)
    }

    /// The host's own address of one family, the preferred source of that family's routes.
    #[must_use]
    pub fn host_address(&self, ipv6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv6() == ipv6)
    }

    /// The MTU of a route, bytes, if it is to have one: never more than the interface's.
    #[must_use]
    pub fn route_mtu(&self, destination: &Cidr) -> Option<u32> {
        self.route_mtus.get(destination).map(|mtu| (*mtu).min(self.mtu))
    }

    /// The remote CIDRs that may be routed, sorted, and why each of the others may not: a route that
    /// overlaps the cluster's own CIDRs would take its pods off the net.
    #[must_use]
    pub fn usable_routes(&self) -> (Vec<Cidr>, Vec<String>) {
        let own = [
            (&self.local_pod_cidrs, "this node's pod CIDR"),
            (&self.cluster_pod_cidrs, "this cluster's pod CIDR"),
            (&self.cluster_service_cidrs, "this cluster's service CIDR"),
        ];
        let mut refused = Vec::new();
        let wanted: CidrSet = self.routes.iter().copied().collect();
        let usable = wanted
            .iter()
            .copied()
            .filter(|route| {
                for (set, whose) in own {
                    if let Some(mine) = set.iter().find(|mine| mine.overlaps(route)) {
                        refused.push(format!(
                            "route {route}: not installed, it overlaps {whose} {mine}; give the clusters CIDRs \
                             that do not overlap"
                        ));
                        return false;
                    }
                }
                true
            })
            .collect();
        (usable, refused)
    }
}

/// What was read back from the kernel of the things that podspan has to do with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The interface of the desired name, if there is one.
    pub link: Option<ObservedLink>,
    /// Every address on it.
    pub addresses: Vec<ObservedAddress>,
    /// Every route, whoever made it, in podspan's table and in the tables it used before.
    pub routes: Vec<ObservedRoute>,
    /// Every rule that carries podspan's protocol number or looks up its table.
    pub rules: Vec<ObservedRule>,
    /// The nftables table named `podspan`.
    pub nft: NftState,
    /// Values under `/proc/sys` by key, such as `net/ipv4/ip_forward`; without those that do not exist.
    pub sysctls: BTreeMap<String, String>,
    /// What podspan changed of others' sysctls, and to what: by key, from the state directory.
    pub remembered: BTreeMap<String, String>,
    /// Every interface's name.
    pub interfaces: Vec<String>,
}

/// An interface as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// Its index.
    pub index: u32,
    /// Whether its kind is TUN/TAP.
    pub tun: bool,
    /// Its alias (`ip link ... alias`), empty if it has none.
    pub alias: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it was podspan's when it was last looked at: the same interface, whatever it is called now.
    pub known: bool,
}

/// An address of podspan's interface as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedAddress {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length in bits.
    pub length: u8,
    /// `IFA_PROTO`: who made it; 0 where nobody said.
    pub protocol: u8,
}

/// A route as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRoute {
    /// The table it stands in.
    pub table: u32,
    /// Where it leads to.
    pub destination: Cidr,
    /// `rtm_protocol`: who made it.
    pub protocol: u8,
    /// Index of the interface it leads to, if it names one.
    pub interface: Option<u32>,
    /// Its preferred source.
    pub source: Option<IpAddr>,
    /// Its MTU, bytes, if it has one.
    pub mtu: Option<u32>,
    /// Its metric.
    pub metric: u32,
    /// Whether it is a plain unicast route straight to the interface, as podspan makes them: no gateway, no
    /// next hops, no source prefix, no TOS, no metrics but an MTU.
    pub plain: bool,
}

/// A routing rule as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRule {
    /// Whether it is of IPv6.
    pub ipv6: bool,
    /// Its priority.
    pub priority: u32,
    /// The table it looks up.
    pub table: u32,
    /// `FRA_PROTOCOL`: who made it.
    pub protocol: u8,
    /// The mark it selects.
    pub fwmark: Option<u32>,
    /// The interface by which packets come that it selects.
    pub interface: Option<String>,
    /// Whether it has the shape of one of podspan's rules: inverted and whole mark compared, or the interface
    /// compared; nothing else selected, and a plain lookup.
    pub plain: bool,
}

/// The state of the nftables table named `podspan`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NftState {
    /// There is none.
    #[default]
    Absent,
    /// There is one without podspan's comment: somebody else's.
    Foreign,
    /// It is podspan's, and not known to be as it should.
    Stale,
    /// It is podspan's and as it was when it was last written.
    Standing,
}
