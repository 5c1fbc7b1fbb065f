//! The handle that the agent holds.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use podspan_wire::{LaneKey, MAX_LANES, NodeId};
use tracing::info;

use crate::core::{Config, Core, PathLimits};
use crate::counters::WorkerCounters;
use crate::settings::{Settings, StartError};
use crate::status::Status;
use crate::table::{Table, TableError, TableSpec};
use crate::takeover::adopt::{Adopted, adopt};
use crate::takeover::{LentLane, Role};
use crate::tun::Queue;
use crate::worker::{Clock, Command, LaneSocket, Teller, Worker};

/// The running packet path: worker threads, one for each lane. Dropping it stops them.
#[derive(Debug)]
pub struct Dataplane {
    clock: Clock,
    own: Vec<LaneKey>,
    /// The table in force. The lock is held by callers of this type only, never by a worker.
    table: Mutex<Arc<Table>>,
    workers: Vec<Handle>,
}

#[derive(Debug)]
struct Handle {
    lane: usize,
    port: u16,
    counters: Arc<WorkerCounters>,
    failed: Arc<OnceLock<String>>,
    teller: Teller,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    fn tell(&self, command: Command) {
        self.teller.tell(command);
    }
}

impl Dataplane {
    /// Opens queues and sockets and starts the workers. The table is empty.
    ///
    /// # Errors
    /// If the settings cannot be, or the system refuses; nothing is left running.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        Self::launch(settings, None)
    }

    /// The same, beside the dataplane that has lent these lanes, if any.
    pub(crate) fn launch(settings: Settings, lent: Option<Vec<LentLane>>) -> Result<Self, StartError> {
        let own = check(&settings)?;
        let clock = Clock::start();
        // Everything is opened before the first thread runs, so that a refusal leaves nothing behind.
        let opened = match lent {
            Some(lent) => adopt_all(&settings, lent)?,
            None => open_all(&settings)?,
        };
        let mut dataplane = Self { clock, own, table: Mutex::default(), workers: Vec::new() };
        let all = Arc::new(OnceLock::new());
        for ((lane, Opened { socket, queue, role, mask }), secret) in
            opened.into_iter().enumerate().zip(settings.lanes)
        {
            let port = settings.port + lane as u16;
            let system = |what| move |error| StartError::System { what, error };
            let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                .map_err(|error| system("no eventfd")(error.into()))?;
            let wake = Arc::new(wake);
            let mut seed = [0; 8];
            getrandom::fill(&mut seed)
                .map_err(|error| system("no random bytes")(std::io::Error::other(error.to_string())))?;
            let counters = Arc::new(WorkerCounters::default());
            let failed = Arc::new(OnceLock::new());
            let (commands, inbox) = channel();
            let config = Config {
                lane,
                secret,
                handshake_limit: settings.handshake_limit,
                seed: u64::from_ne_bytes(seed),
            };
            let mut core = Core::with_counters(config, Arc::clone(&counters));
            if let Some(mask) = mask {
                core.beside(mask);
            }
            let worker = Worker {
                lane,
                interface: settings.interface.clone(),
                persist: settings.persist,
                offload: settings.offload,
                clock,
                core,
                counters: Arc::clone(&counters),
                queue: Some(queue),
                socket,
                role,
                commands: inbox,
                wake: Arc::clone(&wake),
                all: Arc::clone(&all),
                failed: Arc::clone(&failed),
            };
            // Should a later lane fail, dropping `dataplane` stops the ones that run already.
            let thread = worker.spawn().map_err(system("no thread"))?;
            dataplane.workers.push(Handle {
                lane,
                port,
                counters,
                failed,
                teller: Teller { lane, commands, wake },
                thread: Some(thread),
            });
        }
        // It is set once, here.
        let _ = all.set(dataplane.workers.iter().map(|worker| worker.teller.clone()).collect());
        let last = settings.port + (dataplane.workers.len() - 1) as u16;
        info!(
            interface = settings.interface,
            lanes = dataplane.workers.len(),
            first = settings.port,
            last,
            "dataplane runs"
        );
        Ok(dataplane)
    }

    /// Puts a whole table in force, in place of the one before; safe to repeat. Tunnels whose key stays
    /// the same keep their session; a new key makes a new tunnel; what is not listed is gone. Returns
    /// before the workers have taken it over, which they do at their next turn.
    ///
    /// # Errors
    /// Names the entries that were left out; **everything else is in force**.
    pub fn set_table(&self, spec: TableSpec) -> Result<(), TableError> {
        let mut current = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (table, rejected) = Table::new(spec, &self.own, &current);
        let table = Arc::new(table);
        for worker in &self.workers {
            worker.tell(Command::Table(Arc::clone(&table)));
        }
        *current = table;
        if rejected.is_empty() { Ok(()) } else { Err(TableError { rejected }) }
    }

    /// How large packets may be at all: the MTUs of the underlay's interface and of the TUN. Paths are measured
    /// up to that (see [`crate::PathStatus`]).
    pub fn set_path_limits(&self, limits: PathLimits) {
        for worker in &self.workers {
            worker.tell(Command::PathLimits(limits));
        }
    }

    /// Tells all peers whether this node is about to go: they take other ways where there are any. What still
    /// comes is forwarded as ever.
    pub fn set_draining(&self, draining: bool) {
        self.each().for_each(|(_, tell)| tell(Command::Draining(draining)));
    }

    /// Takes over what probes through a gateway showed: one that does not forward to other nodes is used only
    /// where there is no other way. Holds until it is said otherwise, or the peer leaves the table.
    pub fn set_forwarding(&self, gateway: &NodeId, forwards: bool) {
        self.each().for_each(|(_, tell)| tell(Command::Forwarding(gateway.clone(), forwards)));
    }

    /// Sends an inner packet through the first lane to `gateway`, whatever way would be better. Dropped, and
    /// counted, if there is no session with it.
    pub fn send_through(&self, gateway: &NodeId, packet: &[u8]) {
        if let Some((_, tell)) = self.each().next() {
            tell(Command::Through(gateway.clone(), packet.into()));
        }
    }

    /// What the dataplane does at this moment. Holds no worker up.
    #[must_use]
    pub fn status(&self) -> Status {
        let table = Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner));
        let workers = self.workers.iter().map(|w| w.counters.status(w.lane, w.port, w.failed.get().cloned()));
        Status { peers: table.status(self.clock.now()), workers: workers.collect() }
    }

    /// The workers: number of the lane, and how to tell it something.
    pub(crate) fn each(&self) -> impl Iterator<Item = (usize, impl Fn(Command))> {
        self.workers.iter().map(|worker| (worker.lane, |command| worker.tell(command)))
    }

    /// Stops the workers and waits for them. The interface stays if it is persistent.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.tell(Command::Stop);
        }
        for worker in &mut self.workers {
            // A panic was caught and told of on the thread itself.
            let _ = worker.thread.take().map(JoinHandle::join);
        }
    }
}

