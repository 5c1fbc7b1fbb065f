//! Section 3: execution of network configurations, behind Debian's real `bridge` and `host-local`.

use std::path::Path;

use serde_json::{Value, json};

use crate::fake_agent::{FakeAgent, SOME_ROUTES};
use crate::namespace::Namespace;
use crate::runtime::Runtime;

/// The newest version that Debian 12's plugins speak is 1.0.0; 1.1.0 is driven with results made by hand in
/// the tests of section 2.
const VERSIONS: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];

fn conflist(version: &str, socket: &Path, state: &Path, policy: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "dataDir": state,
                    "ranges": [[{"subnet": "10.1.1.0/24"}], [{"subnet": "fd00:1::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
                }
            },
            {"type": "podspan", "socket": socket, "onFailure": policy}
        ]
    })
}

#[test]
fn add_check_del_behind_bridge_and_host_local_in_every_version() {
    for version in VERSIONS {
        let (agent, state, pod) = (FakeAgent::serving(), tempfile::tempdir().unwrap(), Namespace::new("pod"));
        let mut runtime = Runtime::new(conflist(version, &agent.socket(), state.path(), "closed"));
        let parameters = Runtime::parameters(&pod);
        let results = runtime.add(&parameters).unwrap();
        assert_eq!(results[0], results[1], "{version}: prevResult is passed through");
        assert_eq!(results[1]["cniVersion"], version);
        assert_eq!(pod.podspan_routes(), SOME_ROUTES, "{version}");
        if version >= "0.4.0" {
            runtime.check(&parameters).unwrap();
            pod.ip(&["route", "del", "10.2.0.0/16"]);
            assert_eq!(runtime.check(&parameters).unwrap_err()["code"], 101);
        }
        runtime.del(&parameters).unwrap();
        runtime.del(&parameters).unwrap();
        assert_eq!(agent.known(), 0);
        assert_eq!(addresses(state.path()), 0, "host-local has nothing left");
    }
}

/// How many addresses host-local holds.
fn addresses(state: &Path) -> usize {
    std::fs::read_dir(state.join("pods"))
        .unwrap()
        .filter(|entry| {
            entry.as_ref().unwrap().file_name().to_str().unwrap().parse::<std::net::IpAddr>().is_ok()
        })
        .count()
}

#[test]
fn del_of_a_pod_whose_namespace_vanished_frees_everything() {
    let (agent, state, pod) = (FakeAgent::serving(), tempfile::tempdir().unwrap(), Namespace::new("pod"));
    let mut runtime = Runtime::new(conflist("1.0.0", &agent.socket(), state.path(), "closed"));
    let mut parameters = Runtime::parameters(&pod);
    runtime.add(&parameters).unwrap();
    drop(pod);
    parameters.netns.clear();
    runtime.del(&parameters).unwrap();
    assert_eq!((agent.known(), addresses(state.path())), (0, 0));
}

#[test]
fn a_failed_add_is_followed_by_del_and_leaves_nothing() {
    let (state, pod) = (tempfile::tempdir().unwrap(), Namespace::new("pod"));
    let socket = state.path().join("agent.sock");
    let mut runtime = Runtime::new(conflist("1.0.0", &socket, state.path(), "closed"));
    let parameters = Runtime::parameters(&pod);
    let error = runtime.add(&parameters).unwrap_err();
    assert_eq!(error["code"], 11, "{error}");
    runtime.del(&parameters).unwrap();
    assert_eq!(addresses(state.path()), 0);
}

#[test]
fn gc_forgets_pods_whose_del_was_lost() {
    let (agent, state) = (FakeAgent::serving(), tempfile::tempdir().unwrap());
    let mut runtime = Runtime::new(conflist("1.0.0", &agent.socket(), state.path(), "open"));
    let pods: Vec<Namespace> = (0..3).map(|_| Namespace::new("pod")).collect();
    for pod in &pods {
        runtime.add(&Runtime::parameters(pod)).unwrap();
    }
    runtime.gc().succeeded_silently();
    assert_eq!(agent.known(), 3, "all are valid");
    for pod in &pods[..2] {
        let parameters = Runtime::parameters(pod);
        // The runtime forgot them, and podspan's DEL never came.
        runtime.forget(&parameters);
    }
    runtime.gc().succeeded_silently();
    assert_eq!(agent.known(), 1);
}
