//! Lines of bounded length out of a body that may send anything.

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes};

/// The longest line, in bytes: an entry is hardly larger than the largest body of a put.
pub(super) const MAX_LINE: usize = 192 * 1024;

/// Why there is no further line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// A line is longer than [`MAX_LINE`].
    #[error("it sent a line of more than {MAX_LINE} bytes")]
    TooLong,
    /// The body ended before its time.
    #[error("it broke off {0}")]
    Broken(String),
}

/// Reads a body line by line.
pub(super) struct Lines<B> {
    body: B,
    /// What has arrived and was not yet handed out.
    buffer: Vec<u8>,
    /// How much of it is known to hold no end of a line.
    searched: usize,
}

impl<B> Lines<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    pub(super) fn new(body: B) -> Self {
        Self { body, buffer: Vec::new(), searched: 0 }
    }

    /// The next line, without its end; `None` at the end of the body. May be
    /// dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let mut line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(LineError::TooLong);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    return Err(LineError::Broken(format!("({})", super::error::chain(&error))));
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(LineError::Broken("in the middle of a line".into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    fn lines(chunks: Vec<&'static [u8]>) -> Lines<impl Body<Data = Bytes, Error = Infallible> + Unpin> {
        let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk))));
        Lines::new(StreamBody::new(stream::iter(frames)))
    }

    #[tokio::test]
    async fn lines_are_cut_wherever_chunks_end() {
        let mut lines = lines(vec![b"a", b"b\nc\n", b"\n", b"d", b"\n"]);
        for expected in ["ab", "c", "", "d"] {
            assert_eq!(lines.next().await.unwrap().unwrap(), expected.as_bytes());
        }
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn endless_and_torn_lines_are_errors() {
        let mut endless = lines(vec![&[b'x'; 64 * 1024]; 100]);
        assert!(matches!(endless.next().await, Err(LineError::TooLong)));
        assert!(endless.buffer.len() < MAX_LINE + 128 * 1024, "what was read is bounded");
        let mut torn = lines(vec![b"a\nb"]);
        assert_eq!(torn.next().await.unwrap().unwrap(), b"a");
        assert!(matches!(torn.next().await, Err(LineError::Broken(_))));
    }
}
