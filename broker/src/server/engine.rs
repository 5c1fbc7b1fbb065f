//! The one thread that owns registry and store.
//!
//! ```text
//! handlers --try_send--> queue --> [apply all that wait] -> commit once -> answer, publish to watchers
//! ```
//!
//! Whatever waits in the queue shares one durable commit, so that many nodes may put at once. A command
//! is answered, and a change published, only after the commit that holds it. Watchers are registered
//! here too, between commits: a watcher's snapshot and its live changes therefore meet without a gap.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Bytes;
use podspan_wire::api::{Entry, Token, WatchEvent};
use podspan_wire::{ClusterId, NodeId, Trust, UnixTime, VerifiedRecord, Version};
use tokio::sync::{mpsc, oneshot};

use super::metrics::Metrics;
use super::registry::{Capacity, Refused, Registry, Resume};
use super::store::{Contents, Store, StoreError};

/// How many commands may wait; the next one is answered with "busy".
const QUEUE: usize = 1024;
/// How many commands share one commit at most.
const BATCH: usize = 256;
/// How long the thread sleeps at most: the resolution of leases.
const TICK: Duration = Duration::from_millis(200);
/// How often entries past their time are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// How long after a failed reopening of the store it is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// The highest grant serial seen of each cluster, for the handlers to read.
pub type Serials = Arc<RwLock<HashMap<ClusterId, u64>>>;

/// Why the engine did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The registry refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Too much is waiting.
    #[error("the broker is busy: try again")]
    Busy,
    /// The store does not work; nothing was acknowledged.
    #[error("the broker's store does not work, nothing was stored: see its log; try another broker")]
    Store,
    /// The broker is going away.
    #[error("the broker is shutting down: try another one, or again")]
    Stopped,
    /// The broker has all the watchers that it takes.
    #[error("{what} has {limit} watchers, which is the limit: raise `{key}` in the broker's configuration")]
    Watchers {
        /// Who.
        what: String,
        /// How many.
        limit: usize,
        /// The configuration key.
        key: &'static str,
    },
}

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

enum Command {
    Put(Box<VerifiedRecord>, Reply<u64>),
    Renew(NodeId, Version, Reply<()>),
    Note(ClusterId, u64, Reply<()>),
    List(Reply<Resume>),
    Watch(Option<Token>, ClusterId, u64, Reply<Subscription>),
}

/// A change as it goes to the watchers: its revision and its line, made once for all of them.
pub type Live = (u64, Bytes);

/// What a watcher gets: where it starts, and what comes from then on.
pub struct Subscription {
    /// Where it starts.
    pub resume: Resume,
    /// Changes after that. Ends when the watcher was too slow, its grant was superseded, or the broker
    /// stops.
    pub live: mpsc::Receiver<Live>,
    /// Whether it ended because the watcher was too slow.
    pub overflowed: Arc<AtomicBool>,
}

struct Watcher {
    cluster: ClusterId,
    serial: u64,
    live: mpsc::Sender<Live>,
    overflowed: Arc<AtomicBool>,
}

/// What the engine is set to.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a lease runs.
    pub lease: Duration,
    /// How many records are taken.
    pub capacity: Capacity,
    /// How many watchers are taken in all.
    pub watchers: usize,
    /// How many watchers of one cluster are taken.
    pub watchers_per_cluster: usize,
    /// How many changes may wait for a watcher before it is told to resync.
    pub watcher_queue: usize,
}

/// The way to the engine; cheap to clone. The engine ends when the last one is dropped.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    /// The highest grant serials seen.
    pub serials: Serials,
    healthy: Arc<AtomicBool>,
}

impl Engine {
    /// Opens the store and starts the thread. Blocks while the store is read.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be opened.
    pub fn start(
        mut store: Box<dyn Store>,
        trust: Trust,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, std::thread::JoinHandle<()>), StoreError> {
        let contents = store.load()?;
        let start = Instant::now();
        let registry = fill(contents, &trust, settings, Duration::ZERO, &metrics);
        let serials = Serials::default();
        let healthy = Arc::new(AtomicBool::new(true));
        let (commands, queue) = sync_channel(QUEUE);
        let mut thread = Thread {
            store,
            trust,
            settings,
            metrics,
            registry,
            watchers: Vec::new(),
            serials: serials.clone(),
            healthy: healthy.clone(),
            start,
            expired_at: None,
            failed_at: None,
        };
        thread.share_serials();
        thread.show();
        tracing::info!(records = thread.registry.len(), at = %thread.registry.token(), "store is open");
        let handle = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || thread.run(&queue))
            .map_err(|why| StoreError::Random(format!("no thread for the store: {why}")))?;
        Ok((Self { commands, serials, healthy }, handle))
    }

    /// Whether the last commit went through.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::Busy,
            TrySendError::Disconnected(_) => EngineError::Stopped,
        })?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Puts a record or withdrawal; returns its revision once it is durable.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn put(&self, verified: VerifiedRecord) -> Result<u64, EngineError> {
        self.ask(|reply| Command::Put(Box::new(verified), reply)).await
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn renew(&self, id: NodeId, version: Version) -> Result<(), EngineError> {
        self.ask(|reply| Command::Renew(id, version, reply)).await
    }

    /// Notes a grant's serial; returns once it is durable.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn note(&self, cluster: ClusterId, serial: u64) -> Result<(), EngineError> {
        self.ask(|reply| Command::Note(cluster, serial, reply)).await
    }

    /// Everything that is stored, from the beginning.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn list(&self) -> Result<Resume, EngineError> {
        self.ask(Command::List).await
    }

    /// Starts a watch.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn watch(
        &self,
        from: Option<Token>,
        cluster: ClusterId,
        serial: u64,
    ) -> Result<Subscription, EngineError> {
        self.ask(|reply| Command::Watch(from, cluster, serial, reply)).await
    }
}

