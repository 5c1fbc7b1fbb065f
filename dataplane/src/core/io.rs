//! How packets get into the core and out of it.

use std::net::SocketAddr;
use std::ops::Range;

use crate::counters::DropCause;

/// The longest payload of a UDP datagram, bytes (RFC 768 with the smallest IPv4 header).
pub const MAX_DATAGRAM: usize = 65_507;

/// What WireGuard adds to an inner packet, bytes (WireGuard paper, section 5.4.6).
pub const OVERHEAD: usize = 32;

/// How many packets a batch holds at most.
pub const BATCH: usize = 64;

/// Memory of a batch, bytes: [`BATCH`] packets of the usual size, and always room for one of the largest.
const BATCH_BYTES: usize = 4 * 65_536;

/// Packets that came in together, one after the other in one piece of memory, each with a tag: a
/// datagram's is its source address, a packet from the TUN has none.
#[derive(Debug)]
pub struct Batch<T> {
    bytes: Box<[u8]>,
    used: usize,
    entries: Vec<(T, Range<usize>)>,
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
        let room = self.bytes.get_mut(self.used..)?;
        (self.entries.len() < BATCH && room.len() >= 65_536).then_some(room)
    }

    /// Takes in the packet that was written to the first `length` bytes of [`Self::room`].
    pub fn push(&mut self, tag: T, length: usize) {
        let end = (self.used + length).min(self.bytes.len());
        self.entries.push((tag, self.used..end));
        self.used = end;
    }

    /// How many packets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The packets in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&T, &[u8])> {
        self.entries.iter().map(|(tag, range)| (tag, &self.bytes[range.clone()]))
    }
}

/// Where the core puts what leaves it: room is asked for, written to, then committed. Asking again without
/// having committed gives the same room, with what was written still there. A sink that gathers packets
/// for one system call hands out room in its own send buffer.
pub trait Sink {
    /// Room for a datagram of up to `length` bytes, at most [`MAX_DATAGRAM`]. Must give at least that much.
    fn datagram(&mut self, length: usize) -> &mut [u8];

    /// Sends the first `length` bytes of the room to `to`.
    ///
    /// # Errors
    /// Why the datagram was lost, if the sink knows at once; one that finds out later counts it itself.
    fn send(&mut self, length: usize, to: SocketAddr) -> Result<(), DropCause>;

    /// Room for an inner packet of up to `length` bytes.
    fn packet(&mut self, length: usize) -> &mut [u8];

    /// Writes the first `length` bytes of the room to the TUN.
    ///
    /// # Errors
    /// As for [`Self::send`].
    fn deliver(&mut self, length: usize) -> Result<(), DropCause>;
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
}
