//! What happens to joined clusters, with traffic going on: it converges without a hand, and how long it took is told.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podspan_wire::Cidr;

use super::ways;
use crate::kube::{Clusters, NAMESPACE, PODSPAN, ProbePod, Probes, SERVICE_PORT, restarts, until};
use crate::probe::{self, Job, Pending, StreamOutcome, Task};
use crate::scenario::Findings;
use crate::signals;
use crate::topology::{Dual, POD_PORT, nth};

pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// No traffic stands still for longer where nothing is lost: a busy machine alone makes it wait for a second.
const STALL: Duration = Duration::from_secs(3);

/// Streams from a pod to a pod, TCP and UDP by both families, for a time.
pub(super) fn streams(
    clusters: &Clusters,
    from: &ProbePod,
    to: &ProbePod,
    time: Duration,
) -> Result<Pending> {
    let millis = u64::try_from(time.as_millis())?;
    let mut jobs = Vec::new();
    for address in &to.addresses {
        let target = SocketAddr::new(*address, POD_PORT);
        let id = format!("{} -> {} at {address}", from.node, to.node);
        let tcp = Job::new(format!("{id} TCP"), target, Task::TcpStream { millis, interval_ms: 10 });
        let udp = Job::new(format!("{id} UDP"), target, Task::UdpStream { millis, interval_ms: 10 });
        jobs.extend([tcp, udp].map(|job| job.timeout(Duration::from_secs(20))));
    }
    Ok(probe::start(&clusters.pod_netns(from)?, jobs))
}

/// What came of streams: connections live, and nothing is held up for longer than `longest`.
pub(super) fn check(
    clusters: &Clusters,
    pending: Pending,
    longest: Duration,
    findings: &mut Findings,
) -> Result<()> {
    check_streams(clusters, pending, longest, findings).map(drop)
}

/// The same; returns each stream and its name.
fn check_streams(
    clusters: &Clusters,
    pending: Pending,
    longest: Duration,
    findings: &mut Findings,
) -> Result<Vec<(String, StreamOutcome)>> {
    let mut streams = Vec::new();
    for outcome in pending.finish()? {
        findings.expect(&outcome.id, None, outcome.error);
        let stream = outcome.stream.unwrap_or_default();
        clusters.site.screen.line(&format!(
            "  {}: {} of {} answered, longest gap {} ms",
            outcome.id, stream.received, stream.sent, stream.longest_gap_ms
        ));
        findings.require(u128::from(stream.longest_gap_ms) <= longest.as_millis(), || {
            format!("{}: no gap over {} ms expected, saw {stream:?}", outcome.id, longest.as_millis())
        });
        streams.push((outcome.id, stream));
    }
    Ok(streams)
}

pub(super) fn on<'a>(probes: &'a Probes, node: &str) -> Result<&'a ProbePod> {
    probes.pods.iter().find(|pod| pod.node == node).with_context(|| format!("no probe on {node}"))
}

pub(super) fn tell(clusters: &Clusters, what: &str, time: Duration) {
    clusters.site.screen.line(&format!("  {what}: {:.1} s", time.as_secs_f64()));
}

/// The GATEWAYS column of a PeerCluster.
fn gateways(clusters: &Clusters, cluster: &str, peer: &str) -> Result<String> {
    let peer = clusters.get_json(cluster, &["peercluster", peer])?;
    Ok(peer["status"]["gateways"]["summary"].as_str().unwrap_or_default().to_owned())
}

/// Whether all of these answer a pod.
fn answers(clusters: &Clusters, from: &ProbePod, to: &[SocketAddr]) -> Result<bool> {
    let jobs: Vec<Job> = to
        .iter()
        .map(|target| {
            Job::new(target.to_string(), *target, Task::Tcp { bytes: 100 })
                .timeout(Duration::from_millis(500))
        })
        .collect();
    Ok(probe::ask(&clusters.pod_netns(from)?, &jobs)?.iter().all(probe::Outcome::ok))
}

/// Waits until they do.
pub(super) fn until_reached(clusters: &Clusters, from: &ProbePod, to: &[SocketAddr]) -> Result<Duration> {
    until(&format!("{to:?} reached from {}", from.node), LIMIT, || answers(clusters, from, to))
}

