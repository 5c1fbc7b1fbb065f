//! Packets that are larger than the path takes, in pieces: fragmentation inside the tunnel, where the pieces
//! are sealed and no router or firewall sees them. For the time until the path's MTU is known again after it
//! fell, for IPv4 packets that may be fragmented, and for paths that take less than IPv6 must have.
//!
//! A piece looks like a [probe](super::probe) of another type, so that whatever does not know it drops it:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |            IPv6 header of a probe, 40 bytes                   |
//! +---------------------------------------------------------------+
//! |                        magic  "pspn"                          |
//! +---------------+---------------+-------------------------------+
//! | version (1)   | type (3)      | number of the packet          |
//! +---------------+---------------+-------------------------------+
//! | offset of the piece           | length of the packet          |
//! +-------------------------------+-------------------------------+
//! |                        piece ...                              |
//! +---------------------------------------------------------------+
//! ```
//!
//! All numbers are big-endian, offset and length in bytes. WireGuard lets no packet through twice, so that
//! a packet is whole when as many bytes have come as it has.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Time, probe};
use crate::offload::Ecn;

/// What stands before a piece, bytes.
pub(crate) const HEADER: usize = probe::IPV6 + 12;
const VERSION: u8 = 1;
const TYPE: u8 = 3;

/// After which the number of a packet may stand for another one.
const STALE: Duration = Duration::from_secs(2);
/// Packets that are put together at the same time, at most, and their bytes.
const PACKETS: usize = 128;
const BYTES: usize = 1 << 20;

/// A piece that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    number: u16,
    offset: u16,
    length: u16,
    bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Looks whether `packet`, which has the header of a probe, is a piece that makes sense.
    pub(crate) fn read(packet: &'a [u8]) -> Option<Self> {
        let body = probe::body(packet)?;
        let (head, bytes) = body.split_first_chunk::<12>()?;
        if head[..4] != probe::MAGIC || head[4] != VERSION || head[5] != TYPE || bytes.is_empty() {
            return None;
        }
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let piece = Self { number: word(6), offset: word(8), length: word(10), bytes };
        (usize::from(piece.offset) + bytes.len() <= usize::from(piece.length)).then_some(piece)
    }
}

/// Writes the pieces of `packet` one after the other; each is at most `most` bytes long.
#[derive(Debug)]
pub(crate) struct Cut<'a> {
    packet: &'a [u8],
    number: u16,
    each: usize,
    offset: usize,
}

impl<'a> Cut<'a> {
    /// The pieces of `packet`, which is shorter than 64 KB, all but the last of the same length.
    pub(crate) fn new(packet: &'a [u8], number: u16, most: u16) -> Self {
        let most = usize::from(most).saturating_sub(HEADER).max(1);
        // As even as may be: a short last one costs as much as a long one.
        let each = packet.len().div_ceil(packet.len().div_ceil(most).max(1));
        Self { packet, number, each, offset: 0 }
    }

    /// Writes the next piece to `out`, in place of what is there; false if there is none.
    pub(crate) fn next(&mut self, out: &mut Vec<u8>) -> bool {
        let rest = &self.packet[self.offset..];
        let Some(piece) = rest.get(..self.each.min(rest.len())).filter(|piece| !piece.is_empty()) else {
            return false;
        };
        out.clear();
        out.extend_from_slice(&probe::header(12 + piece.len()));
        out.extend_from_slice(&probe::MAGIC);
        out.extend_from_slice(&[VERSION, TYPE]);
        for word in [self.number, self.offset as u16, self.packet.len() as u16] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(piece);
        self.offset += piece.len();
        true
    }
}

/// A packet of which not all has come.
#[derive(Debug)]
struct Partial {
    tunnel: u32,
    number: u16,
    begun: Time,
    missing: usize,
    ecn: Ecn,
    bytes: Vec<u8>,
}

/// Puts the pieces of all tunnels of a worker together again. What is never completed gives way to what
/// comes later.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    partial: VecDeque<Partial>,
    bytes: usize,
}

impl Pieces {
    /// Takes a piece in that came through `tunnel`, in a datagram with these ECN bits. Returns the whole
    /// packet if this was the last of it, with the worst mark of its pieces (RFC 3168 section 5.3), and how
    /// many packets were given up.
    pub(crate) fn add(
        &mut self,
        now: Time,
        tunnel: u32,
        ecn: Ecn,
        piece: Piece<'_>,
    ) -> (Option<(Vec<u8>, Ecn)>, u64) {
        let length = usize::from(piece.length);
        let mut given_up = 0;
        while self.partial.front().is_some_and(|oldest| now.since(oldest.begun) >= STALE) {
            self.take(0);
            given_up += 1;
        }
        let known = self.partial.iter().position(|partial| {
            (partial.tunnel, partial.number, partial.bytes.len()) == (tunnel, piece.number, length)
        });
        let at = known.unwrap_or_else(|| {
            while self.partial.len() >= PACKETS || (self.bytes + length > BYTES && !self.partial.is_empty()) {
                self.take(0);
                given_up += 1;
            }
            self.bytes += length;
            let (number, bytes) = (piece.number, vec![0; length]);
            self.partial.push_back(Partial { tunnel, number, begun: now, missing: length, ecn, bytes });
            self.partial.len() - 1
        });
        let partial = &mut self.partial[at];
        let offset = usize::from(piece.offset);
        partial.bytes[offset..offset + piece.bytes.len()].copy_from_slice(piece.bytes);
        partial.missing = partial.missing.saturating_sub(piece.bytes.len());
        if ecn == Ecn::Ce {
            partial.ecn = ecn;
        }
        if partial.missing > 0 {
            return (None, given_up);
        }
        (self.take(at).map(|whole| (whole.bytes, whole.ecn)), given_up)
    }

