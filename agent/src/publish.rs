//! Publishing: this node's record, signed, put and its lease renewed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::future::join_all;
use podspan_broker::client::{Client, Error};
use podspan_wire::{Bundle, CidrSet, Lane, NodeName, Record, RecordState, SignedRecord, UnixTime, Version};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::brokers;
pub use crate::conflict::Seen;
use crate::conflict::{Way, next_version, way};
use crate::delivery::{self, Report};
use crate::state::StateDir;

/// How long a record may be taken in after it was signed. A clock an hour off is no matter.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// A record is signed anew when half of its lifetime is over.
const RESIGN_AFTER: Duration = Duration::from_secs(86_400 / 2);
/// By how much the end of a record may lie beyond its lifetime before it is signed anew: the clock was
/// set back since.
const CLOCK_SLACK: Duration = Duration::from_secs(3_600);
/// How often to see whether the record must be signed anew.
const LOOK_EVERY: Duration = Duration::from_secs(5);
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
    /// Its weight as such, unless it is the default.
    pub gateway_weight: Option<u8>,
    /// Its own addresses within its pod CIDRs.
    pub host_addresses: Vec<IpAddr>,
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
            extensions: Record::extensions(self.gateway_weight, &self.host_addresses),
        }
    }
}

/// How the publishing goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The version that was last acknowledged by a broker.
    pub version: Option<Version>,
    /// When a broker last acknowledged a record or a renewal.
    pub acknowledged: Option<UnixTime>,
    /// Why no broker takes it, if none does.
    pub problem: Option<String>,
    /// Why some brokers do not, if others do: nothing is held up for as long as those answer.
    pub partly: Option<String>,
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
    /// What was seen of this node at the brokers.
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

    /// Publishes whatever is announced, for ever: at every broker, each at its own pace.
    pub async fn run(self, announcements: watch::Receiver<Option<Announcement>>) {
        let (current, record) = watch::channel(None);
        let (reports, told) = mpsc::channel(16);
        let brokers = self.client.each();
        let deliveries = brokers.into_iter().enumerate().map(|(broker, client)| {
            let id = self.cluster.clone();
            delivery::run(broker, client, id, record.clone(), reports.clone())
        });
        let deliveries: Vec<_> = deliveries.collect();
        let stands = vec![Stand::default(); deliveries.len()];
        // One task: what ends it ends all of it.
        tokio::select! {
            () = self.steer(announcements, current, told, stands) => {}
            _ = join_all(deliveries) => {}
        }
    }

    /// Decides what is to be at the brokers.
    async fn steer(
        mut self,
        mut announcements: watch::Receiver<Option<Announcement>>,
        current: watch::Sender<Option<Arc<Signed>>>,
        mut reports: mpsc::Receiver<Report>,
        mut stands: Vec<Stand>,
    ) {
        let mut failures = 0;
        loop {
            let Some(announcement) = announcements.borrow_and_update().clone() else {
                if announcements.changed().await.is_err() {
                    return;
                }
                continue;
            };
            // What could not be put is put again as it is: a version is signed once.
            let good = |signed: &Arc<Signed>| signed.announcement == announcement && signed.is_fresh(now());
            let known = current.borrow().clone().filter(good);
            let signed =
                match known.map_or_else(|| self.sign(&announcement, RecordState::Active).map(Arc::new), Ok) {
                    Ok(signed) => signed,
                    Err(error) => {
                        self.tell(format!("{error:#}"));
                        failures += 1;
                        sleep(backoff(failures)).await;
                        continue;
                    }
                };
            failures = 0;
            current.send_if_modified(|known| {
                let new = known.as_ref().map(|known| known.version) != Some(signed.version);
                *known = Some(signed.clone());
                new
            });
            match self.follow(&signed, &mut stands, &mut reports, &mut announcements).await {
                Next::Look => {}
                Next::Gone => return,
                // The deliveries wait a moment before the next attempt.
                Next::Anew => drop(current.send_replace(None)),
                Next::Usurped { problem } => {
                    current.send_replace(None);
                    self.tell(problem);
                    // No fight: the other agent has the name until nobody renews its lease any more.
                    let free = |seen: &Seen| seen.stored.is_some_and(|stored| !stored.held);
                    if self.seen.wait_for(free).await.is_err() {
                        return;
                    }
                    stands.fill(Stand::default());
                    sleep(backoff(1)).await;
                }
            }
        }
    }

    /// Takes in what the brokers say to a record, for as long as it is the one.
    async fn follow(
        &self,
        signed: &Signed,
        stands: &mut [Stand],
        reports: &mut mpsc::Receiver<Report>,
        announcements: &mut watch::Receiver<Option<Announcement>>,
    ) -> Next {
        loop {
            let report = tokio::select! {
                changed = announcements.changed() => match changed {
                    Ok(()) if announcements.borrow_and_update().as_ref() == Some(&signed.announcement) => continue,
                    Ok(()) => return Next::Look,
                    Err(_) => return Next::Gone,
                },
                () = sleep(LOOK_EVERY) => {
                    if signed.is_fresh(now()) {
                        continue;
                    }
                    return Next::Look;
                }
                Some(report) = reports.recv() => report,
            };
            if report.version != signed.version {
                continue;
            }
            let others = stands
                .iter()
                .enumerate()
                .any(|(broker, stand)| broker != report.broker && stand.version == Some(signed.version));
            let stand = &mut stands[report.broker];
            match report.outcome {
                Ok(()) => {
                    if stand.version != Some(signed.version) {
                        info!(version = %signed.version, broker = report.broker, "this node's record is published");
                    }
                    *stand = Stand { acknowledged: true, version: Some(signed.version), problem: None };
                    self.published.send_modify(|published| {
                        published.version = Some(signed.version);
                        published.acknowledged = Some(now());
                    });
                }
                Err(error) => match self.judge(error, signed.version, stand.acknowledged, others) {
                    Verdict::Problem(problem) => {
                        stand.version = None;
                        stand.problem = Some(problem);
                    }
                    Verdict::Anew(problem) => {
                        self.tell(problem);
                        return Next::Anew;
                    }
                    Verdict::Usurped(problem) => return Next::Usurped { problem },
                },
            }
            self.show(signed.version, stands);
        }
    }

    /// Tells how it stands, if every broker has answered or one has taken the record.
    fn show(&self, version: Version, stands: &[Stand]) {
        let problems: Vec<String> = stands.iter().filter_map(|stand| stand.problem.clone()).collect();
        let why = (!problems.is_empty()).then(|| problems.join("; "));
        if stands.iter().any(|stand| stand.version == Some(version)) {
            self.published.send_if_modified(|published| {
                let new = published.problem.is_some() || published.partly != why;
                if new && let Some(why) = &why {
                    warn!(why, "not every broker has this node's record");
                }
                (published.problem, published.partly) = (None, why);
                // The time is new in any case.
                true
            });
        } else if problems.len() == stands.len() {
            self.tell(why.unwrap_or_default());
        }
    }

    fn tell(&self, problem: String) {
        if self.published.borrow().problem.as_ref() != Some(&problem) {
            warn!(problem, "this node's record is not published");
        }
        self.published.send_modify(|published| {
            published.problem = Some(problem);
            published.partly = None;
        });
    }

    /// What follows from an error of a broker's; `acknowledged` if this broker has taken a record of this agent
    /// before, `others` if other brokers have this very record.
    fn judge(&self, error: Error, version: Version, acknowledged: bool, others: bool) -> Verdict {
        let Error::Conflict { stored, .. } = error else {
            return Verdict::Problem(error.to_string());
        };
        let seen = *self.seen.borrow();
        let unproven = format!(
            "the broker says that it has version {stored} of this node, but has not shown that record: it may not \
             tell the truth"
        );
        match way(version, stored, acknowledged, &seen, now()) {
            Way::PutAgain => Verdict::Problem(format!(
                "the broker refused version {version} of this node for the older {stored}: it does not keep to its \
                 own rules"
            )),
            Way::Unproven => Verdict::Problem(unproven),
            // One broker's word alone does not undo what others have taken.
            _ if others && seen.highest < Some(stored) => Verdict::Problem(unproven),
            Way::Usurped => Verdict::Usurped(format!(
                "another agent has announced itself as this node since, with version {stored}: give one of the two \
                 another name; this one stays silent until the other has ended"
            )),
            Way::GoAbove => {
                let raised = next_version(None, Some(stored), now());
                if let Some(Err(error)) = raised.map(|version| self.state.keep_version(version)) {
                    return Verdict::Problem(format!("{error:#}"));
                }
                Verdict::Anew(format!(
                    "the broker has version {stored} of this node, which this agent did not sign: if this node was \
                     not set up anew just now, another node uses the same name"
                ))
            }
        }
    }

    /// Withdraws this node at every broker. One that does not take it lets the node's lease lapse.
    ///
    /// # Errors
    /// If no broker took it: the error of one of them.
    pub async fn withdraw(&self, withdrawal: &Signed) -> Result<(), Error> {
        brokers::withdraw(&self.client, &withdrawal.signed).await
    }
}

