//! Reading the headers of inner packets: no more of them than the way of a packet depends on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rendezvous::fold;

/// How many IPv6 extension headers are looked behind for the ports; more than any honest packet has.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// An inner packet whose lengths agree with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Length by the IP header, bytes; what follows in the buffer is padding.
    pub(crate) length: usize,
    /// Whether it may not be fragmented: all of IPv6, and IPv4 with "don't fragment".
    pub(crate) firm: bool,
    /// The transport protocol, as far as it was found.
    protocol: u8,
    /// Source and destination port; zero for what has none and for every fragment, since only the first
    /// one would carry them and all must take one way.
    ports: u32,
}

impl Header {
    /// Reads the headers of `packet`; `None` if it is no IP packet (RFC 791, RFC 8200) or shorter than it
    /// says.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let fixed = packet.first_chunk::<20>()?;
        let header = usize::from(fixed[0] & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header < 20 || length < header || packet.len() < length {
            return None;
        }
        let more_or_offset = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff;
        let protocol = fixed[9];
        let payload = if more_or_offset == 0 { &packet[header..length] } else { &[] };
        Some(Self {
            source: Ipv4Addr::from([fixed[12], fixed[13], fixed[14], fixed[15]]).into(),
            destination: Ipv4Addr::from([fixed[16], fixed[17], fixed[18], fixed[19]]).into(),
            length,
            firm: fixed[6] & 0x40 != 0,
            protocol,
            ports: ports(protocol, payload),
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let fixed = packet.first_chunk::<40>()?;
        let length = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if packet.len() < length {
            return None;
        }
        let address = |at: usize| -> Option<IpAddr> {
            Some(Ipv6Addr::from(*fixed.get(at..)?.first_chunk::<16>()?).into())
        };
        let (protocol, payload) = transport(fixed[6], &packet[40..length]);
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            length,
            firm: true,
            protocol,
            ports: ports(protocol, payload),
        })
    }

    /// A number for the packet's flow: the 5-tuple of TCP and UDP, addresses and protocol of all else and
    /// of fragments. The same on every node, for ever.
    pub(crate) fn flow(&self) -> u64 {
        let hash = fold(0, u64::from(self.ports) << 8 | u64::from(self.protocol));
        address_words(self.destination).into_iter().chain(address_words(self.source)).fold(hash, fold)
    }
}

fn address_words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, u64::from(u32::from(v4))],
        IpAddr::V6(v6) => [(u128::from(v6) >> 64) as u64, u128::from(v6) as u64],
    }
}

fn ports(protocol: u8, payload: &[u8]) -> u32 {
    match payload.first_chunk::<4>() {
        Some(&ports) if protocol == TCP || protocol == UDP => u32::from_be_bytes(ports),
        _ => 0,
    }
}

/// Steps over extension headers (RFC 8200 section 4). Malformed ones end the search: what the packet is
/// worth, its receiver decides.
fn transport(mut next: u8, mut rest: &[u8]) -> (u8, &[u8]) {
    for _ in 0..MAX_EXTENSIONS {
        match (next, rest) {
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, &[after, length, ..]) => {
                let Some(behind) = rest.get((usize::from(length) + 1) * 8..) else { break };
                (next, rest) = (after, behind);
            }
            // All fragments of a packet, and no others, have this header with the same next header.
            (FRAGMENT, &[after, _, high, low, ..]) => {
                if u16::from_be_bytes([high, low]) & 0xfff9 != 0 {
                    return (after, &[]);
                }
                let Some(behind) = rest.get(8..) else { break };
                (next, rest) = (after, behind);
            }
            _ => break,
        }
    }
    (next, rest)
}

