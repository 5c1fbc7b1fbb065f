//! Packets from the TUN and from the network, through two cores that have a session with each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use podspan_dataplane::core::{
    Arrival, Batch, Config, Core, Departure, MAX_DATAGRAM, OVERHEAD, Sink, Time, TunnelTag,
};
use podspan_dataplane::offload::{Ecn, VnetHeader};
use podspan_dataplane::table::Table;
use podspan_dataplane::{DropCause, LaneSecret, PeerSpec, RouteSpec, TableSpec};
use podspan_wire::{Cidr, Lane};

/// How many packets of one input are used.
const PACKETS: usize = 24;

/// Keeps what leaves a core.
struct Kept {
    room: Vec<u8>,
    datagrams: Vec<(Vec<u8>, SocketAddr)>,
    packets: Vec<Vec<u8>>,
}

impl Sink for Kept {
    fn datagram(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= MAX_DATAGRAM, "the core asks for {length} bytes");
        &mut self.room
    }

    fn send(&mut self, length: usize, how: Departure) -> Result<(), DropCause> {
        assert!(length <= MAX_DATAGRAM);
        self.datagrams.push((self.room[..length].to_vec(), how.to));
        Ok(())
    }

    fn packet(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= self.room.len(), "the core asks for {length} bytes");
        &mut self.room
    }

    fn deliver(&mut self, length: usize, _: TunnelTag) -> Result<(), DropCause> {
        self.packets.push(self.room[..length].to_vec());
        Ok(())
    }
}

/// One node: its core, where it is, what it owns.
struct Node {
    core: Core,
    address: SocketAddr,
    sink: Kept,
    packets: Batch<VnetHeader>,
    datagrams: Batch<Arrival>,
}

fn secret(node: u8) -> LaneSecret {
    LaneSecret::from_bytes([node; 32])
}

fn address(node: u8) -> SocketAddr {
    (IpAddr::from([192, 0, 2, node]), 51840).into()
}

/// 10.NODE.0.0/16 and fd00:10:NODE::/48.
fn cidrs(node: u8) -> [Cidr; 2] {
    let v4 = Cidr::containing(IpAddr::from([10, node, 0, 0]), 16);
    let v6 = Cidr::containing(Ipv6Addr::new(0xfd00, 0x10, node.into(), 0, 0, 0, 0, 0).into(), 48);
    [v4.expect("a prefix"), v6.expect("a prefix")]
}

impl Node {
    fn new(node: u8, peer: u8) -> Self {
        let id: podspan_wire::NodeId = format!("cluster/node-{peer}").parse().expect("a node id");
        let spec = TableSpec {
            peers: vec![PeerSpec {
                id: id.clone(),
                lanes: vec![Lane { key: secret(peer).public(), port: 51840 }],
                endpoints: vec![address(peer).ip()],
                learned: Vec::new(),
                persistent_keepalive: None,
                dial: false,
                weight: 10,
                relays: false,
            }],
            routes: cidrs(peer)
                .map(|cidr| RouteSpec { cidr, owner: Some(id.clone()), gateways: vec![id.clone()] })
                .into(),
            clusters: Vec::new(),
        };
        let (table, rejected) = Table::new(spec, &[secret(node).public()], &Table::default());
        assert!(rejected.is_empty(), "{rejected:?}");
        let mut core =
            Core::new(Config { lane: 0, secret: secret(node), handshake_limit: 1000, seed: u64::from(node) });
        core.set_table(Time::default(), Arc::new(table));
        let sink = Kept { room: vec![0; 70_000], datagrams: Vec::new(), packets: Vec::new() };
        Self { core, address: address(node), sink, packets: Batch::default(), datagrams: Batch::default() }
    }

    fn take_packet(&mut self, now: Time, packet: &[u8]) {
        fill(&mut self.packets, VnetHeader::default(), packet);
        self.core.handle_tun(now, &mut self.packets, &mut self.sink);
        self.core.handle_timeout(now, &mut self.sink);
    }

    fn take_datagram(&mut self, now: Time, from: SocketAddr, datagram: &[u8]) {
        fill(&mut self.datagrams, Arrival { from, ecn: Ecn::NotEct }, datagram);
        self.core.handle_udp(now, &self.datagrams, &mut self.sink);
        self.core.handle_timeout(now, &mut self.sink);
    }
}

