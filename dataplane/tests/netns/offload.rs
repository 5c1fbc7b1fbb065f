//! What offloads are for, and what they must not do.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use podspan_dataplane::{Dataplane, DropCause, Offload, Settings};

use crate::world::{Namespace, Node, PATIENCE, TUN, ask, end, pair, pair_with, pod, settings, tcp, udp_echo};

/// How many packets went with one system call, on average, while `bytes` of TCP went from `a` to `b`: into
/// the TUN of `b`, out of that of `a`, out of the socket of `a`, into that of `b`.
pub(crate) fn offloads_do_what_they_are_for(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    let before = (a.worker(), b.worker());
    assert_eq!((before.0.offload, before.1.offload), (offload, offload), "this kernel has all of them");
    tcp(&a.namespace, &b.namespace, "10.202.0.1:8".parse().unwrap(), 32 << 20, 1);
    let after = (a.worker(), b.worker());
    let ratio = |packets: u64, calls: u64| packets as f64 / calls as f64;
    let sent = after.0.tx_outer_packets - before.0.tx_outer_packets;
    let got = after.1.rx_inner_packets - before.1.rx_inner_packets;
    let ratios = [
        (offload.tso, "TUN reads", ratio(sent, after.0.calls.tun_read - before.0.calls.tun_read)),
        (offload.gso, "UDP sends", ratio(sent, after.0.calls.udp_send - before.0.calls.udp_send)),
        (
            offload.gro && offload.gso,
            "UDP receives",
            ratio(got, after.1.calls.udp_receive - before.1.calls.udp_receive),
        ),
        // A turn must bring several packets for them to be merged, which is a matter of luck without GRO.
        (
            offload.tso && offload.gro && offload.gso,
            "TUN writes",
            ratio(got, after.1.calls.tun_write - before.1.calls.tun_write),
        ),
    ];
    for (on, what, packets) in ratios {
        assert!(!on || packets > 2.0, "{what}: {packets:.1} packets each with {offload:?}");
    }
    let single = |n: f64| n <= 1.01;
    assert!(offload.tso || single(ratios[0].2), "{ratios:?}");
    assert!(offload.gso || single(ratios[1].2), "{ratios:?}");
    assert!(offload.tso || single(ratios[3].2), "{ratios:?}");
}

/// Sends datagrams of all sizes with and without USO, and checks that each arrives as it was sent.
pub(crate) fn datagrams_keep_their_borders_and_their_order(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    for to in ["10.202.0.1:7", "[fd00:202::1]:7"] {
        datagrams(&a, &b, to.parse().unwrap());
    }
}

fn datagrams(a: &Node, b: &Node, to: SocketAddr) {
    let echo = udp_echo(b, to);
    ask(a, to, 100);
    let sender = a.namespace.inside(move || {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let segment = |n: i32| {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &n).unwrap();
        };
        let mut buffer = [0; 65_536];
        let mut number = 0_u8;
        for (length, cut) in [(5000, 1000), (999, 0), (3100, 1000), (64, 0), (640, 64), (1300, 0), (1, 0)] {
            segment(cut);
            let step = if cut == 0 { length } else { cut as usize };
            let mut message = vec![0; length];
            let mut sent = Vec::new();
            for piece in message.chunks_mut(step) {
                piece.fill(number);
                number += 1;
                sent.push(piece.to_vec());
            }
            socket.send(&message).unwrap();
            for expected in sent {
                let n = socket.recv(&mut buffer).expect("a datagram was lost");
                assert_eq!((n, buffer[0]), (expected.len(), expected[0]), "{length} in {cut}");
                assert_eq!(buffer[..n], expected);
            }
        }
    });
    sender.join().unwrap();
    end(a, to);
    echo.join().unwrap();
}

/// All sixteen, each against a node that has just those which it lacks: no end needs to know what the other has.
#[test]
fn every_combination_talks_to_its_opposite() {
    let combination =
        |bits: u8| Offload { tso: bits & 1 != 0, uso: bits & 2 != 0, gso: bits & 4 != 0, gro: bits & 8 != 0 };
    for bits in 0..16 {
        let (here, there) = (combination(bits), combination(!bits));
        let (a, b) = pair_with((here, there), (1, 1), 4, true);
        assert_eq!((a.worker().offload, b.worker().offload), (here, there), "this kernel has all of them");
        datagrams(&a, &b, "10.202.0.1:7".parse().unwrap());
        datagrams(&b, &a, "[fd00:201::1]:7".parse().unwrap());
        tcp(&a.namespace, &b.namespace, "10.202.0.1:8".parse().unwrap(), 2 << 20, 2);
        tcp(&b.namespace, &a.namespace, "[fd00:201::1]:8".parse().unwrap(), 2 << 20, 2);
        for node in [&a, &b] {
            // Nothing was dropped, but for the multicast that Linux sends on any interface, and a handshake that came
            // before this end knew its peer.
            for (cause, n) in node.worker().drops {
                let fine = matches!(cause, DropCause::NotUnicast | DropCause::UnknownPeer);
                assert!(n == 0 || fine, "{here:?}: {cause:?} {n}");
            }
            // Probes are no packets of anybody's.
            for (cause, n) in node.dataplane().status().peers[0].lanes[0].drops {
                assert!(n == 0 || cause == DropCause::ProbeLimit, "{here:?}: {cause:?} {n}");
            }
        }
        assert_eq!((a.worker().offload, b.worker().offload), (here, there));
    }
}

