//! Table tests of the plan.

use std::collections::BTreeSet;

use super::model::*;
use super::plan::{Plan, Step, plan};
use super::tests_support::desired;
use super::{ALIAS, PROTOCOL};

const INDEX: u32 = 7;

fn known() -> BTreeSet<u32> {
    BTreeSet::from([7183])
}

/// A host on which everything stands.
fn standing() -> Observed {
    let desired = desired();
    let address = |address: &str, length| ObservedAddress {
        address: address.parse().unwrap(),
        length,
        protocol: PROTOCOL,
    };
    let rule = |ipv6| ObservedRule {
        ipv6,
        priority: desired.rule_priority,
        table: desired.table,
        protocol: PROTOCOL,
        fwmark: Some(desired.fwmark),
        interface: None,
        plain: true,
    };
    let route = |cidr: &podspan_wire::Cidr| ObservedRoute {
        table: desired.table,
        destination: *cidr,
        protocol: PROTOCOL,
        interface: Some(INDEX),
        source: desired.host_address(cidr.is_ipv6()),
        mtu: desired.route_mtu(cidr),
        metric: if cidr.is_ipv6() { 1024 } else { 0 },
        plain: true,
    };
    let sysctls = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv4/conf/podspan0/rp_filter", "2"),
    ];
    Observed {
        link: Some(ObservedLink {
            index: INDEX,
            tun: true,
            alias: ALIAS.into(),
            mtu: 1420,
            up: true,
            known: false,
        }),
        addresses: vec![address("10.1.1.0", 32), address("fd00:1:1::", 128)],
        routes: desired.routes.iter().map(route).collect(),
        rules: vec![rule(false), rule(true)],
        nft: NftState::Standing,
        sysctls: sysctls.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        remembered: std::collections::BTreeMap::new(),
        interfaces: vec!["eth0".into(), "podspan0".into()],
    }
}

fn steps(observed: &Observed) -> Vec<String> {
    let plan = plan(&desired(), observed, &known());
    assert_eq!(plan.refused, Vec::<String>::new());
    plan.steps.iter().map(name).collect()
}

fn name(step: &Step) -> String {
    let verb = match step {
        Step::ReplaceRoute(_) => "replace ",
        Step::AddRoute(_) | Step::AddRule(_) | Step::AddAddress { .. } => "add ",
        _ => "",
    };
    format!("{verb}{}", step.subject())
}

#[test]
fn where_all_stands_there_is_nothing_to_do() {
    assert_eq!(plan(&desired(), &standing(), &known()), Plan::default());
}

#[test]
fn from_scratch_what_others_need_comes_first() {
    let mut observed = standing();
    observed.link = Some(ObservedLink { index: INDEX, tun: true, mtu: 1500, ..ObservedLink::default() });
    observed.addresses.clear();
    observed.routes.clear();
    observed.rules.clear();
    observed.nft = NftState::Absent;
    observed.sysctls.insert("net/ipv4/conf/podspan0/rp_filter".into(), "0".into());
    assert_eq!(
        steps(&observed),
        [
            "alias of the interface",
            "MTU 1420 of the interface",
            "sysctl net/ipv4/conf/podspan0/rp_filter",
            "interface up",
            "nftables table inet podspan",
            "add address 10.1.1.0",
            "add address fd00:1:1::",
            "add route 10.2.0.0/16 in table 7183",
            "add route 10.3.0.0/16 in table 7183",
            "add route fd00:2::/48 in table 7183",
            "add IPv4 rule 5183 to table 7183",
            "add IPv6 rule 5183 to table 7183",
        ]
    );
}

