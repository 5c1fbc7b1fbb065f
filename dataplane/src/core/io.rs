//! How packets get into the core and out of it.

use std::net::SocketAddr;
use std::ops::Range;

use crate::counters::DropCause;
use crate::offload::{Ecn, VNET_HEADER};

/// The longest payload of a UDP datagram, bytes (RFC 768 with the smallest IPv4 header).
pub const MAX_DATAGRAM: usize = 65_507;

/// What WireGuard adds to an inner packet, bytes (WireGuard paper, section 5.4.6).
pub const OVERHEAD: usize = 32;

/// How many packets a batch holds at most.
pub const BATCH: usize = 64;

/// Room for one packet, bytes: the largest, and what the kernel writes before it.
const LARGEST: usize = 65_536 + VNET_HEADER;

/// Memory of a batch, bytes: [`BATCH`] packets of the usual size, and always room for one of the largest.
const BATCH_BYTES: usize = 4 * LARGEST;

/// How a datagram came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its source.
    pub from: SocketAddr,
    /// That of its IP header.
    pub ecn: Ecn,
}

/// How a datagram is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Its destination.
    pub to: SocketAddr,
    /// What its IP header is to have; the rest of the traffic class is zero.
    pub ecn: Ecn,
    /// Whether it is to arrive whole or not at all ("don't fragment").
    pub whole: bool,
    /// Who is charged with it, should it be lost.
    pub tunnel: TunnelTag,
}

/// Names the tunnel of a packet until the core is called again, for [`super::Core::charge`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelTag(pub(super) Option<u32>);

impl TunnelTag {
    /// Of what is sent to see whether it gets through: its loss is an answer.
    pub(super) const TRIAL: Self = Self(Some(u32::MAX));
}

/// Packets that came in together, one after the other in one piece of memory, each with a tag: a
/// datagram's is its [`Arrival`], that of a packet from the TUN its [`crate::offload::VnetHeader`].
#[derive(Debug)]
pub struct Batch<T> {
    bytes: Box<[u8]>,
    used: usize,
    entries: Vec<Entry<T>>,
}

/// What came with one system call: a packet, or several of equal length.
#[derive(Debug)]
struct Entry<T> {
    tag: T,
    range: Range<usize>,
    /// Length of each packet but the last, which may be shorter.
    segment: usize,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { bytes: vec![0; BATCH_BYTES].into(), used: 0, entries: Vec::with_capacity(BATCH) }
    }
}

impl<T> Batch<T> {
    /// Forgets the packets; the memory stays.
    pub fn clear(&mut self) {
        self.used = 0;
        self.entries.clear();
    }

    /// Room for one more packet, of whatever size, if the batch takes one more.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        if self.is_full() {
            return None;
        }
        self.bytes.get_mut(self.used..)
    }

    /// Takes in the packet that was written to the first `length` bytes of [`Self::room`].
    pub fn push(&mut self, tag: T, length: usize) {
        self.push_segments(tag, length, length);
    }

    /// The same for a packet that is the bytes from `start` to `end` of the room.
    pub(crate) fn push_part(&mut self, tag: T, start: usize, end: usize) {
        let base = self.used;
        let end = (base + end).min(self.bytes.len());
        let range = (base + start).min(end)..end;
        self.entries.push(Entry { tag, segment: range.len().max(1), range });
        self.used = end;
    }

    /// Takes in packets of `segment` bytes each, but for the last one, which lie one after the other in
    /// the first `length` bytes of [`Self::room`] (UDP GRO). They count as one for [`BATCH`].
    pub fn push_segments(&mut self, tag: T, length: usize, segment: usize) {
        let end = (self.used + length).min(self.bytes.len());
        self.entries.push(Entry { tag, range: self.used..end, segment: segment.max(1) });
        self.used = end;
    }

    /// How many packets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.iter().map(|entry| entry.range.len().div_ceil(entry.segment).max(1)).sum()
    }

    /// Whether it takes no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= BATCH || self.bytes.len() - self.used.min(self.bytes.len()) < LARGEST
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The packets in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&T, &[u8])> {
        self.entries.iter().flat_map(|entry| {
            let bytes = &self.bytes[entry.range.clone()];
            // An empty datagram is one, too.
            let empty = bytes.is_empty().then_some(bytes);
            bytes.chunks(entry.segment).chain(empty).map(|packet| (&entry.tag, packet))
        })
    }

    /// What came with each system call: tag, length of each packet but the last, bytes.
    pub(crate) fn units(&self) -> impl Iterator<Item = (&T, usize, &[u8])> {
        self.entries.iter().map(|entry| (&entry.tag, entry.segment, &self.bytes[entry.range.clone()]))
    }

    /// What came with each system call, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&T, &mut [u8])> {
        let mut rest = &mut *self.bytes;
        let mut at = 0;
        self.entries.iter().map(move |entry| {
            let (before, after) = std::mem::take(&mut rest).split_at_mut(entry.range.end - at);
            let start = entry.range.start - at;
            (rest, at) = (after, entry.range.end);
            (&entry.tag, &mut before[start..])
        })
    }
}

