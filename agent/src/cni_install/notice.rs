//! Notices changes of the configuration directory at once (inotify), and by a slow look now and then
//! whatever inotify missed.

use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long nothing must have changed before a look: whoever writes a configuration may write more of it.
const QUIET: Duration = Duration::from_millis(100);
/// How long to wait for that.
const PATIENCE: Duration = Duration::from_secs(2);

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Notices changes in directories.
pub struct Notice {
    inotify: Option<AsyncFd<Descriptor>>,
}

impl Notice {
    /// Begins to look. Without inotify, or while a directory is missing, only the slow look is left.
    /// Within a Tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok().and_then(|inotify| {
                // SAFETY: the descriptor is open, is the inotify's own, which never changes it, and both are
                // closed together with the `AsyncFd`.
                unsafe { AsyncFd::register(Descriptor(inotify)) }.ok()
            });
        Self { inotify }
    }

    /// Looks at a directory from now on; again after it was made anew. Safe to repeat.
    pub fn watch(&self, directory: &Path) {
        use AddWatchFlags as A;
        let events = A::IN_CREATE
            | A::IN_CLOSE_WRITE
            | A::IN_DELETE
            | A::IN_MOVED_FROM
            | A::IN_MOVED_TO
            | A::IN_ONLYDIR;
        if let Some(inotify) = &self.inotify {
            // That it is not there is no error: see `new`.
            let _ = inotify.get_ref().0.add_watch(directory, events);
        }
    }

    /// Waits until something has changed and is quiet again, `most` at the longest.
    pub async fn changed(&mut self, most: Duration) {
        if timeout(most, self.event()).await.is_err() {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && timeout_at(Instant::now() + QUIET, self.event()).await.is_ok() {}
    }

    /// The next event.
    async fn event(&mut self) {
        let Some(inotify) = &mut self.inotify else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = inotify.readable_mut().await else {
                // No event will ever come; the caller's bound is what is left.
                return std::future::pending().await;
            };
            match ready.get_inner().0.read_events() {
                Ok(events) if !events.is_empty() => return,
                Ok(_) | Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                // Not to spin, should it go on.
                Err(_) => sleep(QUIET).await,
            }
        }
    }
}

impl Default for Notice {
    fn default() -> Self {
        Self::new()
    }
}
