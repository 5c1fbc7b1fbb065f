//! Paths that take less than the interface, in one direction or both, from the start or suddenly, and tell
//! nobody.

use std::net::IpAddr;
use std::time::Duration;

use podspan_dataplane::offload::{Gso, GsoKind, Partial, VnetHeader};
use podspan_dataplane::{DropCause, PathLimits, PathStatus};

use crate::net::{MS, S, Sim, udp};

/// Bytes of IP and UDP headers of what [`udp`] makes with no padding.
const HEADERS_V4: usize = 20 + 12;

/// Two nodes a millisecond apart on interfaces of this MTU.
fn pair(addresses: [&str; 2], underlay: u16) -> Sim {
    let mut sim = Sim::new(1);
    sim.weather.latency = MS;
    sim.add("alpha/a", addresses[0], 1);
    sim.add("beta/b", addresses[1], 1);
    sim.link(0, 1, &["10.1.0.0/16", "fd00:1::/48"]);
    sim.link(1, 0, &["10.0.0.0/16", "fd00:0::/48"]);
    let mut sim = sim.start();
    for node in 0..2 {
        sim.call_core(node, 0, |core| {
            core.set_path_limits(PathLimits { underlay, largest: underlay - 60 });
        });
    }
    sim
}

const V4: [&str; 2] = ["192.0.2.1", "198.51.100.1"];
const V6: [&str; 2] = ["2001:db8::1", "2001:db8:1::1"];

/// From now on this is the MTU from one of the two to the other.
fn narrow(sim: &mut Sim, from: usize, mtu: usize) {
    let way = (sim.nodes[from].address, sim.nodes[1 - from].address);
    sim.path_mtu.insert(way, mtu);
}

fn path(sim: &Sim, from: usize) -> PathStatus {
    sim.tunnels(from, 1 - from)[0].path
}

/// A UDP packet of exactly `size` bytes that may not be fragmented.
fn sized(from: usize, number: u32, size: usize) -> Vec<u8> {
    let (source, destination) = if from == 0 { ("10.0.0.2", "10.1.0.3") } else { ("10.1.0.3", "10.0.0.2") };
    udp(source, destination, 1000, number, size - HEADERS_V4)
}

fn sized_v6(number: u32, size: usize) -> Vec<u8> {
    udp("fd00:0::2", "fd00:1::3", 1000, number, size - HEADERS_V4 - 20)
}

/// Sends small packets for a while, as if it were a conversation.
fn chat(sim: &mut Sim, time: Duration) {
    let end = sim.now + time;
    while sim.now < end {
        sim.send(0, 0, &[sized(0, 0, 100)]);
        sim.run(20 * MS);
    }
    sim.nodes.iter_mut().for_each(|node| node.inbox.clear());
}

/// What ICMP told the pod of node 0, in order.
fn told(sim: &Sim) -> Vec<u16> {
    let size = |packet: &Vec<u8>| match (packet[0] >> 4, packet[9], packet.get(20..22)) {
        (4, 1, Some([3, 4])) => Some(u16::from_be_bytes([packet[26], packet[27]])),
        (6, ..) if packet[6] == 58 && packet[40] == 2 => Some(u16::from_be_bytes([packet[46], packet[47]])),
        _ => None,
    };
    sim.nodes[0].inbox.iter().filter_map(|(.., packet)| size(packet)).collect()
}

#[test]
fn each_path_is_found_with_few_probes_in_each_direction() {
    for (addresses, overhead) in [(V4, 60), (V6, 80)] {
        for (underlay, mtu) in
            [(1500, 1500), (1500, 1400), (1500, 1280), (1500, 1492), (9000, 9000), (9000, 1500), (9001, 8921)]
        {
            let mut sim = pair(addresses, underlay);
            narrow(&mut sim, 0, mtu.into());
            chat(&mut sim, 3 * S);
            let found = path(&sim, 0);
            assert_eq!(found.mtu, Some(mtu - overhead), "{addresses:?} {mtu} of {underlay}: {found:?}");
            let most = if mtu == underlay { 1 } else { 40 };
            assert!(found.probes <= most, "{mtu} of {underlay}: {found:?}");
            assert_eq!((found.black_hole, found.black_holes), (None, 0));
            // The way back was not used by anybody, so nobody knows.
            assert_eq!(path(&sim, 1), PathStatus::default());
        }
    }
}

