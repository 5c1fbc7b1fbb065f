//! The task: waits for what is wanted and for what others change, reads back, plans, carries out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podspan_wire::Cidr;
use podspan_wire::status::KernelStatus;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::attempts::Attempts;
use super::facts::{self, Facts};
use super::model::{HostDesired, NftState, Observed, ObservedLink};
use super::monitor::{Dirty, Interest, Monitor};
use super::netlink::{LinkChange, Netlink};
use super::plan::{self, Plan, Step};
use super::state::{State, Written};
use super::{ALIAS, HostEvent, PROTOCOL, nft, nft_command, procfs, sysctl};

/// How long to wait for more of the same after a change was heard.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often everything is compared though nothing was heard; 20 percent more or less.
const RESYNC: Duration = Duration::from_secs(30);
/// How soon what could not be read is read again.
const REREAD: Duration = Duration::from_secs(1);
/// How often in one go it is read back whether what was set stands.
const ROUNDS: usize = 3;
/// How many failures are told one by one.
const MAX_FAILING: usize = 20;

/// The program that speaks to nftables.
pub(super) const NFT: &str = "nft";

/// What is wanted, and how often that was said.
#[derive(Clone, Debug, Default)]
pub(super) struct Input {
    pub(super) generation: u64,
    pub(super) desired: Option<HostDesired>,
}

/// What others may see.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) status: KernelStatus,
    pub(super) notes: Vec<String>,
}

/// Why a pass is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Something else is wanted.
    Set,
    /// Something changed by itself, or may have.
    Changed,
}

pub(super) struct Engine {
    state_dir: PathBuf,
    state: State,
    state_note: Option<String>,
    netlink: Netlink,
    monitor: Monitor,
    interest: Interest,
    shared: Arc<Mutex<Shared>>,
    events: mpsc::Sender<HostEvent>,
    desired: Option<HostDesired>,
    attempts: Attempts,
    /// The subjects of the last plan: what is still to be done.
    wanted: BTreeSet<String>,
    healed: u64,
    nft: NftState,
    /// Whether the nftables table stands as it was last written, be that as it should or not.
    nft_intact: bool,
    nft_error: Option<String>,
    underlay: Option<Facts>,
    /// The interface's index when it was last seen.
    index: Option<u32>,
    /// The same if it was podspan's.
    owned: Option<u32>,
}

impl Engine {
    pub(super) fn open(
        state_dir: PathBuf,
        shared: Arc<Mutex<Shared>>,
        events: mpsc::Sender<HostEvent>,
    ) -> io::Result<Self> {
        let (state, state_note) = State::load_or_put_aside(&state_dir)?;
        Ok(Self {
            state,
            state_note,
            // Subscribe first, read next: what changes in between is heard.
            monitor: Monitor::open()?,
            netlink: Netlink::open()?,
            interest: Interest::default(),
            shared,
            events,
            desired: None,
            attempts: Attempts::default(),
            wanted: BTreeSet::new(),
            healed: 0,
            nft: NftState::Absent,
            nft_intact: false,
            nft_error: None,
            underlay: None,
            index: None,
            owned: None,
            state_dir,
        })
    }

    /// The MTUs of podspan's routes in the tables that are known from the last life.
    pub(super) async fn standing_mtus(&self) -> io::Result<BTreeMap<Cidr, u32>> {
        let mut standing = BTreeMap::new();
        for &table in &self.state.tables {
            let routes = self.netlink.routes(table).await?;
            let own = routes.iter().filter(|route| route.protocol == PROTOCOL && route.plain);
            standing.extend(own.filter_map(|route| Some((route.destination, route.mtu?))));
        }
        Ok(standing)
    }

