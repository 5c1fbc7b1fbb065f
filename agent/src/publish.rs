//! Publishing: this node's record, signed, put and its lease renewed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use podspan_broker::client::{Client, Error};
use podspan_wire::{Bundle, CidrSet, Lane, NodeName, Record, RecordState, SignedRecord, UnixTime, Version};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

pub use crate::conflict::Seen;
use crate::conflict::{Way, next_version, way};
use crate::state::StateDir;

/// How long a record may be taken in after it was signed. A clock an hour off is no matter.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// A record is signed anew when half of its lifetime is over.
const RESIGN_AFTER: Duration = Duration::from_secs(86_400 / 2);
/// By how much the end of a record may lie beyond its lifetime before it is signed anew: the clock was
/// set back since.
const CLOCK_SLACK: Duration = Duration::from_secs(3_600);
/// What of a broker's word on the time of a lease is believed, in seconds.
const LEASE_BOUNDS: (u64, u64) = (3, 3_600);
/// How long a broker can make this node wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// What the node announces: a record without version and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The node's name.
    pub node: NodeName,
    /// Its lanes.
    pub lanes: Vec<Lane>,
    /// Its underlay addresses.
    pub endpoints: Vec<IpAddr>,
    /// Its pod CIDRs.
    pub pod_cidrs: CidrSet,
    /// The service CIDRs it translates.
    pub service_cidrs: CidrSet,
    /// Whether it is a gateway.
    pub gateway: bool,
}

impl Announcement {
    /// The record that says this.
    #[must_use]
    pub fn record(
        &self,
        bundle: &Bundle,
        cluster: &podspan_wire::ClusterId,
        version: Version,
        state: RecordState,
        now: UnixTime,
    ) -> Record {
        Record {
            cluster_set: bundle.cluster_set,
            cluster: cluster.clone(),
            node: self.node.clone(),
            state,
            lanes: self.lanes.clone(),
            endpoints: self.endpoints.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            // Only gateways are asked to translate.
            service_cidrs: if self.gateway { self.service_cidrs.clone() } else { CidrSet::default() },
            gateway: self.gateway,
            version,
            not_after: now.after(LIFETIME),
            extensions: BTreeMap::new(),
        }
    }
}

/// How the publishing goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The version that was last acknowledged.
    pub version: Option<Version>,
    /// When a broker last acknowledged a record or a renewal.
    pub acknowledged: Option<UnixTime>,
    /// Why it does not go, if it does not.
    pub problem: Option<String>,
}

/// Publishes one node.
pub struct Publisher {
    /// The way to the brokers.
    pub client: Arc<Client>,
    /// Who signs.
    pub bundle: Arc<Bundle>,
    /// The node's cluster.
    pub cluster: podspan_wire::ClusterId,
    /// Where versions are kept.
    pub state: Arc<StateDir>,
    /// What was seen of this node at the broker.
    pub seen: watch::Receiver<Seen>,
    /// How it goes, for status and metrics.
    pub published: watch::Sender<Published>,
}

fn now() -> UnixTime {
    SystemTime::now().into()
}

impl Publisher {
    /// Signs what is announced. The version is on disk before it is signed with.
    ///
    /// # Errors
    /// If the state directory cannot be read or written, or there is no version left.
    pub fn sign(&self, announcement: &Announcement, state: RecordState) -> anyhow::Result<Signed> {
        let known = self.seen.borrow().highest;
        let version = next_version(self.state.version()?, known, now()).with_context(|| {
            format!("no higher version is left for {}: give this node another name", announcement.node)
        })?;
        self.state.keep_version(version)?;
        let record = announcement.record(&self.bundle, &self.cluster, version, state, now());
        Ok(Signed {
            announcement: announcement.clone(),
            signed: record.sign(&self.bundle.cluster_key, self.bundle.grant.clone()),
            version,
            not_after: record.not_after,
            at: Instant::now(),
        })
    }

