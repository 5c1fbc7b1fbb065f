//! Which ways there are, as jobs for the probes, and judging what came of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::kube::{Clusters, ProbePod, Probes, SERVICE_PORT};
use crate::probe::{Job, Outcome, Task};
use crate::scenario::Findings;
use crate::topology::{Family, POD_PORT};

const PAYLOAD: usize = 3000;
/// Fits a datagram in one packet.
const SMALL: usize = 1000;

/// A TCP and a UDP job for a target.
fn jobs(id: &str, target: SocketAddr, timeout: Duration) -> [Job; 2] {
    [
        Job::new(format!("{id} TCP"), target, Task::Tcp { bytes: PAYLOAD }).timeout(timeout),
        Job::new(format!("{id} UDP"), target, Task::Udp { bytes: SMALL }).timeout(timeout),
    ]
}

/// Jobs for every address of every pod of a cluster but `from`.
pub(super) fn to_pods(
    probes: &Probes,
    cluster: &str,
    from: Option<&ProbePod>,
    timeout: Duration,
) -> Vec<Job> {
    let pods = probes.pods.iter().filter(|pod| pod.cluster == cluster && Some(*pod) != from);
    pods.flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)))
        .flat_map(|(pod, address)| {
            jobs(
                &format!("-> pod on {} {}", pod.node, Family::of(address)),
                (address, POD_PORT).into(),
                timeout,
            )
        })
        .collect()
}

/// Jobs for every address of a cluster's service.
pub(super) fn to_service(probes: &Probes, cluster: &str, timeout: Duration) -> Vec<Job> {
    let addresses = probes.services.get(cluster).into_iter().flatten();
    addresses
        .flat_map(|address| {
            let id = format!("-> service of {cluster} {}", Family::of(*address));
            jobs(&id, (*address, SERVICE_PORT).into(), timeout)
        })
        .collect()
}

/// The jobs from a pod: each must come through, and where `own_address` the server must have seen the pod itself.
pub(super) fn from_pod(
    clusters: &Clusters,
    pod: &ProbePod,
    jobs: &[Job],
    own_address: bool,
    findings: &mut Findings,
) -> Result<()> {
    for (job, outcome) in jobs.iter().zip(clusters.ask_from_pod(pod, jobs)?) {
        let way = format!("pod on {} {}", pod.node, outcome.id);
        findings.expect(&way, None, outcome.error.clone());
        if own_address {
            findings.expect(&format!("{way}: client's address"), of_family(pod, job), outcome.seen_as);
        }
    }
    Ok(())
}

/// The pod's address of the family of a job's target.
fn of_family(pod: &ProbePod, job: &Job) -> Option<IpAddr> {
    pod.addresses.iter().copied().find(|address| address.is_ipv4() == job.target.is_ipv4())
}

/// The jobs from a node's own network: each must come through.
pub(super) fn from_node(
    clusters: &Clusters,
    node: &str,
    jobs: &[Job],
    findings: &mut Findings,
) -> Result<Vec<Outcome>> {
    let outcomes = clusters.ask_from_node(node, jobs)?;
    for outcome in &outcomes {
        findings.expect(&format!("host {node} {}", outcome.id), None, outcome.error.clone());
    }
    Ok(outcomes)
}
