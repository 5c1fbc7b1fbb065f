//! Takes out everything that podspan put into this host's kernel. Safe when repeated, and after a crash.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::engine::{NFT, blocking};
use super::netlink::Netlink;
use super::plan::{Route, Rule};
use super::state::{Remembered, State};
use super::{ALIAS, HostSettings, PROTOCOL, nft, nft_command, procfs};
use crate::config::Tunnel;

/// Something could not be removed; everything else was.
#[derive(Debug, thiserror::Error)]
#[error("not everything could be removed; run it again when the cause is gone:\n  {}", failed.join("\n  "))]
pub struct CleanError {
    /// What was removed.
    pub removed: Vec<String>,
    /// What was not, each with its error.
    pub failed: Vec<String>,
}

#[derive(Default)]
struct Report {
    removed: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    fn note(&mut self, what: String, done: io::Result<()>) {
        match done {
            Ok(()) => self.removed.push(what),
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }
}

/// Removes podspan's rules, routes, addresses, interface and nftables table, and puts the sysctls of others
/// back that still have the value podspan gave them. `tunnel` names the interface and the table; those that
/// earlier settings named are known from the state directory. What does not carry podspan's mark stays.
///
/// Returns each thing that was removed, for a person to read.
///
/// # Errors
/// If something could not be removed: all the rest was, and it may be run again.
pub async fn clean(settings: &HostSettings, tunnel: &Tunnel) -> Result<Vec<String>, CleanError> {
    let mut report = Report::default();
    let directory = &settings.state_dir;
    let state = State::load(directory);
    if let Err(error) = &state {
        report.failed.push(format!(
            "{}: unreadable ({error}), so the sysctls that podspan changed are not known; look into it, put them \
             back by hand and remove it",
            directory.join(super::state::FILE).display()
        ));
    }
    let state = state.unwrap_or_default();
    let tables: BTreeSet<u32> =
        state.tables.iter().copied().chain([tunnel.table, tunnel.delivery_table()]).collect();
    let interfaces: BTreeSet<String> =
        state.interfaces.iter().cloned().chain([tunnel.interface.clone()]).collect();
    match Netlink::open() {
        Ok(netlink) => {
            // In this order nothing leaves in clear on the way: the nftables table with its leak stop goes last.
            let claimed = &state.interfaces;
            if let Err(error) = kernel(&netlink, &tables, &interfaces, claimed, &mut report).await {
                report.failed.push(format!("what stands in the kernel cannot be read back: {error}"));
            }
        }
        Err(error) => report.failed.push(format!("netlink: {error}")),
    }
    table(&mut report).await;
    let kernel_failed = !report.failed.is_empty();
    let result = blocking(move || Ok(sysctls(&state))).await;
    match result {
        Ok((done, left)) => {
            report.removed.extend(done.removed);
            report.failed.extend(done.failed);
            remember_rest(directory, left, kernel_failed, &mut report);
        }
        Err(error) => report.failed.push(format!("sysctls: {error}")),
    }
    if report.failed.is_empty() {
        Ok(report.removed)
    } else {
        Err(CleanError { removed: report.removed, failed: report.failed })
    }
}

async fn kernel(
    netlink: &Netlink,
    tables: &BTreeSet<u32>,
    interfaces: &BTreeSet<String>,
    claimed: &BTreeSet<String>,
    report: &mut Report,
) -> io::Result<()> {
    for rule in netlink.rules().await? {
        if rule.protocol == PROTOCOL && tables.contains(&rule.table) {
            let rule = Rule::observed(&rule);
            report.note(rule.to_string(), netlink.remove_rule(&rule).await);
        }
    }
    for table in tables {
        for route in netlink.routes(*table).await? {
            if route.protocol == PROTOCOL {
                let route = Route {
                    table: *table,
                    destination: route.destination,
                    interface: route.interface,
                    source: None,
                    mtu: None,
                    metric: Some(route.metric),
                };
                let what = format!("route {} in table {table}", route.destination);
                report.note(what, netlink.remove_route(&route).await);
            }
        }
    }
    for link in netlink.links().await?.into_iter().filter(|link| interfaces.contains(&link.name)) {
        for address in netlink.addresses().await? {
            let own = address.index == link.index && address.observed.protocol == PROTOCOL;
            if own {
                let (ip, length) = (address.observed.address, address.observed.length);
                let what = format!("address {ip}/{length} of {}", link.name);
                report.note(what, netlink.remove_address(link.index, ip, length).await);
            }
        }
        // Without an alias it may be anybody's, unless an agent noted that it was about to make it.
        let unnamed = link.alias.is_empty() && claimed.contains(&link.name);
        if link.tun && (link.alias == ALIAS || unnamed) {
            report.note(format!("interface {}", link.name), netlink.remove_link(link.index).await);
        }
    }
    Ok(())
}

async fn table(report: &mut Report) {
    let program = Path::new(NFT);
    match nft_command::list(program).await {
        Ok(Some(listing)) if nft::is_own(&listing) => {
            report.note(format!("nftables table {}", nft::TABLE), nft_command::remove(program).await);
        }
        Ok(_) => {}
        Err(error) => report.failed.push(format!("nftables table {}: {error}", nft::TABLE)),
    }
}

/// Puts the sysctls back, last changed first; returns those that could not be.
fn sysctls(state: &State) -> (Report, Vec<Remembered>) {
    let mut report = Report::default();
    let mut left = Vec::new();
    // All are read before any is written, since writing some changes others.
    let standing: Vec<_> = state.sysctls.iter().map(|remembered| procfs::read(&remembered.key)).collect();
    for (remembered, value) in state.sysctls.iter().zip(standing).rev() {
        let what = format!(
            "change of sysctl {} (back from {} to {})",
            remembered.key, remembered.set, remembered.before
        );
        match value {
            Ok(Some(value)) if value == remembered.set => {
                let done = put_back(remembered);
                if done.is_err() {
                    left.push(remembered.clone());
                }
                report.note(what, done);
            }
            // Somebody else has changed it since, or the interface is gone.
            Ok(_) => {}
            Err(error) => {
                left.push(remembered.clone());
                report.failed.push(format!("{what}: {error}"));
            }
        }
    }
    left.reverse();
    (report, left)
}

fn put_back(remembered: &Remembered) -> io::Result<()> {
    procfs::write(&remembered.key, &remembered.before)?;
    for (key, before) in &remembered.effects {
        if procfs::read(key)?.is_some_and(|value| value != *before) {
            procfs::write(key, before)?;
        }
    }
    Ok(())
}

/// Keeps the memory of what could not be put back; without a rest it goes too.
fn remember_rest(directory: &Path, left: Vec<Remembered>, kernel_failed: bool, report: &mut Report) {
    let done = match State::load(directory) {
        // It was told of above, and holds what only a person can read.
        Err(_) => return,
        Ok(state) if left.is_empty() && !kernel_failed => {
            if state == State::default() {
                return;
            }
            State::remove(directory).and_then(|()| match std::fs::remove_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                // Something else is in it: not podspan's to remove.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                done => done,
            })
        }
        Ok(mut state) => {
            state.sysctls = left;
            state.store(directory)
        }
    };
    if let Err(error) = done {
        report.failed.push(format!("state directory {}: {error}", directory.display()));
    }
}
