//! From the topology to links, addresses and routes: lines for `ip -batch`, namespace by namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podspan_wire::Cidr;

use super::standard::nth;
use super::{Cloud, Dual, Family, MTU, Topology};
use crate::netns::Netns;

/// One end of a cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) netns: Netns,
    pub(crate) interface: String,
}

/// A veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cable {
    pub(crate) a: Port,
    pub(crate) b: Port,
}

/// Everything that `ip` is to make.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wiring {
    /// Layer-2 networks: a bridge `br0` in each, with all the namespace's cables in it.
    pub(crate) switches: Vec<Netns>,
    pub(crate) cables: Vec<Cable>,
    /// Addresses and routes.
    lines: BTreeMap<String, Vec<String>>,
}

impl Wiring {
    /// How `topology` is wired, pods left out: those the CNI chain connects.
    pub(crate) fn of(topology: &Topology) -> Self {
        let mut wiring = Self::default();
        let router = topology.router();
        for host in [&topology.broker, &topology.internet] {
            wiring.cable(&router, host.name, &host.netns(), "eth0");
            wiring.router_end(&router, host.name, host.subnet);
            for (address, net) in host.address.both().into_iter().zip(host.subnet.both()) {
                wiring.address(&host.netns(), "eth0", address, net.length());
                wiring.default_route(&host.netns(), nth(net, 1));
            }
        }
        for cloud in &topology.clouds {
            wiring.cloud(&router, cloud);
        }
        wiring
    }

    fn cloud(&mut self, router: &Netns, cloud: &Cloud) {
        self.switches.push(cloud.network());
        self.cable(&cloud.network(), "router", router, cloud.name);
        self.router_end(router, cloud.name, cloud.subnet);
        if let Some(lan) = &cloud.lan {
            self.switches.push(cloud.lan_network());
            self.cable(&cloud.network(), "nat", &cloud.nat(), "outside");
            self.cable(&cloud.lan_network(), "nat", &cloud.nat(), "inside");
            self.address(&cloud.nat(), "outside", lan.outside, cloud.subnet.v4.length());
            for (address, net) in lan.router.both().into_iter().zip(lan.subnet.both()) {
                self.address(&cloud.nat(), "inside", address, net.length());
            }
            self.default_route(&cloud.nat(), nth(cloud.subnet.v4, 1));
        }
        for node in &cloud.nodes {
            for interface in &node.interfaces {
                self.cable(&interface.network, &node.name, &node.netns(), interface.name);
                for (address, length) in &interface.addresses {
                    self.address(&node.netns(), interface.name, *address, *length);
                }
            }
            for via in &node.default_via {
                self.default_route(&node.netns(), *via);
            }
            // flannel's host-gw backend and kindnet: each other node's pods by way of that node.
            for other in cloud.nodes.iter().filter(|other| other.name != node.name) {
                for (pods, via) in other.pod_cidr.both().into_iter().zip(other.internal.both()) {
                    self.line(&node.netns(), format!("route add {pods} via {via}"));
                }
                // The public addresses of the cloud's nodes are not behind its NAT router.
                if node.behind_nat {
                    for public in &other.endpoints {
                        let via = other.internal.of(Family::of(*public));
                        self.line(&node.netns(), format!("route add {public} via {via}"));
                    }
                }
            }
        }
    }

    fn cable(&mut self, a: &Netns, a_interface: &str, b: &Netns, b_interface: &str) {
        let port =
            |netns: &Netns, interface: &str| Port { netns: netns.clone(), interface: interface.into() };
        self.cables.push(Cable { a: port(a, a_interface), b: port(b, b_interface) });
    }

    fn router_end(&mut self, router: &Netns, interface: &str, subnet: Dual<Cidr>) {
        for net in subnet.both() {
            self.address(router, interface, nth(net, 1), net.length());
        }
    }

    fn address(&mut self, netns: &Netns, interface: &str, address: IpAddr, length: u8) {
        self.line(netns, format!("address add {address}/{length} dev {interface}"));
    }

    fn default_route(&mut self, netns: &Netns, via: IpAddr) {
        self.line(netns, format!("route add default via {via}"));
    }

    fn line(&mut self, netns: &Netns, line: String) {
        self.lines.entry(netns.name().to_owned()).or_default().push(line);
    }

    /// First: bridges and cables, by namespace.
    pub(crate) fn links(&self) -> BTreeMap<String, Vec<String>> {
        let mut batches: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for switch in &self.switches {
            // Without forward delay and multicast snooping a port forwards at once, neighbour discovery too.
            batches.entry(switch.name().into()).or_default().push(format!(
                "link add br0 mtu {MTU} up type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
            ));
        }
        for Cable { a, b } in &self.cables {
            batches.entry(a.netns.name().into()).or_default().push(format!(
                "link add {} mtu {MTU} type veth peer name {} mtu {MTU} netns {}",
                a.interface, b.interface, b.netns
            ));
        }
        batches
    }

    /// Second: every end of a cable up, in its bridge if it has one, then addresses and routes.
    pub(crate) fn ends(&self) -> BTreeMap<String, Vec<String>> {
        let mut batches: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for port in self.cables.iter().flat_map(|cable| [&cable.a, &cable.b]) {
            let master = if self.switches.contains(&port.netns) { " master br0" } else { "" };
            let line = format!("link set {}{master} up", port.interface);
            batches.entry(port.netns.name().into()).or_default().push(line);
        }
        for (netns, lines) in &self.lines {
            batches.entry(netns.clone()).or_default().extend(lines.iter().cloned());
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_the_kernel_and_are_unique() {
        let wiring = Wiring::of(&Topology::standard());
        let mut seen = std::collections::HashSet::new();
        for port in wiring.cables.iter().flat_map(|cable| [&cable.a, &cable.b]) {
            assert!(port.interface.len() <= 15, "{port:?}");
            assert!(seen.insert((port.netns.clone(), port.interface.clone())), "{port:?}");
        }
    }

    #[test]
    fn the_router_knows_no_pod_address() {
        let topology = Topology::standard();
        let wiring = Wiring::of(&topology);
        let lines = &wiring.lines["psp-router"];
        assert!(lines.iter().all(|line| line.starts_with("address add")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("10.1.") || line.contains("fd00")), "{lines:?}");
    }

    #[test]
    fn nodes_reach_the_pods_of_their_own_cluster_only() {
        let wiring = Wiring::of(&Topology::standard());
        let gamma2 = wiring.lines["psp-gamma-2"].join("\n");
        assert!(gamma2.contains("route add 10.3.1.0/24 via 192.168.30.11"), "{gamma2}");
        assert!(gamma2.contains("route add fd00:10:3:1::/64 via fd00:192:168:30::11"), "{gamma2}");
        assert!(gamma2.contains("route add default via 192.168.30.1"), "{gamma2}");
        assert!(!gamma2.contains("10.1.") && !gamma2.contains("10.2."), "{gamma2}");
    }
}
