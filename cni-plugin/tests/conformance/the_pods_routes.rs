//! `pod_routes` against the kernel: what the agent calls to repair pods in place.

use std::fs::File;
use std::net::IpAddr;

use podspan_cni::netns;
use podspan_cni::pod_routes::{Report, RouteError, differences, observed, remove, sync};
use podspan_wire::local::PodRoutes;

use crate::fake_agent::{FakeAgent, SOME_ROUTES, some_routes};
use crate::namespace::{Namespace, Pod};
use crate::plugin::Call;

fn gateways() -> [IpAddr; 2] {
    ["10.1.1.1", "fd00:1::1"].map(|text| text.parse().unwrap())
}

fn routes(cidrs: &[&str], mtu: u32) -> PodRoutes {
    PodRoutes { cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(), mtu }
}

fn open(namespace: &Namespace) -> File {
    netns::open(&namespace.path()).unwrap()
}

#[test]
fn sync_repairs_changes_and_removes_and_says_what_it_did() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    let others = pod.namespace.other_routes();
    let first = sync(&netns, "eth0", &some_routes(), &gateways()).unwrap();
    assert_eq!(first.added.len(), 3);
    assert_eq!(pod.namespace.podspan_routes(), SOME_ROUTES);
    assert_eq!(observed(&netns, "eth0").unwrap().len(), 3);
    assert_eq!(
        sync(&netns, "eth0", &some_routes(), &gateways()).unwrap(),
        Report::default(),
        "safe when repeated"
    );

    // Another MTU, one CIDR less, one more; a gateway changed by hand in each family.
    pod.namespace.ip(&["route", "replace", "10.2.0.0/16", "dev", "eth0", "proto", "112"]);
    pod.namespace.ip(&["-6", "route", "del", "fd00:2::/48"]);
    pod.namespace.ip(&["-6", "route", "add", "fd00:2::/48", "dev", "eth0", "proto", "112"]);
    let wanted = routes(&["10.2.0.0/16", "10.3.0.0/16", "fd00:2::/48"], 1380);
    assert_eq!(differences(&netns, "eth0", &wanted, &gateways()).unwrap().len(), 4);
    let second = sync(&netns, "eth0", &wanted, &gateways()).unwrap();
    assert_eq!((second.added.len(), second.changed.len(), second.removed.len()), (1, 2, 1), "{second:?}");
    assert!(second.failed.is_empty() && second.foreign.is_empty(), "{second:?}");
    assert_eq!(
        pod.namespace.podspan_routes(),
        [
            "10.2.0.0/16 via 10.1.1.1 dev eth0 mtu 1380",
            "10.3.0.0/16 via 10.1.1.1 dev eth0 mtu 1380",
            "fd00:2::/48 via fd00:1::1 dev eth0 mtu 1380",
        ]
    );
    assert_eq!(differences(&netns, "eth0", &wanted, &gateways()).unwrap(), Vec::<String>::new());

    assert_eq!(remove(&netns, "eth0").unwrap().len(), 3);
    assert_eq!(remove(&netns, "eth0").unwrap().len(), 0);
    assert_eq!(pod.namespace.other_routes(), others);
}

#[test]
fn routes_of_others_stand_whatever_is_asked() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    pod.namespace.ip(&["route", "add", "10.2.0.0/16", "via", "10.1.1.1", "proto", "static"]);
    pod.namespace.ip(&["-6", "route", "add", "fd00:2::/48", "via", "fd00:1::1", "proto", "static"]);
    pod.namespace.ip(&["route", "add", "blackhole", "10.9.0.0/16", "proto", "111"]);
    let others = pod.namespace.other_routes();
    let report = sync(&netns, "eth0", &some_routes(), &gateways()).unwrap();
    assert_eq!(report.foreign.len(), 2, "{report:?}");
    assert_eq!(report.added.len(), 1, "{report:?}");
    remove(&netns, "eth0").unwrap();
    assert_eq!(pod.namespace.other_routes(), others);

    let agent = FakeAgent::serving();
    let output = Call::new(&pod, &agent).key("onFailure", "\"closed\"").run("ADD");
    assert!(output.succeeded().stderr.contains("left as it is"), "{output:?}");
    assert_eq!(pod.namespace.other_routes(), others);
}

