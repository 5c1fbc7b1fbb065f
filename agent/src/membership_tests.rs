use super::*;
use podspan_wire::api::Token;
use podspan_wire::{ClusterKey, ClusterSetId, Lane, LaneKey, Record, RootKey};

pub(crate) const NOW: UnixTime = UnixTime(1_795_305_600);

pub(crate) struct Cluster {
    pub(crate) key: ClusterKey,
    pub(crate) grant: Grant,
}

pub(crate) fn root() -> RootKey {
    RootKey::from_seed(&[1; 32])
}

pub(crate) fn cluster(name: &str, index: u8) -> Cluster {
    let key = ClusterKey::from_seed(&[100 + index; 32]);
    let cidr = |text: String| text.parse().unwrap();
    let grant = Grant {
        cluster_set: ClusterSetId::new(root().public()),
        cluster: name.parse().unwrap(),
        cluster_key: key.public(),
        pod_cidrs: vec![cidr(format!("10.{index}.0.0/16")), cidr(format!("fd00:10:{index}::/48"))].into(),
        service_cidrs: vec![cidr(format!("10.{}.0.0/16", 100 + index))].into(),
        serial: 1,
        not_after: NOW.after(Duration::from_secs(86_400 * 365)),
        extensions: BTreeMap::new(),
    };
    Cluster { key, grant }
}

impl Cluster {
    pub(crate) fn record(&self, node: u8, gateway: bool, sequence: u64) -> Record {
        let index = self.grant.pod_cidrs.iter().next().unwrap().address().to_string();
        let index: u8 = index.split('.').nth(1).unwrap().parse().unwrap();
        Record {
            cluster_set: self.grant.cluster_set,
            cluster: self.grant.cluster.clone(),
            node: format!("node-{node}").parse().unwrap(),
            state: RecordState::Active,
            lanes: vec![Lane { key: LaneKey::from_bytes([node + 10 * index; 32]), port: 51840 }],
            endpoints: vec![format!("192.0.2.{}", 10 * index + node).parse().unwrap()],
            pod_cidrs: vec![
                format!("10.{index}.{node}.0/24").parse().unwrap(),
                format!("fd00:10:{index}:{node}::/64").parse().unwrap(),
            ]
            .into(),
            service_cidrs: if gateway { self.grant.service_cidrs.clone() } else { CidrSet::default() },
            gateway,
            version: Version { epoch: 1, sequence },
            not_after: NOW.after(Duration::from_secs(86_400)),
            extensions: BTreeMap::new(),
        }
    }

    pub(crate) fn sign(&self, record: &Record) -> SignedRecord {
        record.sign(&self.key, self.grant.sign(&root()))
    }

    pub(crate) fn entry(&self, record: &Record) -> WatchEvent {
        WatchEvent::Entry(Entry { revision: 1, lease: Lease::Fresh, signed: self.sign(record) })
    }
}

pub(crate) fn membership_of_alpha() -> Membership {
    let alpha = cluster("alpha", 1);
    Membership::new(
        Trust::new(alpha.grant.cluster_set),
        "alpha/node-1".parse().unwrap(),
        &alpha.grant,
        Known::default(),
        false,
        NOW,
    )
}

fn kinds(membership: &Membership) -> Vec<(RefusalKind, u64)> {
    membership.refusals().counts().iter().map(|(kind, n)| (*kind, *n)).collect()
}

fn bookmark() -> WatchEvent {
    WatchEvent::Bookmark { token: Token { store: "ab".into(), revision: 9 } }
}

