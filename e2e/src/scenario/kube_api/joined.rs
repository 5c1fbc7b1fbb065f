//! What the scenarios with podspan share: its manifests in the API server, a cluster set of three clusters, a broker,
//! agents of `alpha` that live by the API server, and one each of `beta` and `gamma` that live by a file.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;
use serde_json::{Value, json};

use crate::agent_socket;
use crate::command::Cmd;
use crate::kube::{KubeApi, KubeHost};
use crate::process::ProcessId;
use crate::signals;
use crate::world;

const BROKER_PORT: u16 = 7443;
/// The hosts of the brokers.
const BROKERS: [&str; 2] = ["broker", "broker-2"];
/// Where the agents tell how they are, each in its own namespace.
const HEALTH: &str = "127.0.0.1:9840";
/// How long an agent may take to end.
const GRACE: Duration = Duration::from_secs(15);

/// podspan's own manifests.
pub(super) const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base");

/// The clusters without an API server, and the number in their CIDRs.
const PEERS: [(&str, u8); 2] = [("beta", 2), ("gamma", 3)];

/// A cluster set, with everything that runs for it.
pub(super) struct Joined {
    name: &'static str,
    /// The time of the brokers' leases, if it is another than what `podspan clusterset create` sets.
    lease: Option<Duration>,
    directory: PathBuf,
    running: Vec<String>,
    processes: std::collections::BTreeMap<String, ProcessId>,
}

/// An agent of `alpha`, and the Node that it is.
#[derive(Clone)]
pub(super) struct Agent {
    pub(super) node: String,
    pub(super) host: KubeHost,
    directory: PathBuf,
    daemon: String,
}

/// Applies the manifests that users apply and waits until their types are there.
pub(super) fn apply_manifests(api: &KubeApi) -> Result<()> {
    api.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", BASE])?;
    for name in ["clustersets.podspan.io", "peerclusters.podspan.io"] {
        let definition = format!("crd/{name}");
        api.kubectl(&["wait", "--for=condition=Established", "--timeout=20s", &definition])?;
    }
    Ok(())
}

/// Waits until `look` is content; fails with what it saw last.
pub(super) fn until(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<Result<(), String>>,
) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        match look()? {
            Ok(()) => return Ok(begin.elapsed()),
            Err(seen) if begin.elapsed() > within => {
                bail!("{what}: not within {} s; last seen: {seen}", within.as_secs())
            }
            Err(_) => signals::sleep(Duration::from_millis(200))?,
        }
    }
}

impl Joined {
    /// Makes the cluster set and starts its broker.
    pub(super) fn start(api: &mut KubeApi, name: &'static str) -> Result<Self> {
        let mut joined = Self::with_brokers(api, name, 1)?;
        joined.start_broker(api, 0)?;
        Ok(joined)
    }

    /// Makes a cluster set of several brokers, none of which runs yet.
    pub(super) fn with_brokers(api: &mut KubeApi, name: &'static str, brokers: usize) -> Result<Self> {
        apply_manifests(api)?;
        let directory = api.directory(name)?;
        let brokers =
            BROKERS.into_iter().take(brokers).map(|name| api.host(name)).collect::<Result<Vec<_>>>()?;
        let set = directory.join("set");
        let cli = api.podspan()?.cli.clone();
        let cli = |args: &[&str]| Cmd::new(&cli).args(args);
        cli(&["clusterset", "create", "--name", "lab", "--dir"])
            .arg(&set)
            .args(
                brokers
                    .iter()
                    .flat_map(|host| ["--broker".into(), format!("{}:{BROKER_PORT}", host.address.v4)]),
            )
            .run_ok()?;
        let alpha = ("alpha", 1, "10.96.0.0/15,fd00:10:96::/112".to_owned());
        let peers = PEERS.map(|(name, number)| (name, number, format!("10.10{number}.0.0/16")));
        for (cluster, number, services) in std::iter::once(alpha).chain(peers) {
            let pods = format!("10.6{number}.0.0/16,fd00:10:6{number}::/48");
            cli(&["cluster", "grant", cluster, "--dir"])
                .arg(&set)
                .args(["--pod-cidr", &pods, "--service-cidr", &services, "--out"])
                .arg(directory.join(format!("{cluster}.bundle")))
                .run_ok()?;
        }
        Ok(Self { name, lease: None, directory, running: Vec::new(), processes: Default::default() })
    }

