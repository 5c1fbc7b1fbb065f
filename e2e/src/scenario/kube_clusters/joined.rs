//! Two clusters that podspan has joined: who reaches whom, under which address.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::{changes, ways};
use crate::kube::{Clusters, HEADLESS, NAMESPACE, PODSPAN, TAINT, is_true, restarts, until};
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::scenario::place::TAINTED;
use crate::topology::{Family, POD_PORT};

/// From every pod and every node to every pod and the service of the other cluster.
pub(super) fn reach(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    for pod in &probes.pods {
        for other in other_clusters(clusters, &pod.cluster) {
            let to_pods = ways::to_pods(&probes, &other, None, probe::TIMEOUT);
            ways::from_pod(clusters, pod, &to_pods, true, &mut findings)?;
            let to_service = ways::to_service(&probes, &other, probe::TIMEOUT);
            ways::from_pod(clusters, pod, &to_service, false, &mut findings)?;
            ways::from_node(clusters, &pod.node, &to_pods, &mut findings)?;
            ways::from_node(clusters, &pod.node, &to_service, &mut findings)?;
        }
    }
    // From each of 4 pods: 8 jobs to pods with 2 checks, 4 to the service; from each of 4 nodes 8 and 4.
    findings.conclude(4 * (16 + 4 + 8 + 4))
}

/// A headless service of the other cluster: its DNS is asked through the tunnel, and what it says is reached.
pub(super) fn headless(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    for pod in &probes.pods {
        for other in other_clusters(clusters, &pod.cluster) {
            let servers = clusters.plan.cluster(&other)?.dns();
            let mut expected = probes.addresses(&other);
            expected.sort();
            for server in servers.both() {
                let found = clusters.resolve_from_pod(pod, server, HEADLESS)?;
                findings.expect(
                    &format!("{}: {HEADLESS} by {server}", pod.node),
                    expected.clone(),
                    found.clone(),
                );
                let jobs: Vec<Job> = found
                    .into_iter()
                    .map(|address| {
                        let id = format!("-> {address} of {HEADLESS} {}", Family::of(address));
                        Job::new(id, SocketAddr::new(address, POD_PORT), Task::Tcp { bytes: 3000 })
                    })
                    .collect();
                ways::from_pod(clusters, pod, &jobs, true, &mut findings)?;
            }
        }
    }
    findings.conclude(4 * 2 * (1 + 4 * 2))
}

/// A node with a taint of both effects, since before podspan came: its agent is there all the same, and its pods, which
/// tolerate it, reach the other cluster and are reached.
pub(super) fn tainted(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let node = clusters.get_json("beta", &["node", TAINTED])?;
    let taints =
        node["spec"]["taints"].as_array().into_iter().flatten().filter(|taint| taint["key"] == TAINT);
    let mut effects: Vec<_> = taints.filter_map(|taint| taint["effect"].as_str()).collect();
    effects.sort_unstable();
    findings.expect("the taint's effects", vec!["NoExecute", "NoSchedule"], effects);
    let agents = [
        "pods",
        "-n",
        PODSPAN,
        "-l",
        "app.kubernetes.io/component=agent",
        "--field-selector",
        &format!("spec.nodeName={TAINTED}"),
    ];
    let agents = clusters.get_json("beta", &agents)?;
    let agents = agents["items"].as_array().cloned().unwrap_or_default();
    findings.expect(
        "agents that are ready there",
        vec![true],
        agents.iter().map(|pod| is_true(pod, "Ready")).collect(),
    );

    let there = changes::on(&probes, TAINTED)?;
    let elsewhere = probes.pods.iter().find(|pod| pod.cluster == there.cluster && *pod != there);
    for pod in probes.pods.iter().filter(|pod| pod.cluster != there.cluster) {
        let jobs = ways::to_pods(&probes, &there.cluster, elsewhere, probe::TIMEOUT);
        ways::from_pod(clusters, pod, &jobs, true, &mut findings)?;
        let jobs = ways::to_pods(&probes, &pod.cluster, None, probe::TIMEOUT);
        ways::from_pod(clusters, there, &jobs, true, &mut findings)?;
    }

    // The taint is one that counts: a pod without the toleration finds no place there.
    clusters.apply(
        "beta",
        &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: kept-out, namespace: {NAMESPACE}}}, spec: {{nodeSelector: \
             {{kubernetes.io/hostname: {TAINTED}}}, containers: [{{name: x, image: none, imagePullPolicy: Never}}]}}}}"
        ),
    )?;
    let refused = until("a pod without the toleration is refused", Duration::from_secs(20), || {
        let pod = clusters.get_json("beta", &["pod", "kept-out", "-n", NAMESPACE])?;
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|condition| {
            condition["reason"] == "Unschedulable"
                && condition["message"].as_str().is_some_and(|why| why.contains("untolerated taint"))
        }))
    });
    clusters.kubectl("beta", &["delete", "pod", "kept-out", "-n", NAMESPACE, "--now"])?;
    findings.require(refused.is_ok(), || format!("{refused:?}"));
    // From each of 2 pods there and back: 4 jobs to one pod, 8 to two, with 2 checks.
    findings.conclude(3 + 2 * (4 * 2 + 8 * 2))
}

/// What `kubectl get peerclusters` and `kubectl describe` say, and that nothing had to be started twice.
pub(super) fn told(clusters: &mut Clusters) -> Result<()> {
    let mut findings = Findings::default();
    for cluster in clusters.plan.clusters.clone() {
        let table = clusters.kubectl(cluster.name, &["get", "peerclusters", "-o", "wide"])?;
        clusters.site.screen.raw(&format!("[{}] $ kubectl get peerclusters -o wide\n{table}", cluster.name));
        for column in ["STATE", "GATEWAYS", "RTT", "LOSS", "MTU", "REASON", "AGE"] {
            findings.require(table.lines().next().is_some_and(|line| line.contains(column)), || {
                format!("{}: no column {column} in\n{table}", cluster.name)
            });
        }
        findings.require(table.contains("Connected") && table.contains("2/2"), || {
            format!("{}: not connected through two of two gateways:\n{table}", cluster.name)
        });
        let other = other_clusters(clusters, cluster.name).remove(0);
        let text = clusters.kubectl(cluster.name, &["describe", "peercluster", &other])?;
        clusters
            .site
            .screen
            .raw(&format!("[{}] $ kubectl describe peercluster {other}\n{text}", cluster.name));
        let set = clusters.kubectl(cluster.name, &["get", "clusterset", "podspan", "-o", "yaml"])?;
        clusters
            .site
            .screen
            .raw(&format!("[{}] $ kubectl get clusterset podspan -o yaml\n{set}", cluster.name));
        findings.require(set.contains(&cluster.pods.v4.to_string()) || set.contains("podCIDRs"), || {
            format!("{}: the ClusterSet does not tell what was discovered:\n{set}", cluster.name)
        });
        let pods = clusters.get_json(cluster.name, &["pods", "-n", crate::kube::PODSPAN])?;
        findings.expect(&format!("{}: restarts of podspan's pods", cluster.name), 0, restarts(&pods)?);
    }
    findings.conclude(2 * 10)
}

/// The other clusters' names.
pub(super) fn other_clusters(clusters: &Clusters, cluster: &str) -> Vec<String> {
    let others = clusters.plan.clusters.iter().filter(|other| other.name != cluster);
    others.map(|other| other.name.to_owned()).collect()
}
