//! Merging packets that came out of tunnels into big ones for the TUN.

use std::io::IoSlice;

use super::shape::{Belongs, Shape, Transport, address_hash};
use super::vnet::{Gso, GsoKind, Partial, VNET_HEADER, VnetHeader};

/// Packets that are gathered at most before they must be written.
pub const MAX_PACKETS: usize = 256;
/// Packets that one big packet is made of at most: what the kernel takes for UDP, and more TCP than fits
/// into one at any usual MTU.
pub const MAX_MERGED: usize = 64;
/// Memory for packets, bytes. Small enough to stay in a processor's cache.
pub const ARENA_BYTES: usize = 4 * 65_536;
/// The longest packet that comes out of merging, bytes: its length must fit into 16 bits (of IPv6, whose
/// length leaves out its header, a little less than possible).
const MAX_PACKET: usize = 65_535;
/// Flows that are open at once; more of them make one another close early.
const FLOWS: usize = 64;
/// The longest headers of what is merged: IPv6 and TCP with all options.
const MAX_MERGED_HEADERS: usize = 40 + 60;

const NONE: u16 = u16::MAX;

/// What is to be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

/// One packet in the arena.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    length: u32,
    /// The next one of the same item.
    next: u16,
}

/// What is written at once: a packet, or several of one flow.
#[derive(Clone, Copy, Debug)]
struct Item<T> {
    tag: T,
    first: u16,
    last: u16,
    count: u16,
    /// What the shape of the first one is, if more may come.
    shape: Option<Shape>,
    /// Payload of the first, which all but the last have.
    size: u16,
    /// Payload of all together.
    payload: u32,
    /// Whether the checksums of the first are known to be right.
    checked: bool,
    /// Whether the last one has TCP's PSH.
    pushed: bool,
}

/// The item that a flow's next packet may join.
#[derive(Clone, Copy, Debug)]
struct Open {
    flow: u32,
    addresses: u32,
    item: u16,
}

const CLOSED: Open = Open { flow: 0, addresses: 0, item: NONE };

/// Gathers packets and gives them out merged where they may be. Packets of a flow leave in the order in
/// which they came; a packet joins only the item that was the last of its flow.
///
/// TCP is merged if sequence numbers follow on each other and all else is the same: addresses, ports,
/// TTL, traffic class with its ECN bits, flow label, acknowledgement, window, options with their
/// timestamps. Flags are ACK alone, with PSH on the last one. UDP is merged if its payloads are equally
/// long, but for the last one, which may be shorter. Fragments, IPv4 options, IPv6 extension headers,
/// packets without payload or without checksum, and those whose checksum is wrong are passed on as they
/// are.
///
/// Like [`crate::core::Sink`] it hands out room first; what was written there is then committed.
#[derive(Debug)]
pub struct Coalescer<T> {
    arena: Box<[u8]>,
    used: usize,
    pieces: Vec<Piece>,
    items: Vec<Item<T>>,
    flows: [Open; FLOWS],
    merge: Merge,
}

impl<T: Copy> Coalescer<T> {
    /// An empty one.
    #[must_use]
    pub fn new(merge: Merge) -> Self {
        Self {
            arena: vec![0; ARENA_BYTES].into(),
            used: 0,
            pieces: Vec::with_capacity(MAX_PACKETS),
            items: Vec::with_capacity(MAX_PACKETS),
            flows: [CLOSED; FLOWS],
            merge,
        }
    }

    /// What it merges.
    #[must_use]
    pub fn merges(&self) -> Merge {
        self.merge
    }

    /// Changes that, for packets that come from now on.
    pub fn set_merge(&mut self, merge: Merge) {
        self.merge = merge;
    }

