//! The unix socket of status and CNI plugin: lines in, lines out; the answers come from the controller.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use podspan_wire::local::{Answer, MAX_LINE, Request};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::places::Places;
use crate::takeover::Ask;
use crate::takeover::lender::Asked;
use crate::takeover::talk::Talk;

/// How many clients are served at a time; for a further one the first is let go.
const MAX_CLIENTS: usize = 256;
/// How long a client may take over a line, or be silent.
const IDLE: Duration = Duration::from_secs(60);

/// A request, and where its answer goes.
pub struct Query {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// The open socket. Its file goes when this is dropped, unless another agent has it.
pub struct ControlSocket {
    path: PathBuf,
    listener: StdListener,
    given: bool,
}

impl ControlSocket {
    /// Opens the socket at `path` with mode 0600; one that a dead agent left behind is replaced.
    ///
    /// # Errors
    /// If something else is there, or it cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    bail!(
                        "another agent answers at {}: stop it, or give this one a socket of its own",
                        path.display()
                    );
                }
                fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
            }
            Ok(_) => bail!("{} is there and is no socket: podspan does not touch it", path.display()),
            Err(_) => {}
        }
        // The listener's file is made under a name nobody knows, closed to others, then moved into place:
        // at no time can anybody but the owner connect.
        let hidden = path.with_extension(format!("{}", std::process::id()));
        let _ = fs::remove_file(&hidden);
        let listener = StdListener::bind(&hidden)
            .with_context(|| format!("cannot open the socket {}", path.display()))?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
        fs::rename(&hidden, path).with_context(|| format!("cannot open the socket {}", path.display()))?;
        Ok(Self { path: path.to_owned(), listener, given: false })
    }

    /// The socket that another agent has handed over.
    #[must_use]
    pub fn adopt(path: &Path, socket: OwnedFd) -> Self {
        Self { path: path.to_owned(), listener: socket.into(), given: false }
    }

    /// The socket, for another agent.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Closes it and leaves its file: it is another agent's.
    pub fn give(mut self) {
        self.given = true;
    }

    /// Something that [`serve`]s clients. Within a Tokio runtime.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn listener(&self) -> std::io::Result<UnixListener> {
        UnixListener::from_std(self.listener.try_clone()?)
    }
}

/// Serves clients for ever; who wants to take over goes to `asked`.
pub async fn serve(listener: UnixListener, queries: mpsc::Sender<Query>, asked: mpsc::Sender<Asked>) {
    let mut places = Places::new(MAX_CLIENTS);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (queries, asked) = (queries.clone(), asked.clone());
                places.serve(async move {
                    if let Err(error) = client(stream, queries, asked).await {
                        debug!(%error, "a client of the unix socket was let go");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: what is there must go on.
                warn!(%error, "the unix socket cannot take a client");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.given {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn client(
    stream: UnixStream,
    queries: mpsc::Sender<Query>,
    asked: mpsc::Sender<Asked>,
) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let taken =
            timeout(IDLE, (&mut read).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)).await??;
        if taken == 0 {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        if let Ok(Ask::Begin(begin)) = serde_json::from_slice(&line) {
            let stream = read.into_inner().reunite(write)?.into_std()?;
            stream.set_nonblocking(false)?;
            // Whoever asks while nobody can hand over finds the connection closed.
            let _ = asked.try_send(Asked { begin, talk: Talk::new(stream) });
            return Ok(());
        }
        let answer = if taken > MAX_LINE {
            Answer::Error { message: format!("a request has at most {MAX_LINE} bytes") }
        } else {
            match serde_json::from_slice(&line) {
                Ok(request) => ask(&queries, request).await,
                Err(error) => Answer::Error { message: format!("this is not a request: {error}") },
            }
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        timeout(IDLE, write.write_all(&text)).await??;
        if !complete || taken > MAX_LINE {
            return Ok(());
        }
    }
}

async fn ask(queries: &mpsc::Sender<Query>, request: Request) -> Answer {
    let (answer, answered) = oneshot::channel();
    if queries.send(Query { request, answer }).await.is_err() {
        return Answer::Error { message: "the agent is ending".into() };
    }
    answered.await.unwrap_or_else(|_| Answer::Error { message: "the agent is ending".into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    async fn answering(path: &Path) -> tokio::task::JoinHandle<()> {
        let socket = ControlSocket::bind(path).unwrap();
        let (queries, mut received) = mpsc::channel::<Query>(1);
        tokio::spawn(async move {
            while let Some(query) = received.recv().await {
                let _ = query.answer.send(Answer::Done);
            }
        });
        tokio::spawn(async move { serve(socket.listener().unwrap(), queries, mpsc::channel(1).0).await })
    }

    async fn exchange(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut text = String::new();
        let _ = timeout(Duration::from_secs(5), stream.read_to_string(&mut text))
            .await
            .expect("an answer in time");
        text
    }

    #[tokio::test]
    async fn answers_and_survives_whatever_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/agent.sock");
        let server = answering(&path).await;
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let ready = serde_json::to_string(&Request::Ready).unwrap() + "\n";
        let two = exchange(&path, ready.repeat(2).as_bytes()).await;
        assert_eq!(two.lines().count(), 2, "{two}");
        assert!(exchange(&path, b"\xff\x00garbage\n").await.contains("not a request"));
        assert!(exchange(&path, b"{\"request\":\"attach\"").await.contains("not a request"));
        assert!(exchange(&path, b"").await.is_empty());
        assert!(exchange(&path, &vec![b'x'; MAX_LINE + 10]).await.contains("at most"));
        assert!(exchange(&path, ready.as_bytes()).await.contains("done"), "it still answers");
        let mut silent = Vec::new();
        for _ in 0..MAX_CLIENTS + 10 {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        assert!(exchange(&path, ready.as_bytes()).await.contains("done"), "whoever holds the places");
        server.abort();
    }

    #[tokio::test]
    async fn replaces_what_the_dead_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let server = answering(&path).await;
        let Err(error) = ControlSocket::bind(&path) else { panic!("bound twice") };
        assert!(error.to_string().contains("another agent"), "{error}");
        server.abort();

        let file = dir.path().join("mine");
        fs::write(&file, "x").unwrap();
        assert!(ControlSocket::bind(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
    }
}