#[test]
fn good_records_are_taken_in_and_bad_ones_refused_singly() {
    let (beta, gamma) = (cluster("beta", 2), cluster("gamma", 3));
    let mut m = membership_of_alpha();
    assert!(m.handle(0, beta.entry(&beta.record(1, true, 5)), NOW).nodes);

    // An older sequence, a record by another cluster's key, one outside its grant, one that ended.
    m.handle(0, beta.entry(&beta.record(1, true, 4)), NOW);
    let forged = beta.record(2, false, 1).sign(&gamma.key, beta.grant.sign(&root()));
    m.handle(0, WatchEvent::Entry(Entry { revision: 1, lease: Lease::Fresh, signed: forged }), NOW);
    let mut outside = beta.record(3, false, 1);
    outside.pod_cidrs = vec!["10.3.0.0/24".parse().unwrap()].into();
    m.handle(0, beta.entry(&outside), NOW);
    let mut expired = beta.record(4, false, 1);
    expired.not_after = UnixTime(NOW.0 - 1);
    m.handle(0, beta.entry(&expired), NOW);
    // A grant by another root.
    let usurped = gamma.record(1, true, 1).sign(&gamma.key, gamma.grant.sign(&RootKey::from_seed(&[9; 32])));
    m.handle(0, WatchEvent::Entry(Entry { revision: 1, lease: Lease::Fresh, signed: usurped }), NOW);

    assert!(m.handle(0, gamma.entry(&gamma.record(1, true, 1)), NOW).nodes, "the others go on working");
    assert_eq!(m.nodes().len(), 2);
    assert_eq!(
        kinds(&m),
        [
            (RefusalKind::GrantSignature, 1),
            (RefusalKind::RecordSignature, 1),
            (RefusalKind::RecordExpired, 1),
            (RefusalKind::OutsideGrant, 1),
            (RefusalKind::Replayed, 1)
        ]
    );
    assert_eq!(m.refusals().latest().count(), 5);
    assert!(m.refusals().latest().all(|r| !r.detail.is_empty() && r.claimed.is_some()));
}

#[test]
fn of_two_overlapping_clusters_the_earlier_stays_over_restarts() {
    let (beta, mut gamma) = (cluster("beta", 2), cluster("gamma", 3));
    gamma.grant.pod_cidrs = vec!["10.2.128.0/17".parse().unwrap()].into();
    let mut record = gamma.record(1, true, 1);
    record.pod_cidrs = vec!["10.2.200.0/24".parse().unwrap()].into();
    record.service_cidrs = CidrSet::default();
    let mut m = membership_of_alpha();
    m.handle(0, gamma.entry(&record), NOW);
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    assert_eq!(m.nodes().keys().map(ToString::to_string).collect::<Vec<_>>(), ["gamma/node-1"]);

    let alpha = cluster("alpha", 1);
    let mut again = Membership::new(
        Trust::new(alpha.grant.cluster_set),
        "alpha/node-1".parse().unwrap(),
        &alpha.grant,
        m.known(),
        false,
        NOW,
    );
    again.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    assert_eq!(again.nodes().len(), 1);
    assert!(again.nodes().values().all(|node| node.stale(NOW)), "nobody confirmed it yet");
    assert_eq!(kinds(&again), [(RefusalKind::Overlap, 1)]);
}

#[test]
fn a_cluster_that_would_swallow_the_endpoints_of_another_is_refused() {
    let (beta, mut gamma) = (cluster("beta", 2), cluster("gamma", 3));
    // Beta's gateway node-1 is at 192.0.2.21.
    gamma.grant.pod_cidrs = ["192.0.2.0/27".parse().unwrap()].into_iter().collect();
    let mut record = gamma.record(1, true, 1);
    record.pod_cidrs = gamma.grant.pod_cidrs.clone();
    record.service_cidrs = CidrSet::default();
    record.endpoints = vec!["203.0.113.1".parse().unwrap()];

    let mut membership = membership_of_alpha();
    membership.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    membership.handle(0, gamma.entry(&record), NOW);
    assert_eq!(membership.nodes().len(), 1);
    assert_eq!(membership.refusals().counts()[&RefusalKind::Overlap], 1);
    // An ordinary node's addresses are dialled by nobody.
    let mut membership = membership_of_alpha();
    membership.handle(0, beta.entry(&beta.record(1, false, 1)), NOW);
    membership.handle(0, gamma.entry(&record), NOW);
    assert_eq!(membership.nodes().len(), 2);
}

