//! A client of the agent's unix socket (`podspan_wire::local`).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;

/// How long an agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks one thing.
pub(crate) fn ask(socket: &Path, request: &Request) -> Result<Answer> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("no agent answers at {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).context("the agent's answer")?;
    serde_json::from_str(&answer).with_context(|| format!("the agent's answer is {answer:?}"))
}

/// Asks for the agent's state.
pub(crate) fn status(socket: &Path) -> Result<Status> {
    match ask(socket, &Request::Status)? {
        Answer::Status(status) => Ok(*status),
        other => bail!("asked for its status, the agent answered {other:?}"),
    }
}
