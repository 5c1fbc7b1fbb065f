//! Sessions: that they begin, are renewed, survive, recover and end as they should.

use podspan_dataplane::{DropCause, LaneSecret};

use crate::net::{MS, S, Sim, Weather, udp};

fn one(n: u32) -> [Vec<u8>; 1] {
    [udp("10.0.0.2", "10.1.0.3", 1000, n, 50)]
}

fn back(n: u32) -> [Vec<u8>; 1] {
    [udp("10.1.0.3", "10.0.0.2", 1000, n, 50)]
}

#[test]
fn sessions_are_renewed_under_traffic_without_loss() {
    let mut sim = Sim::pair(1, (1, 1)).start();
    for n in 0..4000 {
        sim.send(0, 0, &one(n));
        sim.send(1, 0, &back(n));
        sim.run(100 * MS);
    }
    sim.run(S);
    assert_eq!(sim.numbers(1), (0..4000).collect::<Vec<_>>());
    // The other side's first packets cross the handshake of this side; none of them is lost either.
    assert_eq!(sim.numbers(0), (0..4000).collect::<Vec<_>>());
    let handshakes = sim.worker(0, 0).handshakes;
    assert!((4..=8).contains(&handshakes), "400 s at 120 s each: {handshakes}");
    assert!(sim.tunnels(0, 1)[0].handshake_age.unwrap() < 121 * S);
}

#[test]
fn one_way_traffic_keeps_the_tunnel_up_by_passive_keepalives() {
    let mut sim = Sim::pair(2, (1, 1)).start();
    for n in 0..600 {
        sim.send(0, 0, &one(n));
        sim.run(S);
        assert!(n == 0 || sim.is_up(0, 1), "at {n} s");
    }
    assert_eq!(sim.numbers(1), (0..600).collect::<Vec<_>>());
}

#[test]
fn an_idle_tunnel_goes_to_sleep_and_wakes_for_a_packet() {
    let mut sim = Sim::pair(3, (1, 1)).start();
    sim.send(0, 0, &one(0));
    // Probes follow the packet for 2 s, and the session that they were sent on is renewed once.
    sim.run(320 * S);
    assert!(!sim.is_up(0, 1));
    let ticks = sim.worker(0, 0).ticks + sim.worker(1, 0).ticks;
    // Past the 540 s after which boringtun gives itself up.
    sim.run(1000 * S);
    assert_eq!(sim.worker(0, 0).ticks + sim.worker(1, 0).ticks, ticks, "sleep costs nothing");
    sim.send(1, 0, &back(1));
    sim.run(100 * MS);
    assert_eq!(sim.numbers(0), [1]);
    assert!(sim.is_up(0, 1) && sim.is_up(1, 0));
    sim.run(2000 * S);
    sim.send(0, 0, &one(2));
    sim.run(100 * MS);
    assert_eq!(sim.numbers(1), [0, 2]);
}

#[test]
fn a_dialled_tunnel_never_goes_cold() {
    let mut sim = Sim::pair(4, (1, 1));
    sim.nodes[0].spec.peers[0].dial = true;
    let mut sim = sim.start();
    sim.run(100 * MS);
    for second in 0..1200 {
        sim.run(S);
        assert!(sim.is_up(0, 1), "after {second} s");
        let age = sim.tunnels(0, 1)[0].handshake_age.unwrap();
        assert!(age < 122 * S, "{age:?} after {second} s");
    }
    let handshakes = sim.worker(0, 0).handshakes;
    assert!((9..=12).contains(&handshakes), "{handshakes}");
    // A packet after all that time needs no handshake.
    sim.send(0, 0, &one(1));
    sim.run(11 * MS);
    assert_eq!(sim.numbers(1), [1]);
}

#[test]
fn both_dialling_at_once_end_with_one_working_session_each() {
    for seed in 0..20 {
        let mut sim = Sim::pair(seed, (2, 2));
        for node in 0..2 {
            sim.nodes[node].spec.peers[0].dial = true;
        }
        sim.weather = Weather { jitter: 5 * MS, ..Weather::default() };
        let mut sim = sim.start();
        sim.until(S, "dialled", |sim| sim.is_up(0, 1) && sim.is_up(1, 0));
        for n in 0..100 {
            sim.send(0, n as usize % 2, &one(n));
            sim.send(1, n as usize % 2, &back(n));
            sim.run(20 * MS);
        }
        sim.run(S);
        assert_eq!((sim.numbers(1).len(), sim.numbers(0).len()), (100, 100), "seed {seed}");
    }
}

