//! Publishing: this node's record, signed, put and its lease renewed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podspan_broker::client::{Client, Error};
use podspan_wire::{Bundle, CidrSet, Lane, NodeName, Record, RecordState, SignedRecord, UnixTime, Version};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::state::StateDir;

/// How long a record may be taken in after it was signed. A clock an hour off is no matter.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// A record is signed anew when half of its lifetime is over.
const RESIGN_AFTER: Duration = Duration::from_secs(86_400 / 2);
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

/// The next version to sign with: the next sequence of the own epoch, or a new epoch where another
/// version than one's own is known, which is that of a former life whose state was lost.
#[must_use]
pub fn next_version(own: Option<Version>, known: Option<Version>, now: UnixTime) -> Version {
    let known = known.unwrap_or_default();
    match own {
        Some(own) if own >= known => Version { epoch: own.epoch, sequence: own.sequence + 1 },
        _ => Version { epoch: now.0.max(known.epoch + 1), sequence: 1 },
    }
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
    /// The highest version of this node that was seen at the broker.
    pub seen: watch::Receiver<Option<Version>>,
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
    /// If the state directory cannot be read or written.
    pub fn sign(
        &self,
        announcement: &Announcement,
        state: RecordState,
    ) -> anyhow::Result<(SignedRecord, Version)> {
        let known = *self.seen.borrow();
        let version = next_version(self.state.version()?, known, now());
        self.state.keep_version(version)?;
        let record = announcement.record(&self.bundle, &self.cluster, version, state, now());
        Ok((record.sign(&self.bundle.cluster_key, self.bundle.grant.clone()), version))
    }

    /// Publishes whatever is announced, for ever.
    pub async fn run(self, mut announcements: watch::Receiver<Option<Announcement>>) {
        let mut failures = 0;
        let mut current: Option<Signed> = None;
        loop {
            let Some(announcement) = announcements.borrow_and_update().clone() else {
                if announcements.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let pause = match self.publish(&announcement, &mut current, &mut announcements).await {
                Ok(()) => {
                    failures = 0;
                    continue;
                }
                Err(Halt::Gone) => return,
                Err(Halt::Retry { problem, after }) => {
                    if self.published.borrow().problem.as_ref() != Some(&problem) {
                        warn!(problem, "this node's record is not published");
                    }
                    self.published.send_modify(|published| published.problem = Some(problem));
                    failures += 1;
                    after.unwrap_or_else(|| backoff(failures))
                }
            };
            // A changed announcement is no reason to hammer a broker that refuses.
            sleep(pause).await;
        }
    }

    /// Puts the record, then renews its lease until something changes or fails. What could not be put is
    /// put again as it is: a version is signed once.
    async fn publish(
        &self,
        announcement: &Announcement,
        current: &mut Option<Signed>,
        announcements: &mut watch::Receiver<Option<Announcement>>,
    ) -> Result<(), Halt> {
        let good =
            |signed: &Signed| &signed.announcement == announcement && signed.at.elapsed() < RESIGN_AFTER;
        let signed = match current.take().filter(good) {
            Some(signed) => current.insert(signed),
            None => {
                let (record, version) = self
                    .sign(announcement, RecordState::Active)
                    .map_err(|error| Halt::retry(format!("{error:#}")))?;
                current.insert(Signed {
                    announcement: announcement.clone(),
                    record,
                    version,
                    at: Instant::now(),
                })
            }
        };
        let (version, signed_at) = (signed.version, signed.at);
        let id = podspan_wire::NodeId { cluster: self.cluster.clone(), node: announcement.node.clone() };
        let mut lease = match self.client.put(&signed.record).await {
            Ok(answer) => answer.lease_seconds,
            Err(error) => return Err(self.put_failed(error, current)),
        };
        info!(%version, "this node's record is published");
        self.acknowledged(version);
        loop {
            // A third of the lease: two renewals may be lost.
            let pause = Duration::from_secs(lease).div_f64(3.0).max(Duration::from_secs(1));
            match timeout(jitter(pause), announcements.changed()).await {
                Ok(Ok(())) if announcements.borrow_and_update().as_ref() == Some(announcement) => continue,
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) => return Err(Halt::Gone),
                Err(_) => {}
            }
            if signed_at.elapsed() > RESIGN_AFTER {
                return Ok(());
            }
            match self.client.renew(&id, version).await {
                Ok(answer) => {
                    lease = answer.lease_seconds;
                    self.acknowledged(version);
                }
                // The broker lost its store, or another one answers now: put again.
                Err(Error::NotFound) => return Ok(()),
                Err(error) => return Err(self.put_failed(error, current)),
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

    fn put_failed(&self, error: Error, current: &mut Option<Signed>) -> Halt {
        match error {
            Error::Conflict { stored, .. } => {
                *current = None;
                // Either this node's state was lost, or another agent announces itself as this node. The
                // first is mended by a new epoch; the second shows as a conflict that comes back.
                let raised = self.state.version().ok().flatten().is_none_or(|own| own < stored);
                if raised && let Err(error) = self.state.keep_version(next_version(None, Some(stored), now()))
                {
                    return Halt::retry(format!("{error:#}"));
                }
                Halt::retry(format!(
                    "the broker has version {stored} of this node, which this agent did not sign: if this node was \
                     not set up anew just now, another node uses the same name"
                ))
            }
            Error::RateLimited { after } => Halt::Retry {
                problem: "the broker asks to slow down".into(),
                after: Some(after.min(Duration::from_secs(60))),
            },
            other => Halt::retry(other.to_string()),
        }
    }
}

/// A record as it was signed.
struct Signed {
    announcement: Announcement,
    record: SignedRecord,
    version: Version,
    at: Instant,
}

enum Halt {
    /// The agent ends.
    Gone,
    /// To be tried again.
    Retry { problem: String, after: Option<Duration> },
}

impl Halt {
    fn retry(problem: String) -> Self {
        Self::Retry { problem, after: None }
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
    fn versions_go_up_whatever_was_lost() {
        let v = |epoch, sequence| Version { epoch, sequence };
        let now = UnixTime(1_000);
        let cases = [
            ("a new node", None, None, v(1_000, 1)),
            ("an ordinary restart", Some(v(900, 4)), Some(v(900, 4)), v(900, 5)),
            ("signed, never put", Some(v(900, 5)), Some(v(900, 4)), v(900, 6)),
            ("state lost", None, Some(v(900, 4)), v(1_000, 1)),
            ("state lost, clock behind", None, Some(v(2_000, 4)), v(2_001, 1)),
            ("an old backup was restored", Some(v(900, 2)), Some(v(900, 4)), v(1_000, 1)),
        ];
        for (what, own, known, next) in cases {
            assert_eq!(next_version(own, known, now), next, "{what}");
            assert!(next > known.unwrap_or_default() && next > own.unwrap_or_default(), "{what}");
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        assert!(backoff(1) < Duration::from_secs(2));
        assert!(backoff(30) <= MAX_BACKOFF.mul_f64(1.25));
    }
}