/// How this node's record stands at a broker.
#[derive(Clone, Debug, Default)]
struct Stand {
    /// Whether the broker has taken a record of this agent.
    acknowledged: bool,
    /// The version it has.
    version: Option<Version>,
    /// Why it does not take it.
    problem: Option<String>,
}

/// What is to be done next.
enum Next {
    /// See whether another record is to be signed.
    Look,
    /// The agent ends.
    Gone,
    /// Sign another record.
    Anew,
    /// Another agent has this node's name.
    Usurped { problem: String },
}

enum Verdict {
    /// Tried again as it is.
    Problem(String),
    /// Only another version will be taken.
    Anew(String),
    /// Another agent has this node's name.
    Usurped(String),
}

/// A record as it was signed.
pub struct Signed {
    announcement: Announcement,
    /// The record.
    pub signed: SignedRecord,
    pub(crate) version: Version,
    not_after: UnixTime,
    at: Instant,
}

impl Signed {
    /// Which node it is of.
    pub(crate) fn node(&self) -> &NodeName {
        &self.announcement.node
    }

    /// Whether the record need not be signed anew, by this node's clock as it is now: that may have been
    /// set since.
    fn is_fresh(&self, now: UnixTime) -> bool {
        let left = self.not_after.since(now);
        self.at.elapsed() < RESIGN_AFTER && left > LIFETIME - RESIGN_AFTER && left <= LIFETIME + CLOCK_SLACK
    }
}

pub(crate) fn backoff(failures: u32) -> Duration {
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
            gateway_weight: None,
            host_addresses: Vec::new(),
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
