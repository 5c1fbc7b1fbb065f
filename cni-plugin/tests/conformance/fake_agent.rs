//! An agent for the tests: serves, or misbehaves.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use podspan_wire::local::{Answer, Attachment, PodRoutes, Request};
use tempfile::TempDir;

/// What the agent does with a request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Answers as the real one.
    Serve,
    /// Answers with this line.
    Say(Vec<u8>),
    /// Takes the request and never answers.
    Hang,
    /// Closes the connection at once.
    Close,
    /// Sends bytes without an end of line until the other side gives up.
    Flood,
    /// Sends one byte every 20 ms, so that no single read takes long.
    Drip,
}

#[derive(Default)]
struct State {
    known: BTreeSet<Attachment>,
    requests: Vec<Request>,
    routes: PodRoutes,
}

pub struct FakeAgent {
    directory: TempDir,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The routes that the agent gives out unless told otherwise.
pub fn some_routes() -> PodRoutes {
    PodRoutes {
        cidrs: ["10.2.0.0/16", "10.102.0.0/16", "fd00:2::/48"]
            .map(|cidr| cidr.parse().unwrap())
            .into_iter()
            .collect(),
        mtu: 1420,
    }
}

/// [`some_routes`] as they then stand in a [`crate::namespace::Pod`].
pub const SOME_ROUTES: [&str; 3] = [
    "10.102.0.0/16 via 10.1.1.1 dev eth0 mtu 1420",
    "10.2.0.0/16 via 10.1.1.1 dev eth0 mtu 1420",
    "fd00:2::/48 via fd00:1::1 dev eth0 mtu 1420",
];

impl FakeAgent {
    pub fn new(behaviour: Behaviour) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(Mutex::new(State { routes: some_routes(), ..State::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            let (state, stop, behaviour) = (state.clone(), stop.clone(), behaviour.clone());
                            std::thread::spawn(move || handle(&stream, &state, &stop, &behaviour));
                        }
                        Err(_) => sleep(Duration::from_micros(200)),
                    }
                }
            }
        });
        Self { directory, state, stop, thread: Some(thread) }
    }

    pub fn serving() -> Self {
        Self::new(Behaviour::Serve)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub fn set_routes(&self, routes: PodRoutes) {
        self.state.lock().unwrap().routes = routes;
    }

    pub fn forget_all(&self) {
        self.state.lock().unwrap().known.clear();
    }

    pub fn known(&self) -> usize {
        self.state.lock().unwrap().known.len()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn handle(stream: &UnixStream, state: &Mutex<State>, stop: &AtomicBool, behaviour: &Behaviour) {
    stream.set_nonblocking(false).unwrap();
    let mut out = stream;
    if matches!(behaviour, Behaviour::Close) {
        return;
    }
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request: Request = serde_json::from_str(&line).unwrap();
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let answer = match request {
            Request::Attach(detail) => {
                state.known.insert(detail.attachment);
                Answer::Routes(state.routes.clone())
            }
            Request::Detach(attachment) => {
                state.known.remove(&attachment);
                Answer::Done
            }
            Request::Check(attachment) if state.known.contains(&attachment) => {
                Answer::Routes(state.routes.clone())
            }
            Request::Check(_) => Answer::Unknown,
            Request::Collect { valid, .. } => {
                state.known.retain(|known| valid.contains(known));
                Answer::Done
            }
            Request::Ready => Answer::Done,
            Request::Status | Request::Drain { .. } => Answer::Unknown,
        };
        drop(state);
        let stopped = || stop.load(Ordering::Relaxed);
        let sent = match behaviour {
            Behaviour::Serve => {
                let mut line = serde_json::to_vec(&answer).unwrap();
                line.push(b'\n');
                out.write_all(&line)
            }
            Behaviour::Say(line) => out.write_all(line).and_then(|()| out.write_all(b"\n")),
            Behaviour::Hang => {
                while !stopped() {
                    sleep(Duration::from_millis(5));
                }
                return;
            }
            Behaviour::Close => return,
            Behaviour::Flood => {
                while !stopped() && out.write_all(&[b'x'; 65536]).is_ok() {}
                return;
            }
            Behaviour::Drip => {
                while !stopped() && out.write_all(b" ").is_ok() {
                    sleep(Duration::from_millis(20));
                }
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
