//! Where an agent's facts come from, and what becomes of objects that make no sense.

use std::time::Duration;

use anyhow::Result;
use podspan_wire::status::Status;
use serde_json::json;

use super::joined::{
    Joined, annotate, apply_node, apply_settings, condition, events, label, set_addresses, until,
};
use crate::kube::KubeApi;
use crate::scenario::Findings;

const SOON: Duration = Duration::from_secs(15);

fn from(status: &Status, value: &str) -> String {
    let found = status.node.discovery.found.iter().find(|found| found.value == value);
    found.map(|found| found.from.clone()).unwrap_or_default()
}

/// An agent without a bundle waits and says for what; then for its Node; then it runs.
pub(super) fn waiting(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "waiting")?;
    let agent = joined.agent(api, "w1")?;
    joined.start_agent(api, &agent)?;
    let reason = |part: &'static str| {
        let agent = agent.clone();
        move || {
            Ok(match agent.waits() {
                Ok(Some(reason)) if reason.contains(part) => Ok(()),
                other => Err(format!("{other:?}")),
            })
        }
    };
    until("the agent misses its bundle", SOON, reason("podspan join --bundle"))?;
    let (alive, _) = agent.health("/healthz")?;
    let (ready, why) = agent.health("/readyz")?;
    findings.require(alive.contains("200"), || format!("an agent that waits is alive: {alive}"));
    findings
        .require(ready.contains("503") && why.contains("podspan join --bundle"), || format!("{ready} {why}"));
    joined.give_bundle(&agent)?;
    until("the agent misses its Node", SOON, reason("no Node w1"))?;
    apply_node(api, &agent.host, 1)?;
    agent.until("it runs", SOON, |status| {
        status.node.pod_cidrs.to_string() == "10.61.1.0/24, fd00:10:61:1::/64"
    })?;
    until("it is ready", SOON, || {
        let (ready, why) = agent.health("/readyz")?;
        Ok(if ready.contains("200") { Ok(()) } else { Err(why) })
    })?;
    let status = agent.status()?;
    findings.expect("the source", "kubernetes", status.node.source.as_str());
    findings.expect(
        "where the pod CIDR is from",
        "Node w1 spec.podCIDRs".to_owned(),
        from(&status, "10.61.1.0/24"),
    );
    findings.expect(
        "where the service CIDR is from",
        "ServiceCIDR kubernetes".to_owned(),
        from(&status, &api.services().v4.to_string()),
    );
    findings.expect("contradictions", 0, status.node.discovery.contradictions.len());
    joined.end(api)?;
    findings.require(!agent.answers(), || "the agent's socket is still there".into());
    findings.conclude(7)
}

