//! The probe: a small packet inside a tunnel that asks the far data plane whether it is there.
//!
//! It is an inner IPv6 packet between link-local addresses, which no route leads to and no pod has, with a
//! hop limit of 255 as a sign that nobody forwarded it (RFC 5082) and the next header 253, which is set aside
//! for experiments (RFC 4727). The tunnel seals it, so that it needs no authentication of its own. A plain
//! WireGuard peer has no allowed IP for it and drops it.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                     IPv6 header, 40 bytes                     |
//! +---------------------------------------------------------------+
//! |                        magic  "pspn"                          |
//! +---------------+---------------+-------------------------------+
//! | version (1)   | type          | flags                         |
//! +---------------+---------------+-------------------------------+
//! |                          sequence                             |
//! +-------------------------------+-------------------------------+
//! | size                          | pace                          |
//! +-------------------------------+-------------------------------+
//! |                          stamp (64 bits)                      |
//! +---------------------------------------------------------------+
//! |                        padding, zeros ...                     |
//! +---------------------------------------------------------------+
//! ```
//!
//! All numbers are big-endian. *Size* is the length in bytes of the whole inner packet: in a request its own,
//! in a reply that of the request as it came. *Pace* is how many seconds apart the sender would have probes of
//! a tunnel that nobody uses. *Stamp* is the asking side's own and comes back as it was.

use std::net::Ipv6Addr;

/// The next header of probes: "use for experimentation and testing" (RFC 3692, RFC 4727).
const NEXT_HEADER: u8 = 253;
/// Nobody on the way may have forwarded it (RFC 5082).
const HOP_LIMIT: u8 = 255;
pub(super) const MAGIC: [u8; 4] = *b"pspn";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Flag: the sender is about to go; packets had better take another way.
const DRAINING: u16 = 1;

pub(super) const IPV6: usize = 40;
/// The shortest probe, bytes: without padding.
pub(crate) const LEAST: usize = IPV6 + 24;

const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const DESTINATION: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Whether it asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To be answered.
    Request,
    /// The answer.
    Reply,
}

/// A probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) kind: Kind,
    /// The sender is about to go.
    pub(crate) draining: bool,
    /// Counts the requests of a tunnel; a reply has that of its request.
    pub(crate) sequence: u32,
    /// Length of the request as it came, bytes; see the module.
    pub(crate) size: u16,
    /// Seconds that the sender would have between probes of an idle tunnel; zero if it does not mind.
    pub(crate) pace: u16,
    /// The asking side's own.
    pub(crate) stamp: u64,
}

/// What a packet is, as far as probes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Another packet.
    NoProbe,
    /// A probe that makes no sense here: of another version or type, forwarded, or cut off.
    Bad,
    /// A probe.
    Probe(Probe),
}

/// The header of all that data planes say to each other, with `length` bytes behind it.
pub(super) fn header(length: usize) -> [u8; IPV6] {
    let mut header = [0; IPV6];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    header[6] = NEXT_HEADER;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&SOURCE.octets());
    header[24..40].copy_from_slice(&DESTINATION.octets());
    header
}

/// What stands behind such a header; `None` if it is none, was forwarded, or says more than there is.
pub(super) fn body(packet: &[u8]) -> Option<&[u8]> {
    let header = packet.first_chunk::<IPV6>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let is_one = header[0] >> 4 == 6 && header[6] == NEXT_HEADER && header[7] == HOP_LIMIT;
    packet.get(IPV6..IPV6 + length).filter(|_| is_one)
}

impl Probe {
    /// Looks whether `packet` is a probe. Cheap for what is none.
    pub(crate) fn read(packet: &[u8]) -> Read {
        let Some(header) = packet.first_chunk::<IPV6>() else { return Read::NoProbe };
        let link_local = |at: usize| header[at] == 0xfe && header[at + 1] & 0xc0 == 0x80;
        if header[6] != NEXT_HEADER || header[0] >> 4 != 6 || !link_local(8) || !link_local(24) {
            return Read::NoProbe;
        }
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let Some(body) = packet.get(IPV6..IPV6 + payload).and_then(|body| body.first_chunk::<24>()) else {
            return Read::Bad;
        };
        let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let kind = match body[5] {
            REQUEST => Kind::Request,
            REPLY => Kind::Reply,
            _ => return Read::Bad,
        };
        if header[7] != HOP_LIMIT || body[..4] != MAGIC || body[4] != VERSION {
            return Read::Bad;
        }
        let (mut sequence, mut stamp) = ([0; 4], [0; 8]);
        sequence.copy_from_slice(&body[8..12]);
        stamp.copy_from_slice(&body[16..24]);
        Read::Probe(Self {
            kind,
            draining: word(6) & DRAINING != 0,
            sequence: u32::from_be_bytes(sequence),
            // What was received counts, not what the sender says of it.
            size: if kind == Kind::Request { (IPV6 + payload) as u16 } else { word(12) },
            pace: word(14),
            stamp: u64::from_be_bytes(stamp),
        })
    }

