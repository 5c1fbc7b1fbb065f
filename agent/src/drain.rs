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
/// Packets in one [`LOOK`] that are as good as none: keepalives of connections, strays.
const FEW: u64 = 2;

/// What drains this node, if anything does.
#[derive(Debug, Default)]
pub struct Drain {
    /// Whether a person said so (`podspan gateway drain`); kept across restarts.
    by_hand: bool,
    /// What peers were last told.
    told: bool,
    /// Facts by which this node is no gateway any more, since when, and packets received until the last look.
    retiring: Option<(LocalFacts, Instant, u64)>,
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

    /// Tells the peers what is new.
    pub fn tell(&mut self, facts: &LocalFacts, dataplane: &Dataplane) {
        let reason = self.reason(facts);
        if self.told != reason.is_some() {
            self.told = reason.is_some();
            match &reason {
                Some(reason) => {
                    info!(reason, "this node drains: peers take other gateways where there are any")
                }
                None => info!("this node does not drain any more"),
            }
            dataplane.set_draining(self.told);
        }
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
        if !now.gateway || found.gateway {
            self.retiring = None;
            return Some(found);
        }
        let since = self.retiring.as_ref().map_or_else(Instant::now, |(_, since, _)| *since);
        self.retiring = Some((found, since, received(dataplane)));
        self.tell(now, dataplane);
        None
    }

    /// Looks whether the peers have left; returns the facts that waited for it.
    #[must_use]
    pub fn retired(&mut self, dataplane: &Dataplane) -> Option<LocalFacts> {
        let (_, since, before) = self.retiring.as_mut()?;
        let now = received(dataplane);
        let few = now.saturating_sub(*before) <= FEW && since.elapsed() >= LEAST;
        *before = now;
        if few || since.elapsed() >= MOST { self.retiring.take().map(|(facts, ..)| facts) } else { None }
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
