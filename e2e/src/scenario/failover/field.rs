//! The traffic under which gateways die, and which of them carries it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::status::Liveness;

use crate::impair;
use crate::probe::{HttpPlan, TcpPlan, Traffic, TrafficPlan, UdpPlan};
use crate::signals;
use crate::topology::{Family, POD_PORT, SERVICE_PORT};
use crate::world::World;

/// The gateways that may die.
pub(crate) const GATEWAYS: [&str; 2] = ["alpha-1", "alpha-2"];

/// A pod of a node that is no gateway, behind the gateways that die.
pub(crate) const BEHIND: &str = "alpha/pod5";

/// The nodes that choose between them, and a pod of each.
const CHOOSERS: [(&str, &str); 2] = [("beta-2", "beta/pod3"), ("gamma-2", "gamma/pod3")];

/// The service whose connections are translated on a gateway.
const SERVICE: &str = "alpha/svc-alpha-3";

/// Traffic that runs.
#[derive(Debug)]
pub(crate) struct Field {
    senders: Vec<Traffic>,
}

impl Field {
    /// 50 connections, 1000 datagrams a second in 20 flows, requests to a pod and to a service; by IPv4 and IPv6.
    pub(crate) fn start(world: &mut World) -> Result<Self> {
        let service = world.topology.services().into_iter().find(|service| service.id() == SERVICE);
        let service = service.context("the service")?.address;
        let target = |world: &World, to: &str, family| -> Result<SocketAddr> {
            Ok(SocketAddr::new(world.pod_address(to, family)?, POD_PORT))
        };
        let mut senders = Vec::new();
        // From, to, flows, datagrams a second, connections; of each family.
        for (from, to, flows, rate, connections) in [
            ("beta/pod3", BEHIND, 4, 200, 10),
            ("gamma/pod3", BEHIND, 2, 100, 5),
            (BEHIND, "beta/pod3", 4, 200, 10),
        ] {
            let mut plan = TrafficPlan { from: from.into(), ..TrafficPlan::default() };
            for family in Family::BOTH {
                let target = target(world, to, family)?;
                let to = to.to_owned();
                plan.udp.push(UdpPlan { to: to.clone(), target, flows, packets_per_second: rate });
                plan.tcp.push(TcpPlan { to: to.clone(), target, connections, interval_ms: 100 });
                plan.http.push(HttpPlan { to, target, interval_ms: 50, timeout_ms: 3000 });
                if from == "beta/pod3" {
                    let target = SocketAddr::new(service.of(family), SERVICE_PORT);
                    let to = SERVICE.to_owned();
                    plan.http.push(HttpPlan { to: to.clone(), target, interval_ms: 50, timeout_ms: 3000 });
                    plan.tcp.push(TcpPlan { to, target, connections: 5, interval_ms: 100 });
                }
            }
            let netns = world.topology.find(from).context("the pod")?;
            senders.push(Traffic::start(world, &netns, &plan)?);
        }
        let field = Self { senders };
        field.wait_until_all_stands()?;
        Ok(field)
    }