#[test]
fn overlap_with_this_node_is_refused() {
    let mut m = membership_of_alpha();
    let mut beta = cluster("beta", 2);
    beta.grant.service_cidrs = vec!["10.1.0.0/24".parse().unwrap()].into();
    let mut record = beta.record(1, true, 1);
    record.service_cidrs = CidrSet::default();
    m.handle(0, beta.entry(&record), NOW);
    assert_eq!(kinds(&m), [(RefusalKind::Overlap, 1)]);

    // The node's own underlay address within another cluster's CIDR, found out later.
    let gamma = cluster("gamma", 3);
    m.handle(0, gamma.entry(&gamma.record(1, true, 1)), NOW);
    assert_eq!(m.nodes().len(), 1);
    let alpha = cluster("alpha", 1);
    assert!(m.set_underlay(&alpha.grant, &vec!["10.3.7.0/24".parse().unwrap()].into(), NOW).nodes);
    assert!(m.nodes().is_empty());
}

#[test]
fn a_broker_can_leave_out_but_not_remove() {
    let beta = cluster("beta", 2);
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    assert!(!m.nodes().values().any(|node| node.stale(NOW)));
    m.handle(0, WatchEvent::Reset, NOW);
    assert!(m.handle(0, bookmark(), NOW).status);
    assert!(m.nodes().values().all(|node| node.stale(NOW)));
    // Listed again.
    assert!(m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW).status);
    assert!(!m.nodes().values().any(|node| node.stale(NOW)));
}

#[test]
fn a_withdrawal_removes_and_cannot_be_undone_by_replay() {
    let beta = cluster("beta", 2);
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    let mut gone = beta.record(1, true, 2);
    gone.state = RecordState::Withdrawn;
    assert!(m.handle(0, beta.entry(&gone), NOW).nodes);
    assert!(m.nodes().is_empty());
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    assert!(m.nodes().is_empty());
    assert_eq!(kinds(&m), [(RefusalKind::Replayed, 1)]);
}

#[test]
fn two_clusters_of_one_name_the_later_grant_holds() {
    let first = cluster("beta", 2);
    let mut second = cluster("beta", 2);
    second.key = ClusterKey::from_seed(&[77; 32]);
    second.grant.cluster_key = second.key.public();
    second.grant.serial = 2;
    let mut m = membership_of_alpha();
    m.handle(0, first.entry(&first.record(1, true, 1)), NOW);

    let mut twin = cluster("beta", 2);
    twin.key = ClusterKey::from_seed(&[78; 32]);
    twin.grant.cluster_key = twin.key.public();
    m.handle(0, twin.entry(&twin.record(9, true, 1)), NOW);
    assert_eq!(kinds(&m), [(RefusalKind::GrantSuperseded, 1)], "one serial, two keys: the first stays");
    assert!(
        m.refusals().latest().all(|refused| !refused.detail.contains("  ")),
        "{:?}",
        m.refusals().latest().collect::<Vec<_>>()
    );

    m.handle(0, second.entry(&second.record(2, true, 1)), NOW);
    assert_eq!(m.nodes().keys().map(ToString::to_string).collect::<Vec<_>>(), ["beta/node-2"]);
    m.handle(0, first.entry(&first.record(1, true, 2)), NOW);
    assert_eq!(kinds(&m), [(RefusalKind::GrantSuperseded, 2)]);
    assert_eq!(m.nodes().len(), 1);
}

#[test]
fn ended_records_are_kept_while_heard_and_forgotten_later() {
    let beta = cluster("beta", 2);
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    let end = beta.record(1, true, 1).not_after;
    let later = end.after(FORGET_AFTER + Duration::from_secs(1));
    assert!(!m.forget(end.after(Duration::from_secs(60)), |_| false).nodes);
    assert!(!m.forget(later, |_| true).nodes);
    assert!(m.forget(later, |_| false).nodes);
}

fn restarted(m: &Membership) -> Membership {
    let alpha = cluster("alpha", 1);
    let own = "alpha/node-1".parse().unwrap();
    Membership::new(Trust::new(alpha.grant.cluster_set), own, &alpha.grant, m.known(), false, NOW)
}

#[test]
fn a_node_on_its_clusters_former_grant_outlives_a_restart() {
    let beta = cluster("beta", 2);
    let mut renewed = cluster("beta", 2);
    renewed.grant.serial = 2;
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    m.handle(0, renewed.entry(&renewed.record(2, true, 1)), NOW);
    assert_eq!(m.nodes().len(), 2, "one key: the renewal replaces nobody");
    let mut again = restarted(&m);
    assert_eq!(again.nodes().len(), 2, "{:?}", kinds(&again));
    // What is new must stand on the newest grant, as before.
    again.handle(0, beta.entry(&beta.record(1, true, 2)), NOW);
    assert_eq!(kinds(&again), [(RefusalKind::GrantSuperseded, 1)]);
}

