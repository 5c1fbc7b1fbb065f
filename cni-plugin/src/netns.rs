//! Network namespaces: opening one safely, and working inside one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// Opens the network namespace at `path`, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
///
/// # Errors
/// If there is nothing, or something that is no namespace: a runtime leaves an empty file behind when it
/// has unmounted the namespace. Never blocks, whatever kind of file it is.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this file is not a namespace"));
    }
    Ok(file)
}

/// Whether the two are one namespace.
///
/// # Errors
/// If one cannot be examined.
pub fn same(a: &File, b: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Runs `work` inside the network namespace `netns`, on a thread of its own that ends with it, so that
/// the calling thread's namespace never changes. Blocks until `work` is done.
///
/// # Errors
/// If the thread cannot be started or may not enter (`CAP_SYS_ADMIN`), or what `work` returns.
pub fn run_in<T, E>(netns: impl AsFd, work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    T: Send,
    E: From<io::Error> + Send,
{
    let netns = netns.as_fd();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, move || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            work()
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked").into()))
    })
}
