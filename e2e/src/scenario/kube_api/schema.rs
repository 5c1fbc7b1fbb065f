//! The schemas of podspan's types: what is wrong is refused at once, with words that help.

use anyhow::Result;
use serde_json::{Value, json};

use super::joined::{apply_manifests, condition};
use crate::kube::KubeApi;
use crate::scenario::Findings;

pub(super) fn schema(api: &mut KubeApi) -> Result<()> {
    apply_manifests(api)?;
    let mut findings = Findings::default();
    let many: Vec<String> = (0..65).map(|i| format!("10.{i}.0.0/16")).collect();
    let wrong: Vec<(Value, &str)> = vec![
        (json!({"podCIDRs": ["10.1.0.0"]}), "is not a CIDR"),
        (json!({"podCIDRs": ["10.1.0.0/33"]}), "is not a CIDR"),
        (json!({"podCIDRs": ["10.1.0.0/255.255.0.0"]}), "is not a CIDR"),
        (json!({"podCIDRs": ["ten"]}), "is not a CIDR"),
        (json!({"podCIDRs": ["10.1.0.1/16"]}), "has host bits set"),
        (json!({"serviceCIDRs": ["fd00::1/64"]}), "has host bits set"),
        (json!({"serviceCIDRs": ["10.1.0.0/16", ""]}), "is not a CIDR"),
        (json!({"podCIDRs": "10.1.0.0/16"}), "expected list"),
        (json!({"podCIDRs": many}), "at most 64 items"),
        (json!({"mtu": 1279}), "greater than or equal to 1280"),
        (json!({"mtu": 65456}), "less than or equal to 65455"),
        (json!({"mtu": "1400"}), "expected numeric"),
        (json!({"cni": {"mode": "force"}}), "supported values"),
        (json!({"endpoints": {"from": "somewhere"}}), "supported values"),
        (json!({"endpoints": {"service": {"name": "x"}}}), "namespace"),
    ];
    let object = |spec: &Value| {
        json!({"apiVersion": "podspan.io/v1alpha1", "kind": "ClusterSet", "metadata": {"name": "podspan"}, "spec": spec})
            .to_string()
    };
    for (spec, part) in &wrong {
        let run = api.kubectl_cmd(&["apply", "--server-side", "-f", "-"]).stdin(object(spec)).run()?;
        let said = run.stderr_text();
        findings.require(!run.status.success() && said.to_lowercase().contains(&part.to_lowercase()), || {
            format!("{spec}: {} should be refused with {part:?}: {said}", spec)
        });
    }
    let good = [
        json!({}),
        json!({"podCIDRs": ["10.1.0.0/16", "fd00:1::/48"], "serviceCIDRs": ["10.2.0.0/20"], "mtu": 1400,
            "endpoints": {"from": "nodeExternalIP", "service": {"namespace": "a", "name": "b"}}, "cni": {"mode": "dropIn"}}),
    ];
    for spec in good {
        let applied = api.apply(&object(&spec));
        findings.require(applied.is_ok(), || format!("{spec}: {applied:?}"));
    }
    // A status is no setting: an ordinary write does not change it.
    api.apply(
        "{apiVersion: podspan.io/v1alpha1, kind: PeerCluster, metadata: {name: x}, spec: {}, status: {state: Connected}}",
    )?;
    let stored = api.get_json(&["peercluster", "x"])?;
    findings.expect("the state that was not written as status", &Value::Null, &stored["status"]["state"]);
    let status = json!({"apiVersion": "podspan.io/v1alpha1", "kind": "PeerCluster", "metadata": {"name": "x"},
        "status": {"state": "Connected", "gateways": {"up": 2, "total": 2, "summary": "2/2", "list": []}, "rtt": "1.2ms",
            "pathMTU": 1420, "conditions": [{"type": "Ready", "status": "True", "reason": "AllGatewaysUp", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    api.kubectl_cmd(&["apply", "--server-side", "--subresource=status", "--force-conflicts", "-f", "-"])
        .stdin(status.to_string())
        .run_ok()?;
    let table = api.kubectl(&["get", "peerclusters"])?;
    let line: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_ascii_whitespace().collect();
    findings.expect(
        "the columns of kubectl get peerclusters",
        vec!["x", "Connected", "2/2", "1.2ms", "1420", "AllGatewaysUp"],
        line.get(..6).unwrap_or_default().to_vec(),
    );
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_ascii_whitespace().collect();
    findings.expect(
        "their names",
        vec!["NAME", "STATE", "GATEWAYS", "RTT", "LOSS", "MTU", "REASON", "AGE"],
        head,
    );
    let bad = json!({"apiVersion": "podspan.io/v1alpha1", "kind": "PeerCluster", "metadata": {"name": "x"},
        "status": {"state": "Splendid"}});
    let run = api
        .kubectl_cmd(&["apply", "--server-side", "--subresource=status", "--force-conflicts", "-f", "-"])
        .stdin(bad.to_string())
        .run()?;
    findings.require(!run.status.success(), || "a state that there is not was taken".into());
    findings.expect(
        "a condition that was stored",
        "AllGatewaysUp".to_owned(),
        condition(&api.get_json(&["peercluster", "x"])?, "Ready")[1].clone(),
    );
    api.kubectl(&["delete", "clustersets,peerclusters", "--all"])?;
    let again = api.kubectl(&["apply", "--server-side", "-k", super::joined::BASE])?;
    findings.require(again.lines().count() > 8, || format!("what was applied again: {again}"));
    findings.conclude(22)
}
