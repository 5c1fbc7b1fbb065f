//! What is told of the cluster and of its peers: from the agent's status to the status of objects. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use podspan_kubernetes::conditions::{Wanted, merge};
use podspan_kubernetes::crd::{
    ClusterSetStatus, Discovered, DiscoveredCidr, GatewayStatus, Gateways, PeerClusterStatus, PeerState,
};
use podspan_kubernetes::discovery::{Contradiction, Reason, Severity, Sourced};
use podspan_wire::status::{ClusterStatus, NodeStatus, Reachability, RefusedRecord, Status};
use podspan_wire::{Cidr, UnixTime};

use crate::overview;

/// How many gateways, and how many CIDRs, an object names.
const MAX_NAMED: usize = 64;
/// How many contradictions a message names.
const MAX_TOLD: usize = 5;
/// How long a refused record is told of.
const REFUSED_FOR: Duration = Duration::from_secs(3_600);
/// From when on the end of the grant is told of.
const GRANT_WARNING: Duration = Duration::from_secs(30 * 86_400);

/// The condition that tells whether all is well.
pub const READY: &str = "Ready";

/// An instant as the API writes it.
#[must_use]
pub fn time(at: UnixTime) -> Time {
    let second = i64::try_from(at.0).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Percent of loss from which on a person should know at once.
const MUCH_LOSS: f64 = 5.0;

/// The status of another cluster; `before` is the one that the API server has.
#[must_use]
pub fn peer(
    status: &Status,
    cluster: &ClusterStatus,
    before: Option<&PeerClusterStatus>,
) -> PeerClusterStatus {
    let gateways: Vec<&NodeStatus> = cluster.nodes.iter().filter(|node| node.gateway).collect();
    let answering = |node: &&&NodeStatus| matches!(node.state, Reachability::Up | Reachability::Degraded);
    let up = gateways.iter().filter(answering).count();
    let list: Vec<GatewayStatus> =
        gateways.iter().take(MAX_NAMED).map(|node| gateway(node, status.now)).collect();
    let rtt = list.iter().filter_map(|gateway| gateway.rtt_microseconds).min();
    let lanes = || cluster.nodes.iter().flat_map(|node| &node.lanes);
    let services: Vec<String> = cluster.service_cidrs.iter().map(ToString::to_string).collect();
    let pods: Vec<String> =
        cluster.cidrs.iter().map(ToString::to_string).filter(|cidr| !services.contains(cidr)).collect();
    let known: &[Condition] = before.map_or(&[], |before| &before.conditions);
    PeerClusterStatus {
        state: Some(match cluster.state {
            Reachability::Up => PeerState::Connected,
            Reachability::Degraded => PeerState::Degraded,
            _ => PeerState::Disconnected,
        }),
        rtt: rtt.map(round_trip),
        rtt_microseconds: rtt,
        loss_percent: mean(gateways.iter().filter(answering).filter_map(|node| node.loss())).map(percent),
        path_mtu: cluster.path_mtu,
        rx_bytes: Some(lanes().map(|lane| lane.rx_bytes).sum()),
        tx_bytes: Some(lanes().map(|lane| lane.tx_bytes).sum()),
        pod_cidrs: pods.into_iter().take(MAX_NAMED).collect(),
        service_cidrs: services.into_iter().take(MAX_NAMED).collect(),
        observed_by: Some(status.node.id.node.to_string()),
        conditions: merge(known, &peer_conditions(status, cluster, &gateways), None, &time(status.now)),
        gateways: Some(Gateways {
            up: count(up),
            total: count(gateways.len()),
            summary: format!("{up}/{}", gateways.len()),
            list,
        }),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn gateway(node: &NodeStatus, now: UnixTime) -> GatewayStatus {
    let age = node.lanes.iter().filter_map(|lane| lane.handshake_age).min_by(f64::total_cmp);
    let last = age.map(|age| UnixTime(now.0.saturating_sub(age as u64)));
    GatewayStatus {
        name: node.id.node.to_string(),
        endpoint: node.lanes.first().and_then(|lane| lane.endpoint).map(|endpoint| endpoint.to_string()),
        state: node.state.label().to_owned(),
        rtt_microseconds: node.lanes.iter().filter_map(|lane| lane.rtt_us).min(),
        loss_percent: node.loss().map(percent),
        last_handshake_time: last.map(time),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// A part of 1 in percent, to a tenth.
fn percent(part: f64) -> f64 {
    (part * 1_000.0).round() / 10.0
}

/// A round trip for a person: three figures are enough.
fn round_trip(microseconds: u64) -> String {
    match microseconds {
        0..1_000 => format!("{microseconds}us"),
        1_000..10_000 => format!("{:.1}ms", microseconds as f64 / 1e3),
        10_000..1_000_000 => format!("{}ms", (microseconds + 500) / 1_000),
        _ => format!("{:.1}s", microseconds as f64 / 1e6),
    }
}

fn names<'a>(nodes: impl Iterator<Item = &'a NodeStatus>) -> String {
    nodes.take(MAX_TOLD).map(|node| node.id.node.as_str()).collect::<Vec<_>>().join(", ")
}

fn peer_conditions(status: &Status, cluster: &ClusterStatus, gateways: &[&NodeStatus]) -> Vec<Wanted> {
    let with = |state| names(gateways.iter().copied().filter(move |node| node.state == state));
    let ready = if gateways.is_empty() {
        Wanted::new(
            READY,
            false,
            "NoGateway",
            "the cluster announces no gateway: label one of its nodes with podspan.io/gateway=true there",
        )
    } else {
        let total = gateways.len();
        match cluster.state {
            Reachability::Up if total == 1 => {
                Wanted::new(READY, true, "AllGatewaysUp", "its one gateway answers")
            }
            Reachability::Up => {
                Wanted::new(READY, true, "AllGatewaysUp", format!("all {total} gateways answer"))
            }
            Reachability::Degraded => {
                let (down, partly) = (with(Reachability::Down), with(Reachability::Degraded));
                let message = match (down.is_empty(), partly.is_empty()) {
                    (false, _) => format!("these gateways of {total} do not answer: {down}"),
                    (true, false) => {
                        format!("only some lanes work to {partly}: are all of its UDP ports open?")
                    }
                    (true, true) => format!("not yet connected to {}", with(Reachability::Connecting)),
                };
                // Whoever asks whether the cluster can be reached is told so: it can.
                Wanted::new(READY, true, "SomeGatewaysDown", message)
            }
            Reachability::Connecting => {
                Wanted::new(READY, false, "Connecting", "the first handshakes are under way")
            }
            _ => Wanted::new(
                READY,
                false,
                "NoGatewayAnswers",
                format!(
                    "no gateway of {total} answers ({}): are its UDP ports open, and are both clusters' clocks right?",
                    with(Reachability::Down)
                ),
            ),
        }
    };
    let stale = names(cluster.nodes.iter().filter(|node| node.stale));
    let renewed = match stale.is_empty() {
        true => Wanted::new("Renewed", true, "Renewed", "all records are renewed in time"),
        false => Wanted::new(
            "Renewed",
            false,
            "NotRenewed",
            format!("nobody renews the records of {stale}; they are used for as long as their tunnels work"),
        ),
    };
    let refused = refused(status)
        .find(|refused| refused.claimed.as_ref().is_some_and(|claimed| claimed.cluster == cluster.cluster));
    let accepted = match refused {
        None => Wanted::new("RecordsAccepted", true, "Accepted", "no record was refused lately"),
        Some(refused) => Wanted::new("RecordsAccepted", false, "RecordRefused", refused.detail.clone()),
    };
    let sizes = match overview::black_hole(cluster) {
        None => Wanted::new("LargePacketsPass", true, "NoBlackHole", "no packet vanishes for its size"),
        Some(hole) => Wanted::new("LargePacketsPass", false, "BlackHole", hole),
    };
    vec![ready, renewed, accepted, sizes]
}

/// The records that were refused lately.
pub fn refused(status: &Status) -> impl Iterator<Item = &RefusedRecord> {
    status.refused.iter().filter(|refused| status.now.since(refused.at) < REFUSED_FOR)
}

/// Whether the two differ in more than counters: a change to be written at once.
#[must_use]
pub fn differs(a: &PeerClusterStatus, b: &PeerClusterStatus) -> bool {
    let plain = |status: &PeerClusterStatus| {
        let mut status = status.clone();
        (status.rtt, status.rtt_microseconds) = (None, None);
        (status.rx_bytes, status.tx_bytes) = (None, None);
        // A probe lost now and then is a counter, many of them are news.
        status.loss_percent = status.loss_percent.map(|loss| if loss >= MUCH_LOSS { 100.0 } else { 0.0 });
        for gateway in status.gateways.iter_mut().flat_map(|gateways| &mut gateways.list) {
            (gateway.rtt_microseconds, gateway.last_handshake_time) = (None, None);
            gateway.loss_percent = None;
        }
        status
    };
    plain(a) != plain(b)
}

/// What the holder of the lease knows of its own cluster beside the agent's status.
pub struct Own<'a> {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them are gateways.
    pub gateways: usize,
    /// What does not fit, of the cluster and of all its nodes.
    pub contradictions: &'a [Contradiction],
    /// The cluster's pod CIDRs.
    pub pod_cidrs: &'a [Sourced<Cidr>],
    /// Its service CIDRs.
    pub service_cidrs: &'a [Sourced<Cidr>],
    /// The generation of the ClusterSet's settings.
    pub generation: Option<i64>,
}

/// The status of this cluster.
#[must_use]
pub fn cluster_set(status: &Status, own: &Own<'_>, before: Option<&ClusterSetStatus>) -> ClusterSetStatus {
    let known: &[Condition] = before.map_or(&[], |before| &before.conditions);
    let cidrs = |cidrs: &[Sourced<Cidr>]| -> Vec<DiscoveredCidr> {
        cidrs
            .iter()
            .take(MAX_NAMED)
            .map(|cidr| DiscoveredCidr { cidr: cidr.value.to_string(), from: cidr.from.clone() })
            .collect()
    };
    ClusterSetStatus {
        cluster_set: Some(status.node.cluster_set.to_string()),
        cluster: Some(status.node.id.cluster.to_string()),
        nodes: Some(count(own.nodes)),
        gateways: Some(count(own.gateways)),
        brokers: status.broker.addresses.clone(),
        discovered: Some(Discovered {
            pod_cidrs: cidrs(own.pod_cidrs),
            service_cidrs: cidrs(own.service_cidrs),
        }),
        conditions: merge(known, &own_conditions(status, own), own.generation, &time(status.now)),
        observed_generation: own.generation,
        observed_by: Some(status.node.id.node.to_string()),
    }
}

fn own_conditions(status: &Status, own: &Own<'_>) -> Vec<Wanted> {
    let ready = match overview::ready(status) {
        Err(reasons) => Wanted::new(READY, false, "NotForwarding", reasons.join("; ")),
        Ok(()) if own.gateways == 0 => Wanted::new(
            READY,
            false,
            "NoGateway",
            "no node is a gateway, other clusters cannot reach this one: kubectl label node NODE \
             podspan.io/gateway=true",
        ),
        Ok(()) => Wanted::new(
            READY,
            true,
            "Forwarding",
            format!("gateways: {} of {} nodes", own.gateways, own.nodes),
        ),
    };
    let problems =
        || own.contradictions.iter().filter(|contradiction| contradiction.severity == Severity::Problem);
    let told = |problems: Vec<&Contradiction>| {
        let mut text: Vec<String> =
            problems.iter().take(MAX_TOLD).map(|problem| problem.message.clone()).collect();
        if problems.len() > MAX_TOLD {
            text.push(format!("and {} more", problems.len() - MAX_TOLD));
        }
        text.join("; ")
    };
    let outside: Vec<&Contradiction> = problems().filter(|p| p.reason == Reason::OutsideGrant).collect();
    let end = status.node.grant_not_after;
    let left = end.since(status.now);
    let granted = if left == Duration::ZERO {
        let message = format!(
            "the grant ended at {end}: other clusters refuse this one; renew it with `podspan \
             cluster grant {} --renew`",
            status.node.id.cluster
        );
        Wanted::new("Granted", false, "GrantEnded", message)
    } else if !outside.is_empty() {
        Wanted::new("Granted", false, "OutsideGrant", told(outside))
    } else if left < GRANT_WARNING {
        Wanted::new("Granted", true, "GrantEndsSoon", format!("the grant ends at {end}: renew it in time"))
    } else {
        Wanted::new("Granted", true, "Granted", format!("until {end}"))
    };
    let others: Vec<&Contradiction> = problems().filter(|p| p.reason != Reason::OutsideGrant).collect();
    let conflict = match others.first() {
        None => Wanted::new("NoConflict", true, "NoConflict", "all that was found fits together"),
        Some(first) => Wanted::new("NoConflict", false, word(first.reason), told(others)),
    };
    let broker = match &status.broker.connected {
        Some(broker) => Wanted::new("BrokerConnected", true, "Connected", broker.clone()),
        None => {
            let errors: Vec<String> =
                status.broker.errors.iter().map(|(broker, error)| format!("{broker}: {error}")).collect();
            let message = format!("no broker answers, what is known stays in use; {}", errors.join("; "));
            Wanted::new("BrokerConnected", false, "NoBroker", message)
        }
    };
    vec![ready, granted, conflict, broker]
}

/// The reason as a condition has it.
#[must_use]
pub fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::InvalidLabel => "InvalidLabel",
        Reason::InvalidAnnotation => "InvalidAnnotation",
        Reason::InvalidSetting => "InvalidSetting",
        Reason::InvalidObject => "InvalidObject",
        Reason::OutsideGrant => "OutsideGrant",
        Reason::NoAddress => "NoAddress",
        Reason::NoPodCidr => "NoPodCidr",
        Reason::NoHostAddress => "NoHostAddress",
        Reason::Disagreement => "Disagreement",
        Reason::ConflictingOverrides => "ConflictingOverrides",
        Reason::Unreadable => "Unreadable",
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
