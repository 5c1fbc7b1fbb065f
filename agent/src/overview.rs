//! The status document: what every part knows, put together for a person. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podspan_dataplane::{DropCounts, PeerStatus};
use podspan_wire::status::{
    BlackHole, BrokerStatus, ClusterStatus, DeliveryStatus, KernelStatus, LaneStatus, LocalLane, LocalNode,
    NodeStatus, PathStatus, ProbeStatus, Reachability, Status, WorkerStatus,
};
use podspan_wire::{Cidr, CidrSet, ClusterId, Grant, Lane, NodeId, UnixTime};

use crate::facts::LocalFacts;
use crate::membership::Membership;
use crate::pod_delivery::report;
use crate::publish::Published;

/// How long a first handshake may take before a peer counts as down rather than connecting.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// From when on the end of the grant is a problem to show.
const GRANT_WARNING: Duration = Duration::from_secs(30 * 86_400);
/// How long the brokers may be silent before it is a problem to show; bookmarks come every 10 s.
const BROKER_SILENCE: Duration = Duration::from_secs(60);

/// What [`overview`] reads.
pub struct Parts<'a> {
    /// The wall-clock time.
    pub now: UnixTime,
    /// When the agent started.
    pub started: UnixTime,
    /// This cluster's grant.
    pub grant: &'a Grant,
    /// The facts about this node.
    pub facts: &'a LocalFacts,
    /// Where they come from.
    pub source: &'a str,
    /// This node's lanes.
    pub lanes: &'a [Lane],
    /// The tunnel's MTU.
    pub mtu: u32,
    /// The underlay's.
    pub underlay_mtu: u32,
    /// Those of the routes to other clusters.
    pub route_mtus: Option<&'a BTreeMap<Cidr, u32>>,
    /// The other clusters.
    pub membership: &'a Membership,
    /// The state of the packet path.
    pub dataplane: &'a podspan_dataplane::Status,
    /// The state of the kernel.
    pub kernel: KernelStatus,
    /// The state of the way to the brokers.
    pub broker: &'a BrokerStatus,
    /// How publishing goes.
    pub published: &'a Published,
    /// The tunnels inside the cluster, if there are any.
    pub delivery: Option<DeliveryStatus>,
    /// Why this node drains, if it does.
    pub draining: Option<&'a str>,
    /// How many pods are attached.
    pub attachments: usize,
    /// What the other parts found to be wrong.
    pub problems: &'a [String],
}

/// Puts the document together.
#[must_use]
pub fn overview(parts: Parts<'_>) -> Status {
    let id = NodeId { cluster: parts.grant.cluster.clone(), node: parts.facts.node.clone() };
    let peers: BTreeMap<&NodeId, &PeerStatus> =
        parts.dataplane.peers.iter().map(|peer| (&peer.id, peer)).collect();
    let clusters = clusters(&parts, &peers);
    let workers: Vec<WorkerStatus> = parts
        .dataplane
        .workers
        .iter()
        .map(|worker| WorkerStatus {
            lane: worker.lane,
            port: worker.port,
            failed: worker.failed.clone(),
            drops: drops(&worker.drops),
        })
        .collect();
    let mut broker = parts.broker.clone();
    broker.last_published = parts.published.acknowledged;
    let problems = problems(&parts, &clusters, &workers);
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: parts.now,
        started: parts.started,
        node: LocalNode {
            cluster_set: parts.grant.cluster_set,
            id,
            gateway: parts.facts.gateway,
            draining: parts.draining.map(str::to_owned),
            endpoints: parts.facts.endpoints.clone(),
            lanes: parts.lanes.iter().map(|lane| LocalLane { key: lane.key, port: lane.port }).collect(),
            pod_cidrs: parts.facts.pod_cidrs.clone(),
            service_cidrs: parts.facts.service_cidrs.clone(),
            host_addresses: parts.facts.host_addresses(),
            record: parts.published.version,
            mtu: parts.mtu,
            underlay_mtu: parts.underlay_mtu,
            source: parts.source.to_owned(),
            discovery: parts.facts.discovery.clone(),
            grant_not_after: parts.grant.not_after,
        },
        broker,
        clusters,
        delivery: parts.delivery,
        kernel: parts.kernel,
        attachments: parts.attachments,
        refusals: parts.membership.refusals().counts().clone(),
        refused: parts.membership.refusals().latest().cloned().collect(),
        workers,
        problems,
    }
}

