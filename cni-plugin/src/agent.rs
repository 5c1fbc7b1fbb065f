//! Asking the local agent, within a bound ([`podspan_wire::local`]).

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use podspan_wire::local::{Answer, MAX_LINE, Request};

/// How much of the agent's words is passed on, in characters.
const MAX_MESSAGE: usize = 1024;

/// The instant at which a command must be done.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// `timeout` from now.
    #[must_use]
    pub fn after(timeout: Duration) -> Self {
        // The configuration allows 10 s at most, far from where the addition could overflow.
        let now = Instant::now();
        Self(now.checked_add(timeout).unwrap_or(now))
    }

    /// What is left; none when it is over.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

/// Why the agent could not be asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens.
    #[error("the podspan agent does not listen at {} ({source}): is it running on this node?", .socket.display())]
    Connect {
        /// Where the socket should be.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It took too long.
    #[error("the podspan agent did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection broke.
    #[error("the connection to the podspan agent broke: {0}")]
    Broken(io::Error),
    /// The connection was closed in the middle.
    #[error("the podspan agent closed the connection without an answer")]
    Closed,
    /// More than [`MAX_LINE`] bytes without an end.
    #[error("the podspan agent answered with more than {MAX_LINE} bytes")]
    TooLong,
    /// The answer cannot be read.
    #[error("the podspan agent's answer cannot be read ({0}): are plugin and agent of one version?")]
    Garbage(String),
    /// The agent said no.
    #[error("the podspan agent refused: {0}")]
    Refused(String),
    /// An answer that does not fit the question.
    #[error(
        "the podspan agent answered {0}, which does not fit the question: are plugin and agent of one version?"
    )]
    Unexpected(&'static str),
}

impl AgentError {
    /// Whether there was an agent that answered at all.
    #[must_use]
    pub fn was_answered(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// Sends one request and reads its answer; never longer than until `deadline`. An [`Answer::Error`] comes
/// as [`AgentError::Refused`].
///
/// # Errors
/// [`AgentError`]; whether the agent acted on the request is not known then.
pub fn ask(
    path: &Path,
    request: &Request,
    timeout: Duration,
    deadline: Deadline,
) -> Result<Answer, AgentError> {
    let unavailable = |source| AgentError::Connect { socket: path.to_owned(), source };
    let late = || AgentError::Timeout(timeout);
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AgentError::Timeout(timeout),
        _ => AgentError::Broken(error),
    };

    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| unavailable(errno.into()))?;
    // A full backlog makes connect(2) wait; unix(7): the send timeout bounds that too.
    let left = deadline.left().ok_or_else(late)?;
    let address = UnixAddr::new(path).map_err(|errno| unavailable(errno.into()))?;
    setsockopt(&fd, sockopt::SendTimeout, &timeout_value(left)).map_err(|errno| unavailable(errno.into()))?;
    match connect(fd.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(nix::Error::EAGAIN) => return Err(late()),
        Err(errno) => return Err(unavailable(errno.into())),
    }

    let mut stream = UnixStream::from(fd);
    let mut line = serde_json::to_vec(request).map_err(|error| AgentError::Garbage(error.to_string()))?;
    line.push(b'\n');
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(deadline.left().ok_or_else(late)?)).map_err(broken)?;
        match stream.write(rest) {
            Ok(0) => return Err(AgentError::Closed),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    let answer = read_line(&mut stream, deadline, late, broken)?;
    parse_answer(&answer)
}

/// For a socket option, where zero would mean "for ever".
fn timeout_value(left: Duration) -> TimeVal {
    TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1))
}

fn read_line(
    stream: &mut UnixStream,
    deadline: Deadline,
    late: impl Fn() -> AgentError,
    broken: impl Fn(io::Error) -> AgentError,
) -> Result<Vec<u8>, AgentError> {
    let (mut line, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
    loop {
        stream.set_read_timeout(Some(deadline.left().ok_or_else(&late)?)).map_err(&broken)?;
        let new = match stream.read(&mut chunk) {
            Ok(0) => return Err(AgentError::Closed),
            Ok(length) => chunk.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error)),
        };
        if let Some(end) = new.iter().position(|&b| b == b'\n') {
            line.extend_from_slice(new.get(..end).unwrap_or_default());
            return Ok(line);
        }
        line.extend_from_slice(new);
        if line.len() > MAX_LINE {
            return Err(AgentError::TooLong);
        }
    }
}

/// Reads one line of the agent's.
///
/// # Errors
/// [`AgentError::Garbage`] or [`AgentError::Refused`].
pub fn parse_answer(line: &[u8]) -> Result<Answer, AgentError> {
    match serde_json::from_slice(line) {
        Ok(Answer::Error { message }) => {
            Err(AgentError::Refused(message.chars().take(MAX_MESSAGE).collect()))
        }
        Ok(answer) => Ok(answer),
        Err(error) => Err(AgentError::Garbage(crate::error::brief(&error))),
    }
}

/// The name of an answer, for an error.
pub(crate) fn name_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Done => "done",
        Answer::Routes(_) => "routes",
        Answer::Unknown => "unknown",
        Answer::Status(_) => "status",
        Answer::Error { .. } => "error",
    }
}
