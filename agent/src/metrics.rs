//! The status document as metrics (OpenMetrics text), taken at the time of the scrape.

use std::fmt;

use podspan_wire::RefusalKind;
use podspan_wire::status::{LaneStatus, Liveness, NodeStatus, Reachability, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// Writes the metrics of `status`.
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub fn encode(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("podspan");
    registry.register_collector(Box::new(StatusMetrics(status)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// The states a cluster can be in.
const STATES: [Reachability; 4] =
    [Reachability::Up, Reachability::Degraded, Reachability::Connecting, Reachability::Down];

#[derive(Debug)]
struct StatusMetrics(Status);

type Labels = Vec<(&'static str, String)>;

/// One metric family: a name, and a value for each set of labels.
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    values: Vec<(Labels, f64)>,
}

impl Family {
    fn encode(self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), self.kind)?;
        let encode = |value: f64, metric: MetricEncoder<'_>| match self.kind {
            // Counts stay below 2^53.
            MetricType::Counter => ConstCounter::new(value as u64).encode(metric),
            _ => ConstGauge::new(value).encode(metric),
        };
        if let [(labels, value)] = self.values.as_slice()
            && labels.is_empty()
        {
            return encode(*value, family);
        }
        self.values.iter().try_for_each(|(labels, value)| encode(*value, family.encode_family(labels)?))
    }
}

impl StatusMetrics {
    fn lanes(&self) -> impl Iterator<Item = (&NodeStatus, &LaneStatus)> {
        self.0
            .clusters
            .iter()
            .flat_map(|c| &c.nodes)
            .flat_map(|node| node.lanes.iter().map(move |lane| (node, lane)))
    }

    fn per_lane(&self, value: impl Fn(&LaneStatus) -> Option<f64>) -> Vec<(Labels, f64)> {
        self.lanes()
            .filter_map(|(node, lane)| value(lane).map(|value| (lane_labels(node, lane), value)))
            .collect()
    }
}

fn lane_labels(node: &NodeStatus, lane: &LaneStatus) -> Labels {
    vec![
        ("cluster", node.id.cluster.to_string()),
        ("node", node.id.node.to_string()),
        ("lane", lane.local.to_string()),
        ("remote_lane", lane.remote.to_string()),
    ]
}

impl Collector for StatusMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let status = &self.0;
        let truth = |b: bool| f64::from(u8::from(b));
        let family = |name, help, unit, kind, values| Family { name, help, unit, kind, values };
        let mut drops = Vec::new();
        for (node, lane) in self.lanes() {
            for (cause, n) in &lane.drops {
                let mut labels = lane_labels(node, lane);
                labels.push(("cause", cause.clone()));
                drops.push((labels, *n as f64));
            }
        }
        let worker_drops = status.workers.iter().flat_map(|worker| {
            worker.drops.iter().map(|(cause, n)| {
                (vec![("lane", worker.lane.to_string()), ("cause", cause.clone())], *n as f64)
            })
        });
        let families = [
            family(
                "build_info",
                "The agent's version",
                None,
                Gauge,
                vec![(vec![("version", status.version.clone())], 1.0)],
            ),
            family(
                "start_time",
                "When the agent started",
                Some(Unit::Seconds),
                Gauge,
                vec![(vec![], status.started.0 as f64)],
            ),
            family(
                "peer_established",
                "Whether a tunnel has a session that both ends confirmed",
                None,
                Gauge,
                self.per_lane(|lane| Some(truth(lane.established))),
            ),
            family(
                "peer_handshake_age",
                "Time since a tunnel's last handshake",
                Some(Unit::Seconds),
                Gauge,
                self.per_lane(|lane| lane.handshake_age),
            ),
            family(
                "peer_rtt",
                "Round trip through a tunnel, by probes or else by its last handshake",
                Some(Unit::Seconds),
                Gauge,
                self.per_lane(|lane| lane.rtt_us.map(|us| us as f64 / 1e6)),
            ),
            family(
                "peer_jitter",
                "Mean deviation of a tunnel's round trips",
                Some(Unit::Seconds),
                Gauge,
                self.per_lane(|lane| lane.probes.jitter_us.map(|us| us as f64 / 1e6)),
            ),
            family(
                "peer_loss_ratio",
                "The part of a tunnel's last probes, at most 32, that was not answered",
                None,
                Gauge,
                self.per_lane(|lane| lane.probes.loss),
            ),
            family(
                "peer_last_answer_age",
                "Time since a probe of a tunnel was answered",
                Some(Unit::Seconds),
                Gauge,
                self.per_lane(|lane| lane.probes.last_answer_age),
            ),
            family(
                "node_liveness",
                "What probes say of a remote node that tunnels lead to: 1 for its state, 0 for the others",
                None,
                Gauge,
                status
                    .clusters
                    .iter()
                    .flat_map(|c| &c.nodes)
                    .filter(|node| !node.lanes.is_empty())
                    .flat_map(|node| {
                        let labels = |state: Liveness| {
                            vec![
                                ("cluster", node.id.cluster.to_string()),
                                ("node", node.id.node.to_string()),
                                ("state", state.label().to_owned()),
                            ]
                        };
                        let now = node.liveness();
                        Liveness::ALL.map(|state| (labels(state), truth(state == now)))
                    })
                    .collect(),
            ),
            family(
                "peer_liveness_changes",
                "How often the liveness of a tunnel has changed",
                None,
                Counter,
                self.per_lane(|lane| Some(lane.probes.changes as f64)),
            ),
            family(
                "peer_probes_sent",
                "Probes sent through a tunnel",
                None,
                Counter,
                self.per_lane(|lane| Some(lane.probes.sent as f64)),
            ),
            family(
                "peer_probes_answered",
                "Probes sent through a tunnel that were answered",
                None,
                Counter,
                self.per_lane(|lane| Some(lane.probes.answered as f64)),
            ),
            family(
                "peer_path_mtu",
                "The largest inner packet that crosses a tunnel whole, as probes found it",
                Some(Unit::Bytes),
                Gauge,
                self.per_lane(|lane| lane.path.mtu.map(f64::from)),
            ),
            family(
                "peer_black_hole",
                "Whether large packets vanish on a tunnel's path that had passed before",
                None,
                Gauge,
                self.per_lane(|lane| Some(truth(lane.path.black_hole.is_some()))),
            ),
            family(
                "peer_black_holes_found",
                "How often large packets were found to vanish on a tunnel's path",
                None,
                Counter,
                self.per_lane(|lane| Some(lane.path.black_holes as f64)),
            ),
            family(
                "peer_path_probes_sent",
                "Probes sent to find what a tunnel's path takes",
                None,
                Counter,
                self.per_lane(|lane| Some(lane.path.probes as f64)),
            ),
            family(
                "cluster_path_mtu",
                "The MTU of the routes to a remote cluster",
                Some(Unit::Bytes),
                Gauge,
                status
                    .clusters
                    .iter()
                    .filter_map(|c| Some((vec![("cluster", c.cluster.to_string())], f64::from(c.path_mtu?))))
                    .collect(),
            ),
            family(
                "peer_receive",
                "Inner bytes received",
                Some(Unit::Bytes),
                Counter,
                self.per_lane(|l| Some(l.rx_bytes as f64)),
            ),
            family(
                "peer_transmit",
                "Inner bytes sent",
                Some(Unit::Bytes),
                Counter,
                self.per_lane(|l| Some(l.tx_bytes as f64)),
            ),
            family(
                "peer_receive_packets",
                "Inner packets received",
                None,
                Counter,
                self.per_lane(|l| Some(l.rx_packets as f64)),
            ),
            family(
                "peer_transmit_packets",
                "Inner packets sent",
                None,
                Counter,
                self.per_lane(|l| Some(l.tx_packets as f64)),
            ),
            family(
                "peer_dropped_packets",
                "Packets dropped that a peer is charged with",
                None,
                Counter,
                drops,
            ),
            family(
                "worker_dropped_packets",
                "Packets dropped that no peer can be charged with",
                None,
                Counter,
                worker_drops.collect(),
            ),
            family(
                "worker_running",
                "Whether a lane's worker runs",
                None,
                Gauge,
                status
                    .workers
                    .iter()
                    .map(|w| (vec![("lane", w.lane.to_string())], truth(w.failed.is_none())))
                    .collect(),
            ),
            family(
                "node_stale",
                "Whether nobody confirms a remote node any more",
                None,
                Gauge,
                status
                    .clusters
                    .iter()
                    .flat_map(|c| &c.nodes)
                    .map(|n| {
                        (
                            vec![("cluster", n.id.cluster.to_string()), ("node", n.id.node.to_string())],
                            truth(n.stale),
                        )
                    })
                    .collect(),
            ),
            family(
                "cluster_state",
                "The state of a remote cluster: 1 for the state it is in, 0 for the others",
                None,
                Gauge,
                status
                    .clusters
                    .iter()
                    .flat_map(|c| {
                        STATES.iter().map(|state| {
                            let labels =
                                vec![("cluster", c.cluster.to_string()), ("state", state.label().to_owned())];
                            (labels, truth(c.state == *state))
                        })
                    })
                    .collect(),
            ),
            family(
                "records_refused",
                "Records and grants that were refused, by reason",
                None,
                Counter,
                // Those that never happened too: what begins at 1 has not risen for whoever asks how fast.
                RefusalKind::ALL
                    .iter()
                    .map(|kind| {
                        let n = status.refusals.get(kind).copied().unwrap_or(0);
                        (vec![("reason", kind.label().to_owned())], n as f64)
                    })
                    .collect(),
            ),
            family(
                "broker_connected",
                "Whether a broker answers",
                None,
                Gauge,
                vec![(vec![], truth(status.broker.connected.is_some()))],
            ),
            family(
                "broker_last_heard_time",
                "When a broker was last heard",
                Some(Unit::Seconds),
                Gauge,
                status.broker.last_heard.map(|at| (vec![], at.0 as f64)).into_iter().collect(),
            ),
            family(
                "record_acknowledged_time",
                "When a broker last acknowledged this node's record or its lease",
                Some(Unit::Seconds),
                Gauge,
                status.broker.last_published.map(|at| (vec![], at.0 as f64)).into_iter().collect(),
            ),
            family(
                "grant_end_time",
                "When this cluster's grant ends",
                Some(Unit::Seconds),
                Gauge,
                vec![(vec![], status.node.grant_not_after.0 as f64)],
            ),
            family(
                "delivery_nodes",
                "Nodes of this cluster by the way by which this gateway hands them packets of other clusters",
                None,
                Gauge,
                status
                    .delivery
                    .iter()
                    .flat_map(|delivery| {
                        ["native", "tunnel"]
                            .map(|by| (vec![("by", by.to_owned())], delivery.count(by) as f64))
                    })
                    .collect(),
            ),
            family(
                "kernel_healed",
                "How often something in the kernel was put right",
                None,
                Counter,
                vec![(vec![], status.kernel.healed as f64)],
            ),
            family(
                "kernel_failing",
                "What cannot be put right in the kernel",
                None,
                Gauge,
                vec![(vec![], status.kernel.failing.len() as f64)],
            ),
            family(
                "kernel_routes",
                "Remote CIDRs that are routed",
                None,
                Gauge,
                vec![(vec![], status.kernel.routes.len() as f64)],
            ),
            family(
                "tunnel_mtu",
                "The tunnel's MTU",
                Some(Unit::Bytes),
                Gauge,
                vec![(vec![], f64::from(status.node.mtu))],
            ),
            family(
                "attachments",
                "Pods attached through the CNI plugin",
                None,
                Gauge,
                vec![(vec![], status.attachments as f64)],
            ),
            family(
                "problems",
                "How many problems the status shows",
                None,
                Gauge,
                vec![(vec![], status.problems.len() as f64)],
            ),
        ];
        families.into_iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podspan_wire::status::{
        BrokerStatus, ClusterStatus, DeliveryNode, DeliveryStatus, KernelStatus, LocalNode, WorkerStatus,
    };
    use podspan_wire::{CidrSet, ClusterSetId, RootKey, UnixTime, Version};
    use std::collections::{BTreeMap, BTreeSet};

    fn status() -> Status {
        let drops: BTreeMap<String, u64> = [("source".to_owned(), 3)].into();
        let lane = |local| LaneStatus {
            local,
            remote: 0,
            endpoint: None,
            established: true,
            handshake_age: Some(1.5),
            rtt_us: Some(1500),
            probes: Default::default(),
            path: Default::default(),
            rx_bytes: u64::from(u32::MAX),
            tx_bytes: 1,
            rx_packets: 2,
            tx_packets: 3,
            drops: drops.clone(),
        };
        let cluster = ClusterStatus {
            cluster: "beta".parse().unwrap(),
            state: Reachability::Degraded,
            cidrs: CidrSet::default(),
            path_mtu: Some(1340),
            service_cidrs: CidrSet::default(),
            nodes: vec![NodeStatus {
                id: "beta/node-1".parse().unwrap(),
                gateway: true,
                state: Reachability::Up,
                stale: false,
                version: Version::default(),
                pod_cidrs: CidrSet::default(),
                lanes: vec![lane(0), lane(1)],
            }],
        };
        Status {
            version: "0.1.0 \"quoted\"\\\n".into(),
            now: UnixTime(1_795_305_600),
            started: UnixTime(1_795_305_600),
            node: LocalNode {
                cluster_set: ClusterSetId::new(RootKey::from_seed(&[1; 32]).public()),
                id: "alpha/node-1".parse().unwrap(),
                gateway: true,
                draining: None,
                endpoints: Vec::new(),
                lanes: Vec::new(),
                pod_cidrs: CidrSet::default(),
                service_cidrs: CidrSet::default(),
                host_addresses: Vec::new(),
                record: None,
                mtu: 1420,
                underlay_mtu: 1500,
                source: "file".into(),
                discovery: Default::default(),
                grant_not_after: UnixTime(1_895_305_600),
            },
            broker: BrokerStatus { last_heard: Some(UnixTime(1_795_305_601)), ..BrokerStatus::default() },
            clusters: vec![cluster],
            delivery: Some(DeliveryStatus {
                mode: "auto".into(),
                nodes: vec![DeliveryNode {
                    node: "node-2".parse().unwrap(),
                    gateway: false,
                    by: Some("tunnel".into()),
                    why: "x".into(),
                    state: Reachability::Up,
                    liveness: Liveness::Healthy,
                }],
            }),
            kernel: KernelStatus::default(),
            attachments: 7,
            refusals: [(RefusalKind::Replayed, 4)].into(),
            refused: Vec::new(),
            workers: vec![WorkerStatus { lane: 0, port: 51840, failed: None, drops }],
            problems: vec!["x".into()],
        }
    }

    /// The name and labels of a sample, and its value; labels may hold escaped quotes (OpenMetrics 1.0,
    /// section "Text Format").
    fn sample(line: &str) -> (String, Vec<String>, f64) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| {
            (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}")))
        });
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{line}");
        let keys = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
        (name.to_owned(), keys.collect(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    }

    /// Reads the text as OpenMetrics 1.0 demands it: metadata before samples, each family once, counters
    /// end in `_total`, a unit ends the family's name, no series twice, `# EOF` at the end.
    #[test]
    fn the_text_is_openmetrics() {
        let text = encode(status()).unwrap();
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no EOF: {text}"));
        let (mut family, mut kinds, mut series) = (String::new(), BTreeMap::new(), BTreeSet::new());
        let mut values = BTreeMap::new();
        for line in body.lines() {
            if let Some(meta) = line.strip_prefix("# ") {
                let mut words = meta.splitn(3, ' ');
                let (what, name, rest) =
                    (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                assert!(name.starts_with("podspan_"), "{line}");
                match what {
                    "HELP" => {
                        assert!(!kinds.contains_key(name), "a family twice: {line}");
                        family = name.to_owned();
                    }
                    "TYPE" => drop(kinds.insert(name.to_owned(), rest.to_owned())),
                    "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                    _ => panic!("{line}"),
                }
                assert_eq!(name, family, "{line}");
                continue;
            }
            let (name, labels, value) = sample(line);
            let expected = match kinds.get(&family).map(String::as_str) {
                Some("counter") => format!("{family}_total"),
                Some("gauge") => family.clone(),
                other => panic!("{line}: {other:?}"),
            };
            assert_eq!(name, expected, "{line}");
            assert!(series.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "twice: {line}");
            assert!(value.is_finite() && labels.len() == labels.iter().collect::<BTreeSet<_>>().len());
            values.insert(line.rsplit_once(' ').unwrap().0.to_owned(), value);
        }
        assert_eq!(kinds.len(), 38, "{:?}", kinds.keys());
        for (name, value) in [
            ("podspan_start_time_seconds", 1_795_305_600.0),
            (r#"podspan_cluster_state{cluster="beta",state="degraded"}"#, 1.0),
            (r#"podspan_cluster_state{cluster="beta",state="up"}"#, 0.0),
            (r#"podspan_records_refused_total{reason="replayed"}"#, 4.0),
            (r#"podspan_records_refused_total{reason="overlap"}"#, 0.0),
            ("podspan_broker_connected", 0.0),
            (r#"podspan_delivery_nodes{by="tunnel"}"#, 1.0),
            (r#"podspan_delivery_nodes{by="native"}"#, 0.0),
            (
                r#"podspan_peer_receive_bytes_total{cluster="beta",node="node-1",lane="1",remote_lane="0"}"#,
                4_294_967_295.0,
            ),
            (r#"podspan_peer_rtt_seconds{cluster="beta",node="node-1",lane="0",remote_lane="0"}"#, 0.0015),
        ] {
            assert_eq!(values.get(name), Some(&value), "{name} in {text}");
        }
    }
}