/// A bulk transfer: each packet as large as its sender knows to be good, and what is told is obeyed.
struct Transfer {
    size: usize,
    number: u32,
}

impl Transfer {
    /// Sends for `time`; returns the longest time in which nothing arrived.
    fn run(&mut self, sim: &mut Sim, time: Duration, make: fn(u32, usize) -> Vec<u8>) -> Duration {
        let (end, mut last, mut gap) = (sim.now + time, sim.now, Duration::ZERO);
        sim.nodes.iter_mut().for_each(|node| node.inbox.clear());
        while sim.now < end {
            for _ in 0..3 {
                self.number += 1;
                sim.send(0, 0, &[make(self.number, self.size)]);
            }
            sim.run(5 * MS);
            if let Some(&told) = told(sim).iter().min() {
                self.size = self.size.min(told.into());
            }
            for (at, _, packet) in &sim.nodes[1].inbox {
                let size = packet.len();
                assert!(*packet == make(crate::net::number(packet), size), "damaged: {size} bytes");
                gap = gap.max(at.since(last));
                last = last.max(*at);
            }
            sim.nodes[1].inbox.clear();
        }
        gap.max(sim.now.since(last))
    }
}

#[test]
fn a_transfer_goes_on_when_the_path_gets_narrow_and_uses_it_when_it_gets_wide() {
    type Make = fn(u32, usize) -> Vec<u8>;
    let families: [(Make, usize); 2] = [(|n, size| sized(0, n, size), 0), (sized_v6, 20)];
    for (addresses, overhead) in [(V4, 60), (V6, 80)] {
        for (make, _) in families {
            for mtu in [1400_u16, 1280] {
                let mut sim = pair(addresses, 1500);
                let mut transfer = Transfer { size: 1500 - usize::from(overhead), number: 0 };
                transfer.run(&mut sim, S, make);
                assert_eq!(path(&sim, 0).mtu, Some(1500 - overhead));
                narrow(&mut sim, 0, mtu.into());
                let gap = transfer.run(&mut sim, 5 * S, make);
                assert!(gap < 1500 * MS, "{addresses:?} {mtu}: nothing arrived for {gap:?}");
                assert_eq!(path(&sim, 0).mtu, Some(mtu - overhead), "{addresses:?}");
                let hole = path(&sim, 0).black_hole.expect("it is named");
                assert_eq!(hole.size, 1500 - overhead);
                assert!(hole.age < 5 * S && hole.age > 3 * S, "{hole:?}");
                // IPv6 must not be told less than 1280, and nothing else is, to keep it simple.
                assert_eq!(transfer.size, usize::from((mtu - overhead).max(1280)));
                // Now nothing vanishes but probes.
                sim.vanished.clear();
                let before = path(&sim, 0).probes;
                transfer.run(&mut sim, 5 * S, make);
                let probes = path(&sim, 0).probes - before;
                assert!(sim.vanished.len() as u64 <= probes, "{} of {probes}", sim.vanished.len());

                sim.path_mtu.clear();
                sim.until(60 * S, "wide again", |_| true);
                transfer.run(&mut sim, 62 * S, make);
                assert_eq!(path(&sim, 0).mtu, Some(1500 - overhead));
                assert_eq!((path(&sim, 0).black_hole, path(&sim, 0).black_holes), (None, 1));
            }
        }
    }
}