#[test]
fn a_kept_record_older_than_what_was_seen_is_refused() {
    let beta = cluster("beta", 2);
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 5)), NOW);
    let mut known = m.known();
    known.records = vec![beta.sign(&beta.record(1, true, 4))];
    let alpha = cluster("alpha", 1);
    let own = "alpha/node-1".parse().unwrap();
    let again = Membership::new(Trust::new(alpha.grant.cluster_set), own, &alpha.grant, known, false, NOW);
    assert_eq!(kinds(&again), [(RefusalKind::Replayed, 1)]);
}

#[test]
fn a_broker_cannot_change_between_two_records_of_one_version() {
    let beta = cluster("beta", 2);
    let (first, mut second) = (beta.record(1, true, 1), beta.record(1, true, 1));
    second.endpoints = vec!["192.0.2.99".parse().unwrap()];
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&first), NOW);
    assert!(!m.handle(0, beta.entry(&second), NOW).nodes);
    assert_eq!(m.nodes().values().next().unwrap().verified.record(), &first);
    assert_eq!(kinds(&m), [(RefusalKind::Replayed, 1)]);
    // The same record beside a renewed grant is no other record.
    let mut renewed = cluster("beta", 2);
    renewed.grant.serial = 2;
    assert!(m.handle(0, renewed.entry(&first), NOW).nodes);
}

#[test]
fn a_refused_record_does_not_confirm_its_node() {
    let beta = cluster("beta", 2);
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 2)), NOW);
    m.handle(0, WatchEvent::Reset, NOW);
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    m.handle(0, bookmark(), NOW);
    assert!(m.nodes().values().all(|node| node.stale(NOW)));
}

#[test]
fn of_several_brokers_one_that_confirms_is_enough() {
    let beta = cluster("beta", 2);
    let entry =
        |lease, record: &Record| WatchEvent::Entry(Entry { revision: 1, lease, signed: beta.sign(record) });
    let (first, second) = (beta.record(1, true, 1), beta.record(1, true, 2));
    let mut m = membership_of_alpha();
    let stale = |m: &Membership| m.nodes().values().next().unwrap().stale(NOW);
    for broker in [0, 1] {
        m.handle(broker, WatchEvent::Reset, NOW);
        m.handle(broker, entry(Lease::Fresh, &first), NOW);
        m.handle(broker, bookmark(), NOW);
    }
    // One of them loses sight of the node, and then its store.
    assert!(!m.handle(0, entry(Lease::Lapsed, &first), NOW).nodes);
    assert!(!stale(&m));
    m.handle(0, WatchEvent::Reset, NOW);
    assert!(m.resetting());
    m.handle(0, bookmark(), NOW);
    assert!(!stale(&m) && !m.resetting());
    // The other one too: nobody confirms it any more.
    assert!(m.handle(1, entry(Lease::Lapsed, &first), NOW).status);
    assert!(stale(&m));

    // A new record by one of them; the other is behind, and what it says of the former one means nothing.
    assert!(m.handle(0, entry(Lease::Fresh, &second), NOW).nodes);
    assert!(!stale(&m));
    assert_eq!(m.handle(1, entry(Lease::Fresh, &first), NOW), Changes::default());
    m.handle(0, entry(Lease::Lapsed, &second), NOW);
    assert!(stale(&m));
    assert_eq!(kinds(&m), [(RefusalKind::Replayed, 1)]);
    assert_eq!(m.refusals().latest().count(), 0, "a broker that is behind is nothing to look at");
    assert!(!m.handle(1, entry(Lease::Fresh, &second), NOW).nodes);
    assert!(!stale(&m));
    // Where it is the only one that is heard, a person should look at it.
    m.disconnected(0, true);
    m.handle(1, entry(Lease::Fresh, &first), NOW);
    assert_eq!(kinds(&m), [(RefusalKind::Replayed, 2)]);
    assert_eq!(m.refusals().latest().count(), 1);
}

