//! podspan in the clusters, installed by the commands that the README tells a new user.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::Cidr;
use serde_json::Value;

use super::clusters::Clusters;
use crate::build::Programs;
use crate::command::Cmd;
use crate::signals;
use crate::snapshot::Snapshot;
use crate::state;
use crate::topology::Dual;

/// The namespace of podspan in a cluster.
pub(crate) const PODSPAN: &str = "podspan-system";

/// The port of the broker at every node of alpha.
const BROKER_PORT: u16 = 30743;

/// How long `podspan join` and the first tunnels may take.
const JOIN: Duration = Duration::from_secs(240);

/// How long `kubectl delete -k` may take. An agent has a minute to leave its node, and needs some seconds.
const DELETE: Duration = Duration::from_secs(100);

/// What a cluster was before podspan came: each node's network and files, and the names of all objects.
#[derive(Clone, Debug)]
pub(crate) struct Before {
    nodes: Vec<(String, Snapshot)>,
    objects: Vec<String>,
}

impl Clusters {
    /// The directory of the cluster set.
    fn set(&self) -> PathBuf {
        state::path("kube/podspan/set")
    }

    /// A `podspan` command as a person would give it on the host outside of both clouds.
    pub(crate) fn podspan(&self, programs: &Programs, args: &[&str]) -> Cmd {
        Cmd::new(&programs.cli)
            .args(args)
            .env("KUBECONFIG", self.kubeconfigs())
            .within(&self.outside())
            .timeout(JOIN)
    }

