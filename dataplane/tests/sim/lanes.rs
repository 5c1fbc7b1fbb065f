//! Several lanes: each does its part of the work, and nothing of the others'.

use std::time::Duration;

use podspan_dataplane::{DropCause, LaneStatus, WorkerStatus};

use crate::net::{PORT, S, Sim, number, udp};

/// Flows of which each has [`PACKETS`] packets; the kernel would give each lane as many.
const FLOWS: u32 = 64;
const PACKETS: u32 = 200;
/// Packets of a flow in a row, as a TUN gives them.
const BURST: u32 = 8;

/// Length of each packet, and of the datagram that it becomes: no probe is as long.
const LENGTH: usize = 1412;
const SEALED: usize = LENGTH + 32;

/// The packets `from..to` of a flow.
fn packets(flow: u32, from: u32, to: u32) -> Vec<Vec<u8>> {
    let port = 1000 + flow as u16;
    (from..to).map(|n| udp("10.0.0.2", "10.1.0.3", port, flow * PACKETS + n, LENGTH - 32)).collect()
}

/// A pair with a session in every lane.
fn pair(lanes: usize) -> Sim {
    let mut sim = Sim::pair(7, (lanes, lanes)).start();
    for lane in 0..lanes {
        sim.send(0, lane, &[udp("10.0.0.2", "10.1.0.3", 1, 0, 0)]);
    }
    sim.until(5 * S, "sessions", |sim| sim.is_up(0, 1) && sim.is_up(1, 0));
    sim.run(2 * S);
    sim.nodes[1].inbox.clear();
    sim
}

/// Sends all flows, flow `f` by lane `f mod lanes`; returns the CPU time that each lane of the sender took.
fn send_all(sim: &mut Sim, lanes: usize) -> Vec<Duration> {
    let mut took = vec![Duration::ZERO; lanes];
    for from in (0..PACKETS).step_by(BURST as usize) {
        for flow in 0..FLOWS {
            let (lane, packets) = (flow as usize % lanes, packets(flow, from, (from + BURST).min(PACKETS)));
            let before = sim.took;
            sim.send(0, lane, &packets);
            took[lane] += sim.took - before;
        }
    }
    sim.run(S);
    took
}

#[test]
fn work_is_divided_among_lanes_and_does_not_grow() {
    println!("lanes  packets of the busiest  times one lane (by the CPU time of each lane's core)");
    let mut alone = None;
    // The first time is for the memory that the simulation takes.
    for (round, lanes) in [1_usize, 1, 2, 4, 8].into_iter().enumerate() {
        let mut sim = pair(lanes);
        let before: Vec<WorkerStatus> = (0..lanes).map(|lane| sim.worker(0, lane)).collect();
        sim.tap = Some(Vec::new());
        let took = send_all(&mut sim, lanes);
        let sent = sim.tap.take().unwrap();
        let all = u64::from(FLOWS * PACKETS);
        let share = all / lanes as u64;
        for (lane, before) in before.iter().enumerate() {
            let after = sim.worker(0, lane);
            assert_eq!(after.tx_inner_packets - before.tx_inner_packets, share, "lane {lane} of {lanes}");
            // One datagram for each packet, but for the probes of a second or two; from the lane's own port to that of the
            // lane it is joined to.
            let outer = after.tx_outer_packets - before.tx_outer_packets;
            assert!((share..share + 100).contains(&outer), "{outer} datagrams of lane {lane} of {lanes}");
            let port = PORT + lane as u16;
            let data = |(_, _, bytes): &&(_, _, Vec<u8>)| bytes.len() == SEALED;
            let mine =
                sent.iter().filter(data).filter(|(from, to, _)| from.port() == port && to.port() == port);
            assert_eq!(mine.count() as u64, share, "datagrams of lane {lane} of {lanes}");
            assert_eq!(after.handshakes, before.handshakes);
        }
        for cause in DropCause::ALL {
            assert_eq!(sim.drops(1, cause), 0, "{cause:?}");
        }
        // All arrive, each flow in order and at one lane.
        let mut next = vec![0; FLOWS as usize];
        for (_, lane, packet) in &sim.nodes[1].inbox {
            let (flow, n) = (number(packet) / PACKETS, number(packet) % PACKETS);
            assert_eq!((*lane, n), (flow as usize % lanes, next[flow as usize]), "flow {flow}");
            next[flow as usize] += 1;
        }
        assert_eq!(next, vec![PACKETS; FLOWS as usize]);

        let busiest = took.into_iter().max().unwrap();
        if round == 0 {
            continue;
        }
        let times = alone.get_or_insert(busiest).as_secs_f64() / busiest.as_secs_f64();
        println!("{lanes:5}  {share:22}  {times:.2}");
    }
}

/// What the worker and the tunnels of a lane say.
fn of_lane(sim: &Sim, node: usize, lane: usize) -> (WorkerStatus, Vec<LaneStatus>) {
    let tunnels = sim.tunnels(node, 1 - node).into_iter().filter(|tunnel| tunnel.local == lane).collect();
    (sim.worker(node, lane), tunnels)
}

/// While lane 0 works, not a number of lane 1 changes: neither end counts, keeps or looks after anything in common.
#[test]
fn what_one_lane_does_leaves_no_trace_in_another() {
    let mut sim = pair(2);
    let text = |sim: &Sim, lane| format!("{:?}", [of_lane(sim, 0, lane), of_lane(sim, 1, lane)]);
    let before = [text(&sim, 0), text(&sim, 1)];
    // No time passes: nothing else happens. What lane 0 sends reaches the other end past the network.
    (sim.weather.loss, sim.tap) = (1000, Some(Vec::new()));
    sim.send(0, 0, &packets(1, 0, PACKETS));
    let sent: Vec<_> = sim.tap.take().unwrap().into_iter().map(|(from, _, bytes)| (from, bytes)).collect();
    assert_eq!(sent.len() as u32, PACKETS);
    sim.inject(1, 0, &sent);
    assert_eq!(sim.nodes[1].inbox.len() as u32, PACKETS);
    assert_ne!(text(&sim, 0), before[0]);
    assert_eq!(text(&sim, 1), before[1]);
}

/// Locks, and instructions that several cores fight over. The only shared thing that a packet meets is the table, which is read.
#[test]
fn nothing_on_the_way_of_a_packet_is_locked() {
    const FOUGHT_OVER: [&str; 8] =
        ["Mutex", "RwLock", "fetch_", "compare_exchange", "SeqCst", "AcqRel", "DashMap", "Condvar"];
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut directories = ["core", "table", "offload", "worker"].map(|name| source.join(name)).to_vec();
    let mut files = vec![source.join("counters.rs"), source.join("tun.rs")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { &mut directories } else { &mut files }.push(path);
        }
    }
    assert!(files.len() > 30, "the sources are elsewhere: {files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in FOUGHT_OVER {
            assert!(!text.contains(word), "{} has {word}", file.display());
        }
    }
}
