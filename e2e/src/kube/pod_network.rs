//! How the pods of a cluster's nodes reach each other, as the daemons of real networks set it up: flannel's backends
//! `host-gw` and `vxlan`, over Debian's CNI plugins.

use anyhow::Result;
use podspan_wire::Cidr;
use serde_json::json;

use super::plan::{ClusterPlan, NodePlan, PodCidrs};
use crate::command::Cmd;
use crate::netns::Netns;
use crate::world::ip_batch;

/// What stands for the cluster's own network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodNetwork {
    /// The plugin `bridge`; routes to the other nodes' pods by the nodes' own addresses.
    BridgeHostGw,
    /// The plugin `ptp`; the other nodes' pods through a VXLAN, without learning, as flannel has it. Its interfaces
    /// have the first addresses of the node's pod CIDRs, which podspan's has too.
    PtpVxlan,
}

impl PodNetwork {
    /// For a person.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BridgeHostGw => "bridge, host-gw",
            Self::PtpVxlan => "ptp, VXLAN",
        }
    }

    /// The CNI configuration of a node with these pod CIDRs.
    pub(super) fn conflist(self, cidrs: &[String]) -> String {
        let ranges: Vec<_> = cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
        let ipam = json!({"type": "host-local", "ranges": ranges});
        let main = match self {
            Self::BridgeHostGw => json!({
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": ipam,
            }),
            Self::PtpVxlan => {
                let mut ipam = ipam;
                ipam["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
                json!({"type": "ptp", "ipMasq": false, "mtu": VXLAN_MTU, "ipam": ipam})
            }
        };
        let list = json!({
            "cniVersion": "0.3.1",
            "name": "lab",
            "plugins": [main, {"type": "portmap", "capabilities": {"portMappings": true}}],
        });
        format!("{list:#}\n")
    }
}

/// flannel's interfaces, by family.
const INTERFACES: [&str; 2] = ["flannel.1", "flannel-v6.1"];
/// flannel's UDP port on Linux.
const PORT: u16 = 8472;
/// An Ethernet's 1500 bytes less IPv6 40, UDP 8, VXLAN 8, Ethernet 14.
const VXLAN_MTU: u32 = 1430;

/// Lines for `ip -batch` and for `bridge -batch`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lines {
    ip: Vec<String>,
    bridge: Vec<String>,
}

impl ClusterPlan {
    /// Makes what a node's network has before it knows of others; the node's namespace is new.
    pub(super) fn begin_network(&self, node: &NodePlan, known: &PodCidrs) -> Result<()> {
        let lines = self.interfaces(node, known);
        if lines.is_empty() { Ok(()) } else { ip_batch(&node.netns(), &lines) }
    }

    /// Makes or renews a node's ways to the pods of the others that are known.
    pub(super) fn lead_to_others(&self, node: &NodePlan, known: &PodCidrs) -> Result<()> {
        let lines = self.ways(node, known);
        apply(&node.netns(), &lines)
    }

    fn interfaces(&self, node: &NodePlan, known: &PodCidrs) -> Vec<String> {
        let Some(own) = known.get(&node.name).filter(|_| self.network == PodNetwork::PtpVxlan) else {
            return Vec::new();
        };
        let ends = INTERFACES.into_iter().zip(node.address.both()).zip(own.both());
        ends.enumerate()
            .flat_map(|(family, ((interface, local), cidr))| {
                [
                    format!(
                        "link add {interface} type vxlan id 1 local {local} dev eth0 dstport {PORT} nolearning"
                    ),
                    format!("link set {interface} address {} up", mac(family, node)),
                    format!("address add {} dev {interface}{}", host(cidr), if family == 1 { " nodad" } else { "" }),
                ]
            })
            .collect()
    }