fn clusters(parts: &Parts<'_>, peers: &BTreeMap<&NodeId, &PeerStatus>) -> Vec<ClusterStatus> {
    let mut clusters: BTreeMap<ClusterId, (CidrSet, CidrSet, Vec<NodeStatus>)> = BTreeMap::new();
    for (id, node) in parts.membership.nodes() {
        let record = node.verified.record();
        let young = parts.now.since(node.since) < CONNECT_TIME;
        let lanes: Vec<LaneStatus> = peers
            .get(id)
            .map(|peer| peer.lanes.iter().map(|l| lane(l, parts.now)).collect())
            .unwrap_or_default();
        let status = NodeStatus {
            id: id.clone(),
            gateway: record.gateway,
            state: node_state(record.gateway, &lanes, young),
            stale: node.stale(parts.now),
            version: record.version,
            pod_cidrs: record.pod_cidrs.clone(),
            lanes,
        };
        let (cidrs, service_cidrs, nodes) = clusters.entry(id.cluster.clone()).or_default();
        let grant = node.verified.grant();
        join(cidrs, &grant.cidrs());
        join(service_cidrs, &grant.service_cidrs);
        nodes.push(status);
    }
    clusters
        .into_iter()
        .map(|(cluster, (cidrs, service_cidrs, nodes))| ClusterStatus {
            cluster,
            state: cluster_state(&nodes),
            path_mtu: parts
                .route_mtus
                .and_then(|mtus| cidrs.iter().find_map(|cidr| mtus.get(cidr)))
                .map(|mtu| (*mtu).min(parts.mtu)),
            cidrs,
            service_cidrs,
            nodes,
        })
        .collect()
}

/// Adds `more` to `all`. Most nodes of a cluster stand on one grant, so that there is seldom anything to add.
fn join(all: &mut CidrSet, more: &CidrSet) {
    if !more.iter().all(|cidr| all.iter().any(|known| known == cidr)) {
        *all = all.iter().chain(more.iter()).copied().collect();
    }
}

