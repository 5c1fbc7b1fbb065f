//! A look at every packet: does it belong on the underlay, and does it show anything of what is inside?

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podspan_wire::Cidr;

/// Bytes that must be nowhere.
#[derive(Clone, Debug)]
pub(crate) struct Needle {
    /// What it is to a person.
    pub(crate) name: String,
    /// At least four bytes; short ones are found by chance in much encrypted traffic.
    pub(crate) bytes: Vec<u8>,
}

/// What may be on the underlay.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// The subnets that the underlay owns.
    pub(crate) underlay: Vec<Cidr>,
    /// UDP ports of WireGuard.
    pub(crate) wireguard: std::ops::Range<u16>,
    pub(crate) brokers: Vec<SocketAddr>,
    pub(crate) needles: Vec<Needle>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Packets by kind. One may stand for many: what is sent with GSO is cut after it was captured.
    pub(crate) kinds: BTreeMap<&'static str, u64>,
    /// Their bytes.
    pub(crate) bytes: BTreeMap<&'static str, u64>,
    /// Packets that do not belong, the first few in words.
    pub(crate) violations: Vec<String>,
    pub(crate) violation_count: u64,
}

const MAX_VIOLATIONS: usize = 10;

impl Expected {
    /// Looks at Ethernet frames.
    pub(crate) fn inspect(&self, frames: &[&[u8]]) -> Report {
        let mut report = Report::default();
        let index = self.index();
        for frame in frames {
            match self.frame(frame) {
                Ok(kind) => {
                    *report.kinds.entry(kind).or_default() += 1;
                    *report.bytes.entry(kind).or_default() += frame.len() as u64;
                }
                Err(what) => report.violation(what),
            }
            if let Some(needle) = find(frame, &index) {
                report.violation(format!("{} is in a packet: {}", needle.name, hex(frame)));
            }
        }
        report
    }

    fn index(&self) -> HashMap<[u8; 4], Vec<&Needle>> {
        let mut index: HashMap<[u8; 4], Vec<&Needle>> = HashMap::new();
        for needle in &self.needles {
            if let Some(head) = needle.bytes.first_chunk::<4>() {
                index.entry(*head).or_default().push(needle);
            }
        }
        index
    }

    fn frame(&self, frame: &[u8]) -> Result<&'static str, String> {
        let short = || format!("a frame too short for what it says it is: {}", hex(frame));
        let kind = frame.get(12..14).ok_or_else(short)?;
        let packet = &frame[14..];
        match kind {
            [0x08, 0x06] => self.arp(packet).ok_or_else(short)?,
            [0x08, 0x00] => self.ipv4(packet).ok_or_else(short)?,
            [0x86, 0xdd] => self.ipv6(packet).ok_or_else(short)?,
            other => Err(format!("an Ethernet frame of type {other:02x?}")),
        }
    }

    fn owns(&self, address: IpAddr) -> bool {
        self.underlay.iter().any(|cidr| cidr.contains(address))
    }

    fn arp(&self, packet: &[u8]) -> Option<Result<&'static str, String>> {
        let address = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
        let (sender, target) = (address(14)?, address(24)?);
        Some(if self.owns(sender) && self.owns(target) {
            Ok("ARP")
        } else {
            Err(format!("ARP of {sender} for {target}"))
        })
    }

    fn ipv4(&self, packet: &[u8]) -> Option<Result<&'static str, String>> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let source = IpAddr::V4(Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?));
        let destination = IpAddr::V4(Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?));
        let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk::<2>()?) & 0x3fff != 0;
        if fragment {
            return Some(Err(format!("a fragment from {source} to {destination}")));
        }
        Some(self.transport(source, destination, *packet.get(9)?, packet.get(header..)?))
    }

    fn ipv6(&self, packet: &[u8]) -> Option<Result<&'static str, String>> {
        let source = IpAddr::V6(Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?));
        let destination = IpAddr::V6(Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?));
        let (mut next, mut payload) = (*packet.get(6)?, packet.get(40..)?);
        // Multicast listener reports carry a hop-by-hop header (RFC 3810 section 5).
        if next == 0 {
            let length = usize::from(*payload.get(1)?) * 8 + 8;
            (next, payload) = (*payload.first()?, payload.get(length..)?);
        }
        Some(self.transport(source, destination, next, payload))
    }

    fn transport(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        payload: &[u8],
    ) -> Result<&'static str, String> {
        const ICMP: u8 = 1;
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const ICMPV6: u8 = 58;
        let local = |address: IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified(),
        };
        let belongs = |address| self.owns(address) || local(address);
        if !belongs(source) || !belongs(destination) {
            return Err(format!("protocol {protocol} from {source} to {destination}: not the underlay's"));
        }
        let port = |at: usize| payload.get(at..)?.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
        let ports = port(0).zip(port(2));
        match (protocol, ports) {
            (ICMP | ICMPV6, _) => Ok("ICMP"),
            (UDP, Some((from, to))) if self.wireguard.contains(&from) || self.wireguard.contains(&to) => {
                let message = payload.get(8..).unwrap_or_default();
                if is_wireguard(message) {
                    return Ok("WireGuard");
                }
                Err(format!("UDP from {source} to {destination} that is not WireGuard: {}", hex(message)))
            }
            (TCP, Some((from, to))) => {
                let is_broker = |address, port| self.brokers.contains(&SocketAddr::new(address, port));
                if is_broker(source, from) || is_broker(destination, to) {
                    return Ok("broker");
                }
                Err(format!("TCP from {source} port {from} to {destination} port {to}"))
            }
            _ => Err(format!("protocol {protocol} from {source} to {destination}, ports {ports:?}")),
        }
    }
}