#[test]
fn a_jumbo_path_is_used_when_it_comes() {
    let mut sim = pair(V4, 9000);
    narrow(&mut sim, 0, 1500);
    chat(&mut sim, 3 * S);
    assert_eq!(path(&sim, 0).mtu, Some(1440));
    sim.path_mtu.clear();
    chat(&mut sim, 62 * S);
    assert_eq!(path(&sim, 0).mtu, Some(8940));
    sim.send(0, 0, &[sized(0, 7, 8940)]);
    sim.run(10 * MS);
    assert_eq!(sim.numbers(1), [7]);
}

#[test]
fn what_may_be_fragmented_crosses_in_pieces() {
    let mut sim = pair(V4, 1500);
    narrow(&mut sim, 0, 1300);
    chat(&mut sim, 3 * S);
    let size = path(&sim, 0).mtu.unwrap();
    assert_eq!(size, 1240);
    let mut loose: Vec<Vec<u8>> = (1..=4).map(|n| sized(0, n, 1440)).collect();
    loose.iter_mut().for_each(|packet| packet[6] = 0);
    sim.vanished.clear();
    sim.send(0, 0, &loose);
    // And for IPv6 what it may rely on.
    let least = sized_v6(5, 1280);
    sim.send(0, 0, std::slice::from_ref(&least));
    sim.run(10 * MS);
    let arrived: Vec<_> = sim.nodes[1].inbox.drain(..).map(|(.., packet)| packet).collect();
    loose.push(least);
    assert_eq!(arrived, loose);
    assert_eq!(sim.vanished, []);
    assert_eq!((told(&sim), sim.drops(0, DropCause::TooBig)), (vec![], 0));

    // A lost piece is a lost packet, and the next one is none the worse for it.
    let way = (sim.nodes[0].address, sim.nodes[1].address);
    sim.loss.insert(way, 300);
    for n in 0..300 {
        let mut packet = sized(0, 100 + n, 1440);
        packet[6] = 0;
        sim.send(0, 0, &[packet]);
        sim.run(2 * MS);
    }
    sim.loss.clear();
    sim.run(100 * MS);
    let whole = sim.nodes[1].inbox.iter().filter(|(.., packet)| packet.len() == 1440).count();
    assert!((90..210).contains(&whole), "{whole} of 300; 147 were to be expected");
    chat(&mut sim, 3 * S);
    let mut packet = sized(0, 1, 1440);
    packet[6] = 0;
    sim.send(0, 0, &[packet]);
    sim.run(10 * MS);
    assert_eq!(sim.numbers(1), [1]);
    assert!(sim.drops(1, DropCause::Incomplete) > 50, "{}", sim.drops(1, DropCause::Incomplete));
}

#[test]
fn who_sends_too_much_is_told_also_when_it_comes_as_one_packet() {
    let mut sim = pair(V4, 1500);
    narrow(&mut sim, 0, 1400);
    chat(&mut sim, 3 * S);
    assert_eq!(path(&sim, 0).mtu, Some(1340));
    sim.send(0, 0, &[sized(0, 1, 1340), sized(0, 2, 1341), sized_v6(3, 1341)]);
    let gso = |size| VnetHeader {
        partial: Some(Partial { start: 20, offset: 6 }),
        gso: Some(Gso { kind: GsoKind::Udp, size, cwr: false }),
        headers: 28,
    };
    let big = udp("10.0.0.2", "10.1.0.3", 1000, 4, 6000);
    sim.send_big(0, 0, gso(1313), &big);
    sim.run(10 * MS);
    assert_eq!(sim.numbers(1), [1]);
    assert_eq!(told(&sim), [1340, 1340, 1340]);
    assert_eq!(sim.drops(0, DropCause::TooBig), 2 + 5);
    assert_eq!(sim.worker(0, 0).too_bigs, 3);
    // The quoted packet is the first of those that it stood for.
    let quoted = &sim.nodes[0].inbox[2].2[28..];
    assert_eq!(u16::from_be_bytes([quoted[2], quoted[3]]), 1341);
    sim.send_big(0, 0, gso(1312), &big);
    sim.run(10 * MS);
    assert_eq!(sim.nodes[1].inbox.len(), 1 + 5);
    assert_eq!(told(&sim).len(), 3);
}

