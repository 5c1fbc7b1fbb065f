//! Segmentation and coalescing, against an implementation that does everything the long way, and against
//! each other.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use podspan_dataplane::offload::{
    Coalescer, Gso, GsoKind, MAX_MERGED, Merge, Partial, Segments, VNET_HEADER, VnetHeader,
};
use proptest::prelude::*;

const BOTH: Merge = Merge { tcp: true, udp: true };
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What a packet is made of.
#[derive(Clone, Debug)]
struct Recipe {
    v6: bool,
    udp: bool,
    source_port: u16,
    /// DSCP and ECN.
    class: u8,
    ttl: u8,
    id: u16,
    dont_fragment: bool,
    /// A multiple of four bytes of TCP options.
    options: Vec<u8>,
    sequence: u32,
    acknowledgement: u32,
    window: u16,
    flags: u8,
    payload: Vec<u8>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            v6: false,
            udp: false,
            source_port: 40_000,
            class: 0,
            ttl: 64,
            id: 100,
            dont_fragment: true,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            sequence: 1000,
            acknowledgement: 7,
            window: 500,
            flags: ACK,
            payload: vec![],
        }
    }
}

fn slow_sum(bytes: &[u8], mut sum: u32) -> u32 {
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Fills in the checksums of a packet without options and extension headers.
fn fill_checksums(packet: &mut [u8]) {
    let v6 = packet[0] >> 4 == 6;
    let network = if v6 { 40 } else { 20 };
    let protocol = packet[if v6 { 6 } else { 9 }];
    if !v6 {
        packet[10..12].fill(0);
        let sum = !(slow_sum(&packet[..20], 0) as u16);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = network + if protocol == 6 { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let addresses = if v6 { 8..40 } else { 12..20 };
    let mut sum = slow_sum(&packet[addresses], u32::from(protocol));
    sum = slow_sum(&((packet.len() - network) as u16).to_be_bytes(), sum);
    let mut checksum = !(slow_sum(&packet[network..], sum) as u16);
    if checksum == 0 && protocol == 17 {
        checksum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

impl Recipe {
    fn headers(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + if self.udp { 8 } else { 20 + self.options.len() }
    }

    /// The packet with all its checksums.
    fn packet(&self) -> Vec<u8> {
        let protocol = if self.udp { 17 } else { 6 };
        let length = self.headers() + self.payload.len();
        let mut packet = if self.v6 {
            let mut p = vec![0x60 | self.class >> 4, self.class << 4 | 1, 2, 3];
            p.extend(((length - 40) as u16).to_be_bytes());
            p.extend([protocol, self.ttl]);
            p.extend([0xfd, 0, 0, 1].iter().chain(&[0; 11]).chain(&[2]));
            p.extend([0xfd, 0, 0, 2].iter().chain(&[0; 11]).chain(&[3]));
            p
        } else {
            let mut p = vec![0x45, self.class];
            p.extend((length as u16).to_be_bytes());
            p.extend(self.id.to_be_bytes());
            p.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            p.extend([10, 1, 0, 2, 10, 2, 0, 3]);
            p
        };
        packet.extend(self.source_port.to_be_bytes());
        packet.extend(443_u16.to_be_bytes());
        if self.udp {
            packet.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            packet.extend([0, 0]);
        } else {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(self.acknowledgement.to_be_bytes());
            packet.extend([((20 + self.options.len()) / 4 * 16) as u8, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0, 0, 0, 0]);
            packet.extend(&self.options);
        }
        packet.extend(&self.payload);
        fill_checksums(&mut packet);
        packet
    }

    /// The big packet as a TUN gives it, to be cut into payloads of `size` bytes.
    fn big(&self, size: u16) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.packet();
        let network = if self.v6 { 40 } else { 20 };
        let offset: u16 = if self.udp { 6 } else { 16 };
        let at = network + usize::from(offset);
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let sum = slow_sum(&packet[addresses], if self.udp { 17 } else { 6 });
        let sum = slow_sum(&((packet.len() - network) as u16).to_be_bytes(), sum);
        packet[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        let kind = match (self.udp, self.v6) {
            (true, _) => GsoKind::Udp,
            (false, false) => GsoKind::TcpV4,
            (false, true) => GsoKind::TcpV6,
        };
        let partial = Some(Partial { start: network as u16, offset });
        let gso = Some(Gso { kind, size, cwr: self.flags & 0x80 != 0 });
        (VnetHeader { partial, gso, headers: 0 }, packet)
    }

    /// What cutting it must give, done the long way: each packet made on its own.
    fn cut(&self, size: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let n = self.payload.len().div_ceil(size).max(1);
        for i in 0..n {
            let mut one = self.clone();
            one.payload = self.payload[i * size..((i + 1) * size).min(self.payload.len())].to_vec();
            one.id = self.id.wrapping_add(i as u16);
            one.sequence = self.sequence.wrapping_add((i * size) as u32);
            if i > 0 {
                one.flags &= !0x80;
            }
            if i + 1 < n {
                one.flags &= !(PSH | 1);
            }
            packets.push(one.packet());
        }
        packets
    }
}

fn segments(header: VnetHeader, packet: &mut [u8]) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(header, packet).expect("the kernel gave it");
    let count = segments.count();
    let mut all = Vec::new();
    while let Some(segment) = segments.advance() {
        all.push(segment.to_vec());
    }
    assert_eq!(all.len(), count);
    all
}

/// Coalesces, and gives back what would be written.
fn coalesce(merge: Merge, packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut coalescer = Coalescer::new(merge);
    let mut written = Vec::new();
    let flush = |coalescer: &mut Coalescer<()>, written: &mut Vec<(VnetHeader, Vec<u8>)>| {
        coalescer.flush(|merged| {
            let bytes = merged.write(|slices| slices.iter().flat_map(|s| s.to_vec()).collect::<Vec<u8>>());
            let (header, packet) = bytes.split_first_chunk::<VNET_HEADER>().unwrap();
            assert_eq!(merged.packets().count(), merged.count());
            assert!(merged.count() <= MAX_MERGED && packet.len() <= 65_535);
            written.push((VnetHeader::decode(header).unwrap(), packet.to_vec()));
        });
    };
    for packet in packets {
        if !coalescer.has_room(packet.len()) {
            flush(&mut coalescer, &mut written);
        }
        coalescer.room()[..packet.len()].copy_from_slice(packet);
        coalescer.commit(packet.len(), ());
    }
    flush(&mut coalescer, &mut written);
    assert!(coalescer.is_empty());
    written
}

/// What flow a packet belongs to, for comparison: addresses, protocol and ports, or the first two alone.
fn flow(packet: &[u8]) -> Vec<u8> {
    match packet[0] >> 4 {
        4 if packet[0] == 0x45 && packet[6] & 0x3f == 0 && packet[7] == 0 => {
            [&packet[9..10], &packet[12..24.min(packet.len())]].concat()
        }
        4 => packet[12..20].to_vec(),
        _ => [&packet[6..7], &packet[8..44.min(packet.len())]].concat(),
    }
}

/// A packet without the identification that nobody may look at.
fn canonical(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        flows.entry(flow(packet)).or_default().push(canonical(packet));
    }
    flows
}

/// Coalescing and cutting again must give the same packets, in order within each flow.
fn assert_same_stream(packets: &[Vec<u8>]) -> usize {
    let written = coalesce(BOTH, packets);
    let count = written.len();
    let again: Vec<Vec<u8>> = written
        .into_iter()
        .flat_map(|(header, mut packet)| match header.gso {
            Some(_) => segments(header, &mut packet),
            None => vec![packet],
        })
        .collect();
    assert_eq!(by_flow(&again), by_flow(packets));
    count
}

fn recipe() -> impl Strategy<Value = Recipe> {
    (
        (any::<bool>(), any::<bool>(), 40_000_u16..40_003, any::<u8>(), 60_u8..64),
        (any::<u16>(), any::<bool>(), 0_usize..=10, any::<u32>(), any::<u32>(), any::<u16>()),
        (prop::sample::select(vec![ACK, ACK | PSH, ACK | 1, ACK | 0x80, ACK | 0x40]), any::<u64>()),
    )
        .prop_map(
            |((v6, udp, source_port, class, ttl), (id, dont_fragment, options, seq, ack, window), rest)| {
                Recipe {
                    v6,
                    udp,
                    source_port,
                    class,
                    ttl,
                    id,
                    dont_fragment,
                    options: (0..options * 4).map(|i| i as u8).collect(),
                    sequence: seq,
                    acknowledgement: ack,
                    window,
                    flags: rest.0,
                    payload: rest.1.to_le_bytes().to_vec(),
                }
            },
        )
}

fn payload(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(seed | 1) >> 3) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn cutting_is_what_the_long_way_gives(mut recipe in recipe(), length in 0_usize..20_000, size in 1_u16..9000, seed: u64) {
        recipe.payload = payload(length.min(usize::from(size) * 80), seed);
        let (header, mut packet) = recipe.big(size);
        prop_assert_eq!(segments(header, &mut packet), recipe.cut(size.into()));
    }

    #[test]
    fn a_partial_checksum_is_completed(mut recipe in recipe(), length in 0_usize..3000, seed: u64) {
        recipe.payload = payload(length, seed);
        let (mut header, mut packet) = recipe.big(1);
        header.gso = None;
        let mut expected = recipe.packet();
        let at = header.partial.unwrap();
        let at = usize::from(at.start + at.offset);
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xff);
        }
        prop_assert_eq!(segments(header, &mut packet), [expected]);
    }

    #[test]
    fn what_was_cut_is_put_together_again(mut recipe in recipe(), length in 1_usize..60_000, size in 100_u16..1400, seed: u64) {
        recipe.flags = if seed & 1 == 0 { ACK } else { ACK | PSH };
        recipe.payload = payload(length.min(usize::from(size) * MAX_MERGED), seed);
        let cut = recipe.cut(size.into());
        let written = coalesce(BOTH, &cut);
        prop_assert_eq!(written.len(), 1);
        if cut.len() > 1 {
            let (mut header, packet) = recipe.big(size);
            header.headers = recipe.headers() as u16;
            prop_assert_eq!(&written[0], &(header, packet));
        }
        assert_same_stream(&cut);
    }

    /// Streams of some flows, mixed, with packets changed, lost, doubled and swapped on the way.
    #[test]
    fn no_stream_is_changed(
        recipes in prop::collection::vec((recipe(), 0_usize..6000, 50_u16..1400), 1..6),
        order in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..40, any::<u16>(), any::<u8>()), 1..120),
    ) {
        let mut flows: Vec<_> = recipes.into_iter().map(|(mut recipe, length, size)| {
            recipe.payload = payload(length, u64::from(size));
            recipe.cut(size.into()).into_iter()
        }).collect();
        let mut packets: Vec<Vec<u8>> = Vec::new();
        for (index, action, at, mask) in order {
            let Some(mut packet) = index.get_mut(&mut flows).next() else { continue };
            match action {
                0 => continue,
                1 => packets.push(packet.clone()),
                2 => if let Some(last) = packets.pop() { packets.push(packet); packet = last },
                // Anything but the version and what says how long it is, with right checksums and without.
                3 | 4 => {
                    let at = usize::from(at) % packet.len();
                    let is_length = at < 1 || matches!((packet[0] >> 4, at), (4, 2 | 3) | (6, 4 | 5));
                    if !is_length {
                        packet[at] ^= mask;
                    }
                    let plain = packet[0] == 0x45 && packet[9] == 6 || packet[0] >> 4 == 6 && packet[6] == 6;
                    if action == 3 && plain { fill_checksums(&mut packet); }
                }
                _ => {}
            }
            packets.push(packet);
        }
        assert_same_stream(&packets);
    }

    #[test]
    fn nothing_that_comes_from_a_tun_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), header: [u8; VNET_HEADER], version: bool) {
        let mut packet = bytes;
        if let Some(first) = packet.first_mut() {
            *first = if version { 0x45 } else { 0x60 };
        }
        if let Some(header) = VnetHeader::decode(&header)
            && let Some(mut segments) = Segments::new(header, &mut packet)
        {
            while segments.advance().is_some() {}
        }
        if !packet.is_empty() {
            coalesce(BOTH, &[packet.clone(), packet]);
        }
    }
}

