//! Tables: objects in, facts and contradictions out.

use k8s_openapi::api::core::v1::Node;
use podspan_wire::{ClusterKey, ClusterSetId, Grant, RootKey, UnixTime};
use serde_json::{Value, json};

use super::*;

fn grant() -> Grant {
    Grant {
        cluster_set: ClusterSetId::new(RootKey::from_seed(&[1; 32]).public()),
        cluster: "alpha".parse().unwrap(),
        cluster_key: ClusterKey::from_seed(&[2; 32]).public(),
        pod_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "fd00:10:1::/48".parse().unwrap()].into(),
        service_cidrs: vec!["10.101.0.0/16".parse().unwrap(), "fd00:10:101::/112".parse().unwrap()].into(),
        serial: 1,
        not_after: UnixTime(u64::MAX),
        extensions: Default::default(),
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A node of a dual-stack cluster.
fn node() -> Value {
    json!({
        "metadata": {"name": "node-1", "labels": {}, "annotations": {}},
        "spec": {"podCIDR": "10.1.1.0/24", "podCIDRs": ["10.1.1.0/24", "fd00:10:1:1::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.168.7.11"},
            {"type": "Hostname", "address": "node-1"},
            {"type": "ExternalIP", "address": "192.0.2.11"},
        ]},
    })
}

fn node_with(pointer: &str, value: Value) -> Value {
    let mut node = node();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/");
    node.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key, value);
    node
}

fn labelled(value: &str) -> Value {
    node_with("/metadata/labels/podspan.io~1gateway", json!(value))
}

fn annotated(name: &str, value: &str) -> Value {
    let mut node = labelled("true");
    node["metadata"]["annotations"][name] = json!(value);
    node
}

fn objects(node: Value) -> Objects {
    Objects { node: Some(read::<Node>(node)), ..Objects::default() }
}

fn texts<T: ToString>(found: &[Sourced<T>]) -> Vec<String> {
    found.iter().map(|found| found.value.to_string()).collect()
}

fn reasons(facts: &Facts) -> Vec<Reason> {
    facts.contradictions.iter().map(|contradiction| contradiction.reason).collect()
}

/// The same without what is said of the host's own addresses, which have a table of their own.
fn reasons_but_host(facts: &Facts) -> Vec<Reason> {
    reasons(facts).into_iter().filter(|reason| *reason != Reason::NoHostAddress).collect()
}

fn set(spec: Value) -> Option<Value> {
    Some(json!({"metadata": {"name": "podspan"}, "spec": spec}))
}

const OWN: [&str; 2] = ["10.1.1.0/24", "fd00:10:1:1::/64"];

#[test]
fn a_plain_node() {
    let facts = discover(&objects(node()), &grant());
    assert_eq!(facts.contradictions, []);
    assert!(!facts.gateway && facts.endpoints.is_empty());
    assert_eq!(texts(&facts.pod_cidrs), OWN);
    assert_eq!(facts.pod_cidrs[0].from, "Node node-1 spec.podCIDRs");
    assert_eq!(texts(&facts.service_cidrs), ["10.101.0.0/16", "fd00:10:101::/112"]);
    assert_eq!(facts.service_cidrs[0].from, "the cluster's grant");
    assert_eq!(facts.addresses.len(), 2);
    let old = node_with("/spec/podCIDRs", Value::Null);
    assert_eq!(texts(&discover(&objects(old), &grant()).pod_cidrs), ["10.1.1.0/24"]);
}

#[test]
fn the_gateway_label() {
    for (value, gateway, reason) in [
        ("true", true, None),
        ("false", false, None),
        ("yes", false, Some(Reason::InvalidLabel)),
        ("", false, Some(Reason::InvalidLabel)),
    ] {
        let facts = discover(&objects(labelled(value)), &grant());
        assert_eq!(facts.gateway, gateway, "{value}");
        assert_eq!(reasons(&facts), Vec::from_iter(reason), "{value}");
        assert_eq!(texts(&facts.pod_cidrs), OWN, "what is sound goes on");
    }
}

