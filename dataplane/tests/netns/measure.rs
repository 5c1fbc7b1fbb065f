//! Figures for a person. They depend on what else the machine does, so none of them can fail.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use podspan_dataplane::Offload;

use crate::world::{Node, PATIENCE, ask, end, pair, tcp, udp_echo};

/// CPU seconds of all packet workers so far (proc(5), `/proc/self/task/*/stat`).
fn worker_cpu() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let ticks: u64 = stats
        .filter(|stat| stat.contains("(podspan-lane"))
        .map(|stat| {
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        })
        .sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / per_second as f64
}

fn system_calls(node: &Node) -> u64 {
    let calls = node.dataplane().status().workers.into_iter().map(|worker| worker.calls);
    calls.map(|c| c.poll + c.tun_read + c.tun_write + c.udp_receive + c.udp_send).sum()
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
            let (cpu, calls) = (worker_cpu(), system_calls(&a) + system_calls(&b));
            let took = tcp(&a.namespace, &b.namespace, "10.202.0.1:8".parse().unwrap(), bytes, streams);
            let gbit = bytes as f64 * 8.0 / took.as_secs_f64() / 1e9;
            let cpu = (worker_cpu() - cpu) / (bytes as f64 / 1e9);
            let calls = (system_calls(&a) + system_calls(&b) - calls) as f64 / (bytes as f64 / 1e6);
            println!(
                "{lanes} lanes, {offload:?}: TCP {streams} streams {gbit:.2} Gbit/s, \
                 both ends' workers {cpu:.2} CPU s per GB, {calls:.0} system calls per MB"
            );
        }
        println!(
            "{lanes} lanes, {offload:?}: UDP 64 B {kpps:.0} kpps delivered, RTT p50 {p50:?} p99 {p99:?}"
        );
    }
}
