//! What runs in the clusters to be looked at: a probe on every node, behind services of every kind.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::clusters::Clusters;
use super::settings::PROBE_IMAGE;
use crate::netns::Netns;
use crate::probe::{Job, Outcome};
use crate::signals;

/// The namespace of the probes.
pub(crate) const NAMESPACE: &str = "lab";

/// The port of the services, TCP and UDP; the pods' is [`crate::topology::POD_PORT`].
pub(crate) const SERVICE_PORT: u16 = 80;

/// The name by which a cluster's DNS knows the headless service.
pub(crate) const HEADLESS: &str = "headless.lab.svc.cluster.local";

const READY: Duration = Duration::from_secs(90);

/// A probe pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbePod {
    pub(crate) cluster: String,
    pub(crate) name: String,
    pub(crate) node: String,
    /// The pod's UID, which no other pod ever has.
    pub(crate) uid: String,
    /// IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The probes of all clusters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    pub(crate) pods: Vec<ProbePod>,
    /// By cluster, the addresses of the service with a ClusterIP.
    pub(crate) services: BTreeMap<String, Vec<IpAddr>>,
}

impl Probes {
    /// The addresses of all pods of a cluster.
    pub(crate) fn addresses(&self, cluster: &str) -> Vec<IpAddr> {
        let pods = self.pods.iter().filter(|pod| pod.cluster == cluster);
        pods.flat_map(|pod| pod.addresses.iter().copied()).collect()
    }
}

fn manifest() -> String {
    format!(
        r#"apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: probe, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: probe}}}}
  updateStrategy: {{rollingUpdate: {{maxUnavailable: 100%}}}}
  template:
    metadata: {{labels: {{app: probe}}}}
    spec:
      terminationGracePeriodSeconds: 0
      enableServiceLinks: false
      tolerations: [{{operator: Exists}}]
      containers:
      - name: probe
        image: {PROBE_IMAGE}
        imagePullPolicy: Never
        args: [probe-server, --port, "8080"]
        ports: [{{containerPort: 8080}}, {{containerPort: 8080, protocol: UDP}}]
---
apiVersion: v1
kind: Service
metadata: {{name: probe, namespace: {NAMESPACE}}}
spec:
  selector: {{app: probe}}
  ipFamilyPolicy: RequireDualStack
  ports:
  - {{name: tcp, port: {SERVICE_PORT}, targetPort: 8080}}
  - {{name: udp, port: {SERVICE_PORT}, targetPort: 8080, protocol: UDP}}
---
apiVersion: v1
kind: Service
metadata: {{name: headless, namespace: {NAMESPACE}}}
spec:
  selector: {{app: probe}}
  clusterIP: None
  ipFamilyPolicy: RequireDualStack
  ports: [{{name: tcp, port: 8080}}]
"#
    )
}

impl Clusters {
    /// Deploys the probes in every cluster and waits until one answers on every node.
    pub(crate) fn deploy_probes(&self) -> Result<Probes> {
        for cluster in &self.plan.clusters {
            self.apply(cluster.name, &manifest())?;
        }
        self.probes()
    }

    /// The probes as they are now: waits until there is a ready one on every node.
    pub(crate) fn probes(&self) -> Result<Probes> {
        let mut probes = Probes::default();
        for cluster in &self.plan.clusters {
            let end = Instant::now() + READY;
            loop {
                let list = self.get_json(cluster.name, &["pods", "-n", NAMESPACE, "-l", "app=probe"])?;
                let ready = ready_pods(cluster.name, &list);
                let everywhere =
                    cluster.nodes.iter().all(|node| ready.iter().any(|pod| pod.node == node.name));
                if everywhere && ready.len() == cluster.nodes.len() {
                    probes.pods.extend(ready);
                    break;
                }
                if Instant::now() > end {
                    let text = self.kubectl(cluster.name, &["describe", "pods", "-n", NAMESPACE])?;
                    bail!("{}: no probe on every node after {} s\n{text}", cluster.name, READY.as_secs());
                }
                signals::sleep(Duration::from_millis(300))?;
            }
            let service = self.get_json(cluster.name, &["service", "probe", "-n", NAMESPACE])?;
            let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
            let addresses = addresses.filter_map(|address| address.as_str()?.parse().ok()).collect();
            probes.services.insert(cluster.name.to_owned(), addresses);
        }
        Ok(probes)
    }

    /// Runs jobs in a probe pod.
    pub(crate) fn ask_from_pod(&self, pod: &ProbePod, jobs: &[Job]) -> Result<Vec<Outcome>> {
        let args = ["exec", "-i", "-n", NAMESPACE, &pod.name, "--", "/lab", "probe-client"];
        let text = self
            .kubectl_cmd(&pod.cluster, &args)?
            .stdin(serde_json::to_vec(jobs)?)
            .timeout(crate::probe::bound(jobs))
            .text()
            .with_context(|| format!("the probe on {}", pod.node))?;
        let outcomes: Vec<Outcome> = serde_json::from_str(&text).context("the probe client's answer")?;
        if outcomes.len() != jobs.len() {
            bail!("{} jobs, {} outcomes", jobs.len(), outcomes.len());
        }
        Ok(outcomes)
    }

