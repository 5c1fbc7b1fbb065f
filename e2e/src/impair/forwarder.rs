//! The forwarder's IO: packets from a TUN through the [`Path`] and back into the TUN, from where the kernel
//! forwards them on.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::path::Path;
use super::{Answer, INTERFACE, Request};
use crate::command::Cmd;
use crate::control;
use crate::tun;

#[derive(Debug, Args)]
pub(crate) struct Impair {
    /// The unix socket at which plans are taken
    #[arg(long)]
    socket: PathBuf,
}

/// The longest that the forwarder sleeps: what a new plan changes takes effect with the next packet anyhow.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Largest packet: nothing on the way is larger than IP allows.
const BUFFER: usize = 65_536;

/// Forwards in the calling namespace until it is ended. The TUN goes with the process; the kernel then
/// forwards by itself again.
pub(crate) fn run(args: &Impair) -> Result<()> {
    let mut tun = tun::open(INTERFACE, 0)?;
    // Not for this lab's own load to be measured: a delayed packet is a fault that nobody asked for.
    // SAFETY: setpriority takes numbers and touches no memory of ours.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    let up = format!("link set {INTERFACE} mtu 65535 txqueuelen 10000 addrgenmode none up\n");
    Cmd::new("ip").args(["-batch", "-"]).stdin(up).run_ok()?;
    let path = Arc::new(Mutex::new(Path::new()));
    let controlled = path.clone();
    control::serve(&args.socket, move |request| {
        let mut path = controlled.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match request {
            Request::Set(plan) => {
                plan.check()?;
                path.set(plan);
                Answer::Done
            }
            Request::Show => Answer::Now { plan: path.plan().clone(), counts: path.counts().clone() },
        })
    })?;
    let begin = Instant::now();
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut path = path.lock().unwrap_or_else(PoisonError::into_inner);
        // A bounded number at a time, so that what is due leaves in time.
        for _ in 0..64 {
            match tun.read(&mut buffer) {
                Ok(length) => path.take(begin.elapsed(), buffer[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).with_context(|| format!("reading from {INTERFACE}")),
            }
        }
        while let Some(packet) = path.leave(begin.elapsed()) {
            // What the kernel does not take, it would not have forwarded either.
            if let Err(error) = tun.write(&packet) {
                eprintln!("writing a packet of {} bytes: {error}", packet.len());
            }
        }
        let sleep = path.next_due().map_or(LONGEST_SLEEP, |due| due.saturating_sub(begin.elapsed()));
        drop(path);
        let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from(sleep.min(LONGEST_SLEEP))), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
    }
}
