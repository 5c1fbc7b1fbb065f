//! The hand on the kernel against a real kernel: applied, changed, broken by hand, cleaned.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use podspan_agent::config::Tunnel;
use podspan_agent::host::{Host, HostEvent, HostSettings, clean, facts};

mod host_support;
use host_support::{Netns, add_tun, desired, node, set_whole, start, until};

/// Within this a thing that was deleted by hand must stand again.
const HEALED_WITHIN: Duration = Duration::from_secs(2);

/// What of podspan's stands, in a form that tells any change: nftables with its handles.
fn standing(node: &Netns) -> String {
    [
        "ip -4 route show table 7183",
        "ip -6 route show table 7183",
        "ip -4 rule",
        "ip -6 rule",
        "ip -o addr show dev podspan0",
        "ip -o link show dev podspan0",
        "nft --handle list table inet podspan",
    ]
    .iter()
    // What is missing is part of the picture.
    .map(|line| node.try_run(line).unwrap_or_else(|error| error))
    .collect()
}

/// The same without handles: a table that was written anew is as good.
fn standing_or_anew(node: &Netns) -> String {
    standing(node)
        .lines()
        .map(|line| line.split(" # handle").next().unwrap_or_default().to_owned() + "\n")
        .collect()
}

fn settings(directory: &tempfile::TempDir) -> HostSettings {
    HostSettings { state_dir: directory.path().join("host") }
}

#[test]
fn from_scratch_everything_stands_and_again_changes_nothing() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let first = standing(&node);
        for expected in [
            "10.2.0.0/16 dev podspan0 proto 112 scope link src 10.1.1.0",
            "fd00:2::/48 dev podspan0 proto 112 src fd00:1:1::",
            "5183:\tnot from all fwmark 0x7073 lookup 7183 proto 112",
            "inet 10.1.1.0/32",
            "inet6 fd00:1:1::/128",
            "mtu 1420",
            "alias podspan: tunnels to the other clusters",
            "podspan's: written by its agent",
        ] {
            assert!(first.contains(expected), "{expected} is missing in\n{first}");
        }
        assert_eq!(first.matches("lookup 7183").count(), 2, "{first}");
        assert!(!first.contains("fe80"), "{first}");
        for (key, value) in [
            ("net/ipv4/conf/podspan0/rp_filter", "2"),
            ("net/ipv6/conf/podspan0/accept_ra", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ] {
            assert_eq!(node.sysctl(key), value, "{key}");
        }
        let mut routes = desired().routes;
        routes.sort();
        assert_eq!(host.status().routes, routes);
        set_whole(&host, desired()).await;
        assert_eq!(standing(&node), first);
        // Longer than the debounce: own changes, once heard, must not cause more.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(standing(&node), first);
        assert_eq!(host.status().healed, 0);
    });
}

/// What hands do, and how many things that takes away at least.
const BREAKS: [(&str, u64); 18] = [
    ("ip route del 10.2.0.0/16 table 7183", 1),
    ("ip -6 route del fd00:2::/48 table 7183", 1),
    ("ip route flush table 7183", 3),
    ("ip -6 route flush table 7183", 1),
    ("ip route replace 10.2.0.0/16 dev podspan0 table 7183 proto 112 scope link", 1),
    ("ip rule del pref 5183", 1),
    ("ip -6 rule del pref 5183", 1),
    ("ip addr del 10.1.1.0/32 dev podspan0", 1),
    ("ip -6 addr del fd00:1:1::/128 dev podspan0", 1),
    ("ip addr flush dev podspan0", 2),
    ("ip link set podspan0 mtu 1300", 1),
    ("ip link set podspan0 alias other", 1),
    ("nft delete table inet podspan", 1),
    ("nft flush chain inet podspan source", 1),
    ("nft flush ruleset", 1),
    ("nft add element inet podspan local_pods4 { 10.5.0.0/24 }", 1),
    ("ip link set podspan0 down", 1),
    ("sysctl -qw net.ipv4.ip_forward=0", 1),
];

