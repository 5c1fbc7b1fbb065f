//! Questions between agents on the wire: ordinary UDP packets. A probe through a gateway goes from one node's own
//! address to another's, and the gateway has to forward it like any other. A delivery question goes from a gateway to
//! a node of its own cluster, with a source of another cluster, and is answered to the address that it names.
//!
//! The payload is 32 bytes, all numbers big-endian; the answer is as long as the question:
//!
//! ```text
//! magic "psth" (4) | version 1 (1) | type (1) | zero (2) | nonce (8) | address (16)
//! type: 1 question, 2 answer, 3 delivery question, 4 delivered; only 3 has an address (IPv4: mapped, RFC 4291
//! section 2.5.5.2), the others have zeros
//! ```

use std::net::{IpAddr, Ipv6Addr};

/// Length of the payload, bytes.
pub const LENGTH: usize = 32;
const MAGIC: [u8; 4] = *b"psth";
const VERSION: u8 = 1;
const UDP: u8 = 17;
const HOPS: u8 = 64;

/// A question, or the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To be answered.
    Question(u64),
    /// The answer to the question with this nonce.
    Answer(u64),
    /// To be answered, to another address than that from which it came.
    DeliveryQuestion {
        /// Repeated in the answer.
        nonce: u64,
        /// Where the answer is to go.
        back: IpAddr,
    },
    /// The answer to the delivery question with this nonce.
    Delivered(u64),
}

impl Message {
    /// Reads a payload; `None` if it is none, or of another version.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let payload: &[u8; LENGTH] = payload.try_into().ok()?;
        if payload[..4] != MAGIC || payload[4] != VERSION {
            return None;
        }
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&payload[8..16]);
        let nonce = u64::from_be_bytes(nonce);
        match payload[5] {
            1 => Some(Self::Question(nonce)),
            2 => Some(Self::Answer(nonce)),
            3 => {
                let mut address = [0; 16];
                address.copy_from_slice(&payload[16..32]);
                let back = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
                Some(Self::DeliveryQuestion { nonce, back })
            }
            4 => Some(Self::Delivered(nonce)),
            _ => None,
        }
    }

    /// The payload.
    #[must_use]
    pub fn write(self) -> [u8; LENGTH] {
        let mut payload = [0; LENGTH];
        payload[..4].copy_from_slice(&MAGIC);
        payload[4] = VERSION;
        let (kind, nonce) = match self {
            Self::Question(nonce) => (1, nonce),
            Self::Answer(nonce) => (2, nonce),
            Self::DeliveryQuestion { nonce, back } => {
                let address = match back {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                payload[16..32].copy_from_slice(&address.octets());
                (3, nonce)
            }
            Self::Delivered(nonce) => (4, nonce),
        };
        payload[5] = kind;
        payload[8..16].copy_from_slice(&nonce.to_be_bytes());
        payload
    }
}

/// The whole IP packet that carries `payload` from `source` to `destination`, both at `port`; `None` if they are
/// of different families.
#[must_use]
pub fn packet(source: IpAddr, destination: IpAddr, port: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let length = 8 + payload.len() as u16;
    let mut udp = Vec::with_capacity(length.into());
    udp.extend_from_slice(&port.to_be_bytes());
    udp.extend_from_slice(&port.to_be_bytes());
    udp.extend_from_slice(&length.to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(payload);
    let mut packet = Vec::with_capacity(40 + udp.len());
    let (addresses, header) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&(20 + length).to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0x40, 0, HOPS, UDP, 0, 0]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum);
            (12..20, 20)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&[UDP, HOPS]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            (8..40, 40)
        }
        _ => return None,
    };
    // The pseudo-header (RFC 768, RFC 8200 section 8.1): what they have beyond these is zero.
    let length = length.to_be_bytes();
    let sum = checksum(&[&packet[addresses], &[0, UDP, length[0], length[1]], &udp]);
    udp[6..8].copy_from_slice(if sum == [0, 0] { &[0xff, 0xff] } else { &sum });
    debug_assert_eq!(packet.len(), header);
    packet.extend_from_slice(&udp);
    Some(packet)
}

/// The Internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let back = |address: &str| Message::DeliveryQuestion { nonce: 9, back: address.parse().unwrap() };
        for message in [
            Message::Question(7),
            Message::Answer(u64::MAX),
            back("10.1.1.0"),
            back("fd00:10:1:1::"),
            Message::Delivered(8),
        ] {
            assert_eq!(Message::read(&message.write()), Some(message));
        }
        let mut other = Message::Question(7).write();
        other[4] = 2;
        assert_eq!(Message::read(&other), None);
        assert_eq!(Message::read(&Message::Question(7).write()[..31]), None);
        assert_eq!(Message::read(&[0; LENGTH]), None);
        let mut unknown = Message::Question(7).write();
        unknown[5] = 5;
        assert_eq!(Message::read(&unknown), None);
    }

    #[test]
    fn packets_have_right_checksums() {
        let v4 =
            packet("10.1.1.0".parse().unwrap(), "10.2.2.0".parse().unwrap(), 51839, &[5; LENGTH]).unwrap();
        assert_eq!(v4.len(), 20 + 8 + LENGTH);
        assert_eq!(checksum(&[&v4[..20]]), [0, 0]);
        assert_eq!(checksum(&[&v4[12..20], &[0, UDP, 0, 40], &v4[20..]]), [0, 0]);
        let v6 =
            packet("fd00:1::".parse().unwrap(), "fd00:2::".parse().unwrap(), 51839, &[5; LENGTH]).unwrap();
        assert_eq!(v6.len(), 40 + 8 + LENGTH);
        assert_eq!(checksum(&[&v6[8..40], &[0, UDP, 0, 40], &v6[40..]]), [0, 0]);
        assert_eq!(packet("10.1.1.0".parse().unwrap(), "fd00::".parse().unwrap(), 1, &[]), None);
    }
}
