//! The plugin's binary: in its place, and known to run there, before any configuration names it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::conflist::PLUGIN;
use super::directory;

/// How long the plugin may take to say which versions it speaks.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How often it is tried to start it: while another thread of the agent forks, a file that was only just
/// written may count as open for writing (ETXTBSY).
const TRIES: usize = 5;

/// Where the plugin goes.
#[must_use]
pub fn target(bin_dir: &Path) -> PathBuf {
    bin_dir.join(PLUGIN)
}

/// Copies the plugin to its place unless it is there, byte for byte and executable. Returns whether it was
/// copied. Blocking.
///
/// # Errors
/// If it is missing from the image, or cannot be written.
pub fn place(plugin: &Path, bin_dir: &Path) -> anyhow::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let bytes = std::fs::read(plugin)
        .with_context(|| format!("the CNI plugin cannot be read from {}", plugin.display()))?;
    let target = target(bin_dir);
    let there = std::fs::metadata(&target);
    if there.is_ok_and(|file| file.is_file() && file.mode() & 0o555 == 0o555)
        && std::fs::read(&target).is_ok_and(|there| there == bytes)
    {
        return Ok(false);
    }
    std::fs::create_dir_all(bin_dir).with_context(|| format!("cannot make {}", bin_dir.display()))?;
    directory::replace(bin_dir, &target, &bytes, 0o755, |_| Ok(true))
        .with_context(|| format!("cannot write {}", target.display()))
}

/// Makes sure that the plugin runs where it is: a runtime that could not start it would fail every pod.
///
/// # Errors
/// What hinders it.
pub async fn check(bin_dir: &Path) -> anyhow::Result<()> {
    let target = target(bin_dir);
    let answer = async {
        let mut tries = 0;
        let mut child = loop {
            tries += 1;
            let started = Command::new(&target)
                .env_clear()
                .env("CNI_COMMAND", "VERSION")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn();
            match started {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < TRIES => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => break started?,
            }
        };
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(b"{\"cniVersion\":\"1.0.0\"}").await?;
        }
        child.wait_with_output().await
    };
    let context = || format!("the CNI plugin does not run at {}", target.display());
    let Ok(output) = timeout(ANSWER_TIME, answer).await else {
        bail!("{}: it gave no answer within 5 s", context());
    };
    let output = output.with_context(context)?;
    if !output.status.success() || !String::from_utf8_lossy(&output.stdout).contains("supportedVersions") {
        bail!("{}: asked for its versions, it ended with {}", context(), output.status);
    }
    Ok(())
}

/// Removes the plugin. Returns whether it was there.
///
/// # Errors
/// If it cannot be removed.
pub fn remove(bin_dir: &Path) -> anyhow::Result<bool> {
    let target = target(bin_dir);
    match std::fs::remove_file(&target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", target.display())),
    }
}
