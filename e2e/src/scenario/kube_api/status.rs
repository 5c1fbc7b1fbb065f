//! What the agents write: PeerClusters, the ClusterSet, Events, and which of them writes.

use std::time::Duration;

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
fn beta_is(api: &KubeApi, state: &str, reason: &str, within: Duration) -> Result<Duration> {
    until(&format!("PeerCluster beta is {state} ({reason})"), within, || {
        let Ok(object) = api.get_json(&["peercluster", "beta"]) else {
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

/// A peer joins, is lost, comes back and leaves: its object and its Events tell.
pub(super) fn peers(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "peers")?;
    apply_settings(api, &json!({}))?;
    api.apply(
        "{apiVersion: podspan.io/v1alpha1, kind: ClusterSet, metadata: {name: another}, spec: {mtu: 1300}}",
    )?;
    let agent = joined.node(api, "p1", 1, true)?;
    let beta = joined.start_beta(api)?;
    agent.until("the tunnel", Duration::from_secs(30), reached)?;
    let taken = beta_is(api, "Connected", "AllGatewaysUp", SOON)?;
    println!("       the PeerCluster stands {:.1} s after the tunnel", taken.as_secs_f64());
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

    // It leaves in order: its record is withdrawn.
    joined.end_agent(api, &beta)?;
    let taken = until("the PeerCluster is gone", Duration::from_secs(90), || {
        let list = api.get_json(&["peerclusters"])?;
        Ok(if list["items"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(list.to_string()) })
    })?;
    println!("       the PeerCluster is gone {:.0} s after the cluster left", taken.as_secs_f64());
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

/// The API server is away: everything goes on, an agent can even start; and it is back: all is followed again.
pub(super) fn away(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "away")?;
    apply_settings(api, &json!({}))?;
    let agent = joined.node(api, "v1", 1, true)?;
    let beta = joined.start_beta(api)?;
    agent.until("the tunnel", Duration::from_secs(30), reached)?;
    // beta may still be setting itself up when its tunnel stands.
    until("an answer through the tunnel", SOON, || {
        Ok(if agent.pings("10.62.1.0")? { Ok(()) } else { Err("none".into()) })
    })?;
    api.stop()?;
    agent.until("it is told that the API server is away", Duration::from_secs(60), |status| {
        status.problems.iter().any(|problem| problem.contains("the API server does not answer"))
    })?;
    findings.require(agent.pings("10.62.1.0")?, || "no answer without the API server".into());
    let (ready, why) = agent.health("/readyz")?;
    findings.require(ready.contains("200"), || format!("not ready without the API server: {why}"));

    // A new start without it: the last good facts are used.
    joined.process(&agent)?.signal(Signal::SIGKILL)?;
    joined.process(&agent)?.wait(Duration::from_secs(5))?;
    joined.start_agent(api, &agent)?;
    let taken = agent.until("it forwards again", Duration::from_secs(40), reached)?;
    println!(
        "       an agent that starts without the API server has its tunnel after {:.1} s",
        taken.as_secs_f64()
    );
    let status = agent.status()?;
    findings.expect("its pods", 2, status.node.pod_cidrs.len());
    findings.require(status.node.gateway, || "it is a gateway by what was kept".into());
    findings.require(agent.pings("10.62.1.0")?, || "no answer after a start without the API server".into());
    crate::signals::sleep(Duration::from_secs(40))?;
    findings.require(reached(&agent.status()?), || "the tunnel fell while the API server was away".into());

    api.start()?;
    api.kubectl(&["annotate", "--overwrite", "node", "v1", "podspan.io/pod-cidrs=10.61.50.0/24"])?;
    let taken = agent.until("it follows again", Duration::from_secs(60), |status| {
        status.node.pod_cidrs.to_string() == "10.61.50.0/24"
            && !status.problems.iter().any(|problem| problem.contains("API server"))
    })?;
    println!("       once the API server is back a change is followed after {:.1} s", taken.as_secs_f64());
    beta_is(api, "Connected", "AllGatewaysUp", Duration::from_secs(60))?;
    drop(beta);
    joined.end(api)?;
    findings.conclude(6)
}
