//! What the lab's world consists of, as data: three clouds, their nodes and pods, and what joins them.
//! Nothing here does IO; [`crate::world`] makes it real.

mod gateways;
mod standard;
mod wiring;

use std::net::IpAddr;

use podspan_wire::Cidr;

use crate::netns::Netns;

pub(crate) use standard::nth;
pub(crate) use wiring::Wiring;

/// The MTU of every underlay link, bytes.
pub(crate) const MTU: u32 = 1500;

/// The port at which a pod's probe server listens, TCP and UDP.
pub(crate) const POD_PORT: u16 = 8080;

/// The port of every service, TCP and UDP.
pub(crate) const SERVICE_PORT: u16 = 80;

/// The TCP port of the broker.
pub(crate) const BROKER_PORT: u16 = 7443;

/// An IPv4 and an IPv6 value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Dual<T> {
    pub(crate) v4: T,
    pub(crate) v6: T,
}

impl<T: Copy> Dual<T> {
    pub(crate) fn both(&self) -> [T; 2] {
        [self.v4, self.v6]
    }

    /// The value of one family.
    pub(crate) fn of(&self, family: Family) -> T {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `-4` or `-6`, as `ip` and `ping` take it.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Which topology a world has.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Shape {
    /// Three clouds, as the issues describe them.
    #[default]
    Standard,
    /// Two clouds, one of which has five gateways.
    FiveGateways,
}

impl Shape {
    pub(crate) const ALL: [Self; 2] = [Self::Standard, Self::FiveGateways];
}

/// The whole world.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    pub(crate) clouds: Vec<Cloud>,
    /// Where the broker runs.
    pub(crate) broker: Host,
    /// A host that stands for everything outside the clouds.
    pub(crate) internet: Host,
}

/// A host of its own subnet behind the router.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Also the name of the router's interface towards it.
    pub(crate) name: &'static str,
    pub(crate) subnet: Dual<Cidr>,
    pub(crate) address: Dual<IpAddr>,
}

/// A cloud: an underlay network with one cluster in it.
#[derive(Clone, Debug)]
pub(crate) struct Cloud {
    /// The cluster id; also the name of the router's interface towards it.
    pub(crate) name: &'static str,
    /// The public subnet of the cloud.
    pub(crate) subnet: Dual<Cidr>,
    /// The private network of a cloud that has one.
    pub(crate) lan: Option<Lan>,
    pub(crate) pod_cidr: Dual<Cidr>,
    pub(crate) service_cidr: Dual<Cidr>,
    pub(crate) nodes: Vec<Node>,
    /// `rp_filter` on the nodes: 0 off, 1 strict, 2 loose (RFC 3704).
    pub(crate) rp_filter: u8,
}

/// A private network behind a NAT router.
#[derive(Clone, Debug)]
pub(crate) struct Lan {
    pub(crate) subnet: Dual<Cidr>,
    /// The NAT router's addresses within; only IPv4 goes on from there.
    pub(crate) router: Dual<IpAddr>,
    /// The NAT router's public address.
    pub(crate) outside: IpAddr,
}

/// A node of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Such as `alpha-1`.
    pub(crate) name: String,
    /// The cluster's name.
    pub(crate) cluster: &'static str,
    pub(crate) gateway: bool,
    /// Whether it reaches the outside only through the cloud's NAT router.
    pub(crate) behind_nat: bool,
    pub(crate) interfaces: Vec<Interface>,
    /// Next hops of the default routes.
    pub(crate) default_via: Vec<IpAddr>,
    /// The addresses by which the other nodes of its cluster reach it.
    pub(crate) internal: Dual<IpAddr>,
    /// The addresses at which other clusters may dial it: public ones, IPv4 first.
    pub(crate) endpoints: Vec<IpAddr>,
    pub(crate) pod_cidr: Dual<Cidr>,
    pub(crate) pods: Vec<Pod>,
}

/// A node's underlay interface.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    pub(crate) name: &'static str,
    /// The layer-2 network it is plugged into.
    pub(crate) network: Netns,
    pub(crate) addresses: Vec<(IpAddr, u8)>,
}

/// A pod; it gets its addresses from the CNI chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Unique within the cluster, such as `pod1`.
    pub(crate) name: String,
    pub(crate) cluster: &'static str,
    /// The node's name.
    pub(crate) node: String,
}

/// A service of a cluster, translated on each of its nodes.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// `all`, or the name of the node whose pods serve it.
    pub(crate) name: String,
    pub(crate) cluster: &'static str,
    pub(crate) address: Dual<IpAddr>,
    /// Names of the pods that serve it.
    pub(crate) pods: Vec<String>,
}

