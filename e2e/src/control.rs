//! How the lab talks to its own long-running helpers: one JSON line each way over a unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::signals;

/// The longest request.
const MAX_LINE: u64 = 4 * 1024 * 1024;

/// How long a client may take to say its line.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers requests at the socket, each in its turn, in a thread of its own for as long as the process lives.
pub(crate) fn serve<Q, A, F>(socket: &Path, mut answer: F) -> Result<()>
where
    Q: DeserializeOwned,
    A: Serialize,
    F: FnMut(Q) -> Result<A> + Send + 'static,
{
    std::fs::remove_file(socket).ok();
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = answer_one(&stream, &mut answer) {
                eprintln!("control: {error:#}");
            }
        }
    })?;
    Ok(())
}

fn answer_one<Q, A>(stream: &UnixStream, answer: &mut impl FnMut(Q) -> Result<A>) -> Result<()>
where
    Q: DeserializeOwned,
    A: Serialize,
{
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    // Who only wanted to know whether anybody listens.
    if line.is_empty() {
        return Ok(());
    }
    let request = serde_json::from_str(&line).with_context(|| format!("a request is {line:?}"));
    let answer = request.and_then(answer).map_err(|error| format!("{error:#}"));
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    let mut out = stream;
    out.write_all(&text)?;
    Ok(())
}

/// Asks one thing.
pub(crate) fn ask<Q: Serialize, A: DeserializeOwned>(
    socket: &Path,
    request: &Q,
    timeout: Duration,
) -> Result<A> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("nothing answers at {}", socket.display()))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut out = &stream;
    out.write_all(&line)?;
    let mut text = String::new();
    BufReader::new(&stream).read_line(&mut text).context("no answer in time")?;
    let answer: Result<A, String> =
        serde_json::from_str(&text).with_context(|| format!("the answer is {text:?}"))?;
    answer.map_err(|error| anyhow!(error))
}

/// Waits until something listens there.
pub(crate) fn wait(socket: &Path, timeout: Duration) -> Result<()> {
    let end = Instant::now() + timeout;
    loop {
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("nothing listens at {}", socket.display()));
            }
            Err(_) => signals::sleep(Duration::from_millis(10))?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_errors_come_through() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        serve(&socket, |n: i32| if n < 0 { Err(anyhow!("{n} is negative")) } else { Ok(n + 1) }).unwrap();
        wait(&socket, Duration::from_secs(5)).unwrap();
        let ask = |n: &str| {
            ask::<_, i32>(&socket, &serde_json::from_str::<serde_json::Value>(n).unwrap(), PATIENCE)
        };
        assert_eq!(ask("1").unwrap(), 2);
        assert!(ask("-1").unwrap_err().to_string().contains("-1 is negative"));
        assert!(ask("\"x\"").unwrap_err().to_string().contains("a request is"));
        assert_eq!(ask("5").unwrap(), 6, "a bad request does not end it");
    }
}
