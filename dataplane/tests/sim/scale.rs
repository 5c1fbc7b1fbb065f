//! Many peers: what they cost when nothing happens.

use crate::net::{MS, S, Sim, udp};
use std::time::Duration;

#[test]
fn five_thousand_idle_peers_cost_one_tick_each_a_second_or_none() {
    const PEERS: usize = 5000;
    let mut sim = Sim::new(1);
    sim.add("alpha/g", "192.0.2.1", 1);
    for peer in 1..=PEERS {
        sim.add(&format!("beta/n{peer}"), &format!("10.200.{}.{}", peer / 250, peer % 250 + 1), 1);
        sim.link(0, peer, &[]);
        sim.link(peer, 0, &["10.0.0.0/16"]);
    }
    let mut sim = sim.start();
    // Peers that nobody dials and that say nothing: no timer at all.
    sim.run(10 * S);
    assert_eq!(sim.worker(0, 0).ticks, 0);
    assert_eq!(sim.nodes[0].cores[0].poll_timeout(), None);

    for peer in 1..=PEERS {
        sim.send(peer, 0, &[udp("10.9.0.1", "10.0.0.1", 1, 1, 0)]);
        if peer % 50 == 0 {
            sim.run(50 * MS);
        }
    }
    sim.run(30 * S);
    assert_eq!(sim.worker(0, 0).handshakes, PEERS as u64);
    // All have sessions and are idle.
    let before = sim.worker(0, 0).ticks;
    sim.run(10 * S);
    let per_second = (sim.worker(0, 0).ticks - before) / 10;
    assert!((PEERS as u64 / 2..=PEERS as u64 * 11 / 10).contains(&per_second), "{per_second} ticks a second");

    // Sessions end, and with them the cost.
    sim.run(320 * S);
    let before = sim.worker(0, 0).ticks;
    sim.run(10 * S);
    assert_eq!(sim.worker(0, 0).ticks, before);
}

/// What idle peers that dial a gateway cost it: how often each is to probe, the gateway says. Prints what the core
/// took for each (`cargo test --release -p podspan-dataplane --features sim --test sim idle -- --nocapture`); the
/// system calls come on top, one to receive and one to send for each probe at most.
#[test]
fn idle_peers_probe_as_seldom_as_the_gateway_has_peers() {
    println!("peers  probes/s  core us/s");
    for (peers, every) in [(100, 5), (500, 5)] {
        let mut sim = Sim::new(2);
        sim.add("alpha/g", "192.0.2.1", 1);
        for peer in 1..=peers {
            sim.add(&format!("beta/n{peer}"), &format!("10.200.{}.{}", peer / 250, peer % 250 + 1), 1);
            sim.link(0, peer, &[]).endpoints.clear();
            sim.link(peer, 0, &["10.0.0.0/16"]).dial = true;
        }
        for node in 1..=peers {
            sim.apply(node);
            if node % 50 == 0 {
                sim.run(20 * MS);
            }
        }
        sim.apply(0);
        sim.run(60 * S);
        let probes = |sim: &Sim| -> u64 {
            sim.nodes[0].table.status(sim.now).iter().flat_map(|p| &p.lanes).map(|l| l.replies_sent).sum()
        };
        let (before, took) = (probes(&sim), sim.took);
        sim.run(30 * S);
        let each_second = (probes(&sim) - before) / 30;
        let took = (sim.took - took) / 30;
        println!("{peers:5}  {each_second:8}  {:9}", took.as_micros());
        let wanted = peers as u64 / every;
        assert!((wanted * 85 / 100..=wanted * 101 / 100).contains(&each_second), "{peers}: {each_second}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}
