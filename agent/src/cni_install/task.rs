//! The installer at work: looks, decides, makes the steps, says how it stands.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::binary;
use super::conflist::PLUGIN;
use super::directory::{self, Made};
use super::fight::{Fight, MANY};
use super::mode::{CniSettings, Mode};
use super::notice::Notice;
use super::plan::{self, Chained, Plan, Standing, Step, Wanted, Way};
use super::record::{self, Record};

/// How often to look even if nothing was noticed.
const SLOW_LOOK: Duration = Duration::from_secs(30);
/// How long what may be a file in the middle of being written must stay the same before podspan acts on it.
const SETTLED: Duration = Duration::from_secs(5);
/// How soon to look again while that is not known.
const SOON: Duration = Duration::from_secs(1);
/// How long a runtime may go on with the configuration it had: it hears of the change by inotify, and a pod
/// that is being added has its chain already. The binary stays that long.
const RUNTIME_TIME: Duration = Duration::from_secs(5);
/// How often a step is decided anew, in one go, because the file changed in the meantime.
const TRIES: usize = 5;

/// What the installer is told while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The mode, where something else than the settings says so (`ClusterSet`).
    pub mode: Option<Mode>,
    /// podspan leaves this node for good: everything is taken out.
    pub leave: bool,
    /// The binary stays on the node even so: CRI-O calls, when a pod ends, the plugins with which it began.
    pub keep_plugin: bool,
}

/// Starts the installer. The receiver has what a person should know of it, if anything. Within a Tokio
/// runtime.
#[must_use]
pub fn spawn(
    settings: CniSettings,
    socket: PathBuf,
    state_dir: PathBuf,
    orders: watch::Receiver<Order>,
) -> (watch::Receiver<Option<String>>, JoinHandle<()>) {
    let (problem, told) = watch::channel(None);
    let entry = entry(&socket);
    let fight = Fight::default();
    let (last, rather_owned, start) = (None, false, Instant::now());
    let mut installer = Installer {
        settings,
        entry,
        state_dir,
        problem,
        fight,
        last,
        rather_owned,
        start,
        doubtful: None,
        mode: None,
    };
    (told, tokio::spawn(async move { installer.run(orders).await }))
}

/// podspan's entry in the chain.
fn entry(socket: &Path) -> String {
    let kind = serde_json::Value::from(PLUGIN);
    if socket == Path::new(podspan_wire::DEFAULT_SOCKET) {
        return format!("{{ \"type\": {kind} }}");
    }
    let socket = serde_json::Value::from(socket.to_string_lossy());
    format!("{{ \"type\": {kind}, \"socket\": {socket} }}")
}

struct Installer {
    settings: CniSettings,
    entry: String,
    state_dir: PathBuf,
    problem: watch::Sender<Option<String>>,
    fight: Fight,
    /// How it stood at the last look.
    last: Option<Chained>,
    /// Appending does not last here.
    rather_owned: bool,
    start: Instant,
    /// The plan that waits to be settled, and since when.
    doubtful: Option<(Plan, Instant)>,
    mode: Option<Mode>,
}

impl Installer {
    async fn run(&mut self, mut orders: watch::Receiver<Order>) {
        let mut notice = Notice::new();
        loop {
            let order = orders.borrow_and_update().clone();
            // Watched first, looked at next: nothing falls in between.
            notice.watch(&self.settings.conf_dir);
            notice.watch(&self.settings.bin_dir);
            let look_again = match self.look(&order).await {
                Ok(again) => again,
                Err(error) => {
                    self.tell(Some(format!("the CNI plugin cannot be installed: {error:#}")));
                    SLOW_LOOK
                }
            };
            tokio::select! {
                () = notice.changed(look_again) => {}
                changed = orders.changed() => if changed.is_err() {
                    // Nobody gives orders any more: the last one holds.
                    notice.changed(look_again).await;
                }
            }
        }
    }

