//! What the sender of a packet is told that cannot be passed on: that every gateway of the cluster is dead, or
//! that the packet is too large.

use std::net::IpAddr;
use std::time::Duration;

use super::Time;
use super::packet::{Header, is_forwardable};
use crate::offload::checksum::Sum;

/// Messages are given out of a store of so many, which fills by one in so long (RFC 1812 section 4.3.2.8,
/// RFC 4443 section 2.4 f): a storm of packets does not become one of messages.
const STORE: u32 = 100;
const EVERY: Duration = Duration::from_millis(2);

/// The longest message, bytes (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c).
const MOST_V4: usize = 576;
const MOST_V6: usize = 1280;
/// Room that [`write`] needs, bytes.
pub(crate) const MOST: usize = MOST_V6;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOPS: u8 = 64;

/// How many more messages may be sent.
#[derive(Debug, Default)]
pub(crate) struct Limit(Time);

impl Limit {
    /// Takes one out of the store, if there is one.
    pub(crate) fn take(&mut self, now: Time) -> bool {
        let store = now.since(self.0).min(EVERY * STORE);
        if store < EVERY {
            return false;
        }
        self.0 = Time::from_micros(now.as_micros().saturating_sub((store - EVERY).as_micros() as u64));
        true
    }
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Nobody is there: ICMP "host unreachable" (RFC 792), ICMPv6 "address unreachable" (RFC 4443 section 3.1).
    Unreachable,
    /// It may have so many bytes at most: ICMP "fragmentation needed" (RFC 792, RFC 1191 section 4), ICMPv6
    /// "packet too big" (RFC 4443 section 3.2).
    TooBig(u16),
}

/// Writes to `out`, of at least [`MOST`] bytes, what is wrong with `packet`. Returns the message's length;
/// `None` where there must be none (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
///
/// It comes from the destination itself: an address that the way back to leads into the tunnel, as reverse
/// path filters want it, which no address of this node does.
pub(crate) fn write(why: Why, header: &Header, packet: &[u8], out: &mut [u8]) -> Option<usize> {
    if !is_forwardable(header.source) || is_error(packet) {
        return None;
    }
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // Only the first fragment is told of.
            if u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0 {
                return None;
            }
            let quoted = packet.len().min(MOST_V4 - 28);
            let length = 28 + quoted;
            let out = out.get_mut(..length)?;
            out[..28].fill(0);
            out[0] = 0x45;
            // Internetwork control (RFC 1812 section 4.3.2.5).
            out[1] = 0xc0;
            out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            out[6] = 0x40;
            out[8] = HOPS;
            out[9] = ICMP;
            out[12..16].copy_from_slice(&destination.octets());
            out[16..20].copy_from_slice(&source.octets());
            let sum = Sum::of(&out[..20]).finish();
            out[10..12].copy_from_slice(&sum);
            match why {
                Why::Unreachable => (out[20], out[21]) = (3, 1),
                Why::TooBig(mtu) => {
                    (out[20], out[21]) = (3, 4);
                    out[26..28].copy_from_slice(&mtu.to_be_bytes());
                }
            }
            out[28..].copy_from_slice(&packet[..quoted]);
            let sum = Sum::of(&out[20..]).finish();
            out[22..24].copy_from_slice(&sum);
            Some(length)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let quoted = packet.len().min(MOST_V6 - 48);
            let length = 48 + quoted;
            let out = out.get_mut(..length)?;
            out[..48].fill(0);
            out[0] = 0x60;
            // For the checksum, the header reads like the pseudo-header (RFC 8200 section 8.1): a length, then
            // the next header, the addresses.
            out[4..6].copy_from_slice(&((8 + quoted) as u16).to_be_bytes());
            out[7] = ICMPV6;
            out[8..24].copy_from_slice(&destination.octets());
            out[24..40].copy_from_slice(&source.octets());
            match why {
                Why::Unreachable => (out[40], out[41]) = (1, 3),
                Why::TooBig(mtu) => {
                    out[40] = 2;
                    out[46..48].copy_from_slice(&mtu.to_be_bytes());
                }
            }
            out[48..].copy_from_slice(&packet[..quoted]);
            let sum = Sum::of(&out[4..]).finish();
            out[42..44].copy_from_slice(&sum);
            (out[6], out[7]) = (ICMPV6, HOPS);
            Some(length)
        }
        _ => None,
    }
}

