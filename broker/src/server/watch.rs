//! A watch as a stream of lines.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use hyper::body::Bytes;
use podspan_wire::UnixTime;
use podspan_wire::api::{Token, WatchEvent};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::engine::{Subscription, line, wall_clock};
use super::stopped;

/// How often a bookmark is sent; the API promises 10 s.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

struct Lines {
    subscription: Subscription,
    /// How many entries of the snapshot were sent.
    sent: usize,
    token: Token,
    stage: Stage,
    bookmarks: Interval,
    not_after: UnixTime,
    stopping: Receiver<bool>,
}

enum Stage {
    Begin,
    Snapshot,
    Live,
    End,
}

/// The lines of a watch: a reset if need be, the entries, a bookmark, then changes and bookmarks. It ends
/// when the watcher is too slow (after `resync`), when the grant ends, or when the broker stops.
pub(super) fn lines(
    subscription: Subscription,
    not_after: UnixTime,
    stopping: Receiver<bool>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let token = subscription.resume.token.clone();
    let mut bookmarks = interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lines = Lines { subscription, sent: 0, token, stage: Stage::Begin, bookmarks, not_after, stopping };
    unfold(lines, |mut lines| async move { lines.next().await.map(|line| (Ok(line), lines)) })
}

impl Lines {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.stage {
                Stage::Begin => {
                    self.stage = Stage::Snapshot;
                    if self.subscription.resume.reset {
                        return Some(line(&WatchEvent::Reset));
                    }
                }
                Stage::Snapshot => {
                    // The entries were taken at one moment, and what came after waits in the queue.
                    if let Some(stored) = self.subscription.resume.entries().get(self.sent) {
                        self.sent += 1;
                        return Some(line(&WatchEvent::Entry(stored.entry())));
                    }
                    self.subscription.resume.forget();
                    self.stage = Stage::Live;
                    return Some(self.bookmark());
                }
                Stage::Live => return self.live().await,
                Stage::End => return None,
            }
        }
    }

    async fn live(&mut self) -> Option<Bytes> {
        tokio::select! {
            change = self.subscription.live.recv() => match change {
                Some((revision, line)) => {
                    self.token.revision = revision;
                    Some(line)
                }
                None => {
                    self.stage = Stage::End;
                    self.subscription.overflowed.load(Ordering::Acquire).then(|| line(&WatchEvent::Resync))
                }
            },
            () = stopped(&mut self.stopping) => None,
            _ = self.bookmarks.tick() => {
                (wall_clock() <= self.not_after).then(|| self.bookmark())
            },
        }
    }

    fn bookmark(&self) -> Bytes {
        line(&WatchEvent::Bookmark { token: self.token.clone() })
    }
}
