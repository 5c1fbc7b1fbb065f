//! The underlay as this node sees it: which interfaces, how large a packet, which addresses must stay
//! reachable outside the tunnels. Pure; what stands in the kernel comes in.

use std::net::IpAddr;

use podspan_wire::{Cidr, CidrSet};

use crate::facts::LocalFacts;
use crate::host::Facts;

/// An Ethernet's MTU in bytes, assumed where no interface can be found.
pub const USUAL_MTU: u32 = 1500;

/// The underlay of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The interfaces by which other nodes and clusters are reached.
    pub interfaces: Vec<String>,
    /// The smallest MTU among them, bytes.
    pub mtu: u32,
    /// What no other cluster may announce, since this node needs it outside the tunnels: the subnets it is
    /// in, its routers, its brokers.
    pub needed: CidrSet,
}

impl Default for Underlay {
    fn default() -> Self {
        Self { interfaces: Vec::new(), mtu: USUAL_MTU, needed: CidrSet::default() }
    }
}

impl Underlay {
    /// Finds the underlay: the interfaces that the facts name, else those that hold an endpoint or another of
    /// the node's addresses and the one of the default route. `own` is podspan's interface, which is never the underlay.
    #[must_use]
    pub fn find(host: &Facts, facts: &LocalFacts, own: &str, brokers: &[String]) -> Self {
        let mut interfaces: Vec<String> = if facts.underlay.is_empty() {
            let own = facts.endpoints.iter().chain(&facts.addresses);
            let holding = own.filter_map(|address| host.holding(*address));
            holding.chain(host.default_interface()).map(|interface| interface.name.clone()).collect()
        } else {
            facts.underlay.clone()
        };
        interfaces.retain(|name| name != own);
        interfaces.sort();
        interfaces.dedup();

        let present = || interfaces.iter().filter_map(|name| host.interface(name));
        let mtu = present().map(|interface| interface.mtu).min().unwrap_or(USUAL_MTU);
        let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let subnets = present()
            .flat_map(|interface| interface.addresses.iter())
            .filter(|(address, _)| !link_local(address))
            .filter_map(|(address, length)| Cidr::containing(*address, *length).ok());
        let hosts = host
            .defaults
            .iter()
            .filter_map(|route| route.gateway)
            .filter(|gateway| !link_local(gateway))
            .chain(brokers.iter().filter_map(|broker| broker_address(broker)));
        let needed = subnets.chain(hosts.map(Cidr::host)).collect();
        Self { interfaces, mtu, needed }
    }
}

/// The address in `https://ADDRESS:PORT`; none where a name stands.
fn broker_address(broker: &str) -> Option<IpAddr> {
    let (host, _port) = broker.strip_prefix("https://")?.rsplit_once(':')?;
    host.trim_matches(['[', ']']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{DefaultRoute, Interface};

    fn interface(index: u32, name: &str, mtu: u32, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|a| (a.parse().unwrap(), 24)).collect();
        Interface { index, name: name.into(), mtu, up: true, addresses }
    }

    fn host() -> Facts {
        Facts {
            interfaces: vec![
                interface(1, "lo", 65536, &["127.0.0.1"]),
                interface(2, "eth0", 1500, &["192.0.2.11", "fe80::1"]),
                interface(3, "eth1", 9000, &["198.51.100.11"]),
                interface(4, "podspan0", 1420, &["10.1.1.0"]),
            ],
            defaults: vec![DefaultRoute {
                ipv6: false,
                interface: "eth0".into(),
                gateway: Some("192.0.2.1".parse().unwrap()),
                metric: 0,
            }],
        }
    }

    fn find(underlay: &[&str], endpoints: &[&str]) -> Underlay {
        let facts = LocalFacts {
            gateway: true,
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            underlay: underlay.iter().map(|name| (*name).to_owned()).collect(),
            ..LocalFacts::new("n".parse().unwrap())
        };
        Underlay::find(
            &host(),
            &facts,
            "podspan0",
            &["https://10.99.0.2:7443".into(), "https://broker.example:7443".into()],
        )
    }

    #[test]
    fn endpoints_and_default_route_tell_the_interface() {
        let found = find(&[], &["198.51.100.11"]);
        assert_eq!((found.interfaces, found.mtu), (vec!["eth0".into(), "eth1".into()], 1500));
        let behind_nat = find(&[], &["203.0.113.1"]);
        assert_eq!(behind_nat.interfaces, ["eth0"]);
        let named = find(&["eth1"], &["192.0.2.11"]);
        assert_eq!((named.interfaces, named.mtu), (vec!["eth1".into()], 9000));
    }

    #[test]
    fn what_must_stay_reachable() {
        assert_eq!(find(&[], &[]).needed.to_string(), "10.99.0.2/32, 192.0.2.0/24, 192.0.2.1/32");
    }

    #[test]
    fn its_own_interface_is_never_the_underlay() {
        assert_eq!(
            find(&["podspan0"], &[]),
            Underlay { interfaces: vec![], mtu: 1500, ..find(&["podspan0"], &[]) }
        );
    }
}
