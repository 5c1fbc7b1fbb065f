//! Agents and brokers that are killed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{Scenario, Setting};
use crate::probe::{self, Job, Outcome, Task};
use crate::scenario::Findings;
use crate::signals;
use crate::snapshot::Snapshot;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, BROKER, World};

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(180), run };
    vec![
        scenario(
            "agent-killed",
            "an agent killed is back within 2 s of its start, with nothing twice",
            agent_killed,
        ),
        scenario("broker-killed", "with the broker gone for a minute all traffic goes on", broker_killed),
    ]
}

/// Two streams between two pods in both families.
fn streams(world: &World, from: &str, to: &str, time: Duration) -> Result<Vec<Job>> {
    let millis = u64::try_from(time.as_millis())?;
    let mut jobs = Vec::new();
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
        let id = |kind: &str| format!("{from} -> {to} {family} {kind}");
        let jobs_of_family = [
            Job::new(id("TCP"), target, Task::TcpStream { millis, interval_ms: 10 }),
            Job::new(id("UDP"), target, Task::UdpStream { millis, interval_ms: 10 }),
        ];
        jobs.extend(jobs_of_family.map(|job| job.timeout(Duration::from_secs(10))));
    }
    Ok(jobs)
}

fn check_streams(outcomes: Vec<Outcome>, longest: u64, findings: &mut Findings) {
    for outcome in outcomes {
        findings.expect(&outcome.id, None, outcome.error);
        let stream = outcome.stream.unwrap_or_default();
        findings.require(stream.longest_gap_ms <= longest && stream.duplicated == 0, || {
            format!("{}: no gap over {longest} ms and no duplicate expected, saw {stream:?}", outcome.id)
        });
    }
}

fn agent_killed(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    // An ordinary node, a gateway, the node behind the NAT.
    for (victim, pod, bystanders) in [
        ("alpha-3", "alpha/pod5", ("alpha/pod1", "beta/pod3")),
        ("beta-1", "beta/pod1", ("alpha/pod5", "gamma/pod3")),
        ("gamma-2", "gamma/pod3", ("alpha/pod5", "beta/pod3")),
    ] {
        let node = world.node(victim)?.clone();
        let before = Snapshot::of(&node.netns(), &[])?;
        let time = Duration::from_secs(8);
        let netns = world.topology.find(bystanders.0).context("pod")?;
        let elsewhere = probe::start(&netns, streams(world, bystanders.0, bystanders.1, time)?);
        let far = if victim.starts_with("alpha") { "beta/pod3" } else { "alpha/pod5" };
        let netns = world.topology.find(pod).context("pod")?;
        let own = probe::start(&netns, streams(world, pod, far, time)?);
        signals::sleep(Duration::from_secs(1))?;
        let agent = world.daemon(&world::agent_name(victim))?;
        agent.signal(Signal::SIGKILL)?;
        agent.wait(Duration::from_secs(5))?;
        let begin = Instant::now();
        world.start_agent(victim)?;
        let back = loop {
            let target = SocketAddr::new(world.pod_address(far, Family::V4)?, POD_PORT);
            let job = Job::new("back", target, Task::Udp { bytes: 100 }).timeout(Duration::from_millis(100));
            if probe::ask(&netns, &[job])?.remove(0).ok() || begin.elapsed() > Duration::from_secs(6) {
                break begin.elapsed();
            }
        };
        findings.require(back <= Duration::from_secs(2), || {
            format!(
                "{victim}: traffic was back {:.1} s after the start of its agent, not within 2 s",
                back.as_secs_f64()
            )
        });
        check_streams(elsewhere.finish()?, 500, &mut findings);
        // TCP may need a retransmission on top of the two seconds.
        check_streams(own.finish()?, 4000, &mut findings);
        world.wait_until_joined()?;
        let twice = before.differences(&Snapshot::of(&node.netns(), &[])?);
        findings.require(twice.is_empty(), || format!("{victim}: after the restart: {}", twice.join("; ")));
    }
    findings.conclude(3 * (2 + 16))
}

fn broker_killed(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let time = Duration::from_secs(65);
    let mut pending = Vec::new();
    for (from, to) in [("alpha/pod5", "beta/pod3"), ("gamma/pod3", "alpha/pod1"), ("beta/pod1", "gamma/pod1")]
    {
        let netns = world.topology.find(from).context("pod")?;
        pending.push(probe::start(&netns, streams(world, from, to, time)?));
    }
    signals::sleep(Duration::from_secs(1))?;
    let broker = world.daemon(BROKER)?;
    broker.signal(Signal::SIGKILL)?;
    broker.wait(Duration::from_secs(5))?;
    signals::sleep(Duration::from_secs(60))?;
    world.start_broker()?;
    for pending in pending {
        check_streams(pending.finish()?, 500, &mut findings);
    }
    world.wait_until_connected()?;
    findings.conclude(3 * 4 * 2)
}
