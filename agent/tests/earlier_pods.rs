//! Pods that were there before podspan: their routes are set in real namespaces, by what a runtime remembers, and taken
//! out again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod host_support;

use std::fs;

use host_support::Netns;
use podspan_agent::attachments;
use podspan_agent::earlier_pods::EarlierPods;
use podspan_wire::local::{Attachment, AttachmentDetail, PodRoutes};

/// What libcni keeps of a pod's interface.
fn result(container: &str, netns: &str) -> String {
    format!(
        r#"{{"kind":"cniCacheV1","containerId":"{container}","config":"e30=","ifName":"eth0","networkName":"cbr0",
        "cniArgs":[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","{container}"]],
        "result":{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"{netns}"}}],
        "ips":[{{"address":"10.1.1.5/24","gateway":"10.1.1.1","interface":0}}]}}}}"#
    )
}

fn pod() -> Netns {
    let pod = Netns::new("pod");
    pod.run("ip link add eth0 type veth peer name far");
    pod.run("ip addr add 10.1.1.5/24 dev eth0");
    pod.run("ip link set eth0 up");
    pod.run("ip link set far up");
    pod.run("ip route add default via 10.1.1.1");
    pod
}

/// podspan's routes inside a pod.
fn routes(pod: &Netns) -> String {
    pod.run("ip route show proto 112").trim().to_owned()
}

#[test]
fn their_routes_are_set_and_taken_out_again() {
    let (before, through, off) = (pod(), pod(), pod());
    let directory = tempfile::tempdir().unwrap();
    let earlier = EarlierPods {
        results_dir: directory.path().join("results"),
        conf_dir: directory.path().join("net.d"),
    };
    fs::create_dir(&earlier.results_dir).unwrap();
    fs::create_dir(&earlier.conf_dir).unwrap();
    let keep = |name: &str, text: &str| fs::write(earlier.results_dir.join(name), text).unwrap();
    keep("cbr0-before-eth0", &result("before", &before.path()));
    keep("cbr0-through-eth0", &result("through", &through.path()));
    keep("cbr0-off-eth0", &result("off", &off.path()).replace(r#"["K8S"#, r#"["PODSPAN","off"],["K8S"#));
    // The runtime has not noticed yet; and one that calls the node's own namespace a pod's.
    keep("cbr0-gone-eth0", &result("gone", "/run/netns/psp-no-such"));
    keep("cbr0-own-eth0", &result("own", "/proc/self/ns/net"));
    let attached = AttachmentDetail {
        attachment: Attachment { container_id: "through".into(), interface: "eth0".into() },
        netns: through.path(),
        network: "cbr0".into(),
        addresses: vec!["10.1.1.5".parse().unwrap()],
        gateways: vec!["10.1.1.1".parse().unwrap()],
        pod: None,
    };
    let attached = std::slice::from_ref(&attached);
    let wanted = PodRoutes { cidrs: vec!["10.2.0.0/16".parse().unwrap()].into(), mtu: 1420 };
    let list = |entry: &str| {
        let text =
            format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","plugins":[{{"type":"bridge"}}{entry}]}}"#);
        fs::write(earlier.conf_dir.join("10-cbr0.conflist"), text).unwrap();
    };

    list("");
    assert!(attachments::repair(attached, Some(&earlier), &wanted).is_empty());
    assert_eq!(routes(&before), "", "podspan is not in the chain yet");
    assert_eq!(routes(&through), "10.2.0.0/16 via 10.1.1.1 dev eth0 mtu 1420");

    list(r#",{"type":"podspan"}"#);
    for _ in 0..2 {
        assert!(
            attachments::repair(attached, Some(&earlier), &wanted).is_empty(),
            "it is not the agent's to forget"
        );
        assert_eq!(routes(&before), "10.2.0.0/16 via 10.1.1.1 dev eth0 mtu 1420");
        assert_eq!(routes(&off), "");
    }
    let narrower = PodRoutes { mtu: 1280, ..wanted };
    assert!(attachments::repair(attached, Some(&earlier), &narrower).is_empty());
    assert_eq!(routes(&before), "10.2.0.0/16 via 10.1.1.1 dev eth0 mtu 1280");

    // The entry is out of the chain before the rest goes.
    list("");
    assert_eq!(attachments::clean(attached, Some(&earlier)), 2);
    assert_eq!((routes(&before), routes(&through)), (String::new(), String::new()));
    assert_eq!(attachments::clean(attached, Some(&earlier)), 0);
    assert_eq!(before.run("ip route show default").trim(), "default via 10.1.1.1 dev eth0");
}