    /// One look. Returns when to look again at the latest.
    async fn look(&mut self, order: &Order) -> anyhow::Result<Duration> {
        let mode = if order.leave { Mode::Off } else { order.mode.unwrap_or(self.settings.mode) };
        if self.mode != Some(mode) {
            info!(mode = mode.label(), leave = order.leave, "CNI installer");
            (self.mode, self.last, self.rather_owned, self.doubtful) = (Some(mode), None, false, None);
            self.fight.reset();
        }
        if mode == Mode::Off {
            let (settings, state_dir) = (self.settings.clone(), self.state_dir.clone());
            for removed in uninstall(&settings, &state_dir, order.keep_plugin).await? {
                info!("removed {removed}");
            }
            self.tell(None);
            return Ok(SLOW_LOOK);
        }
        for _ in 0..TRIES {
            let listing = list(&self.settings.conf_dir).await?;
            let wanted = Wanted { mode, entry: &self.entry, rather_owned: self.rather_owned };
            let plan = plan::plan(&listing, &wanted);
            if let Some(wait) = self.hold(&plan) {
                return Ok(wait);
            }
            if self.make(&plan).await? == Made::Yes {
                self.stand(plan.standing);
                return Ok(SLOW_LOOK);
            }
        }
        // Somebody writes without end; the next look is soon enough.
        Ok(SOON)
    }

    /// Whether the plan must wait, and how long.
    fn hold(&mut self, plan: &Plan) -> Option<Duration> {
        let now = self.start.elapsed();
        let same_place =
            |chained: &Chained| matches!(&plan.standing, Standing::Chained(next) if next == chained);
        if !plan.present && self.last.as_ref().is_some_and(same_place) {
            let lost = self.last.take();
            self.fight.lost(now);
            if self.fight.count(now) >= MANY
                && self.mode == Some(Mode::Auto)
                && lost.is_some_and(|lost| lost.way == Way::Append)
            {
                warn!(
                    "another program keeps taking podspan out of its CNI configuration: using an owned copy"
                );
                self.rather_owned = true;
                self.fight.reset();
                return Some(Duration::ZERO);
            }
        }
        if plan.steps.is_empty() {
            self.doubtful = None;
            return None;
        }
        let wait = self.fight.wait(now);
        if !wait.is_zero() && !plan.present {
            let times = self.fight.count(now);
            if let Standing::Chained(chained) = &plan.standing {
                self.tell(Some(format!(
                    "CNI: another program took podspan out of {} {times} times within the hour; next try in {} s. \
                     New pods start without routes of their own and work by their default route. If this is \
                     Cilium, set cni.exclusive=false; else choose another way ([cni] mode) or mode off",
                    chained.carrier,
                    wait.as_secs()
                )));
            }
            return Some(wait);
        }
        if plan.unsettled {
            let now = Instant::now();
            match &self.doubtful {
                Some((before, since)) if before == plan => {
                    let left = SETTLED.saturating_sub(now - *since);
                    return (!left.is_zero()).then_some(left.min(SOON));
                }
                _ => {
                    self.doubtful = Some((plan.clone(), now));
                    return Some(SOON);
                }
            }
        }
        self.doubtful = None;
        None
    }

    async fn make(&mut self, plan: &Plan) -> anyhow::Result<Made> {
        let chained = matches!(plan.standing, Standing::Chained(_));
        let (settings, state_dir) = (self.settings.clone(), self.state_dir.clone());
        if chained {
            let record = Record { conf_dir: settings.conf_dir.clone(), bin_dir: settings.bin_dir.clone() };
            let paths = settings.clone();
            let copied = spawn_blocking(move || {
                // What is on the node is known before it is there.
                if record::load(&state_dir)?.as_ref() != Some(&record) {
                    record::keep(&state_dir, &record)?;
                }
                binary::place(&paths.plugin, &paths.bin_dir)
            })
            .await??;
            if copied || !plan.steps.is_empty() {
                binary::check(&settings.bin_dir).await?;
            }
            if copied {
                info!(path = %binary::target(&settings.bin_dir).display(), "CNI plugin placed");
            }
        } else if plan.steps.is_empty() || record::load(&state_dir)?.is_none() {
            return Ok(Made::Yes);
        }
        let steps = plan.steps.clone();
        spawn_blocking(move || make_all(&settings.conf_dir, &steps)).await?
    }

