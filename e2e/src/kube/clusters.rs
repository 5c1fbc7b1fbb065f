//! Two clusters of real Kubernetes: control planes, nodes, the network between and within them, DNS.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::Cidr;
use serde_json::Value;

use super::join::Before;
use super::pki::Authority;
use super::plan::{ClusterPlan, NodePlan, Plan, PodCidrs};
use super::plane::Plane;
use super::programs::KubePrograms;
use super::site::Site;
use super::{cgroups, files, images, node, settings};
use crate::build::Programs;
use crate::command::Cmd;
use crate::netns::Netns;
use crate::rules;
use crate::screen::Screen;
use crate::signals;
use crate::state::{self, Record};
use crate::topology::Dual;
use crate::world::{self, Leftovers, ip_batch};

/// How long nodes and DNS may take until they are ready, from the start of the nodes.
const READY: Duration = Duration::from_secs(240);

/// How much all disks together may hold.
const DISKS: &str = "size=8g,mode=700";

/// Two clusters that this run of the lab has made, or that an earlier one has left standing.
#[derive(Debug)]
pub(crate) struct Clusters {
    pub(crate) plan: Plan,
    pub(super) planes: Vec<Plane>,
    /// In the order of the planes; none for clusters that were found standing.
    pub(super) authorities: Vec<Authority>,
    pub(super) kubernetes: KubePrograms,
    /// podspan's programs, if they were built.
    pub(super) podspan: Option<Programs>,
    /// What each cluster was before podspan came.
    pub(crate) before: BTreeMap<String, Before>,
    pub(crate) site: Site,
}

impl Clusters {
    /// Makes both clusters and waits until all nodes and the clusters' DNS are ready.
    pub(crate) fn create(
        kubernetes: &KubePrograms,
        podspan: Option<&Programs>,
        screen: Screen,
    ) -> Result<Self> {
        let plan = Plan::standard()?;
        let site = Site::create(screen, true, &plan.namespaces())?;
        let planes = plan.clusters.iter().map(|cluster| plane(cluster, kubernetes)).collect();
        let kubernetes = kubernetes.clone();
        let (authorities, before) = (Vec::new(), BTreeMap::new());
        let podspan = podspan.cloned();
        let mut clusters = Self { plan, planes, authorities, kubernetes, podspan, before, site };
        match clusters.build() {
            Ok(()) => Ok(clusters),
            Err(error) => Err(error.context(clusters.diagnosis())),
        }
    }

    /// The clusters that stand, made by an earlier run.
    pub(crate) fn standing(record: Record, kubernetes: &KubePrograms, screen: Screen) -> Result<Self> {
        let plan = Plan::standard()?;
        let planes = plan.clusters.iter().map(|cluster| plane(cluster, kubernetes)).collect();
        let site = Site::standing(record, screen);
        Ok(Self {
            plan,
            planes,
            authorities: Vec::new(),
            kubernetes: kubernetes.clone(),
            podspan: None,
            before: BTreeMap::new(),
            site,
        })
    }

    fn build(&mut self) -> Result<()> {
        self.mount_disks()?;
        self.wire()?;
        self.start_planes()?;
        let archives = images::write_all(&self.kubernetes, self.podspan.as_ref())?;
        self.screen().line(&format!("{} images are written", archives.len()));
        let nodes = self.nodes();
        for (index, node) in &nodes {
            let (cluster, plane) = (&self.plan.clusters[*index], &self.planes[*index]);
            node::install(cluster, node, &plane.server(), &self.authorities[*index])?;
            node::start(node, &self.kubernetes, &mut self.site)?;
        }
        self.import(&archives)?;
        self.screen().line("the images are on every node");
        for index in 0..self.planes.len() {
            self.settle(index)?;
            let coredns = settings::coredns(&self.plan.clusters[index]);
            self.apply(self.plan.clusters[index].name, &coredns)?;
        }
        self.screen().line("every node has its pod CIDRs and its CNI configuration");
        for index in 0..self.planes.len() {
            self.wait_until_ready(index)?;
        }
        Ok(())
    }

    /// podspan's programs.
    pub(crate) fn programs(&self) -> Result<&Programs> {
        self.podspan.as_ref().context("podspan was not built for this run")
    }

