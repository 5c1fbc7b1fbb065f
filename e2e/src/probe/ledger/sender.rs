//! A sender from the lab's side.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::{Answer, Plan, Report, Request};
use crate::command::Cmd;
use crate::control;
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::state;
use crate::world::World;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Traffic from one pod.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    pub(crate) name: String,
    socket: PathBuf,
    process: ProcessId,
}

impl Traffic {
    /// Starts it, and its first window.
    pub(crate) fn start(world: &mut World, netns: &Netns, plan: &Plan) -> Result<Self> {
        let name = format!("traffic {}", plan.from);
        let directory = state::directory("traffic")?;
        let file = |ending: &str| directory.join(format!("{}.{ending}", plan.from.replace('/', "-")));
        let socket = file("sock");
        std::fs::remove_file(&socket).ok();
        std::fs::write(file("json"), serde_json::to_vec(plan)?)?;
        let cmd = Cmd::lab().args(["traffic", "--plan"]).arg(file("json")).arg("--socket").arg(&socket);
        let process = world.start_daemon(&name, &cmd.within(netns))?;
        control::wait(&socket, TIMEOUT).with_context(|| format!("{name} has not started"))?;
        let traffic = Self { name, socket, process };
        traffic.begin()?;
        Ok(traffic)
    }

    fn ask(&self, request: Request) -> Result<Answer> {
        control::ask(&self.socket, &request, TIMEOUT).with_context(|| self.name.clone())
    }

    /// A new window begins now.
    pub(crate) fn begin(&self) -> Result<()> {
        self.ask(Request::Begin).map(drop)
    }

    /// What became of everything that was sent since; waits a moment for what is still on its way.
    pub(crate) fn report(&self) -> Result<Report> {
        match self.ask(Request::Report)? {
            Answer::Report(report) => Ok(*report),
            other => bail!("{} does not tell what it did: {other:?}", self.name),
        }
    }

    /// The same of several, at a time.
    pub(crate) fn reports(senders: &[Self]) -> Result<Vec<Report>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = senders.iter().map(|sender| scope.spawn(|| sender.report())).collect();
            let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            joined.map(|report| report.map_err(|_| anyhow!("a thread panicked"))?).collect()
        })
    }

    /// How many datagrams came back since the start.
    pub(crate) fn count(&self) -> Result<u64> {
        match self.ask(Request::Count)? {
            Answer::Count(count) => Ok(count),
            other => bail!("{} does not count: {other:?}", self.name),
        }
    }

    /// Ends it.
    pub(crate) fn stop(&self) -> Result<()> {
        self.process.end(Duration::from_secs(2)).map(drop)
    }
}
