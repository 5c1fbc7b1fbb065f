//! Leaving: nodes and cluster as they were before.

use anyhow::{Context, Result};

use super::ways;
use crate::kube::Clusters;
use crate::probe;
use crate::scenario::Findings;
use crate::snapshot::ORDER;

/// beta leaves, then alpha with the broker; both are compared in full with what they were before podspan came,
/// and the pods run on.
pub(super) fn leave(clusters: &mut Clusters) -> Result<()> {
    let programs = clusters.programs()?.clone();
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    for (cluster, more) in [("beta", &[][..]), ("alpha", &["--with-broker"][..])] {
        let finished = clusters.podspan(&programs, &["leave", "--context", cluster]).args(more).run_ok()?;
        clusters.site.screen.raw(&format!("$ podspan leave --context {cluster}\n{}", finished.stdout_text()));
        let before = clusters.before.get(cluster).context("the clusters were not looked at before")?;
        let after = clusters.look(cluster)?;
        findings.require(before.len() > 500, || format!("only {} things were looked at", before.len()));
        // A container cannot remove what is mounted into it: of the state directory, which kubelet made for it as
        // a mount point, the empty directory stays.
        let emptied = |line: &&String| line.ends_with("/var/lib/podspan = mode 40700, owner 0:0 ");
        // kube-proxy writes its rules anew, in whatever order, when a Service such as the broker's comes or goes.
        let reordered =
            |line: &&String| line.contains("nftables: changed: table ip") && line.ends_with(ORDER);
        let differences = before.differences(&after);
        for difference in differences.iter().filter(|line| !emptied(line) && !reordered(line)) {
            findings.require(false, || format!("{cluster}: {difference}"));
        }
    }
    findings.expect("the probe pods, which should be the same", probes.pods.clone(), clusters.probes()?.pods);
    for pod in &probes.pods {
        let jobs = ways::to_pods(&probes, &pod.cluster, Some(pod), probe::TIMEOUT);
        ways::from_pod(clusters, pod, &jobs, true, &mut findings)?;
    }
    findings.conclude(2 + 1 + 4 * 8)
}
