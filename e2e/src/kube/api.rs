//! An API server without a cluster: etcd and kube-apiserver in a namespace of their own, ready in seconds.
//! Enough for everything that only reads and writes objects: sources, schemas, status, permissions.
//!
//! There are no controllers: Nodes, ServiceAccounts' tokens, Endpoints are what a scenario makes them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podspan_wire::Cidr;
use serde_json::{Value, json};

use super::files;
use super::pki::Authority;
use super::plane::Plane;
use super::programs::KubePrograms;
use super::site::Site;
use super::{PREFIX, netns};
use crate::build::Programs;
use crate::command::Cmd;
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::screen::Screen;
use crate::topology::{Dual, nth};
use crate::world::{Leftovers, ip_batch};

/// The API server's network: it is .1, hosts that scenarios add follow.
const NETWORK: (&str, &str) = ("10.60.0.0/24", "fd00:10:60::/64");

/// The ClusterIPs.
const SERVICES: (&str, &str) = ("10.96.0.0/16", "fd00:10:96::/112");

/// An API server that this run of the lab has made.
#[derive(Debug)]
pub(crate) struct KubeApi {
    plane: Plane,
    podspan: Option<Programs>,
    authority: Authority,
    site: Site,
    network: Dual<Cidr>,
    hosts: Vec<KubeHost>,
}

/// A host beside the API server, in a namespace of its own: for an agent, say.
#[derive(Clone, Debug)]
pub(crate) struct KubeHost {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) address: Dual<IpAddr>,
}

impl KubeApi {
    /// Starts etcd and the API server and waits until it is ready.
    pub(crate) fn create(programs: &KubePrograms, podspan: Option<Programs>, screen: Screen) -> Result<Self> {
        let begin = Instant::now();
        let network = dual(NETWORK)?;
        let netns = netns("api");
        let mut site = Site::create(screen, false, std::slice::from_ref(&netns))?;
        let address = Dual { v4: nth(network.v4, 1), v6: nth(network.v6, 1) };
        let lines = [
            // A MAC address of its own: else the bridge takes the least of its ports', which changes when a host
            // is added, and hosts that are there already go on sending to the old one.
            "link add br0 address 02:00:00:00:00:01 up type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
                .to_owned(),
            format!("address add {}/{} dev br0", address.v4, network.v4.length()),
            format!("address add {}/{} dev br0", address.v6, network.v6.length()),
        ];
        ip_batch(&netns, &lines)?;
        let plane = Plane::new("api", &netns, address, dual(SERVICES)?, programs);
        let authority = plane.certify()?;
        plane.start_etcd(&mut site)?;
        plane.start_api(&mut site)?;
        let api = Self { plane, podspan, authority, site, network, hosts: Vec::new() };
        api.wait_until_ready()?;
        screen.line(&format!("an API server is ready after {:.1} s", begin.elapsed().as_secs_f64()));
        Ok(api)
    }

    /// podspan's programs.
    pub(crate) fn podspan(&self) -> Result<&Programs> {
        self.podspan.as_ref().context("podspan was not built for this run")
    }

    /// The API server's namespace. It can be reached there, and from every host, at [`Self::server`].
    pub(crate) fn netns(&self) -> &Netns {
        &self.plane.netns
    }

    /// The API server's URL.
    pub(crate) fn server(&self) -> String {
        self.plane.server()
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.plane.kubeconfig()
    }

    /// The range of the ClusterIPs, as the ServiceCIDR `kubernetes` has it.
    pub(crate) fn services(&self) -> Dual<Cidr> {
        self.plane.services
    }

    /// A directory for a scenario's own files; it goes with the world.
    pub(crate) fn directory(&self, below: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.plane.path("work").join(below);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Runs kubectl as the administrator and gives its standard output; a failure is an error.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.plane.kubectl_cmd(args).text()
    }

    /// The same, not run yet: for what should fail, or needs another kubeconfig (a later flag wins).
    pub(crate) fn kubectl_cmd(&self, args: &[&str]) -> Cmd {
        self.plane.kubectl_cmd(args)
    }

