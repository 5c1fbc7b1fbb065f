//! What a node does, with any offloads: see `with_offloads` in the parent.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use podspan_dataplane::{Dataplane, DropCause, Offload, Settings, StartError};

use crate::world::{FWMARK, Namespace, Node, PATIENCE, PORT, TUN, ask, end, pair, settings, tcp, udp_echo};

pub(crate) fn pods_reach_each_other_over_both_underlays_in_both_families(offload: Offload) {
    for underlay in [4, 6] {
        let (a, b) = pair(offload, (2, 3), underlay, false);
        for address in ["10.202.0.1:7", "[fd00:202::1]:7"] {
            let address: SocketAddr = address.parse().unwrap();
            let echo = udp_echo(&b, address);
            ask(&a, address, 100);
            // More than the tunnel's MTU: the kernel fragments inside.
            ask(&a, address, 3000);
            end(&a, address);
            echo.join().unwrap();
        }
        for address in ["10.201.0.1:8", "[fd00:201::1]:8"] {
            tcp(&b.namespace, &a.namespace, address.parse().unwrap(), 4 << 20, 3);
        }
        let status = a.dataplane().status();
        assert_eq!(status.peers.len(), 1);
        assert!(status.workers.iter().all(|worker| worker.failed.is_none()));
        let up: Vec<_> = status.peers[0].lanes.iter().filter(|lane| lane.established).collect();
        assert!(!up.is_empty());
        assert!(up.iter().all(|lane| lane.endpoint.is_some() && lane.handshake_age.is_some()), "{up:?}");
        assert!(up.iter().any(|lane| lane.rx_bytes > 1 << 20), "{up:?}");
        // Nothing but the multicast that Linux sends on any interface was dropped.
        for (cause, n) in status.workers.iter().flat_map(|worker| worker.drops) {
            assert!(n == 0 || cause == DropCause::NotUnicast, "{cause:?} {n}");
        }
    }
}

pub(crate) fn a_restart_keeps_the_interface_and_costs_less_than_two_seconds(offload: Offload) {
    let (mut a, b) = pair(offload, (2, 2), 4, true);
    let address: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, address);
    ask(&a, address, 100);
    let index =
        |node: &Node| node.namespace.ip(&format!("-o link show {TUN}")).split(':').next().unwrap().to_owned();
    let before = index(&a);
    a.dataplane.take().unwrap().shutdown();
    assert_eq!(index(&a), before, "the interface stays");
    let start = Instant::now();
    a.start();
    a.set_table(&b, "192.0.2.2", true);
    ask(&a, address, 100);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(index(&a), before);
    end(&a, address);
    echo.join().unwrap();
}

pub(crate) fn an_interface_that_is_down_or_deleted_is_survived(offload: Offload) {
    let (a, b) = pair(offload, (2, 1), 4, true);
    let address: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, address);
    ask(&a, address, 100);
    a.namespace.ip(&format!("link set {TUN} down"));
    // Packets of the peer come to a dead end meanwhile.
    let back: SocketAddr = "10.201.0.1:9".parse().unwrap();
    end(&b, back);
    thread::sleep(Duration::from_millis(200));
    let lost = || -> u64 {
        let status = a.dataplane().status();
        status.peers[0].lanes.iter().map(|lane| lane.drops.get(DropCause::TunWriteFailed)).sum()
    };
    assert_eq!(lost(), 1);
    a.namespace.ip(&format!("link set {TUN} up"));
    a.namespace.ip(&format!("route add 10.202.0.0/24 dev {TUN}"));
    ask(&a, address, 100);

    a.namespace.ip(&format!("link del {TUN}"));
    let deadline = Instant::now() + PATIENCE;
    let exists = || {
        Command::new("ip")
            .args(["-n", &a.namespace.0, "link", "show", TUN])
            .output()
            .unwrap()
            .status
            .success()
    };
    while !exists() {
        assert!(Instant::now() < deadline, "the interface was not made anew");
        thread::sleep(Duration::from_millis(20));
    }
    a.set_up_interface();
    ask(&a, address, 100);
    // All workers have their queue back: the kernel spreads flows over both.
    for _ in 0..8 {
        ask(&a, address, 100);
    }
    assert!(a.dataplane().status().workers.iter().all(|worker| worker.failed.is_none()));
    end(&a, address);
    echo.join().unwrap();
}

