//! Pods attached through the CNI plugin: remembered, and kept in step when other clusters come and go.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use podspan_wire::local::{Attachment, AttachmentDetail, PodRoutes};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::state::StateDir;

/// How many attachments are remembered; a node runs a few hundred pods at most.
const MAX_ATTACHMENTS: usize = 4096;

/// The pods of this node that came through the CNI plugin.
pub struct Attachments {
    state: Arc<StateDir>,
    known: BTreeMap<Attachment, AttachmentDetail>,
}

impl Attachments {
    /// Takes up what was known at the end of the last life.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn load(state: Arc<StateDir>) -> anyhow::Result<Self> {
        let known =
            state.attachments()?.into_iter().map(|detail| (detail.attachment.clone(), detail)).collect();
        Ok(Self { state, known })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether this one is known.
    #[must_use]
    pub fn contains(&self, attachment: &Attachment) -> bool {
        self.known.contains_key(attachment)
    }

    /// Remembers a pod's interface; an earlier one of the same name is replaced.
    ///
    /// # Errors
    /// If there are too many, or it cannot be kept.
    pub fn attach(&mut self, detail: AttachmentDetail) -> anyhow::Result<()> {
        if self.known.len() >= MAX_ATTACHMENTS && !self.known.contains_key(&detail.attachment) {
            anyhow::bail!("{MAX_ATTACHMENTS} pods are attached already: is the runtime's GC running?");
        }
        if self.known.get(&detail.attachment) == Some(&detail) {
            return Ok(());
        }
        let key = detail.attachment.clone();
        self.known.insert(key, detail);
        self.keep()
    }

    /// Takes in the pods that were added while no agent answered: the CNI plugin left a note of each beside
    /// the socket. A note goes once its pod is on disk here.
    pub fn take_pending(&mut self, socket: &Path) -> usize {
        let kept = match podspan_cni::pending::list(socket) {
            Ok(kept) => kept,
            Err(error) => {
                warn!(%error, "the pods that were added meanwhile cannot be listed");
                return 0;
            }
        };
        for (path, why) in kept.unreadable {
            warn!(path = %path.display(), why, "the note of a pod cannot be read; its routes are set when the runtime checks it");
        }
        let mut taken = 0;
        for detail in kept.details {
            let attachment = detail.attachment.clone();
            let done =
                self.attach(detail).and_then(|()| Ok(podspan_cni::pending::forget(socket, &attachment)?));
            match done {
                Ok(()) => taken += 1,
                Err(error) => {
                    warn!(error = format!("{error:#}"), "a pod that was added meanwhile cannot be taken in")
                }
            }
        }
        taken
    }

    /// Forgets a pod's interface, whether it was known or not.
    ///
    /// # Errors
    /// If that cannot be kept.
    pub fn detach(&mut self, attachment: &Attachment) -> anyhow::Result<()> {
        match self.known.remove(attachment) {
            Some(_) => self.keep(),
            None => Ok(()),
        }
    }

    /// Forgets the network's attachments that are not in `valid` (CNI spec section 4, GC).
    ///
    /// # Errors
    /// If that cannot be kept.
    pub fn collect(&mut self, network: &str, valid: &[Attachment]) -> anyhow::Result<()> {
        let before = self.known.len();
        self.known.retain(|attachment, detail| detail.network != network || valid.contains(attachment));
        if self.known.len() == before { Ok(()) } else { self.keep() }
    }

    fn keep(&self) -> anyhow::Result<()> {
        self.state.keep_attachments(&self.known.values().collect::<Vec<_>>())
    }

    /// All attachments, for [`repair`].
    #[must_use]
    pub fn details(&self) -> Vec<AttachmentDetail> {
        self.known.values().cloned().collect()
    }
}

