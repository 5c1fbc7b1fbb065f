//! `podspan join`, as far as it asks no cluster, and what `join`, `leave` and `upgrade` say where there is none.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use podspan_wire::Bundle;
use serde_json::Value;
use support::Bench;

const ALPHA: &str = "cluster grant alpha --dir prod --pod-cidr 10.1.0.0/16";
const PRINT: &str = "join --bundle alpha.bundle --dry-run";

fn objects(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

#[test]
fn prints_all_that_a_cluster_needs() {
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    let begin = Instant::now();
    let all = objects(&bench.ok(&format!("{PRINT} --broker-here --broker-tls prod/broker -o yaml")));
    assert!(begin.elapsed().as_secs() < 2, "quick to start");
    let secret = |name: &str, key: &str| {
        let object = find(&all, "Secret", name).unwrap();
        assert_eq!(object["metadata"]["namespace"], "podspan-system");
        String::from_utf8(STANDARD.decode(object["data"][key].as_str().unwrap()).unwrap()).unwrap()
    };
    assert_eq!(secret("podspan-bundle", "bundle"), bench.read("alpha.bundle"));
    assert_eq!(secret("podspan-broker-tls", "tls.crt"), bench.read("prod/broker/broker.crt"));
    assert_eq!(secret("podspan-broker-tls", "tls.key"), bench.read("prod/broker/broker.key"));
    let (bundle, _) = Bundle::parse(&bench.read("alpha.bundle")).unwrap();
    let broker = find(&all, "ConfigMap", "podspan-broker").unwrap()["data"]["broker.toml"].as_str().unwrap();
    let broker: toml::Table = broker.parse().unwrap();
    assert_eq!(broker["cluster-set"].as_str().unwrap(), bundle.cluster_set.to_string());
    for (kind, name) in [
        ("Namespace", "podspan-system"),
        ("DaemonSet", "podspan-agent"),
        ("Deployment", "podspan-broker"),
        ("Service", "podspan-broker"),
        ("PodDisruptionBudget", "podspan-broker"),
        ("ClusterSet", "podspan"),
        ("CustomResourceDefinition", "peerclusters.podspan.io"),
    ] {
        assert!(find(&all, kind, name).is_some(), "{kind} {name}");
    }
    // What is mounted comes before who mounts it, and what has a namespace after the namespace.
    let place = |kind: &str| all.iter().position(|object| object["kind"] == kind).unwrap();
    assert!(place("Namespace") < place("Secret") && place("Secret") < place("DaemonSet"));

    let without = objects(&bench.ok(PRINT));
    assert!(find(&without, "Deployment", "podspan-broker").is_none());
    assert!(find(&without, "Secret", "podspan-broker-tls").is_none());
    let json: Value = serde_json::from_str(&bench.ok(&format!("{PRINT} -o json"))).unwrap();
    assert_eq!(json["items"].as_array().unwrap(), &without);

    let settings = objects(&bench.ok(&format!("{PRINT} --settings-only")));
    let kinds: Vec<&str> = settings.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Namespace", "Secret", "ClusterSet"]);

    let other = bench.ok(&format!("{PRINT} --image registry.example.com/podspan:9"));
    assert!(other.contains("registry.example.com/podspan:9") && !other.contains("image: podspan:"));
}

#[test]
fn all_that_is_wrong_is_told_before_a_cluster_is_asked() {
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    fs::create_dir(bench.path("empty")).unwrap();
    fs::write(bench.path("x.bundle"), "{}").unwrap();
    fs::set_permissions(bench.path("x.bundle"), Permissions::from_mode(0o600)).unwrap();
    let error = bench.fails("join --bundle x.bundle --broker-here --broker-tls empty --kubeconfig none");
    assert!(error.contains("x.bundle: this is not a bundle file"), "{error}");
    assert!(error.contains("empty/broker.crt"), "{error}");
    fs::set_permissions(bench.path("alpha.bundle"), Permissions::from_mode(0o644)).unwrap();
    let error = bench.fails(PRINT);
    assert!(error.contains("chmod 600 alpha.bundle"), "{error}");
    for words in
        ["join", "join --bundle a --broker-here", "join --bundle a --broker-tls b", "join --bundle a -o yaml"]
    {
        assert_eq!(bench.run(words).code, 2, "{words}");
    }
}

#[test]
fn no_cluster_is_an_error_that_names_it() {
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    let config = "apiVersion: v1\nkind: Config\ncurrent-context: one\n\
        clusters: [{name: c, cluster: {server: \"https://127.0.0.1:9\", insecure-skip-tls-verify: true}}]\n\
        users: [{name: u, user: {token: x}}]\n\
        contexts: [{name: one, context: {cluster: c, user: u}}, {name: two, context: {cluster: c, user: u}}]\n";
    fs::write(bench.path("config"), config).unwrap();
    for command in ["join --bundle alpha.bundle", "leave", "upgrade --image x"] {
        let error = bench.fails(&format!("{command} --kubeconfig nowhere"));
        assert!(error.contains("nowhere"), "{error}");
        let error = bench.fails(&format!("{command} --kubeconfig config --context three"));
        assert!(error.contains("no context \"three\"; it has one, two"), "{error}");
        let error = bench.fails(&format!("{command} --kubeconfig config"));
        assert!(
            error.contains("https://127.0.0.1:9/ cannot be asked") && error.contains("refused"),
            "{error}"
        );
    }
}
