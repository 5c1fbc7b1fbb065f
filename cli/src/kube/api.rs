//! The way to the API server.

use std::error::Error as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PropagationPolicy,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;
use tokio::time::sleep;

use super::MANAGER;
use crate::args::Where;
use crate::human;

/// How long it may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long a type may take to be served once its definition is there.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// A cluster.
pub(super) struct Cluster {
    /// The client.
    pub(super) client: Client,
    /// Its API server, for a person.
    pub(super) server: String,
}

impl Cluster {
    /// Reads the kubeconfig and makes sure that the API server answers.
    pub(super) async fn connect(args: &Where) -> Result<Self> {
        let kubeconfig = match &args.kubeconfig {
            Some(path) => {
                Kubeconfig::read_from(path).with_context(|| format!("the kubeconfig {}", path.display()))?
            }
            None => Kubeconfig::read().context(
                "there is no kubeconfig that can be used: name one with --kubeconfig, or by $KUBECONFIG",
            )?,
        };
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let contexts: Vec<&str> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
        if let Some(name) = &args.context
            && !contexts.contains(&name.as_str())
        {
            bail!("the kubeconfig has no context {name:?}; it has {}", contexts.join(", "));
        }
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &options).await.context("the kubeconfig")?;
        config.connect_timeout = Some(CONNECT_WITHIN);
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).context("the kubeconfig")?;
        client
            .apiserver_version()
            .await
            .map_err(|error| anyhow!("the API server {server} cannot be asked: {}", describe(&error)))?;
        Ok(Self { client, server })
    }

    /// The API for objects of this kind and place.
    pub(super) fn api(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let text = |key: &str| object[key].as_str().with_context(|| format!("a manifest has no {key}"));
        let (group, version) = text("apiVersion")?.split_once('/').unwrap_or(("", text("apiVersion")?));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")?));
        Ok(match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// Applies an object (server-side apply). Waits for a type that was only just defined.
    pub(super) async fn apply(&self, object: &Value, force: bool) -> Result<()> {
        let mut parameters = PatchParams::apply(MANAGER);
        parameters.force = force;
        let end = Instant::now() + SERVED_WITHIN;
        loop {
            let done = self.api(object)?.patch(name(object), &parameters, &Patch::Apply(object)).await;
            match done {
                Ok(_) => return Ok(()),
                Err(error)
                    if is_absent(&error)
                        && object["apiVersion"] == "podspan.io/v1alpha1"
                        && Instant::now() < end =>
                {
                    sleep(Duration::from_millis(200)).await;
                }
                Err(kube::Error::Api(status)) if status.code == 409 => bail!(
                    "{} was changed by others: {}. Give --force-conflicts to set it as podspan has it, or leave it to \
                     them by a kustomization of your own",
                    title(object),
                    human::safe(&status.message)
                ),
                Err(error) => bail!("{} cannot be applied: {}", title(object), describe(&error)),
            }
        }
    }

    /// The object as it stands, if it does.
    pub(super) async fn get(&self, object: &Value) -> Result<Option<DynamicObject>> {
        match self.api(object)?.get_opt(name(object)).await {
            Ok(found) => Ok(found),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => bail!("{} cannot be read: {}", title(object), describe(&error)),
        }
    }

    /// Whether an object is there, and is being deleted.
    pub(super) async fn is_going(&self, object: &Value) -> Result<bool> {
        Ok(self.get(object).await?.is_some_and(|there| there.metadata.deletion_timestamp.is_some()))
    }

    /// Deletes an object; returns whether it was there.
    pub(super) async fn delete(&self, object: &Value, propagation: PropagationPolicy) -> Result<bool> {
        let parameters = DeleteParams { propagation_policy: Some(propagation), ..DeleteParams::default() };
        match self.api(object)?.delete(name(object), &parameters).await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => bail!("{} cannot be deleted: {}", title(object), describe(&error)),
        }
    }

    /// Waits until an object is gone; returns whether it is.
    pub(super) async fn gone(&self, object: &Value, within: Duration) -> Result<bool> {
        let end = Instant::now() + within;
        while self.get(object).await?.is_some() {
            if Instant::now() >= end {
                return Ok(false);
            }
            sleep(Duration::from_millis(300)).await;
        }
        Ok(true)
    }
}

/// The object's name.
fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The object for a person: `ConfigMap podspan-system/podspan-agent`.
pub(super) fn title(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{}", name(object)),
        None => format!("{kind} {}", name(object)),
    }
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// What went wrong, in one line for a person, and what to do where that is known.
pub(super) fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let hint = match status.code {
            401 => " (the kubeconfig's credentials are not accepted: renew them)",
            403 => {
                " (this user may not: podspan is installed by one who may make ClusterRoles and namespaces)"
            }
            _ => "",
        };
        return format!("{}{hint}", human::safe(&status.message));
    }
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = error.source().or(Some(error));
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        cause = error.source();
    }
    human::safe(&text)
}
