//! What a gateway hands to other nodes of its cluster, against a real kernel: table and rule of its own, healed,
//! taken out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use podspan_agent::config::Tunnel;
use podspan_agent::host::{HostDesired, HostSettings, PodDelivery, clean};

mod host_support;
use host_support::{Netns, add_tun, desired, node, set_whole, start, until};

/// Within this a thing that was deleted by hand must stand again.
const HEALED_WITHIN: Duration = Duration::from_secs(2);

fn handing() -> HostDesired {
    let routes = ["10.1.2.0/24", "fd00:1:2::/64"].map(|cidr| cidr.parse().unwrap()).into();
    HostDesired { pod_delivery: Some(PodDelivery { table: 7184, routes }), ..desired() }
}

fn standing(node: &Netns) -> String {
    [
        "ip -4 route show table 7183",
        "ip -6 route show table 7183",
        "ip -4 route show table 7184",
        "ip -6 route show table 7184",
        "ip -4 rule",
        "ip -6 rule",
        "nft list table inet podspan",
    ]
    .iter()
    // What is missing is part of the picture.
    .map(|line| node.try_run(line).unwrap_or_else(|error| error))
    .collect()
}

/// The interface by which a packet leaves that came by podspan's interface, or that this host sends.
fn way(node: &Netns, destination: &str, source: Option<&str>) -> String {
    let from = source.map_or_else(String::new, |source| format!(" from {source} iif podspan0"));
    let words = node.run(&format!("ip route get {destination}{from}"));
    let mut words = words.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).unwrap_or_default().to_owned()
}

#[test]
fn only_what_came_out_of_a_tunnel_goes_into_one_to_another_node() {
    let (node, _router) = node();
    add_tun(&node);
    node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, handing()).await;
        let stands = standing(&node);
        for expected in [
            "10.1.2.0/24 dev podspan0 proto 112 scope link linkdown",
            "fd00:1:2::/64 dev podspan0 proto 112 metric 1024 linkdown",
            "5183:\tfrom all iif podspan0 lookup 7184 proto 112",
            "5183:\tnot from all fwmark 0x7073 lookup 7183 proto 112",
        ] {
            assert!(stands.contains(expected), "{expected} is missing in\n{stands}");
        }
        assert_eq!(stands.matches("lookup 7184").count(), 2, "{stands}");
        for (destination, source, expected) in [
            // From a pod of another cluster to one of another node, to one that nobody owns, and as the host does.
            ("10.1.2.5", Some("10.2.0.9"), "podspan0"),
            ("fd00:1:2::5", Some("fd00:2::9"), "podspan0"),
            ("10.1.3.5", Some("10.2.0.9"), "eth0"),
            ("10.1.2.5", None, "eth0"),
            ("fd00:1:2::5", None, "eth0"),
        ] {
            assert_eq!(way(&node, destination, source), expected, "{destination} from {source:?}");
        }
        // Again changes nothing.
        set_whole(&host, handing()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!((standing(&node), host.status().healed), (stands.clone(), 0));

        for (line, things) in [
            ("ip route flush table 7184", 1),
            ("ip -6 route del fd00:1:2::/64 table 7184", 1),
            ("ip route replace 10.1.2.0/24 dev podspan0 table 7184 proto 112 scope link mtu 1300", 1),
            ("ip rule del iif podspan0 lookup 7184", 1),
            ("ip -6 rule del iif podspan0 lookup 7184", 1),
            ("nft delete chain inet podspan redirects", 1),
            ("ip link set podspan0 down", 1),
        ] {
            let before = host.status().healed;
            node.run(line);
            until(line, HEALED_WITHIN, || {
                standing(&node) == stands && host.status().healed >= before + things
            })
            .await;
        }
        assert_eq!(host.status().failing, Vec::<String>::new());

        // One node less, then native again: what another program has there stays.
        node.run("ip route add 198.51.100.0/24 via 192.0.2.1 table 7184");
        node.run("ip rule add pref 5100 iif podspan0 to 10.1.9.0/24 lookup 7184");
        let mut fewer = handing();
        fewer.pod_delivery.as_mut().unwrap().routes.truncate(1);
        set_whole(&host, fewer).await;
        assert_eq!(way(&node, "fd00:1:2::5", Some("fd00:2::9")), "eth0");
        assert_eq!(way(&node, "10.1.2.5", Some("10.2.0.9")), "podspan0");
        set_whole(&host, desired()).await;
        let native = standing(&node);
        assert_eq!(native.matches("7184").count(), 1, "only the other program's rule:\n{native}");
        assert!(native.contains("198.51.100.0/24 via 192.0.2.1 dev eth0") && !native.contains("redirects"));
    });
}

#[test]
fn clean_takes_it_out_whatever_the_settings_say_now() {
    let (node, _router) = node();
    let before = node.snapshot();
    let directory = tempfile::tempdir().unwrap();
    // The table is known by the settings, or from the state directory.
    for table in [7183, 9000] {
        add_tun(&node);
        node.within(async {
            let (host, _events) = start(&directory).await;
            set_whole(&host, handing()).await;
            assert_ne!(node.snapshot(), before);
            drop(host);
            tokio::task::yield_now().await;
            let settings = HostSettings { state_dir: directory.path().join("host") };
            let removed = clean(&settings, &Tunnel { table, ..Tunnel::default() }).await.unwrap();
            for what in ["IPv4 rule 5183 to table 7184", "route fd00:1:2::/64 in table 7184"] {
                assert!(
                    removed.iter().any(|line| line.contains(what)),
                    "{what} is not told of: {removed:#?}"
                );
            }
            assert_eq!(node.snapshot(), before);
        });
    }
}
