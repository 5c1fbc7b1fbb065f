//! Packets: that they get through, all of them, once, to the right place.

use podspan_dataplane::DropCause;
use podspan_dataplane::offload::{Ecn, Gso, GsoKind, Partial, Segments, VnetHeader};

use crate::net::{MS, Nat, S, Sim, Weather, udp};

fn range(node: usize, from: u32, to: u32) -> Vec<Vec<u8>> {
    let (source, destination) = if node == 0 { ("10.0.0.2", "10.1.0.3") } else { ("10.1.0.3", "10.0.0.2") };
    (from..to).map(|n| udp(source, destination, 1000, n, 100)).collect()
}

#[test]
fn the_first_packet_shakes_hands_and_gets_through_both_families() {
    let mut sim = Sim::pair(1, (1, 1)).start();
    let v4 = udp("10.0.0.2", "10.1.0.3", 1000, 1, 1300);
    let v6 = udp("fd00:0::2", "fd00:1::3", 1000, 2, 1300);
    sim.send(0, 0, &[v4.clone(), v6.clone()]);
    assert!(!sim.is_up(0, 1));
    sim.run(35 * MS);
    let got: Vec<_> = sim.nodes[1].inbox.iter().map(|(_, _, packet)| packet.clone()).collect();
    assert_eq!(got, [v4, v6]);
    assert!(sim.is_up(0, 1) && sim.is_up(1, 0));
    // The answer needs no handshake of its own.
    sim.send(1, 0, &range(1, 3, 4));
    sim.run(11 * MS);
    assert_eq!(sim.numbers(0), [3]);
    let there = &sim.tunnels(1, 0)[0];
    assert_eq!((there.rx_packets, there.tx_packets), (2, 1));
    let here = &sim.tunnels(0, 1)[0];
    assert_eq!(here.rtt, Some(20 * MS));
    assert_eq!(here.endpoint, Some(sim.outside(1, 0)));
    assert!(here.handshake_age.unwrap() < 50 * MS);
    assert_eq!(sim.worker(0, 0).handshakes, 1);
}

#[test]
fn loss_reordering_and_duplicates_never_give_a_packet_twice() {
    for seed in 0..8 {
        let mut sim = Sim::pair(seed, (1, 1));
        sim.weather = Weather {
            latency: 10 * MS,
            jitter: 30 * MS,
            loss: 50,
            duplicates: 200,
            mtu: 1500,
            congested: false,
        };
        let mut sim = sim.start();
        sim.send(0, 0, &range(0, 0, 1));
        sim.until(20 * S, "handshake under loss", |sim| sim.is_up(0, 1) && sim.is_up(1, 0));
        let before = sim.numbers(1).len();
        for n in 0..2000 {
            sim.send(0, 0, &range(0, 10 + n, 11 + n));
            sim.run(MS);
        }
        sim.run(S);
        let mut got = sim.numbers(1);
        let late = got.windows(2).filter(|pair| pair[0] > pair[1]).count();
        let arrived = got.len() - before;
        got.sort_unstable();
        got.dedup();
        assert_eq!(got.len(), arrived + before, "seed {seed}: a packet came twice");
        assert!((1800..1960).contains(&arrived), "seed {seed}: {arrived} of 2000 came, 5 % are to be lost");
        assert!(late > 100, "seed {seed}: the network did not reorder, so this shows nothing");
        assert!(sim.drops(1, DropCause::Replay) > 200, "seed {seed}: duplicates are counted");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut sim = Sim::pair(42, (2, 3));
        sim.weather = Weather { jitter: 20 * MS, loss: 100, duplicates: 100, ..Weather::default() };
        let mut sim = sim.start();
        for n in 0..300 {
            sim.send(0, n as usize % 2, &range(0, n, n + 1));
            sim.run(10 * MS);
        }
        sim.nodes[1].inbox.clone()
    };
    assert_eq!(run(), run());
}

#[test]
fn every_lane_of_unequal_nodes_reaches_the_other_side() {
    for (n_a, n_b) in [(1, 1), (1, 4), (4, 1), (2, 3), (3, 2), (4, 2), (5, 5)] {
        let mut sim = Sim::pair(7, (n_a, n_b)).start();
        for lane in 0..n_a {
            sim.send(0, lane, &range(0, lane as u32, lane as u32 + 1));
        }
        for lane in 0..n_b {
            sim.send(1, lane, &range(1, lane as u32, lane as u32 + 1));
        }
        sim.run(S);
        let mut there: Vec<_> =
            sim.nodes[1].inbox.iter().map(|(_, lane, p)| (crate::net::number(p), *lane)).collect();
        there.sort_unstable();
        let expected: Vec<_> = (0..n_a).map(|a| (a as u32, a % n_b)).collect();
        assert_eq!(there, expected, "{n_a} x {n_b}");
        let mut back: Vec<_> =
            sim.nodes[0].inbox.iter().map(|(_, lane, p)| (crate::net::number(p), *lane)).collect();
        back.sort_unstable();
        let expected: Vec<_> = (0..n_b).map(|b| (b as u32, b % n_a)).collect();
        assert_eq!(back, expected, "{n_b} x {n_a}");
    }
}

