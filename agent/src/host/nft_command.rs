//! Runs `nft`: one transaction on its standard input, or a listing of podspan's table.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::nft;

/// How long one run may take; the usual is 20 ms.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Carries out the transaction, whole or not at all.
pub(super) async fn apply(program: &Path, text: &str) -> io::Result<()> {
    run(program, &["-f", "-"], text).await.map(drop)
}

/// The table without handles and counters; none if there is none.
pub(super) async fn list(program: &Path) -> io::Result<Option<String>> {
    match run(program, &["--stateless", "list", "table", "inet", "podspan"], "").await {
        Ok(listing) => Ok(Some(listing)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && error.get_ref().is_some_and(|e| e.is::<Refused>()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Removes the table.
pub(super) async fn remove(program: &Path) -> io::Result<()> {
    let text = format!("add table {0}\ndelete table {0}\n", nft::TABLE);
    apply(program, &text).await
}

/// nft ran and said no.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

async fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", search_path())
        // Its messages are told apart below.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| {
        io::Error::other(format!(
            "{} does not start ({error}): install nftables (Debian: apt-get install nftables)",
            program.display()
        ))
    })?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // If nft ends early its own message says more than the broken pipe.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIMEOUT, talk).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("nft took over {TIMEOUT:?} and was ended"))
    })??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect::<String>();
    let kind = if said.contains("No such file or directory") {
        io::ErrorKind::NotFound
    } else {
        io::ErrorKind::Other
    };
    Err(io::Error::new(kind, Refused(format!("nft: {said}"))))
}

/// The process's own, and where Debian keeps nft: a service's PATH may lack it.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
