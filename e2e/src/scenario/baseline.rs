//! The world without podspan: it must be right before anything can be shown in it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use super::{Findings, Scenario, Setting};
use crate::netns::Netns;
use crate::probe::{self, Job, Task};
use crate::topology::{Family, POD_PORT, Pod, SERVICE_PORT};
use crate::world::{self, World};

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(60), run };
    vec![
        scenario("pods", "inside a cluster every pod reaches every other under its own address", pods),
        scenario("services", "inside a cluster pods and hosts reach its services", services),
        scenario("internet", "pods reach the internet under their node's address", internet),
        scenario("apart", "no pod reaches another cluster, and the router counts every try", apart),
    ]
}

const PAYLOAD: usize = 3000;
/// Fits a datagram in one packet.
const SMALL: usize = 1000;

/// A TCP and a UDP job for a target.
fn jobs(id: &str, target: SocketAddr) -> [Job; 2] {
    [
        Job::new(format!("{id} TCP"), target, Task::Tcp { bytes: PAYLOAD }),
        Job::new(format!("{id} UDP"), target, Task::Udp { bytes: SMALL }),
    ]
}

fn pods(world: &mut World) -> Result<()> {
    let mut lists: Vec<(Netns, Vec<Job>)> = Vec::new();
    let mut expected = Vec::new();
    for from in world.topology.pods() {
        let mut list = Vec::new();
        for to in world.topology.pods().filter(|to| to.cluster == from.cluster && *to != from) {
            for family in Family::BOTH {
                let target = SocketAddr::new(world.pod_address(&to.id(), family)?, POD_PORT);
                list.extend(jobs(&format!("{} -> {} {family}", from.id(), to.id()), target));
                expected.extend([world.pod_address(&from.id(), family)?; 2]);
            }
        }
        lists.push((from.netns(), list));
    }
    let mut findings = Findings::default();
    let outcomes = probe::ask_all(&lists)?.into_iter().flatten();
    for (outcome, own) in outcomes.zip(expected) {
        findings.expect(&outcome.id, None, outcome.error);
        findings.expect(&format!("{}: client's address", outcome.id), Some(own), outcome.seen_as);
    }
    // (6*5 + 4*3 + 4*3) ordered pairs, two families, two protocols, two checks each.
    findings.conclude(54 * 2 * 2 * 2)
}

fn services(world: &mut World) -> Result<()> {
    let mut lists: Vec<(Netns, Vec<Job>)> = Vec::new();
    for cloud in &world.topology.clouds {
        let pods = cloud.nodes.iter().flat_map(|node| &node.pods).map(|pod| (pod.id(), pod.netns()));
        let hosts = cloud.nodes.iter().map(|node| (node.name.clone(), node.netns()));
        for (name, netns) in pods.chain(hosts) {
            let mut list = Vec::new();
            for service in cloud.services() {
                for family in Family::BOTH {
                    let target = SocketAddr::new(service.address.of(family), SERVICE_PORT);
                    list.extend(jobs(&format!("{name} -> {} {family}", service.id()), target));
                }
            }
            lists.push((netns, list));
        }
    }
    let mut findings = Findings::default();
    for outcome in probe::ask_all(&lists)?.into_iter().flatten() {
        findings.expect(&outcome.id, None, outcome.error);
    }
    // Places times services: 9*4 + 6*3 + 6*3, two families, two protocols.
    findings.conclude(72 * 2 * 2)
}

/// The address under which the internet sees the pods of a node; none if it does not see them.
fn public_address(world: &World, pod: &Pod, family: Family) -> Result<Option<IpAddr>> {
    let node = world.node(&pod.node)?;
    if node.behind_nat {
        let lan = world.cloud(node.cluster)?.lan.as_ref();
        return Ok(lan.map(|lan| lan.outside).filter(|address| Family::of(*address) == family));
    }
    Ok(node.endpoints.iter().copied().find(|address| Family::of(*address) == family))
}

fn internet(world: &mut World) -> Result<()> {
    let mut lists: Vec<(Netns, Vec<Job>)> = Vec::new();
    let mut expected = Vec::new();
    for pod in world.topology.pods() {
        let mut list = Vec::new();
        for family in Family::BOTH {
            let target = SocketAddr::new(world.topology.internet.address.of(family), POD_PORT);
            let seen_as = public_address(world, pod, family)?;
            let jobs = jobs(&format!("{} -> internet {family}", pod.id()), target);
            let timeout = if seen_as.is_some() { probe::TIMEOUT } else { Duration::from_millis(500) };
            list.extend(jobs.map(|job| job.timeout(timeout)));
            expected.extend([seen_as; 2]);
        }
        lists.push((pod.netns(), list));
    }
    let mut findings = Findings::default();
    for (outcome, seen_as) in probe::ask_all(&lists)?.into_iter().flatten().zip(expected) {
        findings.expect(&format!("{}: reached", outcome.id), seen_as.is_some(), outcome.ok());
        findings.expect(&format!("{}: client's address", outcome.id), seen_as, outcome.seen_as);
    }
    findings.conclude(14 * 2 * 2 * 2)
}

fn apart(world: &mut World) -> Result<()> {
    let before = world::leaks(&world.topology)?;
    let mut lists: Vec<(Netns, Vec<Job>)> = Vec::new();
    for from in world.topology.pods() {
        let mut list = Vec::new();
        for cloud in world.topology.clouds.iter().filter(|cloud| cloud.name != from.cluster) {
            let to = &cloud.nodes[0].pods[0];
            let service = &cloud.services()[0];
            for family in Family::BOTH {
                let targets = [
                    (to.id(), world.pod_address(&to.id(), family)?, POD_PORT),
                    (service.id(), service.address.of(family), SERVICE_PORT),
                ];
                for (name, address, port) in targets {
                    let id = format!("{} -> {name} {family}", from.id());
                    let job = Job::new(id, SocketAddr::new(address, port), Task::Tcp { bytes: 1 });
                    list.push(job.timeout(Duration::from_millis(400)));
                }
            }
        }
        lists.push((from.netns(), list));
    }
    let mut findings = Findings::default();
    for outcome in probe::ask_all(&lists)?.into_iter().flatten() {
        findings.require(!outcome.ok(), || format!("{}: reached without podspan", outcome.id));
    }
    let after = world::leaks(&world.topology)?;
    for cloud in &world.topology.clouds {
        let new = after.get(cloud.name).zip(before.get(cloud.name)).map(|(after, before)| after - before);
        // From each pod with a way out, at least its IPv4 tries.
        let tries = cloud.nodes.iter().flat_map(|node| &node.pods).count() as u64 * 2 * 2;
        findings.require(new >= Some(tries), || {
            format!(
                "leaks from {}: at least {tries} packets should have been counted, it was {new:?}",
                cloud.name
            )
        });
    }
    findings.conclude(14 * 2 * 2 * 2 + 3)
}
