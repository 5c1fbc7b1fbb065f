//! rtnetlink, wrapped once: every release of the crates below changes their API, and only this file knows.
//!
//! Requests go one after another over one socket, dumps included: the kernel answers a second dump on the
//! same socket with EBUSY. Dumps ask for strict checking, so that the kernel filters by table.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podspan_wire::Cidr;

use super::PROTOCOL;
use super::model::{ObservedAddress, ObservedRoute, ObservedRule};
use super::plan::{Route, Rule};

/// How long the kernel may take to answer one request; it takes microseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often an interrupted dump is begun again before what it gave is taken as it is; the next resync
/// corrects it.
const DUMP_TRIES: usize = 5;

/// The connection to the kernel's rtnetlink.
pub(super) struct Netlink {
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// An interface, as a dump tells it.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: String,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) tun: bool,
}

/// An address and the interface that holds it.
#[derive(Clone, Debug)]
pub(super) struct InterfaceAddress {
    pub(super) index: u32,
    pub(super) observed: ObservedAddress,
}

/// A default route of the main table.
#[derive(Clone, Debug)]
pub(super) struct Default {
    pub(super) ipv6: bool,
    pub(super) interface: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) metric: u32,
}

impl Netlink {
    /// Opens the connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    async fn request(
        &self,
        payload: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut message = NetlinkMessage::from(payload);
        message.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let mut responses = handle.request(message).map_err(io::Error::other)?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        let all = async {
            while let Some(response) = responses.next().await {
                interrupted |= response.header.flags & NLM_F_DUMP_INTR != 0;
                match response.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
            Ok(())
        };
        tokio::time::timeout(TIMEOUT, all).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer over netlink")
        })??;
        Ok((answers, interrupted))
    }

    async fn dump(&self, payload: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        for _ in 0..DUMP_TRIES {
            let (found, interrupted) = self.request(payload.clone(), NLM_F_DUMP).await?;
            answers = found;
            if !interrupted {
                break;
            }
        }
        Ok(answers)
    }

    async fn change(&self, payload: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(payload, NLM_F_ACK | flags).await.map(drop)
    }

    /// Every interface.
    pub(super) async fn links(&self) -> io::Result<Vec<Link>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(link(message)),
                _ => None,
            })
            .collect())
    }

    /// Every address of both families.
    pub(super) async fn addresses(&self) -> io::Result<Vec<InterfaceAddress>> {
        let answers = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => address(&message),
                _ => None,
            })
            .collect())
    }

    /// Every route of `table`, of both families where the kernel has them.
    pub(super) async fn routes(&self, table: u32) -> io::Result<Vec<ObservedRoute>> {
        Ok(self.route_messages(table).await?.iter().filter_map(route).collect())
    }

    /// The default routes of the main table.
    pub(super) async fn defaults(&self) -> io::Result<Vec<Default>> {
        let messages = self.route_messages(u32::from(RouteHeader::RT_TABLE_MAIN)).await?;
        let mut defaults: Vec<Default> = messages.iter().filter_map(default).collect();
        defaults.sort_by_key(|default| (default.ipv6, default.metric));
        Ok(defaults)
    }

    async fn route_messages(&self, table: u32) -> io::Result<Vec<RouteMessage>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.attributes.push(RouteAttribute::Table(table));
            match self.dump(RouteNetlinkMessage::GetRoute(message)).await {
                Ok(answers) => found.extend(answers.into_iter().filter_map(|answer| match answer {
                    // The kernel's cache of path MTUs (clones) comes along and is nobody's route.
                    RouteNetlinkMessage::NewRoute(message)
                        if message.header.address_family == family
                            && table_of(&message) == table
                            && message.header.flags.bits() & libc::RTM_F_CLONED == 0 =>
                    {
                        Some(message)
                    }
                    _ => None,
                })),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Every rule of both families.
    pub(super) async fn rules(&self) -> io::Result<Vec<ObservedRule>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            match self.dump(RouteNetlinkMessage::GetRule(message)).await {
                Ok(answers) => found.extend(answers.iter().filter_map(|answer| match answer {
                    RouteNetlinkMessage::NewRule(message) if message.header.family == family => {
                        Some(rule(message))
                    }
                    _ => None,
                })),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Sets attributes of an interface.
    pub(super) async fn set_link(&self, index: u32, change: LinkChange<'_>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match change {
            LinkChange::Alias(alias) => message.attributes.push(LinkAttribute::IfAlias(alias.to_owned())),
            LinkChange::Mtu(mtu) => message.attributes.push(LinkAttribute::Mtu(mtu)),
            LinkChange::Up => {
                message.header.flags = LinkFlags::Up;
                message.header.change_mask = LinkFlags::Up;
            }
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0).await
    }

    /// Removes an interface; that it is gone already is as good.
    pub(super) async fn remove_link(&self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        gone_is_good(self.change(RouteNetlinkMessage::DelLink(message), 0).await)
    }

    /// Adds an address as a host prefix with podspan's number, or takes it over.
    pub(super) async fn add_address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let length = if address.is_ipv6() { 128 } else { 32 };
        let mut message = address_message(index, address, length);
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Removes an address; that it is gone already is as good.
    pub(super) async fn remove_address(&self, index: u32, address: IpAddr, length: u8) -> io::Result<()> {
        let message = address_message(index, address, length);
        gone_is_good(self.change(RouteNetlinkMessage::DelAddress(message), 0).await)
    }

    /// Adds a route, or changes podspan's own in place.
    pub(super) async fn add_route(&self, route: &Route, replace: bool) -> io::Result<()> {
        let message = route_message(route);
        // Never REPLACE where no route of podspan's was seen: IPv4 would replace anybody's.
        let how = if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | how).await
    }

    /// Removes a route of podspan's; that it is gone already is as good.
    pub(super) async fn remove_route(&self, route: &Route) -> io::Result<()> {
        let mut message = route_message(route);
        // NOWHERE matches any scope.
        message.header.scope = RouteScope::NoWhere;
        gone_is_good(self.change(RouteNetlinkMessage::DelRoute(message), 0).await)
    }

    /// Adds a rule; that it stands already is as good.
    pub(super) async fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        match self.change(RouteNetlinkMessage::NewRule(rule_message(rule)), NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            done => done,
        }
    }

    /// Removes a rule of podspan's; that it is gone already is as good.
    pub(super) async fn remove_rule(&self, rule: &Rule) -> io::Result<()> {
        gone_is_good(self.change(RouteNetlinkMessage::DelRule(rule_message(rule)), 0).await)
    }
}

