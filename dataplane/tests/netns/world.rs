//! Nodes in network namespaces, and what is sent between them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use podspan_dataplane::{
    DEFAULT_HANDSHAKE_LIMIT, Dataplane, DropCause, LaneSecret, Offload, PeerSpec, RouteSpec, Settings,
    TableSpec, WorkerStatus,
};
use podspan_wire::Lane;

pub(crate) const PORT: u16 = 51840;

pub(crate) const FWMARK: u32 = 0x7073;

pub(crate) const TUN: &str = "podspan0";

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `ip` with these words; what it complains about fails the test.
pub(crate) fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        let name = format!("psp-dp-{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    /// `ip` inside.
    pub(crate) fn ip(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.0))
    }

    /// Runs `work` on a thread inside. What it opens and the threads it starts stay inside.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
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

pub(crate) fn settings(seed: u8, lanes: usize, offload: Offload) -> Settings {
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
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) number: u8,
    pub(crate) lanes: usize,
    pub(crate) offload: Offload,
    pub(crate) dataplane: Option<Dataplane>,
}

impl Node {
    pub(crate) fn start(&mut self) {
        let settings = settings(self.number, self.lanes, self.offload);
        self.dataplane =
            Some(self.namespace.inside(move || Dataplane::start(settings)).join().unwrap().unwrap());
    }

    pub(crate) fn dataplane(&self) -> &Dataplane {
        self.dataplane.as_ref().unwrap()
    }

    /// What the agent does by netlink.
    pub(crate) fn set_up_interface(&self) {
        let (own, other) = (self.number, 3 - self.number);
        self.namespace.ip(&format!("link set {TUN} mtu 1420 up"));
        self.namespace.ip(&format!("addr add 10.20{own}.0.1/24 dev {TUN}"));
        self.namespace.ip(&format!("addr add fd00:20{own}::1/64 dev {TUN} nodad"));
        self.namespace.ip(&format!("route add 10.20{other}.0.0/24 dev {TUN}"));
        self.namespace.ip(&format!("route add fd00:20{other}::/64 dev {TUN}"));
    }

    pub(crate) fn set_table(&self, other: &Self, underlay: &str, dial: bool) {
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
            weight: 10,
            relays: false,
        };
        let route = |cidr: String| RouteSpec {
            cidr: cidr.parse().unwrap(),
            owner: Some(id.clone()),
            gateways: vec![],
        };
        let routes = vec![route(format!("10.20{n}.0.0/24")), route(format!("fd00:20{n}::/64"))];
        self.dataplane().set_table(TableSpec { peers: vec![peer], routes, clusters: vec![] }).unwrap();
    }

    /// What the first worker says.
    pub(crate) fn worker(&self) -> WorkerStatus {
        self.dataplane().status().workers.swap_remove(0)
    }

    pub(crate) fn drops(&self, cause: DropCause) -> u64 {
        self.dataplane().status().workers.iter().map(|worker| worker.drops.get(cause)).sum()
    }
}

/// Two nodes with a veth between them, up and knowing each other.
pub(crate) fn pair(offload: Offload, lanes: (usize, usize), family: u8, dial: bool) -> (Node, Node) {
    pair_with((offload, offload), lanes, family, dial)
}

/// The same with other offloads at either end.
pub(crate) fn pair_with(
    offload: (Offload, Offload),
    lanes: (usize, usize),
    family: u8,
    dial: bool,
) -> (Node, Node) {
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    ip(&format!("link add veth0 netns {} type veth peer name veth0 netns {}", a.0, b.0));
    for (n, namespace) in [(1, &a), (2, &b)] {
        namespace.ip(&format!("addr add 192.0.2.{n}/24 dev veth0"));
        namespace.ip(&format!("addr add 2001:db8::{n}/64 dev veth0 nodad"));
        namespace.ip("link set veth0 up");
    }
    let mut a = Node { namespace: a, number: 1, lanes: lanes.0, offload: offload.0, dataplane: None };
    let mut b = Node { namespace: b, number: 2, lanes: lanes.1, offload: offload.1, dataplane: None };
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
pub(crate) fn udp_echo(node: &Node, address: SocketAddr) -> thread::JoinHandle<()> {
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
pub(crate) fn ask(node: &Node, to: SocketAddr, payload: usize) -> Duration {
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

pub(crate) fn end(node: &Node, to: SocketAddr) {
    let thread = node.namespace.inside(move || {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
        UdpSocket::bind((any, 0)).unwrap().send_to(b"end", to).unwrap();
    });
    thread.join().unwrap();
}

/// Moves `bytes` from `from` to `to` by TCP over `streams` connections, checks each byte; returns the time.
pub(crate) fn tcp(
    from: &Namespace,
    to: &Namespace,
    address: SocketAddr,
    bytes: usize,
    streams: usize,
) -> Duration {
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

/// A pod behind a node, on a veth with an MTU of its own: 10.20N.0.9 and fd00:20N::9.
pub(crate) fn pod(node: &Node, mtu: u32) -> Namespace {
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