#[test]
fn endpoints_by_the_nodes_addresses() {
    for (from, addresses, expected, reason) in [
        (None, None, vec!["192.0.2.11"], None),
        (Some("nodeInternalIP"), None, vec!["192.168.7.11"], None),
        (Some("nodeExternalIP"), Some(json!([])), vec![], Some(Reason::NoAddress)),
        (None, Some(json!([{"type": "InternalIP", "address": "192.168.7.11"}])), vec!["192.168.7.11"], None),
        (None, Some(json!([{"type": "InternalDNS", "address": "a"}])), vec![], Some(Reason::NoAddress)),
        (
            None,
            Some(json!([{"type": "InternalIP", "address": "::1"}, {"type": "InternalIP", "address": "x"}])),
            vec![],
            Some(Reason::NoAddress),
        ),
        (
            None,
            Some(
                json!([{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"},
                {"type": "InternalIP", "address": "192.0.2.1"}]),
            ),
            vec!["192.0.2.1", "2001:db8::1"],
            None,
        ),
    ] {
        let mut node = labelled("true");
        if let Some(addresses) = addresses {
            node["status"]["addresses"] = addresses;
        }
        let mut objects = objects(node.clone());
        objects.cluster_set = from.and_then(|from| set(json!({"endpoints": {"from": from}})));
        let facts = discover(&objects, &grant());
        assert_eq!(texts(&facts.endpoints), expected, "{node}");
        assert_eq!(facts.gateway, !expected.is_empty(), "a gateway that nobody can reach is none");
        assert!(reason.is_none_or(|reason| reasons(&facts).contains(&reason)), "{:?}", facts.contradictions);
        assert!(reason.is_some() || facts.contradictions.is_empty(), "{:?}", facts.contradictions);
    }
}

#[test]
fn endpoints_by_annotation() {
    for (text, expected, wrong) in [
        ("203.0.113.5", vec!["203.0.113.5"], 0),
        (" 203.0.113.5 , 2001:db8::5,", vec!["203.0.113.5", "2001:db8::5"], 0),
        ("gateway.example,203.0.113.5", vec!["203.0.113.5"], 1),
        ("203.0.113.5:51840", vec!["192.0.2.11"], 1),
        ("", vec!["192.0.2.11"], 1),
        ("127.0.0.1", vec!["192.0.2.11"], 1),
        ("10.1.1.5", vec![], 1),
        ("203.0.113.5,10.101.0.1", vec!["203.0.113.5"], 1),
    ] {
        let facts = discover(&objects(annotated("podspan.io/endpoints", text)), &grant());
        assert_eq!(texts(&facts.endpoints), expected, "{text:?}");
        assert_eq!(facts.contradictions.len(), wrong, "{text:?}: {:?}", facts.contradictions);
    }
    let many: Vec<String> = (1..=40).map(|i| format!("203.0.113.{i}")).collect();
    let facts = discover(&objects(annotated("podspan.io/endpoints", &many.join(","))), &grant());
    assert_eq!(facts.endpoints.len(), podspan_wire::MAX_ENDPOINTS);
    assert_eq!(facts.contradictions.len(), 1);
}

#[test]
fn endpoints_by_a_service() {
    let balancer = |kind: &str, ingress: Value| json!({"metadata": {"name": "wg"}, "spec": {"type": kind}, "status": {"loadBalancer": {"ingress": ingress}}});
    for (service, expected, wrong) in [
        (Some(balancer("LoadBalancer", json!([{"ip": "203.0.113.9"}]))), "203.0.113.9", None),
        (
            Some(balancer("LoadBalancer", json!([{"hostname": "lb.example"}]))),
            "192.0.2.11",
            Some("lb.example"),
        ),
        (Some(balancer("LoadBalancer", json!([]))), "192.0.2.11", Some("no address yet")),
        (
            Some(balancer("LoadBalancer", json!([{"ip": "?"}, {"ip": "203.0.113.9"}]))),
            "203.0.113.9",
            Some("no address"),
        ),
        (Some(balancer("ClusterIP", json!([]))), "192.0.2.11", Some("not LoadBalancer")),
        (None, "192.0.2.11", Some("is not there")),
    ] {
        let objects = Objects {
            cluster_set: set(
                json!({"endpoints": {"service": {"namespace": "podspan-system", "name": "wg"}}}),
            ),
            endpoint_service: service.clone().map(read),
            ..objects(labelled("true"))
        };
        let facts = discover(&objects, &grant());
        assert_eq!(texts(&facts.endpoints), [expected], "{service:?}");
        match wrong {
            None => assert_eq!(facts.contradictions, []),
            Some(part) => {
                assert!(facts.contradictions[0].message.contains(part), "{:?}", facts.contradictions)
            }
        }
    }
}

#[test]
fn pod_cidrs_by_annotation_and_override() {
    for (annotation, all, expected, reason) in [
        (Some("10.1.9.0/24"), None, vec!["10.1.9.0/24"], vec![]),
        (Some("10.1.9.0/24,fd00:10:1:9::/64"), None, vec!["10.1.9.0/24", "fd00:10:1:9::/64"], vec![]),
        (Some("10.1.9.1/24"), None, OWN.to_vec(), vec![Reason::InvalidAnnotation]),
        (Some("10.1.9.0/24, x"), None, vec!["10.1.9.0/24"], vec![Reason::InvalidAnnotation]),
        (Some("10.9.0.0/24"), None, vec![], vec![Reason::OutsideGrant]),
        (Some("10.1.9.0/24"), Some(json!(["10.1.0.0/20"])), vec!["10.1.9.0/24"], vec![]),
        (
            Some("10.1.99.0/24"),
            Some(json!(["10.1.0.0/20"])),
            vec!["10.1.99.0/24"],
            vec![Reason::ConflictingOverrides],
        ),
        (None, Some(json!(["10.1.0.0/20"])), vec!["10.1.1.0/24"], vec![Reason::Disagreement]),
        (None, Some(json!(["x"])), OWN.to_vec(), vec![Reason::InvalidSetting]),
        (None, Some(json!([])), OWN.to_vec(), vec![]),
    ] {
        let mut node = node();
        if let Some(text) = annotation {
            node["metadata"]["annotations"]["podspan.io/pod-cidrs"] = json!(text);
        }
        let mut objects = objects(node);
        objects.cluster_set = all.clone().and_then(|all| set(json!({ "podCIDRs": all })));
        let facts = discover(&objects, &grant());
        assert_eq!(texts(&facts.pod_cidrs), expected, "{annotation:?} {all:?}");
        assert_eq!(reasons(&facts), reason, "{annotation:?} {all:?}: {:?}", facts.contradictions);
    }
}

#[test]
fn a_node_without_pod_cidrs_says_so() {
    let mut bare = node();
    bare["spec"] = json!({});
    let facts = discover(&objects(bare), &grant());
    assert_eq!(reasons(&facts), [Reason::NoPodCidr]);
    assert!(facts.contradictions[0].message.contains("kubectl annotate node node-1"));
}

#[test]
fn calico_blocks_count_where_there_are_any() {
    let pool = |cidr: &str, disabled: bool| json!({"metadata": {"name": "default"}, "spec": {"cidr": cidr, "disabled": disabled}});
    let block = |node: &str, cidr: &str, state: &str, deleted: &str| json!({"metadata": {"name": format!("{node}-b")}, "spec": {"node": node, "cidr": cidr, "state": state, "deleted": deleted}});
    for (pools, blocks, expected, reason) in [
        // Calico with the host-local IPAM.
        (vec![pool("10.1.0.0/16", false)], vec![], vec!["10.1.1.0/24", "fd00:10:1:1::/64"], vec![]),
        (vec![pool("10.2.0.0/16", false)], vec![], OWN.to_vec(), vec![Reason::Disagreement]),
        (
            vec![pool("10.1.0.0/16", false)],
            vec![
                block("node-1", "10.1.200.64/26", "confirmed", "false"),
                block("node-1", "10.1.200.128/26", "pending", "false"),
                block("node-1", "10.1.200.192/26", "confirmed", "true"),
                block("node-2", "10.1.1.0/26", "confirmed", "false"),
            ],
            vec!["10.1.200.64/26"],
            // Both of the Node's own CIDRs are unused.
            vec![Reason::Disagreement, Reason::Disagreement],
        ),
        (
            vec![pool("10.1.0.0/16", false)],
            vec![block("node-2", "10.1.7.0/26", "confirmed", "false")],
            vec![],
            vec![Reason::Disagreement, Reason::Disagreement, Reason::NoPodCidr],
        ),
        // A block whose pool is gone: named as a problem.
        (
            vec![pool("10.2.0.0/16", false), pool("10.1.0.0/16", true)],
            vec![block("node-1", "10.1.1.0/26", "confirmed", "false")],
            vec!["10.1.1.0/26"],
            vec![Reason::Disagreement, Reason::Disagreement],
        ),
        (
            vec![pool("10.1.0.0/16", false)],
            vec![
                block("node-1", "10.1.1.0/26", "confirmed", ""),
                block("node-1", "nonsense", "confirmed", ""),
            ],
            vec!["10.1.1.0/26"],
            vec![Reason::InvalidObject, Reason::Disagreement],
        ),
    ] {
        let objects = Objects { calico_pools: pools, calico_blocks: blocks.clone(), ..objects(node()) };
        let facts = discover(&objects, &grant());
        assert_eq!(texts(&facts.pod_cidrs), expected, "{blocks:?}");
        assert_eq!(reasons_but_host(&facts), reason, "{blocks:?}: {:?}", facts.contradictions);
    }
}

#[test]
fn what_a_network_does_not_use_is_no_problem() {
    let cilium = json!({"metadata": {"name": "node-1"}, "spec": {"ipam": {"podCIDRs": ["10.1.77.0/24"]}}});
    let facts = discover(&Objects { cilium_node: Some(cilium), ..objects(node()) }, &grant());
    assert_eq!(texts(&facts.pod_cidrs), ["10.1.77.0/24"]);
    assert!(facts.contradictions.iter().all(|c| c.severity == Severity::Note), "{:?}", facts.contradictions);
    assert_eq!(reasons_but_host(&facts).len(), 2);
}

#[test]
fn cilium_in_its_forms() {
    for (ipam, expected, wrong) in [
        (json!({"podCIDRs": ["10.1.1.0/24", "fd00:10:1:1::/64"]}), OWN.to_vec(), 0),
        (
            json!({"pools": {"allocated": [{"pool": "a", "cidrs": ["10.1.1.0/28"]}, {"pool": "b", "cidrs": ["10.1.1.64/28"]}]}}),
            vec!["10.1.1.0/28", "10.1.1.64/28"],
            1,
        ),
        // Addresses of a cloud's interfaces: there are no CIDRs of the node's own.
        (json!({"pool": {"192.168.7.12": {}}}), OWN.to_vec(), 0),
        (json!({"podCIDRs": [7, "10.1.1.0/24"]}), vec!["10.1.1.0/24"], 2),
        (json!("hostile"), OWN.to_vec(), 0),
    ] {
        let cilium = json!({"metadata": {"name": "node-1"}, "spec": {"ipam": ipam}});
        let facts = discover(&Objects { cilium_node: Some(cilium), ..objects(node()) }, &grant());
        assert_eq!(texts(&facts.pod_cidrs), expected, "{ipam}");
        assert_eq!(reasons_but_host(&facts).len(), wrong, "{ipam}: {:?}", facts.contradictions);
    }
}

#[test]
fn the_hosts_own_addresses() {
    let calico = |annotations: &[(&str, &str)], blocks: &[&str]| {
        let mut node = node();
        for (name, value) in annotations {
            node["metadata"]["annotations"][*name] = json!(value);
        }
        let pool = |cidr: &str| json!({"metadata": {"name": "p"}, "spec": {"cidr": cidr}});
        let block = |cidr: &&str| json!({"metadata": {"name": "b"}, "spec": {"node": "node-1", "cidr": cidr, "state": "confirmed"}});
        Objects {
            calico_pools: if blocks.is_empty() {
                Vec::new()
            } else {
                vec![pool("10.1.0.0/16"), pool("fd00:10:1::/48")]
            },
            calico_blocks: blocks.iter().map(block).collect(),
            ..objects(node)
        }
    };
    let cilium = |addresses: Value, cidrs: Value| Objects {
        cilium_node: Some(
            json!({"metadata": {"name": "node-1"}, "spec": {"addresses": addresses, "ipam": {"podCIDRs": cidrs}}}),
        ),
        ..objects(node())
    };
    const OWN_ADDRESS: &str = "podspan.io/host-addresses";
    const VXLAN: &str = "projectcalico.org/IPv4VXLANTunnelAddr";
    const BLOCKS: [&str; 2] = ["10.1.200.64/26", "fd00:10:1:aa::/122"];
    for (what, objects, expected, told) in [
        ("host-local: the first address", calico(&[], &[]), None, vec![]),
        (
            "Calico's tunnel",
            calico(&[(VXLAN, "10.1.200.65")], &BLOCKS[..1]),
            Some(vec!["10.1.200.65"]),
            vec![],
        ),
        (
            "Calico's tunnel, and none for IPv6",
            calico(&[(VXLAN, "10.1.200.65")], &BLOCKS),
            Some(vec!["10.1.200.65"]),
            vec![Reason::NoHostAddress],
        ),
        ("Calico without a tunnel", calico(&[], &BLOCKS[..1]), Some(vec![]), vec![Reason::NoHostAddress]),
        (
            "a tunnel's address of a block that the node has not",
            calico(&[(VXLAN, "10.1.9.1")], &BLOCKS[..1]),
            Some(vec![]),
            vec![Reason::NoHostAddress],
        ),
        (
            "a tunnel's address that is none",
            calico(&[(VXLAN, "x")], &BLOCKS[..1]),
            Some(vec![]),
            vec![Reason::NoHostAddress],
        ),
        (
            "a person's word wins",
            calico(&[(VXLAN, "10.1.200.65"), (OWN_ADDRESS, "10.1.200.70")], &BLOCKS[..1]),
            Some(vec!["10.1.200.70"]),
            vec![],
        ),
        (
            "a person's word that cannot be",
            calico(&[(OWN_ADDRESS, "192.0.2.1,10.1.1.7")], &[]),
            Some(vec!["10.1.1.7", "fd00:10:1:1::"]),
            vec![Reason::InvalidAnnotation],
        ),
        (
            "Cilium's own",
            cilium(
                json!([{"type": "InternalIP", "ip": "192.168.7.11"}, {"type": "CiliumInternalIP", "ip": "10.1.1.43"}]),
                json!(["10.1.1.0/24"]),
            ),
            Some(vec!["10.1.1.43"]),
            vec![],
        ),
        (
            "Cilium without",
            cilium(json!("hostile"), json!(["10.1.1.0/24"])),
            Some(vec![]),
            vec![Reason::NoHostAddress],
        ),
    ] {
        let facts = discover(&objects, &grant());
        let found = facts.host_addresses.as_ref().map(|found| texts(found));
        assert_eq!(
            found,
            expected.map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>()),
            "{what}"
        );
        let about_host =
            |reason: &Reason| matches!(reason, Reason::NoHostAddress | Reason::InvalidAnnotation);
        assert_eq!(reasons(&facts).into_iter().filter(about_host).collect::<Vec<_>>(), told, "{what}");
    }
}