#[test]
fn each_thing_that_is_missing_or_wrong_is_put_right() {
    type Break = fn(&mut Observed);
    let table: [(&str, Break, &[&str]); 15] = [
        ("alias lost", |o| o.link.as_mut().unwrap().alias.clear(), &["alias of the interface"]),
        (
            "alias changed under its eyes",
            |o| {
                let link = o.link.as_mut().unwrap();
                (link.alias, link.known) = ("other".into(), true);
            },
            &["alias of the interface"],
        ),
        ("link down", |o| o.link.as_mut().unwrap().up = false, &["interface up"]),
        ("address gone", |o| o.addresses.truncate(1), &["add address fd00:1:1::"]),
        ("address without the number", |o| o.addresses[0].protocol = 0, &["add address 10.1.1.0"]),
        (
            "IPv6 address with another length",
            |o| o.addresses[1].length = 64,
            &["leftover address fd00:1:1::/64", "add address fd00:1:1::"],
        ),
        (
            "link-local address",
            |o| {
                o.addresses.push(ObservedAddress {
                    address: "fe80::1".parse().unwrap(),
                    length: 64,
                    protocol: 3,
                })
            },
            &["leftover address fe80::1/64"],
        ),
        ("route gone", |o| _ = o.routes.remove(1), &["add route 10.3.0.0/16 in table 7183"]),
        (
            "route elsewhere",
            |o| o.routes[0].interface = Some(9),
            &["replace route 10.2.0.0/16 in table 7183"],
        ),
        ("route's source lost", |o| o.routes[2].source = None, &["replace route fd00:2::/48 in table 7183"]),
        ("rule gone", |o| o.rules.truncate(1), &["add IPv6 rule 5183 to table 7183"]),
        (
            "rule of another mark",
            |o| o.rules[0].fwmark = Some(1),
            &["add IPv4 rule 5183 to table 7183", "leftover IPv4 rule 5183 to table 7183"],
        ),
        ("rule twice", |o| o.rules.push(o.rules[0].clone()), &["leftover IPv4 rule 5183 to table 7183"]),
        ("nft table gone", |o| o.nft = NftState::Absent, &["nftables table inet podspan"]),
        ("nft table changed", |o| o.nft = NftState::Stale, &["nftables table inet podspan"]),
    ];
    for (what, change, expected) in table {
        let mut observed = standing();
        change(&mut observed);
        assert_eq!(steps(&observed), expected, "{what}");
    }
}

#[test]
fn leftovers_go_after_what_is_new_stands() {
    let mut observed = standing();
    observed.routes[0].destination = "10.9.0.0/16".parse().unwrap();
    observed.rules[0].priority = 100;
    observed.addresses[0].address = "10.1.7.0".parse().unwrap();
    assert_eq!(
        steps(&observed),
        [
            "add address 10.1.1.0",
            "add route 10.2.0.0/16 in table 7183",
            "add IPv4 rule 5183 to table 7183",
            "leftover IPv4 rule 100 to table 7183",
            "leftover route 10.9.0.0/16 in table 7183",
            "leftover address 10.1.7.0/32",
        ]
    );
}

#[test]
fn what_an_earlier_table_holds_is_removed() {
    let mut observed = standing();
    let mut old = observed.routes[0].clone();
    old.table = 99;
    observed.routes.push(old);
    let mut old = observed.rules[0].clone();
    old.table = 99;
    observed.rules.push(old);
    let plan_of = |known: &[u32]| plan(&desired(), &observed, &known.iter().copied().collect());
    assert!(plan_of(&[7183]).steps.is_empty(), "a table that podspan never used is not its own");
    let names: Vec<_> = plan_of(&[7183, 99]).steps.iter().map(name).collect();
    assert_eq!(names, ["leftover IPv4 rule 5183 to table 99", "leftover route 10.2.0.0/16 in table 99"]);
}

#[test]
fn what_is_not_podspans_stays() {
    let mut observed = standing();
    // A foreign route beside, a foreign rule to the table, a foreign address on the interface.
    let mut route = observed.routes[0].clone();
    (route.destination, route.protocol) = ("10.77.0.0/16".parse().unwrap(), 4);
    observed.routes.push(route);
    let mut rule = observed.rules[0].clone();
    (rule.protocol, rule.priority) = (3, 1);
    observed.rules.push(rule);
    observed.addresses.push(ObservedAddress {
        address: "10.77.0.1".parse().unwrap(),
        length: 24,
        protocol: 0,
    });
    assert_eq!(steps(&observed), Vec::<String>::new());
}