#[test]
fn each_thing_deleted_by_hand_is_healed() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let whole = standing_or_anew(&node);
        for (line, things) in BREAKS {
            let before = host.status().healed;
            node.run(line);
            let took = until(line, HEALED_WITHIN, || {
                standing_or_anew(&node) == whole
                    && node.sysctl("net/ipv4/ip_forward") == "1"
                    && host.status().healed >= before + things
            })
            .await;
            println!("{took:>8.0?}  {line}");
        }
        assert_eq!(host.status().failing, Vec::<String>::new());
    });
}

#[test]
fn sysctls_changed_by_hand_are_healed_without_waiting_for_the_resync() {
    let (node, _router) = node();
    add_tun(&node);
    node.set_sysctl("net/ipv4/conf/eth0/rp_filter", "1");
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        for (key, wrong, right) in [
            ("net/ipv4/conf/podspan0/rp_filter", "1", "2"),
            ("net/ipv4/conf/eth0/rp_filter", "1", "2"),
            ("net/ipv4/ip_forward", "0", "1"),
            ("net/ipv6/conf/all/forwarding", "0", "1"),
            ("net/ipv4/conf/podspan0/forwarding", "0", "1"),
        ] {
            assert_eq!(node.sysctl(key), right);
            node.set_sysctl(key, wrong);
            until(key, HEALED_WITHIN, || node.sysctl(key) == right).await;
        }
    });
}

#[test]
fn everything_deleted_at_once_is_healed() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let whole = standing_or_anew(&node);
        for round in 0..3 {
            for line in [
                "ip link set podspan0 down",
                "ip route flush table 7183",
                "ip rule del pref 5183",
                "ip -6 rule del pref 5183",
                "ip addr flush dev podspan0",
                "nft flush ruleset",
                "sysctl -qw net.ipv4.ip_forward=0",
            ] {
                // Some are healed already while the others are still being broken.
                let _ = node.try_run(line);
            }
            let took = until("all at once", HEALED_WITHIN, || {
                standing_or_anew(&node) == whole && node.sysctl("net/ipv4/ip_forward") == "1"
            })
            .await;
            println!("round {round}: {took:?}");
        }
    });
}

#[test]
fn another_set_replaces_the_first_wholly() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let first = standing_or_anew(&node);
        let mut other = desired();
        other.routes = vec!["10.8.0.0/16".parse().unwrap(), "fd00:8::/48".parse().unwrap()];
        other.addresses = vec!["10.1.7.0".parse().unwrap()];
        other.table = 7200;
        other.rule_priority = 5200;
        other.mtu = 1380;
        other.route_mtus = other.routes.iter().map(|cidr| (*cidr, 1340)).collect();
        set_whole(&host, other).await;
        assert_eq!(
            node.run("ip route show table 7200"),
            "10.8.0.0/16 dev podspan0 proto 112 scope link src 10.1.7.0 linkdown mtu 1340 \n"
        );
        let v6 = node.run("ip -6 route show table 7200");
        assert!(
            v6.starts_with("fd00:8::/48 dev podspan0 proto 112 metric 1024") && v6.contains("mtu 1340"),
            "{v6}"
        );
        let left = node.run("ip route show table all")
            + &node.run("ip -6 route show table all")
            + &node.run("ip rule");
        assert!(!left.contains("7183"), "{left}");
        let addresses = node.run("ip -o addr show dev podspan0");
        assert!(addresses.contains("10.1.7.0/32") && addresses.lines().count() == 1, "{addresses}");
        let nft = node.run("nft list table inet podspan");
        assert!(
            nft.contains("10.8.0.0/16") && !nft.contains("10.2.0.0/16") && nft.contains("size set rt mtu"),
            "{nft}"
        );
        set_whole(&host, desired()).await;
        assert_eq!(standing_or_anew(&node), first);
        assert_eq!(host.status().healed, 0);
    });
}

#[test]
fn the_next_agent_hears_what_the_routes_had() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        assert!(host.standing_mtus().is_empty());
        let mut wanted = desired();
        wanted.route_mtus = wanted.routes.iter().map(|cidr| (*cidr, 1340)).collect();
        set_whole(&host, wanted.clone()).await;
        host.stop().await;
        node.run("ip route add 10.77.0.0/16 dev podspan0 table 7183 proto 99 mtu 1200");
        let (host, _events) = start(&directory).await;
        assert_eq!(*host.standing_mtus(), wanted.route_mtus);
    });
}