/// Where the core puts what leaves it: room is asked for, written to, then committed. Asking again without
/// having committed gives the same room, with what was written still there. A sink that gathers packets
/// for one system call hands out room in its own send buffer.
pub trait Sink {
    /// Room for a datagram of up to `length` bytes, at most [`MAX_DATAGRAM`]. Must give at least that much.
    fn datagram(&mut self, length: usize) -> &mut [u8];

    /// Sends the first `length` bytes of the room. Datagrams to one destination leave in the order in which
    /// they were sent.
    ///
    /// # Errors
    /// Why the datagram was lost, if the sink knows at once; if it finds out later, [`super::Core::charge`]
    /// is to be told.
    fn send(&mut self, length: usize, how: Departure) -> Result<(), DropCause>;

    /// Room for an inner packet of up to `length` bytes.
    fn packet(&mut self, length: usize) -> &mut [u8];

    /// Writes the first `length` bytes of the room, a packet that came through `tunnel`, to the TUN. Packets
    /// of one flow leave in the order in which they were delivered.
    ///
    /// # Errors
    /// As for [`Self::send`].
    fn deliver(&mut self, length: usize, tunnel: TunnelTag) -> Result<(), DropCause>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_always_has_room_for_the_largest_packet_until_it_is_full() {
        let mut batch = Batch::<()>::default();
        let mut n = 0;
        while let Some(room) = batch.room() {
            room[0] = n as u8;
            batch.push((), if n % 2 == 0 { 65_535 } else { 1 });
            n += 1;
        }
        assert_eq!(batch.len(), 7);
        assert!(batch.iter().enumerate().all(|(i, (_, packet))| packet[0] == i as u8));
        batch.clear();
        while batch.room().is_some() {
            batch.push((), 1420);
        }
        assert_eq!(batch.len(), BATCH);
    }

    #[test]
    fn what_came_as_one_is_told_apart() {
        let mut batch = Batch::<u8>::default();
        for (tag, length, segment) in [(1, 250, 100), (2, 0, 0), (3, 100, 100), (4, 7, 1000)] {
            batch.room().unwrap()[..length].fill(tag);
            batch.push_segments(tag, length, segment);
        }
        batch.room().unwrap()[..12].copy_from_slice(&[0, 0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]);
        batch.push_part(5, 2, 12);
        let packets: Vec<_> = batch.iter().map(|(&tag, packet)| (tag, packet.len())).collect();
        assert_eq!(packets, [(1, 100), (1, 100), (1, 50), (2, 0), (3, 100), (4, 7), (5, 10)]);
        assert_eq!(batch.len(), 7);
        assert!(batch.iter().all(|(tag, packet)| packet.iter().all(|byte| byte == tag)));
        let whole: Vec<_> = batch.iter_mut().map(|(&tag, bytes)| (tag, bytes.to_vec())).collect();
        assert_eq!(
            whole,
            [(1, vec![1; 250]), (2, vec![]), (3, vec![3; 100]), (4, vec![4; 7]), (5, vec![5; 10])]
        );
    }
}
