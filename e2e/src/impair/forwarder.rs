//! The forwarder's IO: packets from a TUN through the [`Path`] and back into the TUN, from where the kernel
//! forwards them on.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::path::Path;
use super::{Answer, INTERFACE, Request};
use crate::command::Cmd;
use crate::control;

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
    let mut tun = open(INTERFACE)?;
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

/// Makes the TUN: packets without any header, no offloads, so that the kernel hands over what would be on the
/// wire: cut to the sender's MTU, with checksums.
fn open(name: &str) -> Result<File> {
    let file =
        File::options().read(true).write(true).open("/dev/net/tun").context("cannot open /dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        bail!("{name} is too long for an interface");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot make the TUN {name}"));
    }
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("cannot make the TUN non-blocking")?;
    Ok(file)
}
