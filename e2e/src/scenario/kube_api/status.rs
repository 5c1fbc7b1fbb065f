//! What the agents write: PeerClusters, the ClusterSet, Events, and which of them writes.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use podspan_wire::status::{Reachability, Status};
use serde_json::{Value, json};

use super::joined::{Joined, apply_settings, condition, events, until};
use crate::kube::KubeApi;
use crate::scenario::Findings;

const SOON: Duration = Duration::from_secs(20);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Waits for the PeerCluster `beta` to be in a state.
pub(super) fn beta_is(api: &KubeApi, state: &str, reason: &str, within: Duration) -> Result<Duration> {
    peer_is(api, "beta", state, reason, within)
}

fn peer_is(api: &KubeApi, name: &str, state: &str, reason: &str, within: Duration) -> Result<Duration> {
    until(&format!("PeerCluster {name} is {state} ({reason})"), within, || {
        let Ok(object) = api.get_json(&["peercluster", name]) else {
            return Ok(Err("there is none".into()));
        };
        let [_, seen, ..] = condition(&object, "Ready");
        let good = object["status"]["state"] == state && seen == reason;
        Ok(if good { Ok(()) } else { Err(object["status"].to_string()) })
    })
}

fn reached(status: &Status) -> bool {
    status.clusters.iter().any(|cluster| cluster.state == Reachability::Up)
}

fn told(api: &KubeApi, name: &str, reason: &str) -> Result<Duration> {
    until(&format!("the Event {reason}"), SOON, || {
        let events = events(api, "PeerCluster", name)?;
        Ok(if events.iter().any(|(seen, _)| seen == reason) { Ok(()) } else { Err(format!("{events:?}")) })
    })
}

/// A peer joins, is lost and comes back, and another one leaves: their objects and Events tell.
pub(super) fn peers(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "peers")?;
    apply_settings(api, &json!({}))?;
    api.apply(
        "{apiVersion: podspan.io/v1alpha1, kind: ClusterSet, metadata: {name: another}, spec: {mtu: 1300}}",
    )?;
    let agent = joined.node(api, "p1", 1, true)?;
    let beta = joined.start_beta(api)?;
    let gamma = joined.start_peer(api, "gamma")?;
    agent.until("the tunnel", Duration::from_secs(30), reached)?;
    let taken = beta_is(api, "Connected", "AllGatewaysUp", SOON)?;
    println!("       the PeerCluster stands {:.1} s after the tunnel", taken.as_secs_f64());
    peer_is(api, "gamma", "Connected", "AllGatewaysUp", SOON)?;
    // It leaves in order: its record is withdrawn. Its object stays for a while, and the rest is looked at meanwhile.
    joined.end_agent(api, &gamma)?;
    let gamma_left = Instant::now();
    told(api, "beta", "PeerConnected").or_else(|_| told(api, "beta", "PeerBack"))?;

    let object = api.get_json(&["peercluster", "beta"])?;
    let status = &object["status"];
    findings.expect("its pod CIDRs", &json!(["10.62.0.0/16", "fd00:10:62::/48"]), &status["podCIDRs"]);
    findings.expect("its service CIDRs", &json!(["10.102.0.0/16"]), &status["serviceCIDRs"]);
    findings.expect("its gateways", &json!("1/1"), &status["gateways"]["summary"]);
    findings.expect("who saw it", &json!("p1"), &status["observedBy"]);
    // Known to whoever began the handshake, and here that may be beta.
    findings.require(status["rttMicroseconds"].is_u64() == status["rtt"].is_string(), || {
        format!("the round trip in numbers and words: {status}")
    });
    findings
        .require(status["pathMTU"].as_u64().is_some_and(|mtu| mtu > 1200), || format!("no MTU: {status}"));
    let measured = until("loss by probes", SOON, || {
        let loss = api.get_json(&["peercluster", "beta"])?["status"]["lossPercent"].clone();
        Ok(if loss.is_number() { Ok(()) } else { Err(loss.to_string()) })
    });
    findings.require(measured.is_ok(), || format!("{measured:?}"));
    let gateway = &status["gateways"]["list"][0];
    findings.require(
        text(&gateway["endpoint"]).starts_with(&beta.host.address.v4.to_string())
            && !text(&gateway["lastHandshakeTime"]).is_empty(),
        || format!("its gateway: {gateway}"),
    );
    let managers: Vec<String> = object["metadata"]["managedFields"]
        .as_array()
        .map(|fields| fields.iter().map(|field| text(&field["manager"])).collect())
        .unwrap_or_default();
    let shown = api.kubectl(&["get", "peercluster", "beta", "--show-managed-fields", "-o", "json"])?;
    findings.require(shown.contains("podspan-agent"), || format!("who manages it: {managers:?}"));

    until("the ClusterSet's status", SOON, || {
        let object = api.get_json(&["clusterset", "podspan"])?;
        let [ready, ..] = condition(&object, "Ready");
        let status = &object["status"];
        let good = ready == "True"
            && status["cluster"] == "alpha"
            && status["nodes"] == 1
            && status["gateways"] == 1
            && status["observedGeneration"] == object["metadata"]["generation"]
            && status["discovered"]["serviceCIDRs"][0]["from"] == "ServiceCIDR kubernetes";
        Ok(if good { Ok(()) } else { Err(status.to_string()) })
    })?;
    until("the other ClusterSet is refused", SOON, || {
        let [status, reason, ..] = condition(&api.get_json(&["clusterset", "another"])?, "Ready");
        Ok(if (status.as_str(), reason.as_str()) == ("False", "NotUsed") { Ok(()) } else { Err(reason) })
    })?;
    findings.require(agent.status()?.node.mtu != 1300, || "the other ClusterSet's MTU is in use".into());

    // Somebody removes the object: it is written anew. Time tells what changed and what did not.
    let before = condition(&api.get_json(&["peercluster", "beta"])?, "Ready")[3].clone();
    let patch = json!({"status": {"state": "Disconnected", "podCIDRs": ["0.0.0.0/0"]}}).to_string();
    api.kubectl(&["patch", "peercluster", "beta", "--subresource=status", "--type=merge", "-p", &patch])?;
    let taken = until("a status that somebody changed is put right", Duration::from_secs(40), || {
        let object = api.get_json(&["peercluster", "beta"])?;
        let good =
            object["status"]["state"] == "Connected" && object["status"]["podCIDRs"][0] == "10.62.0.0/16";
        Ok(if good { Ok(()) } else { Err(object["status"].to_string()) })
    })?;
    println!("       a status that somebody changed is put right in {:.1} s", taken.as_secs_f64());
    findings.expect(
        "the time of the condition",
        before,
        condition(&api.get_json(&["peercluster", "beta"])?, "Ready")[3].clone(),
    );
    api.kubectl(&["delete", "peercluster", "beta"])?;
    beta_is(api, "Connected", "AllGatewaysUp", Duration::from_secs(40))?;

    // beta's agent is killed: probes are not answered, on an idle tunnel one each 5 s.
    let process = joined.process(&beta)?;
    process.signal(Signal::SIGKILL)?;
    let taken = beta_is(api, "Disconnected", "NoGatewayAnswers", Duration::from_secs(45))?;
    println!("       a peer that is killed is Disconnected after {:.0} s", taken.as_secs_f64());
    told(api, "beta", "PeerLost")?;
    joined.start_agent(api, &beta)?;
    let taken = beta_is(api, "Connected", "AllGatewaysUp", Duration::from_secs(60))?;
    println!("       it is Connected {:.0} s after its start", taken.as_secs_f64());
    told(api, "beta", "PeerBack")?;

    until(
        "gamma's PeerCluster is gone",
        Duration::from_secs(90).saturating_sub(gamma_left.elapsed()),
        || {
            let list = api.get_json(&["peerclusters"])?;
            let names: Vec<_> = list["items"].as_array().into_iter().flatten().collect();
            let names: Vec<_> = names.iter().map(|object| text(&object["metadata"]["name"])).collect();
            Ok(if names == ["beta"] { Ok(()) } else { Err(format!("{names:?}")) })
        },
    )?;
    println!(
        "       a PeerCluster is gone at most {:.0} s after its cluster left",
        gamma_left.elapsed().as_secs_f64()
    );
    until("the Event PeerLeft", SOON, || {
        let events = events(api, "ClusterSet", "podspan")?;
        let told = events.iter().any(|(reason, note)| reason == "PeerLeft" && note.contains("gamma"));
        Ok(if told { Ok(()) } else { Err(format!("{events:?}")) })
    })?;
    let all: Vec<(String, String)> = events(api, "PeerCluster", "beta")?;
    findings.require(all.len() < 15, || format!("a flood of Events: {all:?}"));
    joined.end(api)?;
    findings.conclude(11)
}

