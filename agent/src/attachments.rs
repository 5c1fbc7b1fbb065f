//! Pods attached through the CNI plugin: remembered, and kept in step when other clusters come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Once};

use podspan_cni::netns;
use podspan_wire::local::{Attachment, AttachmentDetail, PodRoutes};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::earlier_pods::EarlierPods;
use crate::state::StateDir;

/// How many attachments are remembered; a node runs a few hundred pods at most.
const MAX_ATTACHMENTS: usize = 4096;

/// The pods of this node that came through the CNI plugin.
pub struct Attachments {
    state: Arc<StateDir>,
    known: BTreeMap<Attachment, AttachmentDetail>,
    /// Why what is known is not on disk, if it is not.
    problem: Option<String>,
}

impl Attachments {
    /// Takes up what was known at the end of the last life.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn load(state: Arc<StateDir>) -> anyhow::Result<Self> {
        let known =
            state.attachments()?.into_iter().map(|detail| (detail.attachment.clone(), detail)).collect();
        Ok(Self { state, known, problem: None })
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

    /// Remembers a pod's interface; an earlier one of the same name is replaced. A disk that takes nothing
    /// is no reason to refuse a pod: see [`Self::problem`].
    ///
    /// # Errors
    /// If there are too many.
    pub fn attach(&mut self, detail: AttachmentDetail) -> anyhow::Result<()> {
        if self.known.len() >= MAX_ATTACHMENTS && !self.known.contains_key(&detail.attachment) {
            anyhow::bail!("{MAX_ATTACHMENTS} pods are attached already: is the runtime's GC running?");
        }
        if self.known.get(&detail.attachment) != Some(&detail) {
            self.known.insert(detail.attachment.clone(), detail);
            self.keep();
        }
        Ok(())
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
            let done = self.attach(detail).and_then(|()| match self.problem() {
                Some(_) => Ok(()),
                None => Ok(podspan_cni::pending::forget(socket, &attachment)?),
            });
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
    pub fn detach(&mut self, attachment: &Attachment) {
        if self.known.remove(attachment).is_some() {
            self.keep();
        }
    }

    /// Forgets pods that were found to be gone, unless they were attached anew since.
    pub fn forget(&mut self, gone: &[AttachmentDetail]) {
        let before = self.known.len();
        for detail in gone {
            if self.known.get(&detail.attachment) == Some(detail) {
                self.known.remove(&detail.attachment);
            }
        }
        if self.known.len() != before {
            self.keep();
        }
    }

    /// Of the network's attachments only `valid` are left (CNI GC).
    pub fn collect(&mut self, network: &str, valid: &[Attachment]) {
        let valid: BTreeSet<&Attachment> = valid.iter().collect();
        let before = self.known.len();
        self.known.retain(|attachment, detail| detail.network != network || valid.contains(attachment));
        if self.known.len() != before {
            self.keep();
        }
    }

    fn keep(&mut self) {
        let kept = self.state.keep_attachments(&self.known.values().collect::<Vec<_>>());
        let problem = kept.err().map(|error| {
            format!("the attached pods cannot be kept on disk, a restart would forget the latest: {error:#}")
        });
        if let Some(problem) = &problem
            && self.problem.as_ref() != Some(problem)
        {
            warn!("{problem}");
        }
        self.problem = problem;
    }

    /// Tries again to keep what could not be kept.
    pub fn keep_again(&mut self) {
        if self.problem.is_some() {
            self.keep();
        }
    }

    /// Why what is known is not on disk, if it is not.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// All attachments, for [`repair`].
    #[must_use]
    pub fn details(&self) -> Vec<AttachmentDetail> {
        self.known.values().cloned().collect()
    }
}

static SAID: Once = Once::new();

/// Whether this process may enter network namespaces (setns(2): CAP_SYS_ADMIN).
fn may_enter() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // What cannot be read is tried.
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask >> CAP_SYS_ADMIN & 1 == 1)
}

/// Brings the routes inside every pod in step, also in those that were there `earlier` than podspan. Blocking: enters
/// namespaces. Returns the attachments whose namespace is gone; one that only cannot be opened now is kept.
#[must_use]
pub fn repair(
    details: &[AttachmentDetail],
    earlier: Option<&EarlierPods>,
    routes: &PodRoutes,
) -> Vec<AttachmentDetail> {
    // In the DaemonSet as it comes the agent neither may nor needs to. Their namespaces are not even seen there, which
    // says nothing about the pods.
    if !may_enter() {
        if !details.is_empty() {
            SAID.call_once(|| {
                info!(
                    "pods that are there already keep the routes they started with: without CAP_SYS_ADMIN the agent \
                     enters none. They reach other clusters by their default route, whatever changes"
                );
            });
        }
        return Vec::new();
    }
    let known = details.iter().map(|detail| &detail.attachment).collect();
    for detail in earlier.map(|earlier| earlier.chained(&known)).unwrap_or_default() {
        // The runtime forgets it when it has seen to its end.
        if let Synced::Yes(added @ 1..) = sync(&detail, routes) {
            info!(
                pod = name(&detail),
                routes = added,
                "set the routes inside a pod that was there before podspan"
            );
        }
    }
    details.iter().filter(|detail| matches!(sync(detail, routes), Synced::Gone)).cloned().collect()
}

/// Takes podspan's routes out of every pod, as far as the agent may. Blocking: enters namespaces. Returns from how many.
#[must_use]
pub fn clean(details: &[AttachmentDetail], earlier: Option<&EarlierPods>) -> usize {
    if !may_enter() {
        return 0;
    }
    let known = details.iter().map(|detail| &detail.attachment).collect();
    let earlier = earlier.map(|earlier| earlier.all(&known)).unwrap_or_default();
    details
        .iter()
        .chain(&earlier)
        .filter(|detail| matches!(sync(detail, &PodRoutes::default()), Synced::Out))
        .count()
}