    pub(super) async fn run(mut self, mut input: watch::Receiver<Input>, applied: watch::Sender<u64>) {
        let mut dirty = Dirty::default();
        let mut heard: Option<Instant> = None;
        let mut resync = Instant::now() + jittered(RESYNC);
        let mut reread: Option<Instant> = None;
        loop {
            let retry = self.attempts.next(&self.wanted);
            let wake = [Some(resync), heard, retry, reread].into_iter().flatten().min().unwrap_or(resync);
            let mut generation = None;
            tokio::select! {
                changed = input.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let input = input.borrow_and_update().clone();
                    generation = Some(input.generation);
                    self.desired = input.desired;
                    dirty = Dirty::ALL;
                }
                change = self.monitor.next(&self.interest) => {
                    dirty.merge(change);
                    heard.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                    continue;
                }
                () = sleep_until(wake) => {}
            }
            let now = Instant::now();
            let mut full = false;
            if now >= resync {
                dirty = Dirty::ALL;
                full = true;
                resync = now + jittered(RESYNC);
            }
            if retry.is_some_and(|retry| now >= retry) || reread.is_some_and(|reread| now >= reread) {
                dirty.kernel = true;
                dirty.nft |= self.nft_error.is_some();
            }
            heard = None;
            let cause = if generation.is_some() { Cause::Set } else { Cause::Changed };
            let seen = std::mem::take(&mut dirty);
            match self.pass(cause, seen, full).await {
                Ok(()) => reread = self.nft_error.is_some().then(|| Instant::now() + REREAD),
                Err(error) => {
                    warn!(%error, "what stands in the kernel cannot be read back; trying again");
                    let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                    shared.status.failing =
                        vec![format!("what stands in the kernel cannot be read back: {error}")];
                    drop(shared);
                    dirty = seen;
                    reread = Some(Instant::now() + REREAD);
                }
            }
            if let Some(generation) = generation {
                let _ = applied.send(generation);
            }
        }
    }

    /// Brings what stands to what should, as far as that goes now.
    async fn pass(&mut self, cause: Cause, dirty: Dirty, full: bool) -> io::Result<()> {
        let Some(desired) = self.desired.clone() else { return Ok(()) };
        let mut problems = Vec::new();
        if cause == Cause::Set {
            self.attempts.forgive(Instant::now());
            let before = self.state.tables.clone();
            self.state.tables.extend(desired.tables());
            let new = before != self.state.tables || !self.state.interfaces.contains(&desired.interface);
            self.state.interfaces.insert(desired.interface.clone());
            // Unwritten it only costs a later clean the knowledge of a table number that the settings no
            // longer name; tunnels matter more.
            if new && let Err(error) = self.state.store(&self.state_dir) {
                problems.push(format!("state directory {}: {error}", self.state_dir.display()));
                self.state.tables = before;
            }
        }
        self.look_at_nft(&desired, dirty.nft).await;
        let mut plan = Plan::default();
        let mut observed = Observed::default();
        for round in 0..ROUNDS {
            observed = self.observe(&desired).await?;
            let mut known = self.state.tables.clone();
            known.extend(desired.tables());
            plan = plan::plan(&desired, &observed, &known);
            if round + 1 == ROUNDS || !self.carry_out(&plan, cause).await {
                break;
            }
        }
        self.notice_interface(observed.link.as_ref(), full);
        self.interest = Interest {
            interface: desired.interface.clone(),
            index: observed.link.as_ref().map(|link| link.index),
            underlay: std::mem::take(&mut self.interest.underlay),
        };
        if dirty.underlay {
            self.look_at_underlay(&desired).await?;
        }
        self.publish(&desired, &observed, plan, problems);
        Ok(())
    }

    /// Carries out the steps whose time has come; whether any was.
    async fn carry_out(&mut self, plan: &Plan, cause: Cause) -> bool {
        let mut any = false;
        for step in &plan.steps {
            let subject = step.subject();
            if !self.attempts.may(&subject, Instant::now()) {
                continue;
            }
            match self.step(step).await {
                Ok(()) => {
                    any = true;
                    if self.attempts.done(&subject, cause == Cause::Changed, Instant::now()) {
                        self.healed += 1;
                        info!(what = subject, "put back: somebody had removed or changed it");
                    } else {
                        debug!(what = subject, "done");
                    }
                }
                Err(error) => {
                    let hint = hint(step, &error);
                    warn!(what = subject, %error, "could not be done; trying again");
                    self.attempts.failed(&subject, format!("{error}{hint}"), Instant::now());
                }
            }
        }
        any
    }

    async fn step(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Alias { index } => self.netlink.set_link(*index, LinkChange::Alias(ALIAS)).await,
            Step::Mtu { index, mtu } => self.netlink.set_link(*index, LinkChange::Mtu(*mtu)).await,
            Step::Up { index } => self.netlink.set_link(*index, LinkChange::Up).await,
            Step::Sysctl(write) => self.write_sysctl(write).await,
            Step::Nft { table } => self.write_nft(table).await,
            Step::AddAddress { index, address } => self.netlink.add_address(*index, *address).await,
            Step::RemoveAddress { index, address, length } => {
                self.netlink.remove_address(*index, *address, *length).await
            }
            Step::AddRoute(route) => self.netlink.add_route(route, false).await,
            Step::ReplaceRoute(route) => self.netlink.add_route(route, true).await,
            Step::RemoveRoute(route) => self.netlink.remove_route(route).await,
            Step::AddRule(rule) => self.netlink.add_rule(rule).await,
            Step::RemoveRule(rule) => self.netlink.remove_rule(rule).await,
        }
    }

    async fn write_sysctl(&mut self, write: &sysctl::Write) -> io::Result<()> {
        let mut state = self.state.clone();
        let remember = write.foreign && state.remember(write);
        let directory = self.state_dir.clone();
        let (key, value) = (write.key.clone(), write.value.clone());
        let state = blocking(move || {
            if remember {
                state.store(&directory).map_err(|error| {
                    io::Error::new(
                        error.kind(),
                        format!(
                            "left as it is, since its value cannot be remembered in {}: {error}",
                            directory.display()
                        ),
                    )
                })?;
            }
            procfs::write(&key, &value)?;
            Ok(state)
        })
        .await;
        match state {
            Ok(state) => {
                self.state = state;
                Ok(())
            }
            Err(error) => {
                // What was written to the state file may stand there: a value remembered and not changed does
                // no harm, a value forgotten does.
                // What is known of the nftables table may be newer than the file.
                let nft = self.state.nft.take();
                self.state = State::load(&self.state_dir).unwrap_or_else(|_| self.state.clone());
                self.state.nft = nft;
                Err(error)
            }
        }
    }

    async fn write_nft(&mut self, table: &nft::Table) -> io::Result<()> {
        let changed = match &self.state.nft {
            Some(written) if self.nft_intact => change_nft(written, table).await,
            _ => Err(io::Error::other("it is not as podspan has written it")),
        };
        if let Err(error) = changed {
            debug!(%error, "the nftables table is not changed but written anew");
            nft_command::apply(Path::new(NFT), &table.whole()).await?;
        }
        // Listed in nft's own words, for a later comparison.
        match nft_command::list(Path::new(NFT)).await? {
            Some(listing) if nft::is_own(&listing) => {
                self.state.nft = Some(Written::new(table.clone(), listing));
                (self.nft, self.nft_intact) = (NftState::Standing, true);
                let (state, directory) = (self.state.clone(), self.state_dir.clone());
                // Unwritten it only has the next agent write the table anew.
                if let Err(error) = blocking(move || state.store(&directory)).await {
                    debug!(%error, "how the nftables table looks is not remembered");
                }
                Ok(())
            }
            _ => {
                (self.nft, self.nft_intact) = (NftState::Absent, false);
                Err(io::Error::other("written, and gone again at once: another program removes it"))
            }
        }
    }

    /// Brings `self.nft` up to date: from the kernel if `read`, else from what is known.
    async fn look_at_nft(&mut self, desired: &HostDesired, read: bool) {
        if read {
            self.nft_error = None;
            self.nft_intact = false;
            self.nft = match nft_command::list(Path::new(NFT)).await {
                Ok(None) => NftState::Absent,
                Ok(Some(listing)) if !nft::is_own(&listing) => NftState::Foreign,
                Ok(Some(listing)) => {
                    self.nft_intact = self.state.nft.as_ref().is_some_and(|nft| nft.listing == listing);
                    if self.nft_intact { NftState::Standing } else { NftState::Stale }
                }
                Err(error) => {
                    self.nft_error = Some(format!("nftables table inet podspan: {error}"));
                    // Unknown: nothing is done about it until it can be read.
                    NftState::Standing
                }
            };
        }
        if self.nft == NftState::Standing
            && self.nft_error.is_none()
            && self.state.nft.as_ref().is_none_or(|written| !written.is(&nft::table(desired)))
        {
            self.nft = NftState::Stale;
        }
    }

    async fn observe(&mut self, desired: &HostDesired) -> io::Result<Observed> {
        let links = self.netlink.links().await?;
        let interfaces: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
        self.interest.underlay = links
            .iter()
            .filter(|link| desired.underlay.contains(&link.name))
            .map(|link| (link.name.clone(), link.index))
            .collect();
        let link = links.into_iter().find(|link| link.name == desired.interface).map(|link| ObservedLink {
            index: link.index,
            tun: link.tun,
            alias: link.alias,
            mtu: link.mtu,
            up: link.up,
            known: self.owned == Some(link.index),
        });
        let mut addresses = Vec::new();
        if let Some(link) = &link {
            let all = self.netlink.addresses().await?;
            addresses.extend(all.into_iter().filter(|a| a.index == link.index).map(|a| a.observed));
        }
        let mut routes = Vec::new();
        let tables: BTreeSet<u32> = self.state.tables.iter().copied().chain(desired.tables()).collect();
        for table in &tables {
            routes.extend(self.netlink.routes(*table).await?);
        }
        let mut rules = self.netlink.rules().await?;
        rules.retain(|rule| rule.protocol == PROTOCOL || tables.contains(&rule.table));
        let mut keys = sysctl::keys(&desired.interface, &desired.underlay, &interfaces);
        let remembered: std::collections::BTreeMap<String, String> =
            self.state.sysctls.iter().map(|sysctl| (sysctl.key.clone(), sysctl.set.clone())).collect();
        keys.extend(remembered.keys().cloned());
        let sysctls = blocking(move || procfs::read_all(&keys)).await?;
        Ok(Observed {
            link,
            addresses,
            routes,
            rules,
            nft: self.nft.clone(),
            sysctls,
            remembered,
            interfaces,
        })
    }

    fn notice_interface(&mut self, link: Option<&ObservedLink>, full: bool) {
        let index = link.map(|link| link.index);
        let changed = self.index.is_some() && self.index != index;
        if changed || (full && index.is_none()) {
            warn!("podspan's interface is gone");
            let _ = self.events.try_send(HostEvent::InterfaceGone);
        }
        self.index = index;
        self.owned = link.filter(|link| plan::is_own_link(link)).map(|link| link.index);
    }

    async fn look_at_underlay(&mut self, desired: &HostDesired) -> io::Result<()> {
        let facts = facts::read(&self.netlink).await?;
        let now = if desired.underlay.is_empty() {
            // Not known yet: whatever comes may be it.
            let mut facts = facts;
            facts.interfaces.retain(|interface| interface.name != desired.interface);
            facts
        } else {
            facts.of(&desired.underlay)
        };
        let before = self.underlay.replace(now);
        if before.is_some() && before != self.underlay {
            debug!("the underlay changed");
            let _ = self.events.try_send(HostEvent::UnderlayChanged);
        }
        Ok(())
    }

    fn publish(&mut self, desired: &HostDesired, observed: &Observed, plan: Plan, problems: Vec<String>) {
        self.wanted = plan.steps.iter().map(Step::subject).collect();
        let mut failing = problems;
        failing.extend(plan.refused);
        failing.extend(self.nft_error.clone());
        failing.extend(self.attempts.failing(&self.wanted, Instant::now()));
        if failing.len() > MAX_FAILING {
            let more = failing.len() - MAX_FAILING;
            failing.truncate(MAX_FAILING);
            failing.push(format!("and {more} more of the kind"));
        }
        let notes: Vec<String> = plan.notes.into_iter().chain(self.state_note.clone()).collect();
        let status = KernelStatus {
            interface: desired.interface.clone(),
            table: desired.table,
            routes: standing(desired, observed),
            healed: self.healed,
            failing,
        };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for note in notes.iter().filter(|note| !shared.notes.contains(note)) {
            info!("{note}");
        }
        *shared = Shared { status, notes };
    }
}

