//! Network namespaces of the tests' own.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a command and returns what it printed; a failure fails the test.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}): these tests need iproute2 and root")
    });
    assert!(
        output.status.success(),
        "{program} {args:?}: {} (these tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace that goes with its value.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Self {
        let name = format!("psp-cni-{role}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub fn ip(&self, args: &[&str]) -> String {
        run("ip", &[&["-n", &self.name], args].concat())
    }

    fn routes_of(&self, family: &str, selector: &[&str]) -> Vec<Value> {
        let text = self.ip(&[&["-j", family, "route", "show"], selector].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// podspan's routes, as `CIDR [via GATEWAY] dev DEV [mtu MTU]`, sorted.
    pub fn podspan_routes(&self) -> Vec<String> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            for route in self.routes_of(family, &["proto", "112"]) {
                let mut text = route["dst"].as_str().unwrap().to_owned();
                if let Some(gateway) = route["gateway"].as_str() {
                    text.push_str(&format!(" via {gateway}"));
                }
                text.push_str(&format!(" dev {}", route["dev"].as_str().unwrap()));
                if let Some(mtu) = route["metrics"][0]["mtu"].as_u64() {
                    text.push_str(&format!(" mtu {mtu}"));
                }
                routes.push(text);
            }
        }
        routes.sort();
        routes
    }

    /// All routes of both families but podspan's, as `ip` prints them.
    pub fn other_routes(&self) -> Vec<String> {
        ["-4", "-6"]
            .iter()
            .flat_map(|family| {
                self.ip(&[family, "route", "show", "table", "all"])
                    .lines()
                    .filter(|line| !line.contains("proto 112"))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A pod as a CNI plugin would have left it: `eth0` with an address and default route of each family.
pub struct Pod {
    pub namespace: Namespace,
    _node: Namespace,
}

impl Pod {
    pub fn new() -> Self {
        let (node, namespace) = (Namespace::new("node"), Namespace::new("pod"));
        node.ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", &namespace.name]);
        node.ip(&["addr", "add", "10.1.1.1/24", "dev", "veth0"]);
        node.ip(&["addr", "add", "fd00:1::1/64", "dev", "veth0", "nodad"]);
        node.ip(&["link", "set", "veth0", "up"]);
        namespace.ip(&["addr", "add", "10.1.1.2/24", "dev", "eth0"]);
        namespace.ip(&["addr", "add", "fd00:1::2/64", "dev", "eth0", "nodad"]);
        namespace.ip(&["link", "set", "eth0", "up"]);
        namespace.ip(&["route", "add", "default", "via", "10.1.1.1"]);
        namespace.ip(&["-6", "route", "add", "default", "via", "fd00:1::1"]);
        Self { namespace, _node: node }
    }

    /// The result that a plugin of this version of the spec would have returned for the pod, with fields
    /// that nobody knows and numbers that a float cannot hold.
    pub fn result(&self, version: &str) -> String {
        let (v4, v6) =
            if version.starts_with('0') { (r#""version":"4","#, r#""version":"6","#) } else { ("", "") };
        format!(
            r#"{{"cniVersion":"{version}", "interfaces":[{{"name":"veth0","mac":"00:11:22:33:44:55"}},{{"name":"eth0","mac":"00:11:22:33:44:66","sandbox":"{}","mtu":1500}}],"ips":[{{{v4}"interface":1,"address":"10.1.1.2/24","gateway":"10.1.1.1"}},{{{v6}"interface":1,"address":"fd00:1::2/64","gateway":"fd00:1::1"}}],"routes":[{{"dst":"0.0.0.0/0","mtu":1500}}],"dns":{{"nameservers":["10.1.0.1"]}},"example.net/unknown":{{"n":12345678901234567890123,"f":0.10000000000000000001, "list":[ 1,2 ]}}}}"#,
            self.namespace.path().display()
        )
    }
}
