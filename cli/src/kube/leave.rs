//! `podspan leave`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PropagationPolicy};
use serde_json::{Value, json};

use super::api::{Cluster, describe, title};
use super::nodes::{self, Left};
use super::{BROKER, GONE_WITHIN, NAMESPACE, block_on, join, manifests};
use crate::args::Leave;

/// Takes podspan out of a cluster.
pub(crate) fn run(args: &Leave) -> Result<ExitCode> {
    block_on(leave(args))
}

async fn leave(args: &Leave) -> Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let all = manifests::program(true, None)?;
    let broker = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": BROKER, "namespace": NAMESPACE },
    });
    if !args.with_broker && cluster.get(&broker).await?.is_some() {
        bail!(
            "the cluster set's broker runs in this cluster, and without one the other clusters hear of no change: move \
             it first, or let it go too with --with-broker"
        );
    }
    println!("Leaving {}", cluster.server);

    // The agents first, while they still may ask why they are told to stop.
    if let Some(agent) = all.iter().find(|object| manifests::is_agent(object)) {
        cluster.delete(agent, PropagationPolicy::Foreground).await?;
    }
    let left = nodes::gone(&cluster, Duration::from_secs(args.timeout)).await?;
    let mut unclean = Vec::new();
    for (node, how) in &left {
        match how {
            Left::Clean => {}
            Left::Failed(why) => unclean.push(format!(
                "{node}: {why}\n      `podspan join` and `podspan leave` once more try again"
            )),
            Left::Running(why) => unclean.push(format!(
                "{node}: {why}\n      once it is back its agent leaves by itself, as long as the rest of podspan is there"
            )),
        }
    }
    if !unclean.is_empty() && !args.force {
        bail!(
            "{} of {} nodes are not clean, and nothing else was removed:\n    {}\n  Then run this again, or go on with \
             --force",
            unclean.len(),
            left.len(),
            unclean.join("\n    ")
        );
    }

    unlabel(&cluster).await?;
    // In the opposite order: what uses before what is used.
    for object in all.iter().rev().filter(|object| !manifests::is_agent(object)) {
        cluster.delete(object, PropagationPolicy::Background).await?;
    }
    for object in all.iter().filter(|object| manifests::is_lasting(object)) {
        if !cluster.gone(object, GONE_WITHIN).await? {
            bail!(
                "{} is still being deleted: look at its finalizers with `kubectl get -o yaml`",
                title(object)
            );
        }
    }
    for line in &unclean {
        println!("  left as it was: {line}");
    }
    println!("podspan is out of the cluster; its pods run on");
    Ok(if unclean.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes podspan's labels and annotations off the nodes.
async fn unlabel(cluster: &Cluster) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    for node in join::all_nodes(cluster).await? {
        let own =
            |keys: Option<&std::collections::BTreeMap<String, String>>| -> serde_json::Map<String, Value> {
                let keys = keys.into_iter().flat_map(|keys| keys.keys());
                keys.filter(|key| key.starts_with("podspan.io/"))
                    .map(|key| (key.clone(), Value::Null))
                    .collect()
            };
        let (labels, annotations) =
            (own(node.metadata.labels.as_ref()), own(node.metadata.annotations.as_ref()));
        if labels.is_empty() && annotations.is_empty() {
            continue;
        }
        let patch = json!({ "metadata": { "labels": labels, "annotations": annotations } });
        let name = node.metadata.name.unwrap_or_default();
        if let Err(error) = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            bail!("podspan's labels cannot be taken off node {name}: {}", describe(&error));
        }
    }
    Ok(())
}
