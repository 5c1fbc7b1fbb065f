//! What happens to clusters in their life: nodes restart, come and go, API servers are away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::Cidr;
use serde_json::json;

use super::clusters::{Clusters, is_true, wire_node};
use super::plan::{NodePlan, ProxyMode};
use super::{images, node};
use crate::command::Cmd;
use crate::signals;
use crate::topology::Dual;
use crate::world::ip_batch;

/// What keeps pods from a node, in the lab.
pub(crate) const TAINT: &str = "lab.example/kept";

impl Clusters {
    /// Ends the API server of a cluster, as a crash would.
    pub(crate) fn stop_api(&mut self, cluster: &str) -> Result<()> {
        let index = self.index(cluster)?;
        self.planes[index].stop_api(&mut self.site)
    }

    /// Starts it again and waits until it is ready.
    pub(crate) fn start_api(&mut self, cluster: &str) -> Result<()> {
        let index = self.index(cluster)?;
        self.planes[index].start_api(&mut self.site)?;
        self.planes[index].wait_until_ready(&self.site)
    }

    /// Keeps a node for pods that tolerate [`TAINT`]: all others go, and no more come.
    pub(crate) fn taint(&self, node: &NodePlan) -> Result<()> {
        let cluster = self.plan.cluster_of(node)?.name;
        let [no_schedule, no_execute] =
            ["NoSchedule", "NoExecute"].map(|effect| format!("{TAINT}=lab:{effect}"));
        self.kubectl(cluster, &["taint", "node", &node.name, &no_schedule, &no_execute])?;
        let dns = ["pods", "-n", "kube-system", "-l", "k8s-app=kube-dns"];
        until("CoreDNS runs on another node", Duration::from_secs(60), || {
            let pods = self.get_json(cluster, &dns)?;
            let mut ready =
                pods["items"].as_array().into_iter().flatten().filter(|pod| is_true(pod, "Ready"));
            Ok(ready.any(|pod| pod["spec"]["nodeName"] != node.name.as_str()))
        })?;
        Ok(())
    }

    /// Kills a program of a node; the node starts it again.
    pub(crate) fn kill_program(&self, node: &NodePlan, name: &str) -> Result<()> {
        let process = node::program(node, &self.site, name)?;
        process.signal(nix::sys::signal::Signal::SIGKILL)?;
        process.wait(Duration::from_secs(10))
    }

    /// Cuts a node's power and starts it again: its namespace with all interfaces, routes and rules is made anew,
    /// its disk is kept.
    pub(crate) fn reboot(&mut self, node: &NodePlan) -> Result<()> {
        let cluster = self.plan.cluster_of(node)?.clone();
        self.site.end(&node::daemon_name(node), None)?;
        self.site.remove_netns(&node.netns())?;
        // The other end of a cable goes with this one; the kernel takes a moment.
        signals::sleep(Duration::from_millis(300))?;
        self.site.add_netns(&node.netns())?;
        wire_node(&cluster, node)?;
        let index = self.index(cluster.name)?;
        self.settle_node(index, node)?;
        node::start(node, &self.kubernetes, &mut self.site)
    }