pub(crate) fn garbage_at_the_port_is_counted_and_harms_nobody(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    let address: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, address);
    ask(&a, address, 100);
    let sender = a.namespace.inside(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        for length in 0..200_usize {
            let mut bytes: Vec<u8> = (0..length).map(|i| (i * 31 + length) as u8).collect();
            if length >= 4 && length % 2 == 0 {
                bytes[..4].copy_from_slice(&[1 + (length % 4) as u8, 0, 0, 0]);
            }
            socket.send_to(&bytes, ("192.0.2.2", PORT)).unwrap();
        }
    });
    sender.join().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let dropped = || b.dataplane().status().workers[0].drops.total();
    while dropped() < 200 {
        assert!(Instant::now() < deadline, "{} of 200 counted", dropped());
        thread::sleep(Duration::from_millis(10));
    }
    assert!(b.drops(DropCause::Malformed) > 100);
    ask(&a, address, 100);
    end(&a, address);
    echo.join().unwrap();
}

pub(crate) fn every_outer_packet_carries_the_mark(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    // A rule that sends what is marked nowhere: if the mark were not there, packets would still arrive.
    let address: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, address);
    ask(&a, address, 100);
    a.namespace.ip(&format!("rule add fwmark {FWMARK} unreachable"));
    end(&a, address);
    thread::sleep(Duration::from_millis(200));
    let status = a.dataplane().status();
    // With what was sent, some probes.
    assert!(status.peers[0].lanes[0].drops.get(DropCause::SendFailed) >= 1);
    a.namespace.ip(&format!("rule del fwmark {FWMARK}"));
    end(&a, address);
    echo.join().unwrap();
}

#[test]
fn refusals_name_what_is_in_the_way() {
    let namespace = Namespace::new("a");
    namespace.ip("link add other type veth peer name rest");
    namespace.ip("tuntap add mode tap name tapped");
    namespace.ip("tuntap add mode tun name plain");
    let thread = namespace.inside(|| {
        let start = |interface: &str, port| {
            Dataplane::start(Settings {
                interface: interface.into(),
                port,
                persist: false,
                ..settings(1, 2, Offload::ALL)
            })
        };
        let error = |interface| start(interface, PORT).unwrap_err().to_string();
        assert!(error("other").contains("ip link delete other"), "{}", error("other"));
        assert!(error("tapped").contains("ip link delete tapped"), "{}", error("tapped"));
        assert!(error("plain").contains("ip link delete plain"), "{}", error("plain"));
        assert!(error("a/b").contains("name of an interface"));

        let _other = UdpSocket::bind(("0.0.0.0", PORT + 1)).unwrap();
        let taken = start("free", PORT);
        assert!(
            matches!(taken, Err(StartError::PortTaken { port, lane: 1 }) if port == PORT + 1),
            "{taken:?}"
        );
        drop(start("free", PORT + 10).unwrap());
        // What was refused left nothing behind, and what was stopped neither.
        drop(start("free", PORT + 10).unwrap());
    });
    thread.join().unwrap();
    assert!(!namespace.ip("-o link").contains("free"), "an interface that is not to persist is gone");
}

/// Without IPv6 in the namespace nothing but IPv4 is asked for.
#[test]
fn it_works_where_ipv6_is_switched_off() {
    let namespace = Namespace::new("a");
    let thread = namespace.inside(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        drop(Dataplane::start(Settings { persist: false, ..settings(1, 1, Offload::ALL) }).unwrap());
    });
    thread.join().unwrap();
}
