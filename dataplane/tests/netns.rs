//! The dataplane on real interfaces and sockets: two network namespaces joined by a veth pair. Needs root;
//! without it the tests fail and say so. Not built with the feature `sim`, under which boringtun's clock
//! stands still.
#![cfg(not(feature = "sim"))]
// Helpers of tests are tests too, though clippy does not see it.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use podspan_dataplane::{
    DEFAULT_HANDSHAKE_LIMIT, Dataplane, DropCause, LaneSecret, Offload, PeerSpec, RouteSpec, Settings,
    StartError, TableSpec, WorkerStatus,
};
use podspan_wire::Lane;

const PORT: u16 = 51840;
const FWMARK: u32 = 0x7073;
const TUN: &str = "podspan0";
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `ip` with these words; what it complains about fails the test.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        let name = format!("psp-dp-{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    /// `ip` inside.
    fn ip(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.0))
    }

    /// Runs `work` on a thread inside. What it opens and the threads it starts stay inside.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = std::fs::File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn settings(seed: u8, lanes: usize, offload: Offload) -> Settings {
    Settings {
        interface: TUN.into(),
        port: PORT,
        fwmark: FWMARK,
        lanes: (0..lanes).map(|lane| LaneSecret::from_bytes([seed + lane as u8 * 8; 32])).collect(),
        persist: true,
        handshake_limit: DEFAULT_HANDSHAKE_LIMIT,
        offload,
    }
}

/// A node: number 1 or 2, with pods 10.20N.0.0/24 and fd00:20N::/64.
struct Node {
    namespace: Namespace,
    number: u8,
    lanes: usize,
    offload: Offload,
    dataplane: Option<Dataplane>,
}

impl Node {
    fn start(&mut self) {
        let settings = settings(self.number, self.lanes, self.offload);
        self.dataplane =
            Some(self.namespace.inside(move || Dataplane::start(settings)).join().unwrap().unwrap());
    }

    fn dataplane(&self) -> &Dataplane {
        self.dataplane.as_ref().unwrap()
    }

    /// What the agent does by netlink.
    fn set_up_interface(&self) {
        let (own, other) = (self.number, 3 - self.number);
        self.namespace.ip(&format!("link set {TUN} mtu 1420 up"));
        self.namespace.ip(&format!("addr add 10.20{own}.0.1/24 dev {TUN}"));
        self.namespace.ip(&format!("addr add fd00:20{own}::1/64 dev {TUN} nodad"));
        self.namespace.ip(&format!("route add 10.20{other}.0.0/24 dev {TUN}"));
        self.namespace.ip(&format!("route add fd00:20{other}::/64 dev {TUN}"));
    }

    fn set_table(&self, other: &Self, underlay: &str, dial: bool) {
        let n = other.number;
        let id: podspan_wire::NodeId = format!("cloud{n}/node").parse().unwrap();
        let lane = |(i, secret): (usize, &LaneSecret)| Lane { key: secret.public(), port: PORT + i as u16 };
        let peer = PeerSpec {
            id: id.clone(),
            lanes: settings(n, other.lanes, other.offload).lanes.iter().enumerate().map(lane).collect(),
            endpoints: vec![underlay.parse().unwrap()],
            learned: vec![],
            persistent_keepalive: None,
            dial,
        };
        let route = |cidr: String| RouteSpec {
            cidr: cidr.parse().unwrap(),
            owner: Some(id.clone()),
            gateways: vec![],
        };
        let routes = vec![route(format!("10.20{n}.0.0/24")), route(format!("fd00:20{n}::/64"))];
        self.dataplane().set_table(TableSpec { peers: vec![peer], routes }).unwrap();
    }

    /// What the first worker says.
    fn worker(&self) -> WorkerStatus {
        self.dataplane().status().workers.swap_remove(0)
    }

    fn drops(&self, cause: DropCause) -> u64 {
        self.dataplane().status().workers.iter().map(|worker| worker.drops.get(cause)).sum()
    }
}

