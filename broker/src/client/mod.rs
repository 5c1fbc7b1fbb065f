//! The client that agents use: puts, renews, withdraws, lists and watches records.
//!
//! It needs one broker of several that answers: it starts with any, stays with the last that answered,
//! and goes on to the next when one does not. Everything a broker says is bounded in size and time and
//! checked in form. Records are passed on as they came: verifying them is the caller's.

mod config;
mod connection;
mod error;
mod lines;
mod tls;
mod watch;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use podspan_wire::api::{ApiError, GRANT_HEADER, List, PutAnswer, Renew, RenewAnswer};
use podspan_wire::{NodeId, SignedRecord, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use config::{ClientConfig, SetupError, Timing};
pub use error::Error;
pub use watch::{Event, Watch};

use config::Broker;
use connection::Connection;

/// The largest answer to anything but a list or watch, in bytes.
const MAX_ANSWER: usize = 128 * 1024;
/// The largest list, in bytes.
const MAX_LIST: usize = 64 * 1024 * 1024;
/// The most entries that a list may hold, or a watch send between two bookmarks.
const MAX_ENTRIES: usize = 100_000;

/// A client of one cluster. Cheap to clone; all clones share their connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    brokers: Vec<Broker>,
    tls: tokio_rustls::TlsConnector,
    grant: HeaderValue,
    timing: Timing,
    /// Index of the broker that answered last; a random one at first, so that not all start with one.
    preferred: AtomicUsize,
    /// A connection that waits for its next request, and whose it is.
    idle: Mutex<Option<(usize, Connection)>>,
}

impl Client {
    /// A client; nothing is connected yet.
    ///
    /// # Errors
    /// [`SetupError`] if the bundle's parts cannot be used.
    pub fn new(config: ClientConfig) -> Result<Self, SetupError> {
        let brokers = config.brokers.iter().map(|text| Broker::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if brokers.is_empty() {
            return Err(SetupError::NoBroker);
        }
        let tls = tls::client_config(&config.broker_ca, &config.cluster_key)?;
        let preferred = config::random() as usize % brokers.len();
        Ok(Self {
            inner: Arc::new(Inner {
                brokers,
                tls: Arc::new(tls).into(),
                grant: config::grant_header(&config.grant)?,
                timing: config.timing,
                preferred: AtomicUsize::new(preferred),
                idle: Mutex::new(None),
            }),
        })
    }

    /// A client for each of the brokers alone, in the order in which they are named: what is told to one of them
    /// the others do not know.
    #[must_use]
    pub fn each(&self) -> Vec<Self> {
        let alone = |broker: &Broker| Self {
            inner: Arc::new(Inner {
                brokers: vec![broker.clone()],
                tls: self.inner.tls.clone(),
                grant: self.inner.grant.clone(),
                timing: self.inner.timing,
                preferred: AtomicUsize::new(0),
                idle: Mutex::new(None),
            }),
        };
        self.inner.brokers.iter().map(alone).collect()
    }

    /// Puts an active record. The answer means that it is on the broker's disk. To repeat it is harmless.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the stored version is not lower; others as they say.
    pub async fn put(&self, signed: &SignedRecord) -> Result<PutAnswer, Error> {
        let (id, _) = signed.claim().ok_or(Error::NotARecord)?;
        self.inner.call(Method::PUT, &record_path(&id), Some(signed), self.inner.timing.request).await
    }

    /// Puts a withdrawal: the node is gone for good. To repeat it is harmless.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the stored version is not lower; others as they say.
    pub async fn withdraw(&self, signed: &SignedRecord) -> Result<PutAnswer, Error> {
        let (id, _) = signed.claim().ok_or(Error::NotARecord)?;
        self.inner.call(Method::DELETE, &record_path(&id), Some(signed), self.inner.timing.request).await
    }

    /// Renews the lease of a node of this cluster, whose stored record should have `version`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if none is stored, [`Error::Conflict`] if another is: put the record then.
    pub async fn renew(&self, id: &NodeId, version: Version) -> Result<RenewAnswer, Error> {
        let path = format!("{}/renew", record_path(id));
        self.inner.call(Method::POST, &path, Some(&Renew { version }), self.inner.timing.request).await
    }

    /// Everything that is stored. A list has an upper bound of 64 MiB; [`Self::watch`] has none.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn list(&self) -> Result<List, Error> {
        let list: List =
            self.inner.call(Method::GET, "/v1/records", None::<&()>, self.inner.timing.list).await?;
        if list.entries.len() > MAX_ENTRIES {
            let broker = self.inner.brokers[self.inner.preferred.load(Ordering::Relaxed)].to_string();
            let why = format!("its list has {} entries, at most {MAX_ENTRIES} are taken", list.entries.len());
            return Err(Error::Protocol { broker, why });
        }
        Ok(list)
    }