#[test]
fn a_foreign_route_in_the_way_is_left_and_told() {
    let mut observed = standing();
    observed.routes[0].protocol = 4;
    let plan = plan(&desired(), &observed, &known());
    assert_eq!(plan.steps, []);
    assert!(
        plan.refused[0].contains("10.2.0.0/16") && plan.refused[0].contains("protocol 4"),
        "{:?}",
        plan.refused
    );
}

#[test]
fn a_foreign_interface_or_nft_table_is_left_and_told() {
    for (tun, alias) in [(false, ""), (true, "somebody's"), (false, "somebody's")] {
        let mut observed = standing();
        observed.link =
            Some(ObservedLink { index: INDEX, tun, alias: alias.into(), mtu: 1, up: false, known: false });
        let plan = plan(&desired(), &observed, &known());
        assert!(plan.refused[0].contains("somebody else's"), "{:?}", plan.refused);
        let touched = plan.steps.iter().any(|step| {
            matches!(
                step,
                Step::Alias { .. }
                    | Step::Mtu { .. }
                    | Step::Up { .. }
                    | Step::AddAddress { .. }
                    | Step::AddRoute(_)
            )
        });
        assert!(!touched, "{:?}", plan.steps);
    }
    let mut observed = standing();
    observed.nft = NftState::Foreign;
    let plan = plan(&desired(), &observed, &known());
    assert_eq!(plan.steps, []);
    assert!(plan.refused[0].contains("not podspan's"));
}

#[test]
fn without_the_interface_nothing_is_taken_down() {
    let mut observed = standing();
    observed.link = None;
    observed.addresses.clear();
    let plan = plan(&desired(), &observed, &known());
    assert_eq!(plan.steps, []);
    assert!(plan.refused[0].contains("does not exist"));
}

#[test]
fn a_route_over_the_clusters_own_cidrs_is_refused_and_the_others_stand() {
    for (bad, whose) in [
        ("10.1.1.0/24", "this node's pod CIDR 10.1.1.0/24"),
        ("10.1.9.0/24", "this cluster's pod CIDR 10.1.0.0/16"),
        ("10.0.0.0/8", "this node's pod CIDR 10.1.1.0/24"),
        ("10.96.5.0/24", "this cluster's service CIDR 10.96.0.0/16"),
    ] {
        let mut desired = desired();
        desired.routes.push(bad.parse().unwrap());
        let plan = plan(&desired, &standing(), &known());
        assert_eq!(plan.steps, [], "{bad}");
        assert!(plan.refused[0].contains(whose), "{:?}", plan.refused);
    }
}

#[test]
fn where_ipv6_is_off_only_ipv4_is_wanted_and_a_note_tells() {
    let mut observed = standing();
    observed.sysctls.insert("net/ipv6/conf/all/disable_ipv6".into(), "1".into());
    observed.addresses.remove(1);
    observed.routes.remove(2);
    observed.rules.remove(1);
    let plan = plan(&desired(), &observed, &known());
    assert_eq!((plan.steps, plan.refused), (Vec::new(), Vec::new()));
    assert!(plan.notes[0].contains("switched off"));
}

#[test]
fn an_interface_name_that_nft_would_misread_is_refused() {
    for name in ["tun*", "a\"b", "a b", "", "podspan0123456789"] {
        let mut desired = desired();
        desired.interface = name.into();
        let plan = plan(&desired, &standing(), &known());
        assert_eq!(plan.steps, [], "{name}");
        assert!(plan.refused[0].contains("letters, digits"), "{:?}", plan.refused);
    }
}

