//! Ctrl-C and SIGTERM: a flag that every wait of the lab looks at, so that an interrupted run unwinds
//! through the same clean-up as any other end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static CLEANING: AtomicBool = AtomicBool::new(false);

/// When the work under way must be done; a mutex and no atomic, since `Instant` has no number.
static DEADLINE: Mutex<Option<Instant>> = Mutex::new(None);

/// The run was interrupted by a signal; the exit code is then 130.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Interrupted {
    /// A signal came.
    #[error("interrupted")]
    Signal,
    /// The work took longer than it may.
    #[error("it took longer than it may")]
    Deadline,
}

/// Starts to listen for SIGINT, SIGTERM and SIGHUP. Must come before any other thread is started, since
/// threads inherit the signal mask; children started by `std::process` get an empty mask.
pub(crate) fn listen() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).context("cannot block signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                if CLEANING.load(Ordering::SeqCst) {
                    eprintln!("lab: {signal}: already cleaning up, this takes a few seconds");
                } else if INTERRUPTED.swap(true, Ordering::SeqCst) {
                    eprintln!("lab: {signal}: already stopping");
                } else {
                    eprintln!("lab: {signal}: stopping and cleaning up");
                }
            }
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

/// An error if a signal came or the time is up; never while cleaning up, since that must go through.
pub(crate) fn check() -> Result<(), Interrupted> {
    if CLEANING.load(Ordering::SeqCst) {
        return Ok(());
    }
    if INTERRUPTED.load(Ordering::SeqCst) {
        return Err(Interrupted::Signal);
    }
    let deadline = *DEADLINE.lock().unwrap_or_else(PoisonError::into_inner);
    if deadline.is_some_and(|deadline| Instant::now() > deadline) {
        return Err(Interrupted::Deadline);
    }
    Ok(())
}

/// Runs `work` with a limit of time: every wait within ends when it is over.
pub(crate) fn within<T>(time: Duration, work: impl FnOnce() -> T) -> T {
    let set = |deadline| *DEADLINE.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    set(Some(Instant::now() + time));
    let out = work();
    set(None);
    out
}

/// Whether a signal came, cleaning up or not.
pub(crate) fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Runs `clean` with interruptions held off.
pub(crate) fn uninterrupted<T>(clean: impl FnOnce() -> T) -> T {
    let before = CLEANING.swap(true, Ordering::SeqCst);
    let out = clean();
    CLEANING.store(before, Ordering::SeqCst);
    out
}

/// Sleeps, but not through a signal.
pub(crate) fn sleep(duration: Duration) -> Result<(), Interrupted> {
    let end = Instant::now() + duration;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}