#[test]
fn flannel_and_kindnet_bound_the_node() {
    let flannel = |conf: &str| json!({"metadata": {"namespace": "kube-flannel", "name": "kube-flannel-cfg"}, "data": {"net-conf.json": conf}});
    for (conf, wrong) in [
        (r#"{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:1::/48"}"#, vec![]),
        (r#"{"Network": "10.1.0.0/16"}"#, vec![]),
        (r#"{"Network": "10.244.0.0/16"}"#, vec![Reason::Disagreement]),
        (r#"{"Network": "10.244.0.0"}"#, vec![Reason::InvalidObject]),
        ("{", vec![Reason::InvalidObject]),
    ] {
        let facts = discover(&Objects { flannel: Some(read(flannel(conf))), ..objects(node()) }, &grant());
        assert_eq!(texts(&facts.pod_cidrs), OWN, "{conf}");
        assert_eq!(reasons(&facts), wrong, "{conf}: {:?}", facts.contradictions);
    }
    for (subnet, wrong) in [
        ("10.1.0.0/16,fd00:10:1::/48", vec![]),
        ("10.244.0.0/16", vec![Reason::Disagreement]),
        ("10.244", vec![Reason::InvalidObject]),
    ] {
        let kindnet = json!({"spec": {"selector": {}, "template": {"spec": {"containers": [
            {"name": "kindnet-cni", "env": [{"name": "HOST_IP"}, {"name": "POD_SUBNET", "value": subnet}]}]}}}});
        let facts = discover(&Objects { kindnet: Some(read(kindnet)), ..objects(node()) }, &grant());
        assert_eq!(reasons(&facts), wrong, "{subnet}: {:?}", facts.contradictions);
    }
}

#[test]
fn service_cidrs_in_their_order() {
    let api = |cidrs: Value| json!([{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}]);
    let server = |args: Value| json!([{"metadata": {"name": "kube-apiserver-a"}, "spec": {"containers": [{"name": "s", "command": args}]}}]);
    let none = json!([]);
    for (all, objects_, servers, expected, from, reason) in [
        (
            Value::Null,
            none.clone(),
            none.clone(),
            vec!["10.101.0.0/16", "fd00:10:101::/112"],
            "the cluster's grant",
            vec![],
        ),
        (
            Value::Null,
            api(json!(["10.101.0.0/20"])),
            none.clone(),
            vec!["10.101.0.0/20"],
            "ServiceCIDR kubernetes",
            vec![],
        ),
        (
            Value::Null,
            none.clone(),
            server(json!(["kube-apiserver", "--service-cluster-ip-range=10.101.0.1/20,fd00:10:101::/112"])),
            vec!["10.101.0.0/20", "fd00:10:101::/112"],
            "flag --service-cluster-ip-range of Pod kube-apiserver-a",
            vec![],
        ),
        (
            Value::Null,
            none.clone(),
            server(json!(["kube-apiserver", "--service-cluster-ip-range", "10.101.0.0/20"])),
            vec!["10.101.0.0/20"],
            "flag --service-cluster-ip-range of Pod kube-apiserver-a",
            vec![],
        ),
        (
            Value::Null,
            api(json!(["10.101.0.0/20"])),
            server(json!(["--service-cluster-ip-range=10.77.0.0/20"])),
            vec!["10.101.0.0/20"],
            "ServiceCIDR kubernetes",
            vec![Reason::Disagreement],
        ),
        (
            Value::Null,
            api(json!(["10.101.0.0/20", "10.55.0.0/20"])),
            none.clone(),
            vec!["10.101.0.0/20"],
            "ServiceCIDR kubernetes",
            vec![Reason::OutsideGrant],
        ),
        (
            Value::Null,
            api(json!(["10.101.0.0/20", "x"])),
            none.clone(),
            vec!["10.101.0.0/20"],
            "ServiceCIDR kubernetes",
            vec![Reason::InvalidObject],
        ),
        (
            json!(["10.101.64.0/20"]),
            api(json!(["10.101.0.0/20"])),
            none.clone(),
            vec!["10.101.64.0/20"],
            "ClusterSet podspan spec.serviceCIDRs",
            vec![Reason::Disagreement],
        ),
        (
            Value::Null,
            none.clone(),
            server(json!(["--service-cluster-ip-range=junk"])),
            vec!["10.101.0.0/16", "fd00:10:101::/112"],
            "the cluster's grant",
            vec![Reason::InvalidObject],
        ),
    ] {
        let objects = Objects {
            cluster_set: set(json!({ "serviceCIDRs": all })),
            service_cidrs: read(objects_.clone()),
            api_servers: read(servers.clone()),
            ..objects(node())
        };
        let facts = discover(&objects, &grant());
        assert_eq!(texts(&facts.service_cidrs), expected, "{all} {objects_} {servers}");
        assert_eq!(facts.service_cidrs[0].from, from);
        assert_eq!(reasons(&facts), reason, "{:?}", facts.contradictions);
    }
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_goes_on() {
    let objects = Objects { unreadable: vec!["Calico IPPools: forbidden".into()], ..objects(node()) };
    let facts = discover(&objects, &grant());
    assert_eq!(reasons(&facts), [Reason::Unreadable]);
    assert_eq!(texts(&facts.pod_cidrs), OWN);
    // Nothing at all is there: facts all the same, and no panic.
    let nothing = discover(&Objects::default(), &grant());
    assert!(nothing.pod_cidrs.is_empty() && reasons(&nothing) == [Reason::NoPodCidr]);
}

#[test]
fn messages_are_bounded_whatever_an_object_holds() {
    let text = "x".repeat(200_000);
    for node in
        [annotated("podspan.io/endpoints", &text), annotated("podspan.io/pod-cidrs", &text), labelled(&text)]
    {
        for contradiction in discover(&objects(node), &grant()).contradictions {
            assert!(contradiction.message.len() < 1000, "{}", contradiction.message.len());
        }
    }
}

#[test]
fn the_clusters_pod_cidrs() {
    let nodes: Vec<Node> = vec![read(node())];
    let plain = cluster_pod_cidrs(&Objects::default(), &Settings::default(), &nodes);
    assert_eq!(texts(&plain), OWN);
    let all = Settings { pod_cidrs: Some(vec!["10.1.0.0/16".parse().unwrap()]), ..Settings::default() };
    assert_eq!(texts(&cluster_pod_cidrs(&Objects::default(), &all, &nodes)), ["10.1.0.0/16"]);
}
