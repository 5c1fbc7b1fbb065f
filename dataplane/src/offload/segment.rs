//! Cutting a big packet into those that cross the network.

use super::checksum::Sum;
use super::vnet::{Gso, GsoKind, Partial, VnetHeader};

/// The longest headers of a packet that is cut, bytes: IPv4 and TCP with all options are 120, and IPv6
/// extension headers rarely go beyond.
pub const MAX_HEADERS: usize = 256;

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The packets that one packet of the TUN stands for, one after the other, in order.
///
/// Nothing is copied: the headers of each packet are written right before its payload, over the end of the
/// payload before, whose packet has been taken by then. So a packet must be done with when the next one is
/// asked for, which the borrow checker sees to.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a mut [u8],
    /// How many packets were taken.
    taken: usize,
    cut: Option<Cut>,
}

/// How a packet is cut, and what all its segments have in common.
#[derive(Debug)]
struct Cut {
    kind: GsoKind,
    /// Payload of each segment but the last.
    size: usize,
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    headers: usize,
    template: [u8; MAX_HEADERS],
    /// Sum of the IPv4 header without length, identification and checksum.
    network_sum: Sum,
    /// Sum of the pseudo-header without its length, and of the transport header without what differs:
    /// checksum, sequence number and flags of TCP, length of UDP.
    transport_sum: Sum,
}

impl<'a> Segments<'a> {
    /// Takes a packet as it came from the TUN: `header` is what stood before it, `packet` is as long as its
    /// IP header says. Completes the checksum of a packet that is not cut. `None` if the two contradict
    /// each other, which the kernel's never do.
    #[must_use]
    pub fn new(header: VnetHeader, packet: &'a mut [u8]) -> Option<Self> {
        let cut = match (header.gso, header.partial) {
            (Some(gso), Some(partial)) => Some(Cut::new(gso, partial, packet)?),
            // Without a place for its checksum, a big packet cannot be cut.
            (Some(_), None) => return None,
            (None, Some(partial)) => {
                complete(partial, packet)?;
                None
            }
            (None, None) => None,
        };
        Some(Self { packet, taken: 0, cut })
    }

    /// How many packets there are in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.cut.as_ref().map_or(1, |cut| (self.packet.len() - cut.headers).div_ceil(cut.size).max(1))
    }

    /// The length of the longest one, bytes.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.cut.as_ref().map_or(self.packet.len(), |cut| (cut.headers + cut.size).min(self.packet.len()))
    }

    /// The length of all of them together, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let headers = self.cut.as_ref().map_or(0, |cut| cut.headers);
        self.packet.len() + (self.count() - 1) * headers
    }

    /// The next packet.
    pub fn advance(&mut self) -> Option<&[u8]> {
        let number = self.taken;
        self.taken += 1;
        match &self.cut {
            None => (number == 0).then_some(&*self.packet),
            Some(cut) => {
                let from = cut.headers + number * cut.size;
                if number > 0 && from >= self.packet.len() {
                    return None;
                }
                let to = (from + cut.size).min(self.packet.len());
                let is_last = to == self.packet.len();
                let segment = self.packet.get_mut(from - cut.headers..to)?;
                cut.write_headers(segment, number, is_last);
                Some(segment)
            }
        }
    }
}

/// Completes a checksum.
fn complete(partial: Partial, packet: &mut [u8]) -> Option<()> {
    let start = usize::from(partial.start);
    let at = start + usize::from(partial.offset);
    if !partial.offset.is_multiple_of(2) || at + 2 > packet.len() {
        return None;
    }
    let mut checksum = Sum::of(packet.get(start..)?).finish();
    // Zero would mean that there is none (RFC 768); both zeros of one's complement are the same, and TCP
    // does not mind (RFC 1624 section 3).
    if checksum == [0, 0] {
        checksum = [0xff, 0xff];
    }
    packet.get_mut(at..at + 2)?.copy_from_slice(&checksum);
    Some(())
}

