//! The cable between the two namespaces, and the addresses inside and outside of the tunnel.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::command::Cmd;
use crate::netns::Netns;

/// The underlay's address of an end, 1 or 2.
pub(crate) fn outer(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// The address of an end inside the tunnel.
pub(crate) fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200 + number, 0, 1)
}

/// The IPv6 address of an end inside the tunnel.
pub(crate) fn inner_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x200 + u16::from(number), 0, 0, 0, 0, 0, 1)
}

/// Joins the two namespaces by a veth, `eth0` in both, with an MTU of 1500.
pub(crate) fn wire(ends: [&Netns; 2]) -> Result<()> {
    let ip = |netns: &Netns, words: &str| Cmd::new("ip").args(words.split(' ')).within(netns).run_ok();
    let peer = ends[1].name();
    ip(ends[0], &format!("link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns {peer}"))?;
    for (number, netns) in [1, 2].into_iter().zip(ends) {
        ip(netns, &format!("address add {}/24 dev eth0", outer(number)))?;
        ip(netns, "link set eth0 up")?;
    }
    Ok(())
}
