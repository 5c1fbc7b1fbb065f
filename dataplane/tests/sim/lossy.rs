//! Gateways that lose a part of what goes through them, and paths that do.

use std::time::Duration;

use podspan_dataplane::Liveness;

use crate::liveness::{cluster, flow, liveness, longest_gap};
use crate::net::{MS, S, Sim};

/// What gateway 1 loses in each direction, in parts of a thousand.
fn gateway_loses(sim: &mut Sim, loss: u64) {
    let (a, g) = (sim.nodes[0].address, sim.nodes[1].address);
    sim.loss.insert((a, g), loss);
    sim.loss.insert((g, a), loss);
}

/// Sends until gateway 1 is left; how long that took.
fn until_left(sim: &mut Sim) -> Duration {
    let start = sim.now;
    while liveness(sim, 0, 1) < Liveness::HeldDown {
        assert!(sim.now.since(start) < 20 * S, "it is not left");
        for port in 0..20 {
            sim.send(0, 0, &[flow(1000 + port, u32::from(port))]);
        }
        sim.run(10 * MS);
    }
    sim.now.since(start)
}

fn changes(sim: &Sim, gateways: usize) -> u64 {
    (1..=gateways).flat_map(|peer| sim.tunnels(0, peer)).map(|tunnel| tunnel.changes).sum()
}

#[test]
fn a_gateway_that_loses_a_third_is_left_within_half_a_second() {
    let mut times = Vec::new();
    for seed in 0..30 {
        let mut sim = cluster(700 + seed, 2);
        // The other one has had its troubles, and is not to be distrusted for ever.
        longest_gap(&mut sim, 3 * S);
        sim.unplugged.insert(2);
        longest_gap(&mut sim, S);
        sim.unplugged.clear();
        longest_gap(&mut sim, (3 + seed % 5) as u32 * S);
        sim.run(Duration::from_millis(seed * 7));
        gateway_loses(&mut sim, 300);
        times.push(until_left(&mut sim));
    }
    times.sort_unstable();
    println!("left after {times:?}");
    assert!(times[14] <= 500 * MS && times[29] <= 1200 * MS, "{times:?}");
}

#[test]
fn a_gateway_that_loses_a_third_is_left_for_good() {
    for (seed, loss) in [(7, 300), (8, 300), (9, 150), (10, 500)] {
        let mut sim = cluster(seed, 2);
        longest_gap(&mut sim, 5 * S);
        gateway_loses(&mut sim, loss);
        longest_gap(&mut sim, 4 * S);
        let (gap, lost) = longest_gap(&mut sim, 60 * S);
        // Of 120,000, half of which would go through it.
        assert!(lost < 600 && gap < 250 * MS, "{loss}: {lost} lost, {gap:?}");
        let state = liveness(&sim, 0, 1);
        assert!(state >= Liveness::HeldDown, "{state:?}");
        // It is well again, and that is seen.
        sim.loss.clear();
        longest_gap(&mut sim, 30 * S);
        assert_eq!(liveness(&sim, 0, 1), Liveness::Healthy, "{loss}");
    }
}

/// It is the path, not the gateway: flows had better stay where they are.
#[test]
fn where_all_lose_nothing_flaps() {
    for (seed, gateways, loss) in
        [(20, 2, 20), (21, 2, 80), (22, 2, 160), (23, 3, 160), (24, 5, 100), (25, 2, 300)]
    {
        let mut sim = cluster(seed, gateways);
        longest_gap(&mut sim, 5 * S);
        let before = changes(&sim, gateways);
        sim.weather.loss = loss;
        longest_gap(&mut sim, 60 * S);
        let used: Vec<usize> = (1..=gateways).map(|node| sim.numbers(node).len()).collect();
        let changed = changes(&sim, gateways) - before;
        println!("{loss}: {changed} changes, {used:?}");
        // A path that loses half of all round trips is beyond help.
        let most = if loss > 200 { 12 } else { 6 } * gateways as u64;
        assert!(changed <= most, "{loss}: {changed} changes in a minute");
        assert!(loss > 200 || used.iter().all(|&n| n > 10_000 / gateways), "{loss}: {used:?}");
    }
}

#[test]
fn a_death_on_a_path_that_loses_is_still_seen_in_time() {
    for (seed, loss) in [(30, 50), (31, 100), (32, 160), (33, 160)] {
        let mut sim = cluster(seed, 2);
        sim.weather.loss = loss;
        longest_gap(&mut sim, 20 * S);
        sim.unplugged.insert(1);
        let start = sim.now;
        while liveness(&sim, 0, 1) < Liveness::Suspect {
            longest_gap(&mut sim, 10 * MS);
        }
        let took = sim.now.since(start);
        // A look takes 0.11 s.
        assert!(took <= 600 * MS, "{loss}: {took:?}");
    }
}