/// A datagram with ECT(0) inside has it outside too, and a mark set there comes out inside.
pub(crate) fn marks_of_congestion_cross_the_tunnel(offload: Offload) {
    use nix::sys::socket::{setsockopt, sockopt};
    let (a, b) = pair(offload, (1, 1), 4, true);
    let to: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, to);
    ask(&a, to, 100);
    end(&a, to);
    echo.join().unwrap();
    // What leaves with ECT(0) is marked on its way out, as a congested router would.
    let rules = "table ip congested { chain out { type filter hook output priority 0; \
        oifname veth0 ip ecn ect0 ip ecn set ce; }; }";
    let nft = |rules: &'static str| {
        a.namespace.inside(move || Command::new("nft").arg(rules).output().unwrap()).join().unwrap()
    };
    let output = nft(rules);
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    let receiver = b.namespace.inside(move || {
        let socket = UdpSocket::bind(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        setsockopt(&socket, sockopt::IpRecvTos, &true).unwrap();
        (0..3)
            .map(|_| {
                let mut space = nix::cmsg_space!(u8);
                let mut buffer = [0; 100];
                let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
                let message = nix::sys::socket::recvmsg::<()>(
                    std::os::fd::AsRawFd::as_raw_fd(&socket),
                    &mut slices,
                    Some(&mut space),
                    nix::sys::socket::MsgFlags::empty(),
                );
                match message.unwrap().cmsgs().unwrap().next() {
                    Some(nix::sys::socket::ControlMessageOwned::Ipv4Tos(tos)) => tos,
                    other => panic!("{other:?}"),
                }
            })
            .collect::<Vec<u8>>()
    });
    let sender = a.namespace.inside(move || {
        thread::sleep(Duration::from_millis(100));
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Not ECT, ECT(1), ECT(0), with a DSCP that the outer header does not show but the inner one keeps.
        for tos in [0xb8, 0xb9, 0xba] {
            setsockopt(&socket, sockopt::Ipv4Tos, &tos).unwrap();
            socket.send_to(&[0; 64], to).unwrap();
        }
    });
    sender.join().unwrap();
    assert_eq!(receiver.join().unwrap(), [0xb8, 0xb9, 0xbb]);
}

/// What the kernels of the nodes forward goes through in big packets, too, between pods whose MTUs are larger
/// and smaller than the tunnel's.
pub(crate) fn packets_of_pods_are_forwarded_whole(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    let pods = (pod(&a, 1500), pod(&b, 1300));
    for (from, to, address) in [
        (&pods.0, &pods.1, "10.202.0.9:8"),
        (&pods.1, &pods.0, "10.201.0.9:8"),
        (&pods.0, &pods.1, "[fd00:202::9]:8"),
        (&pods.1, &pods.0, "[fd00:201::9]:8"),
    ] {
        tcp(from, to, address.parse().unwrap(), 4 << 20, 2);
    }
    if offload == Offload::ALL {
        let (a, b) = (a.worker(), b.worker());
        for worker in [a, b] {
            assert!(worker.calls.tun_read < worker.tx_inner_packets, "nothing big was read");
            assert!(worker.calls.tun_write < worker.rx_inner_packets, "nothing was merged");
        }
    }
}

/// Outer packets that are larger than the underlay's MTU are fragmented, which does not go with GSO.
pub(crate) fn an_underlay_too_narrow_for_the_tunnel_costs_speed_and_nothing_else(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    for node in [&a, &b] {
        node.namespace.ip("link set veth0 mtu 1300");
    }
    tcp(&a.namespace, &b.namespace, "10.202.0.1:8".parse().unwrap(), 4 << 20, 1);
    let status = a.dataplane().status();
    assert_eq!(status.peers[0].lanes[0].drops.total(), 0, "{:?}", status.peers[0].lanes[0].drops);
    // What is small enough still goes together: the offload was not given up for good.
    assert_eq!(a.worker().offload, offload);
}

/// A persistent interface keeps the mode of the agent before; the next one may have another.
#[test]
fn an_interface_changes_its_mode_from_one_start_to_the_next() {
    let (mut a, b) = pair(Offload::ALL, (2, 2), 4, true);
    let address: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, address);
    for offload in [Offload::NONE, Offload::ALL, Offload { tso: false, ..Offload::ALL }, Offload::NONE] {
        a.dataplane.take().unwrap().shutdown();
        a.offload = offload;
        a.start();
        a.set_table(&b, "192.0.2.2", true);
        ask(&a, address, 100);
        assert_eq!(a.worker().offload, offload);
        tcp(&a.namespace, &b.namespace, "10.202.0.1:8".parse().unwrap(), 1 << 20, 2);
        tcp(&b.namespace, &a.namespace, "10.201.0.1:8".parse().unwrap(), 1 << 20, 2);
    }
    end(&a, address);
    echo.join().unwrap();
}

/// Another program holds a queue of the interface, without offloads: the mode is the interface's.
#[test]
fn an_interface_in_use_keeps_its_mode() {
    let namespace = Namespace::new("a");
    let thread = namespace.inside(|| {
        let quiet = || podspan_dataplane::tun::Queue::attach(TUN, false, Offload::NONE).unwrap();
        let (first, second) = (quiet(), quiet());
        let dataplane =
            Dataplane::start(Settings { persist: false, ..settings(1, 1, Offload::ALL) }).unwrap();
        let offload = dataplane.status().workers[0].offload;
        assert!(!offload.tso && !offload.uso, "{offload:?}");
        drop((first, second, dataplane));
    });
    thread.join().unwrap();
}