#[test]
fn a_point_to_point_link_needs_no_gateway() {
    let (node, pod) = (Namespace::new("node"), Namespace::new("pod"));
    node.ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", &pod.name]);
    node.ip(&["link", "set", "veth0", "up"]);
    pod.ip(&["addr", "add", "10.1.1.2/32", "dev", "eth0"]);
    pod.ip(&["addr", "add", "fd00:1::2/128", "dev", "eth0", "nodad"]);
    pod.ip(&["link", "set", "eth0", "up"]);
    let netns = open(&pod);
    let report = sync(&netns, "eth0", &some_routes(), &[]).unwrap();
    assert_eq!((report.added.len(), report.failed.len()), (3, 0), "{report:?}");
    assert_eq!(
        pod.podspan_routes(),
        ["10.102.0.0/16 dev eth0 mtu 1420", "10.2.0.0/16 dev eth0 mtu 1420", "fd00:2::/48 dev eth0 mtu 1420"]
    );
    // Then the CNI gives a default route, through a gateway that lies in no prefix of the interface.
    pod.ip(&["route", "add", "169.254.1.1", "dev", "eth0"]);
    pod.ip(&["route", "add", "default", "via", "169.254.1.1", "dev", "eth0"]);
    pod.ip(&["-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0"]);
    let report = sync(&netns, "eth0", &some_routes(), &[]).unwrap();
    assert_eq!((report.changed.len(), report.failed.len()), (3, 0), "{report:?}");
    assert_eq!(
        pod.podspan_routes(),
        [
            "10.102.0.0/16 via 169.254.1.1 dev eth0 mtu 1420",
            "10.2.0.0/16 via 169.254.1.1 dev eth0 mtu 1420",
            "fd00:2::/48 via fe80::1 dev eth0 mtu 1420",
        ]
    );
}

#[test]
fn a_gateway_outside_every_prefix_is_taken_to_be_on_the_link() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    pod.namespace.ip(&["route", "del", "default"]);
    pod.namespace.ip(&["-6", "route", "del", "default"]);
    let outside: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
    let report = sync(&netns, "eth0", &some_routes(), &outside).unwrap();
    assert_eq!((report.added.len(), report.failed.len()), (3, 0), "{report:?}");
    assert_eq!(sync(&netns, "eth0", &some_routes(), &outside).unwrap(), Report::default());
}

#[test]
fn a_pod_of_one_family_gets_routes_of_that_family() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    pod.namespace.ip(&["addr", "del", "fd00:1::2/64", "dev", "eth0"]);
    sync(&netns, "eth0", &some_routes(), &gateways()).unwrap();
    assert_eq!(pod.namespace.podspan_routes(), SOME_ROUTES[..2]);
    pod.namespace.ip(&["addr", "add", "fd00:1::2/64", "dev", "eth0", "nodad"]);
    pod.namespace.ip(&["addr", "del", "10.1.1.2/24", "dev", "eth0"]);
    sync(&netns, "eth0", &some_routes(), &gateways()).unwrap();
    assert_eq!(pod.namespace.podspan_routes(), SOME_ROUTES[2..]);
}

