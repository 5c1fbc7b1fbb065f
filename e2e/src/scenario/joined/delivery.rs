//! A cluster whose network drops packets that have the addresses of other clusters: pods behind its gateways are
//! reached through tunnels inside the cluster.
//!
//! alpha's nodes drop what comes by their network card with the address of another cluster's pod, as a cloud's
//! source/destination check does, or a strict rp_filter that may not be changed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use podspan_wire::status::{Liveness, Reachability};

use super::{Scenario, Setting};
use crate::command::Cmd;
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::screen::Screen;
use crate::signals;
use crate::snapshot::Snapshot;
use crate::topology::{Family, Node, POD_PORT, SERVICE_PORT};
use crate::world::{self, World};

const CLUSTER: &str = "alpha";
const GATEWAYS: [&str; 2] = ["alpha-1", "alpha-2"];
/// A node that is no gateway, a pod there, and the service that the pods there serve.
const NODE: &str = "alpha-3";
const POD: &str = "alpha/pod5";
const SERVICE: &str = "alpha/svc-alpha-3";
/// Pods on nodes that are no gateways: whatever they send to [`POD`] passes a gateway of alpha.
const FROM: [&str; 2] = ["beta/pod3", "gamma/pod3"];

/// The table with which the nodes of alpha drop.
const CHECK: &str = "inet source-check";

/// How soon it is found that the network drops, and that it does so no more.
const FOUND: Duration = Duration::from_secs(10);
const BACK: Duration = Duration::from_secs(25);

/// How long a gateway may be held down that went again and again.
const CALM: Duration = Duration::from_secs(70);

/// How soon senders are told that a node's agent is dead.
const TOLD: Duration = Duration::from_secs(6);

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    vec![Scenario {
        setting,
        name: "delivery",
        about: "a cluster's network drops foreign sources: its pods are reached through tunnels inside it; \"auto\" \
                finds out when they are needed, and when no more",
        timeout: Duration::from_secs(240),
        run: delivery,
    }]
}

fn delivery(world: &mut World) -> Result<()> {
    let before = snapshots(world)?;
    let mut findings = Findings::default();
    let result = all(world, &mut findings);
    check_sources(world, false)?;
    restart_with(world, None)?;
    result?;
    for (name, before) in before {
        let left = before.differences(&Snapshot::of(&world.node(&name)?.netns(), &[])?);
        findings.require(left.is_empty(), || format!("{name}: left behind: {}", left.join("; ")));
    }
    findings.conclude(2 * (4 + 30) + 20)
}

fn snapshots(world: &World) -> Result<BTreeMap<String, Snapshot>> {
    let nodes = nodes(world);
    nodes.into_iter().map(|node| Ok((node.name.clone(), Snapshot::of(&node.netns(), &[])?))).collect()
}

fn nodes(world: &World) -> Vec<Node> {
    world.topology.nodes().filter(|node| node.cluster == CLUSTER).cloned().collect()
}

fn all(world: &mut World, findings: &mut Findings) -> Result<()> {
    check_sources(world, true)?;
    // As it is without: nothing comes through to a pod. Services do: the gateway translates their clients' addresses.
    let pods: Vec<_> =
        jobs(world, Duration::from_secs(1))?.into_iter().filter(|(.., is_pod)| *is_pod).collect();
    for (id, failed) in ask(world, &pods)? {
        findings.require(failed, || format!("natively, with the network dropping: {id} succeeds"));
    }
    let dropped = dropped(world)?;
    findings.require(dropped > 0, || "the network has dropped nothing".to_owned());

    restart_with(world, Some("tunnel"))?;
    for gateway in GATEWAYS {
        let seen = ways(world, gateway)?;
        let expected = [("alpha-1", "tunnel"), ("alpha-2", "tunnel"), (NODE, "tunnel")]
            .into_iter()
            .filter(|(name, _)| *name != gateway)
            .map(|(name, by)| (name.to_owned(), by.to_owned()))
            .collect();
        findings.expect(&format!("{gateway}: the ways to the other nodes"), expected, seen);
    }
    everything_arrives(world, "tunnel", findings)?;
    followed(world, findings)?;
    let told = without_its_agent(world, findings)?;

    check_sources(world, false)?;
    restart_with(world, Some("auto"))?;
    let native = wait_for(world, "native", BACK)?;
    everything_arrives(world, "auto, natively", findings)?;
    check_sources(world, true)?;
    let begun = Instant::now();
    wait_for(world, "tunnel", FOUND)?;
    let tunnel = begun.elapsed();
    findings
        .require(tunnel <= FOUND, || format!("found after {} s that the network drops", tunnel.as_secs()));
    everything_arrives(world, "auto, through tunnels", findings)?;
    remembered(world, findings)?;
    check_sources(world, false)?;
    let back = wait_for(world, "native", BACK)?;
    everything_arrives(world, "auto, natively again", findings)?;
    let seconds = [native, tunnel, back].map(|time| format!("{:.1} s", time.as_secs_f64()));
    Screen::new(false).raw(&format!(
        "           told that the node is unreachable after {:.1} s; auto: native {} after the start; the network drops: tunnel after {}; it does not any more: native \
         after {}",
        told.as_secs_f64(),
        seconds[0],
        seconds[1],
        seconds[2]
    ));
    Ok(())
}