    /// A pod's network namespace, by a process of the pod: it can be entered even while kubelet is away.
    pub(crate) fn pod_netns(&self, pod: &ProbePod) -> Result<Netns> {
        let control_group = format!("/pod{}/", pod.uid);
        for entry in std::fs::read_dir("/proc").context("cannot list processes")?.flatten() {
            let is_of_pod = std::fs::read_to_string(entry.path().join("cgroup"))
                .is_ok_and(|text| text.contains(&control_group));
            if is_of_pod {
                return Ok(Netns::named(entry.path().join("ns/net").display().to_string()));
            }
        }
        bail!("no process of the pod {} on {} was found", pod.name, pod.node)
    }

    /// The same on the node itself, in its own network.
    pub(crate) fn ask_from_node(&self, node: &str, jobs: &[Job]) -> Result<Vec<Outcome>> {
        crate::probe::ask(&self.node(node)?.netns(), jobs)
    }

    /// Asks a DNS server for a name, from a probe pod.
    pub(crate) fn resolve_from_pod(&self, pod: &ProbePod, server: IpAddr, name: &str) -> Result<Vec<IpAddr>> {
        let server = server.to_string();
        let args = ["exec", "-n", NAMESPACE, &pod.name, "--", "/lab", "resolve", &server, name];
        let text = self.kubectl(&pod.cluster, &args)?;
        text.lines().map(|line| line.parse().with_context(|| format!("{line:?} is no address"))).collect()
    }
}

impl Clusters {
    /// Runs pods, one after the other, that send one datagram as the first thing they do, and tells what each
    /// saw: nothing if the echo came, else what it said.
    pub(crate) fn first_packets(&self, node: &str, target: SocketAddr, count: usize) -> Result<Vec<String>> {
        let cluster = node.split('-').next().unwrap_or_default();
        let names: Vec<String> = (1..=count).map(|number| format!("first-{number}")).collect();
        let pod = |name: &String| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: first}}}}\n\
                 spec:\n  nodeName: {node}\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  \
                 tolerations: [{{operator: Exists}}]\n  containers:\n  \
                 - {{name: first, image: \"{PROBE_IMAGE}\", imagePullPolicy: Never, args: [first-packet, \"{target}\"]}}\n"
            )
        };
        self.apply(cluster, &names.iter().map(pod).collect::<String>())?;
        let ended = |list: &Value| {
            let phases = list["items"].as_array().into_iter().flatten().map(|item| &item["status"]["phase"]);
            phases.filter(|phase| *phase == "Succeeded" || *phase == "Failed").count()
        };
        let end = Instant::now() + READY;
        loop {
            let list = self.get_json(cluster, &["pods", "-n", NAMESPACE, "-l", "app=first"])?;
            if ended(&list) == count {
                break;
            }
            if Instant::now() > end {
                bail!("pods that send one packet have not ended: {:#}", list["items"][0]["status"]);
            }
            signals::sleep(Duration::from_millis(300))?;
        }
        let logs = names.iter().map(|name| self.kubectl(cluster, &["logs", "-n", NAMESPACE, name]));
        let logs = logs.collect::<Result<Vec<String>>>()?;
        self.kubectl(cluster, &["delete", "pods", "-n", NAMESPACE, "-l", "app=first", "--now"])?;
        Ok(logs.into_iter().map(|log| log.trim().to_owned()).collect())
    }
}

/// `lab first-packet`: sends one datagram, once, and tells how long its echo took, or that none came.
pub(crate) fn first_packet(target: SocketAddr) -> Result<()> {
    const WAIT: Duration = Duration::from_secs(5);
    let any: IpAddr = if target.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let begin = Instant::now();
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(WAIT))?;
    socket.send_to(b"first", target).context("cannot send")?;
    let sent = begin.elapsed();
    let mut buffer = [0; 128];
    match socket.recv(&mut buffer) {
        Ok(_) => println!(
            "echo after {} us, sent {} us from the start",
            begin.elapsed().as_micros(),
            sent.as_micros()
        ),
        Err(error) => println!("lost: {error}"),
    }
    Ok(())
}

/// Those of a list that are ready and stay, by node.
fn ready_pods(cluster: &str, list: &Value) -> Vec<ProbePod> {
    let pod = |item: &Value| -> Option<ProbePod> {
        let is_going = !item["metadata"]["deletionTimestamp"].is_null();
        if is_going || !super::clusters::is_true(item, "Ready") {
            return None;
        }
        let addresses = item["status"]["podIPs"].as_array()?.iter();
        let addresses: Vec<IpAddr> =
            addresses.filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect();
        (addresses.len() == 2).then_some(ProbePod {
            cluster: cluster.to_owned(),
            name: item["metadata"]["name"].as_str()?.to_owned(),
            node: item["spec"]["nodeName"].as_str()?.to_owned(),
            uid: item["metadata"]["uid"].as_str()?.to_owned(),
            addresses,
        })
    };
    let mut pods: Vec<_> = list["items"].as_array().into_iter().flatten().filter_map(pod).collect();
    pods.sort_by(|a, b| a.node.cmp(&b.node));
    pods
}
