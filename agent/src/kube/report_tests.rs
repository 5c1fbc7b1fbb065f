use podspan_kubernetes::crd::PeerState;
use podspan_kubernetes::discovery::About;
use podspan_wire::status::BlackHole;
use podspan_wire::{ClusterSetId, RootKey};
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_795_305_600;

fn lane(established: bool) -> Value {
    json!({"local": 0, "remote": 0, "endpoint": "192.0.2.21:51840", "established": established,
        "handshakeAge": 61.5, "rttUs": 12_345, "rxBytes": 10, "txBytes": 20, "rxPackets": 1, "txPackets": 2, "drops": {}})
}

fn node(name: &str, gateway: bool, state: &str, stale: bool) -> Value {
    json!({"id": format!("beta/{name}"), "gateway": gateway, "state": state, "stale": stale,
        "version": {"epoch": 1, "sequence": 1}, "podCidrs": [], "lanes": [lane(state == "up")]})
}

fn status(state: &str, nodes: Vec<Value>) -> Status {
    let set = ClusterSetId::new(RootKey::from_seed(&[1; 32]).public());
    serde_json::from_value(json!({
        "version": "0", "now": NOW, "started": NOW - 100,
        "node": {"clusterSet": set, "id": "alpha/node-1", "gateway": true, "endpoints": [], "lanes": [], "podCidrs": [],
            "serviceCidrs": [], "hostAddresses": [], "record": null, "mtu": 1420, "source": "kubernetes",
            "grantNotAfter": NOW + 86_400 * 365},
        "broker": {"addresses": ["https://192.0.2.1:7443"], "connected": "https://192.0.2.1:7443", "lastHeard": NOW,
            "lastPublished": null, "errors": {}},
        "clusters": [{"cluster": "beta", "state": state, "cidrs": ["10.2.0.0/16", "10.102.0.0/16"],
            "pathMtu": 1400, "serviceCidrs": ["10.102.0.0/16"], "nodes": nodes}],
        "kernel": {"interface": "podspan0", "table": 7183, "routes": [], "healed": 0, "failing": []},
        "attachments": 0, "refusals": {}, "refused": [],
        "workers": [{"lane": 0, "port": 51840, "failed": null, "drops": {}}], "problems": []
    }))
    .unwrap()
}

fn of(conditions: &[Condition], kind: &str) -> (String, String, String) {
    let found = conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (found.status.clone(), found.reason.clone(), found.message.clone())
}

#[test]
fn a_peer_in_its_states() {
    for (state, nodes, expected, ready, reason, gateways) in [
        ("up", vec![node("g1", true, "up", false)], PeerState::Connected, "True", "AllGatewaysUp", "1/1"),
        (
            "degraded",
            vec![
                node("g1", true, "up", false),
                node("g2", true, "down", false),
                node("n", false, "via", false),
            ],
            PeerState::Degraded,
            "True",
            "SomeGatewaysDown",
            "1/2",
        ),
        (
            "connecting",
            vec![node("g1", true, "connecting", false)],
            PeerState::Disconnected,
            "False",
            "Connecting",
            "0/1",
        ),
        (
            "down",
            vec![node("g1", true, "down", false)],
            PeerState::Disconnected,
            "False",
            "NoGatewayAnswers",
            "0/1",
        ),
        ("down", vec![node("n", false, "via", false)], PeerState::Disconnected, "False", "NoGateway", "0/0"),
    ] {
        let status = status(state, nodes);
        let peer = peer(&status, &status.clusters[0], None);
        assert_eq!(peer.state, Some(expected));
        let (is, why, message) = of(&peer.conditions, READY);
        assert_eq!((is.as_str(), why.as_str()), (ready, reason), "{state}");
        assert!(!message.is_empty());
        assert_eq!(peer.gateways.as_ref().unwrap().summary, gateways);
        assert_eq!(
            (peer.pod_cidrs.join(","), peer.service_cidrs.join(",")),
            ("10.2.0.0/16".into(), "10.102.0.0/16".into())
        );
        assert_eq!((peer.path_mtu, peer.loss_percent), (Some(1400), None));
    }
}

#[test]
fn what_a_gateway_tells() {
    let status = status("up", vec![node("g1", true, "up", true)]);
    let peer = peer(&status, &status.clusters[0], None);
    let gateway = &peer.gateways.as_ref().unwrap().list[0];
    assert_eq!(gateway.endpoint.as_deref(), Some("192.0.2.21:51840"));
    assert_eq!(gateway.last_handshake_time, Some(time(UnixTime(NOW - 61))));
    assert_eq!((peer.rtt.as_deref(), peer.rtt_microseconds), (Some("12ms"), Some(12_345)));
    assert_eq!((peer.rx_bytes, peer.tx_bytes), (Some(10), Some(20)));
    assert_eq!(of(&peer.conditions, "Renewed").1, "NotRenewed");
}

#[test]
fn a_black_hole_is_a_condition() {
    let mut status = status("up", vec![node("g1", true, "up", false)]);
    let of = |status: &Status| of(&peer(status, &status.clusters[0], None).conditions, "LargePacketsPass");
    assert_eq!(of(&status).1, "NoBlackHole");
    let path = &mut status.clusters[0].nodes[0].lanes[0].path;
    path.mtu = Some(1340);
    path.black_hole = Some(BlackHole { found: UnixTime(NOW - 5), passed: 1440 });
    let (is, why, message) = of(&status);
    assert_eq!((is.as_str(), why.as_str()), ("False", "BlackHole"));
    assert!(message.contains("g1 (192.0.2.21)") && message.contains("1340"), "{message}");
}