/// The wall clock, in whole seconds.
pub(crate) fn wall_clock() -> UnixTime {
    SystemTime::now().into()
}

/// A watch event as its line.
pub(crate) fn line(event: &WatchEvent) -> Bytes {
    // These types always serialise: no maps with keys other than text.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// A registry with what the store holds. An entry that does not verify is left out and left on disk: one
/// bad entry must not keep the good ones from being served.
fn fill(contents: Contents, trust: &Trust, settings: Settings, now: Duration, metrics: &Metrics) -> Registry {
    let mut registry = Registry::new(contents.store, contents.revision, settings.lease, settings.capacity);
    for (cluster, serial) in contents.serials {
        registry.load_serial(cluster, serial);
    }
    let mut skipped = contents.unreadable;
    for Entry { revision, lease, signed } in contents.entries {
        match trust.verify_kept(&signed) {
            Ok(verified) => registry.load(revision, lease, verified, now),
            Err(refusal) => {
                skipped += 1;
                tracing::warn!(%refusal, revision, "a stored record is not good any more and is left out");
            }
        }
    }
    if skipped > 0 {
        tracing::warn!(skipped, "some stored records could not be read");
    }
    metrics.store_skipped.set(skipped.try_into().unwrap_or(i64::MAX));
    registry
}

struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct Thread {
    store: Box<dyn Store>,
    trust: Trust,
    settings: Settings,
    metrics: Arc<Metrics>,
    registry: Registry,
    watchers: Vec<Watcher>,
    serials: Serials,
    healthy: Arc<AtomicBool>,
    start: Instant,
    expired_at: Option<Duration>,
    failed_at: Option<Duration>,
}

/// An answer that waits for the commit.
enum Pending {
    Put(Result<u64, Refused>, Reply<u64>),
    Done(Result<(), Refused>, Reply<()>),
    List(Reply<Resume>),
    Watch(Option<Token>, ClusterId, u64, Reply<Subscription>),
}

impl Thread {
    fn run(mut self, queue: &Receiver<Command>) {
        // However the thread ends, nobody may take the broker for working afterwards.
        let _ended = Ended(self.healthy.clone());
        loop {
            let mut commands = Vec::new();
            match queue.recv_timeout(TICK) {
                Ok(command) => commands.push(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            commands.extend(queue.try_iter().take(BATCH - 1));
            self.turn(commands);
        }
    }

    fn turn(&mut self, commands: Vec<Command>) {
        let (now, time) = (self.start.elapsed(), wall_clock());
        if self.failed_at.is_some_and(|failed| now.saturating_sub(failed) >= REOPEN_EVERY) {
            self.reopen(now);
        }
        let working = self.failed_at.is_none();
        // Commands first: a renewal that already waits in the queue came in time.
        let pending: Vec<Pending> =
            commands.into_iter().map(|command| self.apply(command, now, time, working)).collect();
        if working {
            let lapsed = self.registry.lapse(now);
            if lapsed > 0 {
                self.metrics.leases_lapsed.inc_by(lapsed as u64);
                tracing::info!(lapsed, "leases lapsed");
            }
            if self.expired_at.is_none_or(|at| now.saturating_sub(at) >= EXPIRE_EVERY) {
                self.expired_at = Some(now);
                let expired = self.registry.expire(time);
                if expired > 0 {
                    tracing::info!(expired, "records past their time were removed");
                }
            }
        }
        let written = working && self.commit(now);
        for pending in pending {
            self.answer(pending, written);
        }
        self.watchers.retain(|watcher| !watcher.live.is_closed());
        self.show();
    }

    /// Applies what changes something; a reading command waits for the commit as it is.
    fn apply(&mut self, command: Command, now: Duration, time: UnixTime, working: bool) -> Pending {
        match command {
            Command::Put(verified, reply) if working => {
                Pending::Put(self.registry.put(*verified, now, time), reply)
            }
            // Not applied, and answered with the store's failure.
            Command::Put(_, reply) => Pending::Put(Ok(0), reply),
            Command::Renew(id, version, reply) if working => {
                Pending::Done(self.registry.renew(&id, version, now), reply)
            }
            Command::Renew(_, _, reply) => Pending::Done(Ok(()), reply),
            Command::Note(cluster, serial, reply) => {
                if working {
                    self.registry.note(&cluster, serial);
                }
                Pending::Done(Ok(()), reply)
            }
            Command::List(reply) => Pending::List(reply),
            Command::Watch(from, cluster, serial, reply) => Pending::Watch(from, cluster, serial, reply),
        }
    }

    /// Writes what was applied; on success it is published, on failure undone. Returns whether all that
    /// was applied is durable.
    fn commit(&mut self, now: Duration) -> bool {
        let batch = self.registry.batch();
        if batch.is_empty() {
            return true;
        }
        let begun = Instant::now();
        let written = self.store.commit(&batch);
        self.metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
        match written {
            Ok(()) => {
                self.registry.keep();
                if !batch.serials.is_empty() {
                    self.share_serials();
                }
                self.publish(batch.entries.into_iter().map(|(_, entry)| entry));
                true
            }
            Err(error) => {
                tracing::error!(%error, "a write failed; nothing of it was acknowledged");
                self.registry.roll_back();
                self.fail(now);
                false
            }
        }
    }

    fn fail(&mut self, now: Duration) {
        self.failed_at = Some(now);
        self.healthy.store(false, Ordering::Relaxed);
        self.metrics.store_failures.inc();
    }

    /// Reads the store anew after a failure. The failed batch may turn out to be there whole: what it
    /// changed is published then.
    fn reopen(&mut self, now: Duration) {
        let contents = match self.store.load() {
            Ok(contents) => contents,
            Err(error) => {
                tracing::error!(%error, "the store cannot be opened again; trying further");
                return self.fail(now);
            }
        };
        let before = self.registry.token();
        self.registry = fill(contents, &self.trust, self.settings, now, &self.metrics);
        self.failed_at = None;
        self.healthy.store(true, Ordering::Relaxed);
        tracing::info!(at = %self.registry.token(), "the store works again");
        let resume = self.registry.resume(Some(&before));
        if resume.reset {
            // Another store lies there now: every watcher has to begin anew.
            self.watchers.clear();
        }
        self.share_serials();
        self.publish(resume.entries().iter().map(super::registry::Stored::entry));
    }

    /// Hands changes to every watcher. One whose queue is full is cut off and told so.
    fn publish(&mut self, entries: impl Iterator<Item = Entry>) {
        for entry in entries {
            let revision = entry.revision;
            let line = line(&WatchEvent::Entry(entry));
            let metrics = &self.metrics;
            self.watchers.retain(|watcher| match watcher.live.try_send((revision, line.clone())) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    watcher.overflowed.store(true, Ordering::Release);
                    metrics.watchers_overflowed.inc();
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            });
        }
    }

    /// Shows the handlers the serials, and ends the watches that stand on a superseded grant.
    fn share_serials(&self) {
        let known = self.registry.serials().map(|(cluster, serial)| (cluster.clone(), serial)).collect();
        *self.serials.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn answer(&mut self, pending: Pending, written: bool) {
        // Nobody may be waiting any more: a send that fails is of no matter.
        match pending {
            Pending::Put(outcome, reply) => {
                let _ = reply.send(settle(outcome, written));
            }
            Pending::Done(outcome, reply) => {
                let _ = reply.send(settle(outcome, written));
            }
            Pending::List(reply) => {
                let _ = reply.send(Ok(self.registry.resume(None)));
            }
            Pending::Watch(from, cluster, serial, reply) => {
                let _ = reply.send(self.subscribe(from.as_ref(), cluster, serial));
            }
        }
    }

    fn subscribe(
        &mut self,
        from: Option<&Token>,
        cluster: ClusterId,
        serial: u64,
    ) -> Result<Subscription, EngineError> {
        self.watchers.retain(|watcher| !watcher.live.is_closed());
        let limit = self.settings.watchers_per_cluster;
        if self.watchers.iter().filter(|watcher| watcher.cluster == cluster).count() >= limit {
            let what = format!("cluster {cluster}");
            return Err(EngineError::Watchers { what, limit, key: "limits.watchers-per-cluster" });
        }
        let limit = self.settings.watchers;
        if self.watchers.len() >= limit {
            let what = "this broker".into();
            return Err(EngineError::Watchers { what, limit, key: "limits.watchers" });
        }
        let (sender, live) = mpsc::channel(self.settings.watcher_queue);
        let overflowed = Arc::new(AtomicBool::new(false));
        self.watchers.push(Watcher { cluster, serial, live: sender, overflowed: overflowed.clone() });
        Ok(Subscription { resume: self.registry.resume(from), live, overflowed })
    }

    fn show(&mut self) {
        let registry = &self.registry;
        // A re-granted cluster's earlier grants read nothing more.
        self.watchers
            .retain(|watcher| registry.serial(&watcher.cluster).is_none_or(|known| watcher.serial >= known));
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.entries.set(gauge(self.registry.len() as u64));
        self.metrics.revision.set(gauge(self.registry.token().revision));
        self.metrics.watchers.set(gauge(self.watchers.len() as u64));
    }
}

fn settle<T>(outcome: Result<T, Refused>, written: bool) -> Result<T, EngineError> {
    // A refusal may rest on a write of the same batch, so it only stands if that does.
    if written { outcome.map_err(EngineError::from) } else { Err(EngineError::Store) }
}
