//! The world made real: namespaces, links, addresses, routes, rules, pods, probe servers; and taken down
//! again, whatever happened.

mod pods;
mod podspan;
mod sysctl;
mod teardown;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::Programs;
use crate::cni_runtime::Runtime;
use crate::command::Cmd;
use crate::netns::{self, Netns};
use crate::process::ProcessId;
use crate::rules::{self, Variant};
use crate::screen::Screen;
use crate::signals;
use crate::snapshot::Snapshot;
use crate::state::{self, Lock, Record, Stage};
use crate::topology::{Cloud, Family, Node, POD_PORT, Pod, Service, Shape, Topology, Wiring};

pub(crate) use crate::state::log_path;
pub(crate) use pods::{Chain, PodspanPlugin, attachment, node_directory};
pub(crate) use podspan::{
    BROKER, LANES, agent_config, agent_name, bundle, offload, set_offload, write_agent_config,
    write_agent_settings, write_facts,
};
pub(crate) use sysctl::{
    kubernetes_node as kubernetes_node_sysctls, plain_host as plain_sysctls, router as router_sysctls,
};
pub(crate) use teardown::{Leftovers, tear_down};

/// A world that this run of the lab has made. Dropping it takes it down, unless it was told to stay.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) topology: Topology,
    pub(crate) record: Record,
    /// podspan's programs, if it runs.
    programs: Option<Programs>,
    screen: Screen,
    lock: Option<Lock>,
    stays: bool,
}

/// Takes the right to make a world, looks at the machine as it is, and puts the record of what is going to be
/// made on disk.
///
/// What a crashed run has left is cleared away first; a world that stands on purpose is an error, and so is a
/// namespace of one of these names that the lab has no record of.
pub(crate) fn begin(
    screen: Screen,
    namespaces: &[Netns],
    record: impl FnOnce(bool) -> Record,
) -> Result<(Lock, Record)> {
    let lock = Lock::take()?;
    match Record::load()? {
        Some(Record { stage: Stage::Up, .. }) => {
            bail!("a lab is up already: look at it with `cargo lab status`, or end it with `cargo lab down`")
        }
        Some(leftover) => {
            screen.line("an earlier run was cut short: clearing away what it left");
            let left = tear_down(&leftover)?;
            if !left.is_empty() {
                bail!("what an earlier run left could not be cleared away: {left}");
            }
            // The directory went, and the lock with it.
            drop(lock);
            return begin(screen, namespaces, record);
        }
        None => {}
    }
    if let Some(foreign) = namespaces.iter().find(|netns| netns.exists()) {
        bail!(
            "there is a network namespace {foreign} that the lab has no record of; if nobody needs it: ip netns del {foreign}"
        );
    }
    let mut record = record(!netns_is_mount()?);
    look_at_machine(&record)?.save(&state::path("before.json"))?;
    record.namespaces = namespaces.iter().map(|netns| netns.name().to_owned()).collect();
    record.save()?;
    Ok((lock, record))
}

/// Everything of the machine that a world of this kind could leave changed.
fn look_at_machine(record: &Record) -> Result<Snapshot> {
    if record.kube.is_some() { Snapshot::of_machine() } else { Snapshot::of_host() }
}

impl World {
    /// Makes the underlay and the clusters' nodes with their own software's rules; no pods yet.
    ///
    /// # Errors
    /// See [`begin`].
    pub(crate) fn create(shape: Shape, variant: Variant, screen: Screen) -> Result<Self> {
        let topology = Topology::of(shape);
        let namespaces: Vec<Netns> =
            topology.fixed_namespaces().into_iter().chain(topology.pods().map(Pod::netns)).collect();
        let (lock, record) =
            begin(screen, &namespaces, |made_mount| Record { shape, ..Record::new(variant, made_mount) })?;
        let mut world = Self { topology, record, programs: None, screen, lock: Some(lock), stays: false };
        for netns in &namespaces {
            netns.create()?;
        }
        world.wire()?;
        world.screen.line(&format!("{} nodes in {} clouds stand", world.nodes(), world.clouds()));
        world.rules()?;
        Ok(world)
    }

    fn nodes(&self) -> usize {
        self.topology.nodes().count()
    }

    fn clouds(&self) -> usize {
        self.topology.clouds.len()
    }