/// Whether a packet to `destination` may cross a tunnel: only unicast beyond the link may.
pub(crate) fn is_forwardable(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => {
            !(v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local()
                || v4.is_loopback()
                || v4.octets()[0] == 0)
        }
        IpAddr::V6(v6) => {
            !(v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.is_loopback()
                || v6.is_unspecified()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let length = (20 + payload.len()) as u16;
        let mut packet = vec![0x45, 0];
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[0, 1]);
        packet.extend_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(&[64, protocol, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3]);
        packet.extend_from_slice(payload);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[next, 64]);
        packet.extend_from_slice(&"fd00:1::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&"fd00:2::3".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(payload);
        packet
    }

    const PORTS: [u8; 8] = [0x12, 0x34, 0, 80, 0, 8, 0, 0];

    #[test]
    fn v4_headers() {
        let header = Header::parse(&v4(UDP, 0, &PORTS)).unwrap();
        assert_eq!(header.source.to_string(), "10.1.0.2");
        assert_eq!(header.destination.to_string(), "10.2.0.3");
        assert_eq!((header.length, header.ports), (28, 0x1234_0050));
        // DF is not a fragment; MF and an offset are.
        assert_eq!(Header::parse(&v4(UDP, 0x4000, &PORTS)).unwrap().ports, 0x1234_0050);
        assert!(Header::parse(&v4(UDP, 0x4000, &PORTS)).unwrap().firm && !header.firm);
        assert_eq!(Header::parse(&v4(UDP, 0x2000, &PORTS)).unwrap().ports, 0);
        assert_eq!(Header::parse(&v4(UDP, 0x0005, &PORTS)).unwrap().ports, 0);
        assert_eq!(Header::parse(&v4(1, 0, &PORTS)).unwrap().ports, 0);
        let mut padded = v4(UDP, 0, &PORTS);
        padded.extend_from_slice(&[0; 12]);
        assert_eq!(Header::parse(&padded).unwrap().length, 28);
    }

    #[test]
    fn v6_headers() {
        let header = Header::parse(&v6(TCP, &PORTS)).unwrap();
        assert_eq!(header.destination.to_string(), "fd00:2::3");
        assert_eq!((header.length, header.ports), (48, 0x1234_0050));
        let mut extended = vec![DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0, TCP, 0, 1, 4, 0, 0, 0, 0];
        extended.extend_from_slice(&PORTS);
        assert_eq!(Header::parse(&v6(HOP_BY_HOP, &extended)).unwrap().ports, 0x1234_0050);
    }

    #[test]
    fn all_fragments_of_a_v6_packet_are_one_flow() {
        let fragment = |offset_and_more: u16, payload: &[u8]| {
            let mut extension = vec![UDP, 0];
            extension.extend_from_slice(&offset_and_more.to_be_bytes());
            extension.extend_from_slice(&[0, 0, 0, 9]);
            extension.extend_from_slice(payload);
            Header::parse(&v6(FRAGMENT, &extension)).unwrap()
        };
        let (first, last) = (fragment(1, &PORTS), fragment(0x0100, b"whatever"));
        assert_eq!(first.ports, 0);
        assert_eq!(first.flow(), last.flow());
        // An atomic fragment (RFC 6946) is a whole packet.
        assert_eq!(fragment(0, &PORTS).ports, 0x1234_0050);
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let whole = v4(UDP, 0, &PORTS);
        for cut in 0..whole.len() {
            assert_eq!(Header::parse(&whole[..cut]), None, "{cut}");
        }
        let whole = v6(UDP, &PORTS);
        for cut in 0..whole.len() {
            assert_eq!(Header::parse(&whole[..cut]), None, "{cut}");
        }
        let mut short_header = v4(UDP, 0, &PORTS);
        short_header[0] = 0x44;
        assert_eq!(Header::parse(&short_header), None);
        let mut longer_than_itself = v4(UDP, 0, &PORTS);
        longer_than_itself[0] = 0x4f;
        assert_eq!(Header::parse(&longer_than_itself), None);
        assert_eq!(Header::parse(&[0x50; 60]), None);
    }

    #[test]
    fn what_may_cross_a_tunnel() {
        for good in ["10.1.0.2", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert!(is_forwardable(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "224.0.0.1",
            "255.255.255.255",
            "169.254.169.254",
            "127.0.0.1",
            "0.0.0.0",
            "ff02::1",
            "fe80::1",
            "::1",
            "::",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_forwardable(bad.parse().unwrap()), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_never_says_more_than_there_is(mut bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0u8..16) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | (*first & 0xf);
            }
            if let Some(header) = Header::parse(&bytes) {
                prop_assert!(header.length <= bytes.len());
                header.flow();
            }
        }
    }
}
