//! Resident memory of processes.

use anyhow::{Context, Result};

use crate::process::ProcessId;

/// Megabytes (1024 kB each of proc(5)'s) in memory now.
pub(crate) fn resident(process: ProcessId) -> Result<f64> {
    of(process, "VmRSS:")
}

/// The most that it ever had.
pub(crate) fn peak(process: ProcessId) -> Result<f64> {
    of(process, "VmHWM:")
}

fn of(process: ProcessId, field: &str) -> Result<f64> {
    let path = format!("/proc/{}/status", process.pid);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse(&text, field).with_context(|| format!("{path} has no {field}"))
}

fn parse(text: &str, field: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: f64 = value.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_megabytes() {
        assert_eq!(parse("Name:\tx\nVmRSS:\t    2048 kB\n", "VmRSS:"), Some(2.0));
        assert_eq!(parse("Name:\tx\n", "VmRSS:"), None);
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(resident(me).unwrap() > 0.5 && peak(me).unwrap() >= resident(me).unwrap() * 0.9);
    }
}
