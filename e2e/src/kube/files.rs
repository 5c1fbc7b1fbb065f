//! Writing the lab's files, with errors that name them.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes a file, its directory too.
pub(crate) fn write(path: &Path, contents: &str) -> Result<()> {
    with_mode(path, contents, 0o644)
}

/// Writes a file that only its owner may read.
pub(crate) fn write_secret(path: &Path, contents: &str) -> Result<()> {
    with_mode(path, contents, 0o600)
}

fn with_mode(path: &Path, contents: &str, mode: u32) -> Result<()> {
    let written = || -> std::io::Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut file =
            std::fs::File::options().create(true).write(true).truncate(true).mode(mode).open(path)?;
        file.write_all(contents.as_bytes())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}
