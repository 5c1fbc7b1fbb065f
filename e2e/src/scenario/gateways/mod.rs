//! A cluster with five gateways: how flows are spread over them, which of them take part, and what becomes of
//! traffic when ways change for other reasons than a gateway's death.
//!
//! Flows go from a pod of alpha-2 to a pod of beta-6. Neither is a gateway, so each has passed one of beta's.

mod balance;
mod bypass;
mod load;
mod nearest;
mod uplink;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::status::{Liveness, NodeStatus, Status};

use super::failover::{self, Course, Ways, uneven};
use super::{Findings, Scenario, Setting};
use crate::probe::{TcpPlan, Traffic, TrafficPlan, UdpPlan};
use crate::signals;
use crate::state;
use crate::topology::{Family, Node, POD_PORT};
use crate::world::{self, World};

const GATEWAYS: [&str; 5] = ["beta-1", "beta-2", "beta-3", "beta-4", "beta-5"];

/// The node that chooses between them, and its pod.
const SENDER: &str = "alpha-2";
const FROM: &str = "alpha/pod3";

/// The pod behind them.
const TO: &str = "beta/pod11";

const COURSE: Course<'_> = Course { from: FROM, to: TO, last: "beta-6", gateways: &GATEWAYS };

/// How long a change of facts or settings may take until it is in force everywhere.
const CHANGE: Duration = Duration::from_secs(20);

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(240), run };
    let mut all = vec![
        scenario(
            "gateways-balance",
            "1000 flows over 5, 3 and 2 gateways within 15 % of even, and of their weights; of five one dies, and only \
             its flows move, and move back",
            balance::balance,
        ),
        scenario(
            "gateways-nearest",
            "the nearest of five carries all flows; it gets slow, and the next nearest does; all do when asked",
            nearest::nearest,
        ),
        scenario(
            "gateways-bypass",
            "with all five dead nothing leaves in clear, unless the settings say so; back within 1 s of the first",
            bypass::bypass,
        ),
        scenario(
            "gateways-silent",
            "with all five dead whoever asks is told at once, and hears nothing where the settings ask for silence",
            bypass::silent,
        ),
        scenario(
            "gateways-uplink",
            "a node's default route moves to another interface: its sessions follow without a handshake",
            uplink::moved,
        ),
    ];
    if failover::is_soak() {
        all.push(scenario(
            "gateways-load",
            "the same load through one gateway and through two: what each of them does, and nothing is overtaken",
            load::load,
        ));
    }
    all
}

/// What the sending node says of the gateways, in their order.
fn seen(status: &Status) -> Vec<&NodeStatus> {
    let nodes = || status.clusters.iter().flat_map(|cluster| &cluster.nodes);
    GATEWAYS.iter().filter_map(|name| nodes().find(|node| node.id.node.as_str() == *name)).collect()
}

fn sender(world: &World) -> Result<Status> {
    world.agent_status(world.node(SENDER)?)
}

/// Has these be the cluster's gateways, with these weights, and no others: their facts say so from now on. Waits
/// until the sending node has heard of it and has its tunnels.
fn set_gateways(world: &World, wanted: &[(&str, u8)]) -> Result<()> {
    let before = sender(world)?;
    let mut changed = BTreeSet::new();
    for name in GATEWAYS {
        let node = world.node(name)?;
        let weight = wanted.iter().find(|(wanted, _)| *wanted == name).map(|(_, weight)| *weight);
        let file = state::path(world::node_directory(node)).join("node.toml");
        let text = std::fs::read_to_string(&file)?;
        let node = Node { gateway: weight.is_some(), ..node.clone() };
        // What is the default anyway is no change.
        let weight = weight.filter(|weight| *weight != podspan_wire::DEFAULT_GATEWAY_WEIGHT);
        let more = weight.map(|weight| format!("gateway-weight = {weight}\n")).unwrap_or_default();
        world::write_facts(&node, &more)?;
        if std::fs::read_to_string(&file)? != text {
            changed.insert(name);
        }
    }
    let begin = Instant::now();
    loop {
        let status = sender(world)?;
        let missing: Vec<_> = seen(&before)
            .into_iter()
            .zip(seen(&status))
            .filter(|(before, now)| {
                let name = now.id.node.as_str();
                let is_wanted = wanted.iter().any(|(wanted, _)| *wanted == name);
                let stands = !now.lanes.is_empty() && now.lanes.iter().all(|lane| lane.established);
                let is_told = !changed.contains(name) || now.version != before.version;
                !is_told || now.gateway != is_wanted || (is_wanted && !stands)
            })
            .map(|(_, now)| now.id.to_string())
            .collect();
        if missing.is_empty() && seen(&status).len() == GATEWAYS.len() {
            // What is told is in force at every worker a moment later.
            signals::sleep(Duration::from_millis(200))?;
            return Ok(());
        }
        if begin.elapsed() > CHANGE {
            bail!("{} s after their facts changed {SENDER} has not followed {missing:?}", CHANGE.as_secs());
        }
        signals::sleep(Duration::from_millis(50))?;
    }
}

