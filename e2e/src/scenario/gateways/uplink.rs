//! The default route of a node moves to another interface, with another address: its tunnels go with it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{FROM, Findings, SENDER, TO, traffic, wait_until_calm};
use crate::command::Cmd;
use crate::netns::Netns;
use crate::probe::Traffic;
use crate::screen::Screen;
use crate::signals;
use crate::topology::{Dual, Family};
use crate::world::{self, World};

/// A node that chooses between gateways, and one that is its cluster's only gateway.
const NODES: [&str; 2] = [SENDER, "alpha-1"];

/// The second uplink: its interfaces at the node and at the router, and the addresses there.
const AT_NODE: &str = "eth1";
const AT_ROUTER: &str = "uplink2";
const SUBNET: Dual<&str> = Dual { v4: "10.97.0.0/24", v6: "2001:db8:97::/64" };
const NODE: Dual<&str> = Dual { v4: "10.97.0.2", v6: "2001:db8:97::2" };
const ROUTER: Dual<&str> = Dual { v4: "10.97.0.1", v6: "2001:db8:97::1" };

/// The longest gap that is good.
const GAP: Duration = Duration::from_millis(500);

/// How long what follows is watched.
const WATCH: Duration = Duration::from_millis(1200);

pub(super) fn moved(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    wait_until_calm(world)?;
    let senders = [traffic(world, (FROM, TO), (10, 250), 10)?, traffic(world, (TO, FROM), (10, 250), 10)?];
    wait_until_handshakes_are_over(world)?;
    for node in NODES {
        plug_in(world, node)?;
        let result = there_and_back(world, node, &senders, &mut findings);
        unplug(world, node)?;
        result?;
    }
    senders.iter().try_for_each(Traffic::stop)?;
    findings.require(handshakes(world, SENDER)? > 0, || "the logs tell of no handshake at all".into());
    findings.conclude(NODES.len() * 2 * 5 + 1)
}

fn there_and_back(world: &World, node: &str, senders: &[Traffic], findings: &mut Findings) -> Result<()> {
    let netns = world.node(node)?.netns();
    for (what, via) in [("to the second uplink", Some(ROUTER)), ("back", None)] {
        let what = format!("{node} {what}");
        let handshakes_before = handshakes(world, node)?;
        senders.iter().try_for_each(Traffic::begin)?;
        signals::sleep(Duration::from_millis(300))?;
        for family in Family::BOTH {
            default_route(world, &netns, node, family, via.map(|via| via.of(family)))?;
        }
        signals::sleep(WATCH)?;
        let reports = Traffic::reports(senders)?;
        let shaken = handshakes(world, node)? - handshakes_before;
        let (mut gap, mut lost, mut sent, mut broken, mut stall, mut own) = (0, 0, 0, 0, 0, 0);
        for report in &reports {
            gap = gap.max(report.gap_us());
            stall = stall.max(report.stall_us());
            own = own.max(report.own_stall_us);
            lost += report.lost();
            sent += report.sent();
            broken += report.broken();
        }
        let (gap, own) = (Duration::from_micros(gap), Duration::from_micros(own));
        Screen::new(false).raw(&format!(
            "           {what}: gap {} ms, lost {lost} of {sent}, {broken} connections broken, longest stall {} ms, \
             {shaken} handshakes",
            gap.as_millis(),
            stall / 1000
        ));
        findings.require(gap <= GAP + own && sent > 800, || format!("{what}: a gap of {gap:?}, {sent} sent"));
        findings.expect(&format!("{what}: connections that broke"), 0, broken);
        findings.expect(&format!("{what}: connections"), 40, connections(&reports));
        findings.expect(&format!("{what}: handshakes"), 0, shaken);
        // Not by what the node says of itself: the others must have followed.
        let expected: Vec<_> = match via {
            Some(_) => Family::BOTH.iter().filter_map(|family| NODE.of(*family).parse().ok()).collect(),
            None => world.node(node)?.endpoints.clone(),
        };
        let elsewhere = heard_elsewhere(world, node, &expected)?;
        findings.require(elsewhere.is_empty(), || format!("{what}: heard at {}", elsewhere.join(", ")));
    }
    Ok(())
}

fn connections(reports: &[crate::probe::TrafficReport]) -> usize {
    reports.iter().flat_map(|report| &report.tcp).map(|tcp| tcp.connections).sum()
}

