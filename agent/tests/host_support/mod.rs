//! Network namespaces for tests, one thread and runtime for each thing done in them, gone with the test.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::File;
use std::future::Future;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use podspan_agent::host::{Host, HostDesired, HostEvent, HostSettings};
use podspan_wire::CidrSet;

/// A network namespace of this test's own, deleted with all in it when dropped.
pub(crate) struct Netns(String);

impl Netns {
    /// A namespace with `lo` up, IPv6 on, and a name that is nobody else's.
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("psp-host-{}-{number}-{role}", std::process::id());
        command("ip", &["netns", "add", &name]);
        let netns = Self(name);
        netns.run("ip link set lo up");
        // Duplicate address detection only costs the tests a second for each address.
        netns.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        netns
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs a command in the namespace; its output. Panics if it fails.
    pub(crate) fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|error| panic!("{}: {line}: {error}", self.0))
    }

    /// Runs a command in the namespace: what it printed, or what it complained of.
    pub(crate) fn try_run(&self, line: &str) -> Result<String, String> {
        let mut words = vec![format!("--net={}", self.path()), "timeout".into(), "20".into()];
        words.extend(line.split_whitespace().map(String::from));
        let output = Command::new("nsenter").args(words).stdin(Stdio::null()).output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Feeds nft a script.
    pub(crate) fn nft(&self, script: &str) {
        use std::io::Write as _;
        let mut child = Command::new("nsenter")
            .args([&format!("--net={}", self.path()), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{}: nft refused {script}", self.0);
    }

    pub(crate) fn sysctl(&self, key: &str) -> String {
        self.run(&format!("cat /proc/sys/{key}")).trim().to_owned()
    }

    pub(crate) fn set_sysctl(&self, key: &str, value: &str) {
        let key = format!("/proc/sys/{key}");
        let value = value.to_owned();
        self.within_thread(move || std::fs::write(key, value).unwrap());
    }

    /// Runs blocking work on a thread in the namespace; panics if it does.
    pub(crate) fn within_thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts blocking work on a thread in the namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = self.path();
        std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Runs a future in the namespace, on a thread and a runtime of its own.
    pub(crate) fn within<'a, T: Send>(&self, work: impl Future<Output = T> + Send + 'a) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime
                    .block_on(async { tokio::time::timeout(Duration::from_secs(120), work).await.unwrap() })
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// All that podspan could change: links, addresses, routes of all tables, rules, nftables, sysctls.
    pub(crate) fn snapshot(&self) -> String {
        let mut all = String::new();
        for line in [
            "ip -o -d link",
            "ip -o addr",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip -4 rule",
            "ip -6 rule",
            "nft --stateless list ruleset",
            "iptables-legacy-save -t nat",
        ] {
            let printed = self.run(line);
            let stable = printed.lines().filter(|line| !line.starts_with('#')).map(|line| {
                // Lifetimes run.
                line.split("expires").next().unwrap_or_default().to_owned() + "\n"
            });
            all.push_str(&format!("## {line}\n"));
            all.extend(stable);
        }
        all.push_str("## sysctls\n");
        all.push_str(&self.run(
            "grep -rs -v ^$ /proc/sys/net/ipv4 /proc/sys/net/ipv6 --exclude=stable_secret \
            --exclude=flush --exclude=*_mem --exclude=tcp_fastopen_key",
        ));
        all
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn command(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// A pair of interfaces, one in each namespace, both up.
pub(crate) fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str) {
    a.run(&format!("ip link add {a_name} type veth peer name {b_name} netns {}", b.name()));
    a.run(&format!("ip link set {a_name} up"));
    b.run(&format!("ip link set {b_name} up"));
}

pub(crate) fn set(cidrs: &[&str]) -> CidrSet {
    cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()
}

/// Node 1 of a cluster with others.
pub(crate) fn desired() -> HostDesired {
    HostDesired {
        interface: "podspan0".into(),
        mtu: 1420,
        addresses: vec!["10.1.1.0".parse().unwrap(), "fd00:1:1::".parse().unwrap()],
        table: 7183,
        rule_priority: 5183,
        fwmark: 0x7073,
        routes: ["10.2.0.0/16", "10.3.0.0/16", "10.97.0.0/16", "fd00:2::/48"]
            .map(|cidr| cidr.parse().unwrap())
            .into(),
        route_mtus: [].into(),
        local_pod_cidrs: set(&["10.1.1.0/24", "fd00:1:1::/64"]),
        cluster_pod_cidrs: set(&["10.1.0.0/16", "fd00:1::/32"]),
        cluster_service_cidrs: set(&["10.96.0.0/16", "fd00:96::/108"]),
        underlay: vec!["eth0".into()],
        pod_delivery: None,
    }
}

/// Starts the hand on the kernel with its memory in `directory`.
pub(crate) async fn start(directory: &tempfile::TempDir) -> (Host, tokio::sync::mpsc::Receiver<HostEvent>) {
    Host::start(HostSettings { state_dir: directory.path().join("host") }).await.unwrap()
}

/// Sets what is wanted, waits for it, and panics if anything fails.
pub(crate) async fn set_whole(host: &Host, desired: HostDesired) {
    host.set(desired);
    host.settled().await;
    assert_eq!(host.status().failing, Vec::<String>::new());
}

/// Waits until `check` says yes; how long that took. Panics after `limit`.
pub(crate) async fn until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        if check() {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node with an underlay (`eth0`, to the second namespace, with default routes) and a TUN `podspan0` as
/// the data plane makes it, before podspan's hand touches anything.
pub(crate) fn node() -> (Netns, Netns) {
    let node = Netns::new("node");
    let router = Netns::new("router");
    veth(&node, "eth0", &router, "r0");
    node.run("ip addr add 192.0.2.2/24 dev eth0");
    node.run("ip addr add 2001:db8::2/64 dev eth0");
    router.run("ip addr add 192.0.2.1/24 dev r0");
    router.run("ip addr add 2001:db8::1/64 dev r0");
    node.run("ip route add default via 192.0.2.1");
    node.run("ip -6 route add default via 2001:db8::1");
    (node, router)
}

pub(crate) fn add_tun(node: &Netns) {
    node.run("ip tuntap add dev podspan0 mode tun multi_queue");
}