/// Node 1 as a gateway that hands packets to two others, and a host on which that stands too.
fn handing() -> (HostDesired, Observed) {
    let routes = ["10.1.2.0/24", "10.1.3.0/24", "fd00:1:3::/64"].map(|cidr| cidr.parse().unwrap()).to_vec();
    let desired =
        HostDesired { pod_delivery: Some(PodDelivery { table: 7184, routes: routes.clone() }), ..desired() };
    let mut observed = standing();
    observed.routes.extend(routes.iter().map(|cidr| ObservedRoute {
        table: 7184,
        destination: *cidr,
        protocol: PROTOCOL,
        interface: Some(INDEX),
        source: None,
        mtu: None,
        metric: if cidr.is_ipv6() { 1024 } else { 0 },
        plain: true,
    }));
    observed.rules.extend([false, true].map(|ipv6| ObservedRule {
        ipv6,
        priority: desired.rule_priority,
        table: 7184,
        protocol: PROTOCOL,
        fwmark: None,
        interface: Some("podspan0".into()),
        plain: true,
    }));
    (desired, observed)
}

#[test]
fn what_is_handed_to_other_nodes_has_a_table_and_a_rule_of_its_own() {
    let (desired, observed) = handing();
    let known = BTreeSet::from([7183, 7184]);
    assert_eq!(plan(&desired, &observed, &known), Plan::default());
    let names = |plan: &Plan| plan.steps.iter().map(name).collect::<Vec<_>>();
    let bare = plan(&desired, &standing(), &known);
    assert_eq!(
        names(&bare),
        [
            "add route 10.1.2.0/24 in table 7184",
            "add route 10.1.3.0/24 in table 7184",
            "add route fd00:1:3::/64 in table 7184",
            "add IPv4 rule 5183 to table 7184",
            "add IPv6 rule 5183 to table 7184",
        ]
    );
    assert_eq!(bare.refused, Vec::<String>::new());
    let Some(Step::AddRule(rule)) = bare.steps.iter().rfind(|step| matches!(step, Step::AddRule(_))) else {
        panic!("{bare:?}")
    };
    assert_eq!((rule.fwmark, rule.interface.as_deref()), (None, Some("podspan0")));

    // Delivered natively again: rules first, and nothing of it stays.
    assert_eq!(
        names(&plan(&super::tests_support::desired(), &observed, &known)),
        [
            "leftover IPv4 rule 5183 to table 7184",
            "leftover IPv6 rule 5183 to table 7184",
            "leftover route 10.1.2.0/24 in table 7184",
            "leftover route 10.1.3.0/24 in table 7184",
            "leftover route fd00:1:3::/64 in table 7184",
        ]
    );
}

#[test]
fn what_is_wrong_in_the_table_of_other_nodes_is_put_right_and_what_is_foreign_stays() {
    let (desired, mut observed) = handing();
    let known = BTreeSet::from([7183]);
    let last = observed.rules.len() - 1;
    // Another program has made the rule an inverted one; a route has an MTU, and one is not podspan's.
    observed.rules[last].plain = false;
    let first = observed.routes.iter().position(|route| route.table == 7184).unwrap();
    observed.routes[first].mtu = Some(1300);
    observed.routes[first + 1].protocol = 4;
    observed.routes.push(ObservedRoute {
        table: 7184,
        destination: "10.77.0.0/16".parse().unwrap(),
        protocol: 4,
        interface: Some(3),
        source: None,
        mtu: None,
        metric: 0,
        plain: true,
    });
    let plan = plan(&desired, &observed, &known);
    assert_eq!(
        plan.steps.iter().map(name).collect::<Vec<_>>(),
        [
            "replace route 10.1.2.0/24 in table 7184",
            "add IPv6 rule 5183 to table 7184",
            "leftover IPv6 rule 5183 to table 7184",
        ]
    );
    assert_eq!(plan.refused.len(), 1, "{:?}", plan.refused);
    assert!(plan.refused[0].contains("10.1.3.0/24 in table 7184"));
}

#[test]
fn what_is_this_nodes_own_is_handed_to_nobody() {
    let (mut desired, _) = handing();
    desired.pod_delivery.as_mut().unwrap().routes.push("10.1.1.128/25".parse().unwrap());
    let (usable, refused) = desired.usable_deliveries();
    assert_eq!(usable.len(), 3);
    assert!(refused.len() == 1 && refused[0].contains("10.1.1.128/25"), "{refused:?}");
}
