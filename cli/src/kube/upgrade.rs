//! `podspan upgrade`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use super::api::Cluster;
use super::{AGENT, BROKER, NAMESPACE, block_on, manifests, nodes};
use crate::args::Upgrade;

/// Brings another version into a cluster.
pub(crate) fn run(args: &Upgrade) -> Result<ExitCode> {
    block_on(upgrade(args))
}

async fn upgrade(args: &Upgrade) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let broker = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": BROKER, "namespace": NAMESPACE },
    });
    let broker = cluster.get(&broker).await?.is_some();
    let mut objects = manifests::program(broker, Some(&args.image))?;
    let Some(agent) = objects.iter().find(|object| manifests::is_agent(object)) else {
        bail!("the manifests have no agent; this is an error in podspan");
    };
    let Some(there) = cluster.get(agent).await? else {
        bail!("podspan is not in this cluster: bring it there with `podspan join`; is --context right?");
    };
    let before = manifests::image(&there.data).unwrap_or_else(|| "unknown".to_owned());
    manifests::set_restarted(&mut objects, manifests::restarted(&there.data).as_deref());
    if manifests::enters_pods(&there.data) {
        manifests::enter_pods(&mut objects)?;
    }
    println!("Upgrading {} from {before} to {}", cluster.server, args.image);
    // The broker last: it is moved in one go, and only once the image is known to run.
    let is_broker = |object: &&serde_json::Value| object["kind"] == "Deployment";
    for object in objects.iter().filter(|object| !is_broker(object)) {
        cluster.apply(object, args.force_conflicts).await?;
    }
    // One node at a time, and none after one that is not ready: that is the DaemonSet's own rule (maxSurge).
    let missing = nodes::ready(&cluster, Duration::from_secs(args.timeout)).await?;
    if missing.is_empty() {
        for object in objects.iter().filter(is_broker) {
            cluster.apply(object, args.force_conflicts).await?;
        }
        println!("All nodes run {}", args.image);
        return Ok(ExitCode::SUCCESS);
    }
    let list: Vec<String> = missing.iter().map(|(node, why)| format!("{node}: {why}")).collect();
    bail!(
        "the upgrade stands still, {} of the nodes are not done; those that run the former version forward as \
         before:\n    {}\n  What an agent says: kubectl -n {NAMESPACE} logs -l app.kubernetes.io/component=agent\n  \
         Back to the former version: podspan upgrade --image {before} (of the {AGENT} that ran)",
        missing.len(),
        list.join("\n    ")
    );
}
