//! podspan in the world: the cluster set, the broker, an agent on every node.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::UnixTime;
use podspan_wire::status::{Reachability, Status};

use super::pods::{self, PodspanPlugin};
use super::{Chain, World, wait_for_free_port, wait_for_tcp};
use crate::agent_socket;
use crate::command::Cmd;
use crate::lying_broker::Lies;
use crate::process::ProcessId;
use crate::signals;
use crate::state;
use crate::topology::{BROKER_PORT, Node};

/// Parallel tunnels of each node: more than one, so that spreading over them is tried.
pub(crate) const LANES: u16 = 2;

/// Whether agents use the kernel's offloads: all of them, or none. The environment decides how the lab begins.
static OFFLOAD: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(std::env::var("PODSPAN_LAB_OFFLOAD").as_deref() != Ok("off")));

/// Whether the settings of agents say so.
pub(crate) fn offload() -> bool {
    OFFLOAD.load(Ordering::Relaxed)
}

/// The same for settings that are written from now on.
pub(crate) fn set_offload(on: bool) {
    OFFLOAD.store(on, Ordering::Relaxed);
}

/// How long the agents have to find each other.
const JOIN: Duration = Duration::from_secs(30);

/// The directory of the cluster set, with the root key.
fn set_directory() -> PathBuf {
    state::path("podspan/set")
}

/// The bundle of a cluster.
pub(crate) fn bundle(cluster: &str) -> PathBuf {
    state::path("podspan").join(format!("{cluster}.bundle"))
}

/// The settings file of a node's agent.
pub(crate) fn agent_config(node: &Node) -> PathBuf {
    state::path(pods::node_directory(node)).join("agent.toml")
}

/// The name of a node's agent among the daemons.
pub(crate) fn agent_name(node: &str) -> String {
    format!("agent {node}")
}

/// The name of the broker among the daemons.
pub(crate) const BROKER: &str = "broker";

impl World {
    /// Makes the cluster set, starts the broker and an agent on every node. The CNI chain that pods are to be
    /// attached through is the answer.
    pub(crate) fn start_podspan(&mut self) -> Result<Chain> {
        self.create_cluster_set()?;
        self.start_broker()?;
        for node in self.topology.nodes().cloned().collect::<Vec<_>>() {
            write_agent_config(&node)?;
            self.start_agent(&node.name)?;
        }
        self.record.podspan = true;
        self.record.save()?;
        let agents = self.topology.nodes().count();
        self.screen.line(&format!("the broker and {agents} agents run"));
        install_plugin(&self.programs()?.plugin)
    }

    fn create_cluster_set(&self) -> Result<()> {
        let programs = self.programs()?;
        state::directory("podspan")?;
        let address = self.topology.broker.address;
        let cli = |args: &[&str]| Cmd::new(&programs.cli).args(args);
        let set = set_directory();
        cli(&["clusterset", "create", "--name", "lab", "--dir"])
            .arg(&set)
            .args(["--broker", &format!("{}:{BROKER_PORT}", address.v4)])
            .args(["--broker", &format!("[{}]:{BROKER_PORT}", address.v6)])
            .run_ok()?;
        for cloud in &self.topology.clouds {
            let list = |cidrs: [podspan_wire::Cidr; 2]| cidrs.map(|cidr| cidr.to_string()).join(",");
            cli(&["cluster", "grant", cloud.name, "--dir"])
                .arg(&set)
                .args(["--pod-cidr", &list(cloud.pod_cidr.both())])
                .args(["--service-cidr", &list(cloud.service_cidr.both())])
                .arg("--out")
                .arg(bundle(cloud.name))
                .run_ok()?;
        }
        Ok(())
    }

    /// Starts the broker and waits until it listens.
    pub(crate) fn start_broker(&mut self) -> Result<()> {
        let config = set_directory().join("broker/broker.toml");
        let host = self.topology.broker.clone();
        let cmd = Cmd::new(&self.programs()?.broker).arg("--config").arg(config).within(&host.netns());
        let address = (host.address.v4, BROKER_PORT).into();
        host.netns().enter(|| wait_for_free_port(address))?;
        let process = self.start_daemon(BROKER, &cmd)?;
        let listens = host.netns().enter(|| wait_for_tcp(address, Duration::from_secs(10)));
        listens.with_context(|| {
            let state = if process.is_alive() { "runs" } else { "has ended" };
            format!("the broker {state} and does not answer; its log ends:\n{}", log_tail(BROKER))
        })
    }