/// Has alpha's nodes drop what comes from outside with the address of another cluster's pod, or not any more.
fn check_sources(world: &World, on: bool) -> Result<()> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for cloud in world.topology.clouds.iter().filter(|cloud| cloud.name != CLUSTER) {
        v4.push(cloud.pod_cidr.v4.to_string());
        v6.push(cloud.pod_cidr.v6.to_string());
    }
    let table = format!(
        "table {CHECK} {{\ncounter dropped {{ }}\nchain check {{ type filter hook prerouting priority -400;\n\
         iifname \"eth0\" ip saddr {{ {} }} counter name dropped drop\n\
         iifname \"eth0\" ip6 saddr {{ {} }} counter name dropped drop\n}}\n}}\n",
        v4.join(", "),
        v6.join(", ")
    );
    for node in nodes(world) {
        let script =
            format!("add table {CHECK}\ndelete table {CHECK}\n{}", if on { table.as_str() } else { "" });
        Cmd::new("nft").args(["-f", "-"]).stdin(script).within(&node.netns()).run_ok()?;
    }
    Ok(())
}

/// How many packets alpha's nodes have dropped.
fn dropped(world: &World) -> Result<u64> {
    let mut sum = 0;
    for node in nodes(world) {
        let text = Cmd::new("nft")
            .args(["-j", "list", "counters", "table"])
            .args(CHECK.split(' '))
            .within(&node.netns())
            .text()?;
        let value: serde_json::Value = serde_json::from_str(&text).context("nft's answer")?;
        let entries = value["nftables"].as_array().into_iter().flatten();
        sum += entries.filter_map(|entry| entry["counter"]["packets"].as_u64()).sum::<u64>();
    }
    Ok(sum)
}

/// Restarts alpha's agents with this delivery, or without a word of it; waits until all tunnels stand.
fn restart_with(world: &mut World, delivery: Option<&str>) -> Result<()> {
    for node in nodes(world) {
        world::write_agent_config(&node)?;
        if let Some(delivery) = delivery {
            let path = world::agent_config(&node);
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            std::fs::write(&path, format!("delivery = \"{delivery}\"\n{text}"))
                .with_context(|| path.display().to_string())?;
        }
        let agent = world.daemon(&world::agent_name(&node.name))?;
        agent.signal(Signal::SIGTERM)?;
        agent.wait(Duration::from_secs(10)).with_context(|| format!("{} does not end", node.name))?;
        world.start_agent(&node.name)?;
    }
    world.wait_until_all_tunnels_stand()?;
    if delivery.is_some() {
        wait_for_tunnels(world)?;
    }
    wait_until_calm(world)
}

/// Waits until no gateway of alpha is held down: a connection to a service does not survive that its flow goes back to
/// one.
fn wait_until_calm(world: &World) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut restless = Vec::new();
        for node in world.topology.nodes().filter(|node| node.cluster != CLUSTER) {
            let status = world.agent_status(node)?;
            for seen in status.clusters.iter().flat_map(|cluster| &cluster.nodes) {
                let name = seen.id.node.as_str();
                if GATEWAYS.contains(&name) && seen.liveness() > Liveness::Unproven {
                    restless.push(format!("{}: {name} is {}", node.name, seen.liveness().label()));
                }
            }
        }
        if restless.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > CALM {
            bail!("{} s after a restart: {}", CALM.as_secs(), restless.join(", "));
        }
        signals::sleep(Duration::from_millis(200))?;
    }
}

/// Waits until all tunnels inside alpha stand.
fn wait_for_tunnels(world: &World) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut missing = Vec::new();
        for node in nodes(world) {
            let status = world.agent_status(&node)?.delivery.context("no delivery in the status")?;
            let expected = if node.gateway { 2 } else { GATEWAYS.len() };
            let up = status.nodes.iter().filter(|node| node.state == Reachability::Up).count();
            if up != expected {
                missing.push(format!("{}: {up} of {expected}", node.name));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(20) {
            bail!("the tunnels inside {CLUSTER} do not stand: {}", missing.join(", "));
        }
        signals::sleep(Duration::from_millis(100))?;
    }
}

