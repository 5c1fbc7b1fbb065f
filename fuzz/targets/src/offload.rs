//! Cutting and merging packets.

use std::collections::BTreeMap;

use podspan_dataplane::offload::{Coalescer, Merge, Segments, VNET_HEADER, VnetHeader};

/// How many packets of one input are merged.
const PACKETS: usize = 48;

/// Cuts a packet; each piece must be as long as its IP header says, and no byte may be lost.
fn cut(header: VnetHeader, packet: &mut [u8]) -> Option<Vec<Vec<u8>>> {
    let length = packet.len();
    let mut segments = Segments::new(header, packet)?;
    let (count, bytes) = (segments.count(), segments.bytes());
    let mut all = Vec::new();
    while let Some(segment) = segments.advance() {
        all.push(segment.to_vec());
    }
    assert_eq!((all.len(), all.iter().map(Vec::len).sum()), (count, bytes));
    match header.gso {
        None => assert_eq!((count, bytes), (1, length)),
        Some(_) => all.iter().for_each(|packet| assert_eq!(packet.len(), length_by_header(packet))),
    }
    Some(all)
}

fn length_by_header(packet: &[u8]) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if packet[0] >> 4 == 4 { word(2) } else { word(4) + 40 }
}

/// The input is a `virtio_net_hdr` and a packet, as a TUN gives them.
pub fn segments(data: &[u8]) {
    let Some((header, packet)) = data.split_first_chunk::<VNET_HEADER>() else { return };
    let Some(header) = VnetHeader::decode(header) else { return };
    assert_eq!(VnetHeader::decode(&header.encode()), Some(header));
    cut(header, &mut packet.to_vec());
}

/// A TCP or UDP packet over IPv4 or IPv6, as `kind` says, with right checksums.
fn template(kind: u8, sequence: u32, id: u16, payload: &[u8]) -> Vec<u8> {
    let (udp, v6) = (kind & 1 != 0, kind & 2 != 0);
    let own = if udp { 8 } else { 32 };
    let mut packet = if v6 {
        let mut p = vec![0x60, 0, 0, 0];
        p.extend(((own + payload.len()) as u16).to_be_bytes());
        p.extend([if udp { 17 } else { 6 }, 64]);
        p.extend([0xfd, 0, 0, 1].iter().chain(&[0; 11]).chain(&[2]));
        p.extend([0xfd, 0, 0, 2].iter().chain(&[0; 11]).chain(&[3]));
        p
    } else {
        let mut p = vec![0x45, 0];
        p.extend(((20 + own + payload.len()) as u16).to_be_bytes());
        p.extend(id.to_be_bytes());
        p.extend([if kind & 4 != 0 { 0x40 } else { 0 }, 0, 64, if udp { 17 } else { 6 }, 0, 0]);
        p.extend([10, 1, 0, 2, 10, 2, 0, 3]);
        p
    };
    packet.extend([0x9c, 0x40, 1, 0xbb]);
    if udp {
        packet.extend(((8 + payload.len()) as u16).to_be_bytes());
        packet.extend([0, 0]);
    } else {
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 9, 0x80, if kind & 8 != 0 { 0x18 } else { 0x10 }, 1, 0, 0, 0, 0, 0]);
        packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    packet.extend(payload);
    fill_checksums(&mut packet);
    packet
}

