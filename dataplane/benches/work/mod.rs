//! What is measured, with the same input each time: for `instructions.rs`, which counts, and `times.rs`, which takes
//! the time.

mod pair;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use podspan_dataplane::offload::{Coalescer, Gso, GsoKind, Merge, Partial, Segments, VnetHeader};
use podspan_dataplane::table::Table;
use podspan_dataplane::{PeerSpec, RouteSpec, TableSpec};
use podspan_wire::{Cidr, Lane, LaneKey};

use pair::Pair;

/// One round of work, ready to be done.
pub(crate) type Round = Box<dyn FnMut()>;

/// Something to be measured.
pub(crate) struct Work {
    /// Its name.
    pub(crate) name: &'static str,
    /// Packets, or lookups, in a round.
    pub(crate) packets: usize,
    /// Sets it up; what comes back makes one round after the other ready.
    pub(crate) prepare: fn() -> Box<dyn FnMut() -> Round>,
}

/// Payload of a segment in a tunnel with an MTU of 1420.
pub(crate) const PAYLOAD: usize = 1380;
/// Segments of the largest packet that the kernel makes.
pub(crate) const SEGMENTS: usize = 47;
/// Packets in a batch.
pub(crate) const BATCH: usize = 64;
const LOOKUPS: usize = 4096;

/// All of it.
pub(crate) const WORK: &[Work] = &[
    Work { name: "seal", packets: SEGMENTS, prepare: || seal(true) },
    Work { name: "seal-small", packets: BATCH, prepare: || seal(false) },
    Work { name: "open", packets: SEGMENTS, prepare: || open(true) },
    Work { name: "open-small", packets: BATCH, prepare: || open(false) },
    Work { name: "lookup-10", packets: LOOKUPS, prepare: || lookup(10) },
    Work { name: "lookup-100000", packets: LOOKUPS, prepare: || lookup(100_000) },
    Work { name: "segmentation", packets: SEGMENTS, prepare: segmentation },
    Work { name: "coalescing", packets: SEGMENTS, prepare: coalescing },
];

/// Whether the processor is one whose counts were noted.
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn seal(big: bool) -> Box<dyn FnMut() -> Round> {
    let mut pair = Pair::established();
    Box::new(move || Box::new(pair.sealing(big)))
}

fn open(big: bool) -> Box<dyn FnMut() -> Round> {
    let mut pair = Pair::established();
    Box::new(move || Box::new(pair.opening(big)))
}

/// Addresses of `prefixes` routes, in no order. Each peer has ten of them.
fn lookup(prefixes: u32) -> Box<dyn FnMut() -> Round> {
    let address = |prefix: u32, host: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + (prefix << 6) + host));
    let id = |n: u32| format!("beta/n{n}").parse().unwrap();
    let peer = |n: u32| {
        let mut key = [1; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        PeerSpec {
            id: id(n),
            lanes: vec![Lane { key: LaneKey::from_bytes(key), port: 51840 }],
            endpoints: vec![Ipv4Addr::from(0xc612_0000 + n).into()],
            learned: vec![],
            persistent_keepalive: None,
            dial: false,
            weight: 10,
            relays: false,
        }
    };
    let route = |i: u32| RouteSpec {
        cidr: Cidr::containing(address(i, 0), 26).unwrap(),
        owner: Some(id(i / 10)),
        gateways: vec![],
    };
    let peers = (0..prefixes / 10).map(peer).collect();
    let spec = TableSpec { peers, routes: (0..prefixes).map(route).collect(), clusters: vec![] };
    let (table, rejected) = Table::new(spec, &[], &Table::default());
    assert_eq!(rejected, []);
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        address((random >> 33) as u32 % prefixes, (random >> 20) as u32 % 64)
    };
    let addresses: Vec<IpAddr> = (0..LOOKUPS).map(|_| next()).collect();
    let both = std::sync::Arc::new((table, addresses));
    Box::new(move || {
        let both = std::sync::Arc::clone(&both);
        Box::new(move || {
            let (table, addresses) = &*both;
            for address in addresses {
                assert!(black_box(table.find(*address)).is_some());
            }
        })
    })
}

/// A TCP packet of the TUN that stands for many, and what stands before it.
pub(crate) fn big() -> (VnetHeader, Vec<u8>) {
    let length = 40 + PAYLOAD * SEGMENTS;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3];
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    packet.extend((0..PAYLOAD * SEGMENTS).map(|i| (i % 251) as u8));
    let pseudo = podspan_dataplane::offload::checksum::pseudo(&packet[12..20], 6);
    let partial = pseudo.and(podspan_dataplane::offload::checksum::Sum::of_u16((length - 20) as u16)).fold();
    packet[36..38].copy_from_slice(&partial);
    let header = VnetHeader {
        partial: Some(Partial { start: 20, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::TcpV4, size: PAYLOAD as u16, cwr: false }),
        headers: 40,
    };
    (header, packet)
}

/// A UDP packet of 64 bytes of payload.
pub(crate) fn small() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 92, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3];
    packet.extend([0x9c, 0x40, 0, 53, 0, 72, 0, 0]);
    packet.extend([7; 64]);
    packet
}

fn segmentation() -> Box<dyn FnMut() -> Round> {
    Box::new(|| {
        let (header, mut packet) = big();
        Box::new(move || {
            let mut segments = Segments::new(header, &mut packet).unwrap();
            let mut n = 0;
            while let Some(segment) = segments.advance() {
                black_box(segment);
                n += 1;
            }
            assert_eq!(n, SEGMENTS);
        })
    })
}

fn coalescing() -> Box<dyn FnMut() -> Round> {
    Box::new(|| {
        let (header, mut packet) = big();
        let mut segments = Segments::new(header, &mut packet).unwrap();
        let mut all = Vec::new();
        while let Some(segment) = segments.advance() {
            all.push(segment.to_vec());
        }
        let mut coalescer = Coalescer::new(Merge { tcp: true, udp: true });
        Box::new(move || {
            for segment in &all {
                coalescer.room()[..segment.len()].copy_from_slice(segment);
                coalescer.commit(segment.len(), ());
            }
            let mut n = 0;
            coalescer.flush(|merged| {
                merged.write(|pieces| black_box(pieces.len()));
                n += 1;
            });
            assert_eq!(n, 1);
        })
    })
}
