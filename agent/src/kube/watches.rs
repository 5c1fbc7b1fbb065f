//! Watches: what the API server has of one kind, kept up to date for as long as the agent runs.
//!
//! A watch resumes where it broke off, lists anew only if the API server says that this is too long ago, and
//! never forgets what it has because nobody answers: an API server that is away for an hour changes nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::client::{describe, is_absent, is_answer, is_forbidden};
use crate::publish::jitter;

/// The first pause after an error; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long after an error the next one is a first one again.
const CALM: Duration = Duration::from_secs(60);
/// How long the API server must have been away for its return to end all pauses: one that only stumbles is not to be
/// asked more often for that.
const LONG_AWAY: Duration = Duration::from_secs(10);
/// How long something must be forbidden before that is believed: an API server that has just started forbids
/// everything until it has read the roles.
const BELIEVED: Duration = Duration::from_secs(15);

/// What a watch knows.
#[derive(Clone, Debug)]
pub struct Seen<K> {
    /// The objects; `None` until they were listed for the first time.
    pub objects: Option<Vec<K>>,
    /// Why they cannot be read, where the API server refuses it.
    pub refused: Option<String>,
}

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Self { objects: None, refused: None }
    }
}

impl<K> Seen<K> {
    /// Whether more will not be known for now.
    pub fn settled(&self) -> bool {
        self.objects.is_some() || self.refused.is_some()
    }
}

/// What all watches share.
#[derive(Default)]
pub struct Shared {
    /// Woken whenever something changed.
    pub changed: Notify,
    away: Mutex<Option<Away>>,
    /// Woken when the API server is back after a long time.
    back: Notify,
}

/// An API server that does not answer.
#[derive(Clone, Debug)]
pub struct Away {
    /// Since when.
    pub since: Instant,
    /// What the last attempt came to.
    pub why: String,
    /// It answers, but refuses to tell.
    pub refuses: bool,
}

impl Away {
    /// What is wrong, for a person. What stands in parentheses may change from one attempt to the next.
    pub fn told(&self) -> String {
        let what = if self.refuses { "tells this agent nothing" } else { "does not answer" };
        format!("the API server {what} ({})", self.why)
    }
}

impl Shared {
    /// Notes that the API server did not answer, or with an error.
    pub fn failed(&self, why: String, refuses: bool) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *away {
            Some(known) => {
                known.why = why;
                known.refuses = refuses;
            }
            None => {
                warn!(why, "nothing is heard from the API server; the last good facts stay in use");
                *away = Some(Away { since: Instant::now(), why, refuses });
                self.changed.notify_one();
            }
        }
    }

    /// Notes that it did.
    pub fn answered(&self) {
        let Some(away) = self.away.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        info!("the API server answers again");
        self.changed.notify_one();
        if away.since.elapsed() >= LONG_AWAY {
            self.back.notify_waiters();
        }
    }

    /// Waits after an error. Returns whether the API server came back meanwhile.
    async fn pause(&self, failures: &mut Failures) -> bool {
        tokio::select! {
            () = self.back.notified() => true,
            () = sleep(jitter(failures.pause(Instant::now()))) => false,
        }
    }

    /// Whether it is away.
    pub fn away(&self) -> Option<Away> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is watched, and how.
pub struct Watch<K> {
    /// The objects.
    pub api: Api<K>,
    /// Which of them.
    pub config: Config,
    /// What they are called, for a person.
    pub what: &'static str,
    /// When to look again where the API server does not know the type.
    pub absent_pause: Duration,
}

impl<K> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Watches for as long as the receiver lives.
    pub fn spawn(self, shared: Arc<Shared>) -> watch::Receiver<Seen<K>> {
        let (sender, receiver) = watch::channel(Seen::default());
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = self.follow(&sender, &shared) => {}
            }
        });
        receiver
    }

    async fn follow(self, seen: &watch::Sender<Seen<K>>, shared: &Shared) {
        let what = self.what;
        let mut stream = pin!(watcher(self.api, self.config));
        let mut known = BTreeMap::new();
        let mut listing = BTreeMap::new();
        let (mut failures, mut refusals) = (Failures::default(), Refusals::default());
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let pause = match cause(&error) {
                        Some(error) if is_absent(error) => {
                            shared.answered();
                            debug!(what, "the API server does not know this type");
                            known.clear();
                            publish(seen, shared, Vec::new());
                            self.absent_pause
                        }
                        Some(error) if is_forbidden(error) => {
                            shared.answered();
                            refusals.note(seen, shared, format!("{what} cannot be read: {}", describe(error)))
                        }
                        _ => {
                            let cause = cause(&error);
                            let why = cause.map_or_else(|| error.to_string(), describe);
                            shared.failed(why, cause.is_some_and(is_answer));
                            if shared.pause(&mut failures).await {
                                failures = Failures::default();
                            }
                            continue;
                        }
                    };
                    sleep(jitter(pause)).await;
                    continue;
                }
            };
            // The first event of a list is there before anybody was asked.
            if !matches!(event, Event::Init) {
                shared.answered();
                refusals = Refusals::default();
            }
            match event {
                Event::Init => {
                    listing.clear();
                    continue;
                }
                Event::InitApply(object) => {
                    listing.insert(key(&object), object);
                    continue;
                }
                Event::InitDone => known = std::mem::take(&mut listing),
                Event::Apply(object) => {
                    known.insert(key(&object), object);
                }
                Event::Delete(object) => {
                    known.remove(&key(&object));
                }
            }
            publish(seen, shared, known.values().cloned().collect());
        }
    }
}

