//! From what should stand and what stands to the steps between: a pure function.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use podspan_wire::Cidr;

use super::model::{HostDesired, NftState, Observed, ObservedLink, ObservedRoute, ObservedRule};
use super::{ALIAS, PROTOCOL, nft, sysctl};

/// One change to the kernel. Steps are safe when repeated; they are ordered so that what others need comes
/// first, and so that what is new stands before what is old goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give the interface podspan's alias, by which it is known again.
    Alias {
        /// The interface's index.
        index: u32,
    },
    /// Set the interface's MTU.
    Mtu {
        /// The interface's index.
        index: u32,
        /// Bytes.
        mtu: u32,
    },
    /// Write a sysctl.
    Sysctl(sysctl::Write),
    /// Set the interface up.
    Up {
        /// The interface's index.
        index: u32,
    },
    /// Have the nftables table be this one, in one transaction.
    Nft {
        /// The whole table.
        table: nft::Table,
    },
    /// Add an address, or take over one that stands without podspan's number.
    AddAddress {
        /// The interface's index.
        index: u32,
        /// The address; set as a /32 or /128.
        address: IpAddr,
    },
    /// Add a route.
    AddRoute(Route),
    /// Change a route of podspan's in place.
    ReplaceRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove a rule of podspan's.
    RemoveRule(Rule),
    /// Remove a route of podspan's.
    RemoveRoute(Route),
    /// Remove an address from podspan's interface.
    RemoveAddress {
        /// The interface's index.
        index: u32,
        /// The address.
        address: IpAddr,
        /// Its prefix length in bits.
        length: u8,
    },
}

/// A route as podspan makes it: unicast, straight to its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The table.
    pub table: u32,
    /// Where it leads to.
    pub destination: Cidr,
    /// Index of the interface; none where a route is removed whatever it leads to.
    pub interface: Option<u32>,
    /// The preferred source.
    pub source: Option<IpAddr>,
    /// The largest packet, bytes; that of the interface if none.
    pub mtu: Option<u32>,
    /// The metric, where a route is removed; added routes take the kernel's default.
    pub metric: Option<u32>,
}

/// A rule as podspan makes it: what does not carry the mark looks up the table, or what came by the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is of IPv6.
    pub ipv6: bool,
    /// The priority.
    pub priority: u32,
    /// The table.
    pub table: u32,
    /// The mark of outer packets, which do not look it up.
    pub fwmark: Option<u32>,
    /// The interface by which packets come that look it up; without a mark then.
    pub interface: Option<String>,
}

impl Step {
    /// A short name of what the step is about: the same for every attempt at the same thing.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::Alias { .. } => "alias of the interface".to_owned(),
            Self::Mtu { mtu, .. } => format!("MTU {mtu} of the interface"),
            Self::Sysctl(write) => format!("sysctl {}", write.key),
            Self::Up { .. } => "interface up".to_owned(),
            Self::Nft { .. } => "nftables table inet podspan".to_owned(),
            Self::AddAddress { address, .. } => format!("address {address}"),
            Self::AddRoute(route) | Self::ReplaceRoute(route) => {
                format!("route {} in table {}", route.destination, route.table)
            }
            Self::AddRule(rule) => format!("{rule}"),
            Self::RemoveRule(rule) => format!("leftover {rule}"),
            Self::RemoveRoute(route) => {
                format!("leftover route {} in table {}", route.destination, route.table)
            }
            Self::RemoveAddress { address, length, .. } => format!("leftover address {address}/{length}"),
        }
    }
}

impl Rule {
    /// A rule that was read back, to be removed.
    #[must_use]
    pub fn observed(rule: &ObservedRule) -> Self {
        Self {
            ipv6: rule.ipv6,
            priority: rule.priority,
            table: rule.table,
            fwmark: rule.fwmark,
            interface: rule.interface.clone(),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        write!(f, "{family} rule {} to table {}", self.priority, self.table)
    }
}

/// The steps from what stands to what should, and what no step can reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// What podspan must not or cannot do, each with its reason and what a person can do about it.
    pub refused: Vec<String>,
    /// What is as it should be though a person may wonder, such as IPv6 being off.
    pub notes: Vec<String>,
}