    /// Sysctls first, since interfaces take their defaults when they are made.
    fn wire(&mut self) -> Result<()> {
        for netns in &self.record.namespaces {
            Cmd::new("ip").args(["link", "set", "lo", "up"]).within(&Netns::named(netns)).run_ok()?;
        }
        sysctl::prepare(&self.topology, self.record.variant)?;
        let wiring = Wiring::of(&self.topology);
        for batch in [wiring.links(), wiring.ends()] {
            for (netns, lines) in batch {
                ip_batch(&Netns::named(netns), &lines)?;
            }
        }
        Ok(())
    }

    fn rules(&mut self) -> Result<()> {
        let lock = xtables_lock();
        rules::apply(&[rules::router(&self.topology)], &self.topology.router(), &lock)?;
        for cloud in &self.topology.clouds {
            if let Some(lan) = &cloud.lan {
                rules::apply(&[rules::nat(lan)], &cloud.nat(), &lock)?;
            }
            for node in &cloud.nodes {
                rules::apply(&rules::masquerade(cloud, node, self.record.variant), &node.netns(), &lock)?;
            }
        }
        Ok(())
    }

    /// Attaches every pod through the CNI chain and starts its probe server.
    pub(crate) fn attach_pods(&mut self, chain: &Chain) -> Result<()> {
        for pod in self.topology.pods().cloned().collect::<Vec<_>>() {
            self.attach_pod(&pod, chain)?;
        }
        let count = self.record.pods.len();
        self.screen.line(&format!("{count} pods are attached through the CNI chain: {chain}"));
        Ok(())
    }

    /// Attaches one pod.
    pub(crate) fn attach_pod(&mut self, pod: &Pod, chain: &Chain) -> Result<()> {
        let runtime = self.runtime(self.node(&pod.node)?, chain)?;
        let result = runtime.add(&pods::attachment(pod))?;
        let addresses =
            pods::addresses(&result).with_context(|| format!("the CNI result for {}", pod.id()))?;
        self.record.pods.insert(pod.id(), addresses);
        self.record.save()
    }

    /// The CNI runtime of a node.
    pub(crate) fn runtime(&self, node: &Node, chain: &Chain) -> Result<Runtime> {
        pods::runtime(node, chain)
    }

    /// Everything from here on: podspan, if its programs are given, pods, services, probes.
    pub(crate) fn start_all(&mut self, programs: Option<&Programs>) -> Result<()> {
        self.programs = programs.cloned();
        let chain = match programs {
            Some(_) => self.start_podspan()?,
            None => Chain::bare(),
        };
        self.attach_pods(&chain)?;
        self.start_services()?;
        self.start_probes()?;
        if programs.is_some() {
            self.wait_until_joined()?;
        }
        Ok(())
    }

    /// podspan's programs.
    pub(crate) fn programs(&self) -> Result<&Programs> {
        self.programs.as_ref().context("podspan is not part of this world")
    }

    /// kube-proxy's rules on every node; the pods must be attached.
    pub(crate) fn start_services(&mut self) -> Result<()> {
        let lock = xtables_lock();
        for cloud in &self.topology.clouds {
            let endpoints = |service: &Service, family: Family| -> Vec<IpAddr> {
                let address = |pod: &String| self.record.pods.get(&format!("{}/{pod}", service.cluster));
                service.pods.iter().filter_map(address).map(|dual| dual.of(family)).collect()
            };
            let scripts = rules::kube_proxy(cloud, self.record.variant, &endpoints);
            for node in &cloud.nodes {
                rules::apply(&scripts, &node.netns(), &lock)?;
            }
        }
        let count = self.topology.services().len();
        self.screen.line(&format!(
            "{count} services are translated by kube-proxy's rules ({})",
            self.record.variant
        ));
        Ok(())
    }

    /// A probe server in every pod, on every node and on the host that is the internet.
    pub(crate) fn start_probes(&mut self) -> Result<()> {
        let pods = self.topology.pods().map(|pod| (pod.id(), pod.netns()));
        let nodes = self.topology.nodes().map(|node| (node.name.clone(), node.netns()));
        let internet = &self.topology.internet;
        let places: Vec<_> = pods.chain(nodes).chain([(internet.name.into(), internet.netns())]).collect();
        for (place, netns) in &places {
            // Hosts have no name: a node's address may be asked for under any.
            let name = if place.contains('/') { place.as_str() } else { "" };
            let port = POD_PORT.to_string();
            let cmd = Cmd::lab().args(["probe-server", "--port", &port, "--name", name]).within(netns);
            self.start_daemon(&format!("probe server {place}"), &cmd)?;
        }
        for (place, netns) in &places {
            netns
                .enter(|| wait_for_tcp(([127, 0, 0, 1], POD_PORT).into(), Duration::from_secs(10)))
                .with_context(|| format!("the probe server in {place} does not answer"))?;
        }
        Ok(())
    }