    /// Deploys probes, looks at everything, and joins the clusters.
    pub(crate) fn start_podspan(&mut self) -> Result<()> {
        self.deploy_probes()?;
        for cluster in self.plan.clusters.clone() {
            let seen = self.look(cluster.name)?;
            self.before.insert(cluster.name.to_owned(), seen);
        }
        let time = self.join(self.programs()?)?;
        self.screen()
            .line(&format!("the clusters are joined, {:.1} s from the first command on", time.as_secs_f64()));
        Ok(())
    }

    fn screen(&self) -> Screen {
        self.site.screen
    }

    /// All nodes with the index of their cluster.
    fn nodes(&self) -> Vec<(usize, NodePlan)> {
        let clusters = self.plan.clusters.iter().enumerate();
        clusters
            .flat_map(|(index, cluster)| cluster.nodes.iter().map(move |node| (index, node.clone())))
            .collect()
    }

    fn mount_disks(&mut self) -> Result<()> {
        let disks = node::disks();
        std::fs::create_dir_all(&disks).with_context(|| format!("cannot make {}", disks.display()))?;
        let Some(kube) = &mut self.site.record.kube else { bail!("the record is not one of Kubernetes") };
        kube.mounts.push(disks.clone());
        kube.cgroups = cgroups::roots();
        self.site.record.save()?;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &disks, Some("tmpfs"), flags, Some(DISKS))
            .with_context(|| format!("cannot mount a tmpfs at {}", disks.display()))
    }

    fn wire(&self) -> Result<()> {
        for netns in
            std::iter::once(self.plan.router()).chain(self.nodes().iter().map(|(_, node)| node.netns()))
        {
            world::router_sysctls(&netns)?;
        }
        for (netns, lines) in self.plan.wiring() {
            ip_batch(&netns, &lines)?;
        }
        let underlay = rules::router_between(&self.plan.underlay());
        rules::apply(&[underlay], &self.plan.router(), &xtables_lock())?;
        for (_, node) in self.nodes() {
            world::kubernetes_node_sysctls(&node.netns())?;
        }
        self.screen().line("the underlay stands");
        Ok(())
    }

    fn start_planes(&mut self) -> Result<()> {
        for plane in &self.planes {
            self.authorities.push(plane.certify()?);
            plane.start_etcd(&mut self.site)?;
            plane.start_api(&mut self.site)?;
        }
        for index in 0..self.planes.len() {
            self.planes[index].wait_until_ready(&self.site)?;
            self.start_controllers(index)?;
        }
        let version = super::programs::version()?;
        self.screen().line(&format!("{} API servers of Kubernetes {version} are ready", self.planes.len()));
        Ok(())
    }

    fn start_controllers(&mut self, index: usize) -> Result<()> {
        let (plane, cluster, authority) =
            (&self.planes[index], &self.plan.clusters[index], &self.authorities[index]);
        for program in ["controller-manager", "scheduler"] {
            let user = format!("system:kube-{program}");
            authority.kubeconfig(program, cluster.name, &plane.server(), &user, &[])?;
        }
        let pki = |file: &str| plane.path("pki").join(file).display().to_string();
        let programs = [
            ("kube-controller-manager", settings::controller_manager(cluster, pki)),
            ("kube-scheduler", settings::scheduler(pki)),
        ];
        for (program, flags) in programs {
            let cmd = Cmd::new(self.kubernetes.path(program)).args(flags).within(&plane.netns);
            self.site.start(&format!("{program} {}", cluster.name), &cmd)?;
        }
        Ok(())
    }

    /// Brings images to all nodes, to all of them at a time.
    pub(super) fn import(&self, archives: &[PathBuf]) -> Result<()> {
        let nodes = self.nodes();
        std::thread::scope(|scope| {
            let threads: Vec<_> = nodes
                .iter()
                .map(|(_, node)| scope.spawn(move || node::import(node, &self.site, archives)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("an import panicked"))?)
        })
    }

    /// Does what a CNI's daemon does, on every node of a cluster.
    fn settle(&self, index: usize) -> Result<()> {
        self.plan.clusters[index].nodes.iter().try_for_each(|node| self.settle_node(index, node))
    }

    /// Waits for the pod CIDRs that the controller manager gives to the nodes, then makes a node's routes to the
    /// others, its masquerade rules and its conflist.
    pub(super) fn settle_node(&self, index: usize, node: &NodePlan) -> Result<()> {
        let cluster = &self.plan.clusters[index];
        let known = self.wait_for_pod_cidrs(index)?;
        let cloud = cluster.cloud(&known);
        let description = cloud.nodes.iter().find(|other| other.name == node.name);
        let description = description.with_context(|| format!("{} is not in the plan", node.name))?;
        let netns = node.netns();
        cluster.begin_network(node, &known)?;
        cluster.lead_to_others(node, &known)?;
        rules::apply(&rules::masquerade(&cloud, description, cluster.variant()), &netns, &xtables_lock())?;
        let file = node::disk(node, "cni-conf").join("10-lab.conflist");
        // Written once: a plugin that was chained to it stays so when the node starts anew.
        if !file.exists() {
            let cidrs = known[&node.name].both().map(|cidr| cidr.to_string());
            files::write(&file, &cluster.network.conflist(&cidrs))?;
        }
        Ok(())
    }

    /// The place of a cluster in the plan.
    pub(super) fn index(&self, cluster: &str) -> Result<usize> {
        let index = self.plan.clusters.iter().position(|known| known.name == cluster);
        index.with_context(|| format!("there is no cluster {cluster}"))
    }

    pub(super) fn wait_for_pod_cidrs(&self, index: usize) -> Result<PodCidrs> {
        let cluster = &self.plan.clusters[index];
        let end = Instant::now() + READY;
        loop {
            let known = pod_cidrs(&self.get_json(cluster.name, &["nodes"])?)?;
            let missing: Vec<_> = cluster
                .nodes
                .iter()
                .filter(|node| !known.contains_key(&node.name))
                .map(|node| &node.name)
                .collect();
            if missing.is_empty() {
                return Ok(known);
            }
            if Instant::now() > end {
                bail!("no pod CIDRs for {missing:?} after {} s", READY.as_secs());
            }
            signals::sleep(Duration::from_millis(300))?;
        }
    }

    pub(super) fn wait_until_ready(&self, index: usize) -> Result<()> {
        let cluster = self.plan.clusters[index].name;
        let end = Instant::now() + READY;
        loop {
            let missing = self.not_ready(cluster)?;
            if missing.is_empty() {
                self.screen().line(&format!("{cluster}: all nodes and CoreDNS are ready"));
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{cluster} is not ready after {} s: {}", READY.as_secs(), missing.join("; "));
            }
            signals::sleep(Duration::from_millis(500))?;
        }
    }

    /// What is not ready of a cluster: nodes, CoreDNS.
    pub(crate) fn not_ready(&self, cluster: &str) -> Result<Vec<String>> {
        let plan = self.plan.cluster(cluster)?;
        let nodes = self.get_json(cluster, &["nodes"])?;
        let ready = nodes["items"].as_array().into_iter().flatten().filter(|node| is_true(node, "Ready"));
        let ready: Vec<_> = ready.filter_map(|node| node["metadata"]["name"].as_str()).collect();
        let mut missing: Vec<String> = plan
            .nodes
            .iter()
            .filter(|node| !ready.contains(&node.name.as_str()))
            .map(|node| format!("node {}", node.name))
            .collect();
        let dns = self.get_json(cluster, &["deployments", "coredns", "-n", "kube-system"])?;
        if !is_true(&dns, "Available") {
            missing.push("CoreDNS".to_owned());
        }
        Ok(missing)
    }

    fn plane(&self, cluster: &str) -> Result<&Plane> {
        self.plan.cluster(cluster)?;
        let plane = self.planes.iter().find(|plane| plane.cluster == cluster);
        plane.with_context(|| format!("{cluster} has no control plane"))
    }

    /// A kubectl command for a cluster as its administrator, from outside of both clouds; not run yet.
    pub(crate) fn kubectl_cmd(&self, cluster: &str, args: &[&str]) -> Result<Cmd> {
        Ok(self.plane(cluster)?.kubectl_cmd(args).within(&self.outside()))
    }

    /// Runs kubectl and gives its standard output; a failure is an error.
    pub(crate) fn kubectl(&self, cluster: &str, args: &[&str]) -> Result<String> {
        self.kubectl_cmd(cluster, args)?.text()
    }

    /// `kubectl get ARGS -o json`.
    pub(crate) fn get_json(&self, cluster: &str, args: &[&str]) -> Result<Value> {
        let all: Vec<&str> = ["get"].iter().chain(args).copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.kubectl(cluster, &all)?).context("kubectl's answer")
    }

    /// Applies objects, server-side.
    pub(crate) fn apply(&self, cluster: &str, objects: &str) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.kubectl_cmd(cluster, &args)?.stdin(objects).run_ok()?;
        Ok(())
    }

    /// The administrator's kubeconfig of a cluster.
    pub(crate) fn kubeconfig(&self, cluster: &str) -> Result<PathBuf> {
        Ok(self.plane(cluster)?.kubeconfig())
    }

    /// The namespace of a host outside of both clouds.
    pub(crate) fn outside(&self) -> Netns {
        self.plan.outside_netns()
    }

    /// A node by its name.
    pub(crate) fn node(&self, name: &str) -> Result<NodePlan> {
        let nodes = self.nodes();
        let names: Vec<_> = nodes.iter().map(|(_, node)| node.name.clone()).collect();
        let found = nodes.into_iter().find(|(_, node)| node.name == name);
        Ok(found.with_context(|| format!("there is no node {name:?}; there are: {}", names.join(" ")))?.1)
    }

    /// A command on a node.
    pub(crate) fn on(&self, node: &NodePlan, command: &[&str]) -> Result<Cmd> {
        node::on(node, &self.site, command)
    }

    pub(crate) fn diagnosis(&self) -> String {
        let mut text = self.site.diagnosis();
        for cluster in &self.plan.clusters {
            let pods = self.kubectl(cluster.name, &["get", "pods", "-A", "-o", "wide"]);
            text.push_str(&pods.unwrap_or_else(|error| format!("  {}: {error:#}\n", cluster.name)));
            let args = [
                "-n",
                super::join::PODSPAN,
                "logs",
                "-l",
                "app.kubernetes.io/name=podspan",
                "--tail=8",
                "--prefix",
            ];
            text.push_str(&self.kubectl(cluster.name, &args).unwrap_or_default());
        }
        for (_, node) in self.nodes() {
            for program in ["containerd", "kubelet", "kube-proxy"] {
                let name = format!("{program} {}", node.name);
                text.push_str(&format!("  {name}; its log ends:\n"));
                for line in Site::log_tail(&name, 4).lines() {
                    text.push_str(&format!("    {}\n", line.chars().take(400).collect::<String>()));
                }
            }
        }
        text
    }

    pub(crate) fn stay(mut self) -> Result<()> {
        self.site.stay()
    }

    pub(crate) fn down(mut self) -> Result<Leftovers> {
        self.site.take_down()
    }
}

