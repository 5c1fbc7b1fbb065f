//! The results of ADDs that were not yet followed by a DEL, on disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Attachment;

#[derive(Serialize, Deserialize)]
struct Entry {
    network: String,
    container_id: String,
    interface: String,
    netns: Option<PathBuf>,
    args: Vec<(String, String)>,
    result: Value,
}

/// Container ids hold no `/` (section 3, "Parameters": alphanumeric, `_`, `.`, `-`).
fn file(dir: &Path, network: &str, attachment: &Attachment) -> PathBuf {
    dir.join(format!("{network}-{}-{}.json", attachment.container_id, attachment.interface))
}

pub(super) fn load(dir: &Path, network: &str, attachment: &Attachment) -> Result<Option<Value>> {
    let path = file(dir, network, attachment);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let entry: Entry =
                serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Some(entry.result))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

pub(super) fn store(dir: &Path, network: &str, attachment: &Attachment, result: &Value) -> Result<()> {
    let path = file(dir, network, attachment);
    let entry = Entry {
        network: network.to_owned(),
        container_id: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
        netns: attachment.netns.clone(),
        args: attachment.args.clone(),
        result: result.clone(),
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, serde_json::to_vec_pretty(&entry)?))
        .with_context(|| format!("cannot write {}", path.display()))
}

pub(super) fn remove(dir: &Path, network: &str, attachment: &Attachment) -> Result<()> {
    let path = file(dir, network, attachment);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Every remembered attachment of the network.
pub(super) fn all(dir: &Path, network: &str) -> Result<Vec<Attachment>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    for entry in entries {
        let path = entry?.path();
        let entry: Entry = serde_json::from_slice(&std::fs::read(&path)?)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if entry.network == network {
            found.push(Attachment {
                container_id: entry.container_id,
                interface: entry.interface,
                netns: entry.netns,
                args: entry.args,
            });
        }
    }
    Ok(found)
}