    fn ways(&self, node: &NodePlan, known: &PodCidrs) -> Lines {
        let mut lines = Lines::default();
        let others = self.nodes.iter().filter(|other| other.name != node.name);
        for (other, cidrs) in others.filter_map(|other| Some((other, known.get(&other.name)?))) {
            let pairs = cidrs.both().into_iter().zip(other.address.both());
            for (family, (cidr, via)) in pairs.enumerate() {
                match self.network {
                    PodNetwork::BridgeHostGw => lines.ip.push(format!("route replace {cidr} via {via}")),
                    PodNetwork::PtpVxlan => {
                        let (interface, mac) = (INTERFACES[family], mac(family, other));
                        let first = cidr.address();
                        lines.ip.extend([
                            format!("neigh replace {first} lladdr {mac} dev {interface} nud permanent"),
                            format!("route replace {cidr} via {first} dev {interface} onlink"),
                        ]);
                        lines.bridge.push(format!("fdb replace {mac} dev {interface} dst {via}"));
                    }
                }
            }
        }
        lines
    }
}

fn apply(netns: &Netns, lines: &Lines) -> Result<()> {
    if !lines.bridge.is_empty() {
        let text = lines.bridge.join("\n") + "\n";
        Cmd::new("bridge").args(["-batch", "-"]).within(netns).stdin(text).run_ok()?;
    }
    if lines.ip.is_empty() { Ok(()) } else { ip_batch(netns, &lines.ip) }
}

/// The Ethernet address of a node's VXLAN interface.
fn mac(family: usize, node: &NodePlan) -> String {
    let number: u8 = node.name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    format!("02:50:53:00:{family:02x}:{number:02x}")
}

/// The first address of a CIDR, alone.
fn host(cidr: Cidr) -> String {
    format!("{}/{}", cidr.address(), if cidr.is_ipv6() { 128 } else { 32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::plan::Plan;
    use crate::topology::Dual;

    fn known(cluster: u8) -> PodCidrs {
        let cidrs = |n: u8| Dual {
            v4: format!("10.{cluster}.{n}.0/24").parse().unwrap(),
            v6: format!("fd00:10:{cluster}:{n}::/64").parse().unwrap(),
        };
        let name = if cluster == 1 { "alpha" } else { "beta" };
        PodCidrs::from([(format!("{name}-1"), cidrs(0)), (format!("{name}-2"), cidrs(1))])
    }

    #[test]
    fn a_conflist_has_a_range_for_each_family() {
        for network in [PodNetwork::BridgeHostGw, PodNetwork::PtpVxlan] {
            let text = network.conflist(&["10.1.0.0/24".into(), "fd00::/64".into()]);
            let list: serde_json::Value = serde_json::from_str(&text).unwrap();
            let ranges = &list["plugins"][0]["ipam"]["ranges"];
            assert_eq!(ranges[0][0]["subnet"], "10.1.0.0/24");
            assert_eq!(ranges[1][0]["subnet"], "fd00::/64");
            assert_eq!(list["plugins"][1]["type"], "portmap");
        }
    }

    #[test]
    fn routes_as_of_host_gw() {
        let plan = Plan::standard().unwrap();
        let alpha = plan.cluster("alpha").unwrap();
        assert_eq!(
            alpha.ways(&alpha.nodes[0], &known(1)).ip,
            ["route replace 10.1.1.0/24 via 192.0.2.12", "route replace fd00:10:1:1::/64 via 2001:db8:a::12"]
        );
        assert!(alpha.interfaces(&alpha.nodes[0], &known(1)).is_empty());
    }

    #[test]
    fn a_vxlan_as_of_flannel() {
        let plan = Plan::standard().unwrap();
        let beta = plan.cluster("beta").unwrap();
        let own = beta.interfaces(&beta.nodes[1], &known(2));
        assert_eq!(own.len(), 6);
        assert_eq!(own[2], "address add 10.2.1.0/32 dev flannel.1");
        let ways = beta.ways(&beta.nodes[0], &known(2));
        assert_eq!(ways.bridge[0], "fdb replace 02:50:53:00:00:02 dev flannel.1 dst 198.51.100.12");
        assert_eq!(ways.ip[1], "route replace 10.2.1.0/24 via 10.2.1.0 dev flannel.1 onlink");
    }
}
