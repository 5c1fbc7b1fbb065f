//! `podspan join`.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use podspan_wire::{Bundle, VerifiedGrant};
use serde_json::{Value, json};
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::api::{Cluster, describe, title};
use super::manifests::{self, BrokerTls, Settings};
use super::{AGENT, BUNDLE, GATEWAY, GONE_WITHIN, MANAGER, NAMESPACE, block_on, nodes};
use crate::args::{Join, ManifestFormat};
use crate::files;
use crate::human;
use crate::problems::Problems;
use crate::tls;

/// The port of a broker in a cluster, at every node.
const NODE_PORT: u16 = 30743;
/// How often to look whether what is being deleted is gone.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// What is asked for, checked.
struct Wanted {
    text: Zeroizing<String>,
    bundle: Bundle,
    grant: VerifiedGrant,
    broker: Option<BrokerTls>,
}

/// Installs podspan into a cluster, or prints what would be applied.
pub(crate) fn run(args: &Join) -> Result<ExitCode> {
    let wanted = Wanted::read(args)?;
    if args.dry_run {
        let objects = wanted.objects(args, args.image.as_deref(), args.enter_pods.unwrap_or_default())?;
        let text = match args.output {
            ManifestFormat::Yaml => manifests::yaml(&objects)?,
            ManifestFormat::Json => manifests::list(&objects)?,
        };
        crate::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    block_on(join(args, &wanted))
}

impl Wanted {
    /// Reads the files; everything that is wrong with them is told at once, before any cluster is asked.
    fn read(args: &Join) -> Result<Self> {
        let mut problems = Problems::default();
        let bundle = problems.take(read_bundle(&args.bundle));
        let broker = args.broker_tls.as_deref().and_then(|directory| problems.take(read_broker(directory)));
        problems.check("nothing was done")?;
        let Some((text, bundle, grant)) = bundle else { bail!("nothing was done") };
        Ok(Self { text, bundle, grant, broker })
    }

    fn objects(&self, args: &Join, image: Option<&str>, enter_pods: bool) -> Result<Vec<Value>> {
        let mut objects = manifests::program(args.broker_here, image)?;
        if enter_pods {
            manifests::enter_pods(&mut objects)?;
        }
        if args.settings_only {
            // What is applied here needs the types; what is printed goes beside the overlay, which has them.
            objects.retain(|object| {
                object["kind"] == "Namespace" || !args.dry_run && manifests::is_lasting(object)
            });
        }
        let settings = manifests::settings(&Settings {
            bundle: &self.text,
            cluster_set: self.bundle.cluster_set,
            broker: self.broker.as_ref(),
        });
        // Before what mounts them, so that no pod starts without.
        let workloads = |object: &Value| matches!(object["kind"].as_str(), Some("DaemonSet" | "Deployment"));
        let at = objects.iter().position(workloads).unwrap_or(objects.len());
        objects.splice(at..at, settings);
        objects.push(manifests::cluster_set());
        Ok(objects)
    }
}

fn read_bundle(path: &Path) -> Result<(Zeroizing<String>, Bundle, VerifiedGrant)> {
    let text = files::read_secret(path)?;
    let (bundle, grant) = Bundle::parse(&text).with_context(|| path.display().to_string())?;
    let now = tls::now()?;
    if grant.not_after <= now {
        bail!(
            "{}: its grant ended on {}: renew it with `podspan cluster grant {} --renew`",
            path.display(),
            human::date(grant.not_after),
            grant.cluster
        );
    }
    Ok((text, bundle, grant))
}

fn read_broker(directory: &Path) -> Result<BrokerTls> {
    let certificate_path = directory.join("broker.crt");
    let certificate = files::read(&certificate_path)?;
    let end = tls::not_after(&certificate).with_context(|| certificate_path.display().to_string())?;
    if end <= tls::now()? {
        bail!(
            "{} ended on {}: renew it with `podspan clusterset broker-cert`",
            certificate_path.display(),
            human::date(end)
        );
    }
    Ok(BrokerTls { certificate, key: files::read_secret(&directory.join("broker.key"))? })
}

async fn join(args: &Join, wanted: &Wanted) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    println!("Joining {} as cluster {}", cluster.server, wanted.grant.cluster);
    until_left(&cluster).await?;
    let renewed = check_joined(&cluster, wanted).await?;
    check_nodes(&cluster, &args.gateway).await?;
    let objects = wanted.objects(args, args.image.as_deref(), false)?;
    let there = present_agent(&cluster, &objects).await?;
    let image = args.image.clone().or_else(|| there.as_ref().and_then(manifests::image));
    let enter_pods = args.enter_pods.unwrap_or_else(|| there.as_ref().is_some_and(manifests::enters_pods));
    let mut objects = wanted.objects(args, image.as_deref(), enter_pods)?;
    let restarted = match renewed {
        true => Some(tls::now()?.to_string()),
        false => there.as_ref().and_then(manifests::restarted),
    };
    manifests::set_restarted(&mut objects, restarted.as_deref());
    for object in &objects {
        cluster.apply(object, args.force_conflicts).await?;
    }
    for node in &args.gateway {
        label(&cluster, node).await?;
    }
    println!("  {} objects applied", objects.len());
    if renewed && !args.settings_only {
        println!("  The bundle is another one than before: the agents are restarted, node by node");
    }
    if args.broker_here {
        tell_broker(wanted);
    }
    if args.settings_only {
        println!("Next: kubectl apply --server-side -k, with one of manifests/overlays");
        return Ok(ExitCode::SUCCESS);
    }
    if args.timeout == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let missing = nodes::ready(&cluster, Duration::from_secs(args.timeout)).await?;
    if !missing.is_empty() {
        let mut out = std::io::stderr().lock();
        for (node, why) in &missing {
            writeln!(out, "  {node}: not ready: {why}")?;
        }
        writeln!(
            out,
            "error: not all nodes are ready; what an agent says: kubectl -n {NAMESPACE} logs ds/{AGENT}"
        )?;
        return Ok(ExitCode::FAILURE);
    }
    let gateways = gateways(&cluster).await?;
    if gateways == 0 {
        println!(
            "No node is a gateway yet, so that other clusters cannot dial this one. Next, for one or more nodes that \
             they reach:\n  kubectl label node NODE {GATEWAY}=true"
        );
    } else {
        println!("Joined, with {}. Next: kubectl get peerclusters", human::plural(gateways, "gateway"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits while podspan is still being taken out: nothing can be made in a namespace that is being deleted, and a type
/// that is being deleted takes with it what is applied of it.
async fn until_left(cluster: &Cluster) -> Result<()> {
    let mut end = None;
    for object in manifests::program(false, None)?.iter().filter(|object| manifests::is_lasting(object)) {
        while cluster.is_going(object).await? {
            let end = *end.get_or_insert_with(|| {
                println!(
                    "  podspan is still being taken out of this cluster: waiting until its nodes are clean"
                );
                Instant::now() + GONE_WITHIN
            });
            if Instant::now() >= end {
                bail!(
                    "{} is still being deleted after {} s, and nothing was applied. Which nodes have not ended their agent \
                     tells `kubectl -n {NAMESPACE} get pods -o wide`: one that is off keeps its pod until it is back, or \
                     until its Node is deleted",
                    title(object),
                    GONE_WITHIN.as_secs()
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// Refuses to make another cluster out of one that is joined already. Tells whether the cluster has joined with
/// another bundle, which its agents must be restarted to let go of.
async fn check_joined(cluster: &Cluster, wanted: &Wanted) -> Result<bool> {
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": BUNDLE.0, "namespace": NAMESPACE } });
    let Some(there) = cluster.get(&secret).await? else { return Ok(false) };
    let text = there.data["data"][BUNDLE.1].as_str().and_then(|text| STANDARD.decode(text).ok());
    let text = Zeroizing::new(text.and_then(|text| String::from_utf8(text).ok()).unwrap_or_default());
    // A Secret that holds no bundle is put right.
    let Ok((bundle, grant)) = Bundle::parse(&text) else { return Ok(false) };
    if bundle.cluster_set != wanted.bundle.cluster_set || grant.cluster != wanted.grant.cluster {
        bail!(
            "this Kubernetes cluster is joined already, as cluster {} of another cluster set or under another name: is \
             --context right? To join it anew, `podspan leave` first",
            grant.cluster
        );
    }
    if grant.serial > wanted.grant.serial {
        bail!(
            "the cluster has grant {} already, and this bundle holds grant {}, which counts no more: name its newest \
             bundle",
            grant.serial,
            wanted.grant.serial
        );
    }
    Ok(*text != *wanted.text)
}

/// The agents' DaemonSet as it is there: joining again must not bring another version, nor restart it.
async fn present_agent(cluster: &Cluster, objects: &[Value]) -> Result<Option<Value>> {
    let Some(agent) = objects.iter().find(|object| manifests::is_agent(object)) else { return Ok(None) };
    Ok(cluster.get(agent).await?.map(|there| there.data))
}

async fn check_nodes(cluster: &Cluster, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let known = all_nodes(cluster).await?;
    let known: Vec<&str> = known.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
    let unknown: Vec<&str> = names.iter().map(String::as_str).filter(|name| !known.contains(name)).collect();
    if !unknown.is_empty() {
        bail!("there is no node {}; there are {}", unknown.join(", "), known.join(", "));
    }
    Ok(())
}

pub(super) async fn all_nodes(cluster: &Cluster) -> Result<Vec<Node>> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    match api.list(&Default::default()).await {
        Ok(nodes) => Ok(nodes.items),
        Err(error) => bail!("the nodes cannot be listed: {}", describe(&error)),
    }
}

async fn label(cluster: &Cluster, node: &str) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let patch = json!({ "metadata": { "labels": { GATEWAY: "true" } } });
    let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    if let Err(error) = api.patch(node, &parameters, &Patch::Merge(&patch)).await {
        bail!("node {node} cannot be labelled: {}", describe(&error));
    }
    println!("  {node}: gateway");
    Ok(())
}

async fn gateways(cluster: &Cluster) -> Result<usize> {
    let is_gateway = |node: &&Node| {
        node.metadata.labels.as_ref().is_some_and(|labels| labels.get(GATEWAY).is_some_and(|v| v == "true"))
    };
    Ok(all_nodes(cluster).await?.iter().filter(is_gateway).count())
}

/// Where the bundles look for the broker, and where it is.
fn tell_broker(wanted: &Wanted) {
    let brokers = &wanted.bundle.brokers;
    if brokers.iter().any(|broker| broker.ends_with(&format!(":{NODE_PORT}"))) {
        return;
    }
    println!(
        "  The bundle names the broker at {}, and the Service podspan-broker is at port {NODE_PORT} of every node: make \
         the one lead to the other, by a load balancer for instance (docs/kubernetes.md)",
        brokers.join(", ")
    );
}
