//! Which clusters there are, as data: two of two nodes, dual-stack, in clouds of their own behind a router that
//! knows neither pod nor service addresses.
//!
//! | cluster | underlay | pods | services | kube-proxy | CNI | its masquerade |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | alpha | 192.0.2.0/24, 2001:db8:a::/64 | 10.1.0.0/16, fd00:10:1::/48 | 10.101.0.0/16, fd00:10:101::/112 | iptables | bridge, host-gw | as flannel's |
//! | beta | 198.51.100.0/24, 2001:db8:b::/64 | 10.2.0.0/16, fd00:10:2::/48 | 10.102.0.0/16, fd00:10:102::/112 | nftables | ptp, VXLAN | as kindnet's |

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use podspan_wire::Cidr;

use super::pod_network::PodNetwork;
use crate::netns::Netns;
use crate::rules::{Backend, Variant};
use crate::topology::{Cloud, Dual, Host, Node, nth};

/// All clusters and what is around them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) clusters: Vec<ClusterPlan>,
    /// A host outside of both clouds: where a person works, where a broker may be.
    pub(crate) outside: Host,
}

/// A cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterPlan {
    /// Also the name of the router's interface towards it.
    pub(crate) name: &'static str,
    pub(crate) subnet: Dual<Cidr>,
    pub(crate) pods: Dual<Cidr>,
    pub(crate) services: Dual<Cidr>,
    /// A range of ClusterIPs that the cluster may be given later.
    pub(crate) more_services: Cidr,
    /// A range of pod CIDRs that the cluster may be given later.
    pub(crate) more_pods: Dual<Cidr>,
    /// What stands for the cluster's own network.
    pub(crate) network: PodNetwork,
    /// How kube-proxy works, and the CNI's masquerade with it.
    pub(crate) proxy: ProxyMode,
    /// The control plane's address.
    pub(crate) plane: Dual<IpAddr>,
    pub(crate) nodes: Vec<NodePlan>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePlan {
    /// Such as `alpha-1`.
    pub(crate) name: String,
    pub(crate) address: Dual<IpAddr>,
}

/// kube-proxy's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyMode {
    Iptables,
    Nftables,
}

impl ProxyMode {
    /// As in kube-proxy's settings.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// The pod CIDRs of a cluster's nodes, by name, as the controller manager gave them.
pub(crate) type PodCidrs = BTreeMap<String, Dual<Cidr>>;

impl Plan {
    /// The lab's only one.
    pub(crate) fn standard() -> Result<Self> {
        Ok(Self {
            clusters: vec![
                ClusterPlan {
                    proxy: ProxyMode::Iptables,
                    network: PodNetwork::BridgeHostGw,
                    ..cluster("alpha", 1, ("192.0.2.0/24", "2001:db8:a::/64"))?
                },
                ClusterPlan {
                    proxy: ProxyMode::Nftables,
                    network: PodNetwork::PtpVxlan,
                    ..cluster("beta", 2, ("198.51.100.0/24", "2001:db8:b::/64"))?
                },
            ],
            outside: host("outside", ("203.0.113.0/24", "2001:db8:c::/64"))?,
        })
    }

    pub(crate) fn router(&self) -> Netns {
        super::netns("router")
    }

    pub(crate) fn outside_netns(&self) -> Netns {
        super::netns(self.outside.name)
    }

    /// The namespaces to be made at the beginning.
    pub(crate) fn namespaces(&self) -> Vec<Netns> {
        let mut all = vec![self.router(), self.outside_netns()];
        for cluster in &self.clusters {
            all.extend([cluster.network(), cluster.plane_netns()]);
            all.extend(cluster.nodes.iter().map(NodePlan::netns));
        }
        all
    }

    /// The cluster of that name.
    pub(crate) fn cluster(&self, name: &str) -> Result<&ClusterPlan> {
        let names: Vec<_> = self.clusters.iter().map(|cluster| cluster.name).collect();
        let found = self.clusters.iter().find(|cluster| cluster.name == name);
        found.with_context(|| format!("there is no cluster {name:?}; there are: {}", names.join(" ")))
    }

    /// The cluster that a node is of.
    pub(crate) fn cluster_of(&self, node: &NodePlan) -> Result<&ClusterPlan> {
        let found = self.clusters.iter().find(|cluster| node.name.starts_with(cluster.name));
        found.with_context(|| format!("{} is of no cluster", node.name))
    }

    /// Every subnet that the underlay owns, with the router's interface towards it.
    pub(crate) fn underlay(&self) -> Vec<(&'static str, Dual<Cidr>)> {
        let clusters = self.clusters.iter().map(|cluster| (cluster.name, cluster.subnet));
        clusters.chain([(self.outside.name, self.outside.subnet)]).collect()
    }

    /// Lines for `ip -batch`: bridges and cables first, then addresses and routes; each by namespace.
    pub(crate) fn wiring(&self) -> Vec<(Netns, Vec<String>)> {
        let router = self.router();
        let mut batches = Vec::new();
        let mut at_router = Vec::new();
        batches.push((router.clone(), vec![cable(self.outside.name, &self.outside_netns())]));
        at_router.extend(router_end(self.outside.name, self.outside.subnet));
        batches.push((self.outside_netns(), host_end(self.outside.address, self.outside.subnet)));
        for cluster in &self.clusters {
            let switch = cluster.network();
            let mut lines =
                vec!["link add br0 up type bridge forward_delay 0 stp_state 0 mcast_snooping 0".to_owned()];
            lines.push(format!("link add router type veth peer name {} netns {router}", cluster.name));
            lines.push("link set router master br0 up".to_owned());
            batches.push((switch, lines));
            at_router.extend(router_end(cluster.name, cluster.subnet));
            batches.extend(cluster.plug("plane", &cluster.plane_netns(), cluster.plane));
            for node in &cluster.nodes {
                batches.extend(cluster.plug(&node.name, &node.netns(), node.address));
            }
        }
        batches.push((router, at_router));
        batches
    }
}

impl ClusterPlan {
    /// The namespace of the layer-2 network.
    pub(crate) fn network(&self) -> Netns {
        super::netns(&format!("{}-net", self.name))
    }