#[test]
fn a_dialled_gateway_is_reached_by_all_lanes_from_behind_a_nat() {
    for (inside, outside) in [(1, 4), (4, 1), (2, 3)] {
        let mut sim = Sim::pair(3, (inside, outside));
        sim.nodes[0].nat = Some(Nat::new("203.0.113.9", 40_000, 60 * S));
        sim.nodes[0].spec.peers[0].dial = true;
        sim.nodes[0].spec.peers[0].persistent_keepalive = Some(25);
        sim.nodes[1].spec.peers[0].endpoints.clear();
        let mut sim = sim.start();
        let took = sim.until(S, "dialled", |sim| sim.is_up(0, 1) && sim.is_up(1, 0));
        assert!(took < 50 * MS, "{took:?}");
        // Long after any mapping would be gone, the gateway still gets in, at all lanes.
        sim.run(400 * S);
        sim.nodes[0].inbox.clear();
        for lane in 0..outside {
            sim.send(1, lane, &range(1, lane as u32, lane as u32 + 1));
        }
        sim.run(100 * MS);
        assert_eq!(sim.nodes[0].inbox.len(), outside, "{inside} x {outside}");
        assert!(sim.is_up(1, 0));
    }
}

#[test]
fn without_a_keepalive_the_nat_forgets() {
    // What the test above would miss if the simulated NAT forgot nothing.
    let mut sim = Sim::pair(3, (1, 1));
    sim.nodes[0].nat = Some(Nat::new("203.0.113.9", 40_000, 60 * S));
    sim.nodes[1].spec.peers[0].endpoints.clear();
    let mut sim = sim.start();
    sim.send(0, 0, &range(0, 0, 1));
    sim.run(S);
    assert!(sim.is_up(1, 0));
    sim.run(100 * S);
    sim.send(1, 0, &range(1, 0, 1));
    sim.run(S);
    assert!(sim.numbers(0).is_empty());
}

#[test]
fn a_peer_that_moves_is_followed_without_a_lost_packet() {
    let mut sim = Sim::pair(4, (1, 1)).start();
    sim.send(0, 0, &range(0, 0, 1));
    sim.run(100 * MS);
    sim.nodes[0].nat = Some(Nat::new("203.0.113.9", 40_000, 300 * S));
    for n in 0..20 {
        sim.send(0, 0, &range(0, n + 1, n + 2));
        sim.run(30 * MS);
        sim.send(1, 0, &range(1, n, n + 1));
        sim.run(30 * MS);
        if n == 10 {
            // The NAT restarts and gives other ports.
            sim.nodes[0].nat = Some(Nat::new("203.0.113.77", 50_000, 300 * S));
        }
    }
    assert_eq!(sim.numbers(1), (0..21).collect::<Vec<_>>());
    assert_eq!(sim.numbers(0), (0..20).collect::<Vec<_>>());
    assert_eq!(sim.tunnels(1, 0)[0].endpoint, Some("203.0.113.77:50000".parse().unwrap()));
    assert_eq!(sim.worker(1, 0).handshakes, 1);
}

#[test]
fn packets_that_cannot_leave_are_counted() {
    let mut sim = Sim::pair(5, (1, 1));
    sim.weather.mtu = 1472;
    let mut sim = sim.start();
    sim.send(0, 0, &range(0, 0, 1));
    sim.run(100 * MS);
    // 1440 bytes are the most that 32 of WireGuard's leave of 1472.
    let fits = udp("10.0.0.2", "10.1.0.3", 1000, 1, 1440 - 32);
    let one_more = udp("10.0.0.2", "10.1.0.3", 1000, 2, 1440 - 31);
    let huge = udp("10.0.0.2", "10.1.0.3", 1000, 3, 65_535 - 32);
    sim.send(0, 0, &[fits, one_more, huge]);
    sim.run(100 * MS);
    assert_eq!(sim.numbers(1), [0, 1]);
    assert_eq!(sim.tunnels(0, 1)[0].drops.get(DropCause::TooBig), 2);

    sim.send(
        0,
        0,
        &[
            udp("10.0.0.2", "10.77.0.1", 1, 0, 0),
            udp("10.0.0.2", "224.0.0.5", 1, 0, 0),
            udp("fe80::1", "ff02::2", 1, 0, 0),
            b"\x45not an IP packet".to_vec(),
        ],
    );
    assert_eq!(sim.drops(0, DropCause::NoRoute), 1);
    assert_eq!(sim.drops(0, DropCause::NotUnicast), 2);
    assert_eq!(sim.drops(0, DropCause::Malformed), 1);
}