    fn stand(&mut self, standing: Standing) {
        match standing {
            Standing::Chained(chained) => {
                if self.last.as_ref() != Some(&chained) {
                    info!(carrier = chained.carrier, "CNI plugin {} {}", chained.way, chained.primary);
                }
                self.last = Some(chained);
                self.tell(None);
            }
            // Should it come back without podspan's entry, then somebody has taken that out.
            Standing::Waiting(why) => {
                self.tell(Some(format!("CNI: waiting: {why}")));
            }
            Standing::Refused(why) => {
                self.last = None;
                self.tell(Some(why));
            }
            Standing::Off => {
                self.last = None;
                self.tell(None);
            }
        }
    }

    fn tell(&self, problem: Option<String>) {
        self.problem.send_if_modified(|told| {
            let changed = *told != problem;
            if let (true, Some(problem)) = (changed, &problem) {
                warn!("{problem}");
            }
            *told = problem;
            changed
        });
    }
}

async fn list(directory: &Path) -> anyhow::Result<plan::Listing> {
    let directory = directory.to_owned();
    spawn_blocking(move || directory::list(&directory)).await?
}

fn make_all(directory: &Path, steps: &[Step]) -> anyhow::Result<Made> {
    for step in steps {
        if directory::make(directory, step)? == Made::Changed {
            return Ok(Made::Changed);
        }
    }
    Ok(Made::Yes)
}

/// Takes the plugin out of every configuration, waits until runtimes have noticed, and then removes the
/// binary, unless it is to stay. Does nothing where this agent has installed nothing. Returns what was
/// removed; safe to repeat.
///
/// # Errors
/// If something cannot be removed; what is needed to do it later stays.
pub async fn uninstall(
    settings: &CniSettings,
    state_dir: &Path,
    keep_plugin: bool,
) -> anyhow::Result<Vec<String>> {
    let Some(record) = record::load(state_dir)? else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    // Where it was installed, should the settings have changed since; and where it would be.
    let mut conf_dirs = vec![settings.conf_dir.clone()];
    let mut bin_dirs = vec![settings.bin_dir.clone()];
    if record != Record::default() {
        conf_dirs.insert(0, record.conf_dir);
        bin_dirs.insert(0, record.bin_dir);
        conf_dirs.dedup();
        bin_dirs.dedup();
    }
    for directory in conf_dirs {
        for attempt in 0.. {
            let steps = plan::uninstall(&list(&directory).await?).steps;
            if steps.is_empty() {
                break;
            }
            if attempt == TRIES {
                anyhow::bail!("{} is being written all the time", directory.display());
            }
            let paths: Vec<String> = steps
                .iter()
                .map(|step| match step {
                    Step::Write { path, .. } => {
                        format!("CNI entry in {}", directory.join(path).display())
                    }
                    Step::Remove { path } => directory.join(path).display().to_string(),
                })
                .collect();
            let here = directory.clone();
            if spawn_blocking(move || make_all(&here, &steps)).await?? == Made::Yes {
                removed.extend(paths);
            }
        }
    }
    if !keep_plugin {
        // Also if the entries went only just before, and what waited then was cut short.
        if bin_dirs.iter().any(|directory| binary::target(directory).exists()) {
            sleep(RUNTIME_TIME).await;
        }
        for directory in bin_dirs {
            if binary::remove(&directory)? {
                removed.push(binary::target(&directory).display().to_string());
            }
        }
    }
    record::forget(state_dir)?;
    Ok(removed)
}
