//! The routes inside a pod that lead to the other clusters.
//!
//! One route per remote CIDR, in the pod's main table, through the pod's own gateway, with the tunnel's
//! MTU. Without them the pod's default route leads to the same place, but the pod learns the smaller MTU
//! only from ICMP, which some networks drop. Everything carries the route protocol number [`PROTOCOL`];
//! what carries another is never touched.
//!
//! The functions block for a short time (they talk to the kernel only) and work on a thread of their own
//! inside the pod's namespace: call them from async code by way of `spawn_blocking`.

mod facts;
mod plan;

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use nix::errno::Errno;
use podspan_wire::Cidr;
use podspan_wire::local::PodRoutes;

use crate::netlink::{Netlink, bytes};
use crate::netns::run_in;
use facts::Facts;

/// The route protocol number (`rtm_protocol`, rtnetlink(7)) of everything that is podspan's: inside pods,
/// and in the node's table. `ip route show proto 112` lists it. Not among the numbers of
/// `linux/rtnetlink.h` nor of iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 112;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// How often a change is tried anew when somebody else changes the same routes at the same time: the
/// agent may repair the pod while the plugin sets it up.
const ROUNDS: usize = 3;

/// A route of podspan's inside a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRoute {
    /// Where it leads.
    pub cidr: Cidr,
    /// The next hop; none if the interface is a point-to-point link.
    pub gateway: Option<IpAddr>,
    /// The largest packet in bytes (`RTAX_MTU`), if it is limited.
    pub mtu: Option<u32>,
    /// The metric: 0 for IPv4 and 1024 for IPv6, the kernel's defaults, unless somebody else wrote it.
    pub metric: u32,
}

/// What [`sync`] did: what is listed as done was acknowledged by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Routes that were missing.
    pub added: Vec<Cidr>,
    /// Routes that had another gateway or MTU.
    pub changed: Vec<Cidr>,
    /// Routes of podspan's that are no longer wanted.
    pub removed: Vec<Cidr>,
    /// Destinations for which somebody else has a route of the same metric: theirs stands.
    pub foreign: Vec<Cidr>,
    /// What could not be done, each with the kernel's error.
    pub failed: Vec<(Cidr, String)>,
}

/// Why the routes of a pod cannot be read or set at all.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The interface is not in the namespace.
    #[error("there is no interface {interface:?} in the pod's network namespace")]
    NoInterface {
        /// The name that was looked for.
        interface: String,
    },
    /// The kernel refused something.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl From<io::Error> for RouteError {
    fn from(source: io::Error) -> Self {
        Self::Kernel { doing: "cannot work inside the pod's network namespace", source }
    }
}

/// Makes podspan's routes on `interface` inside `netns` equal to what `wanted` asks for: adds and changes
/// first, then deletes. Safe when repeated. A CIDR of a family in which the interface has no address gets
/// no route.
///
/// `gateways` are the pod's, at most one of each family is used; where there is none, the gateway of the
/// interface's own default route is, and where there is none either, the routes lead straight onto the
/// link.
///
/// # Errors
/// [`RouteError`] if nothing could be done. Single routes that failed are in the report.
pub fn sync(
    netns: impl AsFd,
    interface: &str,
    wanted: &PodRoutes,
    gateways: &[IpAddr],
) -> Result<Report, RouteError> {
    run_in(netns, || {
        let mut netlink = open()?;
        let mut report = Report::default();
        for _ in 0..ROUNDS {
            let facts = Facts::read(&mut netlink, interface)?;
            let (desired, foreign) = plan::desired(wanted, gateways, &facts);
            report.foreign = foreign;
            report.failed.clear();
            if !apply(&mut netlink, facts.index, &plan::plan(&desired, &facts.ours), &mut report) {
                break;
            }
        }
        Ok(report)
    })
}

