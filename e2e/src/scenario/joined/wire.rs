//! What goes over the underlay, and what of it is believed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use podspan_wire::status::Status;
use podspan_wire::{DEFAULT_PORT, INTERFACE};

use super::{Scenario, Setting};
use crate::capture::{Capture, Expected, Needle};
use crate::command::Cmd;
use crate::probe::{self, Job, Task};
use crate::rules::{self, Script};
use crate::scenario::Findings;
use crate::topology::{BROKER_PORT, Family, POD_PORT};
use crate::world::{self, LANES, World};

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(120), run };
    vec![
        scenario(
            "capture",
            "the router's links carry WireGuard and the broker's TLS and nothing else",
            capture,
        ),
        scenario("ports", "no rule of the clusters' own translates the tunnels' packets", ports),
        scenario("source", "an inner source that belongs to someone else is dropped and counted", source),
    ]
}

const MARKER: &[u8; 16] = b"podspan-lab-mark";

/// The bytes by which a pod's traffic would be known: its IPv6 address; the IPv4 addresses of two pods as they
/// follow each other in a header; all addresses as text; and the marker.
fn needles(world: &World) -> Vec<Needle> {
    let mut needles = vec![Needle { name: "the marker".into(), bytes: MARKER.to_vec() }];
    let pods: Vec<_> = world.record.pods.iter().collect();
    for (id, address) in &pods {
        for address in address.both() {
            needles.push(Needle {
                name: format!("{id}'s address as text"),
                bytes: address.to_string().into_bytes(),
            });
            if let IpAddr::V6(v6) = address {
                needles.push(Needle { name: format!("{id}'s address {v6}"), bytes: v6.octets().to_vec() });
            }
        }
        for (other, peer) in &pods {
            if let (IpAddr::V4(a), IpAddr::V4(b)) = (address.v4, peer.v4) {
                let bytes = [a.octets(), b.octets()].concat();
                needles.push(Needle { name: format!("the addresses of {id} and {other}"), bytes });
            }
        }
    }
    needles
}

/// Bytes that each way carries by TCP.
const UPLOAD: u64 = 500_000;

fn capture(world: &mut World) -> Result<()> {
    let broker = world.topology.broker.address;
    let expected = Expected {
        underlay: world.topology.underlay().iter().flat_map(|(_, net)| net.both()).collect(),
        wireguard: DEFAULT_PORT..DEFAULT_PORT + LANES,
        brokers: broker.both().map(|address| SocketAddr::new(address, BROKER_PORT)).into(),
        needles: needles(world),
    };
    let leaks = world::leaks(&world.topology)?;
    let capture = Capture::start(world)?;
    let pattern: String = MARKER.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut findings = Findings::default();
    let ways = [("alpha/pod5", "beta/pod3"), ("beta/pod1", "gamma/pod3"), ("gamma/pod3", "alpha/pod1")];
    for (from, to) in ways {
        let netns = world.topology.find(from).context("pod")?;
        for family in Family::BOTH {
            let address = world.pod_address(to, family)?;
            Cmd::new("ping")
                .args([family.flag(), "-n", "-c", "3", "-i", "0.05", "-W", "2", "-s", "400", "-p", &pattern])
                .arg(address.to_string())
                .within(&netns)
                .run_ok()?;
            let target = SocketAddr::new(address, POD_PORT);
            let jobs = [
                Job::new("tcp", target, Task::Upload { bytes: UPLOAD }),
                Job::new("udp", target, Task::Udp { bytes: 1000 }),
            ];
            for outcome in probe::ask(&netns, &jobs)? {
                findings.expect(&format!("{from} -> {to} {family} {}", outcome.id), None, outcome.error);
            }
        }
    }
    // An agent that starts makes handshakes and talks to the broker, so these are seen too.
    restart_agent(world, "beta-2")?;
    world.wait_until_joined()?;
    let report = capture.finish(&expected)?;
    findings.require(report.violation_count == 0, || {
        format!("{} packets do not belong: {}", report.violation_count, report.violations.join("\n    "))
    });
    let sealed = report.bytes.get("WireGuard").copied().unwrap_or(0);
    let sent = (ways.len() * Family::BOTH.len()) as u64 * UPLOAD;
    findings.require(sealed > sent, || {
        format!("{sent} bytes were sent through the tunnels, and of WireGuard's {sealed} were captured")
    });
    findings.require(report.count("broker") > 10, || format!("packets by kind: {:?}", report.kinds));
    findings.expect("leaks", leaks, world::leaks(&world.topology)?);
    findings.conclude(12 + 4)
}

