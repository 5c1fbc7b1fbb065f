//! What is compared.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::forwarder;
use crate::command::Cmd;
use crate::kube::Site;
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::tunnel::{self, End, Installed, Kind, Options, PORT, TUNNEL_MTU, inner, outer};

/// One row of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Contender {
    /// podspan with one lane, as others have one tunnel.
    Podspan,
    /// podspan with two lanes.
    PodspanTwoLanes,
    WireguardGo,
    Gotatun,
    BoringtunOne,
    /// With as many threads as it takes by default.
    BoringtunFour,
    /// No WireGuard: TUN to UDP without encryption.
    Bound,
}

impl Contender {
    pub(crate) const ALL: [Self; 7] = [
        Self::Podspan,
        Self::WireguardGo,
        Self::Gotatun,
        Self::BoringtunOne,
        Self::BoringtunFour,
        Self::PodspanTwoLanes,
        Self::Bound,
    ];

    /// In tables and in the document.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Podspan => "podspan",
            Self::PodspanTwoLanes => "podspan-2-lanes",
            Self::WireguardGo => "wireguard-go",
            Self::Gotatun => "gotatun",
            Self::BoringtunOne => "boringtun-cli-1-thread",
            Self::BoringtunFour => "boringtun-cli-4-threads",
            Self::Bound => "no-crypto",
        }
    }

    /// The program, if it is one that is installed.
    pub(crate) fn kind(self) -> Option<Kind> {
        Some(match self {
            Self::Podspan | Self::PodspanTwoLanes => Kind::Podspan,
            Self::WireguardGo => Kind::WireguardGo,
            Self::Gotatun => Kind::Gotatun,
            Self::BoringtunOne | Self::BoringtunFour => Kind::Boringtun,
            Self::Bound => return None,
        })
    }

    /// Whether it is what podspan is compared with.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::WireguardGo | Self::Gotatun | Self::BoringtunOne | Self::BoringtunFour)
    }

    /// Whether its round trips are measured.
    pub(crate) fn is_pinged(self) -> bool {
        !matches!(self, Self::PodspanTwoLanes | Self::Bound)
    }

    fn options(self) -> Options {
        let lanes = if self == Self::PodspanTwoLanes { 2 } else { 1 };
        let threads = (self == Self::BoringtunOne).then_some(1);
        Options { lanes, threads, ..Options::default() }
    }
}

/// The two ends, running.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) daemons: [ProcessId; 2],
    ends: Option<[End; 2]>,
}

impl Tunnel {
    /// Starts both ends and waits until packets pass.
    pub(crate) fn start(
        site: &mut Site,
        contender: Contender,
        program: Option<&Installed>,
        netns: &[Netns; 2],
    ) -> Result<Self> {
        let tunnel = match program {
            Some(program) => {
                let options = contender.options();
                let a = End::start(site, program, &netns[0], 1, &options)?;
                let b = End::start(site, program, &netns[1], 2, &options)?;
                Self { daemons: [a.process, b.process], ends: Some([a, b]) }
            }
            None => Self::bound(site, netns)?,
        };
        if let Some([a, _]) = &tunnel.ends {
            a.wait_until_up((inner(2), 0).into())?;
        }
        Ok(tunnel)
    }

    fn bound(site: &mut Site, netns: &[Netns; 2]) -> Result<Self> {
        let mut start = |number: u8, netns: &Netns| -> Result<ProcessId> {
            let peer: SocketAddr = (outer(3 - number), PORT).into();
            let cmd = Cmd::lab().args(["bench-forwarder", &peer.to_string()]).same_session().within(netns);
            let process = site.start(&format!("forwarder {netns}"), &cmd)?;
            let interface = forwarder::INTERFACE;
            let lines = [
                format!("address add {}/24 dev {interface}", inner(number)),
                format!("link set {interface} mtu {TUNNEL_MTU} up"),
                format!("route add {}/32 dev {interface}", inner(3 - number)),
            ];
            wait_for(interface, netns, process)?;
            Cmd::new("ip").args(["-batch", "-"]).stdin(lines.join("\n")).within(netns).run_ok()?;
            Ok(process)
        };
        Ok(Self { daemons: [start(1, &netns[0])?, start(2, &netns[1])?], ends: None })
    }

    /// System calls of both ends so far, where they are counted.
    pub(crate) fn calls(&mut self, contender: Contender) -> Result<Option<u64>> {
        match &mut self.ends {
            Some([a, b]) if contender.kind() == Some(Kind::Podspan) => {
                Ok(Some(a.counter("calls")? + b.counter("calls")?))
            }
            _ => Ok(None),
        }
    }

    /// Ends both.
    pub(crate) fn stop(self) -> Result<()> {
        match self.ends {
            Some(ends) => ends.into_iter().try_for_each(End::stop),
            None => self.daemons.into_iter().try_for_each(tunnel::end),
        }
    }
}

/// Ends what a start that failed has left, but not the load's server.
pub(crate) fn end_all(site: &Site, server: ProcessId) -> Result<()> {
    let daemons = site.record.daemons.iter().map(|daemon| daemon.process);
    let mut daemons = daemons.filter(|process| *process != server);
    daemons.try_for_each(tunnel::end)
}

/// Waits until the interface is there.
fn wait_for(interface: &str, netns: &Netns, process: ProcessId) -> Result<()> {
    for _ in 0..200 {
        if Cmd::new("ip").args(["link", "show", interface]).within(netns).run()?.status.success() {
            return Ok(());
        }
        if !process.is_alive() {
            break;
        }
        crate::signals::sleep(Duration::from_millis(10))?;
    }
    anyhow::bail!("the forwarder did not start\n{}", Site::log_tail(&format!("forwarder {netns}"), 12))
}
