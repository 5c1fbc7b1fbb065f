//! A socket of this very process, on which it is asked whether it is alive and ready.
//!
//! While one agent follows another, both run on one node, with one unix socket and one health port between them.
//! Who must know of one of them how it fares, such as the kubelet, asks here: each has a directory of its own
//! for it. One line in, `alive` or `ready`; one line out, `yes` or `no`, and why.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::control_socket::Query;
use crate::http;
use crate::places::Places;

/// How many are answered at a time.
const MAX_CLIENTS: usize = 16;
/// How long an exchange may take: longer than the controller may.
const WITHIN: Duration = Duration::from_secs(10);
/// The longest question.
const MAX_LINE: u64 = 64;

/// What the agent does at the moment.
#[derive(Clone)]
pub enum Phase {
    /// It begins, and is not ready.
    Starting,
    /// It runs: whoever is asked knows.
    Running(mpsc::Sender<Query>),
    /// It does nothing, and is to be left alone: another agent has the node. Ready, so that an update that
    /// waits for this one to be ready goes on and ends the other.
    Aside(String),
}

/// The socket.
pub struct Probe {
    phase: watch::Sender<Phase>,
    server: Option<JoinHandle<()>>,
}

impl Probe {
    /// Opens the socket at `path`, if there is to be one. What was there is replaced: it is nobody else's.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn start(path: Option<&Path>) -> anyhow::Result<Self> {
        let (phase, phases) = watch::channel(Phase::Starting);
        let Some(path) = path else { return Ok(Self { phase, server: None }) };
        if path.exists() {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot open the probe-socket {}", path.display()))?;
        Ok(Self { phase, server: Some(tokio::spawn(serve(listener, phases))) })
    }

    /// Says what the agent does from now on.
    pub fn tell(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn serve(listener: UnixListener, phases: watch::Receiver<Phase>) {
    let mut places = Places::new(MAX_CLIENTS);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let phase = phases.borrow().clone();
                places.serve(async move {
                    let _ = timeout(WITHIN, answer(stream, phase)).await;
                });
            }
            Err(error) => {
                warn!(%error, "the probe socket cannot take a client");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, phase: Phase) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await?;
    let answer = match (line.trim(), phase) {
        ("alive", Phase::Running(queries)) => http::alive(&queries).await,
        ("ready", Phase::Running(queries)) => http::ready(&queries).await,
        ("alive", Phase::Starting) => Ok("starting".to_owned()),
        ("ready", Phase::Starting) => Err("starting".to_owned()),
        ("alive" | "ready", Phase::Aside(why)) => Ok(why),
        _ => Err("ask \"alive\" or \"ready\"".to_owned()),
    };
    let (word, why) = match answer {
        Ok(why) => ("yes", why),
        Err(why) => ("no", why),
    };
    write.write_all(format!("{word}: {}\n", why.trim().replace('\n', "; ")).as_bytes()).await
}

/// Asks the agent whose socket this is; what it says, if that is yes.
///
/// # Errors
/// What it says if that is no, or that it does not answer.
pub async fn ask(path: &Path, question: &str) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = UnixStream::connect(path)
            .await
            .with_context(|| format!("no agent answers at {}", path.display()))?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        anyhow::Ok(text.trim().to_owned())
    };
    let said = timeout(WITHIN, exchange).await.context("the agent does not answer")??;
    if !said.starts_with("yes") {
        bail!("{said}");
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podspan_wire::local::Answer;

    #[tokio::test]
    async fn each_phase_has_its_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe.sock");
        std::fs::write(&path, "left behind").unwrap();
        let probe = Probe::start(Some(&path)).unwrap();
        assert!(ask(&path, "alive").await.is_ok());
        assert!(ask(&path, "ready").await.unwrap_err().to_string().contains("starting"));
        probe.tell(Phase::Aside("another agent has the node".into()));
        assert!(ask(&path, "ready").await.unwrap().contains("another agent"));
        let (queries, mut asked) = mpsc::channel::<Query>(1);
        probe.tell(Phase::Running(queries));
        let controller = tokio::spawn(async move {
            while let Some(query) = asked.recv().await {
                let _ = query.answer.send(Answer::Error { message: "waiting\nfor the bundle".into() });
            }
        });
        assert!(ask(&path, "alive").await.is_ok(), "one that waits lives");
        let no = ask(&path, "ready").await.unwrap_err().to_string();
        assert_eq!(no, "no: waiting; for the bundle");
        controller.abort();
        let _ = controller.await;
        assert!(ask(&path, "alive").await.is_err(), "a controller that has ended");
        assert!(ask(&path, "hello").await.is_err());
        drop(probe);
        tokio::task::yield_now().await;
        assert!(ask(&path, "alive").await.is_err());
    }
}
