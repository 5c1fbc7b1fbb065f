//! What the agent wants to know of the host's network: interfaces, their MTU and addresses, default routes.

use std::io;
use std::net::IpAddr;

use super::netlink::Netlink;

/// The host's network as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The interfaces, by index.
    pub interfaces: Vec<Interface>,
    /// The default routes of the main table, best first in each family.
    pub defaults: Vec<DefaultRoute>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its addresses with their prefix lengths in bits.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Whether it is of IPv6.
    pub ipv6: bool,
    /// The interface's name.
    pub interface: String,
    /// The gateway, if it names one.
    pub gateway: Option<IpAddr>,
    /// The metric; the least wins.
    pub metric: u32,
}

impl Facts {
    /// The interface of that name.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface that holds `address`.
    #[must_use]
    pub fn holding(&self, address: IpAddr) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.addresses.iter().any(|(own, _)| *own == address))
    }

    /// The interface of the best default route: of IPv4, else of IPv6.
    #[must_use]
    pub fn default_interface(&self) -> Option<&Interface> {
        self.defaults.iter().find_map(|route| self.interface(&route.interface))
    }

    /// Only what concerns the interfaces named, and the default routes.
    #[must_use]
    pub fn of(&self, names: &[String]) -> Self {
        Self {
            interfaces: self
                .interfaces
                .iter()
                .filter(|interface| names.contains(&interface.name))
                .cloned()
                .collect(),
            defaults: self.defaults.clone(),
        }
    }
}

/// Reads the host's network in the network namespace of the calling thread. Within a Tokio runtime.
///
/// # Errors
/// If netlink fails.
pub async fn facts() -> io::Result<Facts> {
    read(&Netlink::open()?).await
}

pub(super) async fn read(netlink: &Netlink) -> io::Result<Facts> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let defaults = netlink.defaults().await?;
    let mut interfaces: Vec<Interface> = links
        .into_iter()
        .map(|link| {
            let mut own: Vec<(IpAddr, u8)> = addresses
                .iter()
                .filter(|address| address.index == link.index)
                .map(|address| (address.observed.address, address.observed.length))
                .collect();
            own.sort_unstable();
            Interface { index: link.index, name: link.name, mtu: link.mtu, up: link.up, addresses: own }
        })
        .collect();
    interfaces.sort_unstable_by_key(|interface| interface.index);
    let defaults = defaults
        .into_iter()
        .filter_map(|route| {
            let name = &interfaces.iter().find(|interface| Some(interface.index) == route.interface)?.name;
            Some(DefaultRoute {
                ipv6: route.ipv6,
                interface: name.clone(),
                gateway: route.gateway,
                metric: route.metric,
            })
        })
        .collect();
    Ok(Facts { interfaces, defaults })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_address_and_by_default_route() {
        let interface = |index, name: &str, address: &str| Interface {
            index,
            name: name.into(),
            mtu: 1500,
            up: true,
            addresses: vec![(address.parse().unwrap(), 24)],
        };
        let default = |ipv6, interface: &str, metric| DefaultRoute {
            ipv6,
            interface: interface.into(),
            gateway: None,
            metric,
        };
        let facts = Facts {
            interfaces: vec![interface(2, "eth0", "192.0.2.5"), interface(3, "eth1", "198.51.100.5")],
            defaults: vec![
                default(false, "eth1", 0),
                default(false, "eth0", 100),
                default(true, "eth0", 1024),
            ],
        };
        assert_eq!(facts.holding("192.0.2.5".parse().unwrap()).unwrap().name, "eth0");
        assert!(facts.holding("192.0.2.6".parse().unwrap()).is_none());
        assert_eq!(facts.default_interface().unwrap().name, "eth1");
        assert_eq!(facts.of(&["eth0".to_owned()]).interfaces.len(), 1);
    }
}
