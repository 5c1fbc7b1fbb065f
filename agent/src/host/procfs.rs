//! Reads and writes sysctls in the network namespace of the calling thread.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

const ROOT: &str = "/proc/sys";

/// Where a container that is not privileged has the network's part of [`ROOT`] once more: its own `/proc/sys`
/// is read-only, whatever it may do. Both show the network namespace of whoever looks, and for a write the
/// kernel asks for CAP_NET_ADMIN only.
pub(super) const CONTAINER_ROOT: &str = "/host/proc/sys";

fn path(key: &str) -> PathBuf {
    static FOUND: OnceLock<&'static str> = OnceLock::new();
    let root = FOUND.get_or_init(|| {
        // Not any directory of that name: one of the kernel's.
        let there = statfs(Path::new(CONTAINER_ROOT).join("net").as_path());
        match there {
            Ok(found) if found.filesystem_type() == PROC_SUPER_MAGIC => CONTAINER_ROOT,
            _ => ROOT,
        }
    });
    Path::new(root).join(key)
}

/// The value without its line end; none if there is no such sysctl.
pub(super) fn read(key: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path(key)) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        // EINVAL and ENODEV: the interface went away between opening and reading.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The values of those keys that exist.
pub(super) fn read_all(keys: &[String]) -> io::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for key in keys {
        if let Some(value) = read(key)? {
            values.insert(key.clone(), value);
        }
    }
    Ok(values)
}

/// Writes a value.
pub(super) fn write(key: &str, value: &str) -> io::Result<()> {
    std::fs::write(path(key), value)
}
