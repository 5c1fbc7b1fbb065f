//! As much of IP as the forwarder must know: addresses, and how to damage a packet so that it still arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::random::Random;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;

/// Source and destination; none of what is not IP, or link-local, which no router forwards.
pub(super) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?)));
    let v6 = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?)));
    let (from, to) = match packet.first()? >> 4 {
        4 => (v4(12)?, v4(16)?),
        6 => (v6(8)?, v6(24)?),
        _ => return None,
    };
    let stays = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified(),
    };
    (!stays(from) && !stays(to)).then_some((from, to))
}

/// Where the transport header begins, and its protocol. A fragment or an extension header has none here.
fn transport(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        4 => Some((usize::from(packet[0] & 0x0f) * 4, *packet.get(9)?)),
        6 => Some((40, *packet.get(6)?)),
        _ => None,
    }
}

/// Turns one bit behind the transport's ports. Of UDP the checksum is updated (RFC 1624), so that the packet
/// reaches its reader; anything else keeps a checksum that is now wrong, and is dropped by who reads it.
/// Tells whether there was anything to be turned.
pub(super) fn corrupt(packet: &mut [u8], random: &mut Random) -> bool {
    let draw = random.below(usize::MAX);
    let Some((at, protocol)) = transport(packet) else { return false };
    // What follows the first word of a datagram: that tells what it is, and is left so that a capture can be
    // judged by it. A short one has no more.
    let first = match protocol {
        UDP if packet.len() > at + UDP_HEADER + 4 => at + UDP_HEADER + 4,
        UDP => at + UDP_HEADER,
        _ => at + 4,
    };
    let Some(length) = packet.len().checked_sub(first).filter(|length| *length > 0) else { return false };
    let bit = draw % (length * 8);
    let byte = first + bit / 8;
    let word_at = at + (byte - at) / 2 * 2;
    let word =
        |packet: &[u8]| u16::from_be_bytes([packet[word_at], packet.get(word_at + 1).copied().unwrap_or(0)]);
    let old = word(packet);
    packet[byte] ^= 1 << (bit % 8);
    if protocol == UDP {
        let new = word(packet);
        let checksum = u16::from_be_bytes([packet[at + 6], packet[at + 7]]);
        // Over IPv4 a checksum of 0 means that there is none.
        if checksum != 0 {
            let updated = updated_checksum(checksum, old, new);
            packet[at + 6..at + 8].copy_from_slice(&updated.to_be_bytes());
        }
    }
    true
}

/// RFC 1624, equation 3.
fn updated_checksum(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let updated = !u16::try_from(sum).unwrap_or(0);
    if updated == 0 { 0xffff } else { updated }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The sum over pseudo header, UDP header and payload (RFC 768, RFC 8200 section 8.1); 0 if right.
    fn verify(packet: &[u8]) -> u16 {
        let (at, _) = transport(packet).unwrap();
        let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
        let udp = &packet[at..];
        let mut sum: u64 = u64::from(UDP) + udp.len() as u64;
        for chunk in addresses.chunks(2).chain(udp.chunks(2)) {
            sum += u64::from(u16::from_be_bytes([chunk[0], chunk.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    /// A UDP packet with a right checksum.
    pub(in crate::impair) fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let length = u16::try_from(payload.len() + UDP_HEADER).unwrap();
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut head = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
                head[2..4].copy_from_slice(&(length + 20).to_be_bytes());
                [head, from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut head = vec![0x60, 0, 0, 0, 0, 0, UDP, 64];
                head[4..6].copy_from_slice(&length.to_be_bytes());
                [head, from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            _ => panic!("one family"),
        };
        let at = packet.len();
        packet.extend([0xca, 0x80, 0xca, 0x80]);
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        let checksum = verify(&packet).to_be_bytes();
        packet[at + 6..at + 8].copy_from_slice(&checksum);
        packet
    }

    #[test]
    fn what_is_corrupted_differs_in_its_payload_and_has_a_good_checksum() {
        let mut random = Random::new(3);
        for length in [1, 2, 3, 31, 32, 1401] {
            for (from, to) in [("192.0.2.11", "198.51.100.11"), ("2001:db8:a::11", "2001:db8:b::11")] {
                for _ in 0..200 {
                    let good = udp(from, to, &vec![0x5a; length]);
                    assert_eq!(verify(&good), 0);
                    let mut bad = good.clone();
                    assert!(corrupt(&mut bad, &mut random));
                    assert_eq!(verify(&bad), 0, "{length}");
                    let payload = good.len() - length;
                    let turned: u32 =
                        good[payload..].iter().zip(&bad[payload..]).map(|(a, b)| (a ^ b).count_ones()).sum();
                    assert_eq!(turned, 1);
                    assert_eq!(good[..payload - 2], bad[..payload - 2], "addresses and ports stay");
                }
            }
        }
    }

    #[test]
    fn nothing_short_or_strange_is_taken_for_a_packet() {
        let good = udp("192.0.2.11", "198.51.100.11", b"x");
        for length in 0..20 {
            assert_eq!(addresses(&good[..length]), None, "{length}");
        }
        assert_eq!(addresses(&udp("fe80::1", "2001:db8::1", b"x")), None);
        assert_eq!(addresses(&udp("2001:db8::1", "ff02::1", b"x")), None);
        assert_eq!(addresses(&[0x50; 60]), None);
        let mut random = Random::new(1);
        for length in 0..good.len() {
            corrupt(&mut good[..length].to_vec(), &mut random);
        }
    }
}
