//! Asks the agent over its unix socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;

/// How long the whole conversation may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes: a status of a hundred thousand lanes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The agent's state.
pub(super) fn status(socket: &Path) -> Result<Status> {
    let line = converse(socket, &Request::Status)?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Status(status)) => Ok(*status),
        Ok(Answer::Error { message }) => bail!("the agent refused: {}", crate::human::safe(&message)),
        Ok(_) => bail!("the agent at {} gave an answer to another question", socket.display()),
        Err(error) => bail!(
            "the answer of {} cannot be read ({error}): is it podspan-agent, and of the same version as `podspan \
             version`?",
            socket.display()
        ),
    }
}

/// Has the agent drain its node, or end that.
pub(super) fn drain(socket: &Path, drain: bool) -> Result<()> {
    let line = converse(socket, &Request::Drain { drain })?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Done) => Ok(()),
        Ok(Answer::Error { message }) => bail!("the agent refused: {}", crate::human::safe(&message)),
        _ => bail!(
            "the agent at {} does not know how to drain: is it of an earlier version?",
            socket.display()
        ),
    }
}

fn converse(socket: &Path, request: &Request) -> Result<Vec<u8>> {
    let name = socket.display();
    let deadline = Instant::now() + PATIENCE;
    let mut stream = UnixStream::connect(socket).map_err(|error| not_connected(socket, &error))?;
    let mut question = serde_json::to_vec(request)?;
    question.push(b'\n');
    stream.set_write_timeout(Some(PATIENCE))?;
    stream
        .write_all(&question)
        .with_context(|| format!("the agent at {name} hung up before it was asked"))?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let late = || {
            anyhow!(
                "the agent at {name} did not answer within {} s: it hangs or the machine is overloaded; look at its \
                 log (`journalctl -u podspan-agent`, or `kubectl logs` of its pod)",
                PATIENCE.as_secs()
            )
        };
        if left.is_zero() {
            return Err(late());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) if answer.is_empty() => {
                bail!("the agent at {name} hung up without an answer: look at its log")
            }
            Ok(0) => bail!("the agent at {name} hung up in the middle of its answer: look at its log"),
            Ok(count) => {
                let chunk = &chunk[..count];
                if let Some(end) = chunk.iter().position(|&b| b == b'\n') {
                    answer.extend_from_slice(&chunk[..end]);
                    return Ok(answer);
                }
                answer.extend_from_slice(chunk);
                if answer.len() > MAX_ANSWER {
                    bail!("the answer of {name} has more than {MAX_ANSWER} bytes: that is not podspan-agent");
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(late());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read from the agent at {name}")),
        }
    }
}

fn not_connected(socket: &Path, error: &std::io::Error) -> anyhow::Error {
    let name = socket.display();
    let look = "look with `systemctl status podspan-agent` (or `kubectl get pods` for its DaemonSet)";
    match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "no agent answers here: there is no socket {name}. Does podspan-agent run on this node? To find out, {look}. If its \
             configuration names another socket, give that path with --socket"
        ),
        ErrorKind::ConnectionRefused => anyhow!(
            "no agent answers here: the socket {name} is there but nobody listens, so podspan-agent has ended. Pods \
             may still be reached as far as the kernel goes on; {look}, and read its log"
        ),
        ErrorKind::PermissionDenied => {
            anyhow!(
                "may not open {name}: the agent's socket belongs to root; run this as root (sudo podspan status)"
            )
        }
        _ => anyhow!("cannot ask the agent at {name}: {error}"),
    }
}
