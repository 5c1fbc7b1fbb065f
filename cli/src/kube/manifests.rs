//! What belongs into a cluster: the manifests of this version, and what differs from cluster to cluster. Pure.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use podspan_wire::ClusterSetId;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{AGENT, BROKER, BUNDLE, NAMESPACE};

/// The files of `manifests/base`, in the order of its `kustomization.yaml`; a test compares.
const BASE: [(&str, &str); 6] = [
    ("namespace.yaml", include_str!("../../../manifests/base/namespace.yaml")),
    ("crds/clustersets.yaml", include_str!("../../../manifests/base/crds/clustersets.yaml")),
    ("crds/peerclusters.yaml", include_str!("../../../manifests/base/crds/peerclusters.yaml")),
    ("agent-rbac.yaml", include_str!("../../../manifests/base/agent-rbac.yaml")),
    ("agent-settings.yaml", include_str!("../../../manifests/base/agent-settings.yaml")),
    ("agent.yaml", include_str!("../../../manifests/base/agent.yaml")),
];
/// Those of `manifests/components/broker`.
const BROKER_FILES: [(&str, &str); 1] =
    [("broker.yaml", include_str!("../../../manifests/components/broker/broker.yaml"))];
/// The patch of `manifests/components/enter-pods`.
const ENTER_PODS: &str = include_str!("../../../manifests/components/enter-pods/agent.yaml");

/// The annotation of the agents' pods that tells when they were restarted for another bundle.
const RESTARTED: &str = "podspan.io/bundle-renewed-at";

/// The broker's TLS files.
pub(super) struct BrokerTls {
    /// The certificate chain, PEM.
    pub(super) certificate: String,
    /// The secret key, PEM.
    pub(super) key: Zeroizing<String>,
}

/// What differs from cluster to cluster.
pub(super) struct Settings<'a> {
    /// The bundle file's text.
    pub(super) bundle: &'a str,
    /// The cluster set.
    pub(super) cluster_set: ClusterSetId,
    /// The broker's TLS files, if it runs here.
    pub(super) broker: Option<&'a BrokerTls>,
}

/// The manifests of this version with another image, if one is named.
pub(super) fn program(broker: bool, image: Option<&str>) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    let broker_files: &[_] = if broker { &BROKER_FILES } else { &[] };
    for (name, text) in BASE.iter().chain(broker_files) {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).with_context(|| format!("the manifest {name}"))?;
        objects.extend(documents.into_iter().filter(|document| !document.is_null()));
    }
    if let Some(image) = image {
        for object in &mut objects {
            let containers = object.pointer_mut("/spec/template/spec/containers");
            for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
                container["image"] = image.into();
            }
        }
    }
    Ok(objects)
}

/// The objects of this very cluster, without the namespace they are in.
pub(super) fn settings(settings: &Settings<'_>) -> Vec<Value> {
    let labels = |component: &str| json!({ "app.kubernetes.io/name": "podspan", "app.kubernetes.io/component": component });
    let metadata = |name: &str, component: &str| json!({ "name": name, "namespace": NAMESPACE, "labels": labels(component) });
    let encode = |text: &str| STANDARD.encode(text);
    let mut objects = vec![json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(BUNDLE.0, "agent"),
        "type": "Opaque",
        "data": { BUNDLE.1: encode(settings.bundle) },
    })];
    if let Some(broker) = settings.broker {
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata("podspan-broker-tls", "broker"),
            "type": "kubernetes.io/tls",
            "data": { "tls.crt": encode(&broker.certificate), "tls.key": encode(&broker.key) },
        }));
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(BROKER, "broker"),
            "data": { "broker.toml": broker_settings(settings.cluster_set) },
        }));
    }
    objects
}

/// The object of the cluster's settings: all as podspan finds it.
pub(super) fn cluster_set() -> Value {
    json!({
        "apiVersion": "podspan.io/v1alpha1",
        "kind": "ClusterSet",
        "metadata": { "name": "podspan", "labels": { "app.kubernetes.io/name": "podspan" } },
        "spec": {},
    })
}