/// Two packets that follow on each other, the second of them changed by `change`.
fn two(base: &Recipe, change: impl FnOnce(&mut Recipe)) -> [Vec<u8>; 2] {
    let first = Recipe { payload: payload(100, 3), ..base.clone() };
    let mut second = Recipe {
        payload: payload(100, 5),
        sequence: base.sequence.wrapping_add(100),
        id: base.id.wrapping_add(1),
        ..base.clone()
    };
    change(&mut second);
    [first.packet(), second.packet()]
}

fn bases() -> [Recipe; 4] {
    [(false, false), (false, true), (true, false), (true, true)].map(|(v6, udp)| Recipe {
        v6,
        udp,
        ..Recipe::default()
    })
}

/// Into how many packets these two are merged.
fn merged(packets: &[Vec<u8>]) -> usize {
    assert_same_stream(packets)
}

#[test]
fn what_follows_is_merged_and_what_differs_is_not() {
    type Change = (&'static str, fn(&mut Recipe));
    let both: [Change; 5] = [
        ("DSCP", |r| r.class ^= 0x20),
        ("ECN", |r| r.class ^= 1),
        ("TTL", |r| r.ttl -= 1),
        ("port", |r| r.source_port += 1),
        ("no payload", |r| r.payload.clear()),
    ];
    let tcp: [Change; 11] = [
        ("sequence", |r| r.sequence += 1),
        ("sequence again", |r| r.sequence -= 100),
        ("acknowledgement", |r| r.acknowledgement += 1),
        ("window", |r| r.window += 1),
        ("option", |r| r.options[5] ^= 1),
        ("length of options", |r| r.options.extend([1; 4])),
        ("FIN", |r| r.flags |= 1),
        ("SYN", |r| r.flags |= 2),
        ("RST", |r| r.flags |= 4),
        ("ECE", |r| r.flags |= 0x40),
        ("CWR", |r| r.flags |= 0x80),
    ];
    for base in bases() {
        assert_eq!(merged(&two(&base, |_| {})), 1, "{base:?}");
        assert_eq!(merged(&two(&base, |r| r.payload = payload(101, 3))), 2, "longer than the first");
        assert_eq!(merged(&two(&base, |r| r.payload = payload(99, 3))), 1, "the last may be shorter");
        for (what, change) in both {
            assert_eq!(merged(&two(&base, change)), 2, "{what} {base:?}");
        }
        if !base.udp {
            assert_eq!(merged(&two(&base, |r| r.flags |= PSH)), 1);
            for (what, change) in tcp {
                assert_eq!(merged(&two(&base, change)), 2, "{what} {base:?}");
            }
            // URG, or a bit that is reserved, is nothing to merge even where both have it.
            for flags in [ACK | 0x20, ACK | 0x40, 0, 2] {
                assert_eq!(merged(&two(&Recipe { flags, ..base.clone() }, |_| {})), 2, "{flags:#x}");
            }
        }
        if !base.v6 {
            let free = Recipe { dont_fragment: false, ..base.clone() };
            assert_eq!(merged(&two(&free, |_| {})), 1);
            assert_eq!(merged(&two(&free, |r| r.id += 1)), 2, "the identification jumps");
            assert_eq!(merged(&two(&base, |r| r.id = 0)), 1, "it means nothing where DF is set");
            assert_eq!(merged(&two(&base, |r| r.dont_fragment = false)), 2, "DF");
        }
    }
}

#[test]
fn nothing_joins_behind_a_push_or_a_shorter_one() {
    for base in bases() {
        let mut packets = Recipe { payload: payload(250, 3), flags: ACK | PSH, ..base.clone() }.cut(100);
        let next =
            Recipe { payload: payload(100, 3), sequence: base.sequence + 250, id: base.id + 3, ..base };
        packets.push(next.packet());
        assert_eq!(merged(&packets), 2);
        if !next.udp {
            let mut packets = Recipe { payload: payload(200, 3), flags: ACK | PSH, ..next.clone() }.cut(100);
            let next = Recipe { sequence: next.sequence + 200, id: next.id + 2, ..next };
            packets.push(next.packet());
            assert_eq!(merged(&packets), 2, "after PSH");
        }
    }
}

#[test]
fn wrong_checksums_go_on_as_they_are() {
    for base in bases() {
        for broken in [0, 1] {
            let mut packets = two(&base, |_| {});
            let last = packets[broken].len() - 1;
            packets[broken][last] ^= 1;
            assert_eq!(merged(&packets), 2, "payload of {broken}");
            if !base.v6 {
                let mut packets = two(&base, |_| {});
                packets[broken][10] ^= 1;
                assert_eq!(merged(&packets), 2, "IPv4 header of {broken}");
            }
        }
        if base.udp {
            for without in [0, 1] {
                let mut packets = two(&base, |_| {});
                let at = if base.v6 { 46 } else { 26 };
                packets[without][at..at + 2].fill(0);
                assert_eq!(merged(&packets), 2, "no checksum");
            }
        }
    }
}

#[test]
fn a_fragment_between_keeps_its_place() {
    let base = Recipe { udp: true, dont_fragment: false, ..Recipe::default() };
    let [first, second] = two(&base, |_| {});
    let mut fragment = first.clone();
    fragment[6] = 0x20;
    fill_checksums(&mut fragment);
    let packets = [first, fragment, second];
    let written = coalesce(BOTH, &packets);
    assert_eq!(written.iter().map(|(_, packet)| packet.clone()).collect::<Vec<_>>(), packets);
}

#[test]
fn options_and_extension_headers_are_left_alone() {
    let mut options: Vec<Vec<u8>> = two(&Recipe::default(), |_| {}).into();
    for packet in &mut options {
        packet[0] = 0x46;
        packet.splice(20..20, [1, 1, 1, 0]);
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
    }
    assert_eq!(coalesce(BOTH, &options).len(), 2);
    let mut extended: Vec<Vec<u8>> = two(&Recipe { v6: true, ..Recipe::default() }, |_| {}).into();
    for packet in &mut extended {
        packet.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
        packet[6] = 60;
        let length = packet.len() as u16 - 40;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    }
    assert_eq!(coalesce(BOTH, &extended).len(), 2);
}

#[test]
fn each_protocol_can_be_switched_off() {
    for base in bases() {
        let packets = two(&base, |_| {});
        let merge = Merge { tcp: base.udp, udp: !base.udp };
        let written = coalesce(merge, &packets);
        assert!(written.iter().all(|(header, _)| *header == VnetHeader::default()));
        assert_eq!(written.len(), 2);
        assert_eq!(coalesce(Merge { tcp: !base.udp, udp: base.udp }, &packets).len(), 1);
    }
}

#[test]
fn flows_that_take_turns_are_all_merged() {
    let flows: Vec<Vec<Vec<u8>>> = (0..8)
        .map(|n| {
            let recipe = Recipe { source_port: 40_000 + n, payload: payload(1000, 7), ..Recipe::default() };
            recipe.cut(100)
        })
        .collect();
    let mixed: Vec<Vec<u8>> = (0..10).flat_map(|i| flows.iter().map(move |flow| flow[i].clone())).collect();
    assert_eq!(assert_same_stream(&mixed), 8);
}

#[test]
fn a_header_that_contradicts_its_packet_is_refused() {
    let recipe = Recipe { payload: payload(500, 3), ..Recipe::default() };
    let (header, packet) = recipe.big(100);
    let refused = |header: VnetHeader, packet: &[u8]| Segments::new(header, &mut packet.to_vec()).is_none();
    assert!(!refused(header, &packet));
    let partial = header.partial.unwrap();
    let gso = header.gso.unwrap();
    assert!(refused(VnetHeader { partial: None, ..header }, &packet));
    for start in [0, 19, 24, 600] {
        assert!(refused(VnetHeader { partial: Some(Partial { start, ..partial }), ..header }, &packet));
    }
    assert!(refused(VnetHeader { partial: Some(Partial { offset: 6, ..partial }), ..header }, &packet));
    for kind in [GsoKind::TcpV6, GsoKind::Udp] {
        assert!(refused(VnetHeader { gso: Some(Gso { kind, ..gso }), ..header }, &packet), "{kind:?}");
    }
    assert!(refused(header, &packet[..packet.len() - 1]));
    assert!(refused(VnetHeader { gso: None, ..header }, &packet[..30]));
    let mut fragment = packet.clone();
    fragment[6] = 0x20;
    assert!(refused(header, &fragment));
    let mut longer_header = packet;
    longer_header[32] = 0x40;
    assert!(refused(header, &longer_header));
}
