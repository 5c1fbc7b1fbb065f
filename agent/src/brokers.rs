//! All brokers of the cluster set at once: each is told everything and each is heard, so that one that answers is
//! enough, whichever it is.
//!
//! Brokers know nothing of each other, and none is believed more than another: what they say is told apart by the
//! broker's place in the list, and put together where records are verified (`membership`).

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::{SelectAll, select_all};
use podspan_broker::client::{Client, Error, Event, Watch};
use podspan_wire::SignedRecord;
use tracing::warn;

/// A broker's place in the bundle's list.
pub type BrokerIndex = usize;

/// A watch of each broker.
pub struct Watches {
    all: SelectAll<Watch1>,
}

type Watch1 = std::pin::Pin<Box<dyn futures_util::Stream<Item = (BrokerIndex, Event)> + Send>>;

/// Watches every broker of the client, from the beginning. Must be called within a tokio runtime.
#[must_use]
pub fn watch(client: &Client) -> Watches {
    let watches = client.each().into_iter().enumerate().map(|(index, client)| {
        let watch: Watch = client.watch(None);
        Box::pin(watch.map(move |event| (index, event))) as Watch1
    });
    Watches { all: select_all(watches) }
}

impl Watches {
    /// The next event, and whose it is. May be dropped while it waits: nothing is lost. `None` only if the runtime
    /// is going down.
    pub async fn next(&mut self) -> Option<(BrokerIndex, Event)> {
        self.all.next().await
    }
}

/// Withdraws a node at every broker. One that does not take it lets the node's lease lapse.
///
/// # Errors
/// If no broker took it: the error of one of them.
pub async fn withdraw(client: &Client, withdrawal: &SignedRecord) -> Result<(), Error> {
    let brokers = client.each();
    let answers = join_all(brokers.iter().map(|broker| broker.withdraw(withdrawal))).await;
    let taken = answers.iter().any(Result::is_ok);
    for error in answers.into_iter().filter_map(Result::err) {
        if !taken {
            return Err(error);
        }
        warn!(%error, "a broker did not take the withdrawal; the node's lease lapses there");
    }
    Ok(())
}