/// Two nodes with a veth between them, up and knowing each other.
fn pair(offload: Offload, lanes: (usize, usize), family: u8, dial: bool) -> (Node, Node) {
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    ip(&format!("link add veth0 netns {} type veth peer name veth0 netns {}", a.0, b.0));
    for (n, namespace) in [(1, &a), (2, &b)] {
        namespace.ip(&format!("addr add 192.0.2.{n}/24 dev veth0"));
        namespace.ip(&format!("addr add 2001:db8::{n}/64 dev veth0 nodad"));
        namespace.ip("link set veth0 up");
    }
    let mut a = Node { namespace: a, number: 1, lanes: lanes.0, offload, dataplane: None };
    let mut b = Node { namespace: b, number: 2, lanes: lanes.1, offload, dataplane: None };
    let underlay = |n: u8| if family == 4 { format!("192.0.2.{n}") } else { format!("2001:db8::{n}") };
    for node in [&mut a, &mut b] {
        node.start();
        node.set_up_interface();
    }
    a.set_table(&b, &underlay(2), dial);
    b.set_table(&a, &underlay(1), false);
    (a, b)
}

/// Echoes UDP at `address` until it hears "end".
fn udp_echo(node: &Node, address: SocketAddr) -> thread::JoinHandle<()> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = node.namespace.inside(move || {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).expect("nothing to echo for long");
            if buffer[..length] == *b"end" {
                return;
            }
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    is_ready.recv().unwrap();
    thread
}

/// Sends until one packet comes back; returns how long it took.
fn ask(node: &Node, to: SocketAddr, payload: usize) -> Duration {
    let thread = node.namespace.inside(move || {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let start = Instant::now();
        let message = vec![7; payload];
        let mut buffer = vec![0; 65_536];
        while start.elapsed() < PATIENCE {
            let _ = socket.send_to(&message, to);
            if socket.recv(&mut buffer).is_ok_and(|length| buffer[..length] == message[..]) {
                return start.elapsed();
            }
        }
        panic!("no echo from {to} within {PATIENCE:?}");
    });
    thread.join().unwrap()
}

fn end(node: &Node, to: SocketAddr) {
    let thread = node.namespace.inside(move || {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
        UdpSocket::bind((any, 0)).unwrap().send_to(b"end", to).unwrap();
    });
    thread.join().unwrap();
}