    /// Both administrators' kubeconfigs, as `KUBECONFIG` takes them; the contexts are the clusters' names.
    pub(crate) fn kubeconfigs(&self) -> String {
        let paths = self.plan.clusters.iter().filter_map(|cluster| self.kubeconfig(cluster.name).ok());
        paths.map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// Makes a cluster set and joins both clusters to it; waits until each sees the other as connected. Gives
    /// how long it took from the first command on.
    pub(crate) fn join(&self, programs: &Programs) -> Result<Duration> {
        let begin = Instant::now();
        let set = self.set().display().to_string();
        state::directory("kube/podspan")?;
        let alpha = self.plan.cluster("alpha")?;
        let broker = format!("{}:{BROKER_PORT}", alpha.nodes[0].address.v4);
        self.podspan(
            programs,
            &["clusterset", "create", "--dir", &set, "--name", "lab", "--broker", &broker],
        )
        .run_ok()?;
        for cluster in &self.plan.clusters {
            // A range that a ServiceCIDR may be added from.
            let services = format!("{},{}", list(cluster.services), cluster.more_services);
            let args = ["cluster", "grant", cluster.name, "--dir", &set];
            let cidrs = ["--pod-cidr", &list(cluster.pods), "--service-cidr", &services];
            self.podspan(programs, &args).args(cidrs).arg("--out").arg(bundle(cluster.name)).run_ok()?;
        }
        for cluster in &self.plan.clusters {
            self.join_one(programs, cluster.name, &[])?;
        }
        for cluster in &self.plan.clusters {
            self.wait_until_connected(cluster.name)?;
        }
        Ok(begin.elapsed())
    }

    /// Grants a cluster its second range of pod CIDRs too, and joins it with the new bundle.
    pub(crate) fn grant_more_pods(&self, cluster: &str) -> Result<()> {
        let (programs, plan) = (self.programs()?, self.plan.cluster(cluster)?);
        let (set, bundle) = (self.set().display().to_string(), bundle(cluster).display().to_string());
        let pods = format!("{},{}", list(plan.pods), list(plan.more_pods));
        let args =
            ["cluster", "grant", cluster, "--dir", &set, "--renew", "--bundle", &bundle, "--overwrite"];
        self.podspan(programs, &args).args(["--pod-cidr", &pods, "--out", &bundle]).run_ok()?;
        self.join_one(programs, cluster, &[])
    }

    /// `podspan join` of one cluster, with more options; the broker runs in alpha.
    pub(crate) fn join_one(&self, programs: &Programs, cluster: &str, more: &[&str]) -> Result<()> {
        let plan = self.plan.cluster(cluster)?;
        let gateways: Vec<_> = plan.nodes.iter().map(|node| node.name.clone()).collect();
        let (bundle, gateways) = (bundle(cluster).display().to_string(), gateways.join(","));
        let tls = self.set().join("broker").display().to_string();
        let mut args = vec!["join", "--context", cluster, "--bundle", &bundle, "--gateway", &gateways];
        if cluster == "alpha" {
            args.extend(["--broker-here", "--broker-tls", &tls]);
        }
        if let Err(error) = self.podspan(programs, &args).args(more).run_ok() {
            let pods = self.kubectl(cluster, &["-n", PODSPAN, "describe", "pods"]).unwrap_or_default();
            let logs =
                ["-n", PODSPAN, "logs", "-l", "app.kubernetes.io/component=agent", "--tail=20", "--prefix"];
            let logs = self.kubectl(cluster, &logs).unwrap_or_default();
            return Err(error.context(format!("{pods}\n{logs}")));
        }
        self.site.screen.line(&format!("{cluster} has joined"));
        Ok(())
    }

    /// The same by kubectl: an overlay of the manifests, after `podspan join --settings-only` has made what differs
    /// from cluster to cluster.
    pub(crate) fn join_by_overlay(&self, programs: &Programs, cluster: &str, overlay: &str) -> Result<()> {
        self.join_one(programs, cluster, &["--settings-only"])?;
        self.kubectl(cluster, &["apply", "--server-side", "-k", &self.overlay(overlay)])?;
        let rolled = ["-n", PODSPAN, "rollout", "status", "daemonset/podspan-agent", "--timeout=120s"];
        self.kubectl_cmd(cluster, &rolled)?.timeout(JOIN).run_ok()?;
        Ok(())
    }

    /// `kubectl delete -k` of an overlay of the manifests, with more options; gives what it said.
    pub(crate) fn delete_overlay(&self, cluster: &str, overlay: &str, more: &[&str]) -> Result<String> {
        let cmd = self.kubectl_cmd(cluster, &["delete", "-k", &self.overlay(overlay)])?;
        cmd.args(more).timeout(DELETE).text()
    }

    fn overlay(&self, name: &str) -> String {
        format!("{}/../manifests/overlays/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    /// Waits until a cluster's PeerClusters say that every other cluster is connected.
    pub(crate) fn wait_until_connected(&self, cluster: &str) -> Result<()> {
        let end = Instant::now() + JOIN;
        loop {
            let peers = self.get_json(cluster, &["peerclusters"])?;
            let others = self.plan.clusters.iter().filter(|other| other.name != cluster);
            let missing: Vec<String> = others
                .filter(|other| peer_state(&peers, other.name) != Some("Connected"))
                .map(|other| format!("{}: {:?}", other.name, peer_state(&peers, other.name)))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!(
                    "{cluster} is not connected after {} s: {}\n{peers:#}",
                    JOIN.as_secs(),
                    missing.join(", ")
                );
            }
            signals::sleep(Duration::from_millis(300))?;
        }
    }

    /// What a cluster is now, to be compared with what it is after podspan has left.
    pub(crate) fn look(&self, cluster: &str) -> Result<Before> {
        let mut nodes = Vec::new();
        for node in &self.plan.cluster(cluster)?.nodes {
            let files =
                ["cni-conf", "cni-bin", "podspan"].map(|directory| super::node::disk(node, directory));
            nodes.push((node.name.clone(), Snapshot::of(&node.netns(), &files)?));
        }
        Ok(Before { nodes, objects: self.objects(cluster)? })
    }

    /// The names of all objects of a cluster that do not come and go by themselves, and the nodes' labels and
    /// annotations.
    fn objects(&self, cluster: &str) -> Result<Vec<String>> {
        const PASSING: [&str; 4] = ["event", "lease", "endpointslice", "pod"];
        let kinds = self.kubectl(cluster, &["api-resources", "--verbs=list", "-o", "name"])?;
        let kinds: Vec<&str> = kinds
            .lines()
            .filter(|kind| {
                !PASSING.iter().any(|passing| kind.split('.').next() == Some(&format!("{passing}s")))
            })
            .collect();
        let text =
            self.kubectl(cluster, &["get", &kinds.join(","), "-A", "-o", "name", "--ignore-not-found"])?;
        let mut all: Vec<String> = text.lines().map(str::to_owned).collect();
        let nodes = self.get_json(cluster, &["nodes"])?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            for part in ["labels", "annotations", "finalizers"] {
                let data = &node["metadata"][part];
                all.push(format!("{} {part} {data}", node["metadata"]["name"]));
            }
        }
        all.sort();
        Ok(all)
    }
}

impl Before {
    /// What differs, a line for each.
    pub(crate) fn differences(&self, after: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((name, before), (_, after)) in self.nodes.iter().zip(&after.nodes) {
            lines.extend(before.differences(after).into_iter().map(|line| format!("{name}: {line}")));
        }
        let new = after.objects.iter().filter(|object| !self.objects.contains(object));
        lines.extend(new.map(|object| format!("new: {object}")));
        let gone = self.objects.iter().filter(|object| !after.objects.contains(object));
        lines.extend(gone.map(|object| format!("gone: {object}")));
        lines
    }

    /// How many things were looked at.
    pub(crate) fn len(&self) -> usize {
        self.objects.len() + self.nodes.iter().map(|(_, node)| node.len()).sum::<usize>()
    }
}

/// As the options of `podspan` take CIDRs.
fn list(both: Dual<Cidr>) -> String {
    both.both().map(|cidr| cidr.to_string()).join(",")
}

fn bundle(cluster: &str) -> PathBuf {
    state::path("kube/podspan").join(format!("{cluster}.bundle"))
}

/// The state of a remote cluster in a list of PeerClusters.
fn peer_state<'a>(peers: &'a Value, cluster: &str) -> Option<&'a str> {
    let peers = peers["items"].as_array()?;
    peers.iter().find(|peer| peer["metadata"]["name"] == cluster)?["status"]["state"].as_str()
}

/// The number of a namespace's or object's restarts, summed up over a list of pods.
pub(crate) fn restarts(pods: &Value) -> Result<u64> {
    let statuses = pods["items"].as_array().context("no list")?.iter();
    let statuses =
        statuses.flat_map(|pod| pod["status"]["containerStatuses"].as_array().into_iter().flatten());
    Ok(statuses.filter_map(|status| status["restartCount"].as_u64()).sum())
}
