//! A broker that cannot be reached.

use std::time::Duration;

use anyhow::{Context, Result};

use super::calm::{Calm, WAYS};
use super::claims::{copy_of_set, grant};
use super::stray::Stray;
use super::wait_for;
use crate::command::Cmd;
use crate::scenario::Findings;
use crate::state;
use crate::topology::BROKER_PORT;
use crate::world::World;

/// A broker is heard every 10 s; after 25 s of silence it is tried anew.
const NOTICED: Duration = Duration::from_secs(40);

pub(super) fn unreachable(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(45))?;
    let nodes: Vec<_> = world.topology.nodes().cloned().collect();
    cut(world)?;
    let mut silent = Vec::new();
    let said = wait_for(NOTICED, || {
        silent.clear();
        for node in &nodes {
            let status = world.agent_status(node)?;
            if status.broker.connected.is_some()
                || !status.problems.iter().any(|problem| problem.contains("no broker answers"))
            {
                silent.push(format!("{}: {:?} {:?}", node.name, status.broker, status.problems));
            }
        }
        Ok(silent.is_empty())
    });
    // The way is free again whatever was seen.
    mend(world)?;
    findings.require(said?, || format!("the broker cannot be reached, and still: {}", silent.join("; ")));
    world.wait_until_connected()?;
    let mut left = Vec::new();
    let cleared = wait_for(Duration::from_secs(20), || {
        left.clear();
        for node in &nodes {
            let problems = world.agent_status(node)?.problems;
            left.extend(problems.into_iter().filter(|problem| {
                problem.contains("no broker answers") || problem.contains("record is not published")
            }));
        }
        Ok(left.is_empty())
    })?;
    findings.require(cleared, || format!("the broker is back and the problem stays: {left:?}"));
    wrong_address(world, &mut findings)?;
    calm.check(world, &[], &mut findings)?;
    findings.conclude(4 + 24)
}

/// The broker's host hears nothing any more, and nobody is told: packets vanish.
fn cut(world: &World) -> Result<()> {
    let rules = "table inet cut { chain input { type filter hook input priority -300; policy drop; }; }";
    Cmd::new("nft").args(["-f", "-"]).stdin(rules).within(&world.topology.broker.netns()).run_ok()?;
    Ok(())
}

fn mend(world: &World) -> Result<()> {
    Cmd::new("nft")
        .args(["delete", "table", "inet", "cut"])
        .within(&world.topology.broker.netns())
        .run_ok()?;
    Ok(())
}

/// Of three addresses two lead nowhere: the third one serves.
fn wrong_address(world: &mut World, findings: &mut Findings) -> Result<()> {
    let set = copy_of_set("nobody")?;
    let out = state::path("podspan/delta.bundle");
    grant(world, &set, "delta", "10.44.0.0/16", &out)?.run_ok()?;
    let mut bundle: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&out)?)?;
    let right = format!("https://{}:{BROKER_PORT}", world.topology.broker.address.v4);
    // Nobody has this address; nobody listens on this port.
    let wrong = [
        "https://10.99.0.77:7443".to_owned(),
        format!("https://{}:1", world.topology.broker.address.v4),
        right.clone(),
    ];
    bundle["brokers"] = serde_json::json!(wrong);
    std::fs::write(&out, bundle.to_string()).context("delta's bundle")?;
    let stray = Stray::start(world, &out, "delta-1", "10.44.1.0/24")?;
    let mut broker = None;
    let served = wait_for(Duration::from_secs(15), || {
        broker = stray.status().ok().map(|status| status.broker);
        let served = broker.as_ref().is_some_and(|broker| {
            broker.connected.as_ref() == Some(&right) && broker.last_published.is_some()
        });
        Ok(served)
    })?;
    findings.require(served, || format!("one right broker address of three: {broker:?}"));
    // Which one is tried first is left to chance; those that were tried and failed are named.
    let errors = broker.map(|broker| broker.errors).unwrap_or_default();
    findings.require(errors.keys().all(|broker| *broker != right), || {
        format!("errors of the right one: {errors:?}")
    });
    stray.end(world)?;
    std::fs::remove_file(&out).context("delta's bundle")
}
