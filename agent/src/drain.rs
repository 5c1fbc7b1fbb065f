//! Draining: this node is about to go, or had better not be used. Peers are told by the data plane and take
//! other ways within a round trip; what has no other way still comes, and is still forwarded.

use std::path::Path;
use std::time::Duration;

use podspan_dataplane::Dataplane;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::facts::LocalFacts;
use crate::files::{self, Stored};

/// How long packets may still come before the tunnels go all the same.
pub const MOST: Duration = Duration::from_secs(3);
/// How long peers have to hear of it, whatever comes.
const LEAST: Duration = Duration::from_millis(300);
/// How often it is looked whether packets still come.
const LOOK: Duration = Duration::from_millis(100);
/// How long a node that is a gateway no more has its peers avoid it: to them it is one until they have its new record.
const LINGER: Duration = Duration::from_secs(10);
/// Packets in one [`LOOK`] that are as good as none: keepalives of connections, strays.
const FEW: u64 = 2;

/// What drains this node, if anything does.
#[derive(Debug, Default)]
pub struct Drain {
    /// Whether a person said so (`podspan gateway drain`); kept across restarts.
    by_hand: bool,
    /// What peers were last told.
    told: Option<bool>,
    /// Facts by which this node is no gateway any more, since when, and packets received until the last look.
    retiring: Option<(LocalFacts, Instant, u64)>,
    /// When it stopped to be a gateway, if it was one.
    retired: Option<Instant>,
}

impl Drain {
    /// Reads what a person said in an earlier life of the agent.
    #[must_use]
    pub fn load(file: &Path) -> Self {
        let by_hand = match files::read_json::<bool>(file) {
            Ok(Stored::Value(drained)) => drained,
            Ok(_) => false,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "cannot read whether this node is drained: it is taken not to be"
                );
                false
            }
        };
        Self { by_hand, ..Self::default() }
    }

    /// A person drains the node, or ends that.
    ///
    /// # Errors
    /// If the node is no gateway, or it could not be written down: then it holds until the agent ends.
    pub fn set(&mut self, drain: bool, facts: &LocalFacts, file: &Path) -> anyhow::Result<()> {
        if drain && !facts.gateway {
            anyhow::bail!("this node is no gateway: there is nothing to drain");
        }
        self.by_hand = drain;
        files::replace_json(file, &drain)
            .map_err(|error| error.context("it holds for now, but will be forgotten when the agent ends"))
    }

    /// Why this node drains, if it does.
    #[must_use]
    pub fn reason(&self, facts: &LocalFacts) -> Option<String> {
        if self.retiring.is_some() {
            return Some("it is a gateway no more".to_owned());
        }
        if !facts.gateway {
            return None;
        }
        let by_hand = self.by_hand.then(|| "by `podspan gateway drain`".to_owned());
        by_hand.or_else(|| facts.draining.clone())
    }

    /// Whether peers are to take other gateways.
    fn is_to_be_avoided(&self, facts: &LocalFacts) -> bool {
        self.reason(facts).is_some() || self.retired.is_some_and(|at| at.elapsed() < LINGER)
    }

    /// Tells the peers what is new.
    pub fn tell(&mut self, facts: &LocalFacts, dataplane: &Dataplane) {
        if let Some(avoided) = self.news(facts) {
            dataplane.set_draining(avoided);
        }
    }

    /// Whether peers are to be told to avoid this node, or not to, if they were not told so already. An agent that gets
    /// a takeover's packets back has a packet path that may have been told anything.
    fn news(&mut self, facts: &LocalFacts) -> Option<bool> {
        let avoided = self.is_to_be_avoided(facts);
        let before = self.told.replace(avoided);
        if before == Some(avoided) {
            return None;
        }
        match self.reason(facts) {
            Some(reason) => info!(reason, "this node drains: peers take other gateways where there are any"),
            None if before == Some(true) => info!("this node does not drain any more"),
            None => {}
        }
        Some(avoided)
    }

    /// Facts by which a gateway is none any more are used only once the peers have left; others at once. Returns
    /// those that are to be used now.
    #[must_use]
    pub fn admit(
        &mut self,
        now: &LocalFacts,
        found: LocalFacts,
        dataplane: &Dataplane,
    ) -> Option<LocalFacts> {
        let admitted = self.admit_after(now, found, received(dataplane));
        if admitted.is_none() {
            self.tell(now, dataplane);
        }
        admitted
    }

    fn admit_after(&mut self, now: &LocalFacts, found: LocalFacts, received: u64) -> Option<LocalFacts> {
        if found.gateway {
            self.retired = None;
        }
        if !now.gateway || found.gateway {
            self.retiring = None;
            return Some(found);
        }
        let (since, before) = match &self.retiring {
            Some((_, since, before)) => (*since, *before),
            None => (Instant::now(), received),
        };
        self.retiring = Some((found, since, before));
        None
    }

    /// Looks whether the peers have left; returns the facts that waited for it.
    #[must_use]
    pub fn retired(&mut self, dataplane: &Dataplane) -> Option<LocalFacts> {
        self.retiring.as_ref()?;
        self.retired_after(received(dataplane))
    }

    fn retired_after(&mut self, received: u64) -> Option<LocalFacts> {
        let (_, since, before) = self.retiring.as_mut()?;
        let few = received.saturating_sub(*before) <= FEW && since.elapsed() >= LEAST;
        *before = received;
        if !few && since.elapsed() < MOST {
            return None;
        }
        self.retired = Some(Instant::now());
        self.retiring.take().map(|(facts, ..)| facts)
    }
}

