//! The way to the API server.

use std::error::Error as _;
use std::time::Duration;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::config::KubernetesSource;

/// How long it may take to connect, TLS included, on a machine that is busy.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The environment variable with the Node's name (downward API, `spec.nodeName`).
const NODE_NAME: &str = "NODE_NAME";
/// The environment variable with the pod's namespace (downward API, `metadata.namespace`).
const POD_NAMESPACE: &str = "POD_NAMESPACE";

/// The Node's name: the setting, or else the environment's.
///
/// # Errors
/// If there is neither, or the environment's is no name.
pub fn node_name(source: &KubernetesSource) -> anyhow::Result<podspan_wire::NodeName> {
    if let Some(node) = &source.node {
        return Ok(node.clone());
    }
    let name = std::env::var(NODE_NAME).with_context(|| {
        format!(
            "the Node's name is not known: set source.node, or the environment variable {NODE_NAME} from the field \
             spec.nodeName, as the DaemonSet of podspan's manifests does"
        )
    })?;
    name.parse().with_context(|| format!("the environment variable {NODE_NAME}"))
}

/// The namespace that podspan runs in: the environment's, or else the usual one.
#[must_use]
pub fn namespace() -> String {
    std::env::var(POD_NAMESPACE)
        .ok()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or_else(|| podspan_kubernetes::names::NAMESPACE.to_owned())
}

/// A client. Nothing is asked yet: whether the API server answers is seen later. Within a Tokio runtime.
///
/// # Errors
/// If the kubeconfig or the service account cannot be read or used.
pub async fn client(source: &KubernetesSource) -> anyhow::Result<Client> {
    let mut config = match &source.kubeconfig {
        Some(path) => {
            let context = || format!("the kubeconfig {}", path.display());
            let file = Kubeconfig::read_from(path).with_context(context)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(context)?
        }
        None => Config::incluster().context(
            "the service account of the pod cannot be used; outside of a pod set source.kubeconfig",
        )?,
    };
    config.connect_timeout = Some(CONNECT_WITHIN);
    // Whoever asks knows better when to ask again.
    config.default_retry = false;
    Client::try_from(config).context("the client of the API server cannot be made")
}

/// What went wrong, in one line for a person.
#[must_use]
pub fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let message = if status.message.is_empty() { &status.reason } else { &status.message };
        return format!("the API server answered {}: {message}", status.code);
    }
    // Causes often repeat what was said before them.
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = error.source().or(Some(error));
    while let Some(error) = cause {
        let part = error.to_string();
        // The last says it, in the case of a connection.
        if !text.contains(&part) && part != "client error (Connect)" {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

/// Whether the API server said that there is no such thing, or no such type.
#[must_use]
pub fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API server was reached, and answered with an error.
#[must_use]
pub fn is_answer(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(_))
}

/// Whether the API server said that this is not allowed.
#[must_use]
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
