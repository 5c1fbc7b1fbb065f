//! Bringing a node's record to one broker, and keeping it there.

use std::sync::Arc;
use std::time::Duration;

use podspan_broker::client::{Client, Error};
use podspan_wire::{ClusterId, NodeId, Version};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::brokers::BrokerIndex;
use crate::publish::{Signed, backoff, jitter};

/// What of a broker's word on the time of a lease is believed, in seconds.
const LEASE_BOUNDS: (u64, u64) = (3, 3_600);
/// How long a broker can make this node wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a broker said.
pub struct Report {
    /// Which.
    pub broker: BrokerIndex,
    /// To which version.
    pub version: Version,
    /// Whether it took the record or the renewal.
    pub outcome: Result<(), Error>,
}

/// Puts whatever is `current`, then renews its lease until something changes or fails. Ends when nobody listens any
/// more.
pub async fn run(
    broker: BrokerIndex,
    client: Client,
    cluster: ClusterId,
    mut current: watch::Receiver<Option<Arc<Signed>>>,
    reports: mpsc::Sender<Report>,
) {
    let mut failures = 0;
    loop {
        let Some(signed) = current.borrow_and_update().clone() else {
            if current.changed().await.is_err() {
                return;
            }
            continue;
        };
        let Err(error) =
            keep(broker, &client, &cluster, &signed, &mut current, &reports, &mut failures).await
        else {
            if current.has_changed().is_err() {
                return;
            }
            continue;
        };
        failures += 1;
        // A changed announcement is no reason to hammer a broker that refuses.
        let pause = match error {
            Error::RateLimited { after } => {
                after.clamp(backoff(failures), LONGEST_WAIT.max(backoff(failures)))
            }
            _ => backoff(failures),
        };
        if reports.send(Report { broker, version: signed.version, outcome: Err(error) }).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// Puts one record and renews its lease, until another is to be put.
async fn keep(
    broker: BrokerIndex,
    client: &Client,
    cluster: &ClusterId,
    signed: &Signed,
    current: &mut watch::Receiver<Option<Arc<Signed>>>,
    reports: &mpsc::Sender<Report>,
    failures: &mut u32,
) -> Result<(), Error> {
    let version = signed.version;
    let id = NodeId { cluster: cluster.clone(), node: signed.node().clone() };
    let mut lease = client.put(&signed.signed).await?.lease_seconds;
    loop {
        *failures = 0;
        // Nobody listens any more: seen by whoever called.
        let _ = reports.send(Report { broker, version, outcome: Ok(()) }).await;
        // A third of the lease: two renewals may be lost.
        let pause = Duration::from_secs(lease.clamp(LEASE_BOUNDS.0, LEASE_BOUNDS.1)) / 3;
        if timeout(jitter(pause), current.changed()).await.is_ok() {
            return Ok(());
        }
        lease = match client.renew(&id, version).await {
            Ok(answer) => answer.lease_seconds,
            // The broker lost its store, or is behind: put again.
            Err(Error::NotFound) => return Ok(()),
            Err(Error::Conflict { stored, .. }) if stored < version => return Ok(()),
            Err(error) => return Err(error),
        };
    }
}