/// Fills in the checksums, if it is TCP or UDP without IPv4 options and IPv6 extension headers.
fn fill_checksums(packet: &mut [u8]) {
    let sum = |bytes: &[u8], start: u32| {
        bytes.chunks(2).fold(start, |sum, pair| {
            let sum = sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            (sum & 0xffff) + (sum >> 16)
        })
    };
    let (network, protocol, addresses) = match packet[0] {
        0x45 => (20, packet[9], 12..20),
        first if first >> 4 == 6 => (40, packet[6], 8..40),
        _ => return,
    };
    if network == 20 {
        packet[10..12].fill(0);
        let checksum = !(sum(&packet[..20], 0) as u16);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    let at = network
        + match protocol {
            6 => 16,
            17 => 6,
            _ => return,
        };
    if at + 2 > packet.len() {
        return;
    }
    packet[at..at + 2].fill(0);
    let length = ((packet.len() - network) as u16).to_be_bytes();
    let pseudo = sum(&length, sum(&packet[addresses], u32::from(protocol)));
    let mut checksum = !(sum(&packet[network..], pseudo) as u16);
    if checksum == 0 && protocol == 17 {
        checksum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// What must stay in order among itself: a TCP or UDP flow, or what is between two addresses.
fn flow(packet: &[u8]) -> Vec<u8> {
    let end = packet.len();
    match packet[0] >> 4 {
        4 if packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0 && matches!(packet[9], 6 | 17) => {
            [&packet[9..10], &packet[12..end.min(24)]].concat()
        }
        6 if matches!(packet[6], 6 | 17) => [&packet[6..7], &packet[8..end.min(44)]].concat(),
        4 => packet[12..20].to_vec(),
        _ => packet[8..40].to_vec(),
    }
}

/// By flow, without the identification of what may not be fragmented (RFC 6864 section 4.1).
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        let mut canonical = packet.clone();
        if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
            canonical[4..6].fill(0);
            canonical[10..12].fill(0);
        }
        flows.entry(flow(packet)).or_default().push(canonical);
    }
    flows
}

/// The input is a list of packets: a byte for the kind, one for the length of the payload, and one for how
/// many bytes are changed, by position and mask. Merged and cut again they must be what they were.
pub fn coalesce(data: &[u8]) {
    let mut rest = data;
    let mut packets = Vec::new();
    // Where each kind of flow stands.
    let mut sequences = [1_u32; 4];
    let mut ids = [1_u16; 4];
    while packets.len() < PACKETS {
        let &[kind, length, changes, ref tail @ ..] = rest else { break };
        let (changed, after) = tail.split_at(tail.len().min(2 * usize::from(changes % 4)));
        rest = after;
        let flow = usize::from(kind & 3);
        let payload = vec![kind; usize::from(length) * 8];
        let mut packet = template(kind, sequences[flow], ids[flow], &payload);
        sequences[flow] = sequences[flow].wrapping_add(payload.len() as u32);
        ids[flow] = ids[flow].wrapping_add(1);
        for change in changed.chunks_exact(2) {
            let at = usize::from(change[0]) % packet.len();
            // The core passes on only what is as long as it says.
            let is_length = matches!((packet[0] >> 4, at), (_, 0) | (4, 2 | 3) | (6, 4 | 5));
            if !is_length {
                packet[at] ^= change[1];
            } else if at == 0 && packet[0] >> 4 == 4 && change[1] & 1 != 0 {
                // Options, where the transport header would be.
                packet[0] = 0x46;
            }
        }
        if kind & 16 != 0 {
            fill_checksums(&mut packet);
        }
        packets.push(packet);
    }

    let merge = Merge { tcp: !data.len().is_multiple_of(7), udp: !data.len().is_multiple_of(5) };
    let mut coalescer = Coalescer::new(merge);
    let mut again = Vec::new();
    let mut flush = |coalescer: &mut Coalescer<usize>| {
        coalescer.flush(|merged| {
            let bytes =
                merged.write(|slices| slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>());
            let (header, packet) = bytes.split_first_chunk::<VNET_HEADER>().expect("there is a header");
            let header = VnetHeader::decode(header).expect("the header makes sense");
            let parts = cut(header, &mut packet.to_vec()).expect("what was merged can be cut");
            assert_eq!(parts.len(), merged.count());
            let before: Vec<Vec<u8>> = merged.packets().map(<[u8]>::to_vec).collect();
            assert_eq!(by_flow(&parts), by_flow(&before));
            assert_eq!(packets[merged.tag()], before[0]);
            again.extend(parts);
        });
    };
    for (number, packet) in packets.iter().enumerate() {
        if !coalescer.has_room(packet.len()) {
            flush(&mut coalescer);
        }
        coalescer.room()[..packet.len()].copy_from_slice(packet);
        coalescer.commit(packet.len(), number);
    }
    flush(&mut coalescer);
    assert_eq!(by_flow(&again), by_flow(&packets));
}