/// Plugs a node into its cluster's network.
pub(super) fn wire_node(cluster: &ClusterPlan, node: &NodePlan) -> Result<()> {
    world::router_sysctls(&node.netns())?;
    for (netns, lines) in cluster.plug(&node.name, &node.netns(), node.address) {
        ip_batch(&netns, &lines)?;
    }
    world::kubernetes_node_sysctls(&node.netns())
}

fn plane(cluster: &ClusterPlan, kubernetes: &KubePrograms) -> Plane {
    Plane::new(cluster.name, &cluster.plane_netns(), cluster.plane, cluster.services, kubernetes)
}

fn xtables_lock() -> PathBuf {
    state::path("xtables.lock")
}

/// Whether an object's condition of that type is true.
pub(crate) fn is_true(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|found| found["type"] == condition && found["status"] == "True")
}

/// The pod CIDRs of those nodes of a list that have both.
fn pod_cidrs(nodes: &Value) -> Result<PodCidrs> {
    let mut known = PodCidrs::new();
    for node in nodes["items"].as_array().into_iter().flatten() {
        let name = node["metadata"]["name"].as_str().context("a node without a name")?;
        let cidrs = node["spec"]["podCIDRs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let cidrs: Vec<Cidr> = cidrs.map(str::parse).collect::<Result<_, _>>()?;
        let of = |v6: bool| cidrs.iter().copied().find(|cidr| cidr.is_ipv6() == v6);
        if let (Some(v4), Some(v6)) = (of(false), of(true)) {
            known.insert(name.to_owned(), Dual { v4, v6 });
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_nodes_with_both_families_are_settled() {
        let nodes = json!({"items": [
            {"metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.1.0.0/24", "fd00:10:1::/64"]}},
            {"metadata": {"name": "b"}, "spec": {}},
        ]});
        let known = pod_cidrs(&nodes).unwrap();
        assert_eq!(known.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(known["a"].v6.to_string(), "fd00:10:1::/64");
    }

    #[test]
    fn conditions_are_read() {
        let node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(is_true(&node, "Ready"));
        assert!(!is_true(&node, "Available") && !is_true(&json!({}), "Ready"));
    }
}