/// Makes the nftables table that stands into another one, unless a hand is in it: what is left alone now would be taken
/// for podspan's from then on.
async fn change_nft(written: &Written, table: &nft::Table) -> io::Result<()> {
    let anew = || io::Error::other("it takes other chains or sets");
    let change = written.change(table).ok_or_else(anew)?;
    if nft_command::list(Path::new(NFT)).await?.as_ref() != Some(&written.listing) {
        return Err(io::Error::other("somebody has changed it"));
    }
    nft_command::apply(Path::new(NFT), &change).await
}

/// The remote CIDRs whose routes were read back as podspan's.
fn standing(desired: &HostDesired, observed: &Observed) -> Vec<Cidr> {
    let index = observed.link.as_ref().map(|link| link.index);
    let found: BTreeSet<Cidr> = observed
        .routes
        .iter()
        .filter(|route| {
            route.table == desired.table
                && route.protocol == PROTOCOL
                && index.is_some()
                && route.interface == index
        })
        .map(|route| route.destination)
        .collect();
    found.into_iter().collect()
}

/// What a person can do about an error, where the error itself does not tell.
fn hint(step: &Step, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (the agent must run as root, or with CAP_NET_ADMIN)",
        Some(libc::EROFS) if matches!(step, Step::Sysctl(_)) => {
            " (/proc/sys is read-only: a container needs the host's /proc/sys/net at /host/proc/sys/net)"
        }
        _ => "",
    }
}

/// Runs what waits for a disk or for `/proc` where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn jittered(duration: Duration) -> Duration {
    // Without randomness the agents of a cluster would only resync in step.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    duration.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX))
}