impl Topology {
    /// The topology of that shape.
    pub(crate) fn of(shape: Shape) -> Self {
        match shape {
            Shape::Standard => Self::standard(),
            Shape::FiveGateways => Self::five_gateways(),
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.clouds.iter().flat_map(|cloud| &cloud.nodes)
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes().flat_map(|node| &node.pods)
    }

    pub(crate) fn cloud(&self, name: &str) -> Option<&Cloud> {
        self.clouds.iter().find(|cloud| cloud.name == name)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes().find(|node| node.name == name)
    }

    pub(crate) fn services(&self) -> Vec<Service> {
        self.clouds.iter().flat_map(Cloud::services).collect()
    }

    /// Every subnet that the underlay owns and the router's interface behind which it is.
    pub(crate) fn underlay(&self) -> Vec<(&'static str, Dual<Cidr>)> {
        let clouds = self.clouds.iter().map(|cloud| (cloud.name, cloud.subnet));
        clouds.chain([&self.broker, &self.internet].map(|host| (host.name, host.subnet))).collect()
    }

    /// The namespace of a place as a person names it: `alpha/pod1`, `alpha-1`, `router`.
    pub(crate) fn find(&self, place: &str) -> Option<Netns> {
        if let Some(pod) = self.pods().find(|pod| pod.id() == place) {
            return Some(pod.netns());
        }
        let name = place.strip_prefix("psp-").unwrap_or(place);
        let netns = netns(name);
        self.fixed_namespaces().contains(&netns).then_some(netns)
    }

    /// What `find` knows, for an error message.
    pub(crate) fn places(&self) -> Vec<String> {
        let pods = self.pods().map(Pod::id);
        let rest = self.fixed_namespaces();
        pods.chain(rest.iter().map(|ns| ns.name().trim_start_matches("psp-").to_owned())).collect()
    }

    /// All namespaces but the pods'.
    pub(crate) fn fixed_namespaces(&self) -> Vec<Netns> {
        let mut all = vec![self.router(), self.broker.netns(), self.internet.netns()];
        for cloud in &self.clouds {
            all.push(cloud.network());
            if cloud.lan.is_some() {
                all.extend([cloud.lan_network(), cloud.nat()]);
            }
            all.extend(cloud.nodes.iter().map(Node::netns));
        }
        all
    }

    pub(crate) fn router(&self) -> Netns {
        netns("router")
    }
}

/// The namespace of a place of the lab.
fn netns(place: &str) -> Netns {
    Netns::named(format!("psp-{place}"))
}

impl Host {
    pub(crate) fn netns(&self) -> Netns {
        netns(self.name)
    }
}

impl Cloud {
    /// The namespace of the layer-2 network.
    pub(crate) fn network(&self) -> Netns {
        netns(&format!("{}-net", self.name))
    }

    /// The namespace of the private layer-2 network.
    pub(crate) fn lan_network(&self) -> Netns {
        netns(&format!("{}-lan", self.name))
    }

    /// The namespace of the NAT router.
    pub(crate) fn nat(&self) -> Netns {
        netns(&format!("{}-nat", self.name))
    }

    /// One service with all pods of the cluster and one with the pods of each node.
    pub(crate) fn services(&self) -> Vec<Service> {
        let service = |name: &str, number: u8, pods: Vec<String>| Service {
            name: name.to_owned(),
            cluster: self.name,
            address: Dual {
                v4: standard::nth(self.service_cidr.v4, number.into()),
                v6: standard::nth(self.service_cidr.v6, number.into()),
            },
            pods,
        };
        let names = |node: &Node| node.pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
        let all = service("all", 10, self.nodes.iter().flat_map(names).collect());
        let each = self.nodes.iter().zip(11..).map(|(node, number)| service(&node.name, number, names(node)));
        std::iter::once(all).chain(each).collect()
    }
}

impl Node {
    pub(crate) fn netns(&self) -> Netns {
        netns(&self.name)
    }

    /// All addresses of its underlay interfaces.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.interfaces.iter().flat_map(|interface| &interface.addresses).map(|(address, _)| *address)
    }
}

impl Pod {
    /// `alpha/pod1`.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.cluster, self.name)
    }

    pub(crate) fn netns(&self) -> Netns {
        netns(&format!("{}-{}", self.cluster, self.name))
    }

    /// The CNI container id.
    pub(crate) fn container_id(&self) -> String {
        format!("{}-{}", self.cluster, self.name)
    }
}

impl Service {
    /// `alpha/svc-all`.
    pub(crate) fn id(&self) -> String {
        format!("{}/svc-{}", self.cluster, self.name)
    }
}
