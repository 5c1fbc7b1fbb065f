//! Brokers that lie, brokers that babble: what they say is refused, counted and named, and nothing else
//! happens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use podspan_wire::{
    Bundle, Cidr, ClusterKey, Grant, Lane, LaneKey, Record, RecordState, RefusalKind, RootKey, SignedRecord,
    UnixTime, VerifiedGrant, Version,
};

use super::{Scenario, Setting};
use crate::lying_broker::Lies;
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::signals;
use crate::snapshot::Snapshot;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, World};

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(120), run };
    vec![
        scenario(
            "lies",
            "forged, foreign, replayed and expired records are refused, counted and named",
            lies,
        ),
        scenario("babble", "a broker that sends no records but noise changes nothing", babble),
    ]
}

/// What it takes to sign in the name of alpha, and more.
struct Forger {
    alpha: Bundle,
    grant: VerifiedGrant,
    stranger: ClusterKey,
    false_root: RootKey,
    now: UnixTime,
}

impl Forger {
    fn new() -> Result<Self> {
        let text = std::fs::read_to_string(world::bundle("alpha")).context("alpha's bundle")?;
        let (alpha, grant) = Bundle::parse(&text)?;
        Ok(Self {
            alpha,
            grant,
            stranger: ClusterKey::from_seed(&[7; 32]),
            false_root: RootKey::from_seed(&[8; 32]),
            now: SystemTime::now().into(),
        })
    }

    /// A record of a node that alpha does not have, good in every way.
    fn record(&self, node: &str) -> Result<Record> {
        // Each node has a key of its own.
        let mut key = [0; 32];
        for (to, from) in key.iter_mut().zip(node.bytes()) {
            *to = from;
        }
        Ok(Record {
            cluster_set: self.alpha.cluster_set,
            cluster: self.grant.cluster.clone(),
            node: node.parse()?,
            state: RecordState::Active,
            lanes: vec![Lane { key: LaneKey::from_bytes(key), port: 51840 }],
            endpoints: Vec::new(),
            pod_cidrs: [cidr("10.1.99.0/24")?].into_iter().collect(),
            service_cidrs: podspan_wire::CidrSet::default(),
            gateway: false,
            version: Version { epoch: 1, sequence: 1 },
            not_after: self.now.after(Duration::from_secs(3600)),
            extensions: BTreeMap::new(),
        })
    }

    fn sign(&self, record: &Record) -> SignedRecord {
        record.sign(&self.alpha.cluster_key, self.alpha.grant.clone())
    }

    /// Records that are wrong, each in one way, and how each must be refused.
    fn lies(&self) -> Result<Vec<(RefusalKind, SignedRecord)>> {
        let alter = |node: &str, change: &dyn Fn(&mut Record) -> Result<()>| -> Result<SignedRecord> {
            let mut record = self.record(node)?;
            change(&mut record)?;
            Ok(self.sign(&record))
        };
        let forged_grant = {
            let grant =
                Grant { not_after: self.now.after(Duration::from_secs(3600)), ..(*self.grant).clone() };
            let record = self.record("lie-root")?;
            record.sign(&self.alpha.cluster_key, grant.sign(&self.false_root))
        };
        Ok(vec![
            (
                RefusalKind::RecordSignature,
                self.record("lie-key")?.sign(&self.stranger, self.alpha.grant.clone()),
            ),
            (RefusalKind::GrantSignature, forged_grant),
            (
                RefusalKind::OutsideGrant,
                alter("lie-outside", &|record| {
                    record.pod_cidrs = [cidr("10.2.1.0/24")?].into_iter().collect();
                    Ok(())
                })?,
            ),
            (
                RefusalKind::RecordExpired,
                alter("lie-expired", &|record| {
                    record.not_after = UnixTime(record.not_after.0 - 7200);
                    Ok(())
                })?,
            ),
            // The node is there, with a much higher epoch.
            (RefusalKind::Replayed, alter("alpha-1", &|_| Ok(()))?),
            (
                RefusalKind::Malformed,
                alter("lie-malformed", &|record| {
                    record.lanes.clear();
                    Ok(())
                })?,
            ),
        ])
    }
}

fn cidr(text: &str) -> Result<Cidr> {
    Ok(text.parse()?)
}

/// Puts a lying broker in the place of the real one for as long as `look` takes.
pub(super) fn with_lies(
    world: &mut World,
    lies: &Lies,
    look: impl FnOnce(&mut World) -> Result<()>,
) -> Result<()> {
    world.stop_broker()?;
    // As long as one way to the broker is believed to work, what the other one brings may be behind it, no more.
    world.wait_until_disconnected()?;
    let looked = world.start_lying_broker(lies).and_then(|liar| {
        let looked = look(world);
        liar.end(Duration::from_secs(1))?;
        looked
    });
    world.start_broker()?;
    looked
}

