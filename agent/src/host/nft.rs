//! The nftables table of podspan: a pure function, and how to know the table again.
//!
//! One table, `inet podspan`, written whole in one transaction, and [changed](Table::change) where it stands. What
//! its chains do, and why at these priorities:
//!
//! | chain | priority | does |
//! | --- | --- | --- |
//! | `transit` | prerouting raw | exempts from connection tracking what only passes through this gateway to a pod of another node: the reply takes another way, tracking would see half a connection, and kube-proxy drops what looks invalid |
//! | `mss` | forward mangle | clamps the TCP maximum segment size to the MTU of the route to the other cluster, both ways |
//! | `leak_forward`, `leak_output` | forward, output filter | drops what is bound for a remote CIDR and would leave in clear, by any other interface |
//! | `redirects` | output filter | where packets go to other nodes of this cluster by the way they came in: nobody is told to send them there straight |
//! | `errors` | forward, filter | in the same case: what the data plane says of packets that it cannot hand on comes from this host |
//! | `source` | postrouting srcnat - 50 | keeps pods' source addresses, gives the host's traffic an address the far side can answer, and brings service traffic back |
//!
//! An accept in one nat chain does not keep another from masquerading; a translation of the source to itself
//! does, since a connection's source is translated once. Hence `snat to saddr`, well before the CNIs' chains:
//! iptables masquerades at srcnat itself, kindnet's own table at srcnat - 10.

use std::net::IpAddr;

use podspan_wire::Cidr;

use super::model::HostDesired;
pub use super::nft_table::Table;

/// The table's family and name, as nft takes them.
pub const TABLE: &str = "inet podspan";

/// The table's comment. A table of this name without it is somebody else's.
pub const COMMENT: &str = "podspan's: written by its agent, which puts back what is changed by hand";

/// The table that `desired` asks for.
#[must_use]
pub fn table(desired: &HostDesired) -> Table {
    let (remote, _) = desired.usable_routes();
    let mut table = Table::default();
    set(&mut table, "remote", &remote);
    set(&mut table, "local_pods", &desired.local_pod_cidrs.iter().copied().collect::<Vec<_>>());
    set(&mut table, "cluster_pods", &desired.cluster_pod_cidrs.iter().copied().collect::<Vec<_>>());
    let interface = format!("\"{}\"", desired.interface);
    transit(&mut table, &interface, desired);
    mss(&mut table, &interface);
    leak(&mut table, &interface, desired.fwmark);
    if desired.pod_delivery.is_some() {
        redirects(&mut table, &interface);
        errors(&mut table, &interface, desired);
    }
    source(&mut table, &interface, desired);
    table
}

/// Whether a listing of the table carries podspan's comment.
#[must_use]
pub fn is_own(listing: &str) -> bool {
    // The comment stands in the table's block itself, before any chain, set or rule could hold one.
    listing.lines().take(3).any(|line| line.trim() == format!("comment \"{COMMENT}\""))
}

/// Two sets, one of each family, of the prefixes that no other covers: nft refuses overlapping intervals.
fn set(table: &mut Table, name: &str, cidrs: &[Cidr]) {
    for (suffix, kind, ipv6) in [("4", "ipv4_addr", false), ("6", "ipv6_addr", true)] {
        let elements: Vec<String> = cidrs
            .iter()
            .filter(|cidr| cidr.is_ipv6() == ipv6)
            .filter(|cidr| !cidrs.iter().any(|other| other != *cidr && other.covers(cidr)))
            .map(ToString::to_string)
            .collect();
        table.set(format!("{name}{suffix}"), kind, elements);
    }
}

/// nft's words for the families: the prefix of an address expression, the suffix of the sets, and the
/// protocol's name.
const FAMILIES: [(&str, &str, &str); 2] = [("ip", "4", "ipv4"), ("ip6", "6", "ipv6")];