pub(super) fn at_pod(pod: &ProbePod) -> Vec<SocketAddr> {
    pod.addresses.iter().map(|address| SocketAddr::new(*address, POD_PORT)).collect()
}

/// A gateway of beta is none any more, and then again one.
pub(super) fn gateway_moved(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let (from, to) = (on(&probes, "alpha-1")?, on(&probes, "beta-2")?);
    let running = streams(clusters, from, to, Duration::from_secs(15))?;
    signals::sleep(Duration::from_secs(1))?;
    clusters.kubectl("beta", &["label", "node", "beta-1", "podspan.io/gateway-"])?;
    let time =
        until("alpha has one gateway of beta", LIMIT, || Ok(gateways(clusters, "alpha", "beta")? == "1/1"))?;
    tell(clusters, "label removed until alpha's PeerCluster tells", time);
    clusters.kubectl("beta", &["label", "node", "beta-1", "podspan.io/gateway=true"])?;
    let time =
        until("alpha has two gateways of beta", LIMIT, || Ok(gateways(clusters, "alpha", "beta")? == "2/2"))?;
    tell(clusters, "label back until alpha's PeerCluster tells", time);
    check(clusters, running, Duration::from_secs(3), &mut findings)?;
    findings.conclude(8)
}

/// 1,000 datagrams a second and a connection, to each of these addresses.
fn dense(
    clusters: &Clusters,
    from: &ProbePod,
    to: (&str, &[IpAddr], u16),
    time: Duration,
) -> Result<Pending> {
    let millis = u64::try_from(time.as_millis())?;
    let (name, addresses, port) = to;
    let mut jobs = Vec::new();
    for address in addresses {
        let target = SocketAddr::new(*address, port);
        let id = format!("{} -> {name} at {address}", from.node);
        let tcp = Job::new(format!("{id} TCP"), target, Task::TcpStream { millis, interval_ms: 10 });
        let udp = Job::new(format!("{id} UDP"), target, Task::UdpStream { millis, interval_ms: 1 });
        jobs.extend([tcp, udp].map(|job| job.timeout(Duration::from_secs(20))));
    }
    Ok(probe::start(&clusters.pod_netns(from)?, jobs))
}

/// All of it came back, once, and nothing stood still.
fn check_whole(clusters: &Clusters, pending: Pending, findings: &mut Findings) -> Result<()> {
    for (id, stream) in check_streams(clusters, pending, STALL, findings)? {
        let whole = stream.received == stream.sent && stream.duplicated == 0 && stream.sent > 100;
        findings.require(whole, || format!("{id}: not all came back: {stream:?}"));
    }
    Ok(())
}

/// beta's agents are rolled, one node after the other: each takes over from the one before, and nothing is lost.
pub(super) fn agent_rolled(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let time = Duration::from_secs(25);
    let (alpha_1, beta_1) = (on(&probes, "alpha-1")?, on(&probes, "beta-1")?);
    let (alpha_2, beta_2) = (on(&probes, "alpha-2")?, on(&probes, "beta-2")?);
    let service = probes.services.get("beta").context("beta's service")?;
    let pending = [
        dense(clusters, alpha_1, ("beta-1", &beta_1.addresses, POD_PORT), time)?,
        dense(clusters, beta_2, ("alpha-2", &alpha_2.addresses, POD_PORT), time)?,
        dense(clusters, alpha_2, ("beta's service", service, SERVICE_PORT), time)?,
    ];
    signals::sleep(Duration::from_secs(1))?;
    let begin = Instant::now();
    clusters.kubectl("beta", &["-n", PODSPAN, "rollout", "restart", "daemonset/podspan-agent"])?;
    clusters.kubectl(
        "beta",
        &["-n", PODSPAN, "rollout", "status", "daemonset/podspan-agent", "--timeout=120s"],
    )?;
    tell(clusters, "the agents of both nodes rolled", begin.elapsed());
    findings.require(begin.elapsed() < time, || "the streams ended before the agents were rolled".to_owned());
    for pending in pending {
        check_whole(clusters, pending, &mut findings)?;
    }
    let pods = clusters.get_json("beta", &["pods", "-n", PODSPAN])?;
    findings.expect("restarts of podspan's pods in beta", 0, restarts(&pods)?);
    findings.conclude(38)
}