    /// Ends the broker.
    pub(crate) fn stop_broker(&mut self) -> Result<()> {
        self.daemon(BROKER)?.end(Duration::from_secs(10))?;
        Ok(())
    }

    /// Starts a lying broker in the place of the real one, which must not run.
    pub(crate) fn start_lying_broker(&mut self, lies: &Lies) -> Result<ProcessId> {
        let file = state::path("podspan/lies.json");
        std::fs::write(&file, serde_json::to_vec(lies)?).context("cannot write the lies")?;
        let host = self.topology.broker.clone();
        let broker = set_directory().join("broker");
        let cmd = Cmd::lab()
            .args(["lying-broker", "--port", &BROKER_PORT.to_string(), "--certificate"])
            .arg(broker.join("broker.crt"))
            .arg("--private-key")
            .arg(broker.join("broker.key"))
            .arg("--lies")
            .arg(file)
            .within(&host.netns());
        let address = (host.address.v4, BROKER_PORT).into();
        host.netns().enter(|| wait_for_free_port(address))?;
        let process = self.start_daemon("lying broker", &cmd)?;
        host.netns().enter(|| wait_for_tcp(address, Duration::from_secs(10))).context("the lying broker")?;
        Ok(process)
    }

    /// Waits until every agent is connected to the broker.
    pub(crate) fn wait_until_connected(&self) -> Result<()> {
        self.wait_for_broker(true)
    }

    /// Until no agent hears a broker any more.
    pub(crate) fn wait_until_disconnected(&self) -> Result<()> {
        self.wait_for_broker(false)
    }

    fn wait_for_broker(&self, connected: bool) -> Result<()> {
        let end = Instant::now() + JOIN;
        for node in self.topology.nodes() {
            loop {
                let status = self.agent_status(node)?.broker;
                if status.connected.is_some() == connected {
                    break;
                }
                if Instant::now() > end {
                    let what = if connected { "has not come back to" } else { "still hears" };
                    bail!("{} {what} the broker: {status:?}", node.name);
                }
                signals::sleep(Duration::from_millis(if connected { 200 } else { 20 }))?;
            }
        }
        Ok(())
    }

    /// The agent of a node, with a log that tells of each handshake.
    pub(crate) fn agent_command(&self, node: &Node) -> Result<Cmd> {
        Ok(Cmd::new(&self.programs()?.agent)
            .arg("--config")
            .arg(agent_config(node))
            .env("PODSPAN_LOG", "info,podspan_dataplane=debug,boringtun=off")
            .within(&node.netns()))
    }

    /// Starts the agent of a node; does not wait for anything.
    pub(crate) fn start_agent(&mut self, node: &str) -> Result<()> {
        let node = self.node(node)?.clone();
        let cmd = self.agent_command(&node)?;
        self.start_daemon(&agent_name(&node.name), &cmd)?;
        Ok(())
    }

    /// What the agent of a node says of itself.
    pub(crate) fn agent_status(&self, node: &Node) -> Result<Status> {
        agent_socket::status(&pods::socket(node)).with_context(|| {
            format!("the agent of {} (its log ends:\n{})", node.name, log_tail(&agent_name(&node.name)))
        })
    }

    /// Waits until every agent has a tunnel to every gateway of every other cluster.
    pub(crate) fn wait_until_joined(&self) -> Result<()> {
        self.wait_until_all_tunnels_stand()?;
        self.screen.line("every node has tunnels to all gateways of the other clusters");
        Ok(())
    }