/// Brings the routes inside every pod in step. Blocking: enters namespaces. Returns the attachments whose
/// namespace is gone.
#[must_use]
pub fn repair(details: &[AttachmentDetail], routes: &PodRoutes) -> Vec<Attachment> {
    let mut gone = Vec::new();
    for detail in details {
        let namespace = match podspan_cni::netns::open(Path::new(&detail.netns)) {
            Ok(file) => file,
            Err(error) => {
                debug!(netns = detail.netns, %error, "a pod is gone");
                gone.push(detail.attachment.clone());
                continue;
            }
        };
        let pod = detail.pod.as_deref().unwrap_or(&detail.attachment.container_id);
        let consequence = "it reaches other clusters by its default route";
        match podspan_cni::pod_routes::sync(
            &namespace,
            &detail.attachment.interface,
            routes,
            &detail.gateways,
        ) {
            Ok(report) => {
                for (cidr, error) in report.failed {
                    warn!(pod, %cidr, error, "a route inside a pod could not be set; {consequence}");
                }
            }
            Err(error) => warn!(pod, %error, "the routes inside a pod could not be set; {consequence}"),
        }
    }
    gone
}

/// A look at the routes inside all pods.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// The pods.
    pub details: Vec<AttachmentDetail>,
    /// What should stand in them.
    pub routes: PodRoutes,
}

/// Carries out the latest [`Repair`], one at a time, off the async threads. The receiver yields
/// attachments whose pods are gone.
#[must_use]
pub fn spawn_repair() -> (watch::Sender<Repair>, mpsc::Receiver<Vec<Attachment>>) {
    let (sender, mut wanted) = watch::channel(Repair::default());
    let (found, gone) = mpsc::channel(1);
    tokio::spawn(async move {
        while wanted.changed().await.is_ok() {
            let Repair { details, routes } = wanted.borrow_and_update().clone();
            let Ok(gone) = tokio::task::spawn_blocking(move || repair(&details, &routes)).await else {
                continue;
            };
            if !gone.is_empty() && found.send(gone).await.is_err() {
                return;
            }
        }
    });
    (sender, gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(container: &str, network: &str) -> AttachmentDetail {
        AttachmentDetail {
            attachment: Attachment { container_id: container.into(), interface: "eth0".into() },
            netns: "/nowhere".into(),
            network: network.into(),
            addresses: vec!["10.1.1.5".parse().unwrap()],
            gateways: vec!["10.1.1.1".parse().unwrap()],
            pod: None,
        }
    }

    #[test]
    fn they_outlive_the_agent_and_are_collected_per_network() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path()).unwrap());
        let mut attachments = Attachments::load(state.clone()).unwrap();
        for (container, network) in [("a", "x"), ("b", "x"), ("c", "y")] {
            attachments.attach(detail(container, network)).unwrap();
        }
        let mut again = Attachments::load(state).unwrap();
        assert_eq!(again.len(), 3);
        again.collect("x", &[detail("b", "x").attachment]).unwrap();
        let left: Vec<String> = again.details().into_iter().map(|d| d.attachment.container_id).collect();
        assert_eq!(left, ["b", "c"]);
        again.detach(&detail("b", "x").attachment).unwrap();
        again.detach(&detail("b", "x").attachment).unwrap();
        assert!(again.contains(&detail("c", "y").attachment) && again.len() == 1);
    }

    #[test]
    fn pods_added_while_no_agent_ran_are_taken_in() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        podspan_cni::pending::keep(&socket, &detail("late", "x")).unwrap();
        std::fs::write(podspan_cni::pending::directory(&socket).join("bad@eth0.json"), "{").unwrap();
        let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
        let mut attachments = Attachments::load(state.clone()).unwrap();
        assert_eq!(attachments.take_pending(&socket), 1);
        assert!(attachments.contains(&detail("late", "x").attachment));
        assert_eq!(attachments.take_pending(&socket), 0, "the note is gone");
        assert_eq!(Attachments::load(state).unwrap().len(), 1);
    }

    #[test]
    fn a_pod_that_is_gone_is_told() {
        assert_eq!(repair(&[detail("a", "x")], &PodRoutes::default()).len(), 1);
    }
}
