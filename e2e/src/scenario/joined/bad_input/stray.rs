//! A further agent, on the host that is the internet: one that was set up wrongly.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use podspan_wire::status::Status;

use crate::agent_socket;
use crate::command::Cmd;
use crate::state;
use crate::world::World;

/// The stray agent's name among the daemons.
pub(super) const STRAY: &str = "agent stray";

/// A running one.
pub(super) struct Stray {
    directory: PathBuf,
}

impl Stray {
    /// Starts it with this bundle as this node of its cluster. Told to end, it withdraws and cleans up.
    pub(super) fn start(world: &mut World, bundle: &Path, node: &str, pods: &str) -> Result<Self> {
        let directory = state::directory("stray")?;
        std::fs::write(directory.join("agent.toml"), settings(bundle)).context("agent.toml")?;
        let facts = format!("name = {node:?}\npod-cidrs = [{pods:?}]\n");
        std::fs::write(directory.join("node.toml"), facts).context("node.toml")?;
        let stray = Self { directory };
        let cmd = Cmd::new(&world.programs()?.agent)
            .args(["--on-exit", "remove", "--config"])
            .arg(stray.directory.join("agent.toml"))
            .within(&world.topology.internet.netns());
        world.start_daemon(STRAY, &cmd)?;
        Ok(stray)
    }

    pub(super) fn status(&self) -> Result<Status> {
        agent_socket::status(&self.directory.join("agent.sock"))
    }

    /// What it says to be wrong, once it says something that has `text` in it; else all that it says.
    pub(super) fn says(&self, limit: Duration, text: &str) -> Result<(bool, Vec<String>)> {
        let mut problems = Vec::new();
        let said = super::wait_for(limit, || {
            // It may not answer yet.
            problems = self.status().map(|status| status.problems).unwrap_or_default();
            Ok(problems.iter().any(|problem| problem.contains(text)))
        })?;
        Ok((said, problems))
    }

    /// Ends it: it withdraws its record and leaves nothing on its host.
    pub(super) fn end(self, world: &World) -> Result<()> {
        if !world.daemon(STRAY)?.end(Duration::from_secs(10))? {
            anyhow::bail!("the stray agent did not end by itself");
        }
        std::fs::remove_dir_all(&self.directory).context("the stray agent's directory")
    }
}

/// Settings with everything in the directory of the file.
pub(super) fn settings(bundle: &Path) -> String {
    format!(
        "bundle = {bundle:?}\nstate-dir = \"state\"\nsocket = \"agent.sock\"\nsource.file = \"node.toml\"\n"
    )
}
