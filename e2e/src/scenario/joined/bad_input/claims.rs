//! Clusters whose grants the root should never have signed: CIDRs that are in use, names that are taken.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use podspan_wire::status::Status;
use podspan_wire::{NodeId, RecordState, RefusalKind, SignedRecord};

use super::calm::{Calm, WAYS, traffic};
use super::signer::{Signer, set_directory};
use super::stray::{STRAY, Stray};
use super::wait_for;
use crate::command::Cmd;
use crate::lying_broker::Lies;
use crate::scenario::Findings;
use crate::snapshot::Snapshot;
use crate::state;
use crate::topology::Node;
use crate::world::{BROKER, World};

use super::super::lies::with_lies;

/// How long what a broker streams may take to be taken in: agents come back to it with a pause.
const TAKEN_IN: Duration = Duration::from_secs(20);

/// How long a stray agent may take to say what is wrong.
const SAID: Duration = Duration::from_secs(8);

/// A copy of the cluster set in which `forgotten` was never granted anything.
pub(super) fn copy_of_set(forgotten: &str) -> Result<PathBuf> {
    let copy = state::path("podspan/set-copy");
    if copy.exists() {
        std::fs::remove_dir_all(&copy).context("the copy of the cluster set")?;
    }
    Cmd::new("cp").arg("-a").arg(set_directory()).arg(&copy).run_ok()?;
    let file = copy.join("clusterset.json");
    let mut set: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let grants = set["grants"].as_array_mut().context("the cluster set's grants")?;
    grants.retain(|given| given["grant"]["cluster"] != forgotten);
    std::fs::write(&file, serde_json::to_string_pretty(&set)?)?;
    Ok(copy)
}

/// `podspan cluster grant` in this cluster set.
pub(super) fn grant(world: &World, set: &PathBuf, cluster: &str, pods: &str, out: &PathBuf) -> Result<Cmd> {
    Ok(Cmd::new(&world.programs()?.cli)
        .args(["cluster", "grant", cluster, "--pod-cidr", pods, "--dir"])
        .arg(set)
        .arg("--out")
        .arg(out))
}

fn knows(status: &Status, id: &NodeId) -> bool {
    status.clusters.iter().flat_map(|cluster| &cluster.nodes).any(|node| node.id == *id)
}

fn id_of(signed: &SignedRecord) -> Result<NodeId> {
    Ok(signed.claim().context("a record that names nobody")?.0)
}

/// Agents look at what the broker says from three places: a gateway, a node of the cluster that is overlapped,
/// a node behind NAT.
fn observers(world: &World) -> Result<Vec<Node>> {
    ["alpha-1", "beta-1", "gamma-2"].iter().map(|name| world.node(name).cloned()).collect()
}