/// Packets received through all tunnels so far.
fn received(dataplane: &Dataplane) -> u64 {
    let status = dataplane.status();
    status.peers.iter().flat_map(|peer| &peer.lanes).map(|lane| lane.rx_packets).sum()
}

/// Before the tunnels go: tells all peers, and waits until they have left. Where they have no other way there is
/// nothing to wait for.
pub async fn leave(dataplane: &Dataplane) {
    let begun = Instant::now();
    let mut before = received(dataplane);
    let mut first = None;
    dataplane.set_draining(true);
    loop {
        sleep(LOOK).await;
        let now = received(dataplane);
        let came = now.saturating_sub(before);
        before = now;
        let first = *first.get_or_insert(came);
        let heard = begun.elapsed() >= LEAST;
        if heard && came <= FEW {
            info!(ms = begun.elapsed().as_millis(), "peers have left");
            return;
        }
        // Every peer has been told three times by now; whoever could leave has left.
        if begun.elapsed() >= MOST || (begun.elapsed() >= MOST / 3 && came * 2 > first) {
            info!("packets still come: those who send them have no other way");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn facts(gateway: bool) -> LocalFacts {
        LocalFacts { gateway, ..LocalFacts::new("beta-2".parse().unwrap()) }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_a_gateway_no_more_is_avoided_until_all_have_heard_of_it() {
        let mut drain = Drain::default();
        assert!(!drain.is_to_be_avoided(&facts(true)));
        assert!(drain.admit_after(&facts(true), facts(false), 1000).is_none(), "peers have to leave first");
        assert!(drain.is_to_be_avoided(&facts(true)));
        assert!(drain.retired_after(1000).is_none(), "not yet heard of everywhere");
        assert!(drain.admit_after(&facts(true), facts(false), 1499).is_none(), "told once more");
        advance(LEAST).await;
        assert!(drain.retired_after(1500).is_none(), "packets still come");
        assert!(drain.retired_after(1501).is_some_and(|facts| !facts.gateway));
        // Its record is on its way.
        assert!(drain.is_to_be_avoided(&facts(false)));
        assert_eq!(drain.reason(&facts(false)), None, "it does not drain");
        advance(LINGER).await;
        assert!(!drain.is_to_be_avoided(&facts(false)));
    }

    #[tokio::test(start_paused = true)]
    async fn peers_are_told_at_the_start_and_then_what_is_new() {
        let mut drain = Drain::default();
        assert_eq!(drain.news(&facts(true)), Some(false), "the packet path may have been told otherwise");
        assert_eq!(drain.news(&facts(true)), None);
        drain.by_hand = true;
        assert_eq!(drain.news(&facts(true)), Some(true));
        assert_eq!(drain.news(&facts(true)), None);
        drain.by_hand = false;
        assert_eq!(drain.news(&facts(true)), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_a_gateway_again_is_used_at_once() {
        let mut drain = Drain::default();
        assert!(drain.admit_after(&facts(true), facts(false), 0).is_none());
        assert!(drain.admit_after(&facts(true), facts(true), 0).is_some(), "it has thought better of it");
        assert!(!drain.is_to_be_avoided(&facts(true)));
        assert!(drain.admit_after(&facts(true), facts(false), 0).is_none());
        advance(MOST).await;
        assert!(drain.retired_after(100).is_some(), "who still comes has no other way");
        assert!(drain.admit_after(&facts(false), facts(true), 100).is_some());
        assert!(!drain.is_to_be_avoided(&facts(true)));
    }
}