fn fill<T>(batch: &mut Batch<T>, tag: T, packet: &[u8]) {
    batch.clear();
    let room = batch.room().expect("an empty batch has room");
    let length = packet.len().min(room.len());
    room[..length].copy_from_slice(&packet[..length]);
    batch.push(tag, length);
}

/// A well-formed packet from node `from` to node `to`.
fn good_packet(from: u8, to: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, from, 0, 1, 10, to, 0, 1];
    packet.extend([0, 7, 0, 7, 0, 8, 0, 0]);
    packet
}

/// Carries datagrams to and fro until nobody has any. What was delivered stays in the sinks.
fn carry(now: Time, a: &mut Node, b: &mut Node) {
    for _ in 0..8 {
        let to_b: Vec<_> = std::mem::take(&mut a.sink.datagrams);
        let to_a: Vec<_> = std::mem::take(&mut b.sink.datagrams);
        if to_a.is_empty() && to_b.is_empty() {
            return;
        }
        for (datagram, to) in to_b {
            assert_eq!(to, b.address);
            b.take_datagram(now, a.address, &datagram);
        }
        for (datagram, to) in to_a {
            if to == a.address {
                a.take_datagram(now, b.address, &datagram);
            }
        }
    }
}

/// The source of a packet that was delivered; it must be an IP packet of the length it says.
fn source(packet: &[u8]) -> IpAddr {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]).into()
        }
        Some(6) => {
            assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
            let octets: [u8; 16] = packet[8..24].try_into().expect("16 bytes");
            Ipv6Addr::from(octets).into()
        }
        other => panic!("no IP packet was delivered: {other:?}"),
    }
}

/// The input is a list of packets: a byte that says what to do with it, a byte for the length, the bytes.
/// Inner packets go through the tunnel from node 1 to node 2; datagrams go to node 2 as they are, or are
/// sealed ones of node 1 with some bytes changed.
pub fn packets(data: &[u8]) {
    let (mut a, mut b) = (Node::new(1, 2), Node::new(2, 1));
    let mut now = Time::from_micros(1_000_000);
    a.take_packet(now, &good_packet(1, 2));
    carry(now, &mut a, &mut b);
    assert_eq!(b.sink.packets, [good_packet(1, 2)], "a session was made");
    b.sink.packets.clear();

    let mut rest = data;
    for _ in 0..PACKETS {
        let [kind, length, tail @ ..] = rest else { break };
        let (input, after) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = after;
        now = now + Duration::from_millis(1);
        match kind % 5 {
            // As the pod's kernel gave it.
            0 => a.take_packet(now, input),
            // With addresses that are routed, so that what is behind them is reached.
            1 => {
                let mut packet = good_packet(1, 2);
                for (i, byte) in input.iter().enumerate() {
                    match packet.get_mut(i) {
                        Some(_) if (12..20).contains(&i) => {}
                        Some(old) => *old = *byte,
                        None => packet.push(*byte),
                    }
                }
                a.take_packet(now, &packet);
            }
            2 => b.take_datagram(now, a.address, input),
            3 => b.take_datagram(now, SocketAddr::from(([198, 51, 100, 7], 4000)), input),
            _ => {
                // Changed on the way: position and mask, as often as the input has them.
                a.take_packet(now, &good_packet(1, 2));
                for (datagram, _) in &mut a.sink.datagrams {
                    for change in input.chunks_exact(2) {
                        let at = usize::from(change[0]) % datagram.len();
                        datagram[at] ^= change[1];
                    }
                }
            }
        }
        let sealed = a.sink.datagrams.iter().map(|(datagram, _)| datagram.len());
        assert!(sealed.clone().all(|length| (OVERHEAD..=MAX_DATAGRAM).contains(&length)));
        carry(now, &mut a, &mut b);
        for packet in b.sink.packets.drain(..) {
            let source = source(&packet);
            assert!(cidrs(1).iter().any(|cidr| cidr.contains(source)), "{source} is not node 1's");
        }
        for packet in a.sink.packets.drain(..) {
            let source = source(&packet);
            assert!(cidrs(2).iter().any(|cidr| cidr.contains(source)), "{source} is not node 2's");
        }
    }
}
