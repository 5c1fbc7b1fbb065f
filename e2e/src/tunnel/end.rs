//! One end of a tunnel: a program in a namespace, with its interface set up.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::install::{Installed, Kind};
use super::uapi::{self, PeerSettings, PeerState};
use super::{TUNNEL_MTU, inner, inner_v6, keys, outer};
use crate::command::Cmd;
use crate::kube::Site;
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::signals;

/// The UDP port of the first lane, at both ends.
pub(crate) const PORT: u16 = 51840;

/// How long a program may take until it can be set up.
const PATIENCE: Duration = Duration::from_secs(15);

/// How an end is to be.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Whether it knows the other end's address; otherwise it waits to be dialled.
    pub(crate) dials: bool,
    /// podspan's lanes; the other programs have one.
    pub(crate) lanes: u8,
    /// Threads, where a program lets one choose.
    pub(crate) threads: Option<u8>,
    /// More words for the program; those of podspan's node are offloads and options.
    pub(crate) words: Vec<String>,
    /// Seconds between WireGuard's keepalives.
    pub(crate) keepalive: Option<u16>,
    /// Whether the program is to tell much in its log.
    pub(crate) verbose: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { dials: true, lanes: 1, threads: None, words: Vec::new(), keepalive: None, verbose: false }
    }
}

/// A running end.
#[derive(Debug)]
pub(crate) struct End {
    /// What it is to a person, and the name of its log.
    pub(crate) name: String,
    pub(crate) process: ProcessId,
    pub(crate) netns: Netns,
    interface: &'static str,
    talk: Option<Talk>,
}

/// The way to ask podspan's node.
#[derive(Debug)]
struct Talk {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl End {
    /// Starts the program as end `number` (1 or 2) in `netns` and sets its interface up.
    pub(crate) fn start(
        site: &mut Site,
        program: &Installed,
        netns: &Netns,
        number: u8,
        options: &Options,
    ) -> Result<Self> {
        let name = format!("{} {}", program.kind.name(), netns.name());
        let end = match program.kind {
            Kind::Podspan => Self::podspan(site, program, netns, number, options, name),
            _ => Self::by_uapi(site, program, netns, number, options, name),
        }?;
        end.set_up(number).with_context(|| end.told())?;
        Ok(end)
    }

    fn podspan(
        site: &mut Site,
        program: &Installed,
        netns: &Netns,
        number: u8,
        options: &Options,
        name: String,
    ) -> Result<Self> {
        let peer = if options.dials { outer(3 - number).to_string() } else { "-".into() };
        let mut cmd = Cmd::new(&program.path)
            .args([number.to_string(), peer, options.lanes.to_string()])
            .args(&options.words);
        if let Some(seconds) = options.keepalive {
            cmd = cmd.arg(format!("keepalive={seconds}"));
        }
        let mut child = site.record.start_talking(&name, &cmd.same_session().within(netns))?;
        let process = ProcessId::of(child.id())?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { bail!("{name} has no pipes") };
        let mut talk = Talk { to, from: BufReader::new(from) };
        let mut line = String::new();
        talk.from.read_line(&mut line)?;
        let end = Self { name, process, netns: netns.clone(), interface: "podspan0", talk: Some(talk) };
        if line.trim() != "ready" {
            bail!("{} does not start\n{}", end.name, end.told());
        }
        Ok(end)
    }

    /// The socket for the configuration is in `/run/wireguard`, which all share; so each has a `/run` of its own, which goes
    /// with it.
    fn by_uapi(
        site: &mut Site,
        program: &Installed,
        netns: &Netns,
        number: u8,
        options: &Options,
        name: String,
    ) -> Result<Self> {
        const SCRIPT: &str = "mount -t tmpfs lab /run && mkdir -p /run/wireguard && exec \"$@\"";
        let mut words: Vec<String> = match program.kind {
            // They would become the user who is logged in, and here nobody is.
            Kind::Boringtun | Kind::Gotatun => {
                vec!["--foreground".into(), "--disable-drop-privileges".into()]
            }
            _ => vec!["-f".into()],
        };
        if let (Kind::Boringtun, Some(threads)) = (program.kind, options.threads) {
            words.extend(["--threads".into(), threads.to_string()]);
        }
        let level = match (program.kind, options.verbose) {
            (Kind::WireguardGo, true) => "verbose",
            (_, true) => "debug",
            (_, false) => "error",
        };
        let cmd = Cmd::new("unshare")
            .args(["--mount", "sh", "-c", SCRIPT, "sh"])
            .arg(&program.path)
            .args(words)
            .args(&options.words)
            .arg("wg0")
            .env("LOG_LEVEL", level)
            .env("WG_LOG_LEVEL", level)
            .same_session()
            .within(netns);
        let process = site.start(&name, &cmd)?;
        let end = Self { name, process, netns: netns.clone(), interface: "wg0", talk: None };
        let peer = PeerSettings {
            public: keys::public(keys::secret(3 - number, 0)),
            endpoint: options.dials.then(|| (outer(3 - number), PORT).into()),
            allowed: vec![format!("{}/24", inner(3 - number)), format!("{}/64", inner_v6(3 - number))],
            keepalive: options.keepalive,
        };
        let give_up = Instant::now() + PATIENCE;
        loop {
            let result = uapi::set(&end.socket(), &keys::secret(number, 0), PORT, &peer);
            match result {
                Ok(()) => return Ok(end),
                Err(error) if Instant::now() > give_up || !end.process.is_alive() => {
                    return Err(error.context(end.told()));
                }
                Err(_) => signals::sleep(Duration::from_millis(10))?,
            }
        }
    }