impl Report {
    fn violation(&mut self, what: String) {
        self.violation_count += 1;
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(what);
        }
    }

    pub(crate) fn count(&self, kind: &str) -> u64 {
        self.kinds.get(kind).copied().unwrap_or(0)
    }
}

/// Whether it has the form of a WireGuard message (WireGuard paper, section 5.4): type, three zero bytes, and
/// the length of that type.
fn is_wireguard(message: &[u8]) -> bool {
    // What leaves with one call (UDP_SEGMENT) is one frame here: messages of one size, the last may be smaller.
    let some_of = |size: usize| {
        message.split_at_checked(size).is_some_and(|(_, others)| others.is_empty() || is_wireguard(others))
    };
    match message.first_chunk::<4>() {
        Some([1, 0, 0, 0]) => some_of(148),
        Some([2, 0, 0, 0]) => some_of(92),
        Some([3, 0, 0, 0]) => some_of(64),
        // Header, counter and tag are 32 bytes. The paper pads the content to a multiple of 16, boringtun
        // does not.
        Some([4, 0, 0, 0]) => message.len() >= 32,
        _ => false,
    }
}

fn find<'a>(frame: &[u8], index: &HashMap<[u8; 4], Vec<&'a Needle>>) -> Option<&'a Needle> {
    frame.windows(4).enumerate().find_map(|(at, head)| {
        let needles = index.get(head)?;
        needles.iter().find(|needle| frame[at..].starts_with(&needle.bytes)).copied()
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(64).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        Expected {
            underlay: vec!["192.0.2.0/24".parse().unwrap(), "10.99.0.0/24".parse().unwrap()],
            wireguard: 51840..51842,
            brokers: vec!["10.99.0.2:7443".parse().unwrap()],
            needles: vec![Needle { name: "the marker".into(), bytes: b"podspan-marker".to_vec() }],
        }
    }

    fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(payload);
        frame
    }

    fn udp(from: u16, to: u16, message: &[u8]) -> Vec<u8> {
        [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 4], message].concat()
    }

    const A: [u8; 4] = [192, 0, 2, 11];
    const B: [u8; 4] = [10, 99, 0, 2];

    fn look(frame: &[u8]) -> Report {
        expected().inspect(&[frame])
    }

    #[test]
    fn wireguard_and_the_broker_belong() {
        let data = [&[4, 0, 0, 0][..], &[9; 44]].concat();
        assert_eq!(look(&ipv4(A, B, 17, &udp(51841, 9, &data))).count("WireGuard"), 1);
        assert_eq!(look(&ipv4(A, B, 6, &[0x30, 0, 0x1d, 0x13])).count("broker"), 1);
        // Two answers to handshakes that left with one call, and a keepalive behind them.
        let response = [&[2, 0, 0, 0][..], &[9; 88]].concat();
        let three = [&response[..], &response, &[4, 0, 0, 0], &[9; 28]].concat();
        for length in [92, 184, 216] {
            assert_eq!(look(&ipv4(A, B, 17, &udp(51841, 9, &three[..length]))).count("WireGuard"), 1);
        }
    }

    #[test]
    fn anything_else_is_told() {
        let data = [&[4, 0, 0, 0][..], &[9; 44]].concat();
        for (frame, what) in [
            (ipv4(A, B, 17, &udp(51842, 9, &data)), "protocol 17"),
            (ipv4(A, B, 17, &udp(51840, 9, &data[..31])), "not WireGuard"),
            (ipv4(A, B, 17, &udp(51840, 9, &[&[2, 0, 0, 0][..], &[9; 89]].concat())), "not WireGuard"),
            (ipv4(A, B, 6, &[0x30, 0, 0x1d, 0x14]), "TCP from"),
            (ipv4([10, 1, 1, 2], B, 17, &udp(51840, 9, &data)), "not the underlay's"),
            (ipv4(A, [10, 2, 1, 2], 1, &[8, 0]), "not the underlay's"),
            (vec![0; 13], "too short"),
            (ipv4(A, B, 17, &[])[..20].to_vec(), "too short"),
        ] {
            let report = look(&frame);
            assert_eq!(report.violation_count, 1, "{what}");
            assert!(report.violations[0].contains(what), "{what}: {:?}", report.violations);
        }
    }

    #[test]
    fn a_needle_is_found_wherever_it_is() {
        let data = [&[4, 0, 0, 0][..], &[9; 31], b"podspan-marker", &[9; 31]].concat();
        let report = look(&ipv4(A, B, 17, &udp(51840, 9, &data)));
        assert_eq!(report.violation_count, 1);
        assert!(report.violations[0].contains("the marker"), "{:?}", report.violations);
    }
}