/// alpha's API server is away for half a minute, or with `--soak` for ten; then a change is taken in.
pub(super) fn api_away(clusters: &mut Clusters) -> Result<()> {
    let away =
        Duration::from_secs(if super::SOAK.load(std::sync::atomic::Ordering::Relaxed) { 600 } else { 30 });
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let running = streams(clusters, on(&probes, "alpha-1")?, on(&probes, "beta-2")?, away)?;
    clusters.stop_api("alpha")?;
    signals::sleep(away)?;
    check_whole(clusters, running, &mut findings)?;
    clusters.start_api("alpha")?;
    clusters.kubectl("alpha", &["label", "node", "alpha-2", "podspan.io/gateway-"])?;
    let time =
        until("beta has one gateway of alpha", LIMIT, || Ok(gateways(clusters, "beta", "alpha")? == "1/1"))?;
    tell(clusters, "API server back and a label removed, until beta's PeerCluster tells", time);
    clusters.kubectl("alpha", &["label", "node", "alpha-2", "podspan.io/gateway=true"])?;
    until("beta has two gateways of alpha", LIMIT, || Ok(gateways(clusters, "beta", "alpha")? == "2/2"))?;
    let pods = clusters.get_json("alpha", &["pods", "-n", PODSPAN])?;
    findings.expect("restarts of podspan's pods in alpha", 0, restarts(&pods)?);
    findings.conclude(13)
}

/// kubelet is killed and started again by the node.
pub(super) fn kubelet_restarted(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let running =
        streams(clusters, on(&probes, "alpha-1")?, on(&probes, "beta-1")?, Duration::from_secs(10))?;
    signals::sleep(Duration::from_secs(1))?;
    clusters.kill_program(&clusters.node("alpha-1")?, "kubelet")?;
    check(clusters, running, Duration::from_secs(1), &mut findings)?;
    until("alpha is ready", LIMIT, || Ok(clusters.not_ready("alpha")?.is_empty()))?;
    findings.expect("the probe pods, which should be the same", probes.pods, clusters.probes()?.pods);
    findings.conclude(9)
}

/// A node's power is cut; it starts again with nothing but its disk.
pub(super) fn node_rebooted(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let node = clusters.node("beta-2")?;
    let running =
        streams(clusters, on(&probes, "alpha-1")?, on(&probes, "beta-1")?, Duration::from_secs(30))?;
    signals::sleep(Duration::from_secs(1))?;
    let begin = Instant::now();
    clusters.reboot(&node)?;
    // Until kubelet is back, the API server tells the pods that were there before.
    until("a new probe runs on beta-2", LIMIT, || {
        Ok(clusters.pod_netns(on(&clusters.probes()?, "beta-2")?).is_ok())
    })?;
    tell(clusters, "power cut until pods run on beta-2 again", begin.elapsed());
    until("beta-2's pods and alpha's reach each other", LIMIT, || {
        let now = clusters.probes()?;
        let (here, there) = (on(&now, "alpha-1")?, on(&now, "beta-2")?);
        Ok(answers(clusters, here, &at_pod(there))? && answers(clusters, there, &at_pod(here))?)
    })?;
    tell(clusters, "power cut until beta-2's pods and alpha's reach each other", begin.elapsed());
    // A gateway was lost without a word: what went through it finds the other one.
    check(clusters, running, Duration::from_secs(10), &mut findings)?;
    findings.conclude(8)
}

/// beta gets a third node, which is a gateway too, and loses it again without a word.
pub(super) fn node_added(clusters: &mut Clusters) -> Result<()> {
    let mut findings = Findings::default();
    let (node, time) = clusters.add_node("beta", None)?;
    tell(clusters, "start of a new node until it is Ready", time);
    let probes = reach_new(clusters, &node.name, &mut findings)?;
    clusters.kubectl("beta", &["label", "node", &node.name, "podspan.io/gateway=true"])?;
    let time = until("alpha has three gateways of beta", LIMIT, || {
        Ok(gateways(clusters, "alpha", "beta")? == "3/3")
    })?;
    tell(clusters, "gateway label on the new node until alpha's PeerCluster tells", time);

    let running =
        streams(clusters, on(&probes, "alpha-1")?, on(&probes, "beta-1")?, Duration::from_secs(30))?;
    let begin = Instant::now();
    clusters.remove_node(&node)?;
    let nodes = |clusters: &Clusters| -> Result<Option<u64>> {
        Ok(clusters.get_json("beta", &["clusterset", "podspan"])?["status"]["nodes"].as_u64())
    };
    until("beta's ClusterSet tells of two nodes", LIMIT, || Ok(nodes(clusters)? == Some(2)))?;
    tell(clusters, "power cut and Node deleted until the ClusterSet tells of two nodes", begin.elapsed());
    // Its record is withdrawn by another agent of beta: nobody waits for it any more.
    until("alpha has two gateways of beta", LIMIT, || Ok(gateways(clusters, "alpha", "beta")? == "2/2"))?;
    tell(clusters, "power cut and Node deleted until alpha counts on it no more", begin.elapsed());
    check(clusters, running, Duration::from_secs(10), &mut findings)?;
    findings.conclude(2 * 24 + 16 + 8)
}

