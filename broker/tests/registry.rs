//! The registry against a model that keeps everything in the plainest way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use podspan_broker::server::registry::{Capacity, KEEP_EXPIRED, Refused, Registry};
use podspan_wire::api::{Entry, Lease, Token};
use podspan_wire::{NodeId, Record, Trust, UnixTime, VerifiedRecord};
use proptest::prelude::*;
use support::*;

const LEASE: Duration = Duration::from_secs(30);
const CAPACITY: Capacity = Capacity { records: 100, records_per_cluster: 100 };

fn verified(signed: &podspan_wire::SignedRecord) -> VerifiedRecord {
    Trust::new(cluster_set()).verify_kept(signed).unwrap()
}

fn empty() -> Registry {
    Registry::new("ab".into(), 0, LEASE, CAPACITY)
}

fn entries(registry: &Registry) -> Vec<Entry> {
    registry.resume(None).entries().iter().map(|stored| stored.entry()).collect()
}

/// The registry that a restart would make of what was written.
fn reloaded(disk: &BTreeMap<NodeId, Entry>, revision: u64, now: Duration) -> Registry {
    let mut registry = Registry::new("ab".into(), revision, LEASE, CAPACITY);
    for entry in disk.values() {
        registry.load(entry.revision, entry.lease, verified(&entry.signed), now);
    }
    registry
}

#[derive(Clone, Debug)]
enum Step {
    Put { node: u8, sequence: u64 },
    Withdraw { node: u8, sequence: u64 },
    Renew { node: u8, sequence: u64 },
    Wait(u64),
    Commit,
    Fail,
    Restart,
    Watch,
}

fn step() -> impl Strategy<Value = Step> {
    let (node, sequence) = (0u8..4, 1u64..6);
    prop_oneof![
        4 => (node.clone(), sequence.clone()).prop_map(|(node, sequence)| Step::Put { node, sequence }),
        1 => (node.clone(), sequence.clone()).prop_map(|(node, sequence)| Step::Withdraw { node, sequence }),
        3 => (node, sequence).prop_map(|(node, sequence)| Step::Renew { node, sequence }),
        3 => (0u64..20).prop_map(Step::Wait),
        4 => Just(Step::Commit),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
        2 => Just(Step::Watch),
    ]
}

/// A watcher that keeps what it was told.
#[derive(Default)]
struct Watcher {
    token: Option<Token>,
    seen: BTreeMap<NodeId, Entry>,
}

