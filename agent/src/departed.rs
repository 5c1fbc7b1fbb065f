//! Nodes that left their cluster without a word: a machine that was deleted has no agent that could withdraw its
//! record. Another agent of the cluster does it, the one that writes the cluster's status.
//!
//! Two must agree, and for a while: the API server has no such Node any more, and no broker has heard from its agent
//! for the time of a lease. The cluster's key may sign for any of its nodes. An agent that lives all the same, cut off
//! from the brokers, announces itself again as soon as it is heard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use podspan_broker::client::Client;
use podspan_wire::{Bundle, NodeName, Record, RecordState, UnixTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::brokers;
use crate::conflict::next_version;

/// How often to look.
const EVERY: Duration = Duration::from_secs(5);
/// How long both must say so.
const FOR: Duration = Duration::from_secs(20);
/// How long a withdrawal holds: longer than any record that it replaces.
const LIFETIME: Duration = Duration::from_secs(86_400);

/// The names of all Nodes, as the API server told this agent last; `None` while it is not this agent's to withdraw.
pub type Present = Option<BTreeSet<NodeName>>;

/// Since when nodes are gone.
#[derive(Default)]
struct Departed {
    since: BTreeMap<NodeName, Instant>,
}

impl Departed {
    /// Those of the nodes `lapsed` that are to be withdrawn now.
    fn look(&mut self, own: &NodeName, present: &Present, lapsed: &[Record], now: Instant) -> Vec<Record> {
        // A list without one's own Node is not to be believed: nor is what else it lacks.
        let Some(present) = present.as_ref().filter(|present| present.contains(own)) else {
            self.since.clear();
            return Vec::new();
        };
        let gone = |record: &&Record| !present.contains(&record.node);
        let gone: Vec<&Record> = lapsed.iter().filter(gone).collect();
        self.since.retain(|node, _| gone.iter().any(|record| record.node == *node));
        gone.into_iter()
            .filter(|record| now.duration_since(*self.since.entry(record.node.clone()).or_insert(now)) >= FOR)
            .cloned()
            .collect()
    }
}

/// Withdraws nodes that are gone, for ever.
pub async fn run(
    own: NodeName,
    client: std::sync::Arc<Client>,
    bundle: std::sync::Arc<Bundle>,
    present: watch::Receiver<Present>,
    lapsed: watch::Receiver<Vec<Record>>,
) {
    let mut departed = Departed::default();
    loop {
        sleep(EVERY).await;
        let (known, records) = (present.borrow().clone(), lapsed.borrow().clone());
        for record in departed.look(&own, &known, &records, Instant::now()) {
            let now: UnixTime = SystemTime::now().into();
            let Some(version) = next_version(None, Some(record.version), now) else { continue };
            let node = record.node.clone();
            let withdrawal =
                Record { state: RecordState::Withdrawn, version, not_after: now.after(LIFETIME), ..record };
            let signed = withdrawal.sign(&bundle.cluster_key, bundle.grant.clone());
            match brokers::withdraw(&client, &signed).await {
                Ok(()) => {
                    info!(%node, "withdrew a node that is no more: its Node is deleted, nobody renews its lease")
                }
                Err(error) => warn!(%node, %error, "a node that is no more could not be withdrawn"),
            }
            // Heard of again by the watch, or tried again.
            departed.since.remove(&node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::cluster;

    #[test]
    fn only_who_is_gone_for_both_and_for_long() {
        let alpha = cluster("alpha", 1);
        let own: NodeName = "node-1".parse().unwrap();
        let lapsed = vec![alpha.record(2, true, 7), alpha.record(3, false, 1)];
        let present = |names: &[&str]| Some(names.iter().map(|name| name.parse().unwrap()).collect());
        let begin = Instant::now();
        let (mut departed, at) = (Departed::default(), |seconds| begin + Duration::from_secs(seconds));
        let mut look = |present: &Present, lapsed: &[Record], second| {
            let found = departed.look(&own, present, lapsed, at(second));
            found.iter().map(|record| record.node.to_string()).collect::<Vec<_>>()
        };
        let (both, two) = (present(&["node-1", "node-2"]), present(&["node-1"]));
        assert!(look(&both, &lapsed, 0).is_empty());
        assert!(look(&both, &lapsed, 15).is_empty());
        assert_eq!(look(&both, &lapsed, 21), ["node-3"], "node-2 has a Node");
        assert_eq!(look(&two, &lapsed, 25), ["node-3"], "the Node of node-2 was just deleted");
        // Its agent is heard again in between.
        assert!(!look(&two, &lapsed[1..], 30).contains(&"node-2".to_owned()));
        assert!(!look(&two, &lapsed, 46).contains(&"node-2".to_owned()));
        assert!(look(&two, &lapsed, 67).contains(&"node-2".to_owned()));
        // Neither an empty list nor somebody else's turn says anything.
        assert!(look(&present(&[]), &lapsed, 200).is_empty());
        assert!(look(&None, &lapsed, 300).is_empty());
        assert!(look(&two, &lapsed, 301).is_empty(), "the time begins anew");
    }
}
