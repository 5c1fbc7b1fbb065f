//! podspan leaves no trace, and leaves alone what is not its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::{Scenario, Setting};
use crate::command::Cmd;
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::snapshot::Snapshot;
use crate::state;
use crate::topology::{Family, MTU, POD_PORT};
use crate::world::{self, World};

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(120), run };
    vec![
        scenario(
            "untouched",
            "inside a cluster and to the internet: path, address and MTU as before",
            untouched,
        ),
        scenario("clean", "after `clean` a node is as it was, compared in full", clean),
    ]
}

fn untouched(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    for node in world.topology.nodes() {
        let pod = &node.pods[0];
        for family in Family::BOTH {
            let headers = if family == Family::V4 { 28 } else { 48 };
            let size = (MTU - headers).to_string();
            let neighbours = world
                .topology
                .nodes()
                .filter(|other| other.cluster == node.cluster && other.name != node.name);
            let mut targets = Vec::new();
            for other in neighbours {
                targets.push((world.pod_address(&other.pods[0].id(), family)?, 62));
            }
            if !(node.behind_nat && family == Family::V6) {
                // One router more behind the NAT.
                targets.push((
                    world.topology.internet.address.of(family),
                    if node.behind_nat { 61 } else { 62 },
                ));
            }
            for (address, ttl) in targets {
                let ping = Cmd::new("ping")
                    .args([
                        family.flag(),
                        "-n",
                        "-M",
                        "do",
                        "-c",
                        "1",
                        "-W",
                        "2",
                        "-s",
                        &size,
                        &address.to_string(),
                    ])
                    .within(&pod.netns());
                let text = ping.run()?.stdout_text();
                // Time to live tells the number of routers on the way.
                findings.require(text.contains(&format!("ttl={ttl} ")), || {
                    format!("{}: full-size packet, ttl {ttl} expected: {text}", ping.line())
                });
            }
            if !(node.behind_nat && family == Family::V6) {
                let target = SocketAddr::new(world.topology.internet.address.of(family), POD_PORT);
                let outcome =
                    probe::ask(&pod.netns(), &[Job::new("internet", target, Task::Tcp { bytes: 3000 })])?
                        .remove(0);
                findings.expect(&format!("{} -> internet {family}", pod.id()), None, outcome.error);
                findings.require(
                    outcome
                        .seen_as
                        .is_some_and(|seen| !world.record.pods.values().any(|p| p.of(family) == seen)),
                    || format!("{} -> internet {family}: seen as {:?}", pod.id(), outcome.seen_as),
                );
            }
        }
    }
    findings.conclude(13 * 3 + 20)
}

fn clean(world: &mut World) -> Result<()> {
    let node = world.node("beta-2")?.clone();
    let directory = state::path(world::node_directory(&node));
    let agent = world.daemon(&world::agent_name(&node.name))?;
    let clean = Cmd::new(&world.programs()?.agent)
        .args(["clean", "--config"])
        .arg(world::agent_config(&node))
        .within(&node.netns())
        .timeout(Duration::from_secs(20));
    let mut findings = Findings::default();
    let running = clean.run()?;
    findings.require(!running.status.success(), || "`clean` went ahead with the agent running".into());
    agent.end(Duration::from_secs(10))?;
    clean.run_ok()?;
    // Now nothing of podspan is here: what stands is what was there before the agent was ever started.
    let files = [directory.clone()];
    let before = Snapshot::of(&node.netns(), &files)?;
    let traces = Cmd::new("sh")
        .args(["-c", "nft list ruleset; ip link; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all"])
        .within(&node.netns())
        .text()?;
    findings.require(!traces.contains("podspan"), || format!("after clean:\n{traces}"));
    for kill in [false, true] {
        world.start_agent(&node.name)?;
        world.wait_until_joined()?;
        let agent = world.daemon(&world::agent_name(&node.name))?;
        let with = before.differences(&Snapshot::of(&node.netns(), &files)?);
        findings.require(with.len() > 10, || format!("an agent that changes next to nothing? {with:?}"));
        if kill {
            agent.signal(nix::sys::signal::Signal::SIGKILL)?;
            agent.wait(Duration::from_secs(5))?;
        } else {
            agent.end(Duration::from_secs(10))?;
        }
        clean.run_ok()?;
        let left = before.differences(&Snapshot::of(&node.netns(), &files)?);
        findings.require(left.is_empty(), || {
            format!("left after clean (killed: {kill}): {}", left.join("\n    "))
        });
        clean.run_ok()?;
    }
    world.start_agent(&node.name)?;
    world.wait_until_joined()?;
    findings.conclude(6)
}
