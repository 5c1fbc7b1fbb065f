//! What the nftables rules and routes do to real packets, between network namespaces: a pod, its node, a
//! second node of the cluster, a router, and a remote pod behind a veth that stands in for the tunnel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use podspan_agent::host::{ALIAS, Host, HostDesired, PodDelivery};

mod host_support;
use host_support::{Netns, desired, set_whole, start, veth};

// IPv4 and IPv6 of each.
const POD: [&str; 2] = ["10.1.1.2", "fd00:1:1::2"];
const POD_ELSEWHERE: [&str; 2] = ["10.1.2.5", "fd00:1:2::5"];
const REMOTE: [&str; 2] = ["10.2.0.5", "fd00:2::5"];
const HOST: [&str; 2] = ["10.1.1.0", "fd00:1:1::"];
const NODE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const NODE_TO_OTHER: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];
const ROUTER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Port of the service that leads to the pod elsewhere, of the one that leads to the local pod, and of both
/// backends.
const SERVICE_ELSEWHERE: u16 = 80;
const SERVICE_LOCAL: u16 = 81;
const BACKEND: u16 = 8080;

/// How long a client waits for what never comes.
const PATIENCE: i64 = 3;

struct Net {
    pod: Netns,
    node: Netns,
    /// Another node of the cluster, with a pod of its own.
    other: Netns,
    /// The node's default router.
    router: Netns,
    remote: Netns,
}

fn addresses(netns: &Netns, interface: &str, v4: &str, v6: &str) {
    netns.run(&format!("ip addr add {v4} dev {interface}"));
    netns.run(&format!("ip -6 addr add {v6} dev {interface}"));
}

fn routes(netns: &Netns, v4: &str, v6: &str) {
    netns.run(&format!("ip route add {v4}"));
    netns.run(&format!("ip -6 route add {v6}"));
}

impl Net {
    fn new() -> Self {
        let net = Self {
            pod: Netns::new("pod"),
            node: Netns::new("node"),
            other: Netns::new("other"),
            router: Netns::new("router"),
            remote: Netns::new("remote"),
        };
        let Self { pod, node, other, router, remote } = &net;
        node.set_sysctl("net/ipv4/ip_forward", "1");
        node.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        // A pod as the plugin `bridge` attaches it: the node holds the gateway with the whole subnet.
        veth(node, "cni0", pod, "eth0");
        addresses(node, "cni0", "10.1.1.1/24", "fd00:1:1::1/64");
        addresses(pod, "eth0", "10.1.1.2/24", "fd00:1:1::2/64");
        routes(pod, "default via 10.1.1.1", "default via fd00:1:1::1");

        veth(node, "eth0", router, "eth0");
        addresses(node, "eth0", "192.0.2.2/24", "2001:db8::2/64");
        addresses(router, "eth0", "192.0.2.1/24", "2001:db8::1/64");
        routes(node, "default via 192.0.2.1", "default via 2001:db8::1");

        veth(node, "eth1", other, "eth0");
        addresses(node, "eth1", "198.51.100.2/24", "2001:db8:1::2/64");
        addresses(other, "eth0", "198.51.100.3/24", "2001:db8:1::3/64");
        addresses(other, "lo", "10.1.2.5/32", "fd00:1:2::5/128");
        routes(node, "10.1.2.0/24 via 198.51.100.3", "fd00:1:2::/64 via 2001:db8:1::3");
        // Being a node, it reaches remote clusters by a tunnel of its own.
        veth(other, "tunnel", remote, "other");
        addresses(other, "tunnel", "203.0.113.2/24", "2001:db8:2::2/64");
        addresses(remote, "other", "203.0.113.1/24", "2001:db8:2::1/64");
        routes(other, "10.2.0.0/16 via 203.0.113.1", "fd00:2::/48 via 2001:db8:2::1");
        remote.set_sysctl("net/ipv4/conf/all/rp_filter", "0");

        veth(node, "podspan0", remote, "node");
        // A TUN needs no neighbours; a veth would ask for them from the link-local address it does not get.
        node.run("ip link set podspan0 address 02:00:00:00:00:01");
        remote.run("ip link set node address 02:00:00:00:00:02");
        for address in HOST {
            remote
                .run(&format!("ip neigh replace {address} dev node lladdr 02:00:00:00:00:01 nud permanent"));
        }
        for address in REMOTE {
            node.run(&format!(
                "ip neigh replace {address} dev podspan0 lladdr 02:00:00:00:00:02 nud permanent"
            ));
        }
        let set_alias = move || {
            std::process::Command::new("ip")
                .args(["link", "set", "podspan0", "alias", ALIAS])
                .status()
                .unwrap()
        };
        assert!(node.within_thread(set_alias).success());
        addresses(remote, "node", "10.2.0.5/32", "fd00:2::5/128");
        for (v4, v6) in [("10.1.0.0/16", "fd00:1::/32"), ("10.96.0.0/16", "fd00:96::/108")] {
            routes(
                remote,
                &format!("{v4} via 10.1.1.0 dev node onlink src 10.2.0.5"),
                &format!("{v6} via fd00:1:1:: dev node onlink src fd00:2::5"),
            );
        }
        net
    }

