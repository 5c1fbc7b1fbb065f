//! Paths that suddenly take less and tell nobody, and more again: what is under way goes on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::INTERFACE;
use podspan_wire::status::LaneStatus;

use super::Findings;
use super::field::{self, BEHIND};
use crate::command::Cmd;
use crate::impair::{self, Fault, Rule};
use crate::probe::{self, Job, Task};
use crate::screen::Screen;
use crate::signals;
use crate::topology::{Family, MTU, Node, POD_PORT};
use crate::world::World;

const FROM: &str = "beta/pod3";
const NODE: &str = "beta-2";

/// Of each family and direction.
const BYTES: u64 = 50_000_000;

/// How long a transfer may stand still.
const STILL: Duration = Duration::from_secs(3);

/// A datagram that its sender must fragment.
const LARGE: usize = 4000;

/// Within which the routes follow what the data plane has found: the agent looks every second, and until then the
/// data plane itself tells senders.
const FOLLOWED: Duration = Duration::from_secs(3);

/// Within which more is used again: podspan tries every minute at least.
const RISE: Duration = Duration::from_secs(75);

pub(super) fn narrow(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    impair::start(world)?;
    let result = [1400, 1280].into_iter().try_for_each(|mtu| fall_and_rise(world, mtu, &mut findings));
    field::clean_up(world)?;
    result?;
    findings.conclude(2 * (4 + 4 + 3))
}

fn fall_and_rise(world: &World, mtu: u32, findings: &mut Findings) -> Result<()> {
    set(world, None)?;
    let netns = world.topology.find(FROM).context("the pod")?;
    let target =
        |family| -> Result<SocketAddr> { Ok(SocketAddr::new(world.pod_address(BEHIND, family)?, POD_PORT)) };
    let mut jobs = Vec::new();
    for family in Family::BOTH {
        for (word, task) in [("up", Task::Upload { bytes: BYTES }), ("down", Task::Download { bytes: BYTES })]
        {
            jobs.push(Job::new(format!("{mtu}, {family}, {word}"), target(family)?, task).timeout(STILL));
        }
    }
    let transfers = probe::start(&netns, jobs);
    signals::sleep(Duration::from_millis(500))?;
    let sent: BTreeMap<_, _> =
        lanes_in_use(world)?.iter().map(|lane| (lane.endpoint, lane.tx_bytes)).collect();
    set(world, Some(mtu))?;
    let mut large = Vec::new();
    for family in Family::BOTH {
        for n in 0..2 {
            let task = Task::Udp { bytes: LARGE };
            large.push(
                Job::new(format!("{mtu}, {family}, datagram {n}"), target(family)?, task).timeout(STILL),
            );
        }
    }
    for outcome in probe::ask(&netns, &large)? {
        findings.expect(&outcome.id, None, outcome.error);
    }
    for outcome in transfers.finish()? {
        let (id, error, bytes) = (outcome.id, outcome.error, outcome.bytes);
        findings.require(error.is_none() && bytes == BYTES, || format!("{id}: {bytes} bytes, {error:?}"));
    }

    // It is named, and what the kernel is told is the truth.
    let status = world.agent_status(world.node(NODE)?)?;
    let lanes = lanes_in_use(world)?;
    // Where hardly anything went, nothing may have been large enough to find out.
    let since =
        |lane: &LaneStatus| lane.tx_bytes.saturating_sub(sent.get(&lane.endpoint).copied().unwrap_or(0));
    let mut busy = lanes.iter().filter(|lane| since(lane) > BYTES / 2).peekable();
    let named = busy.peek().is_some() && busy.all(|lane| lane.path.black_hole.is_some());
    findings.require(named, || format!("{mtu}: no black hole: {lanes:?}"));
    let told = status.problems.iter().any(|problem| problem.contains("black hole found at"));
    findings.require(told, || format!("{mtu}: nobody is told: {:?}", status.problems));
    let least = |overhead: u32| (mtu - overhead).max(1280);
    let begin = Instant::now();
    let follows = |route: Option<u32>| route.is_some_and(|mtu| (least(80)..=least(60)).contains(&mtu));
    let route = loop {
        let route = route_mtu(world)?;
        if follows(route) || begin.elapsed() > FOLLOWED {
            break route;
        }
        signals::sleep(Duration::from_millis(100))?;
    };
    findings.require(follows(route), || {
        format!("{mtu}: the routes have {route:?}, {} s after the transfers", FOLLOWED.as_secs())
    });

    // And wide again.
    set(world, None)?;
    let begin = Instant::now();
    while !lanes_in_use(world)?.iter().all(|lane| lane.path.mtu >= Some(MTU - 80)) {
        if begin.elapsed() > RISE {
            bail!("{} s after the path is wide again: {:?}", RISE.as_secs(), lanes_in_use(world)?);
        }
        probe::ask(&netns, &large)?;
        signals::sleep(Duration::from_millis(300))?;
    }
    Screen::new(false).raw(&format!(
        "           {mtu}: {} MB went on, wide again after {} s",
        4 * BYTES / 1_000_000,
        begin.elapsed().as_secs()
    ));
    Ok(())
}