/// Labels, annotations, addresses, ServiceCIDRs and the ClusterSet: each change is followed.
pub(super) fn sources(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "sources")?;
    let agent = joined.node(api, "s1", 1, false)?;
    agent.until("it runs", SOON, |status| !status.node.gateway)?;
    let own = agent.host.address.v4.to_string();
    let seconds =
        |what: &str, taken: Duration| println!("       {what}: followed in {:.1} s", taken.as_secs_f64());

    label(api, "s1", "podspan.io/gateway=true")?;
    let taken = agent.until("it is a gateway", SOON, |status| status.node.gateway)?;
    seconds("gateway label", taken);
    let status = agent.status()?;
    findings.expect(
        "its endpoint",
        vec![own.clone()],
        status.node.endpoints.iter().map(ToString::to_string).collect(),
    );
    findings.expect("from", "Node s1 status.addresses, type InternalIP".to_owned(), from(&status, &own));
    label(api, "s1", "podspan.io/gateway-")?;
    agent.until("it is none any more", SOON, |status| !status.node.gateway)?;
    label(api, "s1", "podspan.io/gateway=true")?;

    set_addresses(
        api,
        "s1",
        &json!([{"type": "InternalIP", "address": own}, {"type": "ExternalIP", "address": "203.0.113.7"}]),
    )?;
    agent.until("the external address is the endpoint", SOON, |status| {
        status.node.endpoints == ["203.0.113.7".parse::<std::net::IpAddr>().expect("an address")]
    })?;
    apply_settings(api, &json!({"endpoints": {"from": "nodeInternalIP"}}))?;
    agent.until("the internal one by the ClusterSet", SOON, |status| {
        status.node.endpoints.iter().map(ToString::to_string).eq([own.clone()])
    })?;
    annotate(api, "s1", "podspan.io/endpoints=198.51.100.9")?;
    agent.until("the annotation wins", SOON, |status| {
        status.node.endpoints.iter().map(ToString::to_string).eq(["198.51.100.9"])
    })?;
    annotate(api, "s1", "podspan.io/endpoints-")?;

    // A Service in place of the Node's addresses.
    api.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: wg, namespace: podspan-system}, spec: {type: LoadBalancer, \
         ports: [{port: 51840, protocol: UDP}]}}",
    )?;
    apply_settings(api, &json!({"endpoints": {"service": {"namespace": "podspan-system", "name": "wg"}}}))?;
    agent.until("the Service has no address yet", SOON, |status| {
        status.problems.iter().any(|problem| problem.contains("no address yet"))
    })?;
    let patch = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.99"}]}}}).to_string();
    api.kubectl(&[
        "-n",
        "podspan-system",
        "patch",
        "service",
        "wg",
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ])?;
    let taken = agent.until("the Service's address", SOON, |status| {
        status.node.endpoints.iter().map(ToString::to_string).eq(["203.0.113.99"])
    })?;
    seconds("address of a LoadBalancer Service", taken);
    apply_settings(api, &json!({}))?;

    api.apply("{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: [10.97.0.0/20]}}")?;
    let taken = agent.until("the second ServiceCIDR", SOON, |status| {
        from(status, "10.97.0.0/20") == "ServiceCIDR more"
            && status.node.service_cidrs.iter().any(|cidr| cidr.to_string() == "10.97.0.0/20")
    })?;
    seconds("added ServiceCIDR", taken);
    apply_settings(api, &json!({"serviceCIDRs": ["10.96.64.0/20"], "mtu": 1333}))?;
    agent.until("the override of the service CIDRs, and the MTU", SOON, |status| {
        status.node.service_cidrs.to_string() == "10.96.64.0/20" && status.node.mtu == 1333
    })?;
    annotate(api, "s1", "podspan.io/pod-cidrs=10.61.77.0/24")?;
    let taken = agent.until("the pod CIDR by annotation", SOON, |status| {
        status.node.pod_cidrs.to_string() == "10.61.77.0/24"
    })?;
    seconds("pod CIDR annotation", taken);
    annotate(api, "s1", "podspan.io/pod-cidrs-")?;
    agent.until("the Node's own again", SOON, |status| status.node.pod_cidrs.len() == 2)?;
    api.kubectl(&["delete", "servicecidr", "more", "--wait=false"])?;
    // Without controllers its finalizer stays.
    let _ = api.kubectl(&[
        "patch",
        "servicecidr",
        "more",
        "--type=merge",
        "-p",
        "{\"metadata\":{\"finalizers\":null}}",
    ]);
    api.kubectl(&["-n", "podspan-system", "delete", "service", "wg"])?;
    joined.end(api)?;
    findings.conclude(2)
}

