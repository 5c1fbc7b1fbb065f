//! The three clouds of the lab.
//!
//! | cloud | nodes | public subnet | pods | services |
//! | --- | --- | --- | --- | --- |
//! | alpha | alpha-1 and alpha-2 gateways, alpha-3 | 192.0.2.0/24, 2001:db8:a::/64 | 10.1.0.0/16, fd00:10:1::/48 | 10.101.0.0/16, fd00:10:101::/112 |
//! | beta | beta-1 gateway, beta-2 | 198.51.100.0/24, 2001:db8:b::/64 | 10.2.0.0/16, fd00:10:2::/48 | 10.102.0.0/16, fd00:10:102::/112 |
//! | gamma | gamma-1 gateway, gamma-2 behind NAT | 203.0.113.0/24, 2001:db8:c::/64 | 10.3.0.0/16, fd00:10:3::/48 | 10.103.0.0/16, fd00:10:103::/112 |
//!
//! gamma-2 has only a private IPv4 address, translated by the NAT router, and no way to the outside by
//! IPv6, as in many a private subnet: its default route leads to a router that answers "no route". Its
//! tunnels run over IPv4 and carry its pods' IPv6 all the same. The nodes of gamma reach each other over the
//! private network, which has IPv6 addresses of its own (ULA).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podspan_wire::Cidr;

use super::{Cloud, Dual, Host, Interface, Lan, Node, Pod, Topology, netns};

const PODS_PER_NODE: u8 = 2;

impl Topology {
    /// The topology of nearly all scenarios.
    pub(crate) fn standard() -> Self {
        Self {
            clouds: vec![
                // Strict reverse-path filtering: what asymmetric paths must get through.
                public_cloud("alpha", 1, alpha_net(), &[true, true, false], 1),
                public_cloud("beta", 2, beta_net(), &[true, false], 0),
                gamma(),
            ],
            broker: host("broker", [10, 99, 0, 0], [0x2001, 0xdb8, 0x99, 0]),
            internet: host("internet", [10, 98, 0, 0], [0x2001, 0xdb8, 0xffff, 0]),
        }
    }
}

pub(super) fn alpha_net() -> Dual<Cidr> {
    Dual { v4: v4([192, 0, 2, 0], 24), v6: v6([0x2001, 0xdb8, 0xa, 0], 64) }
}

pub(super) fn beta_net() -> Dual<Cidr> {
    Dual { v4: v4([198, 51, 100, 0], 24), v6: v6([0x2001, 0xdb8, 0xb, 0], 64) }
}

fn host(name: &'static str, net4: [u8; 4], net6: [u16; 4]) -> Host {
    let subnet = Dual { v4: v4(net4, 24), v6: v6(net6, 64) };
    Host { name, subnet, address: Dual { v4: nth(subnet.v4, 2), v6: nth(subnet.v6, 2) } }
}

/// A cloud in which every node has public addresses.
pub(super) fn public_cloud(
    name: &'static str,
    number: u8,
    subnet: Dual<Cidr>,
    gateways: &[bool],
    rp_filter: u8,
) -> Cloud {
    let node = |(index, &gateway): (u8, &bool)| {
        let address = Dual {
            v4: nth(subnet.v4, 10 + u16::from(index)),
            // 2001:db8:a::11 for node 1, read like the IPv4 address.
            v6: nth(subnet.v6, 0x10 + u16::from(index)),
        };
        Node {
            name: format!("{name}-{index}"),
            cluster: name,
            gateway,
            behind_nat: false,
            interfaces: vec![Interface {
                name: "eth0",
                network: netns(&format!("{name}-net")),
                addresses: vec![(address.v4, 24), (address.v6, 64)],
            }],
            default_via: vec![nth(subnet.v4, 1), nth(subnet.v6, 1)],
            internal: address,
            endpoints: vec![address.v4, address.v6],
            pod_cidr: node_pods(number, index),
            pods: pods(name, index),
        }
    };
    Cloud {
        name,
        subnet,
        lan: None,
        pod_cidr: cluster_pods(number),
        service_cidr: cluster_services(number),
        nodes: (1..).zip(gateways).map(node).collect(),
        rp_filter,
    }
}

fn gamma() -> Cloud {
    let subnet = Dual { v4: v4([203, 0, 113, 0], 24), v6: v6([0x2001, 0xdb8, 0xc, 0], 64) };
    let lan = Dual { v4: v4([192, 168, 30, 0], 24), v6: v6([0xfd00, 0x192, 0x168, 0x30], 64) };
    let inside = |index: u16| Dual { v4: nth(lan.v4, 10 + index), v6: nth(lan.v6, 0x10 + index) };
    let lan_port = |name, index| Interface {
        name,
        network: netns("gamma-lan"),
        addresses: vec![(inside(index).v4, 24), (inside(index).v6, 64)],
    };
    let public = Dual { v4: nth(subnet.v4, 11), v6: nth(subnet.v6, 0x11) };
    let router = Dual { v4: nth(lan.v4, 1), v6: nth(lan.v6, 1) };
    let node = |index: u8| Node {
        name: format!("gamma-{index}"),
        cluster: "gamma",
        gateway: false,
        behind_nat: false,
        interfaces: Vec::new(),
        default_via: Vec::new(),
        internal: inside(index.into()),
        endpoints: Vec::new(),
        pod_cidr: node_pods(3, index),
        pods: pods("gamma", index),
    };
    let gateway = Node {
        gateway: true,
        interfaces: vec![
            Interface {
                name: "eth0",
                network: netns("gamma-net"),
                addresses: vec![(public.v4, 24), (public.v6, 64)],
            },
            lan_port("eth1", 1),
        ],
        default_via: vec![nth(subnet.v4, 1), nth(subnet.v6, 1)],
        endpoints: vec![public.v4, public.v6],
        ..node(1)
    };
    let private = Node {
        behind_nat: true,
        interfaces: vec![lan_port("eth0", 2)],
        default_via: router.both().into(),
        ..node(2)
    };
    Cloud {
        name: "gamma",
        subnet,
        lan: Some(Lan { subnet: lan, router, outside: nth(subnet.v4, 2) }),
        pod_cidr: cluster_pods(3),
        service_cidr: cluster_services(3),
        nodes: vec![gateway, private],
        rp_filter: 2,
    }
}

