//! Requests over connections of their own, tried a second time: what a client of a web service does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{HttpPlan, HttpReport, TOLD, micros};

/// Bytes that are asked for and come back.
const BODY: usize = 400;

/// The requests of one plan, one after the other.
#[derive(Debug)]
pub(super) struct Requests {
    plan: HttpPlan,
    state: Mutex<HttpReport>,
}

impl Requests {
    pub(super) fn new(plan: HttpPlan) -> Self {
        let report = HttpReport { to: plan.to.clone(), ipv6: plan.target.is_ipv6(), ..HttpReport::default() };
        Self { plan, state: Mutex::new(report) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, HttpReport> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for as long as the process lives.
    pub(super) fn run(&self) {
        loop {
            let begin = Instant::now();
            let first = self.ask();
            let second = if first.is_err() { self.ask() } else { Ok(()) };
            let mut state = self.state();
            state.requests += 1;
            state.retried += u64::from(first.is_err() && second.is_ok());
            state.failed += u64::from(second.is_err());
            state.longest_us = state.longest_us.max(micros(begin.elapsed()));
            for error in [first, second].into_iter().filter_map(Result::err) {
                if state.errors.len() < TOLD {
                    state.errors.push(format!("{}: {error:#}", self.plan.to));
                }
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(self.plan.interval_ms));
        }
    }

    /// One try, all of it within the timeout.
    fn ask(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_millis(self.plan.timeout_ms);
        let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let stream = TcpStream::connect_timeout(&self.plan.target, left()).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(left()))?;
        stream.set_read_timeout(Some(left()))?;
        let body = [0x68; BODY];
        (&stream).write_all(&[&b"echo\n"[..], &body].concat()).context("send")?;
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        reader.by_ref().take(128).read_line(&mut line).context("answer")?;
        stream.set_read_timeout(Some(left()))?;
        let mut echo = [0; BODY];
        reader.read_exact(&mut echo).context("body")?;
        if echo != body {
            bail!("the answer is not what was asked for");
        }
        Ok(())
    }

    /// A new window begins.
    pub(super) fn start_window(&self) {
        let mut state = self.state();
        *state = HttpReport { to: state.to.clone(), ipv6: state.ipv6, ..HttpReport::default() };
    }

    pub(super) fn report(&self) -> HttpReport {
        self.state().clone()
    }
}