#[test]
fn an_mtu_above_the_links_is_lowered_to_it() {
    let pod = Pod::new();
    pod.namespace.ip(&["link", "set", "eth0", "mtu", "1400"]);
    let netns = open(&pod.namespace);
    sync(&netns, "eth0", &routes(&["10.2.0.0/16", "fd00:2::/48"], 8920), &gateways()).unwrap();
    assert_eq!(
        pod.namespace.podspan_routes(),
        ["10.2.0.0/16 via 10.1.1.1 dev eth0 mtu 1400", "fd00:2::/48 via fd00:1::1 dev eth0 mtu 1400"]
    );
    assert_eq!(
        differences(&netns, "eth0", &routes(&["10.2.0.0/16", "fd00:2::/48"], 8920), &gateways())
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn two_interfaces_of_one_pod_do_not_disturb_each_other() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    pod.namespace.ip(&["link", "add", "net1", "type", "veth", "peer", "name", "net1p"]);
    pod.namespace.ip(&["addr", "add", "10.8.0.2/24", "dev", "net1"]);
    pod.namespace.ip(&["link", "set", "net1p", "up"]);
    pod.namespace.ip(&["link", "set", "net1", "up"]);
    sync(&netns, "eth0", &routes(&["10.2.0.0/16"], 1420), &gateways()).unwrap();
    let second = sync(&netns, "net1", &routes(&["10.2.0.0/16", "10.3.0.0/16"], 1420), &[]).unwrap();
    assert_eq!((second.foreign.len(), second.added.len()), (1, 1), "{second:?}");
    remove(&netns, "net1").unwrap();
    assert_eq!(pod.namespace.podspan_routes(), ["10.2.0.0/16 via 10.1.1.1 dev eth0 mtu 1420"]);
}

#[test]
fn an_interface_that_is_missing_or_down() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    let missing = sync(&netns, "eth7", &some_routes(), &gateways());
    assert!(matches!(missing, Err(RouteError::NoInterface { .. })), "{missing:?}");
    assert!(remove(&netns, "eth7").unwrap().is_empty());

    pod.namespace.ip(&["link", "set", "eth0", "down"]);
    let report = sync(&netns, "eth0", &routes(&["10.2.0.0/16"], 1420), &gateways()).unwrap();
    assert_eq!(
        (report.added.len(), report.failed.len()),
        (0, 1),
        "a failed add is not recorded as done: {report:?}"
    );

    // The plugin: the pod lives or not, as configured, and nothing half done stays.
    let agent = FakeAgent::serving();
    let call = Call::new(&pod, &agent);
    let open = call.run("ADD");
    assert!(open.succeeded().stderr.contains("cannot set the pod's routes"), "{open:?}");
    assert_eq!(agent.known(), 1, "the agent repairs it");
    let closed = call.key("onFailure", "\"closed\"").run("ADD");
    assert_eq!(closed.code(), 100);
    assert_eq!(agent.known(), 0, "rolled back");
    assert!(pod.namespace.podspan_routes().is_empty());
}

#[test]
fn hundreds_of_clusters() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    let cidrs: Vec<String> = (0..600).map(|i| format!("10.{}.{}.0/24", 100 + i / 250, i % 250)).collect();
    let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
    assert_eq!(sync(&netns, "eth0", &routes(&cidrs, 1420), &gateways()).unwrap().added.len(), 600);
    assert_eq!(observed(&netns, "eth0").unwrap().len(), 600);
    assert_eq!(sync(&netns, "eth0", &routes(&[], 1420), &gateways()).unwrap().removed.len(), 600);
}

#[test]
fn many_threads_at_the_same_pod_settle() {
    let pod = Pod::new();
    let netns = open(&pod.namespace);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    sync(&netns, "eth0", &some_routes(), &gateways()).unwrap();
                }
            });
        }
    });
    assert_eq!(pod.namespace.podspan_routes(), SOME_ROUTES);
}

#[test]
fn what_is_no_network_namespace_is_not_entered() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo.as_path(), directory.path(), std::path::Path::new("/dev/null")] {
        assert!(netns::open(path).is_err(), "{}", path.display());
    }
    // A namespace, but not of the network.
    let mount = netns::open(std::path::Path::new("/proc/self/ns/mnt")).unwrap();
    assert!(matches!(observed(&mount, "lo"), Err(RouteError::Kernel { .. })));
}