    /// Whether there is nothing to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether one more packet of up to `length` bytes has room.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        self.pieces.len() < MAX_PACKETS && VNET_HEADER + length <= self.arena.len() - self.used
    }

    /// Room for the next packet; none, or too little, if [`Self::has_room`] says no.
    pub fn room(&mut self) -> &mut [u8] {
        self.arena.get_mut(self.used + VNET_HEADER..).unwrap_or_default()
    }

    /// Takes in the packet of `length` bytes in [`Self::room`], which is as long as its IP header says.
    pub fn commit(&mut self, length: usize, tag: T) {
        // Before each packet there is room for a header, so that one that goes alone is one piece with it.
        self.arena[self.used..self.used + VNET_HEADER].fill(0);
        let start = self.used + VNET_HEADER;
        debug_assert!(length <= self.arena.len() - start && self.pieces.len() < MAX_PACKETS);
        let (rest, packet) = (&self.arena[..start], &self.arena[start..start + length]);
        let piece = self.pieces.len() as u16;
        let (flow, shape) = match Shape::of(packet) {
            Belongs::Flow(flow, shape) => (flow, shape),
            Belongs::Unknown => {
                let addresses = address_hash(packet);
                self.flows
                    .iter_mut()
                    .filter(|open| open.addresses == addresses)
                    .for_each(|open| *open = CLOSED);
                self.push(start, length, tag, None);
                return;
            }
        };
        let wanted = match shape.transport {
            Transport::Tcp => self.merge.tcp,
            Transport::Udp => self.merge.udp,
        };
        let mergeable = wanted && shape.mergeable;
        let open = &mut self.flows[flow as usize % FLOWS];
        if mergeable
            && open.item != NONE
            && open.flow == flow
            && let Some(item) = self.items.get_mut(usize::from(open.item))
            && item.takes(&shape, rest, packet, &self.pieces)
        {
            self.pieces[usize::from(item.last)].next = piece;
            item.last = piece;
            item.count += 1;
            item.payload += shape.payload as u32;
            item.pushed = shape.ends;
            if shape.ends || shape.payload < usize::from(item.size) || usize::from(item.count) == MAX_MERGED {
                *open = CLOSED;
            }
            self.add_piece(start, length);
            return;
        }
        // A new item; that of the flow before, if there is one, is closed.
        *open = if mergeable && !shape.ends {
            Open { flow, addresses: address_hash(packet), item: self.items.len() as u16 }
        } else {
            CLOSED
        };
        self.push(start, length, tag, mergeable.then_some(shape));
    }

    /// Adds an item of one packet.
    fn push(&mut self, start: usize, length: usize, tag: T, shape: Option<Shape>) {
        let piece = self.pieces.len() as u16;
        let payload = shape.map_or(0, |shape| shape.payload);
        self.items.push(Item {
            tag,
            first: piece,
            last: piece,
            count: 1,
            shape,
            size: payload as u16,
            payload: payload as u32,
            checked: false,
            pushed: false,
        });
        self.add_piece(start, length);
    }

    fn add_piece(&mut self, start: usize, length: usize) {
        self.pieces.push(Piece { start: start as u32, length: length as u32, next: NONE });
        self.used = start + length;
    }

    /// Gives out what was gathered, in order, and forgets it.
    pub fn flush(&mut self, mut write: impl FnMut(&Merged<'_, T>)) {
        for item in &self.items {
            write(&Merged { arena: &self.arena, pieces: &self.pieces, item });
        }
        self.used = 0;
        self.pieces.clear();
        self.items.clear();
        self.flows = [CLOSED; FLOWS];
    }
}

impl<T> Item<T> {
    /// Whether the packet may be merged with the item. `arena` holds the packets before it.
    fn takes(&mut self, shape: &Shape, arena: &[u8], packet: &[u8], pieces: &[Piece]) -> bool {
        let Some(own) = &self.shape else { return false };
        if (own.transport, own.network, own.headers) != (shape.transport, shape.network, shape.headers)
            || shape.payload > usize::from(self.size)
            || own.headers + self.payload as usize + shape.payload > MAX_PACKET
        {
            return false;
        }
        let first = pieces[usize::from(self.first)];
        let first = &arena[first.start as usize..][..first.length as usize];
        if !own.follows(first, packet, self.count.into(), self.payload as usize)
            || !shape.checksums_are_right(packet)
        {
            return false;
        }
        if !self.checked && !own.checksums_are_right(first) {
            return false;
        }
        self.checked = true;
        true
    }
}