    /// Starts podspan's hand in the node, has it set everything, and does `work` while it stands.
    fn with_podspan(&self, work: impl FnOnce() + Send) {
        self.with(desired(), work);
    }

    fn with(&self, desired: HostDesired, work: impl FnOnce() + Send) {
        let directory = tempfile::tempdir().unwrap();
        self.node.within(async {
            let (host, _events): (Host, _) = start(&directory).await;
            set_whole(&host, desired).await;
            std::thread::scope(|scope| {
                scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            // Let go as by a crash: routes and rules stay.
            drop(host);
            tokio::task::yield_now().await;
        });
    }
}

/// Whom a server saw, and the TCP segment sizes of both ends.
#[derive(Debug)]
struct Talk {
    seen: String,
    client: u32,
    server: u32,
}

/// Accepts one connection and echoes 3000 bytes.
fn serve(netns: &Netns, address: &str, port: u16) -> (u16, JoinHandle<io::Result<(IpAddr, u32)>>) {
    let at = SocketAddr::new(address.parse().unwrap(), port);
    let listener = netns.within_thread(move || TcpListener::bind(at).unwrap());
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE + 1, 0))?;
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE.unsigned_abs())))?;
        let mut buffer = [0; 3000];
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
        Ok((peer.ip(), getsockopt(&stream, sockopt::TcpMaxSeg)?))
    });
    (port, thread)
}