/// Waits until the pods of a new node of beta and alpha's reach each other, then tries all ways.
fn reach_new(clusters: &Clusters, node: &str, findings: &mut Findings) -> Result<Probes> {
    let begin = Instant::now();
    let probes = clusters.probes()?;
    let new = on(&probes, node)?;
    until_reached(clusters, on(&probes, "alpha-1")?, &at_pod(new))?;
    until_reached(clusters, new, &at_pod(on(&probes, "alpha-2")?))?;
    tell(clusters, "Ready until its pods and alpha's reach each other", begin.elapsed());
    for pod in probes.pods.iter().filter(|pod| pod.cluster == "alpha" || pod.node == node) {
        for other in super::joined::other_clusters(clusters, &pod.cluster) {
            let jobs = ways::to_pods(&probes, &other, None, probe::TIMEOUT);
            ways::from_pod(clusters, pod, &jobs, true, findings)?;
        }
    }
    Ok(probes)
}

/// beta gets a second range of pod addresses: a grant for it, which the agents take in one by one, and a node in it.
/// A Node's own CIDRs never change; a cluster grows by nodes of another range.
pub(super) fn pod_range_added(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let running =
        streams(clusters, on(&probes, "alpha-1")?, on(&probes, "beta-2")?, Duration::from_secs(40))?;
    let begin = Instant::now();
    clusters.grant_more_pods("beta")?;
    tell(clusters, "grant renewed and joined with it, the agents restarted one by one", begin.elapsed());
    let range = clusters.plan.cluster("beta")?.more_pods;
    let told = || -> Result<bool> {
        let peer = clusters.get_json("alpha", &["peercluster", "beta"])?;
        let cidrs = peer["status"]["podCIDRs"].as_array().cloned().unwrap_or_default();
        Ok(range.both().iter().all(|cidr| cidrs.iter().any(|told| *told == cidr.to_string())))
    };
    until("alpha's PeerCluster tells of the second range", LIMIT, told)?;
    tell(clusters, "grant renewed until alpha's PeerCluster tells", begin.elapsed());
    check(clusters, running, Duration::from_secs(5), &mut findings)?;

    let cidr = |address: IpAddr, length: u8| -> Result<Cidr> { Ok(format!("{address}/{length}").parse()?) };
    let cidrs = Dual { v4: cidr(nth(range.v4, 7 * 256), 24)?, v6: cidr(nth(range.v6, 0), 64)? };
    let (node, time) = clusters.add_node("beta", Some(cidrs))?;
    tell(clusters, "start of a node in the second range until it is Ready", time);
    let probes = reach_new(clusters, &node.name, &mut findings)?;
    let new = on(&probes, &node.name)?;
    findings.require(
        new.addresses.iter().all(|address| range.both().iter().any(|cidr| cidr.contains(*address))),
        || format!("the new node's pod is not in the second range: {:?}", new.addresses),
    );
    clusters.remove_node(&node)?;
    findings.conclude(8 + 2 * 24 + 16 + 1)
}