/// Compares `desired` with `observed`. `known_tables` are the tables that podspan used before: its routes
/// and rules there are removed unless the table is the desired one. The nftables
/// table is that of `desired` (see [`nft::table`]).
///
/// What is podspan's: routes and rules with its protocol number in a table of its own, addresses with its
/// number on its own interface, the nftables table with its comment, and the interface with its alias.
/// Nothing else is ever removed or changed.
#[must_use]
pub fn plan(desired: &HostDesired, observed: &Observed, known_tables: &BTreeSet<u32>) -> Plan {
    let mut plan = Plan::default();
    if !is_plain_name(&desired.interface) {
        // In nftables "tun*" would mean every interface of that beginning.
        plan.refused.push(format!(
            "interface {:?}: nothing is set up for it; use 1 to 15 letters, digits, dots, dashes or underscores",
            desired.interface
        ));
        return plan;
    }
    let ipv6 = match sysctl::ipv6_off(&desired.interface, desired.mtu, observed) {
        None => true,
        Some(why) => {
            if desired.addresses.iter().any(IpAddr::is_ipv6) || desired.routes.iter().any(Cidr::is_ipv6) {
                plan.notes.push(why);
            }
            false
        }
    };
    let (usable, refused) = desired.usable_routes();
    plan.refused = refused;
    let (delivered, refused) = desired.usable_deliveries();
    plan.refused.extend(refused);
    let link = own_link(desired, observed, &mut plan.refused);

    if let Some(link) = link {
        if link.alias != ALIAS {
            plan.steps.push(Step::Alias { index: link.index });
        }
        if link.mtu != desired.mtu {
            plan.steps.push(Step::Mtu { index: link.index, mtu: desired.mtu });
        }
    }
    let interface = link.map(|_| desired.interface.as_str());
    plan.steps
        .extend(sysctl::decide(interface, &desired.underlay, ipv6, observed).into_iter().map(Step::Sysctl));
    if let Some(link) = link
        && !link.up
    {
        plan.steps.push(Step::Up { index: link.index });
    }
    // The leak stop stands before the first route does, and until the last is gone.
    match observed.nft {
        NftState::Standing => {}
        NftState::Absent | NftState::Stale => plan.steps.push(Step::Nft { table: nft::table(desired) }),
        NftState::Foreign => plan.refused.push(
            "nftables table inet podspan: it is not podspan's (its comment is missing), so it is left alone and \
             traffic is neither kept from masquerading nor clamped; rename or remove it (nft delete table inet \
             podspan)"
                .to_owned(),
        ),
    }
    if let Some(link) = link {
        addresses(desired, observed, link, ipv6, &mut plan.steps);
    }
    let wanted: Vec<Route> = wanted_routes(desired, &usable, &delivered)
        .filter(|route| ipv6 || !route.destination.is_ipv6())
        .collect();
    let removals = routes(desired, observed, link, &wanted, known_tables, &mut plan);
    let rule_removals = rules(desired, observed, ipv6, known_tables, &mut plan.steps);
    plan.steps.extend(rule_removals);
    plan.steps.extend(removals);
    if let Some(link) = link {
        remove_addresses(desired, observed, link, ipv6, &mut plan.steps);
    }
    plan
}

/// `IFNAMSIZ` less its zero, and only what no program reads as more than a name.
fn is_plain_name(name: &str) -> bool {
    (1..16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether the interface is podspan's: by its alias, or since it was before, or a TUN that nobody has named
/// yet.
#[must_use]
pub fn is_own_link(link: &ObservedLink) -> bool {
    link.alias == ALIAS || link.known || (link.tun && link.alias.is_empty())
}

fn own_link<'a>(
    desired: &HostDesired,
    observed: &'a Observed,
    refused: &mut Vec<String>,
) -> Option<&'a ObservedLink> {
    let name = &desired.interface;
    match &observed.link {
        None => {
            refused.push(format!(
                "interface {name}: it does not exist; the data plane makes it, look for its error in the agent's log"
            ));
            None
        }
        Some(link) if is_own_link(link) => Some(link),
        Some(link) => {
            let what = if link.tun { "a TUN with another alias" } else { "no TUN" };
            refused.push(format!(
                "interface {name}: it is {what}, so somebody else's; it is left alone. Rename or remove it, or \
                 configure another name for podspan's"
            ));
            None
        }
    }
}

fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn addresses(
    desired: &HostDesired,
    observed: &Observed,
    link: &ObservedLink,
    ipv6: bool,
    steps: &mut Vec<Step>,
) {
    let wanted: BTreeSet<IpAddr> =
        desired.addresses.iter().copied().filter(|address| ipv6 || address.is_ipv4()).collect();
    for address in wanted {
        let length = host_length(address);
        // The kernel keeps one prefix length for an IPv6 address and does not change it in place.
        for other in &observed.addresses {
            if address.is_ipv6() && other.address == address && other.length != length {
                steps.push(Step::RemoveAddress { index: link.index, address, length: other.length });
            }
        }
        let stands = observed
            .addresses
            .iter()
            .any(|other| other.address == address && other.length == length && other.protocol == PROTOCOL);
        if !stands {
            steps.push(Step::AddAddress { index: link.index, address });
        }
    }
}

fn remove_addresses(
    desired: &HostDesired,
    observed: &Observed,
    link: &ObservedLink,
    ipv6: bool,
    steps: &mut Vec<Step>,
) {
    /// `IFAPROT_KERNEL_LL`: a link-local address that the kernel made by itself.
    const KERNEL_LINK_LOCAL: u8 = 3;
    for other in &observed.addresses {
        let wanted = desired.addresses.contains(&other.address)
            && (ipv6 || other.address.is_ipv4())
            && other.length == host_length(other.address);
        let owned = other.protocol == PROTOCOL || other.protocol == KERNEL_LINK_LOCAL;
        let already = desired.addresses.contains(&other.address) && other.address.is_ipv6() && ipv6;
        if owned && !wanted && !already {
            steps.push(Step::RemoveAddress {
                index: link.index,
                address: other.address,
                length: other.length,
            });
        }
    }
}

/// Every route that should stand, but for the interface.
fn wanted_routes<'a>(
    desired: &'a HostDesired,
    usable: &'a [Cidr],
    delivered: &'a [Cidr],
) -> impl Iterator<Item = Route> + 'a {
    let remote = usable.iter().map(|destination| Route {
        table: desired.table,
        destination: *destination,
        interface: None,
        source: desired.host_address(destination.is_ipv6()),
        mtu: desired.route_mtu(destination),
        metric: None,
    });
    // Only what is forwarded takes these: there is no source to prefer.
    let inside = desired.pod_delivery.iter().flat_map(move |delivery| {
        delivered.iter().map(move |destination| Route {
            table: delivery.table,
            destination: *destination,
            interface: None,
            source: None,
            mtu: None,
            metric: None,
        })
    });
    remote.chain(inside)
}