/// The agent that writes the status is killed: another one takes over, and only one writes.
pub(super) fn lease(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "lease")?;
    apply_settings(api, &json!({}))?;
    let agents = [joined.node(api, "l1", 1, true)?, joined.node(api, "l2", 2, true)?];
    let holder = |api: &KubeApi| -> String {
        api.get_json(&["-n", "podspan-system", "lease", "podspan-status"])
            .map(|lease| text(&lease["spec"]["holderIdentity"]))
            .unwrap_or_default()
    };
    let writes = |api: &KubeApi, who: &str| -> Result<Result<(), String>> {
        let object = api.get_json(&["clusterset", "podspan"])?;
        let by = text(&object["status"]["observedBy"]);
        Ok(if by == who && holder(api) == who {
            Ok(())
        } else {
            Err(format!("written by {by:?}, held by {:?}", holder(api)))
        })
    };
    until("somebody holds the lease", SOON, || {
        let holder = holder(api);
        Ok(if agents.iter().any(|agent| agent.node == holder) { Ok(()) } else { Err(holder) })
    })?;
    let first = holder(api);
    until("the holder writes", SOON, || writes(api, &first))?;
    let (old, new) = if first == "l1" { (&agents[0], &agents[1]) } else { (&agents[1], &agents[0]) };
    joined.process(old)?.signal(Signal::SIGKILL)?;
    let taken = until("the other one takes over", Duration::from_secs(45), || writes(api, &new.node))?;
    println!("       a holder that is killed is followed after {:.1} s", taken.as_secs_f64());
    joined.start_agent(api, old)?;
    old.until("the old holder runs again", SOON, |status| status.node.gateway)?;
    crate::signals::sleep(Duration::from_secs(10))?;
    findings.expect("who holds it now", new.node.clone(), holder(api));
    // One that ends in order gives it up.
    joined.end_agent(api, new)?;
    let taken = until("the first one again", Duration::from_secs(20), || writes(api, &old.node))?;
    println!("       one that ends is followed after {:.1} s", taken.as_secs_f64());
    let lease = api.get_json(&["-n", "podspan-system", "lease", "podspan-status"])?;
    findings
        .require(lease["spec"]["leaseTransitions"].as_u64().is_some_and(|n| n >= 2), || lease.to_string());
    joined.end(api)?;
    findings.conclude(2)
}