#[test]
fn a_restarted_node_that_dials_is_back_at_once() {
    let mut sim = Sim::pair(5, (2, 2));
    sim.nodes[0].spec.peers[0].dial = true;
    let mut sim = sim.start();
    sim.run(S);
    sim.restart(0);
    sim.until(2 * S, "dialled", |sim| sim.is_up(0, 1));
    // The other end still has the old session: it must use the new one as soon as that is confirmed.
    sim.run(11 * MS);
    for lane in 0..2 {
        sim.send(1, lane, &back(lane as u32));
    }
    sim.run(20 * MS);
    assert_eq!(sim.numbers(0).len(), 2);
}

#[test]
fn a_restarted_node_that_waits_is_found_by_what_it_is_sent() {
    // Nobody dials: the restarted node hears packets of a session it lost, from an address it knows.
    let mut sim = Sim::pair(6, (1, 1)).start();
    sim.send(0, 0, &one(0));
    sim.run(S);
    sim.restart(1);
    let mut n = 1;
    let start = sim.now;
    while !sim.numbers(1).contains(&(n - 1)) || n < 5 {
        sim.send(0, 0, &one(n));
        n += 1;
        sim.run(50 * MS);
        assert!(sim.now.since(start) < 2 * S, "not back within 2 s");
    }
    assert!(sim.drops(1, DropCause::UnknownSession) >= 1);
}

#[test]
fn a_restarted_gateway_dials_what_it_had_learned() {
    let mut sim = Sim::pair(7, (1, 1));
    sim.nodes[0].nat = Some(crate::net::Nat::new("203.0.113.9", 40_000, 300 * S));
    sim.nodes[0].spec.peers[0].dial = true;
    sim.nodes[1].spec.peers[0].endpoints.clear();
    let mut sim = sim.start();
    sim.run(S);
    let learned = sim.tunnels(1, 0)[0].endpoint.unwrap();
    sim.nodes[1].spec.peers[0].learned = vec![(0, 0, learned)];
    sim.restart(1);
    sim.until(2 * S, "found again", |sim| sim.is_up(1, 0));
    sim.send(1, 0, &back(1));
    sim.run(20 * MS);
    assert_eq!(sim.numbers(0), [1]);
}

#[test]
fn a_lost_handshake_does_not_cost_a_restart_its_two_seconds() {
    let mut sim = Sim::pair(5, (1, 1));
    sim.nodes[0].spec.peers[0].dial = true;
    let mut sim = sim.start();
    sim.run(S);
    sim.nodes[1].alive = false;
    sim.restart(0);
    sim.run(100 * MS);
    sim.nodes[1].alive = true;
    sim.until(1900 * MS, "dialled again", |sim| sim.is_up(0, 1) && sim.is_up(1, 0));
}

#[test]
fn a_wrong_memory_is_given_up_and_costs_little() {
    let mut sim = Sim::pair(8, (1, 1));
    sim.nodes[0].spec.peers[0].learned = vec![(0, 0, "203.0.113.200:4000".parse().unwrap())];
    sim.nodes[0].spec.peers[0].endpoints.clear();
    let mut sim = sim.start();
    sim.run(300 * S);
    let sent = sim.worker(0, 0).tx_outer_packets;
    assert!((4..=7).contains(&sent), "{sent}");
}

#[test]
fn dialling_goes_through_all_endpoints_and_never_ends() {
    let mut sim = Sim::pair(9, (1, 1));
    let peer = &mut sim.nodes[0].spec.peers[0];
    peer.dial = true;
    peer.learned = vec![(0, 0, "203.0.113.200:4000".parse().unwrap())];
    let right = peer.endpoints[0];
    peer.endpoints = vec!["203.0.113.201".parse().unwrap(), right];
    sim.tap = Some(vec![]);
    let mut sim = sim.start();
    let took = sim.until(4 * S, "the third endpoint", |sim| sim.is_up(0, 1));
    assert!(took > S, "{took:?}");

    // A peer that is away for half an hour is called all the while, at least each 16 s.
    sim.nodes[1].alive = false;
    sim.run(200 * S);
    let mut calls = sim.worker(0, 0).tx_outer_packets;
    for _ in 0..100 {
        sim.run(16 * S);
        let now = sim.worker(0, 0).tx_outer_packets;
        assert!((1..=4).contains(&(now - calls)), "{} calls in 16 s", now - calls);
        calls = now;
    }
    sim.nodes[1].alive = true;
    sim.until(50 * S, "back", |sim| sim.is_up(0, 1));
}