#[test]
fn other_cidrs_leave_the_nftables_table_where_it_is() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let (first, list) = (standing_or_anew(&node), "nft --handle list table inet podspan");
        // Those of chains and rules begin anew with each table.
        let handle = |listing: &str| listing.lines().next().unwrap_or_default().to_owned();
        let before = handle(&node.run(list));
        assert!(before.contains("# handle "), "{before}");
        let mut other = desired();
        // One goes, one comes, and one that covers another.
        other.routes = ["10.8.0.0/16", "10.2.0.0/15", "fd00:8::/48"].map(|cidr| cidr.parse().unwrap()).into();
        other.route_mtus.clear();
        set_whole(&host, other).await;
        let listing = node.run(list);
        assert_eq!(handle(&listing), before);
        assert!(listing.contains("10.2.0.0/15") && !listing.contains("fd00:2::/48"), "{listing}");
        // Somebody's hand in it, and it is written anew, whatever else is to change.
        node.run("nft add element inet podspan local_pods4 { 10.5.0.0/24 }");
        set_whole(&host, desired()).await;
        until("as at first", HEALED_WITHIN, || {
            let listing = node.run(list);
            handle(&listing) != before && !listing.contains("10.5.0.0/24")
        })
        .await;
        assert_eq!(standing_or_anew(&node), first);
        assert_eq!(host.status().failing, Vec::<String>::new());
    });
}

#[test]
fn clean_leaves_everything_as_it_was() {
    let (node, _router) = node();
    // A host with opinions of its own, some of which the kernel changes along with others.
    for (key, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/eth0/forwarding", "1"),
        ("net/ipv4/conf/eth0/rp_filter", "1"),
        ("net/ipv6/conf/eth0/accept_ra", "1"),
        ("net/ipv6/conf/eth0/forwarding", "0"),
    ] {
        node.set_sysctl(key, value);
    }
    node.run("ip rule add pref 5100 from 192.0.2.77 lookup 7183");
    node.run("ip route add 198.51.100.0/24 via 192.0.2.1 table 7183");
    node.nft("table inet other {\nchain c {\ntype filter hook forward priority 0;\nip saddr 192.0.2.9 drop\n}\n}\n");
    let before = node.snapshot();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        assert_eq!(node.sysctl("net/ipv4/conf/eth0/rp_filter"), "2");
        assert_eq!(node.sysctl("net/ipv6/conf/eth0/accept_ra"), "2");
        assert_ne!(node.snapshot(), before);
        // As by SIGKILL.
        drop(host);
        tokio::task::yield_now().await;
        let removed = clean(&settings(&directory), &Tunnel::default()).await.unwrap();
        for what in [
            "interface podspan0",
            "nftables table",
            "IPv4 rule 5183",
            "IPv6 rule",
            "10.2.0.0/16",
            "ip_forward",
        ] {
            assert!(removed.iter().any(|line| line.contains(what)), "{what} is not told of: {removed:#?}");
        }
        let after = node.snapshot();
        for (was, is) in before.lines().zip(after.lines()) {
            assert_eq!(is, was);
        }
        assert_eq!(after, before);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(clean(&settings(&directory), &Tunnel::default()).await.unwrap(), Vec::<String>::new());
        assert_eq!(node.snapshot(), before);
    });
}

#[test]
fn clean_leaves_a_sysctl_that_somebody_changed_since() {
    let (node, _router) = node();
    node.set_sysctl("net/ipv4/conf/eth0/rp_filter", "1");
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        host.stop().await;
        node.set_sysctl("net/ipv4/conf/eth0/rp_filter", "0");
        let removed = clean(&settings(&directory), &Tunnel::default()).await.unwrap();
        assert!(!removed.iter().any(|line| line.contains("rp_filter")), "{removed:?}");
        assert_eq!(node.sysctl("net/ipv4/conf/eth0/rp_filter"), "0");
    });
}

