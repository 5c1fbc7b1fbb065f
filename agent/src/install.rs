//! What the agent does for its own place on the node, beside forwarding: the CNI plugin goes in, and when
//! podspan is taken out of the cluster everything goes with it.

use podspan_kubernetes::crd::CniMode;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::cni_install::{self, CniSettings, Mode, Order};
use crate::config::{Config, Source};
use crate::kube::client;
use crate::kube_leave::Leave;

/// The installer, and the watch over podspan's own objects; each only where the settings ask for it.
pub struct Install {
    config: Config,
    orders: watch::Sender<Order>,
    installer: Option<JoinHandle<()>>,
    leave: Option<Leave>,
}

impl Install {
    /// Begins. Nothing here can fail the agent: what goes wrong is told, and tried again. Within a Tokio
    /// runtime.
    pub async fn start(config: &Config) -> Self {
        let orders = watch::Sender::new(Order::default());
        let leave = match leave(config, orders.clone()).await {
            Ok(leave) => leave,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "whether podspan is taken out of the cluster is not seen: this node stays as it is when the agent ends"
                );
                None
            }
        };
        Self { config: config.clone(), orders, installer: None, leave }
    }

    /// Does as the source of facts says about the CNI configuration. Within a Tokio runtime.
    pub fn follow(&self, mut wanted: watch::Receiver<Option<CniMode>>) {
        let orders = self.orders.clone();
        tokio::spawn(async move {
            loop {
                let mode = wanted.borrow_and_update().map(|mode| match mode {
                    CniMode::Auto => Mode::Auto,
                    CniMode::Append => Mode::Append,
                    CniMode::Owned => Mode::Owned,
                    CniMode::DropIn => Mode::DropIn,
                    CniMode::Off => Mode::Off,
                });
                orders.send_if_modified(|order| std::mem::replace(&mut order.mode, mode) != mode);
                if wanted.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// The agent forwards from here on: the CNI plugin goes in, if the settings ask for it. The receiver has
    /// what a person should know of it, if anything. Within a Tokio runtime.
    pub fn chain(&mut self) -> watch::Receiver<Option<String>> {
        let Some(settings) = &self.config.cni else { return watch::channel(None).1 };
        let (socket, state) = (self.config.socket.clone(), self.config.state_dir.clone());
        let (problem, task) = cni_install::spawn(settings.clone(), socket, state, self.orders.subscribe());
        self.installer = Some(task);
        problem
    }

    /// For an agent that hands over to another one: ends what was begun, and leaves everything in its place.
    pub async fn let_go(self) {
        if let Some(mut task) = self.installer {
            task.abort();
            let _ = (&mut task).await;
        }
    }

    /// For an agent that is told to stop: ends what was begun. Returns whether podspan leaves this node for
    /// good; the CNI plugin is out of every configuration then.
    pub async fn end(self) -> bool {
        let leaves = match self.leave {
            Some(leave) => leave.now().await,
            None => false,
        };
        if let Some(mut task) = self.installer {
            task.abort();
            // Its end is waited for: it must not put back what is taken out next.
            let _ = (&mut task).await;
        }
        if leaves && let Some(settings) = &self.config.cni {
            let keep_plugin = self.orders.borrow().keep_plugin;
            remove(settings, &self.config, keep_plugin).await;
        }
        leaves
    }
}

async fn leave(config: &Config, orders: watch::Sender<Order>) -> anyhow::Result<Option<Leave>> {
    let Source::Kubernetes(source) = &config.source else { return Ok(None) };
    let node = client::node_name(source)?;
    let client = client::client(source).await?;
    Ok(Some(Leave::start(client, client::namespace(), node.to_string(), orders)))
}

async fn remove(settings: &CniSettings, config: &Config, keep_plugin: bool) {
    match cni_install::uninstall(settings, &config.state_dir, keep_plugin).await {
        Ok(removed) => removed.iter().for_each(|what| info!("removed {what}")),
        // It is tried once more, and told, with everything else that is taken out.
        Err(error) => warn!(error = format!("{error:#}"), "the CNI plugin"),
    }
}