    /// The same, for what is done so often that nobody wants to read it each time.
    pub(crate) fn wait_until_all_tunnels_stand(&self) -> Result<()> {
        let end = Instant::now() + JOIN;
        loop {
            let missing = self.missing()?;
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("after {} s still not joined:\n  {}", JOIN.as_secs(), missing.join("\n  "));
            }
            signals::sleep(Duration::from_millis(100))?;
        }
    }

    /// What the agents and the broker say of themselves, for finding out why something failed.
    pub(crate) fn diagnosis(&self) -> String {
        const LINES: usize = 6;
        let mut text = String::new();
        for daemon in self.record.daemons.iter().filter(|daemon| !daemon.name.starts_with("probe")) {
            let state = if daemon.process.is_alive() { "runs" } else { "has ended" };
            text.push_str(&format!("  {} {state}; its log ends:\n", daemon.name));
            let log = log_tail(&daemon.name);
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                text.push_str(&format!("    {line}\n"));
            }
            let node = daemon.name.strip_prefix("agent ").and_then(|name| self.topology.node(name));
            if let Some(status) = node.and_then(|node| self.agent_status(node).ok()) {
                text.push_str(&format!("    problems: {:?}\n", status.problems));
            }
        }
        text
    }

    /// What the agents' logs tell of the seconds around a moment, given in milliseconds since 1970.
    pub(crate) fn logs_around(&self, moment: u64) -> String {
        let second = moment / 1000;
        let (from, to) = (UnixTime(second - 2).to_string(), UnixTime(second + 2).to_string());
        // As far as the seconds: all that follows differs.
        let (from, to) = (from.trim_end_matches('Z'), to.trim_end_matches('Z'));
        let mut text = String::new();
        for daemon in self.record.daemons.iter().filter(|daemon| daemon.name.starts_with("agent ")) {
            let log = super::log_path(&daemon.name).and_then(|path| Ok(std::fs::read_to_string(path)?));
            for line in log.unwrap_or_default().lines().filter(|&line| line >= from && line < to) {
                text.push_str(&format!("    {}: {line}\n", daemon.name));
            }
        }
        text
    }

    fn missing(&self) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for node in self.topology.nodes() {
            let status = match self.agent_status(node) {
                Ok(status) => status,
                Err(error) => {
                    if !self.daemon(&agent_name(&node.name))?.is_alive() {
                        return Err(error.context("an agent has ended"));
                    }
                    missing.push(format!("{error:#}"));
                    continue;
                }
            };
            for cloud in self.topology.clouds.iter().filter(|cloud| cloud.name != node.cluster) {
                let seen = status.clusters.iter().find(|seen| seen.cluster.as_str() == cloud.name);
                let state = seen.map(|seen| seen.state);
                let all_known = seen.is_some_and(|seen| {
                    let is_known =
                        |node: &Node| seen.nodes.iter().any(|seen| seen.id.node.as_str() == node.name);
                    cloud.nodes.iter().all(is_known)
                });
                if state != Some(Reachability::Up) || !all_known {
                    let state = state.map_or("unknown", Reachability::label);
                    missing.push(format!(
                        "{}: {} is {state}; problems: {:?}",
                        node.name, cloud.name, status.problems
                    ));
                }
            }
        }
        Ok(missing)
    }
}

/// The agent's two files.
pub(crate) fn write_agent_config(node: &Node) -> Result<()> {
    write_agent_settings(node, "")?;
    write_facts(node, "")
}

/// The agent's settings, and what a scenario adds to them; in force when it starts the next time.
pub(crate) fn write_agent_settings(node: &Node, more: &str) -> Result<()> {
    let directory = state::directory(pods::node_directory(node))?;
    let text = format!(
        "bundle = {:?}\nstate-dir = {:?}\nsocket = {:?}\nhealth-listen = \"127.0.0.1:9840\"\n\n\
         [source]\nfile = \"node.toml\"\n\n[tunnel]\nlanes = {LANES}\n\n\
         [offload]\ntso = {offload}\nuso = {offload}\ngso = {offload}\ngro = {offload}\n\n{more}",
        bundle(node.cluster),
        directory.join("state"),
        pods::socket(node),
        offload = offload(),
    );
    replace(&directory.join("agent.toml"), &text)
}

/// The facts about the node, and what a scenario adds to them; a running agent takes them over within a second.
pub(crate) fn write_facts(node: &Node, more: &str) -> Result<()> {
    let quoted =
        |texts: Vec<String>| texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ");
    let endpoints = quoted(node.endpoints.iter().map(ToString::to_string).collect());
    let text = format!(
        "name = {:?}\ngateway = {}\nendpoints = [{endpoints}]\npod-cidrs = [{}]\n{more}",
        node.name,
        node.gateway,
        quoted(node.pod_cidr.both().map(|cidr| cidr.to_string()).into()),
    );
    replace(&state::directory(pods::node_directory(node))?.join("node.toml"), &text)
}

/// Writes the file whole: somebody may read it at any time.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Copies the plugin under the name by which conflists know it.
fn install_plugin(plugin: &Path) -> Result<Chain> {
    let directory = state::directory("cni/bin")?;
    std::fs::copy(plugin, directory.join("podspan")).context("cannot install the CNI plugin")?;
    Ok(Chain { podspan: Some(PodspanPlugin { directory }) })
}

/// The end of a daemon's log.
fn log_tail(name: &str) -> String {
    let text = super::log_path(name).and_then(|path| Ok(std::fs::read_to_string(path)?)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
