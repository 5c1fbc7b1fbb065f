//! Which routes should stand, and how to get there: pure.

use std::net::IpAddr;

use podspan_wire::Cidr;
use podspan_wire::local::PodRoutes;

use super::PodRoute;
use super::facts::Facts;

/// The kernel's own metric for IPv6 routes that name none (`IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1024;
/// The least MTU that IPv6 knows (RFC 8200 section 5) and IPv4 knows (RFC 791 section 3.2), bytes.
const MINIMUM_MTU: (u32, u32) = (1280, 68);

/// What should stand, and the destinations that are left to somebody else's route.
pub(super) fn desired(wanted: &PodRoutes, gateways: &[IpAddr], facts: &Facts) -> (Vec<PodRoute>, Vec<Cidr>) {
    let gateway = |ipv6: bool| {
        gateways.iter().chain(&facts.default_gateways).copied().find(|gateway| gateway.is_ipv6() == ipv6)
    };
    let (ipv4, ipv6) = (gateway(false), gateway(true));
    let (mut desired, mut foreign) = (Vec::new(), Vec::new());
    for &cidr in &wanted.cidrs {
        let (reachable, gateway, metric, least) = if cidr.is_ipv6() {
            (facts.ipv6, ipv6, IPV6_METRIC, MINIMUM_MTU.0)
        } else {
            (facts.ipv4, ipv4, 0, MINIMUM_MTU.1)
        };
        if !reachable {
            continue;
        }
        if facts.others.contains(&(cidr, metric)) {
            foreign.push(cidr);
            continue;
        }
        // An MTU above the link's would make the pod send what its interface cannot; 0 is no limit.
        let mtu = (wanted.mtu != 0).then(|| wanted.mtu.max(least).min(facts.link_mtu));
        desired.push(PodRoute { cidr, gateway, mtu, metric });
    }
    (desired, foreign)
}

/// The way from what stands to what should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) add: Vec<PodRoute>,
    pub(super) change: Vec<PodRoute>,
    pub(super) delete: Vec<PodRoute>,
}

pub(super) fn plan(desired: &[PodRoute], ours: &[PodRoute]) -> Plan {
    let mut plan = Plan::default();
    for route in desired {
        let mut same_place = ours.iter().filter(|own| (own.cidr, own.metric) == (route.cidr, route.metric));
        if ours.contains(route) {
            // Others at the same place go below.
        } else if same_place.next().is_some() {
            plan.change.push(*route);
        } else {
            plan.add.push(*route);
        }
    }
    for own in ours {
        // A replaced route is gone by then; deleting it again would hit its successor.
        let replaced = plan.change.iter().any(|new| (new.cidr, new.metric) == (own.cidr, own.metric));
        if !desired.contains(own) && !replaced {
            plan.delete.push(*own);
        }
    }
    plan
}

