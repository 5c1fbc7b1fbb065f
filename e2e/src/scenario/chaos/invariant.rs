//! What must hold whatever happens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podspan_wire::DEFAULT_PORT;

use crate::capture::{Expected, Needle};
use crate::netns::Netns;
use crate::probe::{self, Job, Task};
use crate::process::Size;
use crate::signals;
use crate::topology::{BROKER_PORT, Family, POD_PORT};
use crate::world::{LANES, World};

/// By when all is well again after a storm.
pub(super) const CONVERGED: Duration = Duration::from_secs(5);

/// What may be on the underlay: WireGuard and the broker's TLS, and no word of what pods say.
pub(super) fn expected(world: &World) -> Expected {
    let needles = world
        .topology
        .pods()
        .map(|pod| Needle { name: format!("the name of {}", pod.id()), bytes: pod.id().into_bytes() });
    let broker = world.topology.broker.address;
    Expected {
        underlay: world.topology.underlay().iter().flat_map(|(_, net)| net.both()).collect(),
        wireguard: DEFAULT_PORT..DEFAULT_PORT + LANES,
        brokers: broker.both().map(|address| SocketAddr::new(address, BROKER_PORT)).into(),
        needles: needles.collect(),
    }
}

/// From a pod of each node to a pod of each node of the other clusters, in both families, until all of it works
/// or the time is over; gives how long it took, or what does not work.
pub(super) fn converge(world: &World) -> Result<Result<Duration, Vec<String>>> {
    let mut lists: Vec<(Netns, Vec<Job>)> = Vec::new();
    for from in world.topology.nodes() {
        let mut jobs = Vec::new();
        for to in world.topology.nodes().filter(|to| to.cluster != from.cluster) {
            for family in Family::BOTH {
                let target = SocketAddr::new(world.pod_address(&to.pods[0].id(), family)?, POD_PORT);
                let id = format!("{} -> {} {family}", from.pods[0].id(), to.pods[0].id());
                jobs.push(
                    Job::new(id, target, Task::Tcp { bytes: 3000 }).timeout(Duration::from_millis(700)),
                );
            }
        }
        lists.push((from.pods[0].netns(), jobs));
    }
    let begin = Instant::now();
    loop {
        let tried = begin.elapsed();
        let outcomes = probe::ask_all(&lists)?.into_iter().flatten();
        let failed: Vec<String> = outcomes
            .filter_map(|outcome| outcome.error.map(|error| format!("{}: {error}", outcome.id)))
            .collect();
        if failed.is_empty() {
            return Ok(Ok(begin.elapsed()));
        }
        // The last try began when the time was over.
        if tried > CONVERGED {
            return Ok(Err(failed));
        }
        signals::sleep(Duration::from_millis(100))?;
    }
}

/// Packets whose time to live ran out anywhere since the world was made: what goes round in circles ends so.
pub(super) fn expired(world: &World) -> Result<u64> {
    let places = world.topology.nodes().map(crate::topology::Node::netns).chain([world.topology.router()]);
    let mut sum = 0;
    for place in places {
        sum += place
            .enter(|| {
                let v4 = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
                let v6 = std::fs::read_to_string("/proc/thread-self/net/snmp6")?;
                Ok(out_time_exceeded(&v4, &v6))
            })?
            .with_context(|| format!("the counters of {place}"))?;
    }
    Ok(sum)
}

fn out_time_exceeded(snmp: &str, snmp6: &str) -> Option<u64> {
    let mut icmp = snmp.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let at = icmp.next()?.split(' ').position(|name| name == "OutTimeExcds")?;
    let v4: u64 = icmp.next()?.split(' ').nth(at)?.parse().ok()?;
    let v6 = snmp6.lines().find_map(|line| line.strip_prefix("Icmp6OutTimeExcds"))?;
    Some(v4 + v6.trim().parse::<u64>().ok()?)
}

/// How much a process may grow over what it took after the first storm it lived through.
const GROWN_PERCENT: u64 = 30;
const GROWN_KIB: u64 = 8 * 1024;
const GROWN_DESCRIPTORS: usize = 12;

/// What the agents and the broker took when each was first looked at.
#[derive(Debug, Default)]
pub(super) struct Sizes(BTreeMap<String, Size>);

impl Sizes {
    /// Takes note of processes that are new, and tells which have grown.
    pub(super) fn look(&mut self, world: &World) -> Result<Vec<String>> {
        let mut grown = Vec::new();
        // Not what an earlier scenario started beside them.
        let agents: Vec<String> =
            world.topology.nodes().map(|node| crate::world::agent_name(&node.name)).collect();
        for daemon in &world.record.daemons {
            if !(agents.contains(&daemon.name) || daemon.name == crate::world::BROKER) {
                continue;
            }
            let now =
                daemon.process.size().with_context(|| format!("{} has ended by itself", daemon.name))?;
            let first = match self.0.get(&daemon.name) {
                Some(first) if first.process == now.process => first,
                _ => {
                    self.0.insert(daemon.name.clone(), now);
                    continue;
                }
            };
            if now.memory > first.memory * (100 + GROWN_PERCENT) / 100 + GROWN_KIB
                || now.descriptors > first.descriptors + GROWN_DESCRIPTORS
            {
                grown.push(format!(
                    "{}: from {} KiB and {} descriptors to {} KiB and {}",
                    daemon.name, first.memory, first.descriptors, now.memory, now.descriptors
                ));
            }
        }
        Ok(grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_counters_are_read() {
        let snmp =
            "Ip: Forwarding DefaultTTL\nIp: 1 64\nIcmp: InMsgs OutDestUnreachs OutTimeExcds\nIcmp: 5 6 7\n";
        let snmp6 = "Icmp6OutDestUnreachs            \t3\nIcmp6OutTimeExcds               \t4\n";
        assert_eq!(out_time_exceeded(snmp, snmp6), Some(11));
        assert_eq!(out_time_exceeded("", snmp6), None);
    }
}