/// Other agents take over from those of a gateway and of the ordinary node: the tunnel between them goes on.
fn followed(world: &mut World, findings: &mut Findings) -> Result<()> {
    let netns = world.topology.find(FROM[0]).context("the pod")?;
    let mut jobs = Vec::new();
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address(POD, family)?, POD_PORT);
        for task in [
            Task::TcpStream { millis: 6000, interval_ms: 10 },
            Task::UdpStream { millis: 6000, interval_ms: 10 },
        ] {
            jobs.push(Job::new(format!("{family} {task:?}"), target, task).timeout(Duration::from_secs(10)));
        }
    }
    let streams = probe::start(&netns, jobs);
    signals::sleep(Duration::from_millis(500))?;
    for node in [GATEWAYS[0], GATEWAYS[1], NODE] {
        let before = world.daemon(&world::agent_name(node))?;
        world.start_agent(node)?;
        before
            .wait(Duration::from_secs(10))
            .with_context(|| format!("{node}: the agent before does not end"))?;
    }
    for outcome in streams.finish()? {
        let stream = outcome.stream.clone().unwrap_or_default();
        findings.require(outcome.ok() && stream.lost_in_a_row == 0 && stream.received > 100, || {
            format!("agents that follow each other: {}: {:?}, {stream:?}", outcome.id, outcome.error)
        });
    }
    world.wait_until_all_tunnels_stand()?;
    wait_for_tunnels(world)
}

/// An agent that starts anew knows who needs a tunnel.
fn remembered(world: &mut World, findings: &mut Findings) -> Result<()> {
    let agent = world.daemon(&world::agent_name(GATEWAYS[0]))?;
    agent.signal(Signal::SIGKILL)?;
    agent.wait(Duration::from_secs(5))?;
    world.start_agent(GATEWAYS[0])?;
    let netns = world.node(GATEWAYS[0])?.netns();
    let prefix = world.node(NODE)?.pod_cidr.v4.to_string();
    let table = (world.agent_status(world.node(NODE)?)?.kernel.table + 1).to_string();
    let begun = Instant::now();
    let mut missing = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        let shown = Cmd::new("ip").args(["-4", "route", "show", "table", &table]).within(&netns).run()?;
        missing += u32::from(!shown.stdout_text().contains(&prefix));
        signals::sleep(Duration::from_millis(50))?;
    }
    findings.expect("a gateway's agent starts anew: looks without the route to the other node", 0, missing);
    world.wait_until_all_tunnels_stand()?;
    wait_for_tunnels(world)
}

/// With the agent of the ordinary node dead, whoever sends to its pods is told so. Tells how soon.
fn without_its_agent(world: &mut World, findings: &mut Findings) -> Result<Duration> {
    let agent = world.daemon(&world::agent_name(NODE))?;
    agent.signal(Signal::SIGKILL)?;
    agent.wait(Duration::from_secs(5))?;
    let begun = Instant::now();
    let netns = world.topology.find(FROM[0]).context("the pod")?;
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address(POD, family)?, POD_PORT);
        let told = loop {
            let job = Job::new("told", target, Task::Tcp { bytes: 100 }).timeout(Duration::from_millis(500));
            let error = probe::ask(&netns, &[job])?.remove(0).error.unwrap_or_default();
            if error.contains("No route to host") {
                break true;
            }
            if begun.elapsed() > TOLD {
                bail!("{family}: after {} s not told that {POD} is unreachable: {error}", TOLD.as_secs());
            }
        };
        findings.require(told, || format!("{family}: told that {POD} is unreachable"));
    }
    let told = begun.elapsed();
    world.start_agent(NODE)?;
    world.wait_until_all_tunnels_stand()?;
    wait_for_tunnels(world)?;
    Ok(told)
}

/// How a gateway hands packets to the other nodes.
fn ways(world: &World, gateway: &str) -> Result<BTreeMap<String, String>> {
    let delivery = world.agent_status(world.node(gateway)?)?.delivery.context("no delivery in the status")?;
    Ok(delivery.nodes.into_iter().map(|node| (node.node.to_string(), node.by.unwrap_or_default())).collect())
}

/// Waits until both gateways hand packets to the ordinary node in this way; how long that took.
fn wait_for(world: &World, by: &str, most: Duration) -> Result<Duration> {
    // What is found is in force within a second.
    let table = world.agent_status(world.node(NODE)?)?.kernel.table + 1;
    let begun = Instant::now();
    loop {
        let mut others = Vec::new();
        for gateway in GATEWAYS {
            let seen = ways(world, gateway)?.remove(NODE).unwrap_or_default();
            let netns = world.node(gateway)?.netns();
            let args = ["-4", "route", "show", "table", &table.to_string()];
            let shown = Cmd::new("ip").args(args).within(&netns).run()?.stdout_text();
            let prefix = world.node(NODE)?.pod_cidr.v4.to_string();
            if seen != by || shown.contains(&prefix) != (by == "tunnel") {
                others.push(format!("{gateway}: {seen}"));
            }
        }
        // Found at the start may be before anybody was asked.
        if others.is_empty() && (by != "native" || asked(world)?) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > most {
            bail!("not {by} after {} s: {}\n{}", most.as_secs(), others.join(", "), world.diagnosis());
        }
        signals::sleep(Duration::from_millis(100))?;
    }
}

