//! Agents that follow each other under traffic.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{Scenario, Setting};
use crate::probe::{HttpPlan, TcpPlan, Traffic, TrafficPlan, TrafficReport, UdpPlan};
use crate::process::ProcessId;
use crate::scenario::Findings;
use crate::screen::Screen;
use crate::signals;
use crate::snapshot::Snapshot;
use crate::topology::{Family, POD_PORT, SERVICE_PORT};
use crate::world::{self, World};

/// A gateway and an ordinary node, each with a pod of its own.
const FOLLOWED: [(&str, &str); 2] = [("alpha-1", "alpha/pod1"), ("alpha-3", "alpha/pod5")];

/// How often each agent is followed in a row.
const TIMES: usize = 3;

/// A service that the pods of `alpha-3` serve: its connections are translated on a gateway.
const SERVICE: &str = "alpha/svc-alpha-3";

/// What an heir says once packets go its way.
const CUT: &str = "this agent sends all packets now";

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(240), run };
    vec![
        scenario(
            "takeover",
            "an agent takes over from the running one: nothing is lost, three times in a row",
            takeover,
        ),
        scenario(
            "takeover-killed",
            "one of the two is killed in the middle: the other goes on within a second",
            killed,
        ),
    ]
}

/// Over 1,000 datagrams a second, connections and requests, to, from and between the nodes, to pods and a service.
fn traffic(world: &mut World) -> Result<Vec<Traffic>> {
    let service = world.topology.services().into_iter().find(|service| service.id() == SERVICE);
    let service = service.context("the service")?.address;
    let mut senders = Vec::new();
    for (from, to) in [
        ("beta/pod3", ["alpha/pod1", "alpha/pod5"].as_slice()),
        ("gamma/pod3", &["alpha/pod5"]),
        ("alpha/pod1", &["gamma/pod1"]),
        ("alpha/pod5", &["beta/pod3"]),
    ] {
        let mut plan = TrafficPlan { from: from.into(), ..TrafficPlan::default() };
        for family in Family::BOTH {
            let mut targets = Vec::new();
            for &pod in to {
                targets.push((pod.to_owned(), SocketAddr::new(world.pod_address(pod, family)?, POD_PORT)));
            }
            if from.starts_with("beta") {
                targets.push((SERVICE.to_owned(), SocketAddr::new(service.of(family), SERVICE_PORT)));
            }
            for (to, target) in targets {
                plan.tcp.push(TcpPlan { to: to.clone(), target, connections: 3, interval_ms: 50 });
                plan.http.push(HttpPlan { to: to.clone(), target, interval_ms: 50, timeout_ms: 2000 });
                // Its translation has a connection's state: whom a datagram went to is not known.
                if to != SERVICE {
                    plan.udp.push(UdpPlan { to, target, flows: 4, packets_per_second: 125 });
                }
            }
        }
        let netns = world.topology.find(from).context("the pod")?;
        senders.push(Traffic::start(world, &netns, &plan)?);
    }
    // Until every connection stands.
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let reports = reports(&senders)?;
        if reports.iter().flat_map(|report| &report.tcp).all(|tcp| tcp.connections == 3) {
            break;
        }
        if Instant::now() > end {
            bail!("the connections do not stand: {reports:?}");
        }
        signals::sleep(Duration::from_millis(100))?;
    }
    senders.iter().try_for_each(Traffic::begin)?;
    Ok(senders)
}

fn reports(senders: &[Traffic]) -> Result<Vec<TrafficReport>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = senders.iter().map(|sender| scope.spawn(|| sender.report())).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|report| report.map_err(|_| anyhow::anyhow!("a thread panicked"))?).collect()
    })
}

/// Starts an agent beside that of the node; which one that was, and where the new one's log begins.
fn begin(world: &mut World, node: &str) -> Result<(ProcessId, u64)> {
    let old = world.daemon(&world::agent_name(node))?;
    let log = world::log_path(&world::agent_name(node))?;
    let length = std::fs::metadata(&log).with_context(|| log.display().to_string())?.len();
    world.start_agent(node)?;
    Ok((old, length))
}

