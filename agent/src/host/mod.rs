//! The agent's hand on the kernel: `Desired -> plan -> apply -> observed`, and round again.
//!
//! [`HostDesired`] says what should stand, [`plan`](plan::plan) compares it with what does, and the steps
//! between are carried out. All of it can be found again after a crash by the mark it carries:
//!
//! | thing | podspan's by |
//! | --- | --- |
//! | interface | its alias ([`ALIAS`]); a TUN of the name without any alias is taken over |
//! | addresses | `IFA_PROTO` [`PROTOCOL`], on that interface |
//! | routes | protocol [`PROTOCOL`] in podspan's own tables |
//! | rules | `FRA_PROTOCOL` [`PROTOCOL`], leading to these tables |
//! | nftables table `inet podspan` | its comment ([`nft::COMMENT`]) |
//! | sysctls of others | the state directory, written before the first change |
//!
//! Whoever removes or changes such a thing is heard over netlink, and it is put back; a full comparison now
//! and then finds what was not heard. What does not carry the mark is never changed. [`clean`] takes out all.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use podspan_wire::Cidr;
use podspan_wire::status::KernelStatus;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::debug;

mod attempts;
mod clean;
mod engine;
mod facts;
mod model;
mod monitor;
mod netlink;
pub mod nft;
mod nft_command;
mod nft_table;
pub mod plan;
mod procfs;
mod state;
pub mod sysctl;
#[cfg(test)]
mod tests_plan;
#[cfg(test)]
mod tests_support;

pub use clean::{CleanError, clean};
pub use facts::{DefaultRoute, Facts, Interface, facts};
pub use model::{
    HostDesired, NftState, Observed, ObservedAddress, ObservedLink, ObservedRoute, ObservedRule, PodDelivery,
};

/// The number by which podspan's routes, rules and addresses are known (`rtm_protocol`, `FRA_PROTOCOL`,
/// `IFA_PROTO`). It is in no `rt_protos` file known to us.
pub const PROTOCOL: u8 = podspan_cni::pod_routes::PROTOCOL;

/// The alias of podspan's interface.
pub const ALIAS: &str = "podspan: tunnels to the other clusters";

/// Where the hand on the kernel keeps its memory.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// A directory of its own; made when first needed.
    pub state_dir: PathBuf,
}

/// What happened that others must act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// The interface was there and is not any more, or is another of the same name: the data plane must be
    /// started anew. Said again with each full comparison as long as there is none.
    InterfaceGone,
    /// The underlay's MTU, addresses or default routes changed: see [`facts`].
    UnderlayChanged,
}

/// The hand on the kernel. It works in a task of its own, in the network namespace of the thread that
/// started it. Dropped, it lets go at once and leaves everything as it stands, as a crash would.
#[derive(Debug)]
pub struct Host {
    input: Option<watch::Sender<engine::Input>>,
    applied: watch::Receiver<u64>,
    shared: Arc<Mutex<engine::Shared>>,
    standing_mtus: BTreeMap<Cidr, u32>,
    task: Option<JoinHandle<()>>,
}

impl Host {
    /// Opens the netlink sockets and starts the task; nothing is changed before the first [`Host::set`].
    /// Within a Tokio runtime, of either kind.
    ///
    /// # Errors
    /// If the sockets cannot be opened or the memory cannot be read. A memory that holds something else is
    /// put aside and told of in [`Host::notes`].
    pub async fn start(settings: HostSettings) -> io::Result<(Self, mpsc::Receiver<HostEvent>)> {
        let (input, input_end) = watch::channel(engine::Input::default());
        let (applied_end, applied) = watch::channel(0);
        // A reader that lags misses nothing: both events say no more than "look again".
        let (events, events_end) = mpsc::channel(8);
        let shared = Arc::new(Mutex::new(engine::Shared::default()));
        let engine = engine::Engine::open(settings.state_dir, shared.clone(), events)?;
        let standing_mtus = engine.standing_mtus().await.unwrap_or_else(|error| {
            debug!(%error, "the routes of an earlier agent cannot be read");
            BTreeMap::new()
        });
        let task = tokio::spawn(engine.run(input_end, applied_end));
        Ok((Self { input: Some(input), applied, shared, standing_mtus, task: Some(task) }, events_end))
    }

    /// The MTU, bytes, of each of podspan's routes that stood at the start: what an earlier agent had found out
    /// about the paths.
    #[must_use]
    pub fn standing_mtus(&self) -> &BTreeMap<Cidr, u32> {
        &self.standing_mtus
    }

    /// Notes that the agent is about to make the TUN `interface`, so that [`clean`] knows it even if the agent
    /// dies before it has given it podspan's alias. To be called before [`Host::start`].
    ///
    /// # Errors
    /// If the state directory cannot be written to.
    pub fn claim(settings: &HostSettings, interface: &str) -> io::Result<()> {
        match state::State::claim(&settings.state_dir, interface) {
            // What is unreadable is put aside, and told of, by the start.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(()),
            done => done,
        }
    }

    /// What should stand from now on, whole. Returns at once; what cannot be done is in [`Host::status`] and
    /// tried again.
    pub fn set(&self, desired: HostDesired) {
        if let Some(input) = &self.input {
            input.send_modify(|input| {
                input.generation += 1;
                input.desired = Some(desired);
            });
        }
    }

    /// Waits until what was last set has been tried once.
    pub async fn settled(&self) {
        let generation = self.input.as_ref().map_or(0, |input| input.borrow().generation);
        // The task's end is as settled as it gets.
        let _ = self.applied.clone().wait_for(|applied| *applied >= generation).await;
    }

    /// What stands, as it was last read back, and what does not.
    #[must_use]
    pub fn status(&self) -> KernelStatus {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = shared.status.clone();
        if self.task.as_ref().is_some_and(JoinHandle::is_finished) {
            status.failing.insert(0, "the kernel is not looked after any more: restart the agent".to_owned());
        }
        status
    }

    /// What is no failure but a person may wonder about, such as IPv6 being off on this host.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).notes.clone()
    }

    /// Ends the task after what it is just doing; everything stays as it stands.
    pub async fn stop(mut self) {
        self.input = None;
        if let Some(mut task) = self.task.take()
            && tokio::time::timeout(std::time::Duration::from_secs(5), &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