/// Removes every route of podspan's on `interface` inside `netns`. An interface that is gone has none.
///
/// # Errors
/// [`RouteError`] if the routes cannot be read or one of them cannot be removed.
pub fn remove(netns: impl AsFd, interface: &str) -> Result<Vec<Cidr>, RouteError> {
    run_in(netns, || {
        let mut netlink = open()?;
        let facts = match Facts::read(&mut netlink, interface) {
            Err(RouteError::NoInterface { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let mut report = Report::default();
        apply(&mut netlink, facts.index, &plan::plan(&[], &facts.ours), &mut report);
        match report.failed.into_iter().next() {
            Some((cidr, error)) => Err(RouteError::Kernel {
                doing: "cannot remove a route",
                source: io::Error::other(format!("{cidr}: {error}")),
            }),
            None => Ok(report.removed),
        }
    })
}

/// The routes of podspan's that stand on `interface` inside `netns`, sorted.
///
/// # Errors
/// [`RouteError`] if they cannot be read.
pub fn observed(netns: impl AsFd, interface: &str) -> Result<Vec<PodRoute>, RouteError> {
    run_in(netns, || Ok(Facts::read(&mut open()?, interface)?.ours))
}

/// What [`sync`] would still have to do, in words for a person; empty if all stands as it should.
///
/// # Errors
/// [`RouteError`] if the routes cannot be read.
pub fn differences(
    netns: impl AsFd,
    interface: &str,
    wanted: &PodRoutes,
    gateways: &[IpAddr],
) -> Result<Vec<String>, RouteError> {
    run_in(netns, || {
        let facts = Facts::read(&mut open()?, interface)?;
        let (desired, _) = plan::desired(wanted, gateways, &facts);
        Ok(plan::plan(&desired, &facts.ours).describe())
    })
}

fn open() -> Result<Netlink, RouteError> {
    Netlink::open().map_err(|source| RouteError::Kernel { doing: "cannot open a netlink socket", source })
}

/// Carries out a plan and reports what truly succeeded. Returns whether somebody else changed the same
/// routes meanwhile, so that it should be planned anew.
fn apply(netlink: &mut Netlink, index: u32, plan: &plan::Plan, report: &mut Report) -> bool {
    let mut again = false;
    let mut fail = |report: &mut Report, cidr: Cidr, error: io::Error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        again |= matches!(errno, Some(Errno::EEXIST | Errno::ESRCH));
        report.failed.push((cidr, error.to_string()));
    };
    for route in &plan.add {
        match set(netlink, index, route, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => report.added.push(route.cidr),
            Err(error) => fail(report, route.cidr, error),
        }
    }
    for route in &plan.change {
        match set(netlink, index, route, NLM_F_CREATE | NLM_F_REPLACE) {
            Ok(()) => report.changed.push(route.cidr),
            Err(error) => fail(report, route.cidr, error),
        }
    }
    for route in &plan.delete {
        match netlink.request(RTM_DELROUTE, 0, &bytes(&message(index, route, false))) {
            Ok(()) => report.removed.push(route.cidr),
            Err(error) => fail(report, route.cidr, error),
        }
    }
    again
}

/// Adds or replaces a route; through a gateway outside the interface's prefixes if need be, as some CNIs
/// use one (169.254.1.1).
fn set(netlink: &mut Netlink, index: u32, route: &PodRoute, flags: u16) -> io::Result<()> {
    let result = netlink.request(RTM_NEWROUTE, flags, &bytes(&message(index, route, false)));
    let unreachable = |error: &io::Error| {
        matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL)
        )
    };
    match result {
        Err(error) if route.gateway.is_some() && unreachable(&error) => {
            netlink.request(RTM_NEWROUTE, flags, &bytes(&message(index, route, true)))
        }
        other => other,
    }
}

fn message(index: u32, route: &PodRoute, onlink: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = if route.cidr.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    header.destination_prefix_length = route.cidr.length();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::from(PROTOCOL);
    // rtnetlink(7): a route without a gateway has link scope in IPv4; IPv6 knows no scopes of routes.
    header.scope = if route.gateway.is_none() && !route.cidr.is_ipv6() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    header.kind = RouteType::Unicast;
    if onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(RouteAddress::from(route.cidr.address())));
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    }
    attributes.push(RouteAttribute::Oif(index));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    if let Some(mtu) = route.mtu {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}