    /// For brokers that are not started yet: a lease's time, in whole seconds.
    pub(super) fn with_leases_of(mut self, time: Duration) -> Self {
        self.lease = Some(time);
        self
    }

    /// Starts one of the brokers, each with a store of its own, and waits until it answers.
    pub(super) fn start_broker(&mut self, api: &mut KubeApi, number: usize) -> Result<()> {
        let name = BROKERS.get(number).context("there are not so many brokers")?;
        let host = api.host(name)?;
        let settings = self.directory.join(name);
        if !settings.exists() {
            std::fs::create_dir(&settings).context("cannot make the broker's directory")?;
            for entry in std::fs::read_dir(self.directory.join("set/broker"))? {
                let file = entry?;
                std::fs::copy(file.path(), settings.join(file.file_name())).context("the broker's files")?;
            }
            if let Some(lease) = self.lease {
                set_lease(&settings.join("broker.toml"), lease)?;
            }
        }
        let cmd = Cmd::new(&api.podspan()?.broker)
            .arg("--config")
            .arg(settings.join("broker.toml"))
            .within(&host.netns);
        self.run(api, name, &cmd)?;
        let address = (host.address.v4, BROKER_PORT);
        until("the broker", Duration::from_secs(10), || {
            Ok(host.netns.enter(|| Ok(TcpStream::connect(address)?)).map(drop).map_err(|e| format!("{e:#}")))
        })?;
        Ok(())
    }

    /// Ends one of the brokers.
    pub(super) fn end_broker(&mut self, api: &mut KubeApi, number: usize) -> Result<()> {
        let name = BROKERS.get(number).context("there are not so many brokers")?;
        let daemon = format!("{} {name}", self.name);
        self.running.retain(|running| *running != daemon);
        api.end_daemon(&daemon, GRACE)
    }

    fn run(&mut self, api: &mut KubeApi, name: &str, cmd: &Cmd) -> Result<ProcessId> {
        let daemon = format!("{} {name}", self.name);
        if !self.running.contains(&daemon) {
            self.running.push(daemon.clone());
        }
        let process = api.start_daemon(&daemon, cmd)?;
        self.processes.insert(daemon, process);
        Ok(process)
    }

    /// The process of an agent, as it was last started.
    pub(super) fn process(&self, agent: &Agent) -> Result<ProcessId> {
        self.processes
            .get(&agent.daemon)
            .copied()
            .with_context(|| format!("{} was never started", agent.daemon))
    }

    /// What an agent says while it runs.
    pub(super) fn log(&self, agent: &Agent) -> Result<PathBuf> {
        world::log_path(&agent.daemon)
    }

    /// Ends everything that runs, and removes the Nodes.
    pub(super) fn end(mut self, api: &mut KubeApi) -> Result<()> {
        // The broker last: whoever leaves tells it.
        while let Some(daemon) = self.running.pop() {
            api.end_daemon(&daemon, GRACE)?;
        }
        api.kubectl(&["delete", "nodes", "--all", "--wait=false"])?;
        api.kubectl(&["delete", "clustersets,peerclusters", "--all", "--wait=false"])?;
        Ok(())
    }

    /// An agent of `alpha` whose bundle is not there yet, as the service account of the manifests.
    pub(super) fn agent(&mut self, api: &mut KubeApi, node: &str) -> Result<Agent> {
        let directory = self.directory.join(node);
        std::fs::create_dir_all(&directory).context("cannot make the agent's directory")?;
        let kubeconfig = api.kubeconfig_for_service_account("podspan-system", "podspan-agent")?;
        let d = directory.display();
        let config = format!(
            "bundle = \"{d}/bundle\"\nstate-dir = \"{d}/state\"\nsocket = \"{d}/agent.sock\"\nhealth-listen = \"{HEALTH}\"\n\
             on-exit = \"remove\"\n[source]\nkubernetes = true\nnode = \"{node}\"\nkubeconfig = \"{}\"\n[tunnel]\nlanes = 1\n",
            kubeconfig.display()
        );
        std::fs::write(directory.join("agent.toml"), config).context("cannot write the agent's settings")?;
        let host = api.host(node)?;
        Ok(Agent { node: node.to_owned(), host, directory, daemon: format!("{} {node}", self.name) })
    }

    /// Gives an agent its bundle.
    pub(super) fn give_bundle(&self, agent: &Agent) -> Result<()> {
        std::fs::copy(self.directory.join("alpha.bundle"), agent.directory.join("bundle"))
            .context("cannot copy the bundle")?;
        Ok(())
    }

