//! Many peers: what they cost when nothing happens.

use podspan_dataplane::ClusterSpec;

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

/// The table of docs/operations.md: what the tunnels of nodes that dial a gateway cost its core each second, once all
/// have sessions: idle, and with all these nodes in use of the cluster by other gateways, so that they probe once a
/// second. The median of the seconds. Run with
/// `cargo test --release -p podspan-dataplane --features sim --test sim cost -- --ignored --nocapture`.
#[test]
#[ignore = "measures and prints a table; takes minutes"]
fn cost_of_liveness_at_a_gateway() {
    println!("| nodes | state | probes/s | CPU of the core, us/s | % of a core |");
    for peers in [1, 100, 1000, 5000, 10_000] {
        for in_use in [false, true] {
            let mut sim = Sim::new(3);
            sim.handshake_limit = 100_000;
            sim.add("alpha/g", "192.0.2.1", 1);
            for peer in 1..=peers {
                let address = format!("10.{}.{}.{}", 200 + peer / 60_000, peer / 250 % 250, peer % 250 + 1);
                sim.add(&format!("beta/n{peer}"), &address, 1);
                sim.link(0, peer, &[]).endpoints.clear();
                sim.link(peer, 0, &[]).dial = true;
                sim.route(peer, "10.0.0.0/16", None, &[0]);
                let id = "alpha".parse().unwrap();
                sim.nodes[peer].spec.clusters =
                    vec![ClusterSpec { id, nearest: false, silent: false, watched: in_use }];
            }
            sim.apply(0);
            for node in 1..=peers {
                sim.apply(node);
                if node % 20 == 0 {
                    sim.run(10 * MS);
                }
            }
            sim.run(60 * S);
            let probes = |sim: &Sim| -> u64 {
                let status = sim.nodes[0].table.status(sim.now);
                status.iter().flat_map(|p| &p.lanes).map(|l| l.replies_sent).sum()
            };
            let before = probes(&sim);
            let mut seconds: Vec<Duration> = (0..25)
                .map(|_| {
                    let took = sim.took;
                    sim.run(S);
                    sim.took - took
                })
                .collect();
            let each_second = (probes(&sim) - before) as f64 / 25.0;
            seconds.sort_unstable();
            let took = seconds[12];
            let state = if in_use { "standby" } else { "idle" };
            let percent = took.as_secs_f64() * 100.0;
            println!("| {peers} | {state} | {each_second:.1} | {} | {percent:.2} |", took.as_micros());
            assert!(in_use || peers > 5000 || percent < 1.0, "{percent} % of a core");
        }
    }
}
