//! What coalescing needs to know of a packet.

use super::checksum::{Sum, pseudo};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DONT_FRAGMENT: u8 = 0x40;

/// The transport of a packet that may be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// A TCP or UDP packet, whole, without IPv4 options and IPv6 extension headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) transport: Transport,
    /// Where the transport header begins: 20 or 40.
    pub(super) network: usize,
    /// Where the payload begins.
    pub(super) headers: usize,
    /// Its length, bytes.
    pub(super) payload: usize,
    /// Whether anything may be merged with it at all.
    pub(super) mergeable: bool,
    /// Whether nothing may come after it: TCP's PSH.
    pub(super) ends: bool,
}

/// What flow a packet belongs to.
pub(super) enum Belongs {
    /// To this TCP or UDP flow.
    Flow(u32, Shape),
    /// To none that is told from others: a fragment, say. Flows between the same addresses must not be
    /// merged across it, since it may be part of one of them.
    Unknown,
}

/// A number for the two addresses of an IP packet.
pub(super) fn address_hash(packet: &[u8]) -> u32 {
    let addresses = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(12..20),
        _ => packet.get(8..40),
    };
    let words = addresses.unwrap_or_default().as_chunks::<4>().0.iter();
    words.fold(0, |hash, word| mix(hash, u32::from_ne_bytes(*word)))
}

/// Good enough to find a flow by; what is found is compared byte by byte.
pub(super) fn mix(hash: u32, word: u32) -> u32 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b1)
}

impl Shape {
    /// Looks at a packet that is as long as its IP header says.
    pub(super) fn of(packet: &[u8]) -> Belongs {
        Self::read(packet).unwrap_or(Belongs::Unknown)
    }

    fn read(packet: &[u8]) -> Option<Belongs> {
        let (network, protocol) = match packet.first()? {
            0x45 => {
                let fixed = packet.first_chunk::<20>()?;
                // A fragment, or the bit that nobody may set (RFC 3514 is no reason to).
                if fixed[6] & !DONT_FRAGMENT != 0 || fixed[7] != 0 {
                    return None;
                }
                (20, fixed[9])
            }
            first if first >> 4 == 6 => (40, packet.first_chunk::<40>()?[6]),
            _ => return None,
        };
        let rest = packet.get(network..)?;
        let ports = u32::from_ne_bytes(*rest.first_chunk()?);
        let (transport, own, mergeable, ends) = match protocol {
            TCP => {
                let fixed = rest.first_chunk::<20>()?;
                let own = usize::from(fixed[12] >> 4) * 4;
                // Data and an acknowledgement, nothing else: whatever other flag is set is to be seen by
                // the receiver with its own packet.
                let plain = fixed[12] & 0xf == 0 && fixed[13] & !PSH == ACK && fixed[18..20] == [0, 0];
                (Transport::Tcp, own, plain && own >= 20, fixed[13] & PSH != 0)
            }
            UDP => {
                let fixed = rest.first_chunk::<8>()?;
                let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
                (Transport::Udp, 8, length == rest.len() && fixed[6..8] != [0, 0], false)
            }
            _ => return None,
        };
        let headers = network + own;
        let payload = packet.len().checked_sub(headers);
        let shape = Self {
            transport,
            network,
            headers,
            payload: payload.unwrap_or(0),
            mergeable: mergeable && payload.is_some_and(|n| n > 0),
            ends,
        };
        Some(Belongs::Flow(mix(mix(address_hash(packet), ports), protocol.into()), shape))
    }

    /// Whether the checksums of IPv4, TCP and UDP are right.
    pub(super) fn checksums_are_right(&self, packet: &[u8]) -> bool {
        let (network, transport) = packet.split_at(self.network);
        if self.network == 20 && !Sum::of(network).is_right() {
            return false;
        }
        self.pseudo(packet).and(Sum::of_u16(transport.len() as u16)).and(Sum::of(transport)).is_right()
    }

    /// The sum of the pseudo-header without its length.
    pub(super) fn pseudo(&self, packet: &[u8]) -> Sum {
        let protocol = if self.transport == Transport::Tcp { TCP } else { UDP };
        pseudo(&packet[if self.network == 20 { 12..20 } else { 8..40 }], protocol)
    }

    /// Whether `later`, of the same shape but for its payload, may follow `count` packets with `before`
    /// bytes of payload, of which `first` was the first. Looks at headers only.
    pub(super) fn follows(&self, first: &[u8], later: &[u8], count: usize, before: usize) -> bool {
        let same = |range: std::ops::Range<usize>| first[range.clone()] == later[range];
        let word = |packet: &[u8], at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let network = if self.network == 20 {
            // All but lengths, checksums, and the identification of what is never fragmented
            // (RFC 6864 section 4.1). Others' identifications must come out of segmentation again.
            let identified =
                first[6] & DONT_FRAGMENT != 0 || word(later, 4) == word(first, 4).wrapping_add(count as u16);
            same(0..2) && same(6..10) && same(12..20) && identified
        } else {
            same(0..4) && same(6..40)
        };
        if !network {
            return false;
        }
        let at = self.network;
        match self.transport {
            Transport::Udp => same(at..at + 4),
            Transport::Tcp => {
                let sequence =
                    |packet: &[u8]| u32::from(word(packet, at + 4)) << 16 | u32::from(word(packet, at + 6));
                same(at..at + 4)
                    && sequence(later) == sequence(first).wrapping_add(before as u32)
                    && same(at + 8..at + 13)
                    && same(at + 14..at + 16)
                    && same(at + 20..self.headers)
            }
        }
    }
}