/// Waits until the log of the node's agents holds these words after that place.
fn wait_for(node: &str, from: u64, words: &str) -> Result<()> {
    let log = world::log_path(&world::agent_name(node))?;
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let bytes = std::fs::read(&log).with_context(|| log.display().to_string())?;
        let text =
            String::from_utf8_lossy(bytes.get(usize::try_from(from)?..).unwrap_or_default()).into_owned();
        if text.contains(words) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{node}: nothing of {words:?} in its log:\n{text}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the old agent's end; one that does not end is ended.
fn wait_for_end(node: &str, old: ProcessId) -> Result<()> {
    if old.wait(Duration::from_secs(15)).is_err() {
        old.end(Duration::from_secs(1))?;
        bail!("{node}: the agent before does not end");
    }
    Ok(())
}

/// Has a new agent take over from that of the node, until the old one has ended; how long it took to the cut.
pub(in crate::scenario) fn follow(world: &mut World, node: &str) -> Result<Duration> {
    let begun = Instant::now();
    let (old, log) = begin(world, node)?;
    wait_for(node, log, CUT)?;
    let cut = begun.elapsed();
    wait_for_end(node, old)?;
    wait_for(node, log, "the agent before this one has ended; taken over")?;
    Ok(cut)
}

fn takeover(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let before =
        FOLLOWED.map(|(node, _)| -> Result<Snapshot> { Snapshot::of(&world.node(node)?.netns(), &[]) });
    let senders = traffic(world)?;
    let mut times = Vec::new();
    for (node, _) in FOLLOWED {
        for _ in 0..TIMES {
            times.push(follow(world, node)?);
            signals::sleep(Duration::from_millis(300))?;
        }
    }
    let reports = reports(&senders)?;
    senders.iter().try_for_each(Traffic::stop)?;
    let (mut sent, mut gap, mut stall) = (0, 0, 0);
    for (sender, report) in senders.iter().zip(&reports) {
        let name = &sender.name;
        for flow in &report.udp {
            findings.require(
                flow.window.lost == 0 && flow.window.duplicates == 0 && flow.window.sent > 100,
                || format!("{name} -> {}: {:?}", flow.to, flow.window),
            );
        }
        for tcp in &report.tcp {
            findings
                .require(tcp.broken == 0 && tcp.echoed > 100, || format!("{name} -> {}: {tcp:?}", tcp.to));
        }
        for http in &report.http {
            findings.require(http.failed == 0 && http.requests > 20, || {
                format!("{name} -> {}: {http:?}", http.to)
            });
        }
        findings.expect(&format!("{name}: came from somebody else"), &Vec::new(), &report.wrong);
        sent += report.sent();
        gap = gap.max(report.gap_us());
        stall = stall.max(report.stall_us());
    }
    let times: Vec<_> = times.iter().map(|time| format!("{} ms", time.as_millis())).collect();
    Screen::new(false).raw(&format!(
        "           {} takeovers ({} to the cut): of {sent} datagrams none may be lost; longest gap {} ms, longest \
         stall of a connection {} ms",
        times.len(),
        times.join(", "),
        gap / 1000,
        stall / 1000,
    ));
    world.wait_until_joined()?;
    for ((node, _), before) in FOLLOWED.into_iter().zip(before) {
        let other = before?.differences(&Snapshot::of(&world.node(node)?.netns(), &[])?);
        findings.require(other.is_empty(), || format!("{node}: after the takeovers: {}", other.join("; ")));
        let status = world.agent_status(world.node(node)?)?;
        findings.expect(&format!("{node}: problems"), Vec::new(), status.problems);
    }
    findings.conclude(5 * 8 + 2 * 12 + 4 + 4)
}

fn killed(world: &mut World) -> Result<()> {
    // A repeated TCP segment comes at the latest 0.6 s after a gap of a third of a second.
    const LONGEST: u64 = 2_000_000;
    let mut findings = Findings::default();
    for (node, _) in FOLLOWED {
        for kill_heir in [true, false] {
            let what = if kill_heir { "the new agent killed" } else { "the old agent killed" };
            let senders = traffic(world)?;
            let (old, log) = begin(world, node)?;
            wait_for(node, log, CUT)?;
            let new = world.daemon(&world::agent_name(node))?;
            let (victim, other) = if kill_heir { (new, old) } else { (old, new) };
            victim.signal(Signal::SIGKILL)?;
            victim.wait(Duration::from_secs(5))?;
            signals::sleep(Duration::from_secs(3))?;
            let reports = reports(&senders)?;
            senders.iter().try_for_each(Traffic::stop)?;
            findings.require(other.is_alive(), || format!("{node}, {what}: the other has ended too"));
            let gap = reports.iter().map(TrafficReport::gap_us).max().unwrap_or(u64::MAX);
            let broken: u64 = reports.iter().map(TrafficReport::broken).sum();
            Screen::new(false).raw(&format!("           {node}, {what}: longest gap {} ms", gap / 1000));
            findings.require(gap < LONGEST && broken == 0, || {
                format!("{node}, {what}: a gap of {} ms, {broken} connections broken", gap / 1000)
            });
            if kill_heir {
                // The lab knows only the last one that it started: another one follows the old one.
                let (_, log) = begin(world, node)?;
                wait_for(node, log, "the agent before this one has ended; taken over")?;
                wait_for_end(node, other)?;
            }
            world.wait_until_joined()?;
            let status = world.agent_status(world.node(node)?)?;
            findings.expect(&format!("{node}, {what}: problems"), Vec::new(), status.problems);
        }
    }
    findings.conclude(2 * 2 * 3)
}