/// A node that is not behind a NAT must be seen by gateways at its own address and its lanes' own ports: if a
/// cluster's masquerade gets hold of the tunnels' packets, ports are drawn at random and change with every
/// lost connection-tracking entry.
fn ports(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    for gateway in world.topology.nodes().filter(|node| node.gateway) {
        let status = world.agent_status(gateway)?;
        for seen in status.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            let node = world.node(seen.id.node.as_str())?;
            for lane in seen.lanes.iter().filter(|_| !node.behind_nat) {
                let place = format!("{} as {} sees it, lane {}", node.name, gateway.name, lane.remote);
                let Some(endpoint) = lane.endpoint else {
                    findings.require(false, || format!("{place}: no endpoint"));
                    continue;
                };
                let own = node.endpoints.contains(&endpoint.ip().to_canonical());
                let port = DEFAULT_PORT + u16::try_from(lane.remote)?;
                findings.require(own && endpoint.port() == port, || {
                    format!("{place}: expected port {port} at one of {:?}, saw {endpoint}", node.endpoints)
                });
            }
        }
    }
    // alpha-1 and alpha-2 see 3 such nodes, beta-1 sees 4, gamma-1 sees 5.
    findings.conclude((3 + 3 + 4 + 5) * usize::from(LANES))
}

fn restart_agent(world: &mut World, node: &str) -> Result<()> {
    let agent = world.daemon(&world::agent_name(node))?;
    agent.end(Duration::from_secs(10))?;
    world.start_agent(node)
}

/// All packets that an agent has dropped for a cause.
fn drops(status: &Status, cause: &str) -> u64 {
    let workers = status.workers.iter().map(|worker| &worker.drops);
    let lanes = status.clusters.iter().flat_map(|c| &c.nodes).flat_map(|n| &n.lanes).map(|lane| &lane.drops);
    workers.chain(lanes).filter_map(|drops| drops.get(cause)).sum()
}

fn source(world: &mut World) -> Result<()> {
    const CAUSE: &str = "source_mismatch";
    const COUNT: u64 = 5;
    let mut findings = Findings::default();
    let pod = world.topology.find("beta/pod1").context("pod")?;
    let liar = world.node("beta-1")?.netns();
    let received = |world: &World| -> Result<u64> {
        let mut sum = 0;
        for node in ["alpha-1", "alpha-2"] {
            sum += drops(&world.agent_status(world.node(node)?)?, CAUSE);
        }
        Ok(sum)
    };
    for family in Family::BOTH {
        let (stolen, to) =
            (world.pod_address("gamma/pod1", family)?, world.pod_address("alpha/pod1", family)?);
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        // A node that was taken over: before podspan's own rules it gives its packets another's address.
        let forge = Script::Nft(format!(
            "table inet liar {{ chain forge {{ type nat hook postrouting priority -150;\n\
             oifname {INTERFACE} {ip} daddr {to} snat {ip} to {stolen}\n}}\n}}\n"
        ));
        let before = received(world)?;
        rules::apply(&[forge], &liar, &crate::state::path("xtables.lock"))?;
        let ping = Cmd::new("ping")
            .args([family.flag(), "-n", "-c", &COUNT.to_string(), "-i", "0.05", "-W", "1", &to.to_string()])
            .within(&pod)
            .run()?;
        Cmd::new("nft").args(["delete", "table", "inet", "liar"]).within(&liar).run_ok()?;
        findings.require(!ping.status.success(), || format!("{family}: a stolen address was answered"));
        let after = received(world)?;
        findings.require(after >= before + COUNT, || {
            format!(
                "{family}: {CAUSE} at alpha's gateways should have grown by {COUNT}, it went from {before} to {after}"
            )
        });
    }
    // The liar's own address goes on working.
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address("alpha/pod1", family)?, POD_PORT);
        let outcome =
            probe::ask(&liar, &[Job::new("own address", target, Task::Tcp { bytes: 3000 })])?.remove(0);
        findings.expect(&format!("{family} under its own address"), None, outcome.error);
    }
    findings.conclude(6)
}
