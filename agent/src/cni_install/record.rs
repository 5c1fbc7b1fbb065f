//! That this agent has installed the plugin, in the state directory: what was put into a configuration by
//! hand is not taken out of it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::files::{self, Stored};

const NAME: &str = "cni.json";

/// What was installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// The configuration directory.
    pub(super) conf_dir: PathBuf,
    /// The directory of the binary.
    pub(super) bin_dir: PathBuf,
}

/// Reads it; a damaged one still says that something was installed.
pub(super) fn load(state_dir: &Path) -> anyhow::Result<Option<Record>> {
    Ok(match files::read_json(&state_dir.join(NAME))? {
        Stored::Value(record) => Some(record),
        Stored::Absent => None,
        Stored::Damaged { aside, .. } => {
            let _ = std::fs::remove_file(aside);
            Some(Record::default())
        }
    })
}

/// Writes it, down to the disk.
pub(super) fn keep(state_dir: &Path, record: &Record) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("cannot make {}", state_dir.display()))?;
    files::replace_json(&state_dir.join(NAME), record)
}

/// Forgets it.
pub(super) fn forget(state_dir: &Path) -> anyhow::Result<()> {
    let path = state_dir.join(NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
