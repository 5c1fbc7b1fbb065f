//! Pods: the CNI configuration of a node, and what the chain's result says.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cni_runtime::{Attachment, NetworkConfig, Runtime};
use crate::state;
use crate::topology::{Dual, MTU, Node, Pod};

/// Where Debian's `containernetworking-plugins` puts its plugins.
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";

/// Which plugins make up the chain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    /// The configuration of podspan's plugin on a node, if it is part of the chain.
    pub(crate) podspan: Option<PodspanPlugin>,
}

/// podspan's plugin in the chain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodspanPlugin {
    /// The directory with the plugin's program, called `podspan`.
    pub(crate) directory: PathBuf,
}

impl Chain {
    /// The cluster's own plugins only.
    pub(crate) fn bare() -> Self {
        Self { podspan: None }
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.podspan.is_some() {
            "bridge + host-local, podspan"
        } else {
            "bridge + host-local"
        })
    }
}

/// A node's own directory in the lab's.
pub(crate) fn node_directory(node: &Node) -> PathBuf {
    Path::new("nodes").join(&node.name)
}

/// Writes the node's conflist and gives the runtime that uses it.
pub(super) fn runtime(node: &Node, chain: &Chain) -> Result<Runtime> {
    let directory = state::directory(node_directory(node).join("cni"))?;
    let text = serde_json::to_string_pretty(&conflist(node, chain, &directory))?;
    let file = state::directory(node_directory(node).join("cni/net.d"))?.join("10-lab.conflist");
    std::fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    let mut plugin_dirs = vec![PathBuf::from(DEBIAN_PLUGINS)];
    plugin_dirs.extend(chain.podspan.iter().map(|plugin| plugin.directory.clone()));
    Ok(Runtime {
        netns: node.netns(),
        plugin_dirs,
        cache: directory.join("cache"),
        config: NetworkConfig::parse(&text)?,
        timeout: Duration::from_secs(30),
    })
}

/// The chain as flannel delegates it: a bridge with a gateway address in both families. Debian's plugins
/// speak CNI up to 1.0.0, so that is what the chain speaks.
fn conflist(node: &Node, chain: &Chain, directory: &Path) -> Value {
    let mut plugins = vec![json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "isDefaultGateway": true,
        "hairpinMode": true,
        "mtu": MTU,
        "ipam": {
            "type": "host-local",
            "dataDir": directory.join("host-local"),
            "ranges": [[{"subnet": node.pod_cidr.v4}], [{"subnet": node.pod_cidr.v6}]],
        },
    })];
    if chain.podspan.is_some() {
        plugins.push(json!({"type": "podspan", "socket": socket(node)}));
    }
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
}

/// The unix socket of the node's agent.
pub(crate) fn socket(node: &Node) -> PathBuf {
    state::path(node_directory(node)).join("agent.sock")
}

/// The attachment of a pod's only interface.
pub(crate) fn attachment(pod: &Pod) -> Attachment {
    let args = [
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", "default".to_owned()),
        ("K8S_POD_NAME", pod.name.clone()),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.container_id()),
    ];
    Attachment {
        container_id: pod.container_id(),
        interface: "eth0".into(),
        netns: Some(pod.netns().path()),
        args: args.map(|(key, value)| (key.to_owned(), value)).into(),
    }
}

/// The pod's addresses in an ADD result: one of each family.
pub(super) fn addresses(result: &Value) -> Result<Dual<IpAddr>> {
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in result["ips"].as_array().context("it has no ips")? {
        let text = ip["address"].as_str().context("an entry of its ips has no address")?;
        let address = text.split('/').next().unwrap_or_default();
        found.push(address.parse().with_context(|| format!("{text:?} is no address"))?);
    }
    let one = |v4: bool| -> Result<IpAddr> {
        let mut of_family = found.iter().filter(|address| address.is_ipv4() == v4);
        match (of_family.next(), of_family.next()) {
            (Some(address), None) => Ok(*address),
            _ => bail!("it should have one address of each family: {found:?}"),
        }
    };
    Ok(Dual { v4: one(true)?, v6: one(false)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_must_have_one_address_of_each_family() {
        let both = json!({"ips": [{"address": "10.1.1.2/24"}, {"address": "fd00::2/64"}]});
        let found = addresses(&both).unwrap();
        assert_eq!((found.v4.to_string(), found.v6.to_string()), ("10.1.1.2".into(), "fd00::2".into()));
        assert!(addresses(&json!({"ips": [{"address": "10.1.1.2/24"}]})).is_err());
        assert!(addresses(&json!({})).is_err());
    }
}
