//! tcpdump on every link of the router.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{Expected, Report, pcap};
use crate::command::Cmd;
use crate::process::ProcessId;
use crate::signals;
use crate::state;
use crate::world::{self, World};

/// tcpdump gets what was captured after a second at the latest, and what it has not got when it ends is lost; what is
/// on its way through a busy machine needs a moment besides.
const HANDED_OVER: Duration = Duration::from_millis(1300);

/// A running capture.
#[derive(Debug)]
pub(crate) struct Capture {
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    interface: String,
    process: ProcessId,
    file: PathBuf,
    log: PathBuf,
}

impl Capture {
    /// Starts it and waits until every packet from now on is seen.
    pub(crate) fn start(world: &mut World) -> Result<Self> {
        let router = world.topology.router();
        let interfaces: Vec<&str> = world.topology.underlay().iter().map(|(name, _)| *name).collect();
        let directory = state::directory("captures")?;
        let mut links = Vec::new();
        for interface in interfaces {
            let file = directory.join(format!("{interface}.pcap"));
            let name = format!("tcpdump {interface}");
            let log = world::log_path(&name)?;
            for old in [&file, &log] {
                std::fs::remove_file(old).ok();
            }
            let cmd = Cmd::new("tcpdump")
                // No names, whole packets, a buffer of 32 MiB, and still as root. Not in immediate mode, for which the
                // kernel keeps a place of the largest packet's size for each one, 128 in all.
                .args(["-n", "-s", "0", "-B", "32768", "-U", "-Z", "root", "-i", interface, "-w"])
                .arg(&file)
                .within(&router);
            let process = world.start_daemon(&name, &cmd)?;
            links.push(Link { interface: interface.to_owned(), process, file, log });
        }
        for link in &links {
            link.wait_until_listening()?;
        }
        Ok(Self { links })
    }

    /// Ends it and looks at what was captured.
    pub(crate) fn finish(self, expected: &Expected) -> Result<Report> {
        signals::sleep(HANDED_OVER)?;
        for link in &self.links {
            link.process.signal(Signal::SIGINT)?;
        }
        let mut all = Report::default();
        for link in &self.links {
            link.process.wait(Duration::from_secs(10))?;
            link.check_nothing_was_lost()?;
            let file = std::fs::read(&link.file)
                .with_context(|| format!("cannot read the capture {}", link.file.display()))?;
            let frames = pcap::packets(&file).with_context(|| link.file.display().to_string())?;
            let report = expected.inspect(&frames);
            for (kind, bytes) in report.bytes {
                *all.bytes.entry(kind).or_default() += bytes;
            }
            for (kind, count) in report.kinds {
                *all.kinds.entry(kind).or_default() += count;
            }
            let at = |what: &String| format!("at {}: {what}", link.interface);
            all.violations.extend(report.violations.iter().map(at));
            all.violation_count += report.violation_count;
        }
        Ok(all)
    }
}

impl Link {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_until_listening(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while !self.log().contains("listening on") {
            if !self.process.is_alive() || Instant::now() > end {
                bail!("tcpdump does not listen on {}: {}", self.interface, self.log());
            }
            signals::sleep(Duration::from_millis(10))?;
        }
        Ok(())
    }

    fn check_nothing_was_lost(&self) -> Result<()> {
        let log = self.log();
        let dropped = log.lines().find(|line| line.ends_with("dropped by kernel"));
        match dropped.and_then(|line| line.split(' ').next()) {
            Some("0") => Ok(()),
            _ => bail!("the capture on {} is not whole: {log}", self.interface),
        }
    }
}