#[test]
fn a_refused_record_is_told_for_an_hour() {
    let mut status = status("up", vec![node("g1", true, "up", false)]);
    for (age, reason) in [(10, "RecordRefused"), (7_200, "Accepted")] {
        status.refused = vec![RefusedRecord {
            claimed: Some("beta/g9".parse().unwrap()),
            kind: podspan_wire::RefusalKind::Replayed,
            detail: "old".into(),
            at: UnixTime(NOW - age),
            times: 3,
        }];
        let peer = peer(&status, &status.clusters[0], None);
        assert_eq!(of(&peer.conditions, "RecordsAccepted").1, reason);
    }
}

#[test]
fn counters_alone_are_no_change_to_write_at_once() {
    let first = status("up", vec![node("g1", true, "up", false)]);
    let mut later = first.clone();
    later.clusters[0].nodes[0].lanes[0].rx_bytes += 1_000;
    later.clusters[0].nodes[0].lanes[0].rtt_us = Some(9);
    later.clusters[0].nodes[0].lanes[0].handshake_age = Some(0.1);
    later.now = UnixTime(NOW + 100);
    let before = peer(&first, &first.clusters[0], None);
    let now = peer(&later, &later.clusters[0], Some(&before));
    assert!(!differs(&before, &now) && before != now, "the condition's time stays too");
    later.clusters[0].nodes[0].state = Reachability::Down;
    assert!(differs(&before, &peer(&later, &later.clusters[0], Some(&before))));
}

#[test]
fn round_trips_for_a_person() {
    for (us, text) in [(7, "7us"), (999, "999us"), (1_234, "1.2ms"), (48_600, "49ms"), (2_500_000, "2.5s")] {
        assert_eq!(round_trip(us), text);
    }
}

#[test]
fn the_cluster_itself() {
    let good = status("up", vec![]);
    let own = |gateways, contradictions| Own {
        nodes: 3,
        gateways,
        contradictions,
        pod_cidrs: &[],
        service_cidrs: &[],
        generation: Some(4),
    };
    let wrong = [
        Contradiction::problem(About::Node, Reason::InvalidLabel, "label"),
        Contradiction::problem(About::ClusterSet, Reason::OutsideGrant, "outside"),
        Contradiction::note(About::ClusterSet, Reason::Disagreement, "note"),
    ];
    let condition =
        |status: &Status, own: &Own<'_>, kind| of(&cluster_set(status, own, None).conditions, kind);
    assert_eq!(condition(&good, &own(2, &[]), READY).1, "Forwarding");
    assert_eq!(condition(&good, &own(0, &[]), READY).1, "NoGateway");
    assert_eq!(condition(&good, &own(2, &[]), "NoConflict").0, "True");
    let conflict = condition(&good, &own(2, &wrong), "NoConflict");
    assert_eq!(conflict, ("False".into(), "InvalidLabel".into(), "label".into()));
    assert_eq!(condition(&good, &own(2, &wrong), "Granted").1, "OutsideGrant");
    let mut bad = good.clone();
    bad.node.grant_not_after = UnixTime(NOW - 1);
    bad.broker.connected = None;
    bad.workers[0].failed = Some("gone".into());
    assert_eq!(condition(&bad, &own(2, &[]), "Granted").1, "GrantEnded");
    assert_eq!(condition(&bad, &own(2, &[]), "BrokerConnected").1, "NoBroker");
    assert_eq!(condition(&bad, &own(2, &[]), READY).1, "NotForwarding");
    let many: Vec<Contradiction> = (0..50)
        .map(|i| Contradiction::problem(About::Node, Reason::InvalidLabel, format!("label {i}")))
        .collect();
    assert!(condition(&good, &own(2, &many), "NoConflict").2.ends_with("and 45 more"));
    let written = cluster_set(&good, &own(2, &[]), None);
    assert_eq!((written.nodes, written.gateways, written.observed_generation), (Some(3), Some(2), Some(4)));
}

#[test]
fn loss_by_the_gateways_that_answer() {
    let probed = |name: &str, state: &str, loss: f64| {
        let mut node = node(name, true, state, false);
        node["lanes"][0]["probes"] = json!({"liveness": "healthy", "loss": loss});
        node
    };
    let of = |nodes: Vec<Value>| {
        let status = status("degraded", nodes);
        peer(&status, &status.clusters[0], None)
    };
    let good = of(vec![probed("g1", "up", 0.0), probed("g2", "up", 0.0625), probed("g3", "down", 1.0)]);
    assert_eq!(good.loss_percent, Some(3.1), "one that is down is not what packets go through");
    let each: Vec<Option<f64>> =
        good.gateways.as_ref().unwrap().list.iter().map(|g| g.loss_percent).collect();
    assert_eq!(each, [Some(0.0), Some(6.3), Some(100.0)]);
    let better = of(vec![probed("g1", "up", 0.0), probed("g2", "up", 0.0), probed("g3", "down", 1.0)]);
    assert!(!differs(&good, &better), "a probe more or less is no news");
    let bad = of(vec![probed("g1", "up", 0.25), probed("g2", "up", 0.0), probed("g3", "down", 1.0)]);
    assert!(differs(&better, &bad));
    assert_eq!(of(vec![node("g1", true, "up", false)]).loss_percent, None, "not probed yet");
    let mut status = status("up", vec![node("g1", true, "up", false)]);
    status.clusters[0].path_mtu = Some(1392);
    assert_eq!(peer(&status, &status.clusters[0], None).path_mtu, Some(1392), "measured");
}
