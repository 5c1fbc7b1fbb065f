//! Reads and writes sysctls in the network namespace of the calling thread.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys";

fn path(key: &str) -> PathBuf {
    Path::new(ROOT).join(key)
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
