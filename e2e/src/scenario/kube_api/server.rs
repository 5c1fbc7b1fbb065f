//! The place itself: that it is a real API server, with real permissions, and that it can be taken away.

use std::time::Instant;

use anyhow::Result;

use crate::kube::KubeApi;
use crate::scenario::Findings;

pub(super) fn server(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let services = api.get_json(&["servicecidrs", "kubernetes"])?;
    let own = api.services();
    findings.expect(
        "the ranges of the ServiceCIDR",
        format!("[\"{}\",\"{}\"]", own.v4, own.v6),
        services["spec"]["cidrs"].to_string(),
    );
    api.apply(
        "{apiVersion: v1, kind: Node, metadata: {name: kept}, spec: {podCIDRs: [10.60.1.0/24, \"fd00:10:60:1::/64\"]}}",
    )?;
    api.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: nobody, namespace: default}}")?;
    let nobody = api.kubeconfig_for_service_account("default", "nobody")?;
    let host = api.host("visitor")?;
    let refused = api
        .kubectl_cmd(&["get", "nodes"])
        .arg(format!("--kubeconfig={}", nobody.display()))
        .within(&host.netns)
        .run()?;
    findings.require(refused.stderr_text().contains("Forbidden"), || {
        format!("a service account without a role: {}", refused.stderr_text())
    });
    let begin = Instant::now();
    api.stop()?;
    findings
        .require(api.kubectl(&["get", "nodes"]).is_err(), || "the API server answers after its end".into());
    api.start()?;
    let seconds = begin.elapsed().as_secs_f64();
    findings.require(seconds < 30.0, || format!("the API server was away for {seconds:.1} s"));
    let node = api.get_json(&["node", "kept"])?;
    findings.expect("the node's first pod CIDR", Some("10.60.1.0/24"), node["spec"]["podCIDRs"][0].as_str());
    findings.conclude(5)
}