fn broker_settings(cluster_set: ClusterSetId) -> String {
    format!(
        "# Written by `podspan join --broker-here`.\n\
         listen = [\"[::]:7443\"]\n\
         health-listen = \"[::]:9841\"\n\
         cluster-set = \"{cluster_set}\"\n\
         certificate = \"/etc/podspan-tls/tls.crt\"\n\
         private-key = \"/etc/podspan-tls/tls.key\"\n\
         data = \"/var/lib/podspan-broker\"\n\
         lease-seconds = 30\n"
    )
}

/// Whether an object is the agents' DaemonSet.
pub(super) fn is_agent(object: &Value) -> bool {
    object["kind"] == "DaemonSet" && object["metadata"]["name"] == AGENT
}

/// Whether an object is there for a while after its deletion: until what is in it, or of it, is gone.
pub(super) fn is_lasting(object: &Value) -> bool {
    matches!(object["kind"].as_str(), Some("Namespace" | "CustomResourceDefinition"))
}

/// The image of an agents' DaemonSet.
pub(super) fn image(agent: &Value) -> Option<String> {
    Some(agent.pointer("/spec/template/spec/containers/0/image")?.as_str()?.to_owned())
}

/// When the agents of a DaemonSet were last restarted for another bundle.
pub(super) fn restarted(agent: &Value) -> Option<String> {
    Some(agent.pointer("/spec/template/metadata/annotations")?.get(RESTARTED)?.as_str()?.to_owned())
}

/// Has the agents restarted, by the DaemonSet's own rules, unless they were at that very time.
pub(super) fn set_restarted(objects: &mut [Value], when: Option<&str>) {
    let Some(when) = when else { return };
    for agent in objects.iter_mut().filter(|object| is_agent(object)) {
        agent["spec"]["template"]["metadata"]["annotations"][RESTARTED] = when.into();
    }
}

/// Lets the agents enter pods, as `manifests/components/enter-pods` does.
pub(super) fn enter_pods(objects: &mut [Value]) -> Result<()> {
    let patch: json_patch::Patch =
        serde_saphyr::from_str(ENTER_PODS).context("the patch that lets agents enter pods")?;
    for agent in objects.iter_mut().filter(|object| is_agent(object)) {
        json_patch::patch(agent, &patch).context("the patch that lets agents enter pods")?;
    }
    Ok(())
}

/// Whether the agents of a DaemonSet may enter pods.
pub(super) fn enters_pods(agent: &Value) -> bool {
    let capabilities = agent.pointer("/spec/template/spec/containers/0/securityContext/capabilities/add");
    capabilities.and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| one == "SYS_ADMIN"))
}