    fn socket(&self) -> PathBuf {
        format!("/proc/{}/root/run/wireguard/{}.sock", self.process.pid, self.interface).into()
    }

    fn set_up(&self, number: u8) -> Result<()> {
        let (interface, other) = (self.interface, 3 - number);
        let lines = [
            format!("address add {}/24 dev {interface}", inner(number)),
            format!("address add {}/64 dev {interface} nodad", inner_v6(number)),
            format!("link set {interface} mtu {TUNNEL_MTU} up"),
            format!("route add {}/24 dev {interface} src {}", subnet(other), inner(number)),
            format!("route add fd00:20{other}::/64 dev {interface} src {}", inner_v6(number)),
        ];
        Cmd::new("ip").args(["-batch", "-"]).stdin(lines.join("\n")).within(&self.netns).run_ok()?;
        Ok(())
    }

    /// Its name with the end of its log, for errors.
    pub(crate) fn told(&self) -> String {
        format!("{}; the end of its log:\n{}", self.name, Site::log_tail(&self.name, 12))
    }

    /// One of podspan's counters; see `dataplane/examples/node.rs`.
    pub(crate) fn counter(&mut self, key: &str) -> Result<u64> {
        let value = self.counter_text(key)?;
        value.parse().with_context(|| format!("{}: {key}={value} is no number", self.name))
    }

    /// The same as it is told.
    pub(crate) fn counter_text(&mut self, key: &str) -> Result<String> {
        let talk = self.talk.as_mut().context("only podspan's node is asked for counters")?;
        let mut line = String::new();
        writeln!(talk.to).and_then(|()| talk.from.read_line(&mut line)).context("podspan's node is gone")?;
        let mut pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned());
        value.with_context(|| format!("{} tells no {key}: {line:?}", self.name))
    }

    /// The peer, as one that is no podspan tells it.
    pub(crate) fn peer(&self) -> Result<PeerState> {
        uapi::peer(&self.socket()).with_context(|| self.told())
    }

    /// Moves one that is no podspan to another UDP port.
    pub(crate) fn set_port(&self, port: u16) -> Result<()> {
        uapi::set_port(&self.socket(), port).with_context(|| self.told())
    }

    /// Waits until packets pass from this end to the other.
    pub(crate) fn wait_until_up(&self, other: SocketAddr) -> Result<()> {
        let target = other.ip().to_string();
        let give_up = Instant::now() + PATIENCE;
        loop {
            let ping = Cmd::new("ping").args(["-n", "-q", "-c", "1", "-W", "1", &target]).within(&self.netns);
            if ping.run()?.status.success() {
                return Ok(());
            }
            if Instant::now() > give_up {
                bail!("no packet passes from {} within {} s", self.told(), PATIENCE.as_secs());
            }
        }
    }

    /// Ends it; its interface goes with it.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.talk = None;
        end(self.process).with_context(|| format!("{} does not end", self.name))
    }
}

/// Ends a process of the lab's and waits until nothing of it is left. A thread may still hold sockets and interfaces when
/// the process counts as ended already.
pub(crate) fn end(process: ProcessId) -> Result<()> {
    process.end(Duration::from_secs(3))?;
    let directory = PathBuf::from(format!("/proc/{}", process.pid));
    let give_up = Instant::now() + PATIENCE;
    // Asking takes note of the end of a child.
    while !process.is_alive() && directory.exists() {
        if Instant::now() > give_up {
            bail!("threads of process {} are left", process.pid);
        }
        signals::sleep(Duration::from_millis(5))?;
    }
    Ok(())
}

fn subnet(number: u8) -> std::net::Ipv4Addr {
    let [a, b, c, _] = inner(number).octets();
    std::net::Ipv4Addr::new(a, b, c, 0)
}