    /// Publishes whatever is announced, for ever.
    pub async fn run(mut self, mut announcements: watch::Receiver<Option<Announcement>>) {
        let mut failures = 0;
        let mut progress = Progress::default();
        loop {
            let Some(announcement) = announcements.borrow_and_update().clone() else {
                if announcements.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match self.publish(&announcement, &mut progress, &mut announcements).await {
                Ok(()) => failures = 0,
                Err(Halt::Gone) => return,
                Err(Halt::Retry { problem, after, .. }) => {
                    self.tell(problem);
                    failures += 1;
                    // A changed announcement is no reason to hammer a broker that refuses.
                    let pause = backoff(failures);
                    sleep(after.map_or(pause, |after| after.clamp(pause, LONGEST_WAIT))).await;
                }
                Err(Halt::Usurped { problem }) => {
                    self.tell(problem);
                    // No fight: the other agent has the name until nobody renews its lease any more.
                    let free = |seen: &Seen| seen.stored.is_some_and(|stored| !stored.held);
                    if self.seen.wait_for(free).await.is_err() {
                        return;
                    }
                    progress = Progress::default();
                    sleep(backoff(1)).await;
                }
            }
        }
    }

    fn tell(&self, problem: String) {
        if self.published.borrow().problem.as_ref() != Some(&problem) {
            warn!(problem, "this node's record is not published");
        }
        self.published.send_modify(|published| published.problem = Some(problem));
    }

    /// Puts the record, then renews its lease until something changes or fails. What could not be put is
    /// put again as it is: a version is signed once.
    async fn publish(
        &self,
        announcement: &Announcement,
        progress: &mut Progress,
        announcements: &mut watch::Receiver<Option<Announcement>>,
    ) -> Result<(), Halt> {
        let good = |signed: &Signed| &signed.announcement == announcement && signed.is_fresh(now());
        let signed = match progress.current.take().filter(good) {
            Some(signed) => signed,
            None => self
                .sign(announcement, RecordState::Active)
                .map_err(|error| Halt::retry(format!("{error:#}")))?,
        };
        let signed = &*progress.current.insert(signed);
        let version = signed.version;
        let id = podspan_wire::NodeId { cluster: self.cluster.clone(), node: announcement.node.clone() };
        let mut lease = match self.client.put(&signed.signed).await {
            Ok(answer) => answer.lease_seconds,
            Err(error) => {
                let halt = self.failed(error, version, progress.acknowledged);
                if !halt.keeps_record() {
                    progress.current = None;
                }
                return Err(halt);
            }
        };
        info!(%version, "this node's record is published");
        progress.acknowledged = true;
        self.acknowledged(version);
        loop {
            // A third of the lease: two renewals may be lost.
            let pause = Duration::from_secs(lease.clamp(LEASE_BOUNDS.0, LEASE_BOUNDS.1)) / 3;
            match timeout(jitter(pause), announcements.changed()).await {
                Ok(Ok(())) if announcements.borrow_and_update().as_ref() == Some(announcement) => continue,
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) => return Err(Halt::Gone),
                Err(_) => {}
            }
            if !signed.is_fresh(now()) {
                return Ok(());
            }
            match self.client.renew(&id, version).await {
                Ok(answer) => {
                    lease = answer.lease_seconds;
                    self.acknowledged(version);
                }
                // The broker lost its store, or another one that is behind answers now: put again.
                Err(Error::NotFound) => return Ok(()),
                Err(Error::Conflict { stored, .. }) if stored < version => return Ok(()),
                Err(error) => {
                    let halt = self.failed(error, version, progress.acknowledged);
                    if !halt.keeps_record() {
                        progress.current = None;
                    }
                    return Err(halt);
                }
            }
        }
    }

    fn acknowledged(&self, version: Version) {
        self.published.send_replace(Published {
            version: Some(version),
            acknowledged: Some(now()),
            problem: None,
        });
    }

