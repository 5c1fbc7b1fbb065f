//! A node: its disk, its settings, its process, and looking into it from outside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::node_process::{NodeProcess, NodeProgram};
use super::pki::Authority;
use super::plan::{ClusterPlan, NodePlan};
use super::programs::KubePrograms;
use super::site::Site;
use super::{cgroups, files, settings};
use crate::command::Cmd;
use crate::process::ProcessId;
use crate::signals;
use crate::state;

/// Where all nodes' disks are: a tmpfs of the lab's own, since etcd syncs much and overlays cannot be stacked.
pub(crate) fn disks() -> PathBuf {
    state::path("disk")
}

/// Directories of a node that are its own and stay when it is started anew.
const KEPT: [(&str, &str); 8] = [
    ("kubernetes", "/etc/kubernetes"),
    ("cni-conf", "/etc/cni/net.d"),
    ("cni-bin", "/opt/cni/bin"),
    ("cni-state", "/var/lib/cni"),
    ("containerd", "/var/lib/containerd"),
    ("kubelet", "/var/lib/kubelet"),
    ("pod-logs", "/var/log/pods"),
    ("container-logs", "/var/log/containers"),
];

/// The CNI plugins of Debian that a node gets.
const PLUGINS: [&str; 5] = ["bridge", "host-local", "loopback", "portmap", "ptp"];
const PLUGIN_DIRECTORY: &str = "/usr/lib/cni";

/// The name of a node among the daemons.
pub(crate) fn daemon_name(node: &NodePlan) -> String {
    format!("node {}", node.name)
}

/// A directory of a node's disk: one of the first column of [`KEPT`], or a file below.
pub(crate) fn disk(node: &NodePlan, below: impl AsRef<Path>) -> PathBuf {
    disks().join(&node.name).join(below)
}