/// The objects as YAML documents, for kubectl.
pub(super) fn yaml(objects: &[Value]) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    for object in objects {
        if !text.is_empty() {
            text.push_str("---\n");
        }
        let document = Zeroizing::new(serde_saphyr::to_string(object).context("cannot print YAML")?);
        text.push_str(&document);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// The objects as one JSON List.
pub(super) fn list(objects: &[Value]) -> Result<Zeroizing<String>> {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    Ok(Zeroizing::new(serde_json::to_string_pretty(&list)? + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(objects: &[Value]) -> Vec<String> {
        let name = |o: &Value| {
            format!("{} {}", o["kind"].as_str().unwrap(), o["metadata"]["name"].as_str().unwrap())
        };
        objects.iter().map(name).collect()
    }

    /// What is built in is what kustomize would apply.
    #[test]
    fn nothing_of_the_kustomizations_is_forgotten() {
        let resources = |text: &str| -> Vec<String> {
            let value: Value = serde_saphyr::from_str(text).unwrap();
            assert!(value.get("patches").is_none(), "these patches are not built in");
            value["resources"]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| name.as_str().unwrap().to_owned())
                .collect()
        };
        let base = resources(include_str!("../../../manifests/base/kustomization.yaml"));
        assert_eq!(base, BASE.map(|(name, _)| name));
        let broker = resources(include_str!("../../../manifests/components/broker/kustomization.yaml"));
        assert_eq!(broker, BROKER_FILES.map(|(name, _)| name));
        for overlay in [
            include_str!("../../../manifests/overlays/broker-here/kustomization.yaml"),
            include_str!("../../../manifests/overlays/broker-elsewhere/kustomization.yaml"),
        ] {
            assert_eq!(resources(overlay), ["../../base"]);
        }
        let entering: Value = serde_saphyr::from_str(include_str!(
            "../../../manifests/components/enter-pods/kustomization.yaml"
        ))
        .unwrap();
        assert_eq!(
            (&entering["patches"], entering.get("resources")),
            (&json!([{ "path": "agent.yaml", "target": { "kind": "DaemonSet", "name": AGENT } }]), None)
        );
    }

    #[test]
    fn agents_enter_pods_only_where_that_is_asked_for() {
        let mut objects = program(true, None).unwrap();
        let agent = |objects: &[Value]| objects.iter().find(|object| is_agent(object)).unwrap().clone();
        let plain = objects.clone();
        assert!(!enters_pods(&agent(&objects)));
        enter_pods(&mut objects).unwrap();
        let changed = agent(&objects);
        assert!(enters_pods(&changed));
        let spec = &changed["spec"]["template"]["spec"];
        let names = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
        };
        let mounted = names(&spec["containers"][0]["volumeMounts"]);
        let volumes = names(&spec["volumes"]);
        for (name, mounts) in [("netns", 2), ("cni-results", 1)] {
            assert!(volumes.contains(&name.to_owned()));
            assert_eq!(mounted.iter().filter(|mount| *mount == name).count(), mounts, "{name}");
        }
        let others = |objects: &[Value]| -> Vec<Value> {
            objects.iter().filter(|object| !is_agent(object)).cloned().collect()
        };
        assert_eq!(others(&objects), others(&plain));
    }

    #[test]
    fn the_image_is_set_everywhere() {
        let objects = program(true, Some("registry.example.com/podspan:9")).unwrap();
        let all = names(&objects);
        assert!(
            all.contains(&"DaemonSet podspan-agent".to_owned())
                && all.contains(&"Deployment podspan-broker".to_owned())
        );
        let text = serde_json::to_string(&objects).unwrap();
        assert_eq!(text.matches("registry.example.com/podspan:9").count(), 2);
        assert!(!text.contains("podspan:0.1.0"));
        assert!(!names(&program(false, None).unwrap()).iter().any(|name| name.contains("broker")));
        assert!(
            serde_json::to_string(&program(false, None).unwrap())
                .unwrap()
                .contains(concat!("podspan:", env!("CARGO_PKG_VERSION")))
        );
    }

    #[test]
    fn a_restart_is_kept_until_the_next() {
        let mut objects = program(true, Some("podspan:9")).unwrap();
        let agent = |objects: &[Value]| objects.iter().find(|object| is_agent(object)).unwrap().clone();
        assert_eq!(
            (restarted(&agent(&objects)), image(&agent(&objects)).as_deref()),
            (None, Some("podspan:9"))
        );
        let plain = objects.clone();
        set_restarted(&mut objects, None);
        assert_eq!(objects, plain);
        set_restarted(&mut objects, Some("then"));
        assert_eq!(restarted(&agent(&objects)).as_deref(), Some("then"));
        assert_eq!(objects.iter().filter(|object| plain.contains(object)).count(), objects.len() - 1);
    }

    /// Every object is in podspan's namespace, or has a name of podspan's where it is not.
    #[test]
    fn all_of_it_can_be_told_for_podspans() {
        for object in program(true, None).unwrap() {
            let metadata = &object["metadata"];
            let name = metadata["name"].as_str().unwrap();
            assert!(name.starts_with("podspan") || name.ends_with("podspan.io"), "{name}");
        }
    }

    #[test]
    fn yaml_reads_back_as_it_was() {
        let id: ClusterSetId = ClusterSetId::new(podspan_wire::RootKey::generate().unwrap().public());
        let tls = BrokerTls { certificate: "c\n".into(), key: Zeroizing::new("k\n".into()) };
        let mut objects = program(true, None).unwrap();
        objects.extend(settings(&Settings { bundle: "{}\n", cluster_set: id, broker: Some(&tls) }));
        objects.push(cluster_set());
        let text = yaml(&objects).unwrap();
        let read: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        assert_eq!(read, objects);
        let read: Value = serde_json::from_str(&list(&objects).unwrap()).unwrap();
        assert_eq!(read["items"].as_array().unwrap(), &objects);
    }
}