fn transit(table: &mut Table, interface: &str, desired: &HostDesired) {
    let mut rules = Vec::from(FAMILIES.map(|(ip, n, _)| {
        (
            format!("iifname {interface} {ip} daddr @cluster_pods{n} {ip} daddr != @local_pods{n} notrack"),
            "transit to another node's pod: the reply takes another way",
        )
    }));
    if desired.pod_delivery.is_some() {
        // What was not tracked is nothing that they could be related to.
        rules.extend(FAMILIES.map(|(ip, n, _)| {
            let error = error(ip, n);
            (format!("iifname {interface} {error} notrack"), "what the data plane says of transit")
        }));
    }
    table.chain("transit", "filter hook prerouting priority raw", &rules);
}

fn mss(table: &mut Table, interface: &str) {
    // The kernel looks at the routes of both directions, takes the least MTU less headers, and never raises
    // what a host has announced.
    let rules = [
        ("iifname", "segments from the tunnel fit its path"),
        ("oifname", "segments into the tunnel fit its path"),
    ]
    .map(|(direction, comment)| {
        let rule = format!(
            "{direction} {interface} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
        );
        (rule, comment)
    });
    table.chain("mss", "filter hook forward priority mangle", &rules);
}

fn leak(table: &mut Table, interface: &str, fwmark: u32) {
    let forward = FAMILIES.map(|(ip, n, _)| {
        (
            format!("oifname != {interface} {ip} daddr @remote{n} counter drop"),
            "never in clear to another cluster",
        )
    });
    table.chain("leak_forward", "filter hook forward priority filter", &forward);
    let output = FAMILIES.map(|(ip, n, _)| {
        (
            format!(
                "oifname != {{ \"lo\", {interface} }} meta mark != {fwmark:#010x} {ip} daddr @remote{n} counter drop"
            ),
            "never in clear to another cluster",
        )
    });
    table.chain("leak_output", "filter hook output priority filter", &output);
}

/// The kernel sends redirects for what leaves by the interface by which it came; IPv4's switch is one for all
/// interfaces (`send_redirects` counts together with that of conf/all), and those are not podspan's.
fn redirects(table: &mut Table, interface: &str) {
    let rules = ["icmp type redirect", "icmpv6 type nd-redirect"].map(|kind| {
        (
            format!("oifname {interface} {kind} drop"),
            "packets are handed to other nodes by the way they came in",
        )
    });
    table.chain("redirects", "filter hook output priority filter", &rules);
}

/// What the data plane says of a packet from another cluster that cannot be handed on: it comes in by the interface,
/// as if from the pod.
fn error(ip: &str, n: &str) -> String {
    let kinds = match ip {
        "ip" => "icmp type destination-unreachable",
        _ => "icmpv6 type { destination-unreachable, packet-too-big }",
    };
    format!("{ip} saddr @cluster_pods{n} {ip} daddr @remote{n} {kinds}")
}

/// Other clusters take nothing from the address of another node's pod but from that node: such a message has to come
/// from this host's own. Written without connection tracking, which has no connection for it; and only when it is
/// forwarded, since the kernel takes nothing in that comes from an address of its own.
fn errors(table: &mut Table, interface: &str, desired: &HostDesired) {
    let rules: Vec<_> = FAMILIES
        .into_iter()
        .filter_map(|(ip, n, _)| {
            let address = desired.host_address(ip == "ip6")?;
            let error = error(ip, n);
            let rule = format!("iifname {interface} oifname {interface} {error} {ip} saddr set {address}");
            Some((rule, "what the data plane says of transit comes from this host"))
        })
        .collect();
    table.chain("errors", "filter hook forward priority filter", &rules);
}