#[test]
fn the_last_word_of_a_broker_that_is_gone() {
    let beta = cluster("beta", 2);
    let entry = |node, lease| {
        WatchEvent::Entry(Entry { revision: 1, lease, signed: beta.sign(&beta.record(node, true, 1)) })
    };
    let mut m = membership_of_alpha();
    m.handle(0, entry(1, Lease::Fresh), NOW);
    m.handle(1, entry(1, Lease::Lapsed), NOW);
    m.handle(0, entry(2, Lease::Fresh), NOW);
    let stale = |m: &Membership| m.nodes().values().map(|node| node.stale(NOW)).collect::<Vec<_>>();
    assert_eq!(stale(&m), [false, false]);
    // Of the first node the other broker knows more; of the second it knows nothing.
    assert!(m.disconnected(0, true).status);
    assert_eq!(stale(&m), [true, false]);
    // The other is gone too: what was said last stays.
    assert_eq!(m.disconnected(1, false), Changes::default());
    assert_eq!(stale(&m), [true, false]);
    // A reset that breaks off with its broker holds up nothing.
    m.handle(0, WatchEvent::Reset, NOW);
    m.disconnected(0, true);
    assert!(!m.resetting());
}

#[test]
fn the_own_record_at_several_brokers() {
    let alpha = cluster("alpha", 1);
    let mut m = membership_of_alpha();
    let entry = |sequence, lease| {
        WatchEvent::Entry(Entry { revision: 1, lease, signed: alpha.sign(&alpha.record(1, true, sequence)) })
    };
    let own = |m: &Membership| m.own_stored().map(|own| (own.version.sequence, own.held)).unwrap();
    m.handle(0, entry(1, Lease::Fresh), NOW);
    m.handle(1, entry(2, Lease::Fresh), NOW);
    assert_eq!(own(&m), (2, true));
    m.handle(1, entry(2, Lease::Lapsed), NOW);
    assert_eq!(own(&m), (2, false), "that somebody holds an older one does not matter");
    m.handle(0, entry(2, Lease::Fresh), NOW);
    assert_eq!(own(&m), (2, true));
    m.disconnected(0, true);
    assert_eq!(own(&m), (2, false));
}

#[test]
fn nodes_of_the_own_cluster_that_nobody_hears() {
    let alpha = cluster("alpha", 1);
    let entry = |sequence, state, lease| {
        let record = Record { state, ..alpha.record(2, true, sequence) };
        WatchEvent::Entry(Entry { revision: 1, lease, signed: alpha.sign(&record) })
    };
    let (active, withdrawn) = (RecordState::Active, RecordState::Withdrawn);
    let mut m = membership_of_alpha();
    let lapsed = |m: &Membership| m.lapsed_siblings().len();
    m.handle(0, entry(1, active, Lease::Fresh), NOW);
    assert_eq!(lapsed(&m), 0);
    m.handle(0, entry(1, active, Lease::Lapsed), NOW);
    assert_eq!(lapsed(&m), 1);
    m.handle(1, entry(1, active, Lease::Fresh), NOW);
    assert_eq!(lapsed(&m), 0, "another broker hears it");
    m.disconnected(1, true);
    assert_eq!(lapsed(&m), 1);
    m.handle(0, entry(2, withdrawn, Lease::Lapsed), NOW);
    assert_eq!(lapsed(&m), 0, "it is withdrawn");
    assert!(m.nodes().is_empty());
}