    /// The namespace of the control plane.
    pub(crate) fn plane_netns(&self) -> Netns {
        super::netns(&format!("{}-plane", self.name))
    }

    /// The address of the cluster's DNS service.
    pub(crate) fn dns(&self) -> Dual<IpAddr> {
        Dual { v4: nth(self.services.v4, 10), v6: nth(self.services.v6, 10) }
    }

    /// A node by its number.
    pub(crate) fn node_numbered(&self, number: u16) -> NodePlan {
        let address = Dual { v4: nth(self.subnet.v4, 10 + number), v6: nth(self.subnet.v6, 0x10 + number) };
        NodePlan { name: format!("{}-{number}", self.name), address }
    }

    /// Batches that plug a host into the cluster's network.
    pub(crate) fn plug(&self, port: &str, netns: &Netns, address: Dual<IpAddr>) -> [(Netns, Vec<String>); 2] {
        let switch = vec![cable(port, netns), format!("link set {port} master br0 up")];
        [(self.network(), switch), (netns.clone(), host_end(address, self.subnet))]
    }

    /// The cluster as the rules of the CNI's masquerade want it.
    pub(crate) fn cloud(&self, pod_cidrs: &PodCidrs) -> Cloud {
        let node = |node: &NodePlan| Node {
            name: node.name.clone(),
            cluster: self.name,
            gateway: false,
            behind_nat: false,
            interfaces: Vec::new(),
            default_via: Vec::new(),
            internal: node.address,
            endpoints: node.address.both().into(),
            pod_cidr: pod_cidrs.get(&node.name).copied().unwrap_or(self.pods),
            pods: Vec::new(),
        };
        Cloud {
            name: self.name,
            subnet: self.subnet,
            lan: None,
            pod_cidr: self.pods,
            service_cidr: self.services,
            nodes: self.nodes.iter().map(node).collect(),
            rp_filter: 0,
        }
    }

    /// With which rules the CNI masquerades.
    pub(crate) fn variant(&self) -> Variant {
        let backend = match self.proxy {
            ProxyMode::Iptables => Backend::IptablesNft,
            ProxyMode::Nftables => Backend::Nft,
        };
        Variant { backend, cluster_cidr: true }
    }
}

impl NodePlan {
    pub(crate) fn netns(&self) -> Netns {
        super::netns(&self.name)
    }
}

fn cable(port: &str, netns: &Netns) -> String {
    format!("link add {port} type veth peer name eth0 netns {netns}")
}

fn router_end(port: &str, subnet: Dual<Cidr>) -> Vec<String> {
    let addresses =
        subnet.both().map(|net| format!("address add {}/{} dev {port}", nth(net, 1), net.length()));
    std::iter::once(format!("link set {port} up")).chain(addresses).collect()
}

fn host_end(address: Dual<IpAddr>, subnet: Dual<Cidr>) -> Vec<String> {
    let mut lines = vec!["link set eth0 up".to_owned()];
    for (address, net) in address.both().into_iter().zip(subnet.both()) {
        lines.push(format!("address add {address}/{} dev eth0", net.length()));
        lines.push(format!("route add default via {}", nth(net, 1)));
    }
    lines
}

fn dual(text: (&str, &str)) -> Result<Dual<Cidr>> {
    Ok(Dual { v4: text.0.parse()?, v6: text.1.parse()? })
}

fn host(name: &'static str, subnet: (&str, &str)) -> Result<Host> {
    let subnet = dual(subnet)?;
    Ok(Host { name, subnet, address: Dual { v4: nth(subnet.v4, 2), v6: nth(subnet.v6, 2) } })
}

fn cluster(name: &'static str, number: u8, subnet: (&str, &str)) -> Result<ClusterPlan> {
    let subnet = dual(subnet)?;
    let mut plan = ClusterPlan {
        name,
        subnet,
        pods: dual((&format!("10.{number}.0.0/16"), &format!("fd00:10:{number}::/48")))?,
        services: dual((&format!("10.10{number}.0.0/16"), &format!("fd00:10:10{number}::/112")))?,
        more_services: format!("10.11{number}.0.0/24").parse()?,
        more_pods: dual((&format!("10.12{number}.0.0/16"), &format!("fd00:10:12{number}::/48")))?,
        network: PodNetwork::BridgeHostGw,
        proxy: ProxyMode::Iptables,
        plane: Dual { v4: nth(subnet.v4, 5), v6: nth(subnet.v6, 5) },
        nodes: Vec::new(),
    };
    plan.nodes = [1, 2].map(|number| plan.node_numbered(number)).into();
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_underlay_knows_no_pods() {
        let plan = Plan::standard().unwrap();
        let all: Vec<String> = plan.wiring().into_iter().flat_map(|(_, lines)| lines).collect();
        assert!(!all.iter().any(|line| line.contains("10.1.") || line.contains("fd00")), "{all:?}");
    }

    #[test]
    fn names_fit_the_kernel() {
        let plan = Plan::standard().unwrap();
        assert!(plan.clusters.iter().flat_map(|cluster| &cluster.nodes).all(|node| node.name.len() <= 15));
    }
}
