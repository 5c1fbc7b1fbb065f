//! Flows of datagrams, sent and read by one thread for each plan.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::tally::Tally;
use super::{Message, TOLD, UdpPlan, UdpReport, micros};

/// How far a sender that was not let run may lag behind before it gives up on what it should have sent.
const LAG: Duration = Duration::from_millis(100);

/// The flows of one plan.
#[derive(Debug)]
pub(super) struct Flows {
    plan: UdpPlan,
    from: String,
    sockets: Vec<UdpSocket>,
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    flows: Vec<Flow>,
    wrong: Vec<String>,
    stall: Duration,
    /// Echoes since the start.
    count: u64,
}

#[derive(Debug, Default)]
struct Flow {
    id: u64,
    /// Number of the next message.
    next: u64,
    tally: Tally,
}

impl Flows {
    /// Opens the sockets; `id` is the first of as many flow ids as the plan has flows.
    pub(super) fn new(from: &str, plan: UdpPlan, id: u64) -> Result<Self> {
        let any: IpAddr = match plan.target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = |_| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(plan.target).with_context(|| format!("no route to {}", plan.target))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let sockets = (0..plan.flows).map(socket).collect::<Result<Vec<_>>>()?;
        let flow = |number: usize| Flow { id: id + number as u64, ..Flow::default() };
        let flows = (0..plan.flows).map(flow).collect();
        let state = Mutex::new(State { flows, wrong: Vec::new(), stall: Duration::ZERO, count: 0 });
        Ok(Self { plan, from: from.to_owned(), sockets, begin: Instant::now(), state })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends and reads for as long as the process lives.
    pub(super) fn run(&self) -> Result<()> {
        let interval = Duration::from_nanos(1_000_000_000 / self.plan.packets_per_second.max(1));
        let (mut due, mut turn) = (Duration::ZERO, 0);
        loop {
            let now = self.begin.elapsed();
            if now > due + LAG {
                due = now;
            }
            while due <= now {
                self.send(turn);
                turn = (turn + 1) % self.sockets.len().max(1);
                due += interval;
            }
            let wait = due.saturating_sub(self.begin.elapsed());
            let before = Instant::now();
            let mut fds: Vec<_> =
                self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            match ppoll(&mut fds, Some(TimeSpec::from(wait)), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for echoes"),
            }
            let ready: Vec<usize> = (0..fds.len()).filter(|&i| fds[i].any() != Some(false)).collect();
            self.read(&ready, before.elapsed().saturating_sub(wait));
        }
    }

    fn send(&self, turn: usize) {
        let message = {
            let mut state = self.state();
            let flow = &mut state.flows[turn];
            flow.next += 1;
            Message {
                flow: flow.id,
                number: flow.next - 1,
                from: self.from.clone(),
                to: self.plan.to.clone(),
                by: String::new(),
            }
        };
        // What the kernel does not send is lost: a full queue, or an ICMP answer to an earlier datagram, which
        // is then tried once more since it was not about this one.
        let bytes = message.write();
        if self.sockets[turn].send(&bytes).is_err() {
            self.sockets[turn].send(&bytes).ok();
        }
    }

    fn read(&self, ready: &[usize], stall: Duration) {
        let mut buffer = [0; 2048];
        let mut state = self.state();
        state.stall = state.stall.max(stall);
        for &turn in ready {
            loop {
                let length = match self.sockets[turn].recv(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // An ICMP answer.
                    Err(_) => continue,
                };
                let now = self.begin.elapsed();
                if let Err(what) = state.arrived(turn, now, &buffer[..length], &self.from) {
                    state.complain(what);
                }
            }
        }
    }

    /// Echoes since the start.
    pub(super) fn count(&self) -> u64 {
        self.state().count
    }

    /// A new window begins.
    pub(super) fn start_window(&self) {
        let now = self.begin.elapsed();
        let mut state = self.state();
        for flow in &mut state.flows {
            let next = flow.next;
            flow.tally.begin(now, next);
        }
        state.stall = Duration::ZERO;
        state.wrong.clear();
    }

    /// The numbers at which the window ends, and when.
    pub(super) fn end_window(&self) -> (Duration, Vec<u64>) {
        (self.begin.elapsed(), self.state().flows.iter().map(|flow| flow.next).collect())
    }

    /// What became of what was sent before that end.
    pub(super) fn report(&self, (_, ends): &(Duration, Vec<u64>)) -> (Vec<UdpReport>, Vec<String>, u64) {
        let now = self.begin.elapsed();
        let state = self.state();
        let report = |(flow, end): (&Flow, &u64)| UdpReport {
            to: self.plan.to.clone(),
            ipv6: self.plan.target.is_ipv6(),
            window: flow.tally.window(now, *end),
        };
        let reports = state.flows.iter().zip(ends).map(report).collect();
        (reports, state.wrong.clone(), micros(state.stall))
    }
}

impl State {
    fn arrived(&mut self, turn: usize, now: Duration, datagram: &[u8], me: &str) -> Result<(), String> {
        let message = Message::read(datagram).map_err(|error| format!("{me}: a damaged echo: {error}"))?;
        let flow = &mut self.flows[turn];
        if message.flow != flow.id || message.from != me {
            return Err(format!("{me}: an echo of {} for flow {}: {message:?}", message.from, flow.id));
        }
        // Hosts have no name.
        let by_host = message.by.is_empty() && !message.to.contains('/');
        if !by_host && !message.is_for(&message.by) {
            return Err(format!("{me}: what was for {} was answered by {}", message.to, message.by));
        }
        if message.number >= flow.next {
            return Err(format!("{me}: an echo of what was never sent: {message:?}"));
        }
        flow.tally.arrive(now, message.number);
        self.count += 1;
        Ok(())
    }

    fn complain(&mut self, what: String) {
        if self.wrong.len() < TOLD {
            self.wrong.push(what);
        }
    }
}