/// Where the nodes of the other cluster send to, of their tunnels with `node` that carry packets, if it is not at
/// one of these addresses.
fn heard_elsewhere(world: &World, node: &str, expected: &[std::net::IpAddr]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for other in world.topology.nodes().filter(|other| other.cluster == "beta") {
        let status = world.agent_status(other)?;
        let nodes = status.clusters.iter().flat_map(|cluster| &cluster.nodes);
        for lane in nodes.filter(|seen| seen.id.node.as_str() == node).flat_map(|seen| &seen.lanes) {
            let is_used = lane.established && lane.rx_packets + lane.tx_packets > 100;
            let Some(endpoint) = lane.endpoint.filter(|_| is_used) else { continue };
            looked_at += 1;
            if !expected.contains(&endpoint.ip().to_canonical()) {
                wrong.push(format!("{endpoint} by {}", other.name));
            }
        }
    }
    if looked_at == 0 {
        wrong.push("no tunnel that carries anything".into());
    }
    Ok(wrong)
}

/// How often this node, and others with it, have tried a handshake since the world was made, as their logs tell; but
/// for those that were due because a session was two minutes old.
fn handshakes(world: &World, node: &str) -> Result<usize> {
    const LINE: &str = "trying a handshake";
    const DUE: &str = "why=\"rekey\"";
    let with_it = format!("peer=alpha/{node} ");
    let mut count = 0;
    for agent in world.topology.nodes() {
        let path = world::log_path(&world::agent_name(&agent.name))?;
        let text = std::fs::read_to_string(path)?;
        let tries = text.lines().filter(|line| line.contains(LINE) && !line.contains(DUE));
        count += tries.filter(|line| agent.name == node || line.contains(&with_it)).count();
    }
    Ok(count)
}

/// Whoever was dead or started anew a moment ago is shaken hands with, also for a packet of a session that is gone.
fn wait_until_handshakes_are_over(world: &World) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(60);
    let begin = Instant::now();
    let count = || -> Result<usize> { NODES.iter().map(|node| handshakes(world, node)).sum() };
    let mut before = count()?;
    loop {
        signals::sleep(Duration::from_secs(3))?;
        let now = count()?;
        if now == before {
            return Ok(());
        }
        if begin.elapsed() > LIMIT {
            bail!("after {} s of traffic there are still handshakes: {before}, then {now}", LIMIT.as_secs());
        }
        before = now;
    }
}

/// A second cable to the router, which takes what comes by it for the underlay's.
fn plug_in(world: &World, node: &str) -> Result<()> {
    let (router, netns) = (world.topology.router(), world.node(node)?.netns());
    Cmd::new("ip")
        .args(["link", "add", AT_ROUTER, "type", "veth", "peer", "name", AT_NODE, "netns", netns.name()])
        .within(&router)
        .run_ok()?;
    for (netns, interface, addresses) in [(&router, AT_ROUTER, ROUTER), (&netns, AT_NODE, NODE)] {
        let lines = [
            format!("link set {interface} up"),
            format!("address add {}/24 dev {interface}", addresses.v4),
            format!("address add {}/64 dev {interface}", addresses.v6),
        ];
        world::ip_batch(netns, &lines)?;
    }
    let rules = format!(
        "add element inet underlay underlay4 {{ {} }}\nadd element inet underlay underlay6 {{ {} }}\n\
         insert rule inet underlay owned iifname \"{AT_ROUTER}\" accept\n",
        SUBNET.v4, SUBNET.v6
    );
    Cmd::new("nft").args(["-f", "-"]).stdin(rules).within(&router).run_ok()?;
    Ok(())
}

/// As before; the default route first. What the router's rules say of an interface that is gone does nothing.
fn unplug(world: &World, node: &str) -> Result<()> {
    let netns = world.node(node)?.netns();
    for family in Family::BOTH {
        default_route(world, &netns, node, family, None)?;
    }
    Cmd::new("ip").args(["link", "del", AT_ROUTER]).within(&world.topology.router()).run_ok()?;
    let rules = format!(
        "delete element inet underlay underlay4 {{ {} }}\ndelete element inet underlay underlay6 {{ {} }}\n",
        SUBNET.v4, SUBNET.v6
    );
    Cmd::new("nft").args(["-f", "-"]).stdin(rules).within(&world.topology.router()).run_ok()?;
    Ok(())
}

/// By the second uplink, or as the topology has it.
fn default_route(world: &World, netns: &Netns, node: &str, family: Family, via: Option<&str>) -> Result<()> {
    let usual = world.node(node)?.default_via.iter().find(|via| Family::of(**via) == family);
    let via = via.map(str::to_owned).or(usual.map(ToString::to_string)).unwrap_or_default();
    Cmd::new("ip")
        .args([family.flag(), "route", "replace", "default", "via", &via])
        .within(netns)
        .run_ok()?;
    Ok(())
}