fn lane(lane: &podspan_dataplane::LaneStatus, now: UnixTime) -> LaneStatus {
    LaneStatus {
        local: lane.local,
        remote: lane.remote,
        endpoint: lane.endpoint,
        established: lane.established,
        handshake_age: lane.handshake_age.map(|age| age.as_secs_f64()),
        rtt_us: lane.rtt.map(micros),
        probes: ProbeStatus {
            liveness: lane.liveness,
            changes: lane.changes,
            jitter_us: lane.jitter.map(micros),
            loss: lane.loss,
            last_answer_age: lane.last_reply_age.map(|age| age.as_secs_f64()),
            sent: lane.probes_sent,
            answered: lane.probes_answered,
            given: lane.replies_sent,
        },
        path: PathStatus {
            mtu: lane.path.mtu.map(u32::from),
            black_hole: lane.path.black_hole.map(|hole| BlackHole {
                found: UnixTime(now.0.saturating_sub(hole.age.as_secs())),
                passed: hole.size.into(),
            }),
            black_holes: lane.path.black_holes,
            probes: lane.path.probes,
        },
        rx_bytes: lane.rx_bytes,
        tx_bytes: lane.tx_bytes,
        rx_packets: lane.rx_packets,
        tx_packets: lane.tx_packets,
        drops: drops(&lane.drops),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn drops(counts: &DropCounts) -> BTreeMap<String, u64> {
    counts.iter().filter(|(_, n)| *n > 0).map(|(cause, n)| (cause.label().to_owned(), n)).collect()
}

fn node_state(gateway: bool, lanes: &[LaneStatus], young: bool) -> Reachability {
    let up = lanes.iter().filter(|lane| lane.established).count();
    match (gateway, up) {
        // Nobody dials an ordinary node: without a session of its own its cluster's gateways pass on.
        (false, 0) => Reachability::Via,
        (_, n) if n > 0 && n == lanes.len() => Reachability::Up,
        (_, n) if n > 0 => Reachability::Degraded,
        _ if young => Reachability::Connecting,
        _ => Reachability::Down,
    }
}

fn cluster_state(nodes: &[NodeStatus]) -> Reachability {
    let gateways: Vec<Reachability> =
        nodes.iter().filter(|node| node.gateway).map(|node| node.state).collect();
    let all = |state| !gateways.is_empty() && gateways.iter().all(|s| *s == state);
    if all(Reachability::Up) {
        Reachability::Up
    } else if gateways.iter().any(|s| matches!(s, Reachability::Up | Reachability::Degraded)) {
        Reachability::Degraded
    } else if gateways.contains(&Reachability::Connecting) {
        Reachability::Connecting
    } else {
        Reachability::Down
    }
}

/// What is wrong with the way to a cluster, if anything. That it has no gateway at all is told by
/// [`crate::desired`].
fn reach_problem(cluster: &ClusterStatus) -> Option<String> {
    let gateways: Vec<&NodeStatus> = cluster.nodes.iter().filter(|node| node.gateway).collect();
    let named = |state| {
        let names: Vec<&str> =
            gateways.iter().filter(|n| n.state == state).map(|n| n.id.node.as_str()).collect();
        (names.len(), names.join(", "))
    };
    let (down, silent) = named(Reachability::Down);
    let (degraded, partly) = named(Reachability::Degraded);
    let avoided: Vec<String> = gateways
        .iter()
        .filter(|n| n.liveness().is_avoided())
        .map(|n| format!("{} is {}: {}", n.id.node, n.liveness().label(), n.liveness().meaning()))
        .collect();
    if gateways.is_empty() {
        None
    } else if cluster.state == Reachability::Down {
        Some(format!(
            "cluster {} cannot be reached: no gateway of {} answers ({silent}); is its UDP port open?",
            cluster.cluster,
            gateways.len(),
        ))
    } else if down > 0 {
        Some(format!(
            "cluster {}: {down} of {} gateways do not answer ({silent})",
            cluster.cluster,
            gateways.len()
        ))
    } else if !avoided.is_empty() {
        Some(format!(
            "cluster {}: avoided where there is another way: {}",
            cluster.cluster,
            avoided.join("; ")
        ))
    } else if degraded > 0 {
        Some(format!(
            "cluster {}: only some lanes work to {partly}; are all of its UDP ports open?",
            cluster.cluster
        ))
    } else {
        None
    }
}

/// What a person should know of paths to a cluster on which large packets vanish.
pub fn black_hole(cluster: &ClusterStatus) -> Option<String> {
    let holes = cluster.nodes.iter().flat_map(|node| node.lanes.iter().map(move |lane| (node, lane)));
    let mut holes: Vec<(&NodeStatus, &LaneStatus, BlackHole)> =
        holes.filter_map(|(node, lane)| Some((node, lane, lane.path.black_hole?))).collect();
    holes.sort_by_key(|(.., hole)| hole.found);
    let (node, lane, hole) = holes.first()?;
    let at = lane.endpoint.map(|endpoint| format!(" ({})", endpoint.ip())).unwrap_or_default();
    let more = match holes.iter().map(|(node, ..)| &node.id).collect::<BTreeSet<_>>().len() {
        1 => String::new(),
        n => format!(", and on those to others ({n} in all)"),
    };
    let now = lane.path.mtu.map_or_else(|| "less".to_owned(), |mtu| format!("{mtu} bytes"));
    Some(format!(
        "cluster {}: black hole found at {} on the path to {}{at}{more}: packets of {} bytes passed, now {now} do, and \
         nobody says so; podspan sends no larger ones. Look for a link whose MTU was lowered, and for a firewall that \
         drops ICMP",
        cluster.cluster, hole.found, node.id.node, hole.passed
    ))
}

/// What a person should look at, worst first.
fn problems(parts: &Parts<'_>, clusters: &[ClusterStatus], workers: &[WorkerStatus]) -> Vec<String> {
    let mut problems = Vec::new();
    for worker in workers {
        if let Some(why) = &worker.failed {
            problems.push(format!("the worker of lane {} does not run: {why}", worker.lane));
        }
    }
    problems.extend(clusters.iter().filter_map(reach_problem));
    problems.extend(clusters.iter().filter_map(black_hole));
    problems.extend(parts.delivery.iter().flat_map(report::problems));
    problems.extend(parts.kernel.failing.iter().map(|failing| format!("in the kernel: {failing}")));
    problems.extend(parts.problems.iter().cloned());
    problems.extend(
        parts.published.problem.as_ref().map(|why| format!("this node's record is not published: {why}")),
    );
    problems.extend(
        parts.published.partly.as_ref().map(|why| format!("not every broker has this node's record: {why}")),
    );
    if parts.broker.connected.is_some() && parts.published.partly.is_none() {
        let errors = parts.broker.errors.iter();
        problems.extend(errors.map(|(broker, error)| {
            format!("the broker {broker} is not heard, others are and nothing is held up: {error}")
        }));
    }
    if parts.broker.connected.is_none() {
        let silent =
            parts.broker.last_heard.map_or_else(|| parts.now.since(parts.started), |at| parts.now.since(at));
        if silent >= BROKER_SILENCE || !parts.broker.errors.is_empty() {
            let errors: Vec<String> =
                parts.broker.errors.iter().map(|(broker, error)| format!("{broker}: {error}")).collect();
            problems.push(format!(
                "no broker answers since {} s; what is known stays in use ({})",
                silent.as_secs(),
                errors.join("; ")
            ));
        }
    }
    let left = parts.grant.not_after.since(parts.now);
    if left == Duration::ZERO {
        problems.push(format!(
            "the grant of this cluster ended at {}: other clusters refuse its records; renew it",
            parts.grant.not_after
        ));
    } else if left < GRANT_WARNING {
        problems
            .push(format!("the grant of this cluster ends at {}: renew it in time", parts.grant.not_after));
    }
    for cluster in clusters {
        let stale: Vec<&str> = cluster.nodes.iter().filter(|n| n.stale).map(|n| n.id.node.as_str()).collect();
        // While no broker answers, everything is stale; that was said.
        if !stale.is_empty() && parts.broker.connected.is_some() {
            problems.push(format!(
                "cluster {}: not heard from by the broker: {}",
                cluster.cluster,
                stale.join(", ")
            ));
        }
    }
    for refused in parts.membership.refusals().problems(parts.now) {
        problems.push(format!("refused {} times, last at {}: {}", refused.times, refused.at, refused.detail));
    }
    problems
}

/// Whether the node forwards: what `/readyz` answers.
///
/// # Errors
/// What is not ready yet. The state of other clusters is no reason: a node whose peers are down is not
/// at fault.
pub fn ready(status: &Status) -> Result<(), Vec<String>> {
    let mut reasons = Vec::new();
    reasons.extend(
        status.workers.iter().filter_map(|w| w.failed.as_ref().map(|why| format!("lane {}: {why}", w.lane))),
    );
    if status.workers.is_empty() {
        reasons.push("no worker runs".to_owned());
    }
    reasons.extend(status.kernel.failing.iter().cloned());
    if status.kernel.interface.is_empty() {
        reasons.push("nothing was set up in the kernel yet".to_owned());
    }
    if status.broker.last_heard.is_none() && status.clusters.is_empty() {
        reasons.push("no broker was heard yet and nothing is known from before".to_owned());
    }
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(established: &[bool]) -> Vec<LaneStatus> {
        established
            .iter()
            .enumerate()
            .map(|(i, &established)| LaneStatus {
                local: i,
                remote: i,
                endpoint: None,
                established,
                handshake_age: None,
                rtt_us: None,
                probes: ProbeStatus::default(),
                path: PathStatus::default(),
                rx_bytes: 0,
                tx_bytes: 0,
                rx_packets: 0,
                tx_packets: 0,
                drops: BTreeMap::new(),
            })
            .collect()
    }

    #[test]
    fn states_of_nodes() {
        use Reachability::{Connecting, Degraded, Down, Up, Via};
        for (gateway, established, young, state) in [
            (true, &[true, true][..], false, Up),
            (true, &[true, false], false, Degraded),
            (true, &[false, false], false, Down),
            (true, &[false, false], true, Connecting),
            (true, &[], false, Down),
            (false, &[], false, Via),
            (false, &[false], false, Via),
            (false, &[true], false, Up),
        ] {
            assert_eq!(
                node_state(gateway, &lanes(established), young),
                state,
                "{gateway} {established:?} {young}"
            );
        }
    }

    fn cluster(nodes: &[(bool, Reachability)]) -> ClusterStatus {
        let nodes: Vec<NodeStatus> = nodes
            .iter()
            .enumerate()
            .map(|(i, &(gateway, state))| NodeStatus {
                id: format!("beta/node-{i}").parse().unwrap(),
                gateway,
                state,
                stale: false,
                version: Default::default(),
                pod_cidrs: CidrSet::default(),
                lanes: Vec::new(),
            })
            .collect();
        ClusterStatus {
            cluster: "beta".parse().unwrap(),
            state: cluster_state(&nodes),
            cidrs: CidrSet::default(),
            path_mtu: None,
            service_cidrs: CidrSet::default(),
            nodes,
        }
    }

    #[test]
    fn a_black_hole_is_named() {
        let mut cluster = cluster(&[(true, Reachability::Up), (true, Reachability::Up)]);
        for (n, node) in cluster.nodes.iter_mut().enumerate() {
            node.lanes = lanes(&[true, true]);
            node.lanes.iter_mut().for_each(|lane| {
                lane.endpoint = Some(format!("192.0.2.{n}:51840").parse().unwrap());
                lane.path.mtu = Some(1440);
            });
        }
        assert_eq!(black_hole(&cluster), None);
        let hole = |found| Some(BlackHole { found: UnixTime(found), passed: 1440 });
        for (lane, found) in [(0, 1_795_305_600), (1, 1_795_305_700)] {
            cluster.nodes[1].lanes[lane].path.black_hole = hole(found);
            cluster.nodes[1].lanes[lane].path.mtu = Some(1340);
        }
        let text = black_hole(&cluster).unwrap();
        assert_eq!(
            text,
            "cluster beta: black hole found at 2026-11-22T00:00:00Z on the path to node-1 (192.0.2.1): packets of 1440 \
             bytes passed, now 1340 bytes do, and nobody says so; podspan sends no larger ones. Look for a link whose MTU \
             was lowered, and for a firewall that drops ICMP"
        );
        cluster.nodes[0].lanes[0].path.black_hole = hole(1_795_305_800);
        assert!(black_hole(&cluster).unwrap().contains("and on those to others (2 in all)"));
    }

    #[test]
    fn the_way_to_a_cluster_in_words() {
        use Reachability::{Connecting, Degraded, Down, Up, Via};
        for (nodes, words) in [
            (&[(true, Up), (false, Via)][..], None),
            (&[(true, Connecting), (true, Up)], None),
            (
                &[(true, Down), (true, Down)],
                Some("cannot be reached: no gateway of 2 answers (node-0, node-1)"),
            ),
            (&[(true, Up), (true, Down)], Some("1 of 2 gateways do not answer (node-1)")),
            (&[(true, Degraded), (true, Up)], Some("only some lanes work to node-0")),
            // Told in other words, by what found it.
            (&[(false, Via)], None),
        ] {
            let problem = reach_problem(&cluster(nodes));
            match words {
                None => assert_eq!(problem, None, "{nodes:?}"),
                Some(words) => assert!(problem.as_ref().unwrap().contains(words), "{nodes:?}: {problem:?}"),
            }
        }
    }

    #[test]
    fn a_cluster_that_joins_later_is_connecting_at_first() {
        use crate::membership::tests::{NOW, cluster, membership_of_alpha};
        let beta = cluster("beta", 2);
        let mut membership = membership_of_alpha();
        membership.handle(0, beta.entry(&beta.record(1, true, 1)), NOW);
        let alpha = cluster("alpha", 1);
        let facts = LocalFacts::new("node-1".parse().unwrap());
        let look = |now: UnixTime| {
            overview(Parts {
                now,
                started: UnixTime(NOW.0 - 86_400),
                grant: &alpha.grant,
                facts: &facts,
                source: "file",
                lanes: &[],
                mtu: 1420,
                underlay_mtu: 1500,
                route_mtus: None,
                membership: &membership,
                dataplane: &podspan_dataplane::Status::default(),
                kernel: KernelStatus::default(),
                broker: &BrokerStatus::default(),
                published: &Published::default(),
                delivery: None,
                draining: None,
                attachments: 0,
                problems: &[],
            })
        };
        let state = |status: &Status| status.clusters[0].state;
        let status = look(NOW.after(Duration::from_secs(2)));
        assert_eq!(state(&status), Reachability::Connecting);
        assert!(!status.problems.iter().any(|problem| problem.contains("beta")), "{:?}", status.problems);
        assert!(ready(&status).unwrap_err().iter().any(|why| why.contains("kernel")));
        let status = look(NOW.after(CONNECT_TIME));
        assert_eq!(state(&status), Reachability::Down);
        assert!(status.problems.iter().any(|problem| problem.contains("beta cannot be reached")));
    }
}
