//! Section 2, ADD: add container to network.

use podspan_wire::local::Request;

use crate::fake_agent::{FakeAgent, SOME_ROUTES};
use crate::namespace::Pod;
use crate::plugin::{Call, VERSIONS};

#[test]
fn prev_result_is_passed_on_byte_for_byte_in_every_version() {
    let agent = FakeAgent::serving();
    for version in VERSIONS {
        let pod = Pod::new();
        let call = Call::new(&pod, &agent).version(&pod, version);
        let output = call.run("ADD");
        assert_eq!(Some(output.succeeded().stdout.trim_end()), call.prev_result.as_deref(), "{version}");
        assert_eq!(pod.namespace.podspan_routes(), SOME_ROUTES, "{version}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn the_agent_is_told_of_the_attachment() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent);
    call.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0".into();
    call.run("ADD").succeeded();
    let [Request::Attach(detail)] = &agent.requests()[..] else { panic!("{:?}", agent.requests()) };
    assert_eq!(detail.attachment.container_id, call.container_id);
    assert_eq!(detail.attachment.interface, "eth0");
    assert_eq!(detail.netns, call.netns);
    assert_eq!(detail.network, "pods");
    assert_eq!(detail.addresses, ["10.1.1.2", "fd00:1::2"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    assert_eq!(detail.gateways, ["10.1.1.1", "fd00:1::1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    assert_eq!(detail.pod.as_deref(), Some("shop/cart-0"));
}

#[test]
fn the_pods_other_routes_stay_as_they_were() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let before = pod.namespace.other_routes();
    Call::new(&pod, &agent).run("ADD").succeeded();
    assert_eq!(pod.namespace.other_routes(), before);
}

#[test]
fn without_prev_result_it_is_an_error_since_the_plugin_is_chained() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent);
    for previous in [
        None,
        Some("null"),
        Some("7"),
        Some("[]"),
        Some(r#"{"ips":7}"#),
        Some(r#"{"ips":[{"address":"x"}]}"#),
    ] {
        call.prev_result = previous.map(str::to_owned);
        let output = call.run("ADD");
        assert_eq!(output.code(), 7, "{previous:?}");
        assert!(output.stdout.contains("prevResult"), "{output:?}");
    }
    assert!(agent.requests().is_empty());
}

#[test]
fn each_required_parameter_missing_or_wrong_is_code_4_and_named() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let good = Call::new(&pod, &agent);
    type Spoil = fn(&mut Call);
    let cases: [(&str, Spoil); 12] = [
        ("CNI_CONTAINERID", |call| call.container_id.clear()),
        ("CNI_CONTAINERID", |call| call.container_id = "-x".into()),
        ("CNI_CONTAINERID", |call| call.container_id = "a/b".into()),
        ("CNI_IFNAME", |call| call.ifname.clear()),
        ("CNI_IFNAME", |call| call.ifname = "a/b".into()),
        ("CNI_IFNAME", |call| call.ifname = "..".into()),
        ("CNI_IFNAME", |call| call.ifname = "sixteen-letters!".into()),
        ("CNI_NETNS", |call| call.netns.clear()),
        ("CNI_NETNS", |call| call.netns = "/run/netns/psp-cni-nowhere".into()),
        ("CNI_NETNS", |call| call.netns = "/etc/passwd".into()),
        ("CNI_NETNS", |call| call.netns = "/proc/self/ns/net".into()),
        ("CNI_ARGS", |call| call.args = "PODSPAN=perhaps".into()),
    ];
    for (name, spoil) in cases {
        let mut call = good.clone();
        spoil(&mut call);
        let output = call.run("ADD");
        assert_eq!(output.code(), 4, "{name}: {output:?}");
        assert!(output.stdout.contains(name), "{name}: {output:?}");
    }
    assert!(pod.namespace.podspan_routes().is_empty() && agent.requests().is_empty());
}

#[test]
fn many_pods_at_once() {
    let agent = FakeAgent::serving();
    let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            let call = Call::new(pod, &agent).key("timeoutMs", "10000");
            scope.spawn(move || {
                let output = call.run("ADD");
                assert_eq!(Some(output.succeeded().stdout.trim_end()), call.prev_result.as_deref());
            });
        }
    });
    for pod in &pods {
        assert_eq!(pod.namespace.podspan_routes(), SOME_ROUTES);
    }
    assert_eq!(agent.known(), 20);
}

#[test]
fn two_adds_of_one_attachment_at_once_leave_the_routes_once() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent).key("timeoutMs", "10000");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let output = call.run("ADD");
                assert!(output.succeeded().stderr.is_empty(), "{output:?}");
            });
        }
    });
    assert_eq!(pod.namespace.podspan_routes(), SOME_ROUTES);
}
