//! What an idle peer with a session takes of memory, and that packets take none.

// Helpers of tests are tests too, though clippy does not see it.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podspan_dataplane::core::{Arrival, Batch, Config, Core, Departure, Sink, Time, TunnelTag};
use podspan_dataplane::offload::{Ecn, VnetHeader};
use podspan_dataplane::table::Table;
use podspan_dataplane::{DropCause, LaneSecret, PeerSpec, RouteSpec, TableSpec};
use podspan_wire::{Lane, LaneKey};

/// The most that it may take, bytes.
const MOST: isize = 16 << 10;

/// Counts what the gateway has, while it works.
struct Counting;

// Of each thread for itself: what other tests and their harness do is none of this one's business.
thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static BYTES: Cell<isize> = const { Cell::new(0) };
    /// How often memory was asked for.
    static CALLS: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    if ON.get() {
        BYTES.set(BYTES.get() + bytes);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        CALLS.set(CALLS.get() + isize::from(ON.get()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Out {
    datagram: Vec<u8>,
    packet: Vec<u8>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
}

impl Sink for Out {
    fn datagram(&mut self, _: usize) -> &mut [u8] {
        &mut self.datagram
    }

    fn send(&mut self, length: usize, how: Departure) -> Result<(), DropCause> {
        let was = ON.replace(false);
        self.sent.push((how.to, self.datagram[..length].to_vec()));
        ON.set(was);
        Ok(())
    }

    fn packet(&mut self, _: usize) -> &mut [u8] {
        &mut self.packet
    }

    fn deliver(&mut self, _: usize, _: TunnelTag) -> Result<(), DropCause> {
        Ok(())
    }
}

fn address(n: usize) -> SocketAddr {
    ([10, 9, (n >> 8) as u8, n as u8], 51840).into()
}

fn table(own: LaneKey, peers: &[(usize, LaneKey)], dial: bool) -> Arc<Table> {
    let peer = |&(n, key): &(usize, LaneKey)| PeerSpec {
        id: format!("cloud/n{n}").parse().unwrap(),
        lanes: vec![Lane { key, port: 51840 }],
        endpoints: vec![address(n).ip()],
        learned: vec![],
        persistent_keepalive: None,
        dial,
        weight: 10,
        relays: false,
    };
    let route = |&(n, _): &(usize, LaneKey)| RouteSpec {
        cidr: format!("10.{}.{}.0/24", 64 + (n >> 8), n & 0xff).parse().unwrap(),
        owner: Some(format!("cloud/n{n}").parse().unwrap()),
        gateways: vec![],
    };
    let spec = TableSpec {
        peers: peers.iter().map(peer).collect(),
        routes: peers.iter().map(route).collect(),
        clusters: vec![],
    };
    let (table, rejected) = Table::new(spec, &[own], &Table::default());
    assert!(rejected.is_empty(), "{:?}", rejected[0]);
    Arc::new(table)
}

/// A gateway with so many peers once all have shaken hands, the bytes that it has, and the last of the peers.
fn gateway(peers: usize) -> (Core, isize, Option<Core>) {
    let secret = |n: usize| {
        let mut bytes = [7; 32];
        bytes[8..16].copy_from_slice(&(n as u64).to_le_bytes());
        LaneSecret::from_bytes(bytes)
    };
    let keys: Vec<_> = (0..=peers).map(|n| (n, secret(n).public())).collect();
    let config = |n| Config { lane: 0, secret: secret(n), handshake_limit: u64::MAX, seed: n as u64 };
    let mut out = Out { datagram: vec![0; 65_568], packet: vec![0; 65_568], sent: Vec::new() };
    let now = Time::default() + Duration::from_secs(1);
    BYTES.set(0);
    ON.set(true);
    let mut hub = Core::new(config(0));
    hub.set_table(now, table(keys[0].1, &keys[1..], false));
    ON.set(false);
    let arrive = |core: &mut Core, from: usize, bytes: &[u8], out: &mut Out, counted: bool| {
        let mut batch = Batch::default();
        batch.room().unwrap()[..bytes.len()].copy_from_slice(bytes);
        batch.push(Arrival { from: address(from), ecn: Ecn::NotEct }, bytes.len());
        ON.set(counted);
        core.handle_udp(now, &batch, out);
        core.handle_timeout(now, out);
        ON.set(false);
    };
    let mut last = None;
    for n in 1..=peers {
        let mut node = Core::new(config(n));
        node.set_table(now, table(keys[n].1, &keys[..1], true));
        node.handle_timeout(now, &mut out);
        for _ in 0..4 {
            for (to, bytes) in std::mem::take(&mut out.sent) {
                if to == address(0) {
                    arrive(&mut hub, n, &bytes, &mut out, true);
                } else {
                    arrive(&mut node, 0, &bytes, &mut out, false);
                }
            }
        }
        out.sent.clear();
        last = Some(node);
    }
    assert_eq!(hub.status(51840).handshakes, peers as u64);
    (hub, BYTES.get(), last)
}

#[test]
fn an_idle_peer_takes_less_than_16_kb() {
    let (few, many) = (gateway(100).1, gateway(500).1);
    let each = (many - few) / 400;
    println!("{each} bytes for each peer");
    assert!((1000..MOST).contains(&each), "{each} bytes for each peer");
}

/// An IPv4 packet of a protocol that nothing looks into.
fn packet(source: [u8; 4], destination: [u8; 4], length: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 253, 0, 0]);
    packet.extend(source.iter().chain(&destination));
    packet.resize(length.into(), 7);
    packet
}

/// What is between the system calls: cutting, lookup, sealing, opening, the check of the source. (What the worker adds are
/// buffers that it has from the start.)
#[test]
fn a_packet_asks_for_no_memory() {
    const PACKETS: u16 = 64;
    let (mut hub, _, node) = gateway(1);
    assert!(CALLS.get() > 0, "nothing is counted");
    let mut node = node.unwrap();
    let now = Time::default() + Duration::from_secs(1);
    let (at_hub, at_node) = ([10, 64, 0, 5], [10, 64, 1, 5]);
    let mut out = Out { datagram: vec![0; 65_568], packet: vec![0; 65_568], sent: Vec::new() };
    let mut calls = Vec::new();
    for _ in 0..20 {
        for to_hub in [true, false] {
            let (sender, receiver) = if to_hub { (&mut node, &mut hub) } else { (&mut hub, &mut node) };
            let (source, destination) = if to_hub { (at_node, at_hub) } else { (at_hub, at_node) };
            let mut batch = Batch::default();
            for n in 0..PACKETS {
                let packet = packet(source, destination, 60 + n * 20);
                batch.room().unwrap()[..packet.len()].copy_from_slice(&packet);
                batch.push(VnetHeader::default(), packet.len());
            }
            CALLS.set(0);
            ON.set(true);
            sender.handle_tun(now, &mut batch, &mut out);
            ON.set(false);
            let sent = std::mem::take(&mut out.sent);
            assert_eq!(sent.len(), usize::from(PACKETS));
            let from = address(if to_hub { 1 } else { 0 });
            let mut batch = Batch::default();
            for (_, datagram) in sent {
                batch.room().unwrap()[..datagram.len()].copy_from_slice(&datagram);
                batch.push(Arrival { from, ecn: Ecn::NotEct }, datagram.len());
            }
            let before = receiver.status(51840).rx_inner_packets;
            ON.set(true);
            receiver.handle_udp(now, &batch, &mut out);
            ON.set(false);
            assert_eq!(receiver.status(51840).rx_inner_packets - before, u64::from(PACKETS));
            calls.push(CALLS.get());
        }
    }
    // The first ones may find room that grows once.
    assert!(calls[4..].iter().all(|&n| n == 0), "{calls:?}");
}
