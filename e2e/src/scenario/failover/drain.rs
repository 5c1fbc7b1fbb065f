//! A gateway that is drained, restarted and taken back loses nothing, nor does one that is made an ordinary node, nor a
//! cluster whose agents are all followed by new ones.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::field::{self, Field};
use super::{Findings, count};
use crate::command::Cmd;
use crate::scenario::joined::follow;
use crate::screen::Screen;
use crate::signals;
use crate::state;
use crate::topology::Node;
use crate::world::{self, World};

/// How long the flows may take to leave.
const LEFT: Duration = Duration::from_secs(5);

/// How long it may take until everybody has heard that a node is a gateway, or none: it drains first.
const HEARD: Duration = Duration::from_secs(15);

/// Nodes of other clusters.
const CHOOSERS: [&str; 2] = ["beta-2", "gamma-2"];

/// What still goes through a gateway that nothing goes through, packets in half a second.
const NOTHING: u64 = 10;

/// How long an agent may take to answer at its socket.
const ANSWERS: Duration = Duration::from_secs(10);

/// The longest gap: nothing is lost, but a machine may be busy.
const GAP: Duration = Duration::from_millis(300);

pub(super) fn drain(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let field = Field::start(world)?;
    let mut told = Vec::new();
    for _ in 0..count() {
        let victim = field::carrier(world)?;
        field.begin()?;
        signals::sleep(Duration::from_millis(300))?;
        draining(world, victim, true)?;
        let left = restart_when_left(world, victim);
        draining(world, victim, false)?;
        let left = left?;
        world.wait_until_all_tunnels_stand()?;
        // Until it is used again.
        signals::sleep(Duration::from_secs(3))?;
        let seen = field.report()?;
        findings.require(seen.lost == 0 && seen.sent > 1000, || {
            format!("{victim} was drained and started anew: {seen:?}")
        });
        let gap = Duration::from_micros(seen.gap_us);
        findings.require(gap <= GAP + Duration::from_micros(seen.own_stall_us), || {
            format!("{victim} was drained and started anew: a gap of {gap:?}")
        });
        findings.require(seen.pods.broken == 0 && seen.pods.failed == 0 && seen.pods.retried == 0, || {
            format!("{victim} was drained and started anew: {:?}", seen.pods)
        });
        told.push(format!(
            "{victim} left after {} ms, lost {} of {}",
            left.as_millis(),
            seen.lost,
            seen.sent
        ));
    }
    field.stop()?;
    Screen::new(false).raw(&format!("           {}", told.join("; ")));
    findings.conclude(count() * 3)
}

/// A gateway is none any more, by its facts, and then is one again.
pub(super) fn retired(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let field = Field::start(world)?;
    let mut told = Vec::new();
    for _ in 0..count() {
        let victim = field::carrier(world)?;
        field.begin()?;
        let result = as_gateway(world, victim, false).and_then(|took| {
            signals::sleep(Duration::from_secs(1))?;
            Ok(took)
        });
        let back = as_gateway(world, victim, true);
        let (took, _) = (result?, back?);
        world.wait_until_all_tunnels_stand()?;
        signals::sleep(Duration::from_secs(2))?;
        let seen = field.report()?;
        findings.require(seen.lost == 0 && seen.duplicates == 0 && seen.sent > 1000, || {
            format!("{victim} was a gateway no more, and again: {seen:?}")
        });
        findings.require(seen.pods.broken == 0 && seen.pods.failed == 0 && seen.pods.retried == 0, || {
            format!("{victim} was a gateway no more, and again: {:?}", seen.pods)
        });
        told.push(format!("{victim} after {} ms, lost {} of {}", took.as_millis(), seen.lost, seen.sent));
    }
    field.stop()?;
    Screen::new(false).raw(&format!("           {}", told.join("; ")));
    findings.conclude(count() * 2)
}