/// Pushes what is to be added and returns what is to be removed.
fn routes(
    desired: &HostDesired,
    observed: &Observed,
    link: Option<&ObservedLink>,
    wanted: &[Route],
    known_tables: &BTreeSet<u32>,
    plan: &mut Plan,
) -> Vec<Step> {
    let current = |table: u32| desired.tables().any(|own| own == table);
    let owned = |route: &ObservedRoute| {
        route.protocol == PROTOCOL && (current(route.table) || known_tables.contains(&route.table))
    };
    // By destination, so that hundreds of routes against hundreds stay cheap.
    let mut standing: BTreeMap<(u32, Cidr), Vec<&ObservedRoute>> = BTreeMap::new();
    for route in observed.routes.iter().filter(|route| current(route.table)) {
        standing.entry((route.table, route.destination)).or_default().push(route);
    }
    let mut kept: HashSet<*const ObservedRoute> = HashSet::new();
    if let Some(link) = link {
        for route in wanted {
            let route = Route { interface: Some(link.index), ..route.clone() };
            let (table, destination) = (route.table, route.destination);
            let here = standing.get(&(table, destination)).map(Vec::as_slice).unwrap_or_default();
            let metric = default_metric(destination.is_ipv6());
            let same_key: Vec<_> = here.iter().filter(|route| route.metric == metric).collect();
            let right = |other: &ObservedRoute| {
                other.plain
                    && other.interface == Some(link.index)
                    && other.source == route.source
                    && other.mtu == route.mtu
            };
            if let Some(foreign) = same_key.iter().find(|route| !owned(route)) {
                plan.refused.push(format!(
                    "route {destination} in table {table}: another program's route (protocol {}) is in its place and \
                     is left alone; remove it or configure another table for podspan",
                    foreign.protocol
                ));
                // What of podspan's stands beside it stays: it is no worse than nothing.
                kept.extend(here.iter().filter(|route| owned(route)).map(|route| std::ptr::from_ref(*route)));
            } else if let Some(good) = same_key.iter().find(|route| right(route)) {
                kept.insert(std::ptr::from_ref(**good));
            } else if let Some(bad) = same_key.first() {
                plan.steps.push(Step::ReplaceRoute(route));
                kept.insert(std::ptr::from_ref(**bad));
            } else {
                plan.steps.push(Step::AddRoute(route));
            }
        }
    }
    let is_wanted = |route: &ObservedRoute| {
        wanted.iter().any(|wanted| (wanted.table, wanted.destination) == (route.table, route.destination))
    };
    observed
        .routes
        .iter()
        .filter(|route| owned(route))
        .filter(|route| !kept.contains(&std::ptr::from_ref(*route)))
        // While the interface is away its routes are too; what is left of them waits for it.
        .filter(|route| link.is_some() || !is_wanted(route))
        .map(|route| {
            Step::RemoveRoute(Route {
                table: route.table,
                destination: route.destination,
                interface: route.interface,
                source: None,
                mtu: None,
                metric: Some(route.metric),
            })
        })
        .collect()
}

/// The metric that the kernel gives a route that names none.
fn default_metric(ipv6: bool) -> u32 {
    // IP6_RT_PRIO_USER of the kernel.
    if ipv6 { 1024 } else { 0 }
}

/// The rules of one family that should stand.
fn wanted_rules(desired: &HostDesired, ipv6: bool) -> impl Iterator<Item = Rule> {
    let remote = Rule {
        ipv6,
        priority: desired.rule_priority,
        table: desired.table,
        fwmark: Some(desired.fwmark),
        interface: None,
    };
    let inside = desired.pod_delivery.as_ref().map(|delivery| Rule {
        ipv6,
        priority: desired.rule_priority,
        table: delivery.table,
        fwmark: None,
        interface: Some(desired.interface.clone()),
    });
    [remote].into_iter().chain(inside)
}

/// Pushes what is to be added and returns what is to be removed.
fn rules(
    desired: &HostDesired,
    observed: &Observed,
    ipv6: bool,
    known_tables: &BTreeSet<u32>,
    steps: &mut Vec<Step>,
) -> Vec<Step> {
    let owned = |rule: &ObservedRule| {
        rule.protocol == PROTOCOL
            && (desired.tables().any(|own| own == rule.table) || known_tables.contains(&rule.table))
    };
    let mut kept: Vec<&ObservedRule> = Vec::new();
    for family_is_v6 in [false, true] {
        if family_is_v6 && !ipv6 {
            continue;
        }
        for wanted in wanted_rules(desired, family_is_v6) {
            let right = observed.rules.iter().find(|rule| {
                owned(rule)
                    && rule.plain
                    && rule.ipv6 == wanted.ipv6
                    && rule.priority == wanted.priority
                    && rule.table == wanted.table
                    && rule.fwmark == wanted.fwmark
                    && rule.interface == wanted.interface
            });
            match right {
                Some(rule) => kept.push(rule),
                None => steps.push(Step::AddRule(wanted)),
            }
        }
    }
    observed
        .rules
        .iter()
        .filter(|rule| owned(rule) && !kept.iter().any(|kept| std::ptr::eq(*kept, *rule)))
        .map(|rule| Step::RemoveRule(Rule::observed(rule)))
        .collect()
}