    /// The reply to this request.
    pub(crate) fn reply(&self, draining: bool, pace: u16) -> Self {
        Self { kind: Kind::Reply, draining, pace, ..*self }
    }

    /// The packet, without padding.
    pub(crate) fn write(&self) -> [u8; LEAST] {
        let mut packet = [0; LEAST];
        packet[..IPV6].copy_from_slice(&header(LEAST - IPV6));
        packet[40..44].copy_from_slice(&MAGIC);
        packet[44] = VERSION;
        packet[45] = match self.kind {
            Kind::Request => REQUEST,
            Kind::Reply => REPLY,
        };
        packet[46..48].copy_from_slice(&if self.draining { DRAINING } else { 0 }.to_be_bytes());
        packet[48..52].copy_from_slice(&self.sequence.to_be_bytes());
        packet[52..54].copy_from_slice(&self.size.to_be_bytes());
        packet[54..56].copy_from_slice(&self.pace.to_be_bytes());
        packet[56..64].copy_from_slice(&self.stamp.to_be_bytes());
        packet
    }

    /// The packet, padded to [`Self::size`] bytes.
    pub(crate) fn padded(&self) -> Vec<u8> {
        let length = usize::from(self.size).max(LEAST);
        let mut packet = self.write().to_vec();
        packet.resize(length, 0);
        packet[..IPV6].copy_from_slice(&header(length - IPV6));
        packet
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::packet::{Header, is_forwardable};

    const REQUEST_PROBE: Probe = Probe {
        kind: Kind::Request,
        draining: true,
        sequence: 0x0102_0304,
        size: LEAST as u16,
        pace: 5,
        stamp: 0x1122_3344_5566_7788,
    };

    /// The format stands: nodes of different versions talk to each other.
    #[test]
    fn the_bytes_of_a_probe() {
        let hex: String = REQUEST_PROBE.write().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "600000000018fdfffe800000000000000000000000000001fe800000000000000000000000000002\
             7073706e01010001010203040040000511223344556677 88"
                .replace(' ', "")
        );
    }

    #[test]
    fn it_is_read_as_it_was_written_and_answered_with_the_size_that_came() {
        assert_eq!(Probe::read(&REQUEST_PROBE.write()), Read::Probe(REQUEST_PROBE));
        let padded = Probe { size: 1400, ..REQUEST_PROBE }.padded();
        assert_eq!(padded.len(), 1400);
        let Read::Probe(request) = Probe::read(&padded) else { panic!("not read") };
        assert_eq!(request.size, 1400);
        let reply = request.reply(false, 25);
        assert_eq!((reply.size, reply.pace, reply.draining), (1400, 25, false));
        assert_eq!((reply.sequence, reply.stamp), (request.sequence, request.stamp));
        assert_eq!(Probe::read(&reply.write()), Read::Probe(reply));
    }

    #[test]
    fn no_pod_can_send_one_into_a_tunnel() {
        let header = Header::parse(&REQUEST_PROBE.write()).unwrap();
        assert!(!is_forwardable(header.destination) && !is_forwardable(header.source));
    }

    #[test]
    fn what_makes_no_sense_is_bad_and_what_is_no_probe_is_left_alone() {
        let with = |at: usize, byte: u8| {
            let mut packet = REQUEST_PROBE.write();
            packet[at] = byte;
            Probe::read(&packet)
        };
        for (at, byte) in [(7, 254), (40, b'x'), (44, 2), (45, 3), (45, 0), (5, 200), (5, 3)] {
            assert_eq!(with(at, byte), Read::Bad, "{at}");
        }
        for (at, byte) in [(0, 0x45), (6, 17), (8, 0xfd), (24, 0xfd), (9, 0xc0)] {
            assert_eq!(with(at, byte), Read::NoProbe, "{at}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..100), keep in 0_usize..64) {
            Probe::read(&bytes);
            let probe = REQUEST_PROBE.write();
            let n = keep.min(bytes.len());
            bytes[..n].copy_from_slice(&probe[..n]);
            Probe::read(&bytes);
        }
    }
}