#[test]
fn the_queue_for_a_handshake_is_bounded_and_forgets() {
    let mut sim = Sim::pair(6, (1, 1)).start();
    sim.nodes[1].alive = false;
    sim.send(0, 0, &range(0, 0, 200));
    assert_eq!(sim.drops(0, DropCause::QueueFull), 200 - 64);
    sim.run(6 * S);
    assert_eq!(sim.drops(0, DropCause::HandshakeTimeout), 64);
    // The newest packets are the ones that are worth something when the peer comes.
    sim.send(0, 0, &range(0, 300, 310));
    sim.nodes[1].alive = true;
    sim.run(6 * S);
    sim.send(0, 0, &range(0, 400, 401));
    sim.run(6 * S);
    assert!(sim.numbers(1).ends_with(&[400]), "{:?}", sim.numbers(1));
    assert!(!sim.numbers(1).contains(&0));
}

#[test]
fn a_peer_without_an_address_that_never_dialled_is_counted() {
    let mut sim = Sim::pair(6, (1, 1));
    sim.nodes[0].spec.peers[0].endpoints.clear();
    let mut sim = sim.start();
    sim.send(0, 0, &range(0, 0, 5));
    sim.run(10 * S);
    assert_eq!(sim.tunnels(0, 1)[0].drops.get(DropCause::NoEndpoint), 5);
    assert_eq!(sim.worker(0, 0).tx_outer_packets, 0);
}

/// A node of alpha (0), two gateways of beta (1, 2) and an ordinary node of beta (3) that dials alpha,
/// which is a gateway itself.
fn cluster() -> Sim {
    let mut sim = Sim::new(9);
    sim.add("alpha/g", "192.0.2.1", 1);
    for (i, id) in ["beta/g1", "beta/g2", "beta/n"].into_iter().enumerate() {
        sim.add(id, &format!("198.51.100.{}", i + 1), 1);
    }
    for peer in 1..=3 {
        sim.link(0, peer, &[]).dial = peer != 3;
        sim.link(peer, 0, &["10.0.0.0/16"]).dial = peer == 3;
    }
    let owner = Some(sim.nodes[3].id.clone());
    sim.nodes[0].spec.peers[2].endpoints.clear();
    sim.route(0, "10.2.3.0/24", owner, &[1, 2]);
    sim.route(0, "10.2.0.0/16", None, &[1, 2]);
    sim.start()
}

fn flows(destination: &str) -> Vec<Vec<u8>> {
    (0..100).map(|n| udp("10.0.0.2", destination, 1000 + n, u32::from(n), 0)).collect()
}

fn where_flows_go(sim: &mut Sim, destination: &str) -> Vec<Option<usize>> {
    for node in &mut sim.nodes {
        node.inbox.clear();
    }
    sim.send(0, 0, &flows(destination));
    sim.run(500 * MS);
    (0..100).map(|n| (1..=3).find(|&node| sim.numbers(node).contains(&n))).collect()
}

#[test]
fn the_owner_is_best_then_gateways_by_flow_and_only_lost_flows_move() {
    let mut sim = cluster();
    sim.run(S);
    // What belongs to the node goes to the node; what has no owner is spread over the gateways.
    assert!(where_flows_go(&mut sim, "10.2.3.9").iter().all(|&at| at == Some(3)));
    let before = where_flows_go(&mut sim, "10.2.9.9");
    let at_1 = before.iter().filter(|&&at| at == Some(1)).count();
    let at_2 = before.iter().filter(|&&at| at == Some(2)).count();
    assert!(at_1 + at_2 == 100 && at_1 > 30 && at_2 > 30, "{at_1} {at_2}");

    // The node dies silently: the gateways take its packets over, once it is known to be silent.
    sim.nodes[3].alive = false;
    where_flows_go(&mut sim, "10.2.3.9");
    sim.run(17 * S);
    let after = where_flows_go(&mut sim, "10.2.3.9");
    assert!(after.iter().all(|&at| at == Some(1) || at == Some(2)));

    // A gateway dies: its flows move, the others stay.
    sim.nodes[2].alive = false;
    where_flows_go(&mut sim, "10.2.9.9");
    sim.run(17 * S);
    let after = where_flows_go(&mut sim, "10.2.9.9");
    assert!(after.iter().all(|&at| at == Some(1)));

    // It comes back: exactly its own flows return.
    sim.nodes[2].alive = true;
    sim.until(20 * S, "the gateway is dialled again", |sim| sim.is_up(0, 2));
    where_flows_go(&mut sim, "10.2.9.9");
    sim.run(S);
    assert_eq!(where_flows_go(&mut sim, "10.2.9.9"), before);
}

