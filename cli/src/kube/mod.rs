//! podspan in a Kubernetes cluster: in, out, and to another version.
//!
//! `manifests` says what belongs there (pure); `api` is the way to the API server; `nodes` follows what the
//! agents do on their nodes.

mod api;
pub(crate) mod join;
pub(crate) mod leave;
mod manifests;
mod nodes;
pub(crate) mod upgrade;

use std::time::Duration;

use anyhow::{Context as _, Result};

/// podspan's namespace.
const NAMESPACE: &str = "podspan-system";
/// The agents' DaemonSet.
const AGENT: &str = "podspan-agent";
/// The broker's Deployment.
const BROKER: &str = "podspan-broker";
/// The Secret with the bundle, and the key in it.
const BUNDLE: (&str, &str) = ("podspan-bundle", "bundle");
/// The field manager of what this program applies.
const MANAGER: &str = "podspan";
/// How long a namespace and what is in it may take to go: an agent has 60 s to clean its node.
const GONE_WITHIN: Duration = Duration::from_secs(90);
/// The label of gateways.
const GATEWAY: &str = "podspan.io/gateway";

/// Runs what asks an API server.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(work)
}
