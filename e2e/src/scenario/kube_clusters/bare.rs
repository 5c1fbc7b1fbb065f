//! The clusters without podspan: they must be right before anything can be shown in them.

use std::time::Duration;

use anyhow::Result;

use super::ways;
use crate::kube::{Clusters, HEADLESS};
use crate::probe;
use crate::scenario::Findings;

pub(super) fn inside(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.deploy_probes()?;
    let mut findings = Findings::default();
    for pod in &probes.pods {
        let jobs = ways::to_pods(&probes, &pod.cluster, Some(pod), probe::TIMEOUT);
        ways::from_pod(clusters, pod, &jobs, true, &mut findings)?;
        let jobs = ways::to_service(&probes, &pod.cluster, probe::TIMEOUT);
        ways::from_pod(clusters, pod, &jobs, false, &mut findings)?;
        ways::from_node(clusters, &pod.node, &jobs, &mut findings)?;
        let own = clusters.plan.cluster(&pod.cluster)?;
        for server in own.dns().both() {
            let mut expected = probes.addresses(&pod.cluster);
            expected.sort();
            let found = clusters.resolve_from_pod(pod, server, HEADLESS)?;
            findings.expect(&format!("{}: {HEADLESS} by {server}", pod.node), expected, found);
        }
        // 2 nodes, so one other pod, of 2 families, by 2 protocols.
        for other in probes.pods.iter().filter(|other| other.cluster != pod.cluster).take(1) {
            let mut jobs = ways::to_pods(&probes, &other.cluster, None, Duration::from_millis(400));
            jobs.extend(ways::to_service(&probes, &other.cluster, Duration::from_millis(400)));
            for outcome in clusters.ask_from_pod(pod, &jobs)? {
                let way = format!("pod on {} {}", pod.node, outcome.id);
                findings.require(!outcome.ok(), || format!("{way}: reached without podspan"));
            }
        }
    }
    // From each of 4 pods: 4 jobs with 2 checks, 4 twice, 2 names, and 12 that must fail.
    findings.conclude(4 * (8 + 8 + 2 + 12))
}
