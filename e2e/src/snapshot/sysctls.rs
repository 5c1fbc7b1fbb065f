//! All sysctls of a network namespace, that is everything below /proc/sys/net.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Counters and measurements that the kernel shows as sysctls, and secrets it draws.
const VOLATILE: [&str; 5] = [
    "net/netfilter/nf_conntrack_count",
    "net/ipv4/tcp_fastopen_key",
    "net/core/netdev_rss_key",
    "net/ipv4/tcp_mem",
    "net/ipv4/udp_mem",
];

pub(super) fn read(netns: Option<&Netns>) -> Result<BTreeMap<String, String>> {
    let walk = || {
        let mut found = BTreeMap::new();
        read_below(Path::new("/proc/sys/net"), &mut found)?;
        Ok(found)
    };
    match netns {
        Some(netns) => netns.enter(walk),
        None => walk(),
    }
}

fn read_below(directory: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        // An interface may go away meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            read_below(&path, found)?;
            continue;
        }
        let key = path.strip_prefix("/proc/sys").unwrap_or(&path).to_string_lossy().into_owned();
        if VOLATILE.contains(&key.as_str()) {
            continue;
        }
        // Some can only be written (route/flush), some are unset (stable_secret): those have no value.
        if let Ok(value) = std::fs::read_to_string(&path) {
            found.insert(key, value.trim_end().to_owned());
        }
    }
    Ok(())
}