/// Moves `bytes` from `from` to `to` by TCP over `streams` connections, checks each byte; returns the time.
fn tcp(from: &Namespace, to: &Namespace, address: SocketAddr, bytes: usize, streams: usize) -> Duration {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = to.inside(move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let readers: Vec<_> = (0..streams)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                thread::spawn(move || {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let (mut buffer, mut at) = (vec![0; 1 << 18], 0_usize);
                    while at < bytes / streams {
                        let length = stream.read(&mut buffer).unwrap();
                        assert!(length > 0, "ended at {at}");
                        for (i, byte) in buffer[..length].iter().enumerate() {
                            assert_eq!(*byte, ((at + i) % 251) as u8, "at {}", at + i);
                        }
                        at += length;
                    }
                    stream.write_all(b"!").unwrap();
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    is_ready.recv().unwrap();
    let client = from.inside(move || {
        let start = Instant::now();
        let writers: Vec<_> = (0..streams)
            .map(|_| {
                let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                thread::spawn(move || {
                    // 251 is prime: a piece that is lost, doubled or moved shows.
                    let chunk: Vec<u8> = (0..251 * 1024).map(|i| (i % 251) as u8).collect();
                    let mut left = bytes / streams;
                    while left > 0 {
                        let n = left.min(chunk.len());
                        stream.write_all(&chunk[..n]).unwrap();
                        left -= n;
                    }
                    stream.read_exact(&mut [0]).unwrap();
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        start.elapsed()
    });
    let took = client.join().unwrap();
    server.join().unwrap();
    took
}

fn pods_reach_each_other_over_both_underlays_in_both_families(offload: Offload) {
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

fn a_restart_keeps_the_interface_and_costs_less_than_two_seconds(offload: Offload) {
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

fn an_interface_that_is_down_or_deleted_is_survived(offload: Offload) {
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

fn garbage_at_the_port_is_counted_and_harms_nobody(offload: Offload) {
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

fn every_outer_packet_carries_the_mark(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    // A rule that sends what is marked nowhere: if the mark were not there, packets would still arrive.
    let address: SocketAddr = "10.202.0.1:7".parse().unwrap();
    let echo = udp_echo(&b, address);
    ask(&a, address, 100);
    a.namespace.ip(&format!("rule add fwmark {FWMARK} unreachable"));
    end(&a, address);
    thread::sleep(Duration::from_millis(200));
    let status = a.dataplane().status();
    assert_eq!(status.peers[0].lanes[0].drops.get(DropCause::SendFailed), 1);
    a.namespace.ip(&format!("rule del fwmark {FWMARK}"));
    end(&a, address);
    echo.join().unwrap();
}

/// The tests above with offloads off, with some and with all of them; a kernel without USO is one that is
/// not asked for it.
macro_rules! with_offloads {
    ($($module:ident: $offload:expr;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn pods_reach_each_other_over_both_underlays_in_both_families() {
                super::pods_reach_each_other_over_both_underlays_in_both_families($offload);
            }

            #[test]
            fn a_restart_keeps_the_interface_and_costs_less_than_two_seconds() {
                super::a_restart_keeps_the_interface_and_costs_less_than_two_seconds($offload);
            }

            #[test]
            fn an_interface_that_is_down_or_deleted_is_survived() {
                super::an_interface_that_is_down_or_deleted_is_survived($offload);
            }

            #[test]
            fn garbage_at_the_port_is_counted_and_harms_nobody() {
                super::garbage_at_the_port_is_counted_and_harms_nobody($offload);
            }

            #[test]
            fn every_outer_packet_carries_the_mark() {
                super::every_outer_packet_carries_the_mark($offload);
            }

            #[test]
            fn offloads_do_what_they_are_for() {
                super::offloads_do_what_they_are_for($offload);
            }

            #[test]
            fn datagrams_keep_their_borders_and_their_order() {
                super::datagrams_keep_their_borders_and_their_order($offload);
            }

            #[test]
            fn packets_of_pods_are_forwarded_whole() {
                super::packets_of_pods_are_forwarded_whole($offload);
            }

            #[test]
            fn marks_of_congestion_cross_the_tunnel() {
                super::marks_of_congestion_cross_the_tunnel($offload);
            }

            #[test]
            fn an_underlay_too_narrow_for_the_tunnel_costs_speed_and_nothing_else() {
                super::an_underlay_too_narrow_for_the_tunnel_costs_speed_and_nothing_else($offload);
            }
        })*
    };
}

with_offloads! {
    no_offload: Offload::NONE;
    tso_only: Offload { tso: true, ..Offload::NONE };
    gso_only: Offload { gso: true, ..Offload::NONE };
    gro_only: Offload { gro: true, ..Offload::NONE };
    all_but_uso: Offload { uso: false, ..Offload::ALL };
    all_offloads: Offload::ALL;
}

/// How many packets went with one system call, on average, while `bytes` of TCP went from `a` to `b`: into
/// the TUN of `b`, out of that of `a`, out of the socket of `a`, into that of `b`.
fn offloads_do_what_they_are_for(offload: Offload) {
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
fn datagrams_keep_their_borders_and_their_order(offload: Offload) {
    let (a, b) = pair(offload, (1, 1), 4, true);
    for to in ["10.202.0.1:7", "[fd00:202::1]:7"] {
        let to: SocketAddr = to.parse().unwrap();
        let echo = udp_echo(&b, to);
        ask(&a, to, 100);
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
            for (length, cut) in [(5000, 1000), (999, 0), (3100, 1000), (64, 0), (640, 64), (1300, 0), (1, 0)]
            {
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
        end(&a, to);
        echo.join().unwrap();
    }
}

/// A datagram with ECT(0) inside has it outside too, and a mark set there comes out inside.
fn marks_of_congestion_cross_the_tunnel(offload: Offload) {
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

/// A pod behind a node, on a veth with an MTU of its own: 10.20N.0.9 and fd00:20N::9.
fn pod(node: &Node, mtu: u32) -> Namespace {
    let (pod, n) = (Namespace::new("pod"), node.number);
    ip(&format!("link add pod0 netns {} type veth peer name eth0 netns {}", node.namespace.0, pod.0));
    for (namespace, device) in [(&node.namespace, "pod0"), (&pod, "eth0")] {
        namespace.ip(&format!("link set {device} mtu {mtu} up"));
    }
    node.namespace.ip("addr add fe80::1/64 dev pod0 nodad");
    node.namespace.ip(&format!("route add 10.20{n}.0.9 dev pod0"));
    node.namespace.ip(&format!("route add fd00:20{n}::9 dev pod0"));
    pod.ip(&format!("addr add 10.20{n}.0.9/24 dev eth0"));
    pod.ip(&format!("addr add fd00:20{n}::9/64 dev eth0 nodad"));
    pod.ip(&format!("route add default via 10.20{n}.0.1"));
    pod.ip("route add default via fe80::1 dev eth0");
    let forward = node.namespace.inside(|| {
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{family}"), "1").unwrap();
        }
    });
    forward.join().unwrap();
    pod
}

/// What the kernels of the nodes forward goes through in big packets, too, between pods whose MTUs are larger
/// and smaller than the tunnel's.
fn packets_of_pods_are_forwarded_whole(offload: Offload) {
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
fn an_underlay_too_narrow_for_the_tunnel_costs_speed_and_nothing_else(offload: Offload) {
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

/// `cargo test --release -p podspan-dataplane --test netns -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for a person to look at"]
fn measure() {
    for (lanes, offload) in [(1, Offload::NONE), (1, Offload::ALL), (2, Offload::ALL)] {
        let (a, b) = pair(offload, (lanes, lanes), 4, true);
        let address: SocketAddr = "10.202.0.1:7".parse().unwrap();
        let echo = udp_echo(&b, address);
        ask(&a, address, 100);
        let pings = a.namespace.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(address).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut times: Vec<Duration> = (0..20_000)
                .map(|_| {
                    let start = Instant::now();
                    socket.send(&[0; 64]).unwrap();
                    socket.recv(&mut [0; 64]).unwrap();
                    start.elapsed()
                })
                .collect();
            times.sort_unstable();
            (times[10_000], times[19_800])
        });
        let (p50, p99) = pings.join().unwrap();
        end(&a, address);
        echo.join().unwrap();

        let seconds = Duration::from_secs(3);
        let sink: SocketAddr = "10.202.0.1:9".parse().unwrap();
        let received = b.namespace.inside(move || {
            let socket = UdpSocket::bind(sink).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut n = 0_u64;
            while socket.recv(&mut [0; 64]).is_ok() {
                n += 1;
            }
            n
        });
        let flood = a.namespace.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(sink).unwrap();
            let start = Instant::now();
            while start.elapsed() < seconds {
                for _ in 0..64 {
                    let _ = socket.send(&[0; 64]);
                }
            }
        });
        flood.join().unwrap();
        let kpps = received.join().unwrap() as f64 / seconds.as_secs_f64() / 1000.0;
        for streams in [1, 4] {
            let bytes = 400 << 20;
            let took = tcp(&a.namespace, &b.namespace, "10.202.0.1:8".parse().unwrap(), bytes, streams);
            let gbit = bytes as f64 * 8.0 / took.as_secs_f64() / 1e9;
            println!("{lanes} lanes, {offload:?}: TCP {streams} streams {gbit:.2} Gbit/s");
        }
        println!(
            "{lanes} lanes, {offload:?}: UDP 64 B {kpps:.0} kpps delivered, RTT p50 {p50:?} p99 {p99:?}"
        );
    }
}