fn check_traffic(world: &World, findings: &mut Findings) -> Result<()> {
    for (from, to) in [("alpha/pod5", "beta/pod3"), ("beta/pod1", "alpha/pod1"), ("gamma/pod3", "alpha/pod3")]
    {
        let netns = world.topology.find(from).context("pod")?;
        for family in Family::BOTH {
            let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
            let job = Job::new(format!("{from} -> {to} {family}"), target, Task::Tcp { bytes: 3000 });
            let outcome = probe::ask(&netns, &[job])?.remove(0);
            findings.expect(&outcome.id, None, outcome.error);
        }
    }
    Ok(())
}

fn lies(world: &mut World) -> Result<()> {
    let forger = Forger::new()?;
    let told = forger.lies()?;
    let mut records: Vec<_> = told.iter().map(|(_, signed)| signed.clone()).collect();
    // And the truth, last: what is wrong must not keep out what is right.
    records.push(forger.sign(&forger.record("good-node")?));
    let node = world.node("beta-1")?.clone();
    let before = Snapshot::of(&node.netns(), &[])?;
    let knows_good_node = |world: &World| -> Result<bool> {
        let status = world.agent_status(&node)?;
        let nodes = status.clusters.iter().flat_map(|cluster| &cluster.nodes);
        Ok(nodes.map(|node| node.id.to_string()).any(|id| id == "alpha/good-node"))
    };
    let count = |world: &World, kind: RefusalKind| -> Result<u64> {
        Ok(world.agent_status(&node)?.refusals.get(&kind).copied().unwrap_or(0))
    };
    let mut counted = BTreeMap::new();
    for (kind, _) in &told {
        counted.insert(*kind, count(world, *kind)?);
    }
    let mut findings = Findings::default();
    with_lies(world, &Lies { records, lines: Vec::new() }, |world| {
        let end = Instant::now() + Duration::from_secs(20);
        while !knows_good_node(world)? && Instant::now() < end {
            signals::sleep(Duration::from_millis(100))?;
        }
        findings.require(knows_good_node(world)?, || {
            "the good record after the bad ones was not taken in".into()
        });
        let status = world.agent_status(&node)?;
        for (kind, signed) in &told {
            let (before, after) = (counted.get(kind).copied(), count(world, *kind)?);
            findings.require(Some(after) > before, || {
                format!("{kind} was counted {before:?} times, then {after}")
            });
            let claimed = signed.claim().map(|(id, _)| id);
            let named =
                status.refused.iter().any(|refused| refused.kind == *kind && refused.claimed == claimed);
            findings.require(named, || format!("{kind} of {claimed:?} is not named in {:?}", status.refused));
        }
        let changes = before.differences(&Snapshot::of(&node.netns(), &[])?);
        // The good node brings a peer and no route of its own: alpha's whole CIDR is routed already.
        findings.require(changes.is_empty(), || format!("lies changed the kernel: {}", changes.join("; ")));
        check_traffic(world, &mut findings)
    })?;
    // The node that alpha never had is withdrawn in alpha's name, and gone.
    let mut gone = forger.record("good-node")?;
    gone.state = RecordState::Withdrawn;
    gone.version.sequence += 1;
    with_lies(world, &Lies { records: vec![forger.sign(&gone)], lines: Vec::new() }, |world| {
        let end = Instant::now() + Duration::from_secs(20);
        while knows_good_node(world)? && Instant::now() < end {
            signals::sleep(Duration::from_millis(100))?;
        }
        findings.require(!knows_good_node(world)?, || "the withdrawn node is still there".into());
        Ok(())
    })?;
    world.wait_until_connected()?;
    findings.conclude(1 + 12 + 1 + 6 + 1)
}

fn babble(world: &mut World) -> Result<()> {
    let lines = vec![
        "not json at all".to_owned(),
        "{\"event\":\"entry\",\"revision\":1}".to_owned(),
        "{\"event\":\"unheard-of\"}".to_owned(),
        "\u{1}\u{2}\u{3}".to_owned(),
        "[".repeat(100_000),
        "x".repeat(3_000_000),
    ];
    let node = world.node("beta-1")?.clone();
    let before = Snapshot::of(&node.netns(), &[])?;
    let mut findings = Findings::default();
    for line in lines {
        let shown: String = line.chars().take(40).collect();
        with_lies(world, &Lies { records: Vec::new(), lines: vec![line] }, |world| {
            signals::sleep(Duration::from_secs(3))?;
            let changes = before.differences(&Snapshot::of(&node.netns(), &[])?);
            findings.require(changes.is_empty(), || {
                format!("{shown:?} changed the kernel: {}", changes.join("; "))
            });
            for node in world.topology.nodes() {
                let alive = world.daemon(&world::agent_name(&node.name))?.is_alive();
                findings.require(alive, || format!("{shown:?} has ended the agent of {}", node.name));
            }
            check_traffic(world, &mut findings)
        })?;
    }
    world.wait_until_connected()?;
    findings.conclude(6 * (1 + 7 + 6))
}