/// Connects from `from` if given, sends 3000 bytes and awaits them back; the segment size.
fn dial(netns: &Netns, from: Option<&str>, to: SocketAddr) -> io::Result<u32> {
    let from: Option<IpAddr> = from.map(|from| from.parse().unwrap());
    netns.within_thread(move || {
        let family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(PATIENCE, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        if let Some(from) = from {
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        }
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        let mut stream = TcpStream::from(socket);
        let payload: Vec<u8> = (0..3000u32).map(|n| n.to_be_bytes()[3]).collect();
        stream.write_all(&payload)?;
        let mut back = vec![0; payload.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, payload);
        Ok(getsockopt(&stream, sockopt::TcpMaxSeg)?)
    })
}

/// Talks to a server at `at` in another namespace, by its own address or by a service's.
fn talk(
    client: &Netns,
    from: Option<&str>,
    server: &Netns,
    at: &str,
    service: Option<(&str, u16)>,
) -> io::Result<Talk> {
    let (port, serving) = serve(server, at, if service.is_some() { BACKEND } else { 0 });
    let (to, port) = service.unwrap_or((at, port));
    let dialled = dial(client, from, SocketAddr::new(to.parse().unwrap(), port));
    let served = serving.join().unwrap();
    let client = dialled?;
    let (seen, server) = served?;
    Ok(Talk { seen: seen.to_string(), client, server })
}

/// Sends one datagram from `netns` to a port where nobody needs to listen.
fn send(netns: &Netns, to: &str, mark: Option<u32>) {
    let to: IpAddr = to.parse().unwrap();
    netns.within_thread(move || {
        let any: SocketAddr =
            if to.is_ipv6() { "[::]:0".parse().unwrap() } else { "0.0.0.0:0".parse().unwrap() };
        let socket = UdpSocket::bind(any).unwrap();
        if let Some(mark) = mark {
            setsockopt(&socket, sockopt::Mark, &mark).unwrap();
        }
        // A drop in the output hook is told to the sender as EPERM; that is one way of not sending.
        let _ = socket.send_to(b"marker", SocketAddr::new(to, 9));
    });
}

#[derive(Clone, Copy)]
enum Masquerade {
    IptablesLegacy,
    IptablesNft,
    Nft,
}

impl Masquerade {
    /// The rules of flannel: what leaves the pod network, and what enters it from elsewhere.
    fn install(self, node: &Netns) {
        let programs = match self {
            Self::IptablesLegacy => ["iptables-legacy", "ip6tables-legacy"],
            Self::IptablesNft => ["iptables-nft", "ip6tables-nft"],
            Self::Nft => {
                return node.nft(
                    "table inet cni {\nchain post {\ntype nat hook postrouting priority srcnat\n\
                     ip saddr 10.1.0.0/16 ip daddr 10.1.0.0/16 return\n\
                     ip saddr 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade\n\
                     ip saddr != 10.1.0.0/16 ip daddr 10.1.0.0/16 masquerade\n\
                     ip6 saddr fd00:1::/32 ip6 daddr fd00:1::/32 return\n\
                     ip6 saddr fd00:1::/32 ip6 daddr != ff00::/8 masquerade\n\
                     ip6 saddr != fd00:1::/32 ip6 daddr fd00:1::/32 masquerade\n}\n}\n",
                );
            }
        };
        for (program, (pods, multicast)) in
            programs.into_iter().zip([("10.1.0.0/16", "224.0.0.0/4"), ("fd00:1::/32", "ff00::/8")])
        {
            let add = format!("{program} -t nat -A POSTROUTING");
            node.run(&format!("{add} -s {pods} -d {pods} -j RETURN"));
            node.run(&format!("{add} -s {pods} ! -d {multicast} -j MASQUERADE"));
            node.run(&format!("{add} ! -s {pods} -d {pods} -j MASQUERADE"));
        }
    }
}

fn sources_survive(masquerade: Masquerade) {
    let net = Net::new();
    masquerade.install(&net.node);
    // Any other address of the host, such as a container bridge's.
    addresses(&net.node, "lo", "172.16.0.1/32", "fd00:99::1/128");
    net.with_podspan(|| {
        for f in 0..2 {
            let seen = |client, from, server, at| talk(client, from, server, at, None).unwrap().seen;
            assert_eq!(seen(&net.pod, None, &net.remote, REMOTE[f]), POD[f], "pod to remote pod");
            assert_eq!(seen(&net.remote, Some(REMOTE[f]), &net.pod, POD[f]), REMOTE[f], "remote pod to pod");
            assert_eq!(seen(&net.node, None, &net.remote, REMOTE[f]), HOST[f], "host to remote pod");
            for from in [NODE[f], ["172.16.0.1", "fd00:99::1"][f]] {
                assert_eq!(seen(&net.node, Some(from), &net.remote, REMOTE[f]), HOST[f], "host from {from}");
            }
            assert_eq!(seen(&net.pod, None, &net.router, ROUTER[f]), NODE[f], "to the internet as ever");
        }
    });
    // Without the table the same rules do masquerade: so it is the table that keeps them from it.
    net.node.run("nft delete table inet podspan");
    for f in 0..2 {
        let seen = |client, from, server, at| talk(client, from, server, at, None).unwrap().seen;
        assert_ne!(seen(&net.pod, None, &net.remote, REMOTE[f]), POD[f]);
        assert_ne!(seen(&net.remote, Some(REMOTE[f]), &net.pod, POD[f]), REMOTE[f]);
    }
}

#[test]
fn sources_survive_masquerading_by_iptables_legacy() {
    sources_survive(Masquerade::IptablesLegacy);
}

#[test]
fn sources_survive_masquerading_by_iptables_nft() {
    sources_survive(Masquerade::IptablesNft);
}

#[test]
fn sources_survive_masquerading_by_nft() {
    sources_survive(Masquerade::Nft);
}

/// The first address of an IPv6 subnet is its routers' anycast address (RFC 4291, section 2.6.1): the kernel
/// holds it on `cni0` too, which comes and goes with the first and the last pod.
#[test]
fn the_hosts_address_works_beside_the_pod_subnets_anycast_address() {
    let net = Net::new();
    net.with_podspan(|| {
        let local = || net.node.run("ip -6 route show table local");
        let to_remote = || talk(&net.node, None, &net.remote, REMOTE[1], None).unwrap().seen;
        assert!(local().contains("anycast fd00:1:1:: dev cni0"));
        assert_eq!(to_remote(), HOST[1], "the pod network was there first");
        net.node.run("ip -6 addr del fd00:1:1::1/64 dev cni0");
        assert!(!local().contains("anycast fd00:1:1:: dev cni0"));
        assert_eq!(to_remote(), HOST[1]);
        net.node.run("ip -6 addr add fd00:1:1::1/64 dev cni0");
        assert!(local().contains("anycast fd00:1:1:: dev cni0"));
        assert_eq!(to_remote(), HOST[1], "the pod network came later");
    });
}

/// A table that is replaced whole, in one transaction, has moments in which a packet meets neither the old nor the new.
#[test]
fn transit_is_not_tracked_while_clusters_come_and_go_and_agents_start() {
    const CHANGES: usize = 100;
    let net = Net::new();
    let to: SocketAddr = SocketAddr::new(POD_ELSEWHERE[0].parse().unwrap(), 9);
    let directory = tempfile::tempdir().unwrap();
    net.node.within(async {
        let (mut host, mut _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let flood = net.remote.spawn(move || {
            let socket = UdpSocket::bind((REMOTE[0].parse::<IpAddr>().unwrap(), 0)).unwrap();
            let mut sent = 0_u64;
            while !told.load(Ordering::Relaxed) {
                sent += u64::from(socket.send_to(&[0; 64], to).is_ok());
            }
            sent
        });
        let mut other = desired();
        other.routes.push("10.8.0.0/16".parse().unwrap());
        for change in 0..CHANGES {
            set_whole(&host, if change % 2 == 0 { other.clone() } else { desired() }).await;
            if change % 10 == 9 {
                drop(host);
                tokio::task::yield_now().await;
                (host, _events) = start(&directory).await;
                set_whole(&host, desired()).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap();
        let tracked = net.node.run("conntrack -L");
        assert!(sent > 10_000, "{sent} packets");
        assert!(!tracked.contains(&format!("dst={} ", POD_ELSEWHERE[0])), "of {sent} packets: {tracked}");
    });
}

#[test]
fn transit_through_a_gateway_is_not_tracked() {
    let net = Net::new();
    // As kube-proxy does. The reply takes the other node's own tunnel: this node sees half of each connection.
    net.node.nft("table inet kube-proxy {\nchain forward {\ntype filter hook forward priority 0\nct state invalid drop\n}\n}\n");
    net.with_podspan(|| {
        for f in 0..2 {
            let transit = talk(&net.remote, Some(REMOTE[f]), &net.other, POD_ELSEWHERE[f], None).unwrap();
            assert_eq!(transit.seen, REMOTE[f]);
            talk(&net.remote, Some(REMOTE[f]), &net.pod, POD[f], None).unwrap();
        }
        let tracked = net.node.run("conntrack -L") + &net.node.run("conntrack -L -f ipv6");
        for f in 0..2 {
            assert!(!tracked.contains(&format!("dst={} ", POD_ELSEWHERE[f])), "{tracked}");
            assert!(tracked.contains(&format!("dst={} ", POD[f])), "at its own node it is: {tracked}");
        }
    });
    net.node.run("nft delete table inet podspan");
    for f in 0..2 {
        let transit = talk(&net.remote, Some(REMOTE[f]), &net.other, POD_ELSEWHERE[f], None);
        assert!(transit.is_err(), "tracked, half a connection is dropped: {transit:?}");
    }
}

#[test]
fn service_traffic_from_remote_comes_back_through_the_gateway() {
    let net = Net::new();
    net.node.nft(&format!(
        "table inet kube-proxy {{\nchain pre {{\ntype nat hook prerouting priority dstnat\n\
         ip daddr {0} tcp dport {SERVICE_ELSEWHERE} dnat ip to {2}:{BACKEND}\n\
         ip6 daddr {1} tcp dport {SERVICE_ELSEWHERE} dnat ip6 to [{3}]:{BACKEND}\n\
         ip daddr {0} tcp dport {SERVICE_LOCAL} dnat ip to {4}:{BACKEND}\n\
         ip6 daddr {1} tcp dport {SERVICE_LOCAL} dnat ip6 to [{5}]:{BACKEND}\n}}\n\
         chain forward {{\ntype filter hook forward priority 0\nct state invalid drop\n}}\n}}\n",
        SERVICE[0], SERVICE[1], POD_ELSEWHERE[0], POD_ELSEWHERE[1], POD[0], POD[1],
    ));
    net.with_podspan(|| {
        for f in 0..2 {
            let service = |port, server, at| {
                talk(&net.remote, Some(REMOTE[f]), server, at, Some((SERVICE[f], port))).unwrap().seen
            };
            assert_eq!(service(SERVICE_ELSEWHERE, &net.other, POD_ELSEWHERE[f]), NODE_TO_OTHER[f]);
            assert_eq!(
                service(SERVICE_LOCAL, &net.pod, POD[f]),
                REMOTE[f],
                "a local backend sees the client"
            );
        }
    });
}

/// The other node drops what has the address of another cluster, unless it comes by its own tunnel. What the gateway
/// hands to it goes back into the interface that it came from, behind which is the tunnel to it.
#[test]
fn what_is_handed_to_another_node_goes_back_into_the_tunnels() {
    let net = Net::new();
    let Net { node, other, remote, .. } = &net;
    other.nft(
        "table inet check {\nchain pre {\ntype filter hook prerouting priority -400\n\
         iifname eth0 ip saddr 10.2.0.0/16 drop\niifname eth0 ip6 saddr fd00:2::/48 drop\n}\n}\n",
    );
    node.nft(&format!(
        "table inet kube-proxy {{\nchain pre {{\ntype nat hook prerouting priority dstnat\n\
         ip daddr {0} tcp dport {SERVICE_ELSEWHERE} dnat ip to {2}:{BACKEND}\n\
         ip6 daddr {1} tcp dport {SERVICE_ELSEWHERE} dnat ip6 to [{3}]:{BACKEND}\n}}\n\
         chain forward {{\ntype filter hook forward priority 0\nct state invalid drop\n}}\n}}\n",
        SERVICE[0], SERVICE[1], POD_ELSEWHERE[0], POD_ELSEWHERE[1],
    ));
    // What answers to the gateway itself takes the cluster's own network.
    routes(other, "10.1.1.0/24 via 198.51.100.2", "fd00:1:1::/64 via 2001:db8:1::2");
    // The far end of the interface passes on what comes out of it, its own packets included.
    remote.set_sysctl("net/ipv4/ip_forward", "1");
    remote.set_sysctl("net/ipv6/conf/all/forwarding", "1");
    remote.set_sysctl("net/ipv4/conf/node/accept_local", "1");
    remote.nft("table inet seen {\ncounter told {}\nchain pre {\ntype filter hook prerouting priority raw\nicmp type redirect counter name told\n}\n}\n");
    for (family, address, via) in
        [("-4", "10.1.2.0/24", "203.0.113.2"), ("-6", "fd00:1:2::/64", "2001:db8:2::2")]
    {
        remote.run(&format!("ip {family} rule add iif node to {address} lookup 77"));
        remote.run(&format!("ip {family} route add {address} via {via} table 77"));
    }
    for address in POD_ELSEWHERE {
        node.run(&format!("ip neigh replace {address} dev podspan0 lladdr 02:00:00:00:00:02 nud permanent"));
    }
    let told = || {
        let printed = remote.run("nft list counter inet seen told");
        !printed.contains("packets 0 ")
    };
    let direct = |f: usize| talk(remote, Some(REMOTE[f]), other, POD_ELSEWHERE[f], None);
    net.with_podspan(|| {
        for f in 0..2 {
            assert!(direct(f).is_err(), "natively the network drops it");
        }
    });
    let delivered = ["10.1.2.0/24", "fd00:1:2::/64"].map(|cidr| cidr.parse().unwrap()).into();
    let delivery = PodDelivery { table: 7184, routes: delivered };
    net.with(HostDesired { pod_delivery: Some(delivery), ..desired() }, || {
        for f in 0..2 {
            let talked = direct(f).unwrap();
            assert_eq!(talked.seen, REMOTE[f], "the source stays");
            let service = Some((SERVICE[f], SERVICE_ELSEWHERE));
            let talked = talk(remote, Some(REMOTE[f]), other, POD_ELSEWHERE[f], service).unwrap();
            assert_eq!(talked.seen, HOST[f], "the answer comes back to the gateway that translated");
            // As ever.
            assert_eq!(talk(node, None, other, POD_ELSEWHERE[f], None).unwrap().seen, NODE_TO_OTHER[f]);
        }
        let tracked = node.run("conntrack -L") + &node.run("conntrack -L -f ipv6");
        assert!(!tracked.contains(&format!("src={} dst={} ", REMOTE[0], POD_ELSEWHERE[0])), "{tracked}");
        assert!(!told(), "nobody is to send straight to the other node");
    });
    node.run("nft delete chain inet podspan redirects");
    direct(0).unwrap();
    assert!(told(), "without the chain the kernel tells so");
}

#[test]
fn segments_are_clamped_to_the_tunnel() {
    let net = Net::new();
    let headers = [40, 60];
    net.with_podspan(|| {
        for f in 0..2 {
            for (client, from, server, at) in
                [(&net.pod, POD[f], &net.remote, REMOTE[f]), (&net.remote, REMOTE[f], &net.pod, POD[f])]
            {
                let Talk { client, server, .. } = talk(client, Some(from), server, at, None).unwrap();
                for size in [client, server] {
                    // Timestamps take up to 12 bytes more.
                    assert!(
                        (1420 - headers[f] - 12..=1420 - headers[f]).contains(&size),
                        "{from} to {at}: {size}"
                    );
                }
            }
        }
    });
    net.node.run("nft delete table inet podspan");
    for f in 0..2 {
        let Talk { server, .. } = talk(&net.pod, None, &net.remote, REMOTE[f], None).unwrap();
        assert!(server > 1420 - headers[f], "without the table: {server}");
    }
}

#[test]
fn nothing_for_remote_clusters_leaves_in_clear_though_the_rules_are_gone() {
    let net = Net::new();
    net.router.nft(
        "table inet seen {\ncounter leaked {}\nchain pre {\ntype filter hook prerouting priority raw\n\
         ip daddr { 10.2.0.0/16 } counter name leaked\nip6 daddr { fd00:2::/48 } counter name leaked\n}\n}\n",
    );
    let leaked = || {
        let printed = net.router.run("nft list counter inet seen leaked");
        let words: Vec<&str> = printed.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "packets").unwrap();
        words[at + 1].parse::<u64>().unwrap()
    };
    // Neighbours must be known beforehand: only what is sent at once counts.
    for router in ROUTER {
        talk(&net.node, None, &net.router, router, None).unwrap();
    }
    net.with_podspan(|| {
        for remote in REMOTE {
            send(&net.node, remote, Some(desired().fwmark));
        }
        assert_eq!(leaked(), 2, "outer packets go out by the underlay");
    });
    // The agent is dead, and somebody takes the rules: the way is open but for the leak stop.
    net.node.run("ip rule del pref 5183");
    net.node.run("ip -6 rule del pref 5183");
    for f in 0..2 {
        assert!(net.node.run(&format!("ip route get {}", REMOTE[f])).contains("dev eth0"));
        send(&net.pod, REMOTE[f], None);
        send(&net.node, REMOTE[f], None);
        assert!(talk(&net.node, None, &net.router, ROUTER[f], None).is_ok(), "the rest goes on");
    }
    assert_eq!(leaked(), 2);
    let dropped = net.node.run("nft list table inet podspan");
    assert_eq!(dropped.matches("counter packets 1 ").count(), 4, "{dropped}");
    net.node.run("nft delete table inet podspan");
    for remote in REMOTE {
        send(&net.pod, remote, None);
        send(&net.node, remote, None);
    }
    assert_eq!(leaked(), 6, "without the leak stop they would have leaked");
}