fn key<K: Resource>(object: &K) -> (Option<String>, String) {
    (object.namespace(), object.name_any())
}

fn publish<K>(seen: &watch::Sender<Seen<K>>, shared: &Shared, objects: Vec<K>) {
    seen.send_replace(Seen { objects: Some(objects), refused: None });
    shared.changed.notify_one();
}

/// What was known stays: a role that was taken away for a moment must change nothing.
fn refuse<K>(seen: &watch::Sender<Seen<K>>, shared: &Shared, why: String) {
    seen.send_if_modified(|seen| {
        let new = seen.refused.as_ref() != Some(&why);
        if new {
            warn!("{why}");
            seen.refused = Some(why);
            shared.changed.notify_one();
        }
        new
    });
}

fn cause(error: &watcher::Error) -> Option<&kube::Error> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Some(error),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => None,
    }
}

/// Pauses that grow while errors follow one another.
#[derive(Default)]
pub struct Failures {
    last: Option<Instant>,
    count: u32,
}

impl Failures {
    /// How long to wait after an error at `now`, without jitter.
    pub fn pause(&mut self, now: Instant) -> Duration {
        if self.last.is_none_or(|last| now.duration_since(last) > CALM) {
            self.count = 0;
        }
        self.last = Some(now);
        let pause = FIRST_PAUSE.saturating_mul(1 << self.count.min(8)).min(LONGEST_PAUSE);
        self.count += 1;
        pause
    }
}

/// What is forbidden, since when.
#[derive(Default)]
struct Refusals {
    since: Option<Instant>,
    failures: Failures,
}

impl Refusals {
    /// Notes one; the answer is how long to wait.
    fn note<K>(&mut self, seen: &watch::Sender<Seen<K>>, shared: &Shared, why: String) -> Duration {
        let now = Instant::now();
        if now.duration_since(*self.since.get_or_insert(now)) >= BELIEVED {
            refuse(seen, shared, why);
        }
        self.failures.pause(now)
    }
}

/// Asks for something now and then, where a watch would cost more than it brings.
pub fn poll<K, F>(
    every: Duration,
    what: &'static str,
    shared: Arc<Shared>,
    ask: impl Fn() -> F + Send + 'static,
) -> watch::Receiver<Seen<K>>
where
    K: Send + Sync + 'static,
    F: Future<Output = Result<Vec<K>, kube::Error>> + Send,
{
    let (sender, receiver) = watch::channel(Seen::default());
    tokio::spawn(async move {
        let (mut failures, mut refusals) = (Failures::default(), Refusals::default());
        loop {
            let pause = match ask().await {
                Ok(objects) => {
                    refusals = Refusals::default();
                    shared.answered();
                    publish(&sender, &shared, objects);
                    every
                }
                Err(error) if is_forbidden(&error) => {
                    shared.answered();
                    refusals.note(&sender, &shared, format!("{what} cannot be read: {}", describe(&error)))
                }
                Err(error) => {
                    shared.failed(describe(&error), is_answer(&error));
                    let back = tokio::select! {
                        () = sender.closed() => return,
                        back = shared.pause(&mut failures) => back,
                    };
                    if back {
                        failures = Failures::default();
                    }
                    continue;
                }
            };
            tokio::select! {
                () = sender.closed() => return,
                () = sleep(jitter(pause)) => {}
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_anew_after_calm() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let pauses: Vec<u64> = (0..8).map(|_| failures.pause(now).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(failures.pause(now + CALM + Duration::from_secs(1)), FIRST_PAUSE);
    }

    #[tokio::test]
    async fn pauses_end_when_the_api_server_is_back_after_long() {
        let shared = Shared::default();
        let away_since = |since| {
            *shared.away.lock().unwrap() = Some(Away { since, why: "no route".into(), refuses: false });
        };
        let answers = async || {
            tokio::task::yield_now().await;
            shared.answered();
        };
        let mut failures = Failures::default();
        away_since(Instant::now().checked_sub(LONG_AWAY).unwrap());
        let (back, ()) = tokio::join!(shared.pause(&mut failures), answers());
        assert!(back);
        away_since(Instant::now());
        let soon = tokio::time::timeout(FIRST_PAUSE / 4, shared.pause(&mut failures));
        let (stumbled, ()) = tokio::join!(soon, answers());
        assert!(stumbled.is_err(), "it was away for a moment only");
    }

    #[tokio::test]
    async fn a_refusal_keeps_what_was_known() {
        let shared = Shared::default();
        let (sender, receiver) = watch::channel(Seen::default());
        publish(&sender, &shared, vec![1]);
        refuse(&sender, &shared, "no".into());
        let seen = receiver.borrow().clone();
        assert_eq!((seen.objects, seen.refused.as_deref()), (Some(vec![1]), Some("no")));
        publish(&sender, &shared, vec![2]);
        assert_eq!(receiver.borrow().refused, None);
    }
}