/// One thing to be written to the TUN.
#[derive(Debug)]
pub struct Merged<'a, T> {
    arena: &'a [u8],
    pieces: &'a [Piece],
    item: &'a Item<T>,
}

impl<T: Copy> Merged<'_, T> {
    /// What the first packet came with.
    #[must_use]
    pub fn tag(&self) -> T {
        self.item.tag
    }

    /// How many packets it is made of.
    #[must_use]
    pub fn count(&self) -> usize {
        self.item.count.into()
    }

    /// The packets as they came.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = self.item.first;
        std::iter::from_fn(move || {
            let piece = self.pieces.get(usize::from(next))?;
            next = piece.next;
            Some(self.packet(piece))
        })
    }

    fn packet(&self, piece: &Piece) -> &[u8] {
        &self.arena[piece.start as usize..][..piece.length as usize]
    }

    /// The same, each after a `virtio_net_hdr` that says nothing.
    pub fn plain(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = self.item.first;
        std::iter::from_fn(move || {
            let piece = self.pieces.get(usize::from(next))?;
            next = piece.next;
            let start = piece.start as usize;
            Some(&self.arena[start - VNET_HEADER..start + piece.length as usize])
        })
    }

    /// Whether it is TCP, or else UDP, that was merged; `None` if nothing was.
    #[must_use]
    pub fn kind(&self) -> Option<GsoKind> {
        let shape = self.item.shape.filter(|_| self.item.count > 1)?;
        Some(match (shape.transport, shape.network) {
            (Transport::Udp, _) => GsoKind::Udp,
            (Transport::Tcp, 20) => GsoKind::TcpV4,
            (Transport::Tcp, _) => GsoKind::TcpV6,
        })
    }

    /// Hands the packet over in pieces, the first of which begins with its `virtio_net_hdr`.
    pub fn write<R>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let (Some(kind), Some(shape)) = (self.kind(), self.item.shape) else {
            return write(&[IoSlice::new(self.plain().next().unwrap_or_default())]);
        };
        let offset = if shape.transport == Transport::Tcp { 16 } else { 6 };
        let header = VnetHeader {
            partial: Some(Partial { start: shape.network as u16, offset }),
            gso: Some(Gso { kind, size: self.item.size, cwr: false }),
            headers: shape.headers as u16,
        };
        let first = &self.pieces[usize::from(self.item.first)];
        let first = self.packet(first);
        let mut space = [0; VNET_HEADER + MAX_MERGED_HEADERS];
        let space = &mut space[..VNET_HEADER + shape.headers];
        let (vnet, merged) = space.split_at_mut(VNET_HEADER);
        vnet.copy_from_slice(&header.encode());
        merged.copy_from_slice(&first[..shape.headers]);
        self.rewrite(&shape, merged);

        let mut slices = [IoSlice::new(&[]); MAX_MERGED + 1];
        slices[0] = IoSlice::new(space);
        let mut n = 1;
        for packet in self.packets() {
            slices[n] = IoSlice::new(&packet[shape.headers..]);
            n += 1;
        }
        write(&slices[..n])
    }

    /// Makes the first packet's headers those of the big one.
    fn rewrite(&self, shape: &Shape, headers: &mut [u8]) {
        let length = shape.headers + self.item.payload as usize;
        let own = (length - shape.network) as u16;
        let partial = shape.pseudo(headers).and(super::checksum::Sum::of_u16(own)).fold();
        if shape.network == 20 {
            headers[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            headers[10..12].copy_from_slice(&[0, 0]);
            let checksum = super::checksum::Sum::of(&headers[..20]).finish();
            headers[10..12].copy_from_slice(&checksum);
        } else {
            headers[4..6].copy_from_slice(&own.to_be_bytes());
        }
        let transport = &mut headers[shape.network..];
        match shape.transport {
            Transport::Tcp => {
                transport[13] |= if self.item.pushed { 0x08 } else { 0 };
                transport[16..18].copy_from_slice(&partial);
            }
            Transport::Udp => {
                transport[4..6].copy_from_slice(&own.to_be_bytes());
                transport[6..8].copy_from_slice(&partial);
            }
        }
    }
}
