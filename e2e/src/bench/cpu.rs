//! CPU time: of processes, of the calling thread, and of the whole machine.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::ProcessId;

/// CPU time of a process with all its threads, those that have ended included, to the nanosecond
/// (clock_getcpuclockid(3)); `stat` counts in hundredths of a second.
pub(crate) fn of_process(process: ProcessId) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: writes to the one variable whose address it gets.
    let code = unsafe { libc::clock_getcpuclockid(process.pid, &raw mut clock) };
    if code != 0 {
        bail!("process {} has no CPU clock: {}", process.pid, std::io::Error::from_raw_os_error(code));
    }
    read(clock).with_context(|| format!("the CPU clock of process {}", process.pid))
}

/// CPU time of the calling thread.
pub(crate) fn of_thread() -> Result<Duration> {
    read(libc::CLOCK_THREAD_CPUTIME_ID).context("the CPU clock of a thread")
}

fn read(clock: libc::clockid_t) -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the one variable whose address it gets.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

/// CPU time of this process and of all its children that have ended and were waited for, theirs included.
pub(crate) fn of_lab() -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        // SAFETY: zeroes are a valid value of this plain C structure.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: writes to the one variable whose address it gets.
        if unsafe { libc::getrusage(who, &raw mut usage) } != 0 {
            return Err(std::io::Error::last_os_error()).context("getrusage");
        }
        for time in [usage.ru_utime, usage.ru_stime] {
            sum += Duration::from_secs(time.tv_sec.try_into()?)
                + Duration::from_micros(time.tv_usec.try_into()?);
        }
    }
    Ok(sum)
}

/// What the whole machine's CPUs did since it started, summed up over them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Machine {
    /// Seconds of all kinds of work.
    pub(crate) busy: f64,
}

impl Machine {
    /// As it is now (proc(5), `/proc/stat`).
    pub(crate) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text).context("/proc/stat is not as proc(5) says")
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<f64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time already.
        let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
        let second = 100.0;
        Some(Self { busy: (user + nice + system + irq + softirq) / second })
    }

    /// What it did since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { busy: self.busy - before.busy }
    }
}

/// The mean number of tasks that ran or wanted to, over the last minute.
pub(crate) fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.context("/proc/loadavg is not as proc(5) says")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time() {
        let me = ProcessId::of(std::process::id()).unwrap();
        let before = (of_process(me).unwrap(), of_thread().unwrap(), of_lab().unwrap());
        while of_thread().unwrap() - before.1 < Duration::from_millis(20) {}
        assert!(of_process(me).unwrap() - before.0 >= Duration::from_millis(20));
        assert!(of_lab().unwrap() - before.2 >= Duration::from_millis(15));
    }

    #[test]
    fn the_machines_time_is_read() {
        let seen = Machine::parse("cpu  100 0 200 1000 100 0 100 900 0 0\ncpu0 1\n").unwrap();
        assert_eq!(seen, Machine { busy: 4.0 });
        assert_eq!(Machine::parse("cpu  100 x"), None);
        assert!(Machine::now().unwrap().busy > 0.0);
        assert!(load().unwrap() >= 0.0);
    }
}
