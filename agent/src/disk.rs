//! What is written to the state directory while the agent runs: off the controller's loop, in order, and
//! what failed remembered until it works. A slow or full disk must hold nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podspan_wire::{NodeId, UnixTime};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::warn;

use crate::state::{Endpoints, Known, StateDir};

/// How long the end of what is being written is waited for when the agent ends.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// What is known of the other clusters.
    Known,
    /// Where peers were last heard.
    Endpoints,
    /// Which nodes of the own cluster need a tunnel.
    Delivery,
    /// That the lanes' keys are in use.
    LanesInUse,
}

impl What {
    fn of(self) -> &'static str {
        match self {
            Self::Known => {
                "what is known of the other clusters cannot be kept on disk; without a broker a restart would forget \
                 the latest of it"
            }
            Self::Endpoints => {
                "the endpoints of peers cannot be kept on disk; after a restart those behind NAT dial again"
            }
            Self::Delivery => {
                "which nodes of this cluster need a tunnel cannot be kept on disk; after a restart it is found out anew"
            }
            Self::LanesInUse => "the use of the lanes' keys cannot be noted on disk",
        }
    }
}

/// Something to write.
pub enum Job {
    /// See [`What::Known`].
    Known(Known),
    /// See [`What::Endpoints`].
    Endpoints(Endpoints),
    /// See [`What::Delivery`].
    Delivery(BTreeSet<NodeId>),
    /// See [`What::LanesInUse`]: the time now.
    LanesInUse(UnixTime),
}

impl Job {
    fn what(&self) -> What {
        match self {
            Self::Known(_) => What::Known,
            Self::Endpoints(_) => What::Endpoints,
            Self::Delivery(_) => What::Delivery,
            Self::LanesInUse(_) => What::LanesInUse,
        }
    }

    fn write(&self, state: &StateDir) -> anyhow::Result<()> {
        match self {
            Self::Known(known) => state.keep_known(known),
            Self::Endpoints(endpoints) => state.keep_endpoints(endpoints),
            Self::Delivery(nodes) => state.keep_delivery(nodes),
            Self::LanesInUse(now) => state.touch_lanes(*now),
        }
    }
}

/// The writer. One job of a kind is under way at a time.
pub struct Disk {
    jobs: mpsc::UnboundedSender<Job>,
    done: mpsc::UnboundedReceiver<(What, Option<String>)>,
    busy: BTreeSet<What>,
    problems: BTreeMap<What, String>,
    task: JoinHandle<()>,
}

impl Disk {
    /// Starts the writer. Within a Tokio runtime.
    #[must_use]
    pub fn start(state: Arc<StateDir>) -> Self {
        let (jobs, mut wanted) = mpsc::unbounded_channel::<Job>();
        let (ended, done) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(job) = wanted.recv().await {
                let (what, state) = (job.what(), state.clone());
                let problem = match spawn_blocking(move || job.write(&state)).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{error:#}")),
                    Err(error) => Some(error.to_string()),
                };
                if ended.send((what, problem)).is_err() {
                    return;
                }
            }
        });
        Self { jobs, done, busy: BTreeSet::new(), problems: BTreeMap::new(), task }
    }

    /// Whether a job of this kind is under way.
    #[must_use]
    pub fn busy(&self, what: What) -> bool {
        self.busy.contains(&what)
    }

    /// Hands a job to the writer; does nothing while one of its kind is under way.
    pub fn write(&mut self, job: Job) {
        let what = job.what();
        if self.busy.insert(what) && self.jobs.send(job).is_err() {
            self.busy.remove(&what);
            self.problems.insert(what, format!("{}: the writer has ended; restart the agent", what.of()));
        }
    }

    /// The next job that ended. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<What> {
        let (what, problem) = self.done.recv().await?;
        self.busy.remove(&what);
        match problem {
            None => {
                self.problems.remove(&what);
            }
            Some(why) => {
                let problem = format!("{}: {why}", what.of());
                if self.problems.insert(what, problem.clone()).as_ref() != Some(&problem) {
                    warn!("{problem}");
                }
            }
        }
        Some(what)
    }

    /// Whether the last job of this kind failed.
    #[must_use]
    pub fn failed(&self, what: What) -> bool {
        self.problems.contains_key(&what)
    }

    /// What could not be written, for a person.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values()
    }

    /// Waits until all was written, or for some seconds.
    pub async fn finish(self) {
        drop(self.jobs);
        drop(self.done);
        if timeout(LAST_WRITES, self.task).await.is_err() {
            warn!("the state directory takes no writes; ending without the last");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_fails_is_told_until_it_works() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path()).unwrap());
        let mut disk = Disk::start(state.clone());
        let taken = dir.path().join(".known.json.tmp");
        std::fs::create_dir(&taken).unwrap();
        disk.write(Job::Known(Known::default()));
        assert!(disk.busy(What::Known));
        disk.write(Job::Known(Known::default()));
        assert_eq!(disk.next().await, Some(What::Known));
        assert!(disk.failed(What::Known) && !disk.busy(What::Known));
        // Something else that works takes nothing back.
        disk.write(Job::Endpoints(Endpoints::new()));
        assert_eq!(disk.next().await, Some(What::Endpoints));
        assert!(disk.problems().any(|problem| problem.contains("known.json")));
        std::fs::remove_dir(&taken).unwrap();
        disk.write(Job::Known(Known::default()));
        assert_eq!(disk.next().await, Some(What::Known));
        assert_eq!(disk.problems().count(), 0);
        disk.write(Job::LanesInUse(UnixTime(7)));
        disk.finish().await;
        assert_eq!(Arc::strong_count(&state), 1, "the writer has let go");
    }
}
