//! What stands in a pod's namespace, read back from the kernel.

use std::net::IpAddr;

use netlink_packet_core::{NlasIterator, Parseable as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressMessage, AddressScope};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
};
use nix::errno::Errno;
use podspan_wire::Cidr;

use super::{PROTOCOL, PodRoute, RouteError};
use crate::netlink::Netlink;

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
/// Bytes of `struct ifinfomsg`; the index stands at offset 4.
const IFINFOMSG: usize = 16;

/// The facts about one interface of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The interface's index.
    pub(super) index: u32,
    /// The interface's MTU, bytes.
    pub(super) link_mtu: u32,
    /// Whether the interface has an address beyond its own link, of IPv4 and of IPv6.
    pub(super) ipv4: bool,
    /// See `ipv4`.
    pub(super) ipv6: bool,
    /// The gateways of the interface's own default routes.
    pub(super) default_gateways: Vec<IpAddr>,
    /// podspan's routes on the interface, sorted.
    pub(super) ours: Vec<PodRoute>,
    /// Destination and metric of everybody else's routes, and of podspan's on other interfaces.
    pub(super) others: Vec<(Cidr, u32)>,
}

impl Facts {
    pub(super) fn read(netlink: &mut Netlink, interface: &str) -> Result<Self, RouteError> {
        let (index, link_mtu) = link(netlink, interface)?;
        let mut facts = Self { index, link_mtu, ..Self::default() };
        facts.read_addresses(netlink)?;
        facts.read_routes(netlink)?;
        facts.ours.sort_unstable();
        Ok(facts)
    }

    fn read_addresses(&mut self, netlink: &mut Netlink) -> Result<(), RouteError> {
        // An all-zero `ifaddrmsg` asks for both families.
        let messages = netlink
            .dump(RTM_GETADDR, &[0; 8], |_| true)
            .map_err(|source| RouteError::Kernel { doing: "cannot read the pod's addresses", source })?;
        for message in messages {
            let Ok(message) = AddressMessage::parse(message.as_slice()) else { continue };
            if message.header.index != self.index || message.header.scope != AddressScope::Universe {
                continue;
            }
            match message.header.family {
                AddressFamily::Inet => self.ipv4 = true,
                AddressFamily::Inet6 => self.ipv6 = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_routes(&mut self, netlink: &mut Netlink) -> Result<(), RouteError> {
        // `rtmsg`: the table is the fifth byte. An all-zero request asks for both families.
        let main = |message: &[u8]| message.get(4) == Some(&RouteHeader::RT_TABLE_MAIN);
        let messages = netlink
            .dump(RTM_GETROUTE, &[0; 12], main)
            .map_err(|source| RouteError::Kernel { doing: "cannot read the pod's routes", source })?;
        for message in messages {
            // What cannot be read uses something that podspan never writes.
            if let Ok(message) = RouteMessage::parse(message.as_slice()) {
                self.take(&message);
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &RouteMessage) {
        let unspecified: IpAddr = match message.header.address_family {
            AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
            _ => return,
        };
        // Clones are the kernel's own memory of path MTUs and redirects.
        if message.header.flags.contains(RouteFlags::Cloned) {
            return;
        }
        let (mut address, mut gateway, mut oif, mut mtu, mut metric) = (unspecified, None, None, None, 0);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => address = ip(to).unwrap_or(unspecified),
                RouteAttribute::Gateway(via) => gateway = ip(via),
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let length = message.header.destination_prefix_length;
        let Ok(cidr) = Cidr::containing(address, length) else { return };
        let on_interface = oif == Some(self.index);
        if on_interface && u8::from(message.header.protocol) == PROTOCOL {
            self.ours.push(PodRoute { cidr, gateway, mtu, metric });
            return;
        }
        if on_interface && length == 0 {
            self.default_gateways.extend(gateway);
        }
        self.others.push((cidr, metric));
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// Index and MTU of the interface of this name.
fn link(netlink: &mut Netlink, interface: &str) -> Result<(u32, u32), RouteError> {
    let missing = || RouteError::NoInterface { interface: interface.to_owned() };
    let failed = |source| RouteError::Kernel { doing: "cannot look the pod's interface up", source };
    let mut request = vec![0; IFINFOMSG];
    let length = u16::try_from(4 + interface.len() + 1).map_err(|_| missing())?;
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&IFLA_IFNAME.to_ne_bytes());
    request.extend_from_slice(interface.as_bytes());
    request.push(0);
    request.resize(request.len().next_multiple_of(4), 0);
    let answer = netlink.get(RTM_GETLINK, &request).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENODEV | Errno::EINVAL | Errno::ERANGE) => missing(),
            _ => failed(error),
        }
    })?;
    let word = |bytes: Option<&[u8]>| bytes.and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let index = word(answer.get(4..8)).ok_or_else(missing)?;
    let mtu = NlasIterator::new(answer.get(IFINFOMSG..).unwrap_or_default())
        .flatten()
        .find(|attribute| attribute.kind() == IFLA_MTU)
        .and_then(|attribute| word(Some(attribute.value())))
        .ok_or_else(missing)?;
    Ok((index, mtu))
}