    /// What follows from an error of the broker's.
    fn failed(&self, error: Error, version: Version, acknowledged: bool) -> Halt {
        match error {
            Error::Conflict { stored, .. } => {
                let seen = *self.seen.borrow();
                match way(version, stored, acknowledged, &seen, now()) {
                    Way::PutAgain => Halt::retry(format!(
                        "the broker refused version {version} of this node for the older {stored}: it does not keep \
                         to its own rules"
                    )),
                    Way::Unproven => Halt::retry(format!(
                        "the broker says that it has version {stored} of this node, but has not shown that record: \
                         it may not tell the truth"
                    )),
                    Way::Usurped => Halt::Usurped {
                        problem: format!(
                            "another agent has announced itself as this node since, with version {stored}: give one \
                             of the two another name; this one stays silent until the other has ended"
                        ),
                    },
                    Way::GoAbove => {
                        let raised = next_version(None, Some(stored), now());
                        if let Some(Err(error)) = raised.map(|version| self.state.keep_version(version)) {
                            return Halt::retry(format!("{error:#}"));
                        }
                        Halt::Retry {
                            problem: format!(
                                "the broker has version {stored} of this node, which this agent did not sign: if \
                                 this node was not set up anew just now, another node uses the same name"
                            ),
                            after: None,
                            anew: true,
                        }
                    }
                }
            }
            Error::RateLimited { after } => Halt::Retry {
                problem: "the broker asks to slow down".into(),
                after: Some(after),
                anew: false,
            },
            other => Halt::retry(other.to_string()),
        }
    }
}

/// How far publishing has come.
#[derive(Default)]
struct Progress {
    /// What was signed last, and can be put again.
    current: Option<Signed>,
    /// Whether a broker has taken a record.
    acknowledged: bool,
}

/// A record as it was signed.
pub struct Signed {
    announcement: Announcement,
    /// The record.
    pub signed: SignedRecord,
    version: Version,
    not_after: UnixTime,
    at: Instant,
}

impl Signed {
    /// Whether the record need not be signed anew, by this node's clock as it is now: that may have been
    /// set since.
    fn is_fresh(&self, now: UnixTime) -> bool {
        let left = self.not_after.since(now);
        self.at.elapsed() < RESIGN_AFTER && left > LIFETIME - RESIGN_AFTER && left <= LIFETIME + CLOCK_SLACK
    }
}

enum Halt {
    /// The agent ends.
    Gone,
    /// To be tried again; `anew` with another record.
    Retry { problem: String, after: Option<Duration>, anew: bool },
    /// Another agent has this node's name.
    Usurped { problem: String },
}

impl Halt {
    fn retry(problem: String) -> Self {
        Self::Retry { problem, after: None, anew: false }
    }

    fn keeps_record(&self) -> bool {
        matches!(self, Self::Retry { anew: false, .. })
    }
}

fn backoff(failures: u32) -> Duration {
    jitter(Duration::from_millis(500 << failures.min(5)).min(MAX_BACKOFF))
}

/// Between three quarters and five quarters of `pause`, so that nodes that failed together do not come
/// back together.
#[must_use]
pub fn jitter(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.75 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_makes_a_new_record() {
        let announcement = Announcement {
            node: "node-1".parse().unwrap(),
            lanes: Vec::new(),
            endpoints: Vec::new(),
            pod_cidrs: CidrSet::default(),
            service_cidrs: CidrSet::default(),
            gateway: false,
        };
        let alpha = crate::membership::tests::cluster("alpha", 1);
        let now = UnixTime(1_000_000);
        let signed = Signed {
            announcement,
            signed: alpha.sign(&alpha.record(1, true, 1)),
            version: Version::default(),
            not_after: now.after(LIFETIME),
            at: Instant::now(),
        };
        let hour = Duration::from_secs(3_600);
        assert!(signed.is_fresh(now));
        assert!(signed.is_fresh(now.after(hour)));
        assert!(!signed.is_fresh(now.after(hour * 13)), "set forward: others would soon refuse it");
        assert!(!signed.is_fresh(UnixTime(now.0 - 2 * 3_600)), "set back");
    }

    #[test]
    fn pauses_grow_and_end() {
        assert!(backoff(1) < Duration::from_secs(2));
        assert!(backoff(30) <= MAX_BACKOFF.mul_f64(1.25));
    }
}