impl Plan {
    pub(super) fn describe(&self) -> Vec<String> {
        let one = |what: &str, route: &PodRoute| {
            let via = route.gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
            let mtu = route.mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
            format!("{what}: {}{via}{mtu}", route.cidr)
        };
        let add = self.add.iter().map(|route| one("missing", route));
        let change = self.change.iter().map(|route| one("not as it should be", route));
        let delete = self.delete.iter().map(|route| one("no longer wanted", route));
        add.chain(change).chain(delete).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn facts() -> Facts {
        Facts { index: 2, link_mtu: 1500, ipv4: true, ipv6: true, ..Facts::default() }
    }

    fn wanted(cidrs: &[&str], mtu: u32) -> PodRoutes {
        PodRoutes { cidrs: cidrs.iter().map(|text| cidr(text)).collect(), mtu }
    }

    fn route(text: &str, gateway: Option<&str>, mtu: u32) -> PodRoute {
        let cidr = cidr(text);
        let metric = if cidr.is_ipv6() { IPV6_METRIC } else { 0 };
        PodRoute { cidr, gateway: gateway.map(ip), mtu: Some(mtu), metric }
    }

    #[test]
    fn each_family_goes_through_its_own_gateway() {
        let wanted = wanted(&["10.2.0.0/16", "fd00:2::/48"], 1420);
        let gateways = [ip("10.1.1.1"), ip("fd00:1::1")];
        assert_eq!(
            desired(&wanted, &gateways, &facts()).0,
            [route("10.2.0.0/16", Some("10.1.1.1"), 1420), route("fd00:2::/48", Some("fd00:1::1"), 1420)]
        );
        let without = desired(&wanted, &[], &facts()).0;
        assert_eq!(without, [route("10.2.0.0/16", None, 1420), route("fd00:2::/48", None, 1420)]);
        let default = Facts { default_gateways: vec![ip("169.254.1.1"), ip("fe80::1")], ..facts() };
        assert_eq!(
            desired(&wanted, &gateways[..1], &default).0,
            [route("10.2.0.0/16", Some("10.1.1.1"), 1420), route("fd00:2::/48", Some("fe80::1"), 1420)]
        );
    }

    #[test]
    fn a_family_without_an_address_gets_no_route() {
        let wanted = wanted(&["10.2.0.0/16", "fd00:2::/48"], 1420);
        let v4 = Facts { ipv6: false, ..facts() };
        assert_eq!(desired(&wanted, &[], &v4).0, [route("10.2.0.0/16", None, 1420)]);
        let v6 = Facts { ipv4: false, ..facts() };
        assert_eq!(desired(&wanted, &[], &v6).0, [route("fd00:2::/48", None, 1420)]);
    }

    #[test]
    fn the_mtu_stays_within_what_link_and_family_allow() {
        for (mtu, v4, v6) in [(1420, 1420, 1420), (9000, 1500, 1500), (1000, 1000, 1280), (1, 68, 1280)] {
            let wanted = wanted(&["10.2.0.0/16", "fd00:2::/48"], mtu);
            let got: Vec<_> = desired(&wanted, &[], &facts()).0.iter().map(|r| r.mtu).collect();
            assert_eq!(got, [Some(v4), Some(v6)], "{mtu}");
        }
        assert_eq!(desired(&wanted(&["10.2.0.0/16"], 0), &[], &facts()).0[0].mtu, None);
    }

    #[test]
    fn the_routes_of_others_stand() {
        let facts = Facts { others: vec![(cidr("10.2.0.0/16"), 0), (cidr("10.3.0.0/16"), 7)], ..facts() };
        let (desired, foreign) = desired(&wanted(&["10.2.0.0/16", "10.3.0.0/16"], 1420), &[], &facts);
        assert_eq!(desired, [route("10.3.0.0/16", None, 1420)]);
        assert_eq!(foreign, [cidr("10.2.0.0/16")]);
    }

    #[test]
    fn a_plan_adds_changes_and_deletes_only_what_differs() {
        let stays = route("10.2.0.0/16", Some("10.1.1.1"), 1420);
        let old = route("10.3.0.0/16", Some("10.1.1.1"), 1400);
        let new = route("10.3.0.0/16", Some("10.1.1.1"), 1420);
        let missing = route("fd00:2::/48", None, 1420);
        let gone = route("10.9.0.0/16", None, 1420);
        let other_metric = PodRoute { metric: 5, ..stays };
        let mut same_place_twice = missing;
        same_place_twice.gateway = Some(ip("fe80::9"));

        let plan_of = plan(&[stays, new, missing], &[stays, old, gone, other_metric]);
        assert_eq!(plan_of, Plan { add: vec![missing], change: vec![new], delete: vec![gone, other_metric] });
        assert_eq!(plan(&[missing], &[missing, same_place_twice]).delete, [same_place_twice]);
        assert_eq!(plan(&[stays], &[stays]), Plan::default());
        assert_eq!(plan_of.describe()[0], "missing: fd00:2::/48 mtu 1420");
    }
}