/// Objects that make no sense: each is named, at the object and in the status, and what worked goes on.
pub(super) fn malformed(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "malformed")?;
    apply_settings(api, &json!({}))?;
    let agent = joined.node(api, "m1", 1, true)?;
    let beta = joined.start_beta(api)?;
    let up =
        |status: &Status| status.clusters.iter().any(|c| c.state == podspan_wire::status::Reachability::Up);
    agent.until("the tunnel to beta", Duration::from_secs(30), up)?;
    let names = |part: &'static str| move |status: &Status| status.problems.iter().any(|p| p.contains(part));
    let told = |what: &'static str, reason: &'static str| {
        until(what, SOON, || {
            let events = events(api, "Node", "m1")?;
            Ok(if events.iter().any(|(r, _)| r == reason) { Ok(()) } else { Err(format!("{events:?}")) })
        })
    };
    annotate(api, "m1", "podspan.io/pod-cidrs=10.61.1.0/24,nonsense")?;
    agent.until("an annotation that is half nonsense", SOON, names("nonsense"))?;
    told("an Event about the annotation", "InvalidAnnotation")?;
    findings.expect("the sound half", "10.61.1.0/24".to_owned(), agent.status()?.node.pod_cidrs.to_string());
    annotate(api, "m1", "podspan.io/pod-cidrs=10.9.9.0/24")?;
    agent.until("pod CIDRs outside the grant", SOON, names("outside the grant"))?;
    told("an Event about the grant", "OutsideGrant")?;
    annotate(api, "m1", "podspan.io/pod-cidrs-")?;

    annotate(api, "m1", "podspan.io/endpoints=everywhere")?;
    agent.until("endpoints that are none", SOON, names("everywhere"))?;
    findings.require(agent.status()?.node.gateway, || "the Node's own address is still good".into());
    annotate(api, "m1", "podspan.io/endpoints-")?;

    set_addresses(api, "m1", &json!([{"type": "Hostname", "address": "m1"}]))?;
    agent.until("a Node without addresses", SOON, names("has no address"))?;
    told("an Event about the address", "NoAddress")?;
    findings
        .require(agent.status()?.node.gateway, || "a gateway that only lost its addresses stays one".into());
    set_addresses(api, "m1", &json!([{"type": "InternalIP", "address": agent.host.address.v4.to_string()}]))?;

    label(api, "m1", "podspan.io/gateway=perhaps")?;
    agent.until("a label without a meaning", SOON, names("neither \"true\" nor \"false\""))?;
    told("an Event about the label", "InvalidLabel")?;
    label(api, "m1", "podspan.io/gateway=true")?;

    apply_settings(api, &json!({"podCIDRs": ["10.61.0.0/18"]}))?;
    annotate(api, "m1", "podspan.io/pod-cidrs=10.61.200.0/24")?;
    agent.until("overrides that contradict each other", SOON, names("the annotation wins"))?;
    told("an Event about the overrides", "ConflictingOverrides")?;
    annotate(api, "m1", "podspan.io/pod-cidrs-")?;
    apply_settings(api, &json!({}))?;
    agent.until("all is well again", SOON, |status| {
        status.node.discovery.contradictions.is_empty() && status.node.gateway
    })?;

    // A definition without its schema, and an object that it would not have let in.
    let open = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]);
    api.kubectl(&["patch", "crd", "clustersets.podspan.io", "--type=json", "-p", &open.to_string()])?;
    until("the schema is gone", SOON, || {
        let hostile = json!({"podCIDRs": {"a": 1}, "serviceCIDRs": ["0.0.0.0/0", 7], "mtu": -5, "endpoints": "x",
            "cni": {"mode": ["append"]}});
        Ok(apply_settings(api, &hostile).map_err(|error| format!("{error:#}")))
    })?;
    agent.until("a hostile ClusterSet", SOON, |status| {
        ["podCIDRs", "serviceCIDRs[0]", "spec.mtu", "spec.endpoints", "spec.cni.mode"]
            .iter()
            .all(|part| status.problems.iter().any(|problem| problem.contains(part)))
    })?;
    let status = agent.status()?;
    findings.expect("its pods meanwhile", 2, status.node.pod_cidrs.len());
    findings.require(up(&status), || "the tunnel to beta does not stand".into());
    findings.require(agent.pings("10.62.1.0")?, || "nothing goes through the tunnel".into());
    until("the condition", Duration::from_secs(30), || {
        let [status, reason, message, _] =
            condition(&api.get_json(&["clusterset", "podspan"])?, "NoConflict");
        let good = status == "False" && reason == "InvalidSetting" && message.contains("spec.mtu");
        Ok(if good { Ok(()) } else { Err(format!("{status} {reason} {message}")) })
    })?;
    until("its Event", SOON, || {
        let events = events(api, "ClusterSet", "podspan")?;
        Ok(if events.iter().any(|(r, _)| r == "InvalidSetting") {
            Ok(())
        } else {
            Err(format!("{events:?}"))
        })
    })?;
    // Nothing can be applied over what the schema would not have let in.
    api.kubectl(&["delete", "clusterset", "podspan"])?;
    super::joined::apply_manifests(api)?;
    until("settings under the schema again", SOON, || {
        Ok(apply_settings(api, &json!({})).map_err(|error| format!("{error:#}")))
    })?;
    agent.until("all is well", SOON, |status| status.node.discovery.contradictions.is_empty())?;
    drop(beta);
    joined.end(api)?;
    findings.conclude(6)
}