    /// Starts an agent's program.
    pub(super) fn start_agent(&mut self, api: &mut KubeApi, agent: &Agent) -> Result<ProcessId> {
        let cmd = Cmd::new(&api.podspan()?.agent)
            .arg("--config")
            .arg(agent.directory.join("agent.toml"))
            .env("PODSPAN_LOG", "info,podspan_agent=debug,boringtun=off,kube_client=off,kube_runtime=off")
            .within(&agent.host.netns);
        self.run(api, &agent.node, &cmd)
    }

    /// Ends an agent's program; its node leaves.
    pub(super) fn end_agent(&mut self, api: &mut KubeApi, agent: &Agent) -> Result<()> {
        self.running.retain(|daemon| *daemon != agent.daemon);
        api.end_daemon(&agent.daemon, GRACE)
    }

    /// A Node and its agent, with a bundle, running.
    pub(super) fn node(&mut self, api: &mut KubeApi, node: &str, number: u8, gateway: bool) -> Result<Agent> {
        let agent = self.agent(api, node)?;
        self.give_bundle(&agent)?;
        apply_node(api, &agent.host, number)?;
        if gateway {
            label(api, node, "podspan.io/gateway=true")?;
        }
        self.start_agent(api, &agent)?;
        Ok(agent)
    }

    /// Starts the gateway of `beta`, a bare host.
    pub(super) fn start_beta(&mut self, api: &mut KubeApi) -> Result<Agent> {
        self.start_peer(api, "beta")
    }

    /// Starts the gateway of a cluster without an API server.
    pub(super) fn start_peer(&mut self, api: &mut KubeApi, cluster: &str) -> Result<Agent> {
        let (_, number) =
            PEERS.into_iter().find(|(name, _)| *name == cluster).context("there is no such cluster")?;
        let host = api.host(cluster)?;
        let directory = self.directory.join(cluster);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {cluster}'s directory"))?;
        let d = directory.display();
        let config = format!(
            "bundle = \"{}/{cluster}.bundle\"\nstate-dir = \"{d}/state\"\nsocket = \"{d}/agent.sock\"\non-exit = \"remove\"\n\
             source.file = \"node.toml\"\n[tunnel]\nlanes = 1\n",
            self.directory.display()
        );
        std::fs::write(directory.join("agent.toml"), config).context("cannot write a peer's settings")?;
        let facts = format!(
            "name = \"{cluster}-1\"\ngateway = true\nendpoints = [\"{}\"]\n\
             pod-cidrs = [\"10.6{number}.1.0/24\", \"fd00:10:6{number}:1::/64\"]\n",
            host.address.v4
        );
        std::fs::write(directory.join("node.toml"), facts).context("cannot write a peer's facts")?;
        let daemon = format!("{} {cluster}", self.name);
        let agent = Agent { node: cluster.to_owned(), host, directory, daemon };
        self.start_agent(api, &agent)?;
        Ok(agent)
    }
}

/// Sets the time of a broker's leases in its settings.
fn set_lease(settings: &Path, time: Duration) -> Result<()> {
    let text = std::fs::read_to_string(settings).context("the broker's settings")?;
    let lines = text.lines().map(|line| match line.starts_with("lease-seconds = ") {
        true => format!("lease-seconds = {}\n", time.as_secs()),
        false => format!("{line}\n"),
    });
    let changed: String = lines.collect();
    if changed == text {
        bail!("{} has no lease-seconds, or this time already", settings.display());
    }
    std::fs::write(settings, changed).context("cannot write the broker's settings")
}

/// A Node as kubelet and kube-controller-manager would make it.
pub(super) fn apply_node(api: &KubeApi, host: &KubeHost, number: u8) -> Result<()> {
    api.apply(
        &json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": host.name},
            "spec": {"podCIDRs": [format!("10.61.{number}.0/24"), format!("fd00:10:61:{number}::/64")],
                "podCIDR": format!("10.61.{number}.0/24")},
        })
        .to_string(),
    )?;
    let address = host.address.v4.to_string();
    set_addresses(api, &host.name, &json!([{"type": "InternalIP", "address": address}]))
}

