//! Who reaches whom across clusters, and under which address.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::{Scenario, Setting};
use crate::command::Cmd;
use crate::matrix::Matrix;
use crate::netns::Netns;
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::topology::{Family, POD_PORT, SERVICE_PORT};
use crate::world::World;

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(120), run };
    vec![
        scenario("pods", "every pod reaches every pod over TCP and is seen under its own address", pods),
        scenario("services", "every pod reaches every service over TCP", services),
        scenario("udp", "every pod reaches pods and services of the other clusters over UDP", udp),
        scenario("icmp", "pods ping the pods of every node of the other clusters", icmp),
        scenario("hosts", "hosts reach pods of the other clusters, and these reach them", hosts),
    ]
}

pub(super) fn pods(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    for way in Matrix::of_pods(world)?.ways() {
        let name = format!("{} -> {} {}", way.from, way.to, way.family);
        findings.expect(&name, None, way.error.clone());
        findings.expect(&format!("{name}: client's address"), Some(way.own), way.seen_as);
    }
    findings.conclude(14 * 13 * 2 * 2)
}

fn services(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    for way in Matrix::of_services(world)?.ways() {
        findings.expect(&format!("{} -> {} {}", way.from, way.to, way.family), None, way.error.clone());
    }
    findings.conclude(14 * 10 * 2)
}

pub(super) fn udp(world: &mut World) -> Result<()> {
    const BYTES: usize = 1000;
    let mut lists: Vec<(Netns, Vec<Job>)> = Vec::new();
    for from in world.topology.pods() {
        let mut jobs = Vec::new();
        for family in Family::BOTH {
            let pods = world.topology.pods().filter(|to| to.cluster != from.cluster);
            for to in pods {
                let target = SocketAddr::new(world.pod_address(&to.id(), family)?, POD_PORT);
                let id = format!("{} -> {} {family}", from.id(), to.id());
                jobs.push(Job::new(id, target, Task::Udp { bytes: BYTES }));
            }
            for to in world.topology.services().iter().filter(|to| to.cluster != from.cluster) {
                let target = SocketAddr::new(to.address.of(family), SERVICE_PORT);
                let id = format!("{} -> {} {family}", from.id(), to.id());
                jobs.push(Job::new(id, target, Task::Udp { bytes: BYTES }));
            }
        }
        lists.push((from.netns(), jobs));
    }
    let mut findings = Findings::default();
    for outcome in probe::ask_all(&lists)?.into_iter().flatten() {
        findings.expect(&outcome.id, None, outcome.error);
    }
    // From alpha's 6 pods to 8, from the 4 of beta and of gamma to 10 each; and the services.
    findings.conclude((6 * 8 + 4 * 10 + 4 * 10 + 6 * 6 + 4 * 7 + 4 * 7) * 2)
}

fn icmp(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    for from in world.topology.nodes() {
        for to in world.topology.nodes().filter(|to| to.cluster != from.cluster) {
            for family in Family::BOTH {
                let address = world.pod_address(&to.pods[1].id(), family)?.to_string();
                let ping = Cmd::new("ping")
                    .args([family.flag(), "-n", "-c", "3", "-i", "0.02", "-W", "2", &address])
                    .within(&from.pods[0].netns());
                let finished = ping.run()?;
                findings.require(finished.status.success(), || {
                    format!("{}: {}", ping.line(), finished.stdout_text())
                });
            }
        }
    }
    // 3*4 + 2*5 + 2*5 pairs of nodes.
    findings.conclude(32 * 2)
}

fn hosts(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    for node in world.topology.nodes() {
        let own = world.agent_status(node)?.node.host_addresses;
        let mut jobs = Vec::new();
        for to in world.topology.pods().filter(|to| to.cluster != node.cluster) {
            for family in Family::BOTH {
                let target = SocketAddr::new(world.pod_address(&to.id(), family)?, POD_PORT);
                let id = format!("{} -> {} {family}", node.name, to.id());
                jobs.push(Job::new(id, target, Task::Tcp { bytes: 3000 }));
            }
        }
        for outcome in probe::ask(&node.netns(), &jobs)? {
            findings.expect(&outcome.id, None, outcome.error.clone());
            findings.require(outcome.seen_as.is_some_and(|seen| own.contains(&seen)), || {
                format!("{}: seen as {:?}, the host's addresses are {own:?}", outcome.id, outcome.seen_as)
            });
        }
        for from in world.topology.nodes().filter(|from| from.cluster != node.cluster) {
            let job = |address: &std::net::IpAddr| {
                let target = SocketAddr::new(*address, POD_PORT);
                Job::new(
                    format!("{} -> {} {address}", from.pods[0].id(), node.name),
                    target,
                    Task::Tcp { bytes: 3000 },
                )
            };
            let jobs: Vec<Job> = own.iter().map(job).collect();
            for outcome in probe::ask(&from.pods[0].netns(), &jobs)? {
                findings.expect(&outcome.id, None, outcome.error);
            }
        }
    }
    findings.conclude((3 * 8 + 2 * 10 + 2 * 10) * 2 * 2 + 32 * 2)
}