/// What came of one pod.
enum Synced {
    /// All is as it should be; so many routes were added.
    Yes(usize),
    /// There are none of podspan's routes any more, and there were.
    Out,
    /// The pod is gone.
    Gone,
    /// It could not be done, and was told.
    No,
}

fn name(detail: &AttachmentDetail) -> &str {
    detail.pod.as_deref().unwrap_or(&detail.attachment.container_id)
}

fn sync(detail: &AttachmentDetail, routes: &PodRoutes) -> Synced {
    let pod = name(detail);
    let namespace = match netns::open(Path::new(&detail.netns)) {
        Ok(namespace) => namespace,
        Err(error) if is_gone(&error) => {
            debug!(pod, netns = detail.netns, %error, "a pod is gone");
            return Synced::Gone;
        }
        Err(error) => {
            warn!(pod, netns = detail.netns, %error, "a pod's namespace cannot be opened; trying again");
            return Synced::No;
        }
    };
    // Routes meant for a pod would take the node's own traffic with them.
    let own = netns::open(Path::new("/proc/self/ns/net"));
    if own.and_then(|own| netns::same(&own, &namespace)).unwrap_or(true) {
        warn!(pod, netns = detail.netns, "this pod's namespace is the node's own: it is left alone");
        return Synced::No;
    }
    let consequence = "it reaches other clusters by its default route";
    match podspan_cni::pod_routes::sync(&namespace, &detail.attachment.interface, routes, &detail.gateways) {
        Ok(report) => {
            for (cidr, error) in &report.failed {
                warn!(pod, %cidr, error, "a route inside a pod could not be set; {consequence}");
            }
            match report.removed.is_empty() || !routes.cidrs.is_empty() {
                true => Synced::Yes(report.added.len()),
                false => Synced::Out,
            }
        }
        Err(error) => {
            warn!(pod, %error, "the routes inside a pod could not be set; {consequence}");
            Synced::No
        }
    }
}

/// Whether the namespace is gone for good: no file any more, the plain file that a runtime leaves behind
/// when it has unmounted the namespace, or no process any more (`/proc/PID/ns/net`).
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(libc::ESRCH)
}

/// A look at the routes inside all pods.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// The pods that came through the plugin.
    pub details: Vec<AttachmentDetail>,
    /// Where to look for those that were there before.
    pub earlier: Option<EarlierPods>,
    /// What should stand in them.
    pub routes: PodRoutes,
}

/// Carries out the latest [`Repair`], one at a time, off the async threads. The receiver yields
/// attachments whose pods are gone.
#[must_use]
pub fn spawn_repair() -> (watch::Sender<Repair>, mpsc::Receiver<Vec<AttachmentDetail>>) {
    let (sender, mut wanted) = watch::channel(Repair::default());
    let (found, gone) = mpsc::channel(1);
    tokio::spawn(async move {
        while wanted.changed().await.is_ok() {
            let Repair { details, earlier, routes } = wanted.borrow_and_update().clone();
            let look = move || repair(&details, earlier.as_ref(), &routes);
            let Ok(gone) = tokio::task::spawn_blocking(look).await else { continue };
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
        again.collect("x", &[detail("b", "x").attachment]);
        let left: Vec<String> = again.details().into_iter().map(|d| d.attachment.container_id).collect();
        assert_eq!(left, ["b", "c"]);
        again.detach(&detail("b", "x").attachment);
        again.detach(&detail("b", "x").attachment);
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
    fn a_pod_attached_anew_is_not_forgotten_for_its_former_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let mut attachments = Attachments::load(Arc::new(StateDir::open(dir.path()).unwrap())).unwrap();
        attachments.attach(detail("a", "x")).unwrap();
        let gone = repair(&attachments.details(), None, &PodRoutes::default());
        let anew = AttachmentDetail { netns: "/elsewhere".into(), ..detail("a", "x") };
        attachments.attach(anew.clone()).unwrap();
        attachments.forget(&gone);
        assert_eq!(attachments.details(), std::slice::from_ref(&anew));
        attachments.forget(&[anew]);
        assert!(attachments.is_empty());
    }

    #[test]
    fn a_full_disk_refuses_no_pod_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path()).unwrap());
        let mut attachments = Attachments::load(state.clone()).unwrap();
        let taken = dir.path().join(".attachments.json.tmp");
        std::fs::create_dir(&taken).unwrap();
        attachments.attach(detail("a", "x")).unwrap();
        assert!(attachments.problem().unwrap().contains("attachments.json"), "{:?}", attachments.problem());
        std::fs::remove_dir(&taken).unwrap();
        attachments.keep_again();
        assert_eq!(attachments.problem(), None);
        assert_eq!(state.attachments().unwrap().len(), 1, "what was missed is made up for");
    }

    #[test]
    fn only_what_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        // What a runtime leaves behind when it has unmounted a namespace.
        let plain = dir.path().join("unmounted");
        std::fs::write(&plain, "").unwrap();
        // A path that cannot be followed says nothing of the pod.
        let endless = dir.path().join("loop");
        std::os::unix::fs::symlink(&endless, &endless).unwrap();
        let at = |name: &str, path: &Path| AttachmentDetail {
            netns: path.display().to_string(),
            ..detail(name, "x")
        };
        let gone = repair(&[at("plain", &plain), at("loop", &endless)], None, &PodRoutes::default());
        assert_eq!(gone, [at("plain", &plain)]);
    }

    #[test]
    fn a_pod_that_is_gone_is_told() {
        assert_eq!(repair(&[detail("a", "x")], None, &PodRoutes::default()).len(), 1);
    }
}
