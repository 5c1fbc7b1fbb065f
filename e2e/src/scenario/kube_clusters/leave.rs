//! Leaving: nodes and cluster as they were before.

use std::time::Instant;

use anyhow::{Context, Result};

use super::changes::{LIMIT, at_pod, tell, until_reached};
use super::ways;
use crate::command::Cmd;
use crate::kube::{Clusters, ProbePod, Probes, until};
use crate::probe;
use crate::scenario::Findings;
use crate::snapshot::ORDER;

/// Both clusters by `kubectl delete -k`, the one with the broker last: compared in full with what they were before
/// podspan came. Then they join again, one of them by kubectl too; and once more while its agents still leave.
pub(super) fn deleted(clusters: &mut Clusters) -> Result<()> {
    let programs = clusters.programs()?.clone();
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    for (cluster, overlay) in [("beta", "broker-elsewhere"), ("alpha", "broker-here")] {
        let begin = Instant::now();
        let said = clusters.delete_overlay(cluster, overlay, &[])?;
        tell(clusters, &format!("{cluster}: kubectl delete -k"), begin.elapsed());
        findings.require(said.lines().count() >= 15, || format!("{cluster}: what was deleted: {said}"));
        // They are no objects of the manifests: whoever has put them there takes them off.
        clusters.kubectl(cluster, &["label", "nodes", "--all", "podspan.io/gateway-"])?;
        compare(clusters, cluster, &mut findings)?;
    }
    run_on(clusters, &probes, &mut findings)?;

    clusters.join_one(&programs, "alpha", &[])?;
    clusters.join_by_overlay(&programs, "beta", "broker-elsewhere")?;
    both_ways(clusters, &probes, &mut findings)?;

    clusters.delete_overlay("beta", "broker-elsewhere", &["--wait=false"])?;
    let begin = Instant::now();
    clusters.join_one(&programs, "beta", &[])?;
    tell(clusters, "beta: kubectl delete -k --wait=false, and podspan join at once", begin.elapsed());
    both_ways(clusters, &probes, &mut findings)?;
    findings.conclude(2 * 2 + 1 + 4 * 8 + 2 * 4 * 16)
}

/// Agents that may enter pods set the routes in those that were there before podspan, to all that the other cluster may
/// have, as large as the path is.
pub(super) fn entered(clusters: &mut Clusters) -> Result<()> {
    let programs = clusters.programs()?.clone();
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    for pod in &probes.pods {
        findings.expect(&format!("routes in {} before", pod.name), Vec::new(), routes(clusters, pod)?);
    }
    for cluster in ["alpha", "beta"] {
        let begin = Instant::now();
        clusters.join_one(&programs, cluster, &["--enter-pods"])?;
        tell(clusters, &format!("{cluster}: podspan join --enter-pods"), begin.elapsed());
    }
    for pod in &probes.pods {
        let time = until(&format!("routes in {}", pod.name), LIMIT, || {
            let routes = routes(clusters, pod)?;
            // Pods and services of the other cluster in both families, and the range that may be added.
            Ok(routes.len() == 5 && routes.iter().all(|route| route.contains(" mtu 14")))
        })?;
        tell(clusters, &format!("{}: until it has routes of its own", pod.name), time);
    }
    both_ways(clusters, &probes, &mut findings)?;
    findings.conclude(4 + 4 * 16)
}

/// podspan's routes inside a pod.
fn routes(clusters: &Clusters, pod: &ProbePod) -> Result<Vec<String>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let show = Cmd::new("ip").args([family, "-o", "route", "show", "proto", "112"]);
        let text = show.within(&clusters.pod_netns(pod)?).text()?;
        routes.extend(text.lines().map(|line| line.trim().to_owned()));
    }
    Ok(routes)
}

/// beta leaves, then alpha with the broker; both are compared in full with what they were before podspan came,
/// and the pods run on.
pub(super) fn leave(clusters: &mut Clusters) -> Result<()> {
    let programs = clusters.programs()?.clone();
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    for (cluster, more) in [("beta", &[][..]), ("alpha", &["--with-broker"][..])] {
        let finished = clusters.podspan(&programs, &["leave", "--context", cluster]).args(more).run_ok()?;
        clusters.site.screen.raw(&format!("$ podspan leave --context {cluster}\n{}", finished.stdout_text()));
        compare(clusters, cluster, &mut findings)?;
    }
    run_on(clusters, &probes, &mut findings)?;
    for pod in &probes.pods {
        findings.expect(&format!("routes in {}", pod.name), Vec::new(), routes(clusters, pod)?);
    }
    findings.conclude(2 + 1 + 4 * 8 + 4)
}

/// A cluster that podspan has left is what it was before podspan came.
fn compare(clusters: &Clusters, cluster: &str, findings: &mut Findings) -> Result<()> {
    let before = clusters.before.get(cluster).context("the clusters were not looked at before")?;
    let after = clusters.look(cluster)?;
    findings.require(before.len() > 500, || format!("only {} things were looked at", before.len()));
    // A container cannot remove what is mounted into it: of the state directory, which kubelet made for it as
    // a mount point, the empty directory stays.
    let emptied = |line: &&String| line.ends_with("/var/lib/podspan = mode 40700, owner 0:0 ");
    // kube-proxy writes its rules anew, in whatever order, when a Service such as the broker's comes or goes.
    let reordered = |line: &&String| line.contains("nftables: changed: table ip") && line.ends_with(ORDER);
    let differences = before.differences(&after);
    for difference in differences.iter().filter(|line| !emptied(line) && !reordered(line)) {
        findings.require(false, || format!("{cluster}: {difference}"));
    }
    Ok(())
}

/// The pods are the same as before, and those of a cluster reach each other.
fn run_on(clusters: &Clusters, probes: &Probes, findings: &mut Findings) -> Result<()> {
    findings.expect("the probe pods, which should be the same", &probes.pods, &clusters.probes()?.pods);
    for pod in &probes.pods {
        let jobs = ways::to_pods(probes, &pod.cluster, Some(pod), probe::TIMEOUT);
        ways::from_pod(clusters, pod, &jobs, true, findings)?;
    }
    Ok(())
}

/// Every pod reaches every pod of the other cluster, soon and then at once.
fn both_ways(clusters: &Clusters, probes: &Probes, findings: &mut Findings) -> Result<()> {
    for pod in &probes.pods {
        for other in probes.pods.iter().filter(|other| other.cluster != pod.cluster) {
            until_reached(clusters, pod, &at_pod(other))?;
        }
        for other in super::joined::other_clusters(clusters, &pod.cluster) {
            let jobs = ways::to_pods(probes, &other, None, probe::TIMEOUT);
            ways::from_pod(clusters, pod, &jobs, true, findings)?;
        }
    }
    Ok(())
}
