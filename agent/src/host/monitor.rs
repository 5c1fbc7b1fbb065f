//! Hears what others change: two netlink sockets, read raw, each message sorted by a pure function.
//!
//! The messages only say that something of interest may have changed; what stands is then read back whole.
//! So nothing here needs to be complete: a socket that overran (ENOBUFS) counts as "anything may have changed".

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// Groups of rtnetlink (`linux/rtnetlink.h`): link, IPv4 and IPv6 addresses, routes, rules and netconf
/// (changes of forwarding and `rp_filter`).
const ROUTE_GROUPS: [u32; 9] = [1, 5, 7, 8, 9, 11, 19, 24, 25];
/// `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const NFT_GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of the message type.
const NFT_SUBSYSTEM: u16 = 10;
/// `NFT_MSG_NEWGEN`: ends every transaction and says nothing about whose it was.
const NFT_NEW_GENERATION: u16 = 15;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNETCONF: u16 = 80;

const IFLA_IFNAME: u16 = 3;
const FRA_PROTOCOL: u16 = 21;
const NETCONFA_IFINDEX: u16 = 1;

/// Room for a burst of a busy host: kube-proxy rewrites thousands of rules in one transaction.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dirty {
    /// Links, addresses, routes, rules or sysctls of podspan's.
    pub(super) kernel: bool,
    /// The nftables table of podspan's name.
    pub(super) nft: bool,
    /// The underlay: its MTU, addresses or the default route.
    pub(super) underlay: bool,
}

impl Dirty {
    /// Everything.
    pub(super) const ALL: Self = Self { kernel: true, nft: true, underlay: true };

    /// Whether there is anything to do.
    pub(super) fn any(self) -> bool {
        self.kernel || self.nft || self.underlay
    }

    /// Both together.
    pub(super) fn merge(&mut self, other: Self) {
        self.kernel |= other.kernel;
        self.nft |= other.nft;
        self.underlay |= other.underlay;
    }
}

/// What to listen for.
#[derive(Clone, Debug, Default)]
pub(super) struct Interest {
    /// The interface's name and, once known, its index.
    pub(super) interface: String,
    pub(super) index: Option<u32>,
    /// The same of the underlay's interfaces; none while the underlay is not known, when any may be it.
    pub(super) underlay: Vec<(String, u32)>,
}

/// The two sockets.
pub(super) struct Monitor {
    route: TokioSocket,
    nft: TokioSocket,
    /// Whether the last read failed, other than by an overrun.
    failed: bool,
}