#[test]
fn with_all_gateways_lost_flows_keep_their_gateway_and_recover() {
    let mut sim = cluster();
    sim.run(S);
    let before = where_flows_go(&mut sim, "10.2.9.9");
    for gateway in [1, 2] {
        sim.nodes[gateway].alive = false;
    }
    where_flows_go(&mut sim, "10.2.9.9");
    sim.run(120 * S);
    assert!(where_flows_go(&mut sim, "10.2.9.9").iter().all(Option::is_none));
    for gateway in [1, 2] {
        sim.nodes[gateway].alive = true;
    }
    sim.until(20 * S, "dialled again", |sim| sim.is_up(0, 1) && sim.is_up(0, 2));
    where_flows_go(&mut sim, "10.2.9.9");
    sim.run(S);
    assert_eq!(where_flows_go(&mut sim, "10.2.9.9"), before);
}

/// Congestion on the way is told to the inner packet, or to nobody (RFC 6040).
#[test]
fn marks_of_congestion_come_through_the_tunnel() {
    for congested in [false, true] {
        let mut sim = Sim::pair(3, (1, 1)).start();
        sim.send(0, 0, &range(0, 0, 1));
        sim.until(S, "handshake", |sim| sim.is_up(0, 1) && sim.is_up(1, 0));
        sim.nodes[1].inbox.clear();
        sim.weather.congested = congested;
        for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
            for (source, destination) in [("10.0.0.2", "10.1.0.3"), ("fd00:0::2", "fd00:1::3")] {
                let mut packet = udp(source, destination, 1000, 1, 100);
                ecn.write(&mut packet);
                sim.send(0, 0, &[packet]);
            }
        }
        sim.run(S);
        let got: Vec<_> = sim.nodes[1].inbox.iter().map(|(_, _, packet)| Ecn::of(packet)).collect();
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let (ect0, ect1) = if congested { (Ce, Ce) } else { (Ect0, Ect1) };
        assert_eq!(got, [NotEct, NotEct, ect0, ect0, ect1, ect1, Ce, Ce]);
    }
    // A mark where the transport cannot carry it: not by a router that knows the rules.
    let mut sim = Sim::pair(3, (1, 1)).start();
    sim.send(0, 0, &range(0, 0, 1));
    sim.until(S, "handshake", |sim| sim.is_up(0, 1) && sim.is_up(1, 0));
    sim.tap = Some(Vec::new());
    sim.send(0, 0, &range(0, 1, 2));
    let (from, _, datagram) = sim.tap.take().unwrap().pop().unwrap();
    let before = sim.nodes[1].inbox.len();
    sim.inject_marked(1, 0, Ecn::Ce, &[(from, datagram)]);
    assert_eq!(sim.nodes[1].inbox.len(), before);
    assert_eq!(sim.drops(1, DropCause::CongestionMarked), 1);
}

/// A big packet, sent while there is no session yet, and again when there is one.
#[test]
fn a_big_packet_arrives_as_the_packets_it_stands_for() {
    let mut sim = Sim::pair(5, (1, 1)).start();
    let mut big = udp("10.0.0.2", "10.1.0.3", 1000, 1, 10_000);
    let partial = Some(Partial { start: 20, offset: 6 });
    let gso = Some(Gso { kind: GsoKind::Udp, size: 1000, cwr: false });
    let header = VnetHeader { partial, gso, headers: 28 };
    let mut expected = Vec::new();
    let mut copy = big.clone();
    let mut segments = Segments::new(header, &mut copy).unwrap();
    while let Some(segment) = segments.advance() {
        expected.push(segment.to_vec());
    }
    assert_eq!(expected.len(), 11);
    for round in 0..2 {
        sim.send_big(0, 0, header, &big);
        sim.run(S);
        let got: Vec<_> = sim.nodes[1].inbox.drain(..).map(|(_, _, packet)| packet).collect();
        assert_eq!(got, expected, "round {round}");
    }
    let tunnel = &sim.tunnels(0, 1)[0];
    assert_eq!((tunnel.tx_packets, sim.worker(0, 0).tx_inner_packets), (22, 22));
    assert_eq!(tunnel.tx_bytes, sim.worker(0, 0).tx_inner_bytes);
    // What contradicts itself is dropped, whole.
    big[2] = 0;
    sim.send_big(0, 0, header, &big);
    sim.run(S);
    assert!(sim.nodes[1].inbox.is_empty());
    assert_eq!(sim.drops(0, DropCause::Malformed), 1);
}