fn cluster_pods(number: u8) -> Dual<Cidr> {
    Dual { v4: v4([10, number, 0, 0], 16), v6: v6([0xfd00, 0x10, number.into(), 0], 48) }
}

fn node_pods(number: u8, node: u8) -> Dual<Cidr> {
    Dual { v4: v4([10, number, node, 0], 24), v6: v6([0xfd00, 0x10, number.into(), node.into()], 64) }
}

fn cluster_services(number: u8) -> Dual<Cidr> {
    // fd00:10:101::/112 and so on: written in hexadecimal, meant to be read like the IPv4 one.
    Dual { v4: v4([10, 100 + number, 0, 0], 16), v6: v6([0xfd00, 0x10, 0x100 + u16::from(number), 0], 112) }
}

fn pods(cluster: &'static str, node: u8) -> Vec<Pod> {
    let number = |i| (node - 1) * PODS_PER_NODE + i;
    let pod = |i| Pod { name: format!("pod{}", number(i)), cluster, node: format!("{cluster}-{node}") };
    (1..=PODS_PER_NODE).map(pod).collect()
}

/// The `number`th address of `cidr`.
pub(crate) fn nth(cidr: Cidr, number: u16) -> IpAddr {
    match cidr.address() {
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base) + u32::from(number)).into(),
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) + u128::from(number)).into(),
    }
}

fn v4(octets: [u8; 4], length: u8) -> Cidr {
    cidr(Ipv4Addr::from(octets).into(), length)
}

fn v6(head: [u16; 4], length: u8) -> Cidr {
    cidr(Ipv6Addr::new(head[0], head[1], head[2], head[3], 0, 0, 0, 0).into(), length)
}

/// All arguments are constants of this file, and a test makes every one of them.
#[expect(clippy::expect_used, reason = "constants, made by the tests below")]
fn cidr(address: IpAddr, length: u8) -> Cidr {
    Cidr::containing(address, length).expect("the topology's constants are valid prefixes")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_clouds_are_as_the_issue_says() {
        let world = Topology::standard();
        let counts: Vec<_> = world
            .clouds
            .iter()
            .map(|c| (c.name, c.nodes.len(), c.nodes.iter().filter(|n| n.gateway).count()))
            .collect();
        assert_eq!(counts, [("alpha", 3, 2), ("beta", 2, 1), ("gamma", 2, 1)]);
        assert_eq!(world.pods().count(), 14);
        let gamma2 = world.node("gamma-2").unwrap();
        assert!(gamma2.behind_nat && gamma2.endpoints.is_empty());
        assert_eq!(world.node("alpha-3").unwrap().pod_cidr.v6.to_string(), "fd00:10:1:3::/64");
        assert_eq!(world.clouds[0].service_cidr.v6.to_string(), "fd00:10:101::/112");
        assert_eq!(world.clouds[1].services()[2].address.v4.to_string(), "10.102.0.12");
    }

    #[test]
    fn nothing_has_an_address_or_a_name_twice() {
        let world = Topology::standard();
        let addresses: Vec<_> = world.nodes().flat_map(Node::addresses).collect();
        assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), addresses.len());
        let places = world.places();
        assert_eq!(places.iter().collect::<HashSet<_>>().len(), places.len());
        for place in places {
            assert!(world.find(&place).unwrap().name().starts_with("psp-"), "{place}");
        }
        assert_eq!(world.find("psp-router"), Some(world.router()));
        assert_eq!(world.find("delta/pod1"), None);
    }

    #[test]
    fn clusters_do_not_overlap_with_each_other_or_the_underlay() {
        let world = Topology::standard();
        let mut cidrs: Vec<Cidr> = world.underlay().iter().flat_map(|(_, net)| net.both()).collect();
        for cloud in &world.clouds {
            cidrs.extend(cloud.pod_cidr.both().into_iter().chain(cloud.service_cidr.both()));
            cidrs.extend(cloud.lan.iter().flat_map(|lan| lan.subnet.both()));
            for node in &cloud.nodes {
                assert!(cloud.pod_cidr.v4.covers(&node.pod_cidr.v4));
                assert!(cloud.pod_cidr.v6.covers(&node.pod_cidr.v6));
            }
        }
        for (i, a) in cidrs.iter().enumerate() {
            for b in &cidrs[i + 1..] {
                assert!(!a.overlaps(b), "{a} {b}");
            }
        }
    }

    #[test]
    fn every_next_hop_is_on_a_link_of_its_node() {
        for node in Topology::standard().nodes() {
            let links: Vec<Cidr> = node
                .interfaces
                .iter()
                .flat_map(|i| &i.addresses)
                .map(|(address, length)| Cidr::containing(*address, *length).unwrap())
                .collect();
            for via in &node.default_via {
                assert!(links.iter().any(|link| link.contains(*via)), "{} via {via}", node.name);
            }
        }
    }
}