impl Monitor {
    /// Subscribes, in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut route = TokioSocket::new(NETLINK_ROUTE)?;
        let mut nft = TokioSocket::new(NETLINK_NETFILTER)?;
        for socket in [&mut route, &mut nft] {
            // A smaller buffer than asked for only means more full comparisons.
            let _ = socket.socket_ref().set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX));
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        }
        for group in ROUTE_GROUPS {
            route.socket_mut().add_membership(group)?;
        }
        nft.socket_mut().add_membership(NFT_GROUP)?;
        Ok(Self { route, nft, failed: false })
    }

    /// Waits for the next message that is of interest. Nothing is lost if this future is dropped early.
    pub(super) async fn next(&mut self, interest: &Interest) -> Dirty {
        if self.failed {
            // A socket that fails for good must not spin.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            self.failed = false;
        }
        loop {
            let received = tokio::select! {
                received = self.route.recv_from_full() => received,
                received = self.nft.recv_from_full() => received,
            };
            let dirty = match received {
                Ok((datagram, _)) => sort(&datagram, interest),
                Err(error) => {
                    // ENOBUFS: the kernel dropped messages. Any other error is as good a reason to look at
                    // everything.
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        tracing::warn!(%error, "netlink monitor failed; comparing everything");
                        self.failed = true;
                    }
                    Dirty::ALL
                }
            };
            if dirty.any() {
                return dirty;
            }
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The value of the first attribute of `kind` (type, length and padding as in `netlink(7)`).
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    /// `NLA_TYPE_MASK`: the two upper bits are flags.
    const TYPE: u16 = 0x3fff;
    loop {
        let length = usize::from(u16_at(bytes, 0)?);
        if u16_at(bytes, 2)? & TYPE == kind {
            return bytes.get(4..length);
        }
        if length < 4 {
            return None;
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// What the messages of one datagram say to podspan. What cannot be read says "anything".
fn sort(datagram: &[u8], interest: &Interest) -> Dirty {
    let mut dirty = Dirty::default();
    let mut rest = datagram;
    while rest.len() >= 16 {
        let Some(length) =
            u32_at(rest, 0).map(|length| length as usize).filter(|l| *l >= 16 && *l <= rest.len())
        else {
            return Dirty::ALL;
        };
        let Some(kind) = u16_at(rest, 4) else { return Dirty::ALL };
        dirty.merge(sort_one(kind, &rest[16..length], interest));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    dirty
}

fn sort_one(kind: u16, payload: &[u8], interest: &Interest) -> Dirty {
    let own = |index: Option<u32>| index.is_some() && index == interest.index;
    let underlay = |index: Option<u32>| {
        interest.underlay.iter().any(|(_, other)| Some(*other) == index)
            || (interest.underlay.is_empty() && index != interest.index)
    };
    match kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let index = u32_at(payload, 4);
            let name = payload.get(16..).and_then(|attributes| attribute(attributes, IFLA_IFNAME)).map(text);
            let named = |other: &str| name == Some(other.as_bytes());
            Dirty {
                // By name too: the data plane may have made the interface anew.
                kernel: own(index) || named(&interest.interface),
                nft: false,
                underlay: underlay(index) || interest.underlay.iter().any(|(other, _)| named(other)),
            }
        }
        RTM_NEWADDR | RTM_DELADDR => {
            let index = u32_at(payload, 4);
            Dirty { kernel: own(index), nft: false, underlay: underlay(index) }
        }
        RTM_NEWROUTE | RTM_DELROUTE => Dirty {
            kernel: payload.get(5) == Some(&super::PROTOCOL),
            nft: false,
            underlay: payload.get(1) == Some(&0),
        },
        RTM_NEWRULE | RTM_DELRULE => {
            let protocol = payload.get(12..).and_then(|attributes| attribute(attributes, FRA_PROTOCOL));
            Dirty {
                kernel: protocol.is_none_or(|protocol| protocol == [super::PROTOCOL]),
                ..Dirty::default()
            }
        }
        RTM_NEWNETCONF => {
            let index = payload
                .get(4..)
                .and_then(|attributes| attribute(attributes, NETCONFA_IFINDEX)?.try_into().ok());
            // Minus one stands for "all", minus two for "default".
            let index = index.map(i32::from_ne_bytes);
            let known = index.and_then(|index| u32::try_from(index).ok());
            let kernel = index.is_none_or(|index| index < 0)
                || own(known)
                || (!interest.underlay.is_empty() && underlay(known));
            Dirty { kernel, ..Dirty::default() }
        }
        _ if kind >> 8 == NFT_SUBSYSTEM && kind & 0xff != NFT_NEW_GENERATION => {
            // Tables, chains, rules, sets and elements all name their table in attribute 1.
            let table = payload.get(4..).and_then(|attributes| attribute(attributes, 1)).map(text);
            Dirty { nft: table.is_none_or(|table| table == b"podspan"), ..Dirty::default() }
        }
        _ => Dirty::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(16 + payload.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn interest() -> Interest {
        Interest { interface: "podspan0".into(), index: Some(7), underlay: vec![("eth0".into(), 2)] }
    }

    fn ifaddr(index: u32) -> Vec<u8> {
        let mut payload = vec![2, 32, 0, 0];
        payload.extend(index.to_ne_bytes());
        payload
    }

    #[test]
    fn messages_are_sorted_by_what_they_are_about() {
        let kernel = Dirty { kernel: true, ..Dirty::default() };
        let nft = Dirty { nft: true, ..Dirty::default() };
        let underlay = Dirty { underlay: true, ..Dirty::default() };
        let none = Dirty::default();
        let link = |index: u32, name: &str| {
            let mut payload = vec![0; 4];
            payload.extend(index.to_ne_bytes());
            payload.extend([0; 8]);
            payload.extend(nla(1, &[1, 2, 3, 4, 5, 6]));
            payload.extend(nla(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat()));
            payload
        };
        let route = |length: u8, protocol: u8| vec![2, length, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0];
        let rule = |protocol: u8| [vec![0; 12], nla(FRA_PROTOCOL, &[protocol])].concat();
        let netconf = |index: i32| [vec![2, 0, 0, 0], nla(NETCONFA_IFINDEX, &index.to_ne_bytes())].concat();
        let table = |name: &str| [vec![1, 0, 0, 0], nla(1, &[name.as_bytes(), &[0]].concat())].concat();
        for (what, kind, payload, expected) in [
            ("own link by index", RTM_DELLINK, link(7, "renamed"), kernel),
            ("own link made anew", RTM_NEWLINK, link(99, "podspan0"), kernel),
            ("underlay link", RTM_NEWLINK, link(2, "eth0"), underlay),
            ("a pod's link", RTM_NEWLINK, link(50, "veth50"), none),
            ("own address", RTM_DELADDR, ifaddr(7), kernel),
            ("underlay address", RTM_NEWADDR, ifaddr(2), underlay),
            ("a pod's address", RTM_NEWADDR, ifaddr(50), none),
            ("own route", RTM_DELROUTE, route(24, crate::host::PROTOCOL), kernel),
            ("a route of bird's", RTM_NEWROUTE, route(24, 12), none),
            ("the default route", RTM_DELROUTE, route(0, 3), underlay),
            ("own rule", RTM_DELRULE, rule(crate::host::PROTOCOL), kernel),
            ("another's rule", RTM_DELRULE, rule(3), none),
            ("sysctl of all", RTM_NEWNETCONF, netconf(-1), kernel),
            ("sysctl of a pod's link", RTM_NEWNETCONF, netconf(50), none),
            ("own nft table", NFT_SUBSYSTEM << 8 | 2, table("podspan"), nft),
            ("kube-proxy's table", NFT_SUBSYSTEM << 8 | 6, table("kube-proxy"), none),
            ("generation", NFT_SUBSYSTEM << 8 | NFT_NEW_GENERATION, nla(1, &[0; 4]), none),
        ] {
            assert_eq!(sort(&message(kind, &payload), &interest()), expected, "{what}");
        }
    }

    #[test]
    fn several_messages_in_one_datagram_all_count() {
        let mut datagram = message(RTM_NEWADDR, &ifaddr(2));
        datagram.extend(message(RTM_DELADDR, &ifaddr(7)));
        assert_eq!(sort(&datagram, &interest()), Dirty { kernel: true, nft: false, underlay: true });
    }

    #[test]
    fn broken_messages_do_not_panic() {
        let mut whole = message(RTM_NEWLINK, &[vec![0; 16], nla(IFLA_IFNAME, b"podspan0\0")].concat());
        for length in 0..whole.len() {
            let _ = sort(&whole[..length], &interest());
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 0xff] {
                let kept = std::mem::replace(&mut whole[at], value);
                let _ = sort(&whole, &interest());
                whole[at] = kept;
            }
        }
    }
}