impl Cut {
    fn new(gso: Gso, partial: Partial, packet: &[u8]) -> Option<Self> {
        let transport = usize::from(partial.start);
        let length = packet.len();
        match (packet.first()? >> 4, gso.kind) {
            (4, GsoKind::TcpV4 | GsoKind::Udp) => {
                let fits = length >= 20
                    && usize::from(packet[0] & 0xf) * 4 == transport
                    && usize::from(u16::from_be_bytes([packet[2], packet[3]])) == length
                    // No fragment, of course.
                    && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff == 0;
                fits.then_some(())?;
            }
            (6, GsoKind::TcpV6 | GsoKind::Udp) => {
                let fits = transport >= 40
                    && length >= 40
                    && transport.is_multiple_of(2)
                    && usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40 == length;
                fits.then_some(())?;
            }
            _ => return None,
        }
        let rest = packet.get(transport..)?;
        let (own, at) = match gso.kind {
            GsoKind::Udp => (UDP_HEADER, UDP_CHECKSUM),
            _ => (usize::from(rest.get(12)? >> 4) * 4, TCP_CHECKSUM),
        };
        let headers = transport + own;
        let least = if at == TCP_CHECKSUM { TCP_HEADER } else { UDP_HEADER };
        if own < least || usize::from(partial.offset) != at || headers > MAX_HEADERS || headers > length {
            return None;
        }

        let mut template = [0; MAX_HEADERS];
        template[..headers].copy_from_slice(&packet[..headers]);
        let header = &template[transport..headers];
        // The kernel has put the sum of the pseudo-header here, with the length of the big packet in it.
        let pseudo =
            Sum::of(&header[at..at + 2]).without_u16(u16::try_from(length - transport).unwrap_or(u16::MAX));
        let transport_sum = match gso.kind {
            GsoKind::Udp => pseudo.and(Sum::of(&header[..4])),
            _ => {
                let ports = Sum::of(&header[..4]);
                let acknowledgement = Sum::of(&header[8..12]);
                pseudo
                    .and(ports)
                    .and(acknowledgement)
                    .and(Sum::of(&header[14..16]))
                    .and(Sum::of(&header[18..]))
            }
        };
        let network_sum = match packet[0] >> 4 {
            4 => {
                Sum::of(&template[..2]).and(Sum::of(&template[6..10])).and(Sum::of(&template[12..transport]))
            }
            _ => Sum::default(),
        };
        let size = usize::from(gso.size);
        Some(Self { kind: gso.kind, size, transport, headers, template, network_sum, transport_sum })
    }

    /// Writes the headers of segment `number`, whose payload is in its place.
    fn write_headers(&self, segment: &mut [u8], number: usize, is_last: bool) {
        // All of these fit: the big packet was at most as long as its 16-bit length says.
        let length = segment.len();
        let own = (length - self.transport) as u16;
        let (header, payload) = segment.split_at_mut(self.headers);
        header.copy_from_slice(&self.template[..self.headers]);
        let (network, transport) = header.split_at_mut(self.transport);

        if network[0] >> 4 == 4 {
            let length = length as u16;
            let id = u16::from_be_bytes([network[4], network[5]]).wrapping_add(number as u16);
            network[2..4].copy_from_slice(&length.to_be_bytes());
            network[4..6].copy_from_slice(&id.to_be_bytes());
            let sum = self.network_sum.and(Sum::of_u16(length)).and(Sum::of_u16(id));
            network[10..12].copy_from_slice(&sum.finish());
        } else {
            network[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        }

        let sum = self.transport_sum.and(Sum::of(payload)).and(Sum::of_u16(own));
        if self.kind == GsoKind::Udp {
            transport[4..6].copy_from_slice(&own.to_be_bytes());
            let checksum = match sum.and(Sum::of_u16(own)).finish() {
                [0, 0] => [0xff, 0xff],
                checksum => checksum,
            };
            transport[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&checksum);
        } else {
            let first = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = first.wrapping_add((number * self.size) as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !is_last {
                transport[13] &= !(FIN | PSH);
            }
            if number > 0 {
                transport[13] &= !CWR;
            }
            let flags = u16::from_be_bytes([transport[12], transport[13]]);
            let checksum = sum.and(Sum::of_u32(sequence)).and(Sum::of_u16(flags)).finish();
            transport[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&checksum);
        }
    }
}