#[test]
fn clean_takes_an_unnamed_tun_only_if_an_agent_was_about_to_make_it() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory);
    node.within(async {
        assert_eq!(clean(&settings, &Tunnel::default()).await.unwrap(), Vec::<String>::new());
        node.run("ip link show dev podspan0");
        Host::claim(&settings, "podspan0").unwrap();
        node.run("ip link set podspan0 alias other");
        assert_eq!(clean(&settings, &Tunnel::default()).await.unwrap(), Vec::<String>::new());
        node.run("ip link show dev podspan0");
    });
    node.run("ip link del podspan0");
    add_tun(&node);
    node.within(async {
        Host::claim(&settings, "podspan0").unwrap();
        let removed = clean(&settings, &Tunnel::default()).await.unwrap();
        assert_eq!(removed, ["interface podspan0"]);
        assert!(node.try_run("ip link show dev podspan0").is_err());
    });
}

#[test]
fn clean_knows_the_table_and_interface_of_earlier_settings() {
    let (node, _router) = node();
    let before = node.snapshot();
    node.run("ip tuntap add dev tunnel9 mode tun");
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        let mut odd = desired();
        (odd.interface, odd.table, odd.rule_priority) = ("tunnel9".into(), 990, 991);
        set_whole(&host, odd).await;
        host.stop().await;
        clean(&settings(&directory), &Tunnel::default()).await.unwrap();
        assert_eq!(node.snapshot(), before);
    });
}

#[test]
fn clean_without_readable_memory_removes_the_rest_and_says_so() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        host.stop().await;
        let file = directory.path().join("host/host.json");
        std::fs::write(&file, "{").unwrap();
        let error = clean(&settings(&directory), &Tunnel::default()).await.unwrap_err();
        assert!(error.to_string().contains("host.json: unreadable"), "{error}");
        assert!(error.removed.iter().any(|line| line.contains("interface podspan0")), "{error:?}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "{", "what only a person can read stays");
    });
}

#[test]
fn after_a_crash_what_stands_is_taken_over() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let (whole, untouched) = (standing_or_anew(&node), standing(&node));
        drop(host);
        tokio::task::yield_now().await;
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        assert_eq!(standing(&node), untouched);
        assert_eq!(host.status().healed, 0);
        drop(host);
        tokio::task::yield_now().await;
        // While nobody looked: something went, something of podspan's is too many.
        node.run("ip route del 10.2.0.0/16 table 7183");
        node.run("ip route add 10.55.0.0/16 dev podspan0 table 7183 proto 112");
        node.run("ip rule add not fwmark 0x99 pref 99 lookup 7183 protocol 112");
        node.run("nft delete chain inet podspan mss");
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        assert_eq!(standing_or_anew(&node), whole);
    });
}

#[test]
fn a_deleted_interface_is_told_of_and_everything_is_back_once_it_is() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, mut events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let whole = standing_or_anew(&node).replace(char::is_numeric, "");
        node.run("ip link del podspan0");
        let event = tokio::time::timeout(HEALED_WITHIN, events.recv()).await.unwrap();
        assert_eq!(event, Some(HostEvent::InterfaceGone));
        until("told of", HEALED_WITHIN, || {
            host.status().failing.iter().any(|line| line.contains("does not exist"))
        })
        .await;
        assert_eq!(host.status().routes, []);
        add_tun(&node);
        until("back", HEALED_WITHIN, || standing_or_anew(&node).replace(char::is_numeric, "") == whole).await;
        until("well", HEALED_WITHIN, || host.status().failing.is_empty()).await;
        assert!(events.try_recv().is_err(), "told once");
    });
}

