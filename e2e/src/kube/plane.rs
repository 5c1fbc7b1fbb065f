//! One cluster's etcd and API server: started, stopped, and spoken to through kubectl.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_wire::Cidr;

use super::pki::Authority;
use super::programs::KubePrograms;
use super::site::Site;
use crate::command::Cmd;
use crate::netns::Netns;
use crate::signals;
use crate::state;
use crate::topology::Dual;

/// The API server's port.
pub(crate) const API_PORT: u16 = 6443;

/// How long an API server may take until it is ready.
const READY: Duration = Duration::from_secs(90);

/// The control plane of a cluster as far as the API goes.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) cluster: String,
    pub(crate) netns: Netns,
    /// The address that the API server advertises, and the other family's.
    pub(crate) address: Dual<IpAddr>,
    pub(crate) services: Dual<Cidr>,
    pub(crate) programs: KubePrograms,
    /// Certificates, kubeconfigs, etcd's data.
    directory: PathBuf,
}

impl Plane {
    /// `directory` is relative to the lab's.
    pub(crate) fn new(
        cluster: &str,
        netns: &Netns,
        address: Dual<IpAddr>,
        services: Dual<Cidr>,
        programs: &KubePrograms,
    ) -> Self {
        Self {
            cluster: cluster.to_owned(),
            netns: netns.clone(),
            address,
            services,
            programs: programs.clone(),
            directory: state::path("kube").join(cluster),
        }
    }

    /// A file or directory of this control plane.
    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.directory.join(below)
    }

    /// The URL by which everybody reaches the API server.
    pub(crate) fn server(&self) -> String {
        format!("https://{}:{API_PORT}", self.address.v4)
    }

    /// Makes the certificates, and the kubeconfig of the administrator.
    pub(crate) fn certify(&self) -> Result<Authority> {
        let authority = Authority::create(&self.cluster, &self.path("pki"))?;
        let local: [IpAddr; 2] = [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        // The first address of each range is the service `kubernetes`.
        let service = self.services.both().map(|cidr| crate::topology::nth(cidr, 1));
        let addresses: Vec<IpAddr> = self.address.both().into_iter().chain(local).chain(service).collect();
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        authority.server("apiserver", &names, &addresses)?;
        authority.service_account_keys()?;
        let kubelet_client = authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
        authority.write("apiserver-kubelet-client", &kubelet_client)?;
        authority.kubeconfig(
            "admin",
            &self.cluster,
            &self.server(),
            "kubernetes-admin",
            &["system:masters"],
        )?;
        Ok(authority)
    }

    fn daemon_name(&self, program: &str) -> String {
        format!("{program} {}", self.cluster)
    }

    /// Starts etcd. It listens on the namespace's loopback only.
    pub(crate) fn start_etcd(&self, site: &mut Site) -> Result<()> {
        let data = self.path("etcd");
        std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
        let cmd = Cmd::new("etcd")
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .within(&self.netns);
        site.start(&self.daemon_name("etcd"), &cmd)?;
        Ok(())
    }

    /// Starts the API server, without waiting for it.
    pub(crate) fn start_api(&self, site: &mut Site) -> Result<()> {
        let pki = |file: &str| self.path("pki").join(file).display().to_string();
        let services = format!("{},{}", self.services.v4, self.services.v6);
        let flags = [
            ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
            ("advertise-address", self.address.v4.to_string()),
            ("bind-address", "::".to_owned()),
            ("secure-port", API_PORT.to_string()),
            ("tls-cert-file", pki("apiserver.crt")),
            ("tls-private-key-file", pki("apiserver.key")),
            ("client-ca-file", pki("ca.crt")),
            ("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
            ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
            // Nodes have no names in any DNS.
            ("kubelet-preferred-address-types", "InternalIP".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
            ("service-account-key-file", pki("sa.pub")),
            ("service-account-signing-key-file", pki("sa.key")),
            ("service-cluster-ip-range", services),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("enable-admission-plugins", "NodeRestriction".to_owned()),
            ("allow-privileged", "true".to_owned()),
            // Nobody has such a certificate; without these the controllers' logs are full of complaints.
            ("requestheader-client-ca-file", pki("ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client".to_owned()),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
            ("requestheader-group-headers", "X-Remote-Group".to_owned()),
            ("requestheader-username-headers", "X-Remote-User".to_owned()),
        ];
        let flags = flags.map(|(name, value)| format!("--{name}={value}"));
        let cmd = Cmd::new(self.programs.path("kube-apiserver")).args(flags).within(&self.netns);
        site.start(&self.daemon_name("kube-apiserver"), &cmd)?;
        Ok(())
    }

    /// Stops the API server; etcd runs on.
    pub(crate) fn stop_api(&self, site: &mut Site) -> Result<()> {
        site.end(&self.daemon_name("kube-apiserver"), None)
    }

    /// Waits until the API server says that it is ready, its built-in roles included.
    pub(crate) fn wait_until_ready(&self, site: &Site) -> Result<()> {
        let name = self.daemon_name("kube-apiserver");
        let end = Instant::now() + READY;
        loop {
            let answer = self.kubectl_cmd(&["get", "--raw", "/readyz"]).timeout(Duration::from_secs(5)).run();
            signals::check()?;
            if answer.is_ok_and(|answer| answer.status.success()) {
                return Ok(());
            }
            if !site.record.daemon(&name)?.is_alive() {
                bail!("{name} has ended; its log ends:\n{}", Site::log_tail(&name, 15));
            }
            if Instant::now() > end {
                bail!(
                    "{name} is not ready after {} s; its log ends:\n{}",
                    READY.as_secs(),
                    Site::log_tail(&name, 15)
                );
            }
            signals::sleep(Duration::from_millis(200))?;
        }
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("pki/admin.kubeconfig")
    }

    /// A kubectl command as the administrator, not run yet.
    pub(crate) fn kubectl_cmd(&self, args: &[&str]) -> Cmd {
        Cmd::new(self.programs.path("kubectl"))
            .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
            .arg(format!("--cache-dir={}", self.path("cache").display()))
            .args(args)
            .within(&self.netns)
    }
}