impl Watcher {
    fn catch_up(&mut self, registry: &Registry) {
        let resume = registry.resume(self.token.as_ref());
        assert_eq!(resume.reset, self.token.is_none(), "a token of this store never resets");
        let mut last = self.token.as_ref().map_or(0, |token| token.revision);
        for stored in resume.entries() {
            assert!(stored.revision > last, "in order, nothing twice");
            last = stored.revision;
            self.seen.insert(stored.verified.record().id(), stored.entry());
        }
        assert!(last <= resume.token.revision, "the token is never behind what was sent");
        self.token = Some(resume.token);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in whatever order: a failed write leaves nothing behind, the disk and the registry
    /// agree after each commit, revisions never go back, and a watcher that resumes now and then, over
    /// restarts too, knows in the end exactly what is stored.
    #[test]
    fn disk_memory_and_watchers_agree(steps in prop::collection::vec(step(), 1..60)) {
        let alpha = cluster("alpha", 1);
        let mut registry = empty();
        let mut disk: BTreeMap<NodeId, Entry> = BTreeMap::new();
        let mut disk_revision = 0;
        let mut watcher = Watcher::default();
        let mut now = Duration::ZERO;
        for step in steps {
            match step {
                Step::Put { node, sequence } => {
                    let _ = registry.put(verified(&alpha.active(&format!("n{node}"), sequence)), now, support::now());
                }
                Step::Withdraw { node, sequence } => {
                    let _ = registry.put(verified(&alpha.withdrawn(&format!("n{node}"), sequence)), now, support::now());
                }
                Step::Renew { node, sequence } => {
                    let _ = registry.renew(&alpha.id(&format!("n{node}")), version(sequence), now);
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    registry.lapse(now);
                }
                Step::Commit => {
                    let batch = registry.batch();
                    prop_assert!(batch.revision >= disk_revision, "revisions never go back");
                    prop_assert!(batch.entries.iter().all(|(_, entry)| entry.revision > disk_revision));
                    disk_revision = batch.revision;
                    disk.extend(batch.entries);
                    registry.keep();
                    prop_assert!(registry.batch().is_empty());
                }
                Step::Fail => {
                    registry.roll_back();
                    prop_assert!(registry.batch().is_empty());
                }
                Step::Restart => registry = reloaded(&disk, disk_revision, now),
                // Watchers are only ever served between commits.
                Step::Watch => {
                    registry.roll_back();
                    watcher.catch_up(&registry);
                }
            }
        }
        registry.roll_back();
        let mut stored: Vec<Entry> = disk.values().cloned().collect();
        stored.sort_by_key(|entry| entry.revision);
        prop_assert_eq!(&entries(&registry), &stored);
        prop_assert_eq!(registry.len(), stored.len());
        prop_assert_eq!(registry.token().revision, disk_revision);
        watcher.catch_up(&registry);
        let mut seen: Vec<Entry> = watcher.seen.into_values().collect();
        seen.sort_by_key(|entry| entry.revision);
        prop_assert_eq!(seen, stored);
    }
}

#[test]
fn leases_lapse_on_time_and_restarts_give_grace_to_the_fresh_only() {
    let alpha = cluster("alpha", 1);
    let mut registry = empty();
    let at = Duration::from_secs;
    for node in ["n1", "n2"] {
        registry.put(verified(&alpha.active(node, 1)), at(0), now()).unwrap();
    }
    registry.renew(&alpha.id("n2"), version(1), at(20)).unwrap();
    assert_eq!(registry.lapse(at(29)), 0);
    assert_eq!(registry.lapse(at(30)), 1);
    let leases = |registry: &Registry| -> Vec<(u64, Lease)> {
        entries(registry).iter().map(|entry| (entry.revision, entry.lease)).collect()
    };
    assert_eq!(leases(&registry), [(2, Lease::Fresh), (3, Lease::Lapsed)]);
    let disk = registry.batch().entries.into_iter().collect();
    registry.keep();

    let mut registry = reloaded(&disk, 3, at(0));
    assert_eq!(leases(&registry), [(2, Lease::Fresh), (3, Lease::Lapsed)], "what watchers saw stands");
    assert_eq!(registry.lapse(at(29)), 0, "a whole lease of grace");
    assert_eq!(registry.lapse(at(30)), 1);
    registry.renew(&alpha.id("n1"), version(1), at(31)).unwrap();
    assert_eq!(leases(&registry), [(4, Lease::Lapsed), (5, Lease::Fresh)]);
}

#[test]
fn what_is_past_its_time_is_removed_and_the_revision_stays() {
    let alpha = cluster("alpha", 1);
    let mut registry = empty();
    let t = 1_800_000_000;
    let until = |record: Record| alpha.sign(&Record { not_after: UnixTime(t), ..record });
    registry.put(verified(&until(alpha.record("n1", 1))), Duration::ZERO, UnixTime(t)).unwrap();
    let gone = Record { state: podspan_wire::RecordState::Withdrawn, ..alpha.record("n2", 1) };
    registry.put(verified(&until(gone)), Duration::ZERO, UnixTime(t)).unwrap();
    registry.keep();
    assert_eq!(registry.expire(UnixTime(t)), 0);
    assert_eq!(registry.expire(UnixTime(t + 1)), 1, "the withdrawal");
    assert_eq!(registry.batch().removed, [alpha.id("n2")]);
    assert_eq!(registry.batch().revision, 2);
    registry.keep();
    assert_eq!(registry.expire(UnixTime(t).after(KEEP_EXPIRED)), 0);
    assert_eq!(registry.expire(UnixTime(t + 1).after(KEEP_EXPIRED)), 1);
    assert!(registry.is_empty());
    registry.roll_back();
    assert_eq!(registry.len(), 1, "a failed write brings it back");
    assert_eq!(registry.token().revision, 2);
}

#[test]
fn overlaps_count_only_what_stands() {
    let (alpha, beta) = (cluster("alpha", 1), cluster_with("beta", 2, "10.1.0.0/24", 1));
    let time = now();
    let put = |registry: &mut Registry, signed: &podspan_wire::SignedRecord, time| {
        registry.put(verified(signed), Duration::ZERO, time)
    };
    let mut registry = empty();
    put(&mut registry, &alpha.active("n1", 1), time).unwrap();
    assert!(matches!(put(&mut registry, &beta.active("n1", 1), time), Err(Refused::Overlap(_))));
    // Alpha is granted other addresses: its record on the old grant stands no longer.
    registry.note(&"alpha".parse().unwrap(), 2);
    put(&mut registry, &beta.active("n1", 1), time).unwrap();

    // A record past its time does not keep addresses either.
    let mut registry = empty();
    put(&mut registry, &alpha.active("n1", 1), time).unwrap();
    put(&mut registry, &beta.active("n1", 1), time.after(DAY * 2)).unwrap();
}

#[test]
fn of_two_clusters_with_one_name_the_earlier_stays() {
    let (first, second) = (cluster("alpha", 1), cluster("alpha", 2));
    let time = now();
    let put = |registry: &mut Registry, signed: &podspan_wire::SignedRecord, time| {
        registry.put(verified(signed), Duration::ZERO, time)
    };
    let mut registry = empty();
    put(&mut registry, &first.active("n1", 1), time).unwrap();
    for theirs in [second.active("n2", 1), second.active("n1", 9)] {
        let error = put(&mut registry, &theirs, time).unwrap_err();
        assert!(matches!(error, Refused::OtherKey { serial: 1, .. }), "{error}");
        assert!(error.to_string().contains("another name"), "{error}");
    }
    assert_eq!(registry.len(), 1);
    put(&mut registry, &first.active("n2", 1), time).unwrap();
    // Once nothing of the first stands any more, the name is free.
    put(&mut registry, &second.active("n3", 1), time.after(DAY * 2)).unwrap();
}
