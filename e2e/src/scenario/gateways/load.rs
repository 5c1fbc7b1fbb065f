//! The same load through one gateway and through two.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{COURSE, FROM, Findings, GATEWAYS, TO, all_gateways, set_gateways};
use crate::bench::cpu;
use crate::probe::{self, Job, Task, Traffic, TrafficPlan, UdpPlan};
use crate::screen::Screen;
use crate::signals;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, World};

/// How long each load lasts.
const TIME: Duration = Duration::from_secs(5);

/// Datagrams a second of each of the plans below, each of which has a thread of its own.
const RATE: u64 = 2000;
const PLANS: usize = 2;
const FLOWS: usize = 16;

/// Connections that send as fast as they can.
const STREAMS: usize = 8;

pub(super) fn load(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let result = all(world, &mut findings);
    set_gateways(world, &all_gateways())?;
    result?;
    findings.conclude(2 * 4 + 3)
}

/// What one load was and did.
#[derive(Debug)]
struct Run {
    /// Of each gateway: its agent's CPU time, seconds, and the inner packets that came to it.
    gateways: Vec<(&'static str, f64, u64)>,
    gbit: f64,
}

fn all(world: &mut World, findings: &mut Findings) -> Result<()> {
    let one = run(world, 1, findings)?;
    let two = run(world, 2, findings)?;
    let busiest = |run: &Run| run.gateways.iter().map(|(_, cpu, _)| *cpu).fold(0.0, f64::max);
    findings.require(busiest(&two) < 0.75 * busiest(&one), || {
        format!("the busier of two has as much to do as one alone: {one:?} {two:?}")
    });
    let packets: u64 = two.gateways.iter().map(|(.., packets)| packets).sum();
    for (name, _, count) in &two.gateways {
        findings.require((35..=65).contains(&(count * 100 / packets.max(1))), || {
            format!("{name} got {count} of {packets} packets")
        });
    }
    Ok(())
}

fn run(world: &mut World, count: usize, findings: &mut Findings) -> Result<Run> {
    let what = if count == 1 { "through one gateway" } else { "through two gateways" };
    set_gateways(world, &all_gateways()[..count])?;
    let mut plan = TrafficPlan { from: FROM.into(), ..TrafficPlan::default() };
    for family in Family::BOTH {
        let target = std::net::SocketAddr::new(world.pod_address(TO, family)?, POD_PORT);
        for _ in 0..PLANS / 2 {
            plan.udp.push(UdpPlan { to: TO.into(), target, flows: FLOWS, packets_per_second: RATE });
        }
    }
    let receiver = world.topology.find(TO).context("the pod")?;
    let traffic = Traffic::start(world, &world.topology.find(FROM).context("the pod")?, &plan)?;
    signals::sleep(Duration::from_millis(500))?;
    probe::arrivals(&receiver)?;
    traffic.begin()?;
    let (before, begin) = (look(world, count)?, Instant::now());
    signals::sleep(TIME)?;
    let (after, time) = (look(world, count)?, begin.elapsed());
    let report = traffic.report()?;
    let arrivals = probe::arrivals(&receiver)?;
    traffic.stop()?;
    let overtaken: u64 = report.udp.iter().map(|flow| flow.window.reordered).sum();
    let on_the_way: u64 = arrivals.flows.iter().map(|flow| flow.window.reordered).sum();
    findings.expect(
        &format!("{what}: overtaken on the way there, and with the way back"),
        (0, 0),
        (on_the_way, overtaken),
    );
    let asked = RATE * PLANS as u64 * TIME.as_secs();
    findings.require(report.sent() > asked * 9 / 10, || format!("{what}: {} of {asked} sent", report.sent()));
    findings.require(report.lost() * 1000 <= report.sent(), || {
        format!("{what}: lost {} of {}", report.lost(), report.sent())
    });
    let gateways = GATEWAYS[..count]
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(name, (before, after))| (*name, after.0 - before.0, after.1 - before.1))
        .collect();
    let run = Run { gateways, gbit: flood(world, findings, what)? };
    let each: Vec<_> = run
        .gateways
        .iter()
        .map(|(name, cpu, packets)| {
            let share = cpu / time.as_secs_f64() * 100.0;
            format!("{name} {:.0} packets/s, {share:.1} % of a core", *packets as f64 / time.as_secs_f64())
        })
        .collect();
    Screen::new(false).raw(&format!(
        "           {what}: {} datagrams/s and their echoes, lost {} of {}, overtaken {overtaken}: {}; as fast as it goes: {:.2} Gbit/s",
        RATE * PLANS as u64,
        report.lost(),
        report.sent(),
        each.join("; "),
        run.gbit
    ));
    Ok(run)
}

/// CPU time, seconds, and inner packets received, of each of the first gateways.
fn look(world: &World, count: usize) -> Result<Vec<(f64, u64)>> {
    let one = |name: &&str| -> Result<(f64, u64)> {
        let status = world.agent_status(world.node(name)?)?;
        let lanes = status.clusters.iter().flat_map(|cluster| &cluster.nodes).flat_map(|node| &node.lanes);
        let packets = lanes.map(|lane| lane.rx_packets).sum();
        Ok((cpu::of_process(world.daemon(&world::agent_name(name))?)?.as_secs_f64(), packets))
    };
    GATEWAYS[..count].iter().map(one).collect()
}

/// Connections that carry as much as they can from the one pod to the other; Gbit/s.
fn flood(world: &World, findings: &mut Findings, what: &str) -> Result<f64> {
    let target = std::net::SocketAddr::new(world.pod_address(FROM, Family::V4)?, POD_PORT);
    let millis = 3000;
    let jobs: Vec<_> =
        (0..STREAMS).map(|n| Job::new(format!("stream {n}"), target, Task::Flood { millis })).collect();
    let outcomes = probe::ask(&world.topology.find(COURSE.to).context("the pod")?, &jobs)?;
    let errors: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.error.clone()).collect();
    findings.require(errors.is_empty(), || format!("{what}: {errors:?}"));
    let bytes: u64 = outcomes.iter().map(|outcome| outcome.bytes).sum();
    Ok(bytes as f64 * 8.0 / (millis as f64 * 1e6))
}