    /// Adds a node to a cluster and waits until it is ready. Gives how long it took from its start on. Its pod CIDRs
    /// are those of the cluster's range, or others that somebody else has given it, as clouds with several ranges do.
    pub(crate) fn add_node(
        &mut self,
        cluster: &str,
        pod_cidrs: Option<Dual<Cidr>>,
    ) -> Result<(NodePlan, Duration)> {
        let index = self.index(cluster)?;
        let number = u16::try_from(self.plan.clusters[index].nodes.len())? + 1;
        let new = self.plan.clusters[index].node_numbered(number);
        if let Some(cidrs) = pod_cidrs {
            let object = json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": new.name, "labels": {"kubernetes.io/hostname": new.name, "kubernetes.io/os": "linux"}},
                "spec": {"podCIDR": cidrs.v4, "podCIDRs": [cidrs.v4, cidrs.v6]}});
            self.apply(cluster, &object.to_string())?;
        }
        self.site.add_netns(&new.netns())?;
        wire_node(&self.plan.clusters[index], &new)?;
        let Some(authority) = self.authorities.get(index) else {
            bail!("nodes can be added only by the run that has made the clusters");
        };
        node::install(&self.plan.clusters[index], &new, &self.planes[index].server(), authority)?;
        let begin = Instant::now();
        node::start(&new, &self.kubernetes, &mut self.site)?;
        self.plan.clusters[index].nodes.push(new.clone());
        let archives = images::written(self.podspan.is_some());
        node::import(&new, &self.site, &archives)?;
        self.settle_node(index, &new)?;
        self.route_to(index, &new)?;
        self.wait_until_ready(index)?;
        Ok((new, begin.elapsed()))
    }

    /// Takes the node that was added last out of its cluster: drained by force, deleted, switched off.
    pub(crate) fn remove_node(&mut self, node: &NodePlan) -> Result<()> {
        let cluster = self.plan.cluster_of(node)?.name;
        let index = self.index(cluster)?;
        self.site.end(&node::daemon_name(node), None)?;
        self.site.record.daemons.retain(|daemon| daemon.name != node::daemon_name(node));
        self.site.record.save()?;
        self.site.remove_netns(&node.netns())?;
        // The next node of that name is another machine.
        let disk = node::disk(node, "");
        std::fs::remove_dir_all(&disk).with_context(|| format!("cannot remove {}", disk.display()))?;
        let known = self.wait_for_pod_cidrs(index)?;
        self.kubectl(cluster, &["delete", "node", &node.name])?;
        for other in self.plan.clusters[index].nodes.iter().filter(|other| *other != node) {
            let gone = known[&node.name].both().map(|cidr| format!("route del {cidr}"));
            ip_batch(&other.netns(), &gone)?;
        }
        self.plan.clusters[index].nodes.retain(|other| other != node);
        Ok(())
    }

    /// Brings podspan's programs to every node of a cluster as an image of another version; gives its name.
    pub(crate) fn import_next_image(&self, cluster: &str) -> Result<&'static str> {
        let archive = crate::state::directory("kube/images")?.join("podspan-next.tar");
        images::write_podspan(self.programs()?, images::NEXT_IMAGE, &archive)?;
        for node in &self.plan.cluster(cluster)?.nodes {
            node::import(node, &self.site, std::slice::from_ref(&archive))?;
        }
        Ok(images::NEXT_IMAGE)
    }

    /// Routes to a node's pods on the other nodes of its cluster.
    fn route_to(&self, index: usize, new: &NodePlan) -> Result<()> {
        let cluster = &self.plan.clusters[index];
        let known = self.wait_for_pod_cidrs(index)?;
        for other in cluster.nodes.iter().filter(|other| *other != new) {
            cluster.lead_to_others(other, &known)?;
            if cluster.proxy == ProxyMode::Nftables {
                // kindnet's sets of what is not masqueraded.
                let cidrs = known[&new.name];
                let elements = format!(
                    "add element inet kindnet-ipmasq noMasqV4 {{ {} }}\nadd element inet kindnet-ipmasq noMasqV6 {{ {} }}\n",
                    cidrs.v4, cidrs.v6
                );
                Cmd::new("nft").args(["-f", "-"]).stdin(elements).within(&other.netns()).run_ok()?;
            }
        }
        Ok(())
    }
}

/// Waits until something is so, and gives how long it took.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let last = match check() {
            Ok(true) => return Ok(begin.elapsed()),
            Ok(false) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        signals::check()?;
        if begin.elapsed() > limit {
            bail!("not within {} s: {what}{last}", limit.as_secs());
        }
        signals::sleep(Duration::from_millis(100))?;
    }
}