/// Makes the disk: settings, certificates, CNI plugins, no CNI configuration yet.
pub(crate) fn install(
    cluster: &ClusterPlan,
    node: &NodePlan,
    server: &str,
    authority: &Authority,
) -> Result<()> {
    for (directory, _) in KEPT {
        let path = disk(node, directory);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    for plugin in PLUGINS {
        let to = disk(node, "cni-bin").join(plugin);
        std::fs::copy(Path::new(PLUGIN_DIRECTORY).join(plugin), &to)
            .with_context(|| format!("cannot copy the CNI plugin {plugin}"))?;
    }
    let at = |file: &str| disk(node, "kubernetes").join(file);
    files::write(&at("containerd.toml"), &settings::containerd())?;
    files::write(&at("kubelet.json"), &settings::kubelet(cluster, &cgroups::of_node(&node.name)))?;
    files::write(&at("kube-proxy.json"), &settings::kube_proxy(cluster, node))?;
    files::write(&at("resolv.conf"), "# The lab knows no names but the cluster's own.\n")?;
    std::fs::copy(authority.path("ca.crt"), at("ca.crt")).context("the CA's certificate")?;
    let users = [
        ("kubelet", format!("system:node:{}", node.name), &["system:nodes"][..]),
        ("kube-proxy", "system:kube-proxy".to_owned(), &[]),
    ];
    for (program, user, groups) in users {
        let file = format!("{program}-{}", node.name);
        let config = authority.kubeconfig(&file, cluster.name, server, &user, groups)?;
        std::fs::copy(config, at(&format!("{program}.kubeconfig"))).context("a kubeconfig")?;
    }
    Ok(())
}

/// Starts the node: containerd, kubelet, kube-proxy. Its namespace must stand.
pub(crate) fn start(node: &NodePlan, kubernetes: &KubePrograms, site: &mut Site) -> Result<()> {
    cgroups::make(&node.name)?;
    let own = |name: &str| -> Result<PathBuf> {
        let path = disk(node, name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    };
    let programs = [
        ("containerd", vec!["containerd".into(), "--config=/etc/kubernetes/containerd.toml".into()]),
        ("kubelet", settings::kubelet_command(node)),
        (
            "kube-proxy",
            vec![
                format!("{}/kube-proxy", settings::BIN),
                "--config=/etc/kubernetes/kube-proxy.json".to_owned(),
            ],
        ),
    ];
    let program = |(name, command): (&str, Vec<String>)| -> Result<NodeProgram> {
        Ok(NodeProgram {
            name: name.to_owned(),
            command,
            log: crate::world::log_path(&format!("{name} {}", node.name))?,
        })
    };
    let mut binds: Vec<(PathBuf, PathBuf)> =
        KEPT.iter().map(|(directory, at)| (disk(node, directory), PathBuf::from(at))).collect();
    binds.push((kubernetes.directory().to_owned(), settings::BIN.into()));
    let process = NodeProcess {
        name: node.name.clone(),
        root: own("root")?,
        upper: own("upper")?,
        work: own("work")?,
        binds,
        programs: programs.into_iter().map(program).collect::<Result<_>>()?,
    };
    let file = disk(node, "node.json");
    files::write(&file, &serde_json::to_string_pretty(&process)?)?;
    site.start(&daemon_name(node), &Cmd::lab().arg("kube-node").arg(&file).within(&node.netns()))?;
    Ok(())
}

/// Process 1 of a node, by the machine's ids.
fn process_one(node: &NodePlan, site: &Site) -> Result<i32> {
    let outer = site.record.daemon(&daemon_name(node))?;
    let path = format!("/proc/{0}/task/{0}/children", outer.pid);
    let children = std::fs::read_to_string(&path).with_context(|| format!("{} does not run", node.name))?;
    let child = children.split_ascii_whitespace().next().and_then(|pid| pid.parse().ok());
    child.with_context(|| format!("{} has no process 1", node.name))
}

/// A command on the node: in its network, its files, its processes.
pub(crate) fn on(node: &NodePlan, site: &Site, command: &[&str]) -> Result<Cmd> {
    let pid = process_one(node, site)?;
    Ok(Cmd::new("nsenter")
        .args(["-t", &pid.to_string(), "--mount", "--net", "--pid", "--uts", "--ipc", "--"])
        .args(command))
}

/// Imports images, once containerd answers. The archives' directory must be one that the node sees; they are
/// handed over on standard input instead.
pub(crate) fn import(node: &NodePlan, site: &Site, archives: &[PathBuf]) -> Result<()> {
    wait_for_containerd(node, site)?;
    for archive in archives {
        let bytes = std::fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        on(node, site, &["ctr", "-n", "k8s.io", "images", "import", "-"])?
            .stdin(bytes)
            .timeout(Duration::from_secs(120))
            .run_ok()
            .with_context(|| format!("{} does not take the image {}", node.name, archive.display()))?;
    }
    Ok(())
}

fn wait_for_containerd(node: &NodePlan, site: &Site) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let asked = on(node, site, &["ctr", "version"])
            .and_then(|cmd| cmd.timeout(Duration::from_secs(5)).run_ok().map(drop));
        let Err(error) = asked else { return Ok(()) };
        signals::check()?;
        if Instant::now() > end {
            let log = Site::log_tail(&format!("containerd {}", node.name), 10);
            let outer = Site::log_tail(&daemon_name(node), 10);
            bail!("containerd on {} does not answer: {error:#}\n{outer}\n{log}", node.name);
        }
        signals::sleep(Duration::from_millis(100))?;
    }
}

/// A program of the node by its name, as the machine sees it; to end it, for one.
pub(crate) fn program(node: &NodePlan, site: &Site, name: &str) -> Result<ProcessId> {
    let one = process_one(node, site)?;
    let children = std::fs::read_to_string(format!("/proc/{one}/task/{one}/children"))?;
    for pid in children.split_ascii_whitespace() {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() == name {
            return ProcessId::of(pid.parse()?);
        }
    }
    bail!("no {name} runs on {}", node.name)
}