    /// Until every connection stands.
    pub(crate) fn wait_until_all_stands(&self) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(20);
        let end = Instant::now() + LIMIT;
        loop {
            let reports = Traffic::reports(&self.senders)?;
            let missing: Vec<_> = reports
                .iter()
                .flat_map(|report| &report.tcp)
                .filter(|tcp| tcp.connections < 5)
                .map(|tcp| format!("{} ({} stand): {:?}", tcp.to, tcp.connections, tcp.errors))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("after {} s connections still do not stand: {}", LIMIT.as_secs(), missing.join("; "));
            }
            signals::sleep(Duration::from_millis(100))?;
        }
    }

    /// A new window begins.
    pub(crate) fn begin(&self) -> Result<()> {
        self.senders.iter().try_for_each(Traffic::begin)
    }

    /// What has become of everything since: pods and the service apart.
    pub(crate) fn report(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        for report in Traffic::reports(&self.senders)? {
            seen.gap_us = seen.gap_us.max(report.gap_us());
            seen.sent += report.sent();
            seen.lost += report.lost();
            seen.reordered += report.udp.iter().map(|flow| flow.window.reordered).sum::<u64>();
            seen.duplicates += report.udp.iter().map(|flow| flow.window.duplicates).sum::<u64>();
            seen.own_stall_us = seen.own_stall_us.max(report.own_stall_us);
            seen.wrong.extend(report.wrong);
            for tcp in report.tcp {
                let into = if tcp.to == SERVICE { &mut seen.service } else { &mut seen.pods };
                into.connections += tcp.connections;
                into.broken += tcp.broken;
                into.stall_us = into.stall_us.max(tcp.stall_us);
                into.errors.extend(tcp.errors);
            }
            for http in report.http {
                let into = if http.to == SERVICE { &mut seen.service } else { &mut seen.pods };
                into.requests += http.requests;
                into.retried += http.retried;
                into.failed += http.failed;
                into.longest_us = into.longest_us.max(http.longest_us);
                into.errors.extend(http.errors);
            }
        }
        Ok(seen)
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.senders.iter().try_for_each(Traffic::stop)
    }
}

/// What all senders saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The longest time that any flow of datagrams was without an echo.
    pub(crate) gap_us: u64,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) reordered: u64,
    pub(crate) duplicates: u64,
    /// The longest that a sender was not let run.
    pub(crate) own_stall_us: u64,
    pub(crate) wrong: Vec<String>,
    pub(crate) pods: Clients,
    pub(crate) service: Clients,
}

/// Connections and requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients {
    pub(crate) connections: usize,
    pub(crate) broken: u64,
    pub(crate) stall_us: u64,
    pub(crate) requests: u64,
    pub(crate) retried: u64,
    pub(crate) failed: u64,
    pub(crate) longest_us: u64,
    pub(crate) errors: Vec<String>,
}

/// Packets that the nodes of other clusters have sent through each of the gateways, so far.
pub(crate) fn sent_through(world: &World) -> Result<BTreeMap<&'static str, u64>> {
    let mut sums = GATEWAYS.map(|gateway| (gateway, 0)).into_iter().collect::<BTreeMap<_, _>>();
    for (node, _) in CHOOSERS {
        let status = world.agent_status(world.node(node)?)?;
        for seen in status.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            if let Some((_, sum)) = sums.iter_mut().find(|(name, _)| **name == seen.id.node.as_str()) {
                *sum += seen.lanes.iter().map(|lane| lane.tx_packets).sum::<u64>();
            }
        }
    }
    Ok(sums)
}

/// How many packets go through each gateway in a time.
pub(crate) fn shares(world: &World, time: Duration) -> Result<BTreeMap<&'static str, u64>> {
    let before = sent_through(world)?;
    signals::sleep(time)?;
    let after = sent_through(world)?;
    Ok(after.into_iter().map(|(name, sum)| (name, sum.saturating_sub(before[name]))).collect())
}

/// The gateway through which most packets go now.
pub(crate) fn carrier(world: &World) -> Result<&'static str> {
    let shares = shares(world, Duration::from_millis(300))?;
    let (name, packets) = shares.iter().max_by_key(|(_, packets)| **packets).context("gateways")?;
    if *packets < 50 {
        bail!("hardly anything goes through the gateways: {shares:?}");
    }
    Ok(*name)
}

/// The gateways that are not fit to take over as the nodes of other clusters see it, and why.
pub(crate) fn unfit(world: &World) -> Result<Vec<String>> {
    let mut unfit = Vec::new();
    for (node, _) in CHOOSERS {
        let status = world.agent_status(world.node(node)?)?;
        for seen in status.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            let (name, liveness) = (seen.id.node.as_str(), seen.liveness());
            if GATEWAYS.contains(&name) && liveness > Liveness::HeldDown {
                unfit.push(format!("{node}: {name} is {}", liveness.label()));
            }
        }
    }
    Ok(unfit)
}

/// Nothing is left of a scenario but the world.
pub(crate) fn clean_up(world: &mut World) -> Result<()> {
    impair::stop_if_there(world)
}
