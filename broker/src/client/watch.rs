//! A watch that never ends by itself.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Response};
use podspan_wire::api::{Token, WatchEvent};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::config::{Broker, random};
use super::connection::Connection;
use super::error::Error;
use super::lines::{LineError, Lines};
use super::{Inner, MAX_ANSWER, MAX_ENTRIES, rate_limited};

/// How many events wait for the consumer; with more, the broker is no longer read from.
const QUEUE: usize = 256;
/// The longest a broker can make a watch wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What happens in a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A broker answered; its events follow.
    Connected {
        /// Which, as `https://HOST:PORT`.
        broker: String,
    },
    /// An event of the broker's, not verified.
    Event(WatchEvent),
    /// The broker is not heard any more, or could not be reached; another attempt follows by itself, from
    /// the last bookmark.
    Disconnected {
        /// Which, as `https://HOST:PORT`.
        broker: String,
        /// Why.
        why: Error,
    },
}

/// A watch over whichever broker answers. Ends when dropped.
pub struct Watch {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(client: Arc<Inner>, from: Option<Token>) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move { Task { client, token: from, events: sender }.run().await });
        Self { events, task }
    }

    /// The next event. May be dropped while it waits: nothing is lost. `None` only if the runtime is
    /// going down.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Stream for Watch {
    type Item = Event;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Nobody takes the events any more.
struct Gone;

/// How one connection ended.
enum End {
    Gone,
    Failed(Error),
}

impl From<Gone> for End {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Task {
    client: Arc<Inner>,
    /// The last bookmark; none since a reset.
    token: Option<Token>,
    events: mpsc::Sender<Event>,
}

impl Task {
    async fn run(mut self) {
        let client = self.client.clone();
        let timing = client.timing;
        let mut index = client.preferred.load(Ordering::Relaxed);
        let mut pause = timing.pause;
        loop {
            let broker = &client.brokers[index];
            let mut progressed = false;
            let begun = Instant::now();
            let why = match self.session(index, broker, &mut progressed).await {
                End::Gone => return,
                End::Failed(why) => why,
            };
            // A broker that answers and fails again at once is not asked at once again.
            if progressed && begun.elapsed() >= timing.pause * 10 {
                pause = timing.pause;
            }
            let mut wait = pause / 2 + (pause / 2).mul_f64(f64::from(random()) / f64::from(u32::MAX));
            if let Error::RateLimited { after } = why {
                wait = wait.max(after.min(LONGEST_WAIT));
            }
            if self.tell(Event::Disconnected { broker: broker.to_string(), why }).await.is_err() {
                return;
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(timing.longest_pause);
            index = (index + 1) % client.brokers.len();
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }

    /// One connection, from its beginning to its end. `progressed` is set once a bookmark was received.
    async fn session(&mut self, index: usize, broker: &Broker, progressed: &mut bool) -> End {
        match self.read(index, broker, progressed).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn read(
        &mut self,
        index: usize,
        broker: &Broker,
        progressed: &mut bool,
    ) -> Result<std::convert::Infallible, End> {
        let client = self.client.clone();
        let (_connection, response) = self.open(broker).await?;
        client.preferred.store(index, Ordering::Relaxed);
        self.tell(Event::Connected { broker: broker.to_string() }).await?;
        let mut lines = Lines::new(response.into_body());
        let mut entries = 0;
        let mut expects_reset = self.token.is_none();
        loop {
            let silence = client.timing.silence;
            let line = timeout(silence, lines.next())
                .await
                .map_err(|_| broker.ended(format!("nothing was heard for {} s", silence.as_secs_f32())))?
                .map_err(|error| match error {
                    LineError::TooLong => broker.protocol(error.to_string()),
                    LineError::Broken(_) => broker.ended(error.to_string()),
                })?
                .ok_or_else(|| broker.ended("the broker ended it; it may be restarting"))?;
            let event: WatchEvent = serde_json::from_slice(&line)
                .map_err(|why| broker.protocol(format!("a line of the watch is no event: {why}")))?;
            match &event {
                WatchEvent::Reset => {
                    // What follows replaces all, so that an earlier token means nothing any more.
                    self.token = None;
                    expects_reset = false;
                }
                _ if expects_reset => {
                    return Err(broker.protocol("a watch from the beginning must begin with a reset").into());
                }
                WatchEvent::Entry(_) => {
                    entries += 1;
                    if entries > MAX_ENTRIES {
                        let why = format!("it sent more than {MAX_ENTRIES} entries without a bookmark");
                        return Err(broker.protocol(why).into());
                    }
                }
                WatchEvent::Bookmark { token } => {
                    entries = 0;
                    *progressed = true;
                    self.token = Some(token.clone());
                }
                WatchEvent::Resync => {}
            }
            let resync = event == WatchEvent::Resync;
            self.tell(Event::Event(event)).await?;
            if resync {
                return Err(broker.ended("this watcher was too slow and was cut off").into());
            }
        }
    }

    async fn open(&self, broker: &Broker) -> Result<(Connection, Response<Incoming>), Error> {
        let client = &self.client;
        let path = match &self.token {
            Some(token) => format!("/v1/watch?from={token}"),
            None => "/v1/watch".to_owned(),
        };
        let opened = async {
            let mut connection = client.connect(broker).await?;
            let response = client.send(broker, &mut connection, &Method::GET, &path, Bytes::new()).await?;
            if response.status().is_success() {
                return Ok((connection, response));
            }
            if let Some(error) = rate_limited(&response) {
                return Err(error);
            }
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|why| broker.protocol(format!("its refusal ({status}): {why}")))?;
            Err(Error::refused(status, &body.to_bytes()))
        };
        let within = client.timing.request;
        timeout(within, opened).await.unwrap_or_else(|_| {
            Err(broker.unreachable(format!("no answer within {} s", within.as_secs_f32())))
        })
    }
}
