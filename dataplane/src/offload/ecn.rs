//! Explicit congestion notification through the tunnel (RFC 3168, RFC 6040).

use super::checksum::Sum;

/// The two bits of the IP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ecn {
    /// The transport does not know ECN.
    #[default]
    NotEct,
    /// It does: ECT(1).
    Ect1,
    /// It does: ECT(0).
    Ect0,
    /// Congestion was experienced.
    Ce,
}

impl Ecn {
    /// From the lowest two bits of a traffic class.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The two bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        self as u8
    }

    /// That of an IP packet; `NotEct` if it is too short for one. An outer packet gets the same (RFC 6040
    /// section 4.1, normal mode).
    #[must_use]
    pub fn of(packet: &[u8]) -> Self {
        match packet {
            [first, second, ..] if first >> 4 == 4 => Self::from_bits(*second),
            [first, second, ..] if first >> 4 == 6 => Self::from_bits(second >> 4),
            _ => Self::NotEct,
        }
    }

    /// What the inner packet is to have when it leaves the tunnel, `self` being what it has, and `outer`
    /// what its datagram arrived with; `None` if it is to be dropped, since it cannot tell of the
    /// congestion that it met (RFC 6040 section 4.2, figure 4).
    #[must_use]
    pub fn decapsulated(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, _) => Some(Self::NotEct),
            (Self::Ce, _) | (_, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (inner, _) => Some(inner),
        }
    }

    /// Writes it into an IP packet, and mends the checksum of an IPv4 header.
    pub fn write(self, packet: &mut [u8]) {
        match packet.first().map(|first| first >> 4) {
            Some(4) if packet.len() >= 20 => {
                let before = u16::from_be_bytes([packet[0], packet[1]]);
                packet[1] = packet[1] & !3 | self.bits();
                let after = u16::from_be_bytes([packet[0], packet[1]]);
                // RFC 1624, equation 3.
                let checksum = [!packet[10], !packet[11]];
                let sum = Sum::of(&checksum).without_u16(before).and(Sum::of_u16(after));
                packet[10..12].copy_from_slice(&sum.finish());
            }
            Some(6) if packet.len() >= 40 => packet[1] = packet[1] & !0x30 | self.bits() << 4,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    #[test]
    fn bits_there_and_back() {
        assert_eq!(ALL.map(Ecn::bits), [0, 2, 1, 3]);
        assert!(ALL.into_iter().all(|ecn| Ecn::from_bits(ecn.bits() | 0xfc) == ecn));
    }

    #[test]
    fn figure_4_of_rfc_6040() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let rows = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in rows {
            assert_eq!(ALL.map(|outer| inner.decapsulated(outer)), row, "{inner:?}");
        }
    }

    #[test]
    fn a_mark_keeps_the_header_right() {
        let mut v4 = vec![0x45, 0xb8, 0, 20, 1, 2, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3];
        let checksum = Sum::of(&v4).finish();
        v4[10..12].copy_from_slice(&checksum);
        let mut v6 = vec![0x6b, 0x8a, 0xbc, 0xde];
        v6.resize(40, 0);
        for ecn in ALL {
            ecn.write(&mut v4);
            assert!(Sum::of(&v4).is_right(), "{ecn:?}");
            assert_eq!((Ecn::of(&v4), v4[1] >> 2), (ecn, 0xb8 >> 2));
            ecn.write(&mut v6);
            assert_eq!((Ecn::of(&v6), v6[1] & 0xcf), (ecn, 0x8a));
        }
        Ecn::Ce.write(&mut [0x45]);
        assert_eq!(Ecn::of(&[]), Ecn::NotEct);
    }
}
