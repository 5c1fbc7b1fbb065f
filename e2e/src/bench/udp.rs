//! Small UDP packets: as many as pass, at a steady rate, and there and back. The sockets belong to the namespaces, the
//! threads to the lab.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::netns::Netns;
use crate::signals;

/// Bytes of UDP payload.
pub(crate) const SIZE: usize = 64;

/// How many packets one system call of the load sends or receives.
const BATCH: usize = 32;

/// Bytes that wait in the receiver's socket: what is lost is to be lost in the tunnel.
const ROOM: usize = 8 << 20;

/// How long nothing comes before it is taken for the end.
const QUIET: Duration = Duration::from_millis(300);

/// After this time an echo is not waited for any more.
const LATE: Duration = Duration::from_secs(1);

/// What became of packets that were sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// How long was sent.
    pub(crate) time: Duration,
}

/// Two sockets, the first sends to the second.
#[derive(Debug)]
pub(crate) struct Pair {
    from: UdpSocket,
    to: UdpSocket,
}

impl Pair {
    /// A socket in each namespace, at these addresses.
    pub(crate) fn open(from: (&Netns, Ipv4Addr), to: (&Netns, Ipv4Addr)) -> Result<Self> {
        let socket = |(netns, address): (&Netns, Ipv4Addr)| {
            netns.enter(|| UdpSocket::bind((address, 0)).with_context(|| format!("cannot use {address}")))
        };
        let (from, to) = (socket(from)?, socket(to)?);
        setsockopt(&to, sockopt::RcvBufForce, &ROOM).context("a large receive buffer")?;
        from.connect(to.local_addr()?)?;
        Ok(Self { from, to })
    }

    /// Sends for `time`: `rate` packets a second one by one at even distances, or as many as the kernel takes.
    pub(crate) fn send(&self, time: Duration, rate: Option<u32>) -> Result<Flow> {
        let done = AtomicBool::new(false);
        self.to.set_read_timeout(Some(QUIET))?;
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&self.to, &done));
            let sent = match rate {
                Some(rate) => send_evenly(&self.from, time, rate),
                None => send_all(&self.from, time),
            };
            done.store(true, Ordering::SeqCst);
            let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
            let (sent, time) = sent?;
            Ok(Flow { sent, received, time })
        })
    }

    /// Sends a packet each `pause` and waits for its echo; the round trips in microseconds. An echo that does not come
    /// within a second counts as one.
    pub(crate) fn round_trips(&self, time: Duration, pause: Duration) -> Result<Vec<f64>> {
        let done = AtomicBool::new(false);
        self.to.set_read_timeout(Some(QUIET))?;
        self.from.set_read_timeout(Some(LATE))?;
        std::thread::scope(|scope| {
            scope.spawn(|| echo(&self.to, &done));
            let result = self.ask(time, pause);
            done.store(true, Ordering::SeqCst);
            result
        })
    }

    fn ask(&self, time: Duration, pause: Duration) -> Result<Vec<f64>> {
        fine_timers();
        let end = Instant::now() + time;
        let mut all = Vec::new();
        let (mut number, mut buffer) = (0_u64, [0; SIZE]);
        while Instant::now() < end {
            signals::check()?;
            number += 1;
            let mut packet = [0; SIZE];
            packet[..8].copy_from_slice(&number.to_le_bytes());
            let begin = Instant::now();
            self.from.send(&packet).context("a ping cannot be sent")?;
            loop {
                match self.from.recv(&mut buffer) {
                    Ok(_) if buffer == packet => {
                        all.push(begin.elapsed().as_secs_f64() * 1e6);
                        break;
                    }
                    // The echo of an earlier one.
                    Ok(_) => {}
                    Err(error) if is_timeout(&error) => {
                        all.push(LATE.as_secs_f64() * 1e6);
                        break;
                    }
                    Err(error) => return Err(error).context("the echo of a ping"),
                }
            }
            std::thread::sleep(pause);
        }
        if all.iter().all(|time| *time >= LATE.as_secs_f64() * 1e6) {
            bail!("none of {number} pings came back");
        }
        Ok(all)
    }
}

/// Sleeps of this thread end when they should, not up to 50 us later (prctl(2), `PR_SET_TIMERSLACK`).
fn fine_timers() {
    // SAFETY: takes two numbers and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
}

/// What a system call for many messages is given: the same buffer for all, since nobody looks at what is received.
struct Messages {
    _buffer: Box<[u8; SIZE]>,
    _pieces: Box<[libc::iovec; BATCH]>,
    heads: Box<[libc::mmsghdr; BATCH]>,
}