/// All five, of one weight.
fn all_gateways() -> [(&'static str, u8); 5] {
    GATEWAYS.map(|name| (name, podspan_wire::DEFAULT_GATEWAY_WEIGHT))
}

/// Starts the sending node's agent anew with these settings besides its usual ones.
fn restart_with(world: &mut World, more: &str) -> Result<()> {
    world::write_agent_settings(world.node(SENDER)?, more)?;
    world.daemon(&world::agent_name(SENDER))?.end(Duration::from_secs(10))?;
    world.start_agent(SENDER)?;
    world.wait_until_all_tunnels_stand()?;
    wait_until_calm(world)
}

/// Waits until every lane of the sending node to the gateways was answered once, and nobody takes a lane to a gateway for
/// dead any more. (To others nobody sees to it but they; and what an idle lane has lost counts for minutes.)
fn wait_until_calm(world: &World) -> Result<()> {
    const CALM: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    loop {
        let mut troubled = Vec::new();
        for node in world.topology.nodes() {
            let status = world.agent_status(node)?;
            let nodes = status.clusters.iter().flat_map(|cluster| &cluster.nodes);
            for seen in nodes.filter(|seen| seen.gateway) {
                let is_asked = node.name == SENDER;
                for lane in &seen.lanes {
                    let liveness = lane.probes.liveness;
                    if liveness >= Liveness::Suspect || (is_asked && liveness == Liveness::Unproven) {
                        troubled.push(format!("{}: {} is {}", node.name, seen.id, liveness.label()));
                    }
                }
            }
        }
        if troubled.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > CALM {
            bail!("after {} s it is not calm: {}", CALM.as_secs(), troubled.join("; "));
        }
        signals::sleep(Duration::from_millis(200))?;
    }
}

/// Pulls the plugs of these gateways, or puts them back.
fn plugs(world: &World, gateways: &[&str], up: bool) -> Result<()> {
    gateways.iter().try_for_each(|gateway| failover::plug(world, gateway, up))
}

/// Datagrams from a pod to a pod, in both families, and connections; the figures are of each family.
fn traffic(
    world: &mut World,
    (from, to): (&str, &str),
    (flows, rate): (usize, u64),
    connections: usize,
) -> Result<Traffic> {
    let mut plan = TrafficPlan { from: from.into(), ..TrafficPlan::default() };
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
        plan.udp.push(UdpPlan { to: to.into(), target, flows, packets_per_second: rate });
        if connections > 0 {
            plan.tcp.push(TcpPlan { to: to.into(), target, connections, interval_ms: 50 });
        }
    }
    let netns = world.topology.find(from).context("the pod")?;
    Traffic::start(world, &netns, &plan)
}

/// Looks at the flows until they go as they should, or the time is over; gives the last look and how long it took.
fn until(world: &mut World, limit: Duration, good: impl Fn(&Ways) -> bool) -> Result<(Ways, Duration)> {
    let begin = Instant::now();
    loop {
        let ways = Ways::look(world, &COURSE)?;
        if good(&ways) || begin.elapsed() > limit {
            return Ok((ways, begin.elapsed()));
        }
        signals::sleep(Duration::from_millis(200))?;
    }
}

/// Requires of each family that the flows are spread by these weights.
fn require_spread(findings: &mut Findings, what: &str, ways: &Ways, weights: &[(&str, u8)]) {
    let weights: Vec<_> = weights.iter().map(|(name, weight)| (*name, u64::from(*weight))).collect();
    for family in Family::BOTH {
        let counts = ways.counts(family);
        crate::screen::Screen::new(false).raw(&format!("           {what}, {family}: {counts:?}"));
        let wrong = uneven(&counts, &weights);
        findings.require(wrong.is_empty(), || format!("{what}, {family}: {}", wrong.join("; ")));
    }
}