#[test]
fn nodes_of_the_own_cluster_outlive_a_restart_where_tunnels_are_held_with_them() {
    let (alpha, beta) = (cluster("alpha", 1), cluster("beta", 2));
    let begin = |known, needed| {
        let own = "alpha/node-1".parse().unwrap();
        Membership::new(Trust::new(alpha.grant.cluster_set), own, &alpha.grant, known, needed, NOW)
    };
    for needed in [false, true] {
        let mut m = begin(Known::default(), needed);
        m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
        let changes = m.handle(0, alpha.entry(&alpha.record(2, true, 1)), NOW);
        assert_eq!(changes, Changes { nodes: needed, status: true });
        assert!(!m.handle(0, alpha.entry(&alpha.record(2, true, 1)), NOW).nodes, "the same again");
        assert!(!m.handle(0, alpha.entry(&alpha.record(1, true, 1)), NOW).nodes, "this very node");
        assert_eq!(m.handle(0, alpha.entry(&alpha.record(2, true, 2)), NOW).nodes, needed);
        assert_eq!((m.siblings().len(), m.nodes().len()), (1, 1));

        let again = begin(m.known(), needed);
        assert_eq!((again.siblings().len(), again.nodes().len()), (usize::from(needed), 1));
        assert_eq!(again.refusals().total(), 0);

        // This node's clock is ahead for a while.
        let mut hasty = begin(Known::default(), needed);
        hasty.handle(0, alpha.entry(&alpha.record(2, true, 1)), NOW.after(Duration::from_secs(5 * 86_400)));
        assert!(hasty.siblings().is_empty());
        assert_eq!(hasty.reconsider(NOW).nodes, needed);
        assert_eq!(hasty.siblings().len(), usize::from(needed));

        let late = NOW.after(Duration::from_secs(30 * 86_400));
        let mut forgetful = begin(m.known(), needed);
        assert!(forgetful.forget(late, |_| false).nodes);
        assert!(forgetful.siblings().is_empty());

        let withdrawn = Record { state: RecordState::Withdrawn, ..alpha.record(2, true, 3) };
        assert_eq!(m.handle(0, alpha.entry(&withdrawn), NOW).nodes, needed);
        assert!(m.siblings().is_empty());
    }
}

#[test]
fn a_reset_that_broke_off_marks_nobody() {
    let (beta, gamma) = (cluster("beta", 2), cluster("gamma", 3));
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    m.handle(0, gamma.entry(&gamma.record(1, true, 1)), NOW);
    m.handle(0, WatchEvent::Reset, NOW);
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    // The connection breaks; the next one begins with a reset again, and gamma comes first.
    m.handle(0, WatchEvent::Reset, NOW);
    m.handle(0, gamma.entry(&gamma.record(1, true, 1)), NOW);
    assert!(m.nodes().values().all(|node| !node.stale(NOW)), "nothing is settled yet");
    m.handle(0, bookmark(), NOW);
    let stale: Vec<bool> = m.nodes().values().map(|node| node.stale(NOW)).collect();
    assert_eq!(stale, [true, false]);
}

#[test]
fn an_overlap_that_ends_lets_the_other_cluster_in_without_a_new_record() {
    let (beta, mut gamma) = (cluster("beta", 2), cluster("gamma", 3));
    gamma.grant.pod_cidrs = beta.grant.pod_cidrs.clone();
    let mut record = gamma.record(1, true, 1);
    record.pod_cidrs = CidrSet::default();
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    m.handle(0, gamma.entry(&record), NOW);
    assert_eq!(kinds(&m), [(RefusalKind::Overlap, 1)]);
    let mut gone = beta.record(1, true, 2);
    gone.state = RecordState::Withdrawn;
    assert!(m.handle(0, beta.entry(&gone), NOW).nodes);
    assert_eq!(m.nodes().keys().map(ToString::to_string).collect::<Vec<_>>(), ["gamma/node-1"]);
    assert_eq!(kinds(&m), [(RefusalKind::Overlap, 1)], "counted once");
}

#[test]
fn an_underlay_that_comes_and_goes_loses_no_cluster() {
    let (alpha, gamma) = (cluster("alpha", 1), cluster("gamma", 3));
    let mut m = membership_of_alpha();
    m.handle(0, gamma.entry(&gamma.record(1, true, 1)), NOW);
    m.set_underlay(&alpha.grant, &vec!["10.3.7.0/24".parse().unwrap()].into(), NOW);
    assert!(m.nodes().is_empty());
    assert!(m.set_underlay(&alpha.grant, &CidrSet::default(), NOW).nodes);
    assert_eq!(m.nodes().len(), 1, "the broker does not send it again");
}

#[test]
fn records_refused_by_a_wrong_clock_are_taken_in_when_it_is_set() {
    let beta = cluster("beta", 2);
    let mut m = membership_of_alpha();
    let ahead = NOW.after(Duration::from_secs(2 * 86_400));
    m.handle(0, beta.entry(&beta.record(1, true, 1)), ahead);
    assert_eq!(kinds(&m), [(RefusalKind::RecordExpired, 1)]);
    assert!(!m.forget(ahead, |_| false).nodes);
    assert!(m.forget(NOW, |_| false).nodes);
    assert_eq!(m.nodes().len(), 1);
}