/// What the sending node's routes to alpha take.
fn route_mtu(world: &World) -> Result<Option<u32>> {
    let status = world.agent_status(world.node(NODE)?)?;
    Ok(status.clusters.iter().find(|cluster| cluster.cluster.as_str() == "alpha").and_then(|c| c.path_mtu))
}

/// The tunnels of the sending node to alpha that have been measured.
fn lanes_in_use(world: &World) -> Result<Vec<LaneStatus>> {
    let status = world.agent_status(world.node(NODE)?)?;
    let alpha = status.clusters.into_iter().filter(|cluster| cluster.cluster.as_str() == "alpha");
    let lanes = alpha.flat_map(|cluster| cluster.nodes).flat_map(|node| node.lanes);
    // Those that nothing went through are none the wiser.
    Ok(lanes.filter(|lane| lane.path.mtu.is_some() && lane.path.probes > 1).collect())
}

/// From now on the underlay between alpha and beta takes this, both ways.
fn set(world: &World, mtu: Option<u32>) -> Result<()> {
    let addresses = |cluster: &str| -> Vec<IpAddr> {
        let nodes = world.topology.clouds.iter().filter(|cloud| cloud.name == cluster).flat_map(|c| &c.nodes);
        nodes.flat_map(Node::addresses).collect()
    };
    let (alpha, beta) = (addresses("alpha"), addresses("beta"));
    let fault = Fault { mtu, ..Fault::default() };
    let rules = match mtu {
        None => Vec::new(),
        Some(_) => {
            vec![Rule::between(&alpha, &beta, fault.clone()), Rule::between(&beta, &alpha, fault)]
        }
    };
    impair::set(&impair::Plan { seed: 5, rules })
}

/// A jumbo underlay is used while it is there.
pub(super) fn jumbo(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let result = wide(world, &mut findings);
    links(world, MTU)?;
    result?;
    wait_for_mtu(world, MTU - 60)?;
    world.wait_until_all_tunnels_stand()?;
    findings.conclude(4)
}

fn wide(world: &World, findings: &mut Findings) -> Result<()> {
    const JUMBO: u32 = 9000;
    links(world, JUMBO)?;
    wait_for_mtu(world, JUMBO - 60)?;
    // From host to host, since the pods' own links take 1500.
    let (from, to) = (world.node(NODE)?, world.node("alpha-1")?);
    for family in Family::BOTH {
        let address = to.pod_cidr.of(family).address().to_string();
        let headers = if family == Family::V4 { 28 } else { 48 };
        let ping = |size: u32| -> Result<bool> {
            let size = (size - headers).to_string();
            let ping = Cmd::new("ping").args([
                family.flag(),
                "-n",
                "-M",
                "do",
                "-c",
                "1",
                "-W",
                "1",
                "-s",
                &size,
                &address,
            ]);
            Ok(ping.within(&from.netns()).run()?.status.success())
        };
        let begin = Instant::now();
        // Over IPv6 a path takes 20 bytes less.
        while !ping(JUMBO - 80)? && begin.elapsed() < RISE {
            ping(200)?;
            signals::sleep(Duration::from_millis(200))?;
        }
        findings.require(begin.elapsed() < RISE, || {
            format!("{family}: {} bytes do not pass: {:?}", JUMBO - 80, lanes_in_use(world))
        });
        findings.expect(&format!("{family}: more than the interface takes"), false, ping(JUMBO)?);
        Screen::new(false).raw(&format!(
            "           {family}: {} bytes after {:?}",
            JUMBO - 80,
            begin.elapsed()
        ));
    }
    Ok(())
}

/// Gives every link of the underlay this MTU.
fn links(world: &World, mtu: u32) -> Result<()> {
    for netns in world.topology.fixed_namespaces() {
        // Not by what /sys/class/net lists, which is of the namespace that mounted it.
        let script = format!(
            "ip -o link show | while IFS=': @' read -r _ name _; do \
             case $name in lo|{INTERFACE}|cni*|veth*) ;; *) ip link set \"$name\" mtu {mtu} || exit 1 ;; esac; done"
        );
        Cmd::new("sh").args(["-c", &script]).within(&netns).run_ok()?;
    }
    Ok(())
}

/// Until the agents have followed.
fn wait_for_mtu(world: &World, mtu: u32) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(70);
    let begin = Instant::now();
    for node in [NODE, "alpha-1"] {
        while world.agent_status(world.node(node)?)?.node.mtu != mtu {
            if begin.elapsed() > LIMIT {
                bail!("{node}: the tunnel's MTU is not {mtu} after {} s", LIMIT.as_secs());
            }
            signals::sleep(Duration::from_millis(200))?;
        }
    }
    Ok(())
}