    /// Starts a process that lives on until it is ended; its output goes to a file named after it.
    pub(crate) fn start_daemon(&mut self, name: &str, cmd: &Cmd) -> Result<ProcessId> {
        self.record.start_daemon(name, cmd)
    }

    /// The process of that name, as it was last started.
    pub(crate) fn daemon(&self, name: &str) -> Result<ProcessId> {
        self.record.daemon(name)
    }

    /// The address of a pod.
    pub(crate) fn pod_address(&self, id: &str, family: Family) -> Result<IpAddr> {
        let pod = self.record.pods.get(id).with_context(|| format!("there is no pod {id}"))?;
        Ok(pod.of(family))
    }

    /// The cloud of that name.
    pub(crate) fn cloud(&self, name: &str) -> Result<&Cloud> {
        self.topology.cloud(name).with_context(|| format!("there is no cloud {name}"))
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.topology.node(name).with_context(|| format!("there is no node {name}"))
    }

    /// Lets the world stand when this run ends.
    pub(crate) fn stay(mut self) -> Result<()> {
        self.record.stage = Stage::Up;
        self.record.save()?;
        self.stays = true;
        Ok(())
    }

    /// Takes the world down and tells what is left of it, which should be nothing.
    pub(crate) fn down(mut self) -> Result<Leftovers> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<Leftovers> {
        self.stays = true;
        let left = signals::uninterrupted(|| tear_down(&self.record));
        self.lock = None;
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        match self.take_down() {
            Ok(left) if left.is_empty() => {}
            Ok(left) => eprintln!("lab: left behind: {left}"),
            Err(error) => eprintln!("lab: cleaning up failed, `cargo lab down` tries again: {error:#}"),
        }
    }
}

fn xtables_lock() -> PathBuf {
    state::path("xtables.lock")
}

pub(crate) fn ip_batch(netns: &Netns, lines: &[String]) -> Result<()> {
    Cmd::new("ip").args(["-batch", "-"]).within(netns).stdin(lines.join("\n") + "\n").run_ok()?;
    Ok(())
}

/// Whether `ip netns` has been here before: it makes its directory a mount point of its own.
fn netns_is_mount() -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == Path::new(netns::DIRECTORY))))
}

/// Waits until something accepts TCP connections at `address`, in the namespace of the calling thread.
pub(crate) fn wait_for_tcp(address: SocketAddr, timeout: Duration) -> Result<()> {
    let end = std::time::Instant::now() + timeout;
    loop {
        match std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            Ok(_) => return Ok(()),
            Err(error) if std::time::Instant::now() > end => {
                return Err(error).with_context(|| format!("nothing answers at {address}"));
            }
            Err(_) => signals::sleep(Duration::from_millis(10))?,
        }
    }
}

/// Until nothing listens there any more: a process that was ended is gone a moment before its sockets are.
pub(crate) fn wait_for_free_port(address: SocketAddr) -> Result<()> {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok() {
        if std::time::Instant::now() > end {
            bail!("something still listens at {address}");
        }
        signals::sleep(Duration::from_millis(10))?;
    }
    Ok(())
}

/// How many packets the router has dropped because the underlay does not own their addresses, by the
/// interface by which they came.
pub(crate) fn leaks(topology: &Topology) -> Result<BTreeMap<String, u64>> {
    let text = Cmd::new("nft")
        .args(["-j", "list", "counters", "table", "inet", "underlay"])
        .within(&topology.router())
        .text()?;
    let value: serde_json::Value = serde_json::from_str(&text).context("nft's answer")?;
    let mut leaks = BTreeMap::new();
    for (interface, _) in topology.underlay() {
        let name = rules::leak_counter(interface);
        let counters = value["nftables"].as_array().into_iter().flatten();
        let packets = counters
            .map(|entry| &entry["counter"])
            .find(|counter| counter["name"] == name.as_str())
            .and_then(|counter| counter["packets"].as_u64())
            .with_context(|| format!("the router has no counter {name}"))?;
        leaks.insert(interface.to_owned(), packets);
    }
    Ok(leaks)
}