/// Whether the ordinary node has answered both gateways.
fn asked(world: &World) -> Result<bool> {
    for gateway in GATEWAYS {
        let delivery = world.agent_status(world.node(gateway)?)?.delivery.context("no delivery")?;
        let node = delivery.nodes.iter().find(|node| node.node.as_str() == NODE);
        if !node.is_some_and(|node| node.why.contains("reach it over the cluster's own network")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is asked, from where, and under which address the client is to be seen.
fn jobs(world: &World, timeout: Duration) -> Result<Vec<(&'static str, Job, bool)>> {
    let services = world.topology.services();
    let service = services.iter().find(|service| service.id() == SERVICE).context("the service")?.address;
    let mut jobs = Vec::new();
    for from in FROM {
        for family in Family::BOTH {
            let pod = SocketAddr::new(world.pod_address(POD, family)?, POD_PORT);
            let service = SocketAddr::new(service.of(family), SERVICE_PORT);
            for (target, is_pod, word) in [(pod, true, POD), (service, false, SERVICE)] {
                for task in [Task::Tcp { bytes: 100_000 }, Task::Udp { bytes: 1000 }] {
                    let id = format!("{from} -> {word} {family} {task:?}");
                    jobs.push((from, Job::new(id, target, task).timeout(timeout), is_pod));
                }
            }
        }
    }
    Ok(jobs)
}

/// Asks; for each whether it failed.
fn ask(world: &World, jobs: &[(&'static str, Job, bool)]) -> Result<Vec<(String, bool)>> {
    let mut seen = Vec::new();
    for from in FROM {
        let netns = world.topology.find(from).context("the pod")?;
        let own: Vec<Job> = jobs.iter().filter(|(f, ..)| *f == from).map(|(_, job, _)| job.clone()).collect();
        seen.extend(
            probe::ask(&netns, &own)?.into_iter().map(|outcome| (outcome.id, outcome.error.is_some())),
        );
    }
    Ok(seen)
}

fn everything_arrives(world: &World, when: &str, findings: &mut Findings) -> Result<()> {
    for from in FROM {
        let netns = world.topology.find(from).context("the pod")?;
        let jobs = jobs(world, Duration::from_secs(5))?;
        let own = jobs.iter().filter(|(f, ..)| *f == from);
        let (jobs, pods): (Vec<Job>, Vec<bool>) = own.map(|(_, job, is_pod)| (job.clone(), *is_pod)).unzip();
        for ((outcome, job), is_pod) in probe::ask(&netns, &jobs)?.into_iter().zip(&jobs).zip(pods) {
            findings.expect(&format!("{when}: {}", outcome.id), None, outcome.error.clone());
            if is_pod {
                let family = if job.target.is_ipv6() { Family::V6 } else { Family::V4 };
                let own = world.pod_address(from, family)?;
                findings.expect(&format!("{when}: {}: the client", outcome.id), Some(own), outcome.seen_as);
            }
        }
        for family in Family::BOTH {
            let address = world.pod_address(POD, family)?.to_string();
            let ping = Cmd::new("ping")
                .args([family.flag(), "-n", "-c", "3", "-i", "0.05", "-W", "2", &address])
                .within(&netns);
            let finished = ping.run()?;
            let text = finished.stdout_text();
            findings.require(finished.status.success() && !text.contains("edirect"), || {
                format!("{when}: {}: {text}", ping.line())
            });
        }
    }
    // Large packets in both directions, and what is none of podspan's business.
    let netns = world.topology.find(FROM[0]).context("the pod")?;
    let target = SocketAddr::new(world.pod_address(POD, Family::V4)?, POD_PORT);
    let jobs = [Task::Upload { bytes: 5_000_000 }, Task::Download { bytes: 5_000_000 }]
        .map(|task| Job::new(format!("{task:?}"), target, task).timeout(Duration::from_secs(10)));
    let inside = world.topology.find("alpha/pod1").context("the pod")?;
    let job = Job::new("alpha/pod1 -> alpha/pod5", target, Task::Tcp { bytes: 3000 });
    for outcome in probe::ask(&netns, &jobs)?.into_iter().chain(probe::ask(&inside, &[job])?) {
        findings.expect(&format!("{when}: {}", outcome.id), None, outcome.error);
    }
    Ok(())
}