fn source(table: &mut Table, interface: &str, desired: &HostDesired) {
    let mut rules = Vec::new();
    for (ip, n, family) in FAMILIES {
        // A service's backend on another node answers to whom it sees: without this it would answer the
        // remote client straight, past this host's translation.
        rules.push((
            format!(
                "iifname {interface} oifname != {interface} ct status dnat {ip} daddr != @local_pods{n} masquerade"
            ),
            "service traffic comes back through this gateway",
        ));
        // Without a tunnel to the node the rule above does it; in front of those that keep the source.
        if desired.pod_delivery.is_some() {
            rules.push((
                format!(
                    "iifname {interface} oifname {interface} ct status dnat {ip} daddr @cluster_pods{n} masquerade"
                ),
                "service traffic that is handed to another node comes back through this gateway",
            ));
        }
        rules.push((
            format!("{ip} saddr @remote{n} {ip} daddr @cluster_pods{n} snat {ip} to {ip} saddr"),
            "from remote pods: the source stays",
        ));
        rules.push((
            format!("oifname {interface} {ip} saddr @local_pods{n} snat {ip} to {ip} saddr"),
            "to remote pods: the source stays",
        ));
        if let Some(address) = desired.host_address(matches!(ip, "ip6")) {
            let address = match address {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => v6.to_string(),
            };
            rules.push((
                format!("oifname {interface} meta nfproto {family} snat {ip} to {address}"),
                "the host's own traffic: an address the far side can answer",
            ));
        }
    }
    table.chain("source", "nat hook postrouting priority srcnat - 50", &rules);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests_support::desired;

    #[test]
    fn golden() {
        is_golden("golden.nft", &table(&desired()).whole());
    }

    fn is_golden(name: &str, text: &str) {
        let path = format!("{}/src/host/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("PODSPAN_BLESS").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, golden, "run with PODSPAN_BLESS=1 to accept the change");
    }

    #[test]
    fn golden_of_a_gateway_that_hands_packets_to_other_nodes() {
        let delivery = crate::host::PodDelivery { table: 7184, routes: vec![] };
        let with = table(&HostDesired { pod_delivery: Some(delivery), ..desired() }).whole();
        is_golden("golden-delivery.nft", &with);
        let without = table(&desired()).whole();
        assert!(without.lines().all(|line| with.lines().any(|other| other == line)), "nothing is taken away");
        let at = |rule: &str| with.find(rule).unwrap_or_else(|| panic!("{rule}: {with}"));
        assert!(at("ct status dnat ip daddr @cluster_pods4") < at("ip saddr @remote4"));
        assert!(at("ct status dnat ip6 daddr @cluster_pods6") < at("ip6 saddr @remote6"));
    }

    #[test]
    fn covered_prefixes_are_left_out() {
        let mut table = Table::default();
        let cidrs: Vec<Cidr> =
            ["10.0.0.0/8", "10.1.0.0/16", "fd00:2::/48"].iter().map(|text| text.parse().unwrap()).collect();
        set(&mut table, "x", &cidrs);
        let text = table.whole();
        assert!(text.contains("elements = { 10.0.0.0/8 }"), "{text}");
        assert!(text.contains("elements = { fd00:2::/48 }"), "{text}");
    }

    #[test]
    fn a_route_over_own_cidrs_is_in_no_set() {
        let mut desired = desired();
        desired.routes = vec!["10.1.0.0/16".parse().unwrap()];
        assert!(
            !table(&desired)
                .whole()
                .contains("set remote4 {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements")
        );
    }

    #[test]
    fn without_a_host_address_no_translation_to_it() {
        let mut desired = desired();
        desired.addresses.clear();
        assert!(!table(&desired).whole().contains("host's own traffic"));
    }

    #[test]
    fn known_again_by_its_comment() {
        assert!(is_own(&format!("table inet podspan {{\n\tcomment \"{COMMENT}\"\n}}\n")));
        assert!(!is_own("table inet podspan {\n}\n"));
        let elsewhere =
            format!("table inet podspan {{\n\tchain a {{\n\t\tip saddr 10.0.0.1 comment \"{COMMENT}\"\n");
        assert!(!is_own(&elsewhere));
    }
}