#[test]
fn a_table_swap_keeps_sessions_and_counters() {
    let mut sim = Sim::pair(10, (2, 2)).start();
    for lane in 0..2 {
        sim.send(0, lane, &one(lane as u32));
    }
    sim.run(S);
    sim.add("gamma/c", "203.0.113.1", 1);
    let third = sim.describe(2);
    // A new peer whose id sorts first, so that all indices shift, and another endpoint for the old one.
    sim.nodes[0].spec.peers.insert(0, podspan_dataplane::PeerSpec { id: "aa/c".parse().unwrap(), ..third });
    sim.nodes[0].spec.peers[1].endpoints.push("203.0.113.50".parse().unwrap());
    for _ in 0..3 {
        sim.apply(0);
        sim.run(10 * MS);
    }
    sim.send(0, 0, &one(7));
    sim.send(1, 0, &back(8));
    sim.run(11 * MS);
    assert!(sim.numbers(1).contains(&7) && sim.numbers(0).contains(&8));
    assert_eq!(sim.worker(0, 0).handshakes, 1, "no new handshake");
    assert_eq!(sim.tunnels(0, 1)[0].tx_packets, 2);
}

#[test]
fn a_new_key_makes_a_new_tunnel_and_the_old_key_is_gone() {
    let mut sim = Sim::pair(11, (1, 1)).start();
    sim.send(0, 0, &one(0));
    sim.run(S);
    // Node 1 takes another key; node 0 has not heard yet: nothing it says is taken.
    sim.nodes[1].secrets[0] = LaneSecret::from_bytes([99; 32]);
    sim.restart(1);
    sim.send(1, 0, &back(1));
    sim.run(S);
    assert!(sim.numbers(0).is_empty());
    assert!(sim.drops(0, DropCause::UnknownPeer) >= 1);
    sim.nodes[0].spec.peers[0].lanes = sim.nodes[1].lanes();
    sim.apply(0);
    assert!(!sim.is_up(0, 1));
    sim.send(0, 0, &one(2));
    sim.run(S);
    assert_eq!(sim.numbers(1), [0, 2]);
    assert_eq!(sim.tunnels(0, 1)[0].tx_packets, 1, "counters of the new tunnel are new");
}

#[test]
fn a_removed_peer_is_gone_at_once_and_may_come_back() {
    let mut sim = Sim::pair(12, (1, 1)).start();
    sim.send(0, 0, &one(0));
    sim.run(S);
    let spec = std::mem::take(&mut sim.nodes[0].spec);
    sim.apply(0);
    sim.send(0, 0, &one(1));
    sim.send(1, 0, &back(1));
    sim.run(S);
    assert_eq!((sim.numbers(0).len(), sim.numbers(1).len()), (0, 1));
    assert_eq!(sim.drops(0, DropCause::NoRoute), 1);
    assert!(sim.drops(0, DropCause::UnknownSession) >= 1);
    std::thread::sleep(20 * MS);
    sim.nodes[0].spec = spec;
    sim.apply(0);
    sim.send(0, 0, &one(2));
    sim.run(S);
    assert_eq!(sim.numbers(1), [0, 2]);
}

#[test]
fn a_removed_peer_that_comes_back_is_dialled_where_it_was() {
    // The peer dials and publishes no address. It is not told that its session is gone here, and has no
    // reason to doubt it: what it sends would be lost until its timers ask.
    let mut sim = Sim::pair(14, (2, 2));
    sim.nodes[0].nat = Some(crate::net::Nat::new("203.0.113.9", 40_000, 300 * S));
    sim.nodes[0].spec.peers[0].dial = true;
    sim.nodes[1].spec.peers[0].endpoints.clear();
    let mut sim = sim.start();
    sim.run(S);
    let spec = std::mem::take(&mut sim.nodes[1].spec);
    sim.apply(1);
    sim.run(S);
    sim.nodes[1].spec = spec;
    sim.apply(1);
    sim.run(50 * MS);
    for lane in 0..2 {
        sim.send(0, lane, &one(lane as u32));
    }
    sim.run(20 * MS);
    assert_eq!(sim.numbers(1), [0, 1]);
    assert_eq!(sim.worker(1, 0).handshakes, 2, "the one of before and one more");
}

#[test]
fn a_keepalive_that_is_switched_on_later_works_without_a_new_session() {
    let mut sim = Sim::pair(13, (1, 1)).start();
    sim.send(0, 0, &one(0));
    sim.run(3 * S);
    sim.nodes[0].spec.peers[0].persistent_keepalive = Some(10);
    sim.apply(0);
    let before = sim.worker(0, 0).tx_outer_packets;
    sim.run(100 * S);
    let sent = sim.worker(0, 0).tx_outer_packets - before;
    assert!((9..=10).contains(&sent), "{sent}");
    assert_eq!(sim.worker(0, 0).handshakes, 1);
}