    /// Watches from a token on, or from the beginning; goes on for ever, over whichever broker answers,
    /// until the [`Watch`] is dropped. Must be called within a tokio runtime.
    #[must_use]
    pub fn watch(&self, from: Option<podspan_wire::api::Token>) -> Watch {
        Watch::start(self.inner.clone(), from)
    }
}

fn record_path(id: &NodeId) -> String {
    // Cluster and node are DNS names: nothing in them needs escaping.
    format!("/v1/records/{}/{}", id.cluster, id.node)
}

impl Inner {
    /// Asks the brokers in turn until one answers with something other than its own failure.
    async fn call<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        within: Duration,
    ) -> Result<A, Error> {
        let body = match body.map(serde_json::to_vec) {
            Some(Ok(json)) => Bytes::from(json),
            // Nothing that is sent here fails to serialise.
            Some(Err(_)) => return Err(Error::NotARecord),
            None => Bytes::new(),
        };
        let most = if method == Method::GET { MAX_LIST } else { MAX_ANSWER };
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..self.brokers.len() {
            let index = (first + step) % self.brokers.len();
            let broker = &self.brokers[index];
            let attempt = self.attempt(index, &method, path, &body, most);
            let outcome = match tokio::time::timeout(within, attempt).await {
                Ok(Ok((status, answer))) if status.is_success() => serde_json::from_slice(&answer)
                    .map_err(|why| broker.protocol(format!("its answer: {why}"))),
                Ok(Ok((status, answer))) => Err(Error::refused(status, &answer)),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(broker.unreachable(format!("no answer within {} s", within.as_secs_f32()))),
            };
            match outcome {
                Err(error) if error.is_the_brokers() => failures.push(error),
                answered => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return answered;
                }
            }
        }
        Err(Error::of_all(failures))
    }

    async fn attempt(
        &self,
        index: usize,
        method: &Method,
        path: &str,
        body: &Bytes,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Error> {
        let broker = &self.brokers[index];
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((owner, mut connection)) = kept
            && owner == index
            && connection.is_usable().await
        {
            // The broker may have closed it this very moment: all requests may be repeated, so that a
            // fresh connection decides.
            match self.exchange(broker, &mut connection, method, path, body, most).await {
                Err(Error::Unreachable { .. }) => {}
                Ok(answer) => {
                    self.keep(index, connection);
                    return Ok(answer);
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = self.connect(broker).await?;
        let answer = self.exchange(broker, &mut connection, method, path, body, most).await?;
        self.keep(index, connection);
        Ok(answer)
    }

    async fn connect(&self, broker: &Broker) -> Result<Connection, Error> {
        Connection::open(broker, &self.tls, &self.timing).await.map_err(|why| broker.unreachable(why))
    }

    fn keep(&self, index: usize, connection: Connection) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some((index, connection));
    }

    async fn exchange(
        &self,
        broker: &Broker,
        connection: &mut Connection,
        method: &Method,
        path: &str,
        body: &Bytes,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Error> {
        let response = self.send(broker, connection, method, path, body.clone()).await?;
        let status = response.status();
        if let Some(error) = rate_limited(&response) {
            return Err(error);
        }
        let most = if status.is_success() { most } else { MAX_ANSWER };
        match Limited::new(response.into_body(), most).collect().await {
            Ok(answer) => Ok((status, answer.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(broker.protocol(format!("its answer is larger than {most} bytes")))
            }
            Err(error) => Err(broker.unreachable(format!("its answer broke off: {error}"))),
        }
    }

    async fn send(
        &self,
        broker: &Broker,
        connection: &mut Connection,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, broker.authority())
            .header(GRANT_HEADER, self.grant.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(body))
            .map_err(|why| broker.protocol(format!("the request cannot be made: {why}")))?;
        connection.send(request).await.map_err(|error| {
            let why = error::chain(&error);
            if error.is_parse() { broker.protocol(why) } else { broker.unreachable(why) }
        })
    }
}

/// 429 with the time to wait, at most an hour, whatever a broker says.
fn rate_limited(response: &Response<Incoming>) -> Option<Error> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let after = response.headers().get(RETRY_AFTER);
    let after = after.and_then(|after| after.to_str().ok()?.parse::<u64>().ok()).unwrap_or(1);
    Some(Error::RateLimited { after: Duration::from_secs(after.min(3600)) })
}

impl Error {
    /// What an answer of another status than 2xx means.
    fn refused(status: StatusCode, body: &[u8]) -> Self {
        let error: ApiError = serde_json::from_slice(body).unwrap_or_else(|_| ApiError {
            // Not in the API's form: some proxy's page, perhaps. Its beginning may help a person.
            message: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
            stored: None,
            node: None,
        });
        match (status, error.stored, &error.node) {
            (StatusCode::CONFLICT, Some(stored), _) => Self::Conflict { stored, error },
            (StatusCode::NOT_FOUND, _, Some(_)) => Self::NotFound,
            _ => Self::Refused { status: status.as_u16(), error },
        }
    }
}