/// `podspan upgrade` of beta to an image of another name, with traffic going on, of which nothing is lost.
pub(super) fn upgraded(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let image = clusters.import_next_image("beta")?;
    let time = Duration::from_secs(30);
    let (beta_1, alpha_2) = (on(&probes, "beta-1")?, on(&probes, "alpha-2")?);
    let there = dense(clusters, on(&probes, "alpha-1")?, ("beta-1", &beta_1.addresses, POD_PORT), time)?;
    let back = dense(clusters, on(&probes, "beta-2")?, ("alpha-2", &alpha_2.addresses, POD_PORT), time)?;
    signals::sleep(Duration::from_secs(1))?;
    let begin = Instant::now();
    let finished = clusters
        .podspan(clusters.programs()?, &["upgrade", "--context", "beta", "--image", image])
        .run_ok()?;
    tell(clusters, "podspan upgrade of two nodes", begin.elapsed());
    findings
        .require(begin.elapsed() < time, || "the streams ended before the agents were upgraded".to_owned());
    clusters.site.screen.raw(&finished.stdout_text());
    let pods = clusters.get_json("beta", &["pods", "-n", PODSPAN])?;
    let images: Vec<&str> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        // One that has ended is there for a moment.
        .filter(|pod| pod["status"]["phase"] == "Running")
        .filter_map(|pod| pod["status"]["containerStatuses"][0]["image"].as_str())
        .collect();
    findings.expect("the images that run", vec![image; 2], images);
    for pending in [there, back] {
        check_whole(clusters, pending, &mut findings)?;
    }
    // An image that there is not: the upgrade stops at the first node, and nothing else changes.
    let broken = ["upgrade", "--context", "beta", "--image", "podspan:never", "--timeout", "15"];
    let refused = clusters.podspan(clusters.programs()?, &broken).run()?;
    findings.require(!refused.status.success(), || "an upgrade to no image went well".into());
    let told = refused.stderr_text();
    findings.require(
        told.contains("Back to the former version") && told.contains("ErrImagePull")
            || told.contains("ImagePullBackOff"),
        || told.clone(),
    );
    let pods =
        clusters.get_json("beta", &["pods", "-n", PODSPAN, "-l", "app.kubernetes.io/component=agent"])?;
    let ready =
        pods["items"].as_array().into_iter().flatten().filter(|pod| crate::kube::is_true(pod, "Ready"));
    findings.expect("agents that run on", 2, ready.count());
    clusters.podspan(clusters.programs()?, &["upgrade", "--context", "beta", "--image", image]).run_ok()?;
    findings.conclude(2 + 24 + 3)
}

/// beta gets a second range of ClusterIPs, and a Service in it.
pub(super) fn service_range_added(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let range = clusters.plan.cluster("beta")?.more_services;
    clusters.apply(
        "beta",
        &format!("{{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {{name: more}}, spec: {{cidrs: [\"{range}\"]}}}}"),
    )?;
    let address = crate::topology::nth(range, 20);
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: more, namespace: {NAMESPACE}}}, spec: {{selector: {{app: probe}}, \
         clusterIP: \"{address}\", ports: [{{port: 80, targetPort: 8080}}]}}}}"
    );
    let begin = Instant::now();
    until("beta takes a Service of the new range", LIMIT, || {
        clusters.apply("beta", &service).map(|()| true)
    })?;
    until_reached(clusters, on(&probes, "alpha-1")?, &[SocketAddr::new(address, 80)])?;
    tell(clusters, "ServiceCIDR made until a Service of it is reached from alpha", begin.elapsed());
    until_reached(clusters, on(&probes, "alpha-2")?, &[SocketAddr::new(address, 80)])?;
    clusters.kubectl("beta", &["delete", "service", "more", "-n", NAMESPACE])?;
    clusters.kubectl("beta", &["delete", "servicecidr", "more"])?;
    findings.require(begin.elapsed() < LIMIT, || "it took too long".into());
    findings.conclude(1)
}

/// Pods that send across the moment they start: no packet is lost, since the tunnels stand.
pub(super) fn first_packet(clusters: &mut Clusters) -> Result<()> {
    const PODS: usize = 8;
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    for (node, far) in [("alpha-1", "beta-1"), ("beta-2", "alpha-2")] {
        for target in at_pod(on(&probes, far)?) {
            let told = clusters.first_packets(node, target, PODS)?;
            for (number, line) in told.iter().enumerate() {
                findings.require(line.starts_with("echo after"), || {
                    format!("{node} -> {target}, pod {}: {line}", number + 1)
                });
            }
            clusters.site.screen.line(&format!("  {node} -> {target}: {}", told.join("; ")));
        }
    }
    findings.conclude(4 * PODS)
}
