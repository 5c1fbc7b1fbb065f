//! Pairs of namespaces with a tunnel between them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::slow::{self, Slow};
use super::{InteropSetting, PEERS};
use crate::command::Cmd;
use crate::kube::Site;
use crate::netns::Netns;
use crate::scenario::place::{Built, Place};
use crate::screen::Screen;
use crate::topology::POD_PORT;
use crate::tunnel::{self, End, Installed, Kind, Options, inner};
use crate::world::Leftovers;

/// One pair for what is tried in turn, and some on which time passes.
#[derive(Debug)]
pub(crate) struct Interop {
    pub(crate) site: Site,
    pub(crate) programs: BTreeMap<Kind, Installed>,
    pub(super) slow: Vec<Slow>,
}

/// podspan's end and the other, in this order.
pub(super) struct Pair {
    pub(super) podspan: End,
    pub(super) peer: End,
}

/// podspan's namespace of the pair for what is tried in turn.
pub(super) fn ours() -> Netns {
    Netns::named("psp-interop-a")
}

/// The peer's.
pub(super) fn theirs() -> Netns {
    Netns::named("psp-interop-b")
}

impl Interop {
    /// Starts podspan in one namespace and a peer in the other.
    pub(super) fn start(
        &mut self,
        kind: Kind,
        netns: [&Netns; 2],
        podspan: &Options,
        peer: &Options,
    ) -> Result<Pair> {
        let peer = self.end(kind, netns[1], 2, &Options { verbose: true, ..peer.clone() })?;
        let podspan = self.end(Kind::Podspan, netns[0], 1, podspan)?;
        Ok(Pair { podspan, peer })
    }

    /// Starts one end.
    pub(super) fn end(&mut self, kind: Kind, netns: &Netns, number: u8, options: &Options) -> Result<End> {
        let program = self.programs.get(&kind);
        let program = program.with_context(|| format!("{} was not installed", kind.name()))?.clone();
        End::start(&mut self.site, &program, netns, number, options)
    }
}

impl Pair {
    /// Ends both.
    pub(super) fn stop(self) -> Result<()> {
        self.podspan.stop()?;
        self.peer.stop()
    }

    /// Waits until packets pass; the first goes from podspan or from the peer.
    pub(super) fn up(&self, podspan_first: bool) -> Result<()> {
        if podspan_first {
            self.podspan.wait_until_up((inner(2), 0).into())
        } else {
            self.peer.wait_until_up((inner(1), 0).into())
        }
    }

    /// What both say, for errors.
    pub(super) fn told(&self) -> String {
        format!("{}\n{}", self.podspan.told(), self.peer.told())
    }
}

impl Place for Interop {
    type Setting = InteropSetting;

    const TIME: Duration = Duration::from_secs(120);

    fn name(_: InteropSetting) -> String {
        "interop".into()
    }

    fn make(_: InteropSetting, built: &Built, screen: Screen) -> Result<Self> {
        let namespaces: Vec<Netns> = [ours(), theirs()].into_iter().chain(slow::namespaces()).collect();
        let site = Site::plain(screen, &namespaces)?;
        for pair in namespaces.chunks_exact(2) {
            tunnel::wire([&pair[0], &pair[1]])?;
        }
        let mut place = Self { site, programs: built.tunnels.clone(), slow: Vec::new() };
        let server = Cmd::lab().args(["probe-server", "--port", &POD_PORT.to_string()]).within(&theirs());
        place.site.start("probe server", &server)?;
        for kind in PEERS {
            for podspan_begins in [true, false] {
                let slow = slow::start(&mut place, kind, podspan_begins)?;
                place.slow.push(slow);
            }
        }
        screen.line(&format!("{} tunnels stand, on which time passes from now on", place.slow.len()));
        Ok(place)
    }

    fn diagnosis(&self) -> String {
        self.site.diagnosis()
    }

    fn stay(mut self) -> Result<()> {
        self.site.stay()
    }

    fn down(mut self) -> Result<Leftovers> {
        self.slow.clear();
        self.site.take_down()
    }
}