/// Whether `packet` is itself a message of an error, as far as its first headers tell.
fn is_error(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            packet[9] == ICMP && packet.get(header).is_none_or(|kind| !matches!(kind, 0 | 8 | 13 | 14))
        }
        _ => packet[6] == ICMPV6 && packet.get(40).is_none_or(|kind| kind & 0x80 == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
        packet.extend_from_slice(&[0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3]);
        packet.extend_from_slice(payload);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[next, 64]);
        for address in ["fd00:1::2", "fd00:2::3"] {
            packet.extend_from_slice(&address.parse::<std::net::Ipv6Addr>().unwrap().octets());
        }
        packet.extend_from_slice(payload);
        packet
    }

    fn told(packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0xaa; MOST_V6];
        let length = write(Why::Unreachable, &Header::parse(packet).unwrap(), packet, &mut out)?;
        out.truncate(length);
        Some(out)
    }

    #[test]
    fn who_sends_too_much_is_told_the_size() {
        for (packet, at, kind) in [(v4(17, &[7; 1500]), 20, [3, 4]), (v6(17, &[7; 1500]), 40, [2, 0])] {
            let mut out = vec![0xaa; MOST];
            let length =
                write(Why::TooBig(1390), &Header::parse(&packet).unwrap(), &packet, &mut out).unwrap();
            assert_eq!(out[at..at + 2], kind);
            assert_eq!(out[at + 4..at + 8], [0, 0, 5, 110]);
            let mut sum = Sum::of(&out[at..length]);
            if at == 40 {
                let pseudo = Sum::of(&out[8..40]).and(Sum::of_u16((length - 40) as u16));
                sum = sum.and(pseudo).and(Sum::of_u16(58));
            }
            assert_eq!(sum.finish(), [0; 2]);
        }
    }

    #[test]
    fn the_sender_is_told_in_both_families() {
        for size in [0, 8, 100, 3000] {
            let packet = v4(17, &vec![7; size]);
            let message = told(&packet).unwrap();
            let header = Header::parse(&message).unwrap();
            assert_eq!(
                (header.source.to_string(), header.destination.to_string()),
                ("10.2.0.3".into(), "10.1.0.2".into())
            );
            assert_eq!(header.length, message.len());
            assert_eq!(message[20..22], [3, 1]);
            assert_eq!(message[28..], packet[..packet.len().min(548)]);
            assert_eq!(
                (Sum::of(&message[..20]).finish(), Sum::of(&message[20..]).finish()),
                ([0; 2], [0; 2])
            );

            let packet = v6(17, &vec![7; size]);
            let message = told(&packet).unwrap();
            let header = Header::parse(&message).unwrap();
            assert_eq!(
                (header.source.to_string(), header.destination.to_string()),
                ("fd00:2::3".into(), "fd00:1::2".into())
            );
            assert_eq!((header.length, message[6], message[7]), (message.len(), ICMPV6, HOPS));
            assert_eq!(message[40..42], [1, 3]);
            assert_eq!(message[48..], packet[..packet.len().min(1232)]);
            let mut pseudo = message.clone();
            pseudo[..8].fill(0);
            pseudo[4..6].copy_from_slice(&((message.len() - 40) as u16).to_be_bytes());
            pseudo[7] = ICMPV6;
            assert_eq!(Sum::of(&pseudo).finish(), [0; 2]);
        }
    }

    #[test]
    fn nobody_is_told_of_errors_and_fragments() {
        assert!(told(&v4(ICMP, &[8, 0, 0, 0])).is_some());
        assert!(told(&v4(ICMP, &[3, 1, 0, 0])).is_none());
        assert!(told(&v4(ICMP, &[])).is_none());
        assert!(told(&v6(ICMPV6, &[128, 0])).is_some());
        assert!(told(&v6(ICMPV6, &[1, 3])).is_none());
        let mut fragment = v4(17, &[0; 8]);
        fragment[7] = 9;
        assert!(told(&fragment).is_none());
        let mut from_all = v4(17, &[0; 8]);
        from_all[12..16].fill(255);
        assert!(told(&from_all).is_none());
    }

    #[test]
    fn there_is_a_limit() {
        let mut limit = Limit::default();
        let now = Time::from_micros(5_000_000);
        assert_eq!((0..1000).filter(|_| limit.take(now)).count(), STORE as usize);
        assert_eq!((1..1000).filter(|&ms| limit.take(now + Duration::from_millis(ms))).count(), 499);
    }
}