/// One change to an interface.
pub(super) enum LinkChange<'a> {
    /// Its alias.
    Alias(&'a str),
    /// Its MTU in bytes.
    Mtu(u32),
    /// Administratively up.
    Up,
}

/// Whether the kernel says that the family or the table does not exist: then nothing stands in it.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPFNOSUPPORT)
    )
}

fn gone_is_good(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ESRCH | libc::ENOENT | libc::ENODEV | libc::EADDRNOTAVAIL)
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

fn family(ipv6: bool) -> AddressFamily {
    if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.tun = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun)));
            }
            _ => {}
        }
    }
    link
}

fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut address = None;
    let mut local = None;
    let mut protocol = 0;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(given) => address = Some(*given),
            // On a point-to-point interface the address is the peer's and this is the host's own.
            AddressAttribute::Local(given) => local = Some(*given),
            AddressAttribute::Protocol(given) => protocol = u8::from(*given),
            _ => {}
        }
    }
    Some(InterfaceAddress {
        index: message.header.index,
        observed: ObservedAddress {
            address: local.or(address)?,
            length: message.header.prefix_len,
            protocol,
        },
    })
}

fn address_message(index: u32, address: IpAddr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.index = index;
    message.header.prefix_len = length;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

fn table_of(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| u32::from(message.header.table))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn unspecified(family: AddressFamily) -> IpAddr {
    if family == AddressFamily::Inet6 {
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
    }
}

fn route(message: &RouteMessage) -> Option<ObservedRoute> {
    let header = &message.header;
    let mut destination = unspecified(header.address_family);
    let mut observed = ObservedRoute {
        table: table_of(message),
        destination: Cidr::containing(destination, 0).ok()?,
        protocol: u8::from(header.protocol),
        interface: None,
        source: None,
        mtu: None,
        metric: 0,
        plain: header.kind == RouteType::Unicast && header.source_prefix_length == 0 && header.tos == 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(given) => destination = ip(given)?,
            RouteAttribute::Oif(index) => observed.interface = Some(*index),
            RouteAttribute::PrefSource(given) => observed.source = ip(given),
            RouteAttribute::Priority(metric) => observed.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => observed.mtu = Some(*mtu),
                        _ => observed.plain = false,
                    }
                }
            }
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::NhId(_) => observed.plain = false,
            _ => {}
        }
    }
    observed.destination = Cidr::containing(destination, header.destination_prefix_length).ok()?;
    Some(observed)
}

fn default(message: &RouteMessage) -> Option<Default> {
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return None;
    }
    let mut found = Default {
        ipv6: header.address_family == AddressFamily::Inet6,
        interface: None,
        gateway: None,
        metric: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.interface = Some(*index),
            RouteAttribute::Gateway(given) => found.gateway = ip(given),
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::MultiPath(hops) => {
                found.interface = found.interface.or(hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    Some(found)
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.is_ipv6());
    message.header.destination_prefix_length = route.destination.length();
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    // The table is in the attribute: the header has room for eight bits only.
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.address())));
    if let Some(index) = route.interface {
        message.attributes.push(RouteAttribute::Oif(index));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
    }
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    if let Some(metric) = route.metric {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

fn rule(message: &RuleMessage) -> ObservedRule {
    let header = &message.header;
    let mut observed = ObservedRule {
        ipv6: header.family == AddressFamily::Inet6,
        priority: 0,
        table: u32::from(header.table),
        protocol: 0,
        fwmark: None,
        interface: None,
        plain: header.action == RuleAction::ToTable
            && header.src_len == 0
            && header.dst_len == 0
            && header.tos == 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => observed.priority = *priority,
            RuleAttribute::Table(table) => observed.table = *table,
            RuleAttribute::Protocol(protocol) => observed.protocol = u8::from(*protocol),
            RuleAttribute::FwMark(mark) => observed.fwmark = Some(*mark),
            RuleAttribute::FwMask(mask) => observed.plain &= *mask == u32::MAX,
            // The kernel names "no suppression" as all ones.
            RuleAttribute::SuppressPrefixLen(length) => observed.plain &= *length == u32::MAX,
            RuleAttribute::Iifname(name) => observed.interface = Some(name.clone()),
            RuleAttribute::Oifname(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_) => observed.plain = false,
            _ => {}
        }
    }
    // Either all that is not marked, or what came by an interface.
    observed.plain &= observed.fwmark.is_some() != observed.interface.is_some();
    observed.plain &= header.flags.contains(RuleFlags::Invert) == observed.interface.is_none();
    observed
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.ipv6);
    message.header.action = RuleAction::ToTable;
    match &rule.interface {
        Some(interface) => message.attributes.push(RuleAttribute::Iifname(interface.clone())),
        None => message.header.flags = RuleFlags::Invert,
    }
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    if let Some(mark) = rule.fwmark {
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(u32::MAX));
    }
    message
}
