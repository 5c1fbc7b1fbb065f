//! A node's lanes, summed up in one row.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use podspan_wire::status::NodeStatus;

/// What one row of the table tells of a node's lanes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Summary {
    /// Lanes with a session.
    pub(super) up: usize,
    /// All lanes.
    pub(super) total: usize,
    /// Where packets are sent: one address and the range of ports, as far as they agree.
    pub(super) endpoint: Option<String>,
    /// Seconds since the latest handshake of any lane.
    pub(super) handshake_age: Option<f64>,
    /// The median round trip, microseconds.
    pub(super) rtt_us: Option<u64>,
    /// Bytes received.
    pub(super) rx_bytes: u64,
    /// Bytes sent.
    pub(super) tx_bytes: u64,
    /// Packets dropped, by cause; none that is zero.
    pub(super) drops: BTreeMap<String, u64>,
}

impl Summary {
    /// Sums up the lanes of `node`.
    pub(super) fn of(node: &NodeStatus) -> Self {
        let mut summary = Self { total: node.lanes.len(), endpoint: endpoints(node), ..Self::default() };
        let mut rtts = Vec::new();
        for lane in &node.lanes {
            summary.up += usize::from(lane.established);
            summary.rx_bytes = summary.rx_bytes.saturating_add(lane.rx_bytes);
            summary.tx_bytes = summary.tx_bytes.saturating_add(lane.tx_bytes);
            rtts.extend(lane.rtt_us);
            if let Some(age) = lane.handshake_age {
                summary.handshake_age = Some(summary.handshake_age.map_or(age, |least| least.min(age)));
            }
            add_drops(&mut summary.drops, &lane.drops);
        }
        rtts.sort_unstable();
        summary.rtt_us = rtts.get(rtts.len() / 2).copied();
        summary
    }

    /// All dropped packets.
    pub(super) fn dropped(&self) -> u64 {
        self.drops.values().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// Adds the causes that have happened.
pub(super) fn add_drops(sum: &mut BTreeMap<String, u64>, drops: &BTreeMap<String, u64>) {
    for (cause, &count) in drops.iter().filter(|(_, count)| **count > 0) {
        let entry = sum.entry(cause.clone()).or_default();
        *entry = entry.saturating_add(count);
    }
}

fn endpoints(node: &NodeStatus) -> Option<String> {
    let mut ports: BTreeMap<IpAddr, (u16, u16)> = BTreeMap::new();
    for endpoint in node.lanes.iter().filter_map(|lane| lane.endpoint) {
        let (low, high) = ports.entry(endpoint.ip()).or_insert((endpoint.port(), endpoint.port()));
        *low = endpoint.port().min(*low);
        *high = endpoint.port().max(*high);
    }
    let others = ports.len().saturating_sub(1);
    let (address, (low, high)) = ports.into_iter().next()?;
    let mut text = SocketAddr::new(address, low).to_string();
    if high != low {
        text.push_str(&format!("-{high}"));
    }
    if others > 0 {
        text.push_str(&format!(" +{others}"));
    }
    Some(text)
}