#[test]
fn what_belongs_to_others_is_left_alone_and_told_of() {
    let (node, _router) = node();
    node.run("ip link add podspan0 type bridge");
    node.run("ip route add 10.2.0.0/16 via 192.0.2.1 table 7183");
    node.nft("table inet podspan {\nchain mine {\ntype filter hook input priority 0;\naccept\n}\n}\n");
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        let link = node.run("ip -d link show podspan0");
        let table = node.run("nft list table inet podspan");
        host.set(desired());
        host.settled().await;
        let failing = host.status().failing;
        assert!(failing.iter().any(|line| line.contains("interface podspan0: it is no TUN")), "{failing:?}");
        assert!(failing.iter().any(|line| line.contains("it is not podspan's")), "{failing:?}");
        assert_eq!(node.run("ip -d link show podspan0"), link);
        assert_eq!(node.run("nft list table inet podspan"), table);
        // With the interface and the table out of the way the rest comes by itself.
        node.run("ip link del podspan0");
        node.run("nft delete table inet podspan");
        add_tun(&node);
        until("the rest", HEALED_WITHIN, || host.status().routes.len() == 3).await;
        until("told of one", HEALED_WITHIN, || host.status().failing.len() == 1).await;
        let failing = host.status().failing;
        assert!(failing[0].contains("another program's route"), "{failing:?}");
        assert_eq!(node.run("ip route show 10.2.0.0/16 table 7183"), "10.2.0.0/16 via 192.0.2.1 dev eth0 \n");
        host.stop().await;
        clean(&settings(&directory), &Tunnel::default()).await.unwrap();
        assert_eq!(node.run("ip route show table 7183"), "10.2.0.0/16 via 192.0.2.1 dev eth0 \n");
    });
}

#[test]
fn hundreds_of_routes_stand_in_well_under_a_second() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        let mut many = desired();
        many.routes = (0..400u32)
            .flat_map(|n| [format!("172.{}.{}.0/24", 16 + n / 250, n % 250), format!("fd00:2:{n:x}::/48")])
            .map(|cidr| cidr.parse().unwrap())
            .collect();
        let start = Instant::now();
        set_whole(&host, many.clone()).await;
        println!("800 routes: {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(host.status().routes.len(), 800);
        node.run("ip route flush table 7183");
        node.run("ip -6 route flush table 7183");
        let took = until("all again", HEALED_WITHIN, || {
            node.run("ip route show table 7183").lines().count() == 400
                && node.run("ip -6 route show table 7183").lines().count() == 400
        })
        .await;
        println!("800 routes healed: {took:?}");
    });
}

#[test]
fn without_ipv6_the_host_gets_ipv4_only_and_a_note() {
    let (node, _router) = node();
    node.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    node.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        assert_eq!(host.status().routes.len(), 3);
        assert!(host.notes()[0].contains("switched off on this host"), "{:?}", host.notes());
        assert_eq!(node.run("ip -6 rule").matches("7183").count(), 0);
    });
}

#[test]
fn changes_of_the_underlay_are_told_of() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let found = facts().await.unwrap();
        assert_eq!(found.holding("192.0.2.2".parse().unwrap()).unwrap().name, "eth0");
        assert_eq!(found.default_interface().unwrap().name, "eth0");
        assert_eq!(found.interface("eth0").unwrap().mtu, 1500);
        assert_eq!(found.defaults.len(), 2);
        let (host, mut events) = start(&directory).await;
        set_whole(&host, desired()).await;
        for line in ["ip link set eth0 mtu 1400", "ip addr add 192.0.2.9/24 dev eth0", "ip route del default"]
        {
            node.run(line);
            let event = tokio::time::timeout(HEALED_WITHIN, events.recv()).await.expect(line);
            assert_eq!(event, Some(HostEvent::UnderlayChanged), "{line}");
        }
        // A pod that comes is no change of it.
        node.run("ip link add veth9 type veth peer name veth8");
        node.run("ip addr add 10.1.1.1/24 dev veth9");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(events.try_recv().is_err());
    });
}

#[test]
fn a_tug_of_war_is_slowed_down_and_told_of() {
    let (node, _router) = node();
    add_tun(&node);
    let directory = tempfile::tempdir().unwrap();
    node.within(async {
        let (host, _events) = start(&directory).await;
        set_whole(&host, desired()).await;
        let told = || host.status().failing.iter().any(|line| line.contains("again and again"));
        let start = Instant::now();
        while !told() {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", host.status());
            let _ = node.try_run("ip rule del pref 5183");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Once the other side gives up it stands.
        until("stands", Duration::from_secs(20), || node.run("ip rule").contains("5183")).await;
    });
}