impl Messages {
    fn new() -> Self {
        let mut buffer = Box::new([0x5a; SIZE]);
        let piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: SIZE };
        let mut pieces = Box::new([piece; BATCH]);
        // SAFETY: zeroes are a valid value of this plain C structure: no name, no pieces, no control data.
        let empty: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let mut heads = Box::new([empty; BATCH]);
        for (head, piece) in heads.iter_mut().zip(pieces.iter_mut()) {
            head.msg_hdr.msg_iov = piece;
            head.msg_hdr.msg_iovlen = 1;
        }
        Self { _buffer: buffer, _pieces: pieces, heads }
    }

    /// How many the kernel took.
    fn send(&mut self, socket: &UdpSocket) -> std::io::Result<u64> {
        let (heads, count) = (self.heads.as_mut_ptr(), BATCH as libc::c_uint);
        // SAFETY: `heads` points to BATCH messages, whose pieces and buffer this value owns and keeps in place.
        let code = unsafe { libc::sendmmsg(socket.as_raw_fd(), heads, count, 0) };
        u64::try_from(code).map_err(|_| std::io::Error::last_os_error())
    }

    /// How many came: one at least.
    fn receive(&mut self, socket: &UdpSocket) -> std::io::Result<u64> {
        let (heads, count) = (self.heads.as_mut_ptr(), BATCH as libc::c_uint);
        let (flags, none) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
        // SAFETY: as above; the messages have no room for names or control data, and the kernel writes none.
        let code = unsafe { libc::recvmmsg(socket.as_raw_fd(), heads, count, flags, none) };
        u64::try_from(code).map_err(|_| std::io::Error::last_os_error())
    }
}

/// Counts what comes until the sender is done and nothing comes any more.
fn receive(socket: &UdpSocket, done: &AtomicBool) -> Result<u64> {
    let (mut messages, mut count) = (Messages::new(), 0);
    loop {
        match messages.receive(socket) {
            Ok(more) => count += more,
            Err(error) if is_timeout(&error) => {
                if done.load(Ordering::SeqCst) {
                    return Ok(count);
                }
            }
            Err(error) => return Err(error).context("the receiver of small packets"),
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// The kernel's refusal of a packet because its queue is full is a loss like others.
fn is_full(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::ECONNREFUSED))
}

fn send_all(socket: &UdpSocket, time: Duration) -> Result<(u64, Duration)> {
    let (mut messages, mut sent) = (Messages::new(), 0);
    let begin = Instant::now();
    while begin.elapsed() < time {
        signals::check()?;
        match messages.send(socket) {
            Ok(more) => sent += more,
            Err(error) if is_full(&error) => {}
            Err(error) => return Err(error).context("the sender of small packets"),
        }
    }
    Ok((sent, begin.elapsed()))
}

/// One packet at a time; after a sleep that was too long, those that are due.
fn send_evenly(socket: &UdpSocket, time: Duration, rate: u32) -> Result<(u64, Duration)> {
    fine_timers();
    let packet = [0x5a; SIZE];
    let step = Duration::from_secs(1) / rate;
    let begin = Instant::now();
    let mut sent = 0_u32;
    while begin.elapsed() < time {
        let due = step * sent;
        let now = begin.elapsed();
        if now < due {
            std::thread::sleep(due - now);
            continue;
        }
        if sent.is_multiple_of(256) {
            signals::check()?;
        }
        match socket.send(&packet) {
            Ok(_) => {}
            Err(error) if is_full(&error) => {}
            Err(error) => return Err(error).context("the sender of small packets"),
        }
        sent += 1;
    }
    Ok((sent.into(), begin.elapsed()))
}

fn echo(socket: &UdpSocket, done: &AtomicBool) {
    let mut buffer = [0; SIZE];
    while !done.load(Ordering::SeqCst) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // What cannot be sent is a ping that is lost, which the other side sees.
            socket.send_to(&buffer[..length], from).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Pair {
        let socket = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let pair = Pair { from: socket(), to: socket() };
        pair.from.connect(pair.to.local_addr().unwrap()).unwrap();
        pair
    }

    #[test]
    fn a_steady_flow_is_steady() {
        let flow = pair().send(Duration::from_millis(200), Some(1000)).unwrap();
        assert!((150..=201).contains(&flow.sent), "{flow:?}");
        assert_eq!(flow.received, flow.sent);
    }

    #[test]
    fn a_flood_is_more() {
        let flow = pair().send(Duration::from_millis(100), None).unwrap();
        assert!(flow.sent > 1000 && flow.received > 100, "{flow:?}");
    }

    #[test]
    fn pings_come_back() {
        let pause = Duration::from_millis(1);
        let times = pair().round_trips(Duration::from_millis(100), pause).unwrap();
        assert!(times.len() > 5 && times.iter().all(|time| *time > 0.0), "{times:?}");
    }
}
