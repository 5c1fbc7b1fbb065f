//! Where the facts about this node come from. A source yields facts whenever they change; what is behind
//! it does not matter to anybody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podspan_wire::Grant;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use crate::config::Source;
use crate::facts::LocalFacts;
use crate::files;

/// How often a file is looked at.
const POLL: Duration = Duration::from_secs(1);

/// Facts, or why there are none that can be used; the last good ones stay in use then.
pub type Found = Result<LocalFacts, String>;

impl Source {
    /// The kind of source, for a person.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// The facts as the file tells them now.
///
/// # Errors
/// Everything that is wrong with them at once.
pub fn read_file(path: &Path, grant: &Grant) -> Found {
    let text = files::read(path)
        .map_err(|error| format!("{error:#}"))?
        .ok_or_else(|| format!("{} does not exist: write this node's facts there", path.display()))?;
    let facts = LocalFacts::parse(path, &text, grant).map_err(|error| error.to_string())?;
    facts.check(grant).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(facts)
}

/// Watches the file: facts are sent whenever they changed.
#[must_use]
pub fn watch_file(path: PathBuf, grant: Grant, mut last: Found) -> mpsc::Receiver<Found> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let found = read_file(&path, &grant);
            if found == last {
                continue;
            }
            info!(path = %path.display(), "the facts about this node changed");
            last = found.clone();
            if sender.send(found).await.is_err() {
                return;
            }
        }
    });
    receiver
}