    fn take(&mut self, at: usize) -> Option<Partial> {
        let partial = self.partial.remove(at)?;
        self.bytes -= partial.bytes.len();
        Some(partial)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Time = Time::from_micros(5_000_000);

    fn pieces(packet: &[u8], number: u16, most: u16) -> Vec<Vec<u8>> {
        let (mut cut, mut out, mut all) = (Cut::new(packet, number, most), Vec::new(), Vec::new());
        while cut.next(&mut out) {
            all.push(out.clone());
        }
        all
    }

    /// The format stands: nodes of different versions talk to each other.
    #[test]
    fn the_bytes_of_a_piece() {
        let all = pieces(&[7; 5], 0x1122, HEADER as u16 + 3);
        let hex: String = all[1].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "60000000000efdfffe800000000000000000000000000001fe800000000000000000000000000002\
             7073706e01031122000300050707"
        );
    }

    #[test]
    fn what_makes_no_sense_is_no_piece() {
        let good = pieces(&[7; 100], 1, 100).remove(1);
        assert!(Piece::read(&good).is_some());
        for (at, byte) in [(6, 17), (7, 64), (40, 0), (44, 2), (45, 1), (49, 99), (51, 1), (0, 0x45)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Piece::read(&bad), None, "{at}");
        }
        for cut in 0..good.len() {
            assert_eq!(Piece::read(&good[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_gives_way() {
        for length in [300_usize, 60_000] {
            let mut pieces_of = Pieces::default();
            let mut given_up = 0;
            for number in 0..1000 {
                let first = pieces(&vec![1; length], number, 200).remove(0);
                let (whole, lost) = pieces_of.add(NOW, 1, Ecn::NotEct, Piece::read(&first).unwrap());
                assert!(whole.is_none());
                given_up += lost;
            }
            assert!(pieces_of.bytes <= BYTES && pieces_of.partial.len() <= PACKETS);
            assert_eq!(given_up + pieces_of.partial.len() as u64, 1000);
        }
    }

    #[test]
    fn what_is_old_is_given_up() {
        let mut pieces_of = Pieces::default();
        let all = pieces(&[1; 300], 9, 200);
        pieces_of.add(NOW, 4, Ecn::NotEct, Piece::read(&all[0]).unwrap());
        // The numbers have come round: the same packet it is not.
        let later = NOW + STALE;
        let (whole, lost) = pieces_of.add(later, 4, Ecn::NotEct, Piece::read(&all[1]).unwrap());
        assert_eq!((whole, lost, pieces_of.partial.len()), (None, 1, 1));
    }

    #[test]
    fn a_mark_on_one_piece_is_the_packets() {
        let mut pieces_of = Pieces::default();
        let all = pieces(&[1; 300], 9, 200);
        let mut whole = None;
        for (piece, ecn) in all.iter().zip([Ecn::Ect0, Ecn::Ce, Ecn::Ect0]) {
            whole = pieces_of.add(NOW, 4, ecn, Piece::read(piece).unwrap()).0;
        }
        assert_eq!(whole, Some((vec![1; 300], Ecn::Ce)));
        assert_eq!((pieces_of.bytes, pieces_of.partial.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn packets_come_out_as_they_went_in(
            packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..5000), 100_u16..1500), 1..6),
            shuffle in any::<u64>(),
        ) {
            let mut all = Vec::new();
            for (n, (packet, most)) in packets.iter().enumerate() {
                for piece in pieces(packet, n as u16, *most) {
                    prop_assert!(piece.len() <= usize::from(*most));
                    all.push((n as u32 % 2, piece));
                }
            }
            all.sort_by_key(|(_, piece)| piece.iter().fold(shuffle, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)));
            let mut pieces_of = Pieces::default();
            let mut whole = Vec::new();
            for (tunnel, piece) in &all {
                whole.extend(pieces_of.add(NOW, *tunnel, Ecn::NotEct, Piece::read(piece).unwrap()).0);
            }
            let mut whole: Vec<_> = whole.into_iter().map(|(packet, _)| packet).collect();
            let mut expected: Vec<_> = packets.into_iter().map(|(packet, _)| packet).collect();
            whole.sort();
            expected.sort();
            prop_assert_eq!(whole, expected);
        }

        #[test]
        fn never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..120), keep in 0_usize..60) {
            let good = pieces(&[1; 40], 1, 200).remove(0);
            let n = keep.min(bytes.len());
            bytes[..n].copy_from_slice(&good[..n]);
            if let Some(piece) = Piece::read(&bytes) {
                Pieces::default().add(NOW, 0, Ecn::NotEct, piece);
            }
        }
    }
}