/// What a worker is started with.
struct Opened {
    socket: LaneSocket,
    queue: Queue,
    role: Role,
    /// That of the worker that has lent it.
    mask: Option<u32>,
}

fn open_all(settings: &Settings) -> Result<Vec<Opened>, StartError> {
    let open = |lane| LaneSocket::open(lane, settings.port + lane as u16, settings.fwmark, settings.offload);
    // All ports before the first queue: an interface that is made is not to go again at once.
    let sockets = (0..settings.lanes.len()).map(open).collect::<Result<Vec<_>, _>>()?;
    sockets
        .into_iter()
        .map(|socket| {
            let queue = Queue::attach(&settings.interface, settings.persist, settings.offload)?;
            Ok(Opened { socket, queue, role: Role::Owner, mask: None })
        })
        .collect()
}

fn adopt_all(settings: &Settings, lent: Vec<LentLane>) -> Result<Vec<Opened>, StartError> {
    if lent.len() != settings.lanes.len() {
        return Err(StartError::OtherLanes { lent: lent.len(), own: settings.lanes.len() });
    }
    let adopt = |(number, lane)| adopt(settings, number, lane);
    let open = |adopted| {
        let Adopted { socket, queue, relay, mask } = adopted;
        Opened { socket, queue, role: Role::heir(relay), mask: Some(mask) }
    };
    lent.into_iter().enumerate().map(|lane| adopt(lane).map(open)).collect()
}

/// Checks what can be checked before anything is opened; returns the lanes' public keys.
fn check(settings: &Settings) -> Result<Vec<LaneKey>, StartError> {
    let lanes = settings.lanes.len();
    if lanes == 0 || lanes > MAX_LANES {
        return Err(StartError::Lanes(lanes));
    }
    if settings.port == 0 || usize::from(settings.port) + lanes > 65_536 {
        return Err(StartError::PortRange { port: settings.port, lanes });
    }
    let own: Vec<LaneKey> = settings.lanes.iter().map(crate::LaneSecret::public).collect();
    for (i, key) in own.iter().enumerate() {
        if let Some(j) = own[..i].iter().position(|earlier| earlier == key) {
            return Err(StartError::SameKey(j, i));
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LaneSecret;

    fn settings(port: u16, keys: &[u8]) -> Settings {
        Settings {
            interface: "podspan0".into(),
            port,
            fwmark: 0,
            lanes: keys.iter().map(|&n| LaneSecret::from_bytes([n; 32])).collect(),
            persist: false,
            handshake_limit: crate::DEFAULT_HANDSHAKE_LIMIT,
            offload: crate::Offload::ALL,
        }
    }

    #[test]
    fn settings_that_cannot_be_are_refused_before_anything_is_opened() {
        assert!(matches!(check(&settings(51840, &[])), Err(StartError::Lanes(0))));
        assert!(matches!(check(&settings(51840, &[1; 65])), Err(StartError::Lanes(65))));
        assert!(matches!(check(&settings(0, &[1])), Err(StartError::PortRange { .. })));
        let error = check(&settings(65535, &[1, 2])).unwrap_err().to_string();
        assert!(error.contains("from 1 to 65534"), "{error}");
        assert!(matches!(check(&settings(51840, &[1, 2, 1])), Err(StartError::SameKey(0, 2))));
        assert_eq!(check(&settings(65534, &[1, 2])).unwrap().len(), 2);
    }
}