/// The addresses in a Node's status.
pub(super) fn set_addresses(api: &KubeApi, node: &str, addresses: &Value) -> Result<()> {
    // The list is merged by type unless it is replaced first.
    let patch = json!([{"op": "add", "path": "/status/addresses", "value": addresses}]).to_string();
    api.kubectl(&["patch", "node", node, "--subresource=status", "--type=json", "-p", &patch])?;
    Ok(())
}

/// Sets or removes (`name-`) a label of a Node.
pub(super) fn label(api: &KubeApi, node: &str, label: &str) -> Result<()> {
    api.kubectl(&["label", "--overwrite", "node", node, label])?;
    Ok(())
}

/// Sets or removes (`name-`) an annotation of a Node.
pub(super) fn annotate(api: &KubeApi, node: &str, annotation: &str) -> Result<()> {
    api.kubectl(&["annotate", "--overwrite", "node", node, annotation])?;
    Ok(())
}

/// The ClusterSet that counts.
pub(super) fn apply_settings(api: &KubeApi, spec: &Value) -> Result<()> {
    api.apply(
        &json!({"apiVersion": "podspan.io/v1alpha1", "kind": "ClusterSet", "metadata": {"name": "podspan"}, "spec": spec})
            .to_string(),
    )?;
    Ok(())
}

/// The Events about an object: their reasons and notes.
pub(super) fn events(api: &KubeApi, kind: &str, name: &str) -> Result<Vec<(String, String)>> {
    let list = api.get_json(&["events.events.k8s.io", "-n", "default"])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items
        .iter()
        .filter(|event| event["regarding"]["kind"] == kind && event["regarding"]["name"] == name)
        .map(|event| (text(&event["reason"]), text(&event["note"])))
        .collect())
}

/// A condition of an object that was read: its status, reason, message and time.
pub(super) fn condition(object: &Value, kind: &str) -> [String; 4] {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    ["status", "reason", "message", "lastTransitionTime"]
        .map(|key| found[key].as_str().unwrap_or_default().to_owned())
}

impl Agent {
    fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// Changes the settings file, for the next start.
    pub(super) fn edit_settings(&self, edit: impl FnOnce(&str) -> String) -> Result<()> {
        let path = self.directory.join("agent.toml");
        let text = std::fs::read_to_string(&path).context("cannot read the agent's settings")?;
        std::fs::write(&path, edit(&text)).context("cannot write the agent's settings")
    }

    /// Whether there is a state directory.
    pub(super) fn state_exists(&self) -> bool {
        self.directory.join("state").exists()
    }

    /// What the agent says of itself.
    pub(super) fn status(&self) -> Result<Status> {
        agent_socket::status(&self.socket()).with_context(|| format!("the agent of {}", self.node))
    }

    /// Why the agent waits, if it does.
    pub(super) fn waits(&self) -> Result<Option<String>> {
        Ok(match agent_socket::ask(&self.socket(), &Request::Status)? {
            Answer::Error { message } => Some(message),
            _ => None,
        })
    }

    /// Whether it answers at all.
    pub(super) fn answers(&self) -> bool {
        Path::new(&self.socket()).exists() && self.waits().is_ok()
    }

    /// The first line of the answer at its health port, and the body.
    pub(super) fn health(&self, path: &str) -> Result<(String, String)> {
        let text = self.host.netns.enter(|| {
            let mut stream = TcpStream::connect(HEALTH).context("the health port")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
    }

    /// Waits until the status is as it should be.
    pub(super) fn until(
        &self,
        what: &str,
        within: Duration,
        content: impl Fn(&Status) -> bool,
    ) -> Result<Duration> {
        until(&format!("{}: {what}", self.node), within, || {
            Ok(match self.status() {
                Ok(status) if content(&status) => Ok(()),
                Ok(status) => {
                    let mut text = String::new();
                    write!(
                        text,
                        "gateway {}, endpoints {:?}, pods {}, services {}, discovery {:?}, problems {:?}",
                        status.node.gateway,
                        status.node.endpoints,
                        status.node.pod_cidrs,
                        status.node.service_cidrs,
                        status.node.discovery,
                        status.problems
                    )?;
                    Err(text)
                }
                Err(error) => Err(format!("{error:#}")),
            })
        })
    }

    /// Sends an echo request to another node's own address in the pod network, through the tunnel.
    pub(super) fn pings(&self, address: &str) -> Result<bool> {
        let run = Cmd::new("ping").args(["-c", "1", "-W", "2", address]).within(&self.host.netns).run()?;
        Ok(run.status.success())
    }
}
