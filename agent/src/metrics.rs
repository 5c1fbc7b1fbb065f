//! The status document as metrics (OpenMetrics text), taken at the time of the scrape.

use std::fmt;

use podspan_wire::status::{LaneStatus, NodeStatus, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
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
        for (labels, value) in self.values {
            let metric = family.encode_family(&labels)?;
            match self.kind {
                // Counts stay below 2^53.
                MetricType::Counter => ConstCounter::new(value as u64).encode(metric)?,
                _ => ConstGauge::new(value).encode(metric)?,
            }
        }
        Ok(())
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
                "Round trip of a tunnel's last handshake",
                Some(Unit::Seconds),
                Gauge,
                self.per_lane(|lane| lane.rtt_us.map(|us| us as f64 / 1e6)),
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
                "The state of a remote cluster: 1 for the state it is in",
                None,
                Gauge,
                status
                    .clusters
                    .iter()
                    .map(|c| {
                        (vec![("cluster", c.cluster.to_string()), ("state", c.state.label().to_owned())], 1.0)
                    })
                    .collect(),
            ),
            family(
                "records_refused",
                "Records and grants that were refused, by reason",
                None,
                Counter,
                status
                    .refusals
                    .iter()
                    .map(|(kind, n)| (vec![("reason", kind.label().to_owned())], *n as f64))
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
                "grant_end_time",
                "When this cluster's grant ends",
                Some(Unit::Seconds),
                Gauge,
                vec![(vec![], status.node.grant_not_after.0 as f64)],
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
