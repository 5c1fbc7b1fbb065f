//! A container runtime as section 3 of the specification describes one: reads a conflist, derives each
//! plugin's configuration, executes the chain, keeps results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::namespace::Namespace;
use crate::plugin::{Output, binary, execute};

/// Where Debian's package `containernetworking-plugins` puts its plugins.
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";

pub struct Runtime {
    conflist: Value,
    node: Namespace,
    /// Results by container and interface: the runtime must keep them for CHECK and DEL.
    cache: BTreeMap<(String, String), Value>,
}

/// The attachment parameters.
#[derive(Clone)]
pub struct Parameters {
    pub container_id: String,
    pub netns: String,
    pub ifname: String,
}

impl Runtime {
    pub fn new(conflist: Value) -> Self {
        assert!(
            Path::new(DEBIAN_PLUGINS).join("bridge").exists(),
            "these tests need Debian's plugins: apt-get install containernetworking-plugins"
        );
        Self { conflist, node: Namespace::new("node"), cache: BTreeMap::new() }
    }

    pub fn parameters(pod: &Namespace) -> Parameters {
        Parameters {
            container_id: pod.name.clone(),
            netns: pod.path().display().to_string(),
            ifname: "eth0".into(),
        }
    }

    fn plugins(&self) -> Vec<Value> {
        self.conflist["plugins"].as_array().unwrap().clone()
    }

    /// Section 3, "Deriving execution configuration from plugin configuration".
    fn derive(&self, plugin: &Value, inject: &[(&str, &Value)]) -> Value {
        let mut config = plugin.clone();
        let object = config.as_object_mut().unwrap();
        object.remove("capabilities");
        for key in ["cniVersion", "name"] {
            object.insert(key.into(), self.conflist[key].clone());
        }
        for (key, value) in inject {
            object.insert((*key).into(), (*value).clone());
        }
        config
    }

    fn execute(&self, command: &str, parameters: Option<&Parameters>, config: &Value) -> Output {
        let kind = config["type"].as_str().unwrap();
        let binary: PathBuf =
            if kind == "podspan" { binary().into() } else { Path::new(DEBIAN_PLUGINS).join(kind) };
        let mut environment = vec![("CNI_COMMAND", command), ("CNI_PATH", DEBIAN_PLUGINS)];
        if let Some(parameters) = parameters {
            environment.push(("CNI_CONTAINERID", &parameters.container_id));
            environment.push(("CNI_IFNAME", &parameters.ifname));
            if !parameters.netns.is_empty() {
                environment.push(("CNI_NETNS", &parameters.netns));
            }
            environment.push(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=p"));
        }
        // The runtime runs on the node.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.node.path().display())).arg(binary);
        execute(&mut command, &environment, config.to_string().as_bytes())
    }

    /// Section 3, "Adding an attachment". Gives back the result of each plugin of the chain.
    pub fn add(&mut self, parameters: &Parameters) -> Result<Vec<Value>, Value> {
        let mut results: Vec<Value> = Vec::new();
        for plugin in self.plugins() {
            let inject: Vec<_> = results.last().map(|last| ("prevResult", last)).into_iter().collect();
            let output = self.execute("ADD", Some(parameters), &self.derive(&plugin, &inject));
            if !output.success {
                return Err(output.error());
            }
            results.push(serde_json::from_str(&output.stdout).unwrap());
        }
        let key = (parameters.container_id.clone(), parameters.ifname.clone());
        self.cache.insert(key, results.last().unwrap().clone());
        Ok(results)
    }

    /// Loses an attachment, as a runtime does whose state was wiped.
    pub fn forget(&mut self, parameters: &Parameters) {
        self.cache.remove(&(parameters.container_id.clone(), parameters.ifname.clone()));
    }

    fn cached(&self, parameters: &Parameters) -> Option<&Value> {
        self.cache.get(&(parameters.container_id.clone(), parameters.ifname.clone()))
    }

    /// Section 3, "Deleting an attachment": in reverse, with the final result if there is one.
    pub fn del(&mut self, parameters: &Parameters) -> Result<(), Value> {
        for plugin in self.plugins().iter().rev() {
            let inject: Vec<_> =
                self.cached(parameters).map(|last| ("prevResult", last)).into_iter().collect();
            let output = self.execute("DEL", Some(parameters), &self.derive(plugin, &inject));
            if !output.success {
                return Err(output.error());
            }
            assert!(output.stdout.is_empty(), "DEL prints nothing: {output:?}");
        }
        self.forget(parameters);
        Ok(())
    }

    /// Section 3, "Checking an attachment".
    pub fn check(&self, parameters: &Parameters) -> Result<(), Value> {
        let result = self.cached(parameters).expect("CHECK only after ADD");
        for plugin in self.plugins() {
            let output =
                self.execute("CHECK", Some(parameters), &self.derive(&plugin, &[("prevResult", result)]));
            if !output.success {
                return Err(output.error());
            }
            assert!(output.stdout.is_empty(), "CHECK prints nothing: {output:?}");
        }
        Ok(())
    }

    /// Section 3, "Garbage-collecting a network": whatever is in the cache is valid. Only podspan of the
    /// chain speaks 1.1.0 here, so only it is called.
    pub fn gc(&self) -> Output {
        let valid: Vec<Value> = self
            .cache
            .keys()
            .map(|(container, interface)| json!({"containerID": container, "ifname": interface}))
            .collect();
        let plugin = self.plugins().pop().unwrap();
        let mut config = self.derive(&plugin, &[("cni.dev/valid-attachments", &valid.into())]);
        config["cniVersion"] = "1.1.0".into();
        self.execute("GC", None, &config)
    }
}