/// Waits until `last` is known at all observers, or, for a withdrawal, is not any more.
fn arrived(world: &World, last: &NodeId, known: bool) -> Result<bool> {
    let observers = observers(world)?;
    wait_for(TAKEN_IN, || {
        for node in &observers {
            if knows(&world.agent_status(node)?, last) != known {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Takes a cluster back that a lie has brought in.
fn withdraw(world: &mut World, record: SignedRecord, findings: &mut Findings) -> Result<()> {
    let id = id_of(&record)?;
    with_lies(world, &Lies { records: vec![record], lines: Vec::new() }, |world| {
        let gone = arrived(world, &id, false)?;
        findings.require(gone, || format!("{id} was withdrawn and is still known"));
        Ok(())
    })?;
    world.wait_until_connected()
}

/// The refusal of this record is named at a node, with all of the `needles`.
fn named(
    status: &Status,
    record: &SignedRecord,
    kind: RefusalKind,
    needles: &[&str],
    findings: &mut Findings,
) -> Result<()> {
    let id = id_of(record)?;
    let found =
        status.refused.iter().find(|refused| refused.claimed.as_ref() == Some(&id) && refused.kind == kind);
    let good = found.is_some_and(|refused| {
        needles.iter().all(|needle| refused.detail.contains(needle))
            && status.problems.iter().any(|problem| problem.contains(&refused.detail))
    });
    findings.require(good, || {
        format!("{}: {kind} of {id} should be named with {needles:?}: {:?}", status.node.id, status.refused)
    });
    let counted = status.refusals.get(&kind).copied().unwrap_or(0);
    findings.require(counted > 0, || format!("{}: {kind} is not counted", status.node.id));
    Ok(())
}

pub(super) fn overlap(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let signer = Signer::new()?;
    let one =
        |name, seed, pods: &str| signer.grant(name, seed, 1, &[pods])?.record("n", RecordState::Active, 1);
    let bad = [
        (one("over-beta", 1, "10.2.128.0/17")?, "10.2.128.0/17"),
        (one("over-node", 2, "10.2.1.128/25")?, "10.2.1.128/25"),
        (one("over-all", 3, "10.0.0.0/8")?, "10.0.0.0/8"),
        // Where beta's nodes live: a route there would draw beta's own endpoints into a tunnel.
        (one("over-underlay", 4, "198.51.100.0/24")?, "198.51.100.0/24"),
        (one("over-six", 5, "2001:db8:b::/64")?, "2001:db8:b::/64"),
        (one("over-broker", 6, "10.99.0.0/24")?, "10.99.0.0/24"),
    ];
    let good = signer.grant("delta", 7, 1, &["10.44.0.0/16"])?;
    let mut records: Vec<_> = bad.iter().map(|(record, _)| record.clone()).collect();
    records.push(good.record("n", RecordState::Active, 1)?);
    let last = id_of(&records[6])?;

    let calm = Calm::watch(world, &WAYS, Duration::from_secs(10))?;
    with_lies(world, &Lies { records, lines: Vec::new() }, |world| {
        let taken = arrived(world, &last, true)?;
        findings.require(taken, || "the good cluster after the bad ones was not taken in".into());
        for node in observers(world)? {
            let status = world.agent_status(&node)?;
            for (record, cidr) in &bad {
                named(&status, record, RefusalKind::Overlap, &[cidr], &mut findings)?;
                findings
                    .require(!knows(&status, &id_of(record)?), || format!("{}: {cidr} is in use", node.name));
                findings
                    .require(!status.kernel.routes.iter().any(|route| route.to_string() == *cidr), || {
                        format!("{}: {cidr} is routed", node.name)
                    });
            }
        }
        traffic(world, &WAYS, &mut findings)
    })?;
    world.wait_until_connected()?;
    calm.check(world, &[BROKER], &mut findings)?;
    withdraw(world, good.record("n", RecordState::Withdrawn, 2)?, &mut findings)?;
    command_line_refuses(world, &mut findings)?;
    broker_refuses(world, &mut findings)?;
    findings.conclude(3 * 6 * 4 + 20)
}

/// The command that signs grants refuses what overlaps, before the root has signed anything.
fn command_line_refuses(world: &World, findings: &mut Findings) -> Result<()> {
    let set = copy_of_set("nobody")?;
    let before = Snapshot::of(&world.topology.internet.netns(), std::slice::from_ref(&set))?;
    let out = state::path("podspan/delta.bundle");
    for (pods, needles) in
        [("10.2.128.0/17", ["10.2.128.0/17", "beta"]), ("10.0.0.0/8", ["10.0.0.0/8", "alpha"])]
    {
        let finished = grant(world, &set, "delta", pods, &out)?.run()?;
        let said = finished.stderr_text();
        let good = !finished.status.success() && needles.iter().all(|needle| said.contains(needle));
        findings.require(good && !out.exists(), || format!("granting {pods} to delta: {said}"));
    }
    let changed =
        before.differences(&Snapshot::of(&world.topology.internet.netns(), std::slice::from_ref(&set))?);
    // Locking the directory may leave a lock file; what was granted must not change.
    let changed: Vec<_> = changed.into_iter().filter(|line| !line.contains("lock")).collect();
    findings.require(changed.is_empty(), || format!("a refused grant has changed {changed:?}"));
    Ok(())
}

/// A broker refuses it as well, and the agent that is at fault says why.
fn broker_refuses(world: &mut World, findings: &mut Findings) -> Result<()> {
    let set = copy_of_set("beta")?;
    let out = state::path("podspan/delta.bundle");
    grant(world, &set, "delta", "10.2.128.0/17", &out)?.run_ok()?;
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(5))?;
    let stray = Stray::start(world, &out, "delta-1", "10.2.128.0/24")?;
    let (said, problems) = stray.says(SAID, "10.2.128.0/17")?;
    findings.require(said && problems.iter().any(|p| p.contains("beta")), || {
        format!("an agent whose grant overlaps beta's says: {problems:?}")
    });
    stray.end(world)?;
    calm.check(world, &[], findings)?;
    std::fs::remove_file(&out).context("delta's bundle")
}

pub(super) fn names(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let signer = Signer::new()?;
    let pods = &["10.45.0.0/16"];
    let (first, twin, later) = (
        signer.grant("epsilon", 11, 1, pods)?,
        signer.grant("epsilon", 12, 1, pods)?,
        signer.grant("epsilon", 12, 2, pods)?,
    );
    let beta_twin = signer.grant("beta", 13, 1, &["10.2.0.0/16"])?;
    let active =
        |realm: &super::signer::Realm, node, sequence| realm.record(node, RecordState::Active, sequence);
    let (twin_record, old_record) = (active(&twin, "d-2", 1)?, active(&first, "d-4", 1)?);
    let beta_record = active(&beta_twin, "beta-9", 1)?;
    let (gone, stays) = (active(&first, "d-1", 1)?, active(&later, "d-3", 1)?);
    let records =
        vec![beta_record.clone(), gone.clone(), twin_record.clone(), stays.clone(), old_record.clone()];

    let calm = Calm::watch(world, &WAYS, Duration::from_secs(10))?;
    with_lies(world, &Lies { records, lines: Vec::new() }, |world| {
        let taken = arrived(world, &id_of(&stays)?, true)?;
        findings.require(taken, || "the later grant of epsilon was not taken in".into());
        for node in observers(world)? {
            let status = world.agent_status(&node)?;
            let superseded = RefusalKind::GrantSuperseded;
            let both = ["two grants with serial 1", "another name"];
            // Beta itself sees that its own name was given away.
            let theirs = if node.cluster == "beta" { &both[1..] } else { &both[..] };
            named(&status, &beta_record, superseded, theirs, &mut findings)?;
            named(&status, &twin_record, superseded, &both, &mut findings)?;
            named(&status, &old_record, superseded, &["grant 2 is known", "newest bundle"], &mut findings)?;
            for record in [&beta_record, &twin_record, &old_record, &gone] {
                let id = id_of(record)?;
                findings.require(!knows(&status, &id), || format!("{}: {id} is in use", node.name));
            }
        }
        traffic(world, &WAYS, &mut findings)
    })?;
    world.wait_until_connected()?;
    calm.check(world, &[BROKER], &mut findings)?;
    withdraw(world, later.record("d-3", RecordState::Withdrawn, 2)?, &mut findings)?;
    second_beta(world, &mut findings)?;
    findings.conclude(3 * (6 + 4) + 20)
}

/// Two sites that were both told to be beta, with an honest broker.
fn second_beta(world: &mut World, findings: &mut Findings) -> Result<()> {
    let set = copy_of_set("beta")?;
    let out = state::path("podspan/second-beta.bundle");
    grant(world, &set, "beta", "10.2.0.0/16", &out)?.run_ok()?;
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(5))?;
    let stray = Stray::start(world, &out, "beta-9", "10.2.9.0/24")?;
    let (said, problems) = stray.says(SAID, "another name")?;
    findings
        .require(said && problems.iter().any(|problem| problem.contains("two grants with serial 1")), || {
            format!("the agent of the second beta says: {problems:?}")
        });
    let id: NodeId = NodeId { cluster: "beta".parse()?, node: "beta-9".parse()? };
    for node in observers(world)? {
        findings
            .require(!knows(&world.agent_status(&node)?, &id), || format!("{}: {id} is in use", node.name));
    }
    stray.end(world)?;
    calm.check(world, &[STRAY], findings)?;
    std::fs::remove_file(&out).context("the second beta's bundle")
}