#[test]
fn directions_are_measured_apart() {
    let mut sim = pair(V4, 1500);
    narrow(&mut sim, 0, 1400);
    narrow(&mut sim, 1, 1300);
    for _ in 0..200 {
        sim.send(0, 0, &[sized(0, 1, 500)]);
        sim.send(1, 0, &[sized(1, 1, 500)]);
        sim.run(20 * MS);
    }
    assert_eq!((path(&sim, 0).mtu, path(&sim, 1).mtu), (Some(1340), Some(1240)));
}

#[test]
fn a_plain_peer_gets_packets_that_may_be_fragmented() {
    let mut sim = pair(V4, 1500);
    sim.nodes[1].mute = true;
    narrow(&mut sim, 0, 1400);
    for n in 0..100 {
        sim.send(0, 0, &[sized(0, n, 1440)]);
        sim.run(20 * MS);
    }
    assert_eq!(sim.numbers(1), (0..100).collect::<Vec<_>>());
    assert_eq!(sim.largest.get(&(sim.nodes[0].address, sim.nodes[1].address)), None);
    assert_eq!(path(&sim, 0), PathStatus::default());
}

#[test]
fn idle_tunnels_keep_what_they_know_and_cost_nothing() {
    let mut sim = pair(V4, 1500);
    narrow(&mut sim, 0, 1400);
    chat(&mut sim, 3 * S);
    sim.run(5 * S);
    let before = path(&sim, 0);
    sim.run(600 * S);
    assert_eq!(path(&sim, 0), before);
    // And confirm it when they are used again.
    chat(&mut sim, S);
    assert!(path(&sim, 0).probes > before.probes);
}

#[test]
fn an_idle_tunnel_finds_out_that_its_path_is_wide_again() {
    let mut sim = pair(V4, 1500);
    chat(&mut sim, S);
    narrow(&mut sim, 0, 1400);
    Transfer { size: 1440, number: 0 }.run(&mut sim, 5 * S, |n, size| sized(0, n, size));
    assert_eq!(path(&sim, 0).mtu, Some(1340));
    let before = path(&sim, 0).probes;
    sim.run(600 * S);
    let probes = path(&sim, 0).probes - before;
    assert!((10..150).contains(&probes), "{probes} in ten minutes");
    sim.path_mtu.clear();
    sim.run(75 * S);
    assert_eq!((path(&sim, 0).mtu, path(&sim, 0).black_hole), (Some(1440), None));
}

#[test]
fn an_idle_tunnel_finds_out_that_its_interface_takes_more() {
    let mut sim = pair(V4, 1500);
    for _ in 0..150 {
        sim.send(0, 0, &[sized(0, 1, 500)]);
        sim.send(1, 0, &[sized(1, 1, 500)]);
        sim.run(20 * MS);
    }
    sim.run(10 * S);
    // Whichever of the two keeps the tunnel up.
    for node in 0..2 {
        assert_eq!(path(&sim, node).mtu, Some(1440));
        let limits = PathLimits { underlay: 9000, largest: 8940 };
        sim.call_core(node, 0, |core| core.set_path_limits(limits));
        sim.run(15 * S);
        assert_eq!(path(&sim, node).mtu, Some(8940), "{node}");
    }
    let probes = [0, 1].map(|node| path(&sim, node).probes);
    sim.run(600 * S);
    assert_eq!([0, 1].map(|node| path(&sim, node).probes), probes);
}

#[test]
fn another_address_is_measured_anew() {
    let mut sim = pair(V4, 1500);
    narrow(&mut sim, 0, 1400);
    chat(&mut sim, 3 * S);
    assert_eq!(path(&sim, 0).mtu, Some(1340));
    // The peer moves to where the path is wide.
    sim.nodes[1].address = "203.0.113.1".parse::<IpAddr>().unwrap();
    sim.send(1, 0, &[sized(1, 1, 100)]);
    chat(&mut sim, S);
    assert_eq!(path(&sim, 0).mtu, Some(1440));
}