#[test]
fn a_withdrawal_counts_though_its_cluster_overlaps() {
    let (beta, mut gamma) = (cluster("beta", 2), cluster("gamma", 3));
    gamma.grant.pod_cidrs = beta.grant.pod_cidrs.clone();
    let mut record = gamma.record(1, true, 1);
    record.pod_cidrs = CidrSet::default();
    let mut m = membership_of_alpha();
    m.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
    m.handle(0, gamma.entry(&record), NOW);
    let active = record.clone();
    (record.state, record.version.sequence) = (RecordState::Withdrawn, 2);
    assert!(m.handle(0, gamma.entry(&record), NOW).nodes, "to be kept on disk");
    assert!(!m.handle(0, gamma.entry(&record), NOW).nodes, "said once");
    // Beta goes; gamma's former record must not come back.
    let mut gone = beta.record(1, true, 2);
    gone.state = RecordState::Withdrawn;
    m.handle(0, beta.entry(&gone), NOW);
    m.handle(0, gamma.entry(&active), NOW);
    assert!(m.nodes().is_empty());
    assert_eq!(kinds(&m), [(RefusalKind::Replayed, 1), (RefusalKind::Overlap, 1)]);
}

#[test]
fn another_cluster_of_this_ones_name_is_told_and_moves_nothing() {
    let mut twin = cluster("alpha", 4);
    let mut m = membership_of_alpha();
    let mut record = twin.record(1, true, 9);
    record.version.epoch = u64::MAX;
    m.handle(0, twin.entry(&record), NOW);
    assert_eq!(m.own_high_water(), None, "this node's versions are not the twin's to raise");
    assert_eq!(m.own_stored(), None);
    let detail = m.refusals().latest().next().unwrap().detail.clone();
    assert!(detail.contains("another cluster uses the name"), "{detail}");
    twin.grant.serial = 2;
    m.handle(0, twin.entry(&record), NOW);
    let detail = m.refusals().latest().next().unwrap().detail.clone();
    assert!(detail.contains("out of date"), "{detail}");
}

#[test]
fn what_the_broker_has_of_this_node_is_known() {
    let alpha = cluster("alpha", 1);
    let entry =
        |lease, record: &Record| WatchEvent::Entry(Entry { revision: 1, lease, signed: alpha.sign(record) });
    let held = |m: &Membership| m.own_stored().map(|own| own.held);
    let mut m = membership_of_alpha();
    let mut record = alpha.record(1, true, 1);
    m.handle(0, entry(Lease::Fresh, &record), NOW);
    assert_eq!(held(&m), Some(true));
    m.handle(0, entry(Lease::Lapsed, &record), NOW);
    assert_eq!(held(&m), Some(false));
    m.handle(0, entry(Lease::Fresh, &record), NOW);
    m.handle(0, WatchEvent::Reset, NOW);
    m.handle(0, bookmark(), NOW);
    assert_eq!(held(&m), Some(false), "the broker lost it");
    (record.state, record.version.sequence) = (RecordState::Withdrawn, 2);
    m.handle(0, entry(Lease::Fresh, &record), NOW);
    assert_eq!(held(&m), Some(false));
    assert_eq!(m.own_high_water(), Some(record.version));
}

#[test]
fn refusals_are_bounded_and_stop_being_a_problem() {
    let beta = cluster("beta", 2);
    let mut m = membership_of_alpha();
    for n in 0..200 {
        let mut record = beta.record(1, true, 1);
        record.node = format!("liar-{n}").parse().unwrap();
        record.pod_cidrs = vec!["10.3.0.0/24".parse().unwrap()].into();
        m.handle(0, beta.entry(&record), NOW);
    }
    assert_eq!(m.refusals().total(), 200);
    assert_eq!(m.refusals().latest().count(), 32);
    assert_eq!(m.refusals().problems(NOW).count(), 32);
    let later = NOW.after(Duration::from_secs(2 * 86_400));
    assert_eq!(m.refusals().problems(later).count(), 0);
    assert_eq!(m.refusals().latest().count(), 32, "still named");
}
