//! `virtio_net_hdr`: what stands before each packet of a TUN that was opened with `IFF_VNET_HDR`.

/// Its length, bytes (`TUNSETVNETHDRSZ`; the fields that later versions add are not asked for).
pub const VNET_HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_*`.
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A checksum of which only the pseudo-header is done: the sum over everything from `start` on goes to
/// `start + offset`, where the sum of the pseudo-header stands already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where the transport header begins, bytes from the beginning of the packet.
    pub start: u16,
    /// Where its checksum field is, bytes from `start`.
    pub offset: u16,
}

/// What a big packet is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either; needs Linux 6.2.
    Udp,
}

/// How a big packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Its protocol.
    pub kind: GsoKind,
    /// Payload of each packet but the last, bytes; never 0.
    pub size: u16,
    /// Whether TCP's CWR is set, which only the first packet is to carry (RFC 3168 section 6.1.2).
    pub cwr: bool,
}

/// The header, read. The default says that a packet is as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum that is to be completed, if one is.
    pub partial: Option<Partial>,
    /// How the packet is to be cut, if it is.
    pub gso: Option<Gso>,
    /// Length of all headers together, bytes: a hint for the kernel, 0 for none, not to be relied on.
    pub headers: u16,
}

impl VnetHeader {
    /// Reads a header; `None` if it asks for something that was not offered to the kernel.
    #[must_use]
    pub fn decode(bytes: &[u8; VNET_HEADER]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let kind = match bytes[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCP_V4 => Some(GsoKind::TcpV4),
            GSO_TCP_V6 => Some(GsoKind::TcpV6),
            GSO_UDP => Some(GsoKind::Udp),
            _ => return None,
        };
        let gso = match (kind, word(4)) {
            (None, _) => None,
            (Some(_), 0) => return None,
            (Some(kind), size) => Some(Gso { kind, size, cwr: bytes[1] & GSO_ECN != 0 }),
        };
        let needs_checksum = bytes[0] & NEEDS_CHECKSUM != 0;
        let partial = needs_checksum.then(|| Partial { start: word(6), offset: word(8) });
        Some(Self { partial, gso, headers: word(2) })
    }

    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> [u8; VNET_HEADER] {
        let mut bytes = [0; VNET_HEADER];
        let mut word = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        word(2, self.headers);
        if let Some(gso) = self.gso {
            word(4, gso.size);
        }
        if let Some(partial) = self.partial {
            word(6, partial.start);
            word(8, partial.offset);
            bytes[0] = NEEDS_CHECKSUM;
        }
        if let Some(gso) = self.gso {
            let kind = match gso.kind {
                GsoKind::TcpV4 => GSO_TCP_V4,
                GsoKind::TcpV6 => GSO_TCP_V6,
                GsoKind::Udp => GSO_UDP,
            };
            bytes[1] = kind | if gso.cwr { GSO_ECN } else { 0 };
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for kind in [None, Some(GsoKind::TcpV4), Some(GsoKind::TcpV6), Some(GsoKind::Udp)] {
            for (partial, cwr) in [(None, false), (Some(Partial { start: 40, offset: 16 }), true)] {
                let gso = kind.map(|kind| Gso { kind, size: 1380, cwr });
                let header = VnetHeader { partial, gso, headers: 60 };
                assert_eq!(VnetHeader::decode(&header.encode()), Some(header));
            }
        }
        assert_eq!(VnetHeader::decode(&[0; VNET_HEADER]), Some(VnetHeader::default()));
        assert_eq!(VnetHeader::default().encode(), [0; VNET_HEADER]);
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        // UFO, which Linux gave up; a type that does not exist; a size of nothing.
        for (kind, size) in [(3, 1000_u16), (2, 1000), (0x20, 1000), (1, 0)] {
            let mut bytes = [0; VNET_HEADER];
            bytes[1] = kind;
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
            assert_eq!(VnetHeader::decode(&bytes), None, "{kind} {size}");
        }
        // That the kernel has checked a checksum itself (DATA_VALID) changes nothing.
        let mut bytes = [0; VNET_HEADER];
        bytes[0] = 2;
        assert_eq!(VnetHeader::decode(&bytes), Some(VnetHeader::default()));
    }
}
