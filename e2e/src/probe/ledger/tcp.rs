//! Connections that are used all the time, each by a thread of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{TOLD, TcpPlan, TcpReport, micros};

/// How long a message may wait for its echo until the connection counts as broken: TCP itself does not give up
/// for many minutes.
const PATIENCE: Duration = Duration::from_secs(20);

const CONNECT: Duration = Duration::from_secs(5);

/// How long after a connection broke another one is made in its place.
const PAUSE: Duration = Duration::from_millis(500);

/// The connections of one plan.
#[derive(Debug)]
pub(super) struct Connections {
    plan: TcpPlan,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    standing: usize,
    echoed: u64,
    broken: u64,
    stall: Duration,
    /// Since when each connection has been waiting for an echo.
    waiting: Vec<Option<Instant>>,
    errors: Vec<String>,
}

impl Connections {
    pub(super) fn new(plan: TcpPlan) -> Self {
        let waiting = vec![None; plan.connections];
        Self { plan, state: Mutex::new(State { waiting, ..State::default() }) }
    }

    pub(super) fn count(&self) -> usize {
        self.plan.connections
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one connection busy for as long as the process lives.
    pub(super) fn run(&self, number: usize) {
        // Not all in the same moment.
        std::thread::sleep(
            Duration::from_millis(self.plan.interval_ms) * u32::try_from(number % 16).unwrap_or(0) / 16,
        );
        loop {
            let mut stood = false;
            let Err(error) = self.keep_busy(number, &mut stood);
            let mut state = self.state();
            state.waiting[number] = None;
            state.standing -= usize::from(stood);
            // One that never stood is no connection that broke; that it does not stand is told all the same.
            state.broken += u64::from(stood);
            if state.errors.len() < TOLD {
                state.errors.push(format!("{}: {error:#}", self.plan.to));
            }
            drop(state);
            std::thread::sleep(PAUSE);
        }
    }

    fn keep_busy(&self, number: usize, stood: &mut bool) -> Result<std::convert::Infallible> {
        let stream = TcpStream::connect_timeout(&self.plan.target, CONNECT).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        writeln!(&stream, "echo").context("request")?;
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        reader.by_ref().take(128).read_line(&mut line).context("answer")?;
        self.state().standing += 1;
        *stood = true;
        let mut message = [0x5a; 64];
        let mut echo = [0; 64];
        for count in 0_u64.. {
            message[..8].copy_from_slice(&count.to_be_bytes());
            let begin = Instant::now();
            self.state().waiting[number] = Some(begin);
            (&stream).write_all(&message).context("send")?;
            reader.read_exact(&mut echo).context("no echo")?;
            if echo != message {
                bail!("message {count} came back changed");
            }
            {
                let mut state = self.state();
                state.waiting[number] = None;
                state.echoed += 1;
                state.stall = state.stall.max(begin.elapsed());
            }
            std::thread::sleep(Duration::from_millis(self.plan.interval_ms));
        }
        bail!("counted to the end")
    }

    /// A new window begins. What has been waiting since before does so in this one too.
    pub(super) fn start_window(&self) {
        let mut state = self.state();
        state.echoed = 0;
        state.broken = 0;
        state.stall = Duration::ZERO;
        state.errors.clear();
    }

    pub(super) fn report(&self) -> TcpReport {
        let state = self.state();
        let waiting = state.waiting.iter().flatten().map(Instant::elapsed).max().unwrap_or_default();
        TcpReport {
            to: self.plan.to.clone(),
            ipv6: self.plan.target.is_ipv6(),
            connections: state.standing,
            echoed: state.echoed,
            broken: state.broken,
            stall_us: micros(state.stall.max(waiting)),
            errors: state.errors.clone(),
        }
    }
}
