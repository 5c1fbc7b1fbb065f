//! What the two say to each other: lines of JSON on a unix socket, descriptors along with them.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest line, bytes: the sessions of some hundred thousand tunnels.
const MAX_LINE: usize = 64 << 20;
/// The most descriptors that one message carries (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;
/// How long a line may take to go out.
const SEND_WITHIN: Duration = Duration::from_secs(10);

/// Why nothing was heard.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The other end is closed: whoever held it has ended, or wants no more of it.
    #[error("it closed the connection")]
    Ended,
    /// Nothing came in time.
    #[error("it did not answer within {0:?}")]
    Late(Duration),
    /// Something came that is no answer.
    #[error("it says {0:?}")]
    Other(String),
    /// The system failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// A connection between the two. They speak in turns: descriptors would otherwise come with an earlier line.
#[derive(Debug)]
pub struct Talk {
    stream: UnixStream,
    heard: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Talk {
    /// On this connection, which must be a blocking one.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, heard: Vec::new(), fds: Vec::new() }
    }

    /// Says something; `fds` go along.
    ///
    /// # Errors
    /// If the other end is closed or takes nothing for ten seconds.
    pub fn say<T: Serialize>(&self, what: &T, fds: &[BorrowedFd<'_>]) -> Result<(), TalkError> {
        let mut line = serde_json::to_vec(what).map_err(io::Error::from)?;
        line.push(b'\n');
        self.stream.set_write_timeout(Some(SEND_WITHIN))?;
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let along = if raw.is_empty() { &[][..] } else { &rights[..] };
        // They go with the first byte.
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&line)],
            along,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(io::Error::from)?;
        (&self.stream).write_all(&line[sent..])?;
        Ok(())
    }

    /// Hears one line, and what came along with it.
    ///
    /// # Errors
    /// If none comes in time, or another than expected.
    pub fn hear<T: DeserializeOwned>(&mut self, within: Duration) -> Result<(T, Vec<OwnedFd>), TalkError> {
        let deadline = Instant::now() + within;
        let end = loop {
            if let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                break end;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TalkError::Late(within));
            }
            if self.heard.len() > MAX_LINE {
                return Err(TalkError::Other("a line without end".to_owned()));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.read() {
                Ok(0) => return Err(TalkError::Ended),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(TalkError::Ended),
                Err(error) => return Err(error.into()),
            }
        };
        let rest = self.heard.split_off(end + 1);
        let line = std::mem::replace(&mut self.heard, rest);
        let fds = std::mem::take(&mut self.fds);
        let short = || TalkError::Other(String::from_utf8_lossy(&line).trim().chars().take(300).collect());
        Ok((serde_json::from_slice(&line).map_err(|_| short())?, fds))
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut buffer = vec![0; 64 << 10];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut pieces = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            self.stream.as_raw_fd(),
            &mut pieces,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                for fd in raw {
                    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
                    self.fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let length = message.bytes;
        self.heard.extend_from_slice(&buffer[..length]);
        Ok(length)
    }

    /// [`Self::hear`], on a thread where it holds nobody up.
    pub async fn listen<T: DeserializeOwned + Send + 'static>(
        mut self,
        within: Duration,
    ) -> (Self, Result<(T, Vec<OwnedFd>), TalkError>) {
        let heard = tokio::task::spawn_blocking(move || {
            let heard = self.hear(within);
            (self, heard)
        });
        match heard.await {
            Ok(heard) => heard,
            // A panic is in the log already.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::takeover::{Ask, Reply};
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    fn pair() -> (Talk, Talk) {
        let (a, b) = UnixStream::pair().unwrap();
        (Talk::new(a), Talk::new(b))
    }

    const SOON: Duration = Duration::from_millis(100);

    #[test]
    fn lines_and_descriptors_arrive_together() {
        let (a, mut b) = pair();
        let (mut read, write) = std::io::pipe().unwrap();
        a.say(&Ask::Cut, &[]).unwrap();
        a.say(&Ask::Cut, &[]).unwrap();
        for _ in 0..2 {
            assert!(matches!(b.hear::<Ask>(SOON), Ok((Ask::Cut, fds)) if fds.is_empty()));
        }
        a.say(&Reply::Control { health: true }, &[write.as_fd(), read.as_fd()]).unwrap();
        a.say(&Ask::Commit, &[]).unwrap();
        drop(write);
        let (control, mut fds) = b.hear::<Reply>(SOON).unwrap();
        assert!(matches!(control, Reply::Control { health: true }));
        assert_eq!(fds.len(), 2);
        let mut given = std::fs::File::from(fds.remove(0));
        given.write_all(b"x").unwrap();
        drop(given);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "the very pipe");
        assert!(matches!(b.hear::<Ask>(SOON), Ok((Ask::Commit, fds)) if fds.is_empty()));
        assert!(matches!(b.hear::<Ask>(SOON), Err(TalkError::Late(_))));
        drop(a);
        assert!(matches!(b.hear::<Ask>(SOON), Err(TalkError::Ended)));
    }

    #[test]
    fn a_long_line_comes_whole_and_another_answer_is_told() {
        let (a, mut b) = pair();
        let why = "x".repeat(1 << 20);
        let writer = std::thread::spawn(move || a.say(&Reply::Refused { why }, &[]).map(|()| a));
        let (reply, _) = b.hear::<Reply>(Duration::from_secs(5)).unwrap();
        assert!(matches!(reply, Reply::Refused { why } if why.len() == 1 << 20));
        let mut a = writer.join().unwrap().unwrap();
        a.stream.write_all(b"{\"answer\":\"error\",\"message\":\"this is not a request\"}\n").unwrap();
        let Err(TalkError::Other(said)) = b.hear::<Reply>(SOON) else { panic!("taken for a reply") };
        assert!(said.contains("not a request"), "{said}");
        drop(b);
        assert!(a.say(&Ask::Cut, &[]).is_err());
        assert!(matches!(a.hear::<Ask>(SOON), Err(TalkError::Ended)));
    }
}
