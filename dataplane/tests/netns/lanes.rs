//! How the kernel and the lanes share the work out.

use std::net::{SocketAddr, UdpSocket};

use podspan_dataplane::Offload;

use crate::world::{ask, end, pair, udp_echo};

/// Many flows are spread over the queues of the TUN, and so over lanes and workers: none has more than half as much again as
/// its part, and a flow stays where it is.
#[test]
fn flows_are_spread_over_all_lanes() {
    const LANES: usize = 4;
    const FLOWS: u64 = 400;
    const PACKETS: u64 = 5;
    let (a, b) = pair(Offload::ALL, (LANES, LANES), 4, true);
    let to: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, to);
    ask(&a, to, 100);
    let sent = |flow: u64| -> Vec<u64> {
        let before: Vec<u64> = a.dataplane().status().workers.iter().map(|w| w.tx_inner_packets).collect();
        let sender = a.namespace.inside(move || {
            // A flow has a port of its own, and each packet is awaited, so that none is lost on the way to a queue.
            let socket = UdpSocket::bind(("0.0.0.0", 20_000 + flow as u16)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
            for _ in 0..PACKETS {
                socket.send(&[7; 100]).unwrap();
                socket.recv(&mut [0; 100]).unwrap();
            }
        });
        sender.join().unwrap();
        let after = a.dataplane().status().workers;
        after.iter().zip(before).map(|(worker, before)| worker.tx_inner_packets - before).collect()
    };
    let mut flows = [0; LANES];
    for flow in 0..FLOWS {
        let by_lane = sent(flow);
        let lane = by_lane.iter().position(|&n| n >= PACKETS);
        let lane = lane.unwrap_or_else(|| panic!("flow {flow} was torn apart: {by_lane:?}"));
        flows[lane] += 1;
    }
    println!("{flows:?}");
    let part = FLOWS / LANES as u64;
    assert!(
        flows.iter().all(|n| (part / 2..=part * 3 / 2).contains(n)),
        "{FLOWS} flows over lanes: {flows:?}"
    );
    end(&a, to);
    echo.join().unwrap();
}