    /// Applies objects, YAML or JSON, server-side.
    pub(crate) fn apply(&self, objects: &str) -> Result<String> {
        self.plane
            .kubectl_cmd(&["apply", "--server-side", "--force-conflicts", "-f", "-"])
            .stdin(objects)
            .text()
    }

    /// `kubectl get ARGS -o json`.
    pub(crate) fn get_json(&self, args: &[&str]) -> Result<Value> {
        let all: Vec<&str> = ["get"].iter().chain(args).copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.kubectl(&all)?).context("kubectl's answer")
    }

    /// A kubeconfig for a service account that is there, with a token that holds for an hour.
    pub(crate) fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["-n", namespace, "create", "token", name, "--duration=1h"])?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "api",
            "clusters": [{"name": "api", "cluster": {
                "server": self.server(), "certificate-authority": self.authority.path("ca.crt"),
            }}],
            "users": [{"name": name, "user": {"token": token.trim()}}],
            "contexts": [{"name": "api", "context": {"cluster": "api", "user": name}}],
        });
        let path = self.authority.path(&format!("sa-{namespace}-{name}.kubeconfig"));
        files::write_secret(&path, &serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }

    /// A token for a service account that is there, which holds for as long as the Secret `bound` in its namespace is
    /// there, or an hour.
    pub(crate) fn bound_token(&self, namespace: &str, name: &str, bound: &str) -> Result<String> {
        self.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": bound, "namespace": namespace}}).to_string())?;
        let kind = ["--bound-object-kind=Secret", "--bound-object-name", bound];
        let args: Vec<&str> = ["-n", namespace, "create", "token", name].into_iter().chain(kind).collect();
        Ok(self.kubectl(&args)?.trim().to_owned())
    }

    /// Ends the API server as a crash would; etcd keeps what was stored.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.plane.stop_api(&mut self.site)
    }

    /// Starts the API server again and waits until it is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.plane.start_api(&mut self.site)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> Result<()> {
        self.plane.wait_until_ready(&self.site)
    }

    /// A host of that name (at most ten letters) in the API server's network, made at its first use.
    pub(crate) fn host(&mut self, name: &str) -> Result<KubeHost> {
        if let Some(host) = self.hosts.iter().find(|host| host.name == name) {
            return Ok(host.clone());
        }
        let number = 10 + u16::try_from(self.hosts.len())?;
        let address = Dual { v4: nth(self.network.v4, number), v6: nth(self.network.v6, number) };
        let netns = Netns::named(format!("{PREFIX}api-{name}"));
        self.site.add_netns(&netns)?;
        let port = format!("port-{name}");
        ip_batch(
            self.netns(),
            &[
                format!("link add {port} type veth peer name eth0 netns {netns}"),
                format!("link set {port} master br0 up"),
            ],
        )?;
        let mut lines = vec!["link set eth0 up".to_owned()];
        for ((address, cidr), via) in
            address.both().into_iter().zip(self.network.both()).zip(self.plane.address.both())
        {
            lines.push(format!("address add {address}/{} dev eth0", cidr.length()));
            lines.push(format!("route add default via {via}"));
        }
        ip_batch(&netns, &lines)?;
        let host = KubeHost { name: name.to_owned(), netns, address };
        self.hosts.push(host.clone());
        Ok(host)
    }

    /// Starts a process that lives on until it is ended; its output goes to a log named after it.
    pub(crate) fn start_daemon(&mut self, name: &str, cmd: &Cmd) -> Result<ProcessId> {
        self.site.start(name, cmd)
    }

    /// Ends such a process: asks it, and uses force after `grace`.
    pub(crate) fn end_daemon(&mut self, name: &str, grace: Duration) -> Result<()> {
        self.site.end(name, Some(grace))
    }

    pub(crate) fn diagnosis(&self) -> String {
        self.site.diagnosis()
    }

    pub(crate) fn stay(mut self) -> Result<()> {
        self.site.stay()
    }

    pub(crate) fn down(mut self) -> Result<Leftovers> {
        self.site.take_down()
    }
}

fn dual(text: (&str, &str)) -> Result<Dual<Cidr>> {
    Ok(Dual { v4: text.0.parse()?, v6: text.1.parse()? })
}