/// Has the node's facts say whether it is a gateway, and waits until the other clusters' nodes have heard of it.
fn as_gateway(world: &World, node: &str, gateway: bool) -> Result<Duration> {
    let node = Node { gateway, ..world.node(node)?.clone() };
    world::write_facts(&node, "")?;
    let begin = Instant::now();
    for chooser in CHOOSERS {
        loop {
            let status = world.agent_status(world.node(chooser)?)?;
            let mut nodes = status.clusters.iter().flat_map(|cluster| &cluster.nodes);
            if nodes.any(|seen| seen.id.node.as_str() == node.name && seen.gateway == gateway) {
                break;
            }
            if begin.elapsed() > HEARD {
                bail!(
                    "{} s after the facts of {} changed {chooser} has not heard",
                    HEARD.as_secs(),
                    node.name
                );
            }
            signals::sleep(Duration::from_millis(50))?;
        }
    }
    Ok(begin.elapsed())
}

/// One node of alpha after the other, gateways and not, as an update of the DaemonSet does it.
pub(super) fn rolling(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let nodes: Vec<_> = world.cloud("alpha")?.nodes.iter().map(|node| node.name.clone()).collect();
    let field = Field::start(world)?;
    let mut told = Vec::new();
    for round in 1..=count() {
        field.begin()?;
        let begin = Instant::now();
        for node in &nodes {
            follow(world, node)?;
            signals::sleep(Duration::from_millis(300))?;
        }
        let took = begin.elapsed();
        let seen = field.report()?;
        findings.require(seen.lost == 0 && seen.duplicates == 0 && seen.sent > 1000, || {
            format!("round {round} over {}: {seen:?}", nodes.join(", "))
        });
        let clients = [&seen.pods, &seen.service];
        findings.require(clients.iter().all(|c| c.broken == 0 && c.failed == 0 && c.retried == 0), || {
            format!("round {round}: to pods {:?}, to the service {:?}", seen.pods, seen.service)
        });
        findings.require(clients.iter().all(|c| c.connections > 0 && c.requests > 0), || {
            format!("round {round}: nothing was asked: {seen:?}")
        });
        told.push(format!(
            "{} agents in {:.1} s, lost {} of {}, longest gap {} ms",
            nodes.len(),
            took.as_secs_f64(),
            seen.lost,
            seen.sent,
            seen.gap_us / 1000
        ));
    }
    field.stop()?;
    Screen::new(false).raw(&format!("           {}", told.join("; ")));
    world.wait_until_joined()?;
    findings.conclude(count() * 3)
}

/// Waits until nothing goes through it, then starts its agent anew.
fn restart_when_left(world: &mut World, victim: &'static str) -> Result<Duration> {
    let begin = Instant::now();
    let left = loop {
        let now = begin.elapsed();
        if field::shares(world, Duration::from_millis(500))?[victim] <= NOTHING {
            break now;
        }
        if now > LEFT {
            bail!("{} s after {victim} began to drain its flows have not left", LEFT.as_secs());
        }
    };
    world.daemon(&world::agent_name(victim))?.end(Duration::from_secs(10))?;
    signals::sleep(Duration::from_millis(500))?;
    world.start_agent(victim)?;
    // Until it can be told that it is to be used again.
    let begin = Instant::now();
    while world.agent_status(world.node(victim)?).is_err() {
        if begin.elapsed() > ANSWERS {
            bail!("the agent of {victim} does not answer {} s after its start", ANSWERS.as_secs());
        }
        signals::sleep(Duration::from_millis(50))?;
    }
    Ok(left)
}

/// Has the node say that it is about to go, or that it stays.
fn draining(world: &World, node: &str, on: bool) -> Result<()> {
    let socket = state::path(world::node_directory(world.node(node)?)).join("agent.sock");
    Cmd::new(&world.programs()?.cli)
        .args(["gateway", if on { "drain" } else { "undrain" }, "--socket"])
        .arg(socket)
        .run_ok()?;
    Ok(())
}
