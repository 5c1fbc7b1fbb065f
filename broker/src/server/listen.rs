//! Connections: accepted, counted, bounded in number and time, served until the broker stops.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::Receiver;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::auth::{Gate, Peer};
use super::limits::address_key;
use super::metrics::Metrics;
use super::{stopped, tls};

/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long a request's head may take to arrive; also how long a connection may be idle.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// The largest request head, in bytes: a grant of 128 CIDRs, in JSON, in base64, and room.
const MAX_HEAD: usize = 64 * 1024;
/// How long sent data may stay unacknowledged, or a peer's window closed, before the connection is given up.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// How long to wait when no connection can be accepted, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Counts connections, in all and by address.
pub struct Connections {
    most: usize,
    most_per_address: usize,
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
    metrics: Arc<Metrics>,
}

impl Connections {
    /// Allows so many in all, and from one address.
    #[must_use]
    pub fn new(most: usize, most_per_address: usize, metrics: Arc<Metrics>) -> Self {
        Self { most, most_per_address, open: Mutex::default(), metrics }
    }

    /// A place for one more, or why there is none.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, &'static str> {
        let address = address_key(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *open;
        if *all >= self.most {
            return Err("too-many");
        }
        let own = by_address.entry(address).or_default();
        if *own >= self.most_per_address {
            return Err("too-many-from-address");
        }
        *own += 1;
        *all += 1;
        self.metrics.connections.inc();
        Ok(Place { connections: self.clone(), address })
    }
}

/// The place of one open connection; given back when dropped.
struct Place {
    connections: Arc<Connections>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *open;
        *all = all.saturating_sub(1);
        if let Some(own) = by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                by_address.remove(&self.address);
            }
        }
        self.connections.metrics.connections.dec();
    }
}

/// What the listeners of the API share.
#[derive(Clone)]
pub struct Door {
    /// The TLS configuration.
    pub tls: TlsAcceptor,
    /// Where failures are noted.
    pub gate: Arc<Gate>,
    /// The places.
    pub connections: Arc<Connections>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The API.
    pub router: Router,
    /// Becomes true when the broker is to stop.
    pub stopping: Receiver<bool>,
}

/// Serves the API on `listener` until the broker is to stop; then waits until all connections have
/// ended. Dropping the future breaks them off.
pub async fn serve_api(listener: TcpListener, door: Door) {
    let mut tasks = JoinSet::new();
    let mut stopping = door.stopping.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Some((stream, address)) = usable(accepted).await {
                    door.metrics.connections_accepted.inc();
                    admit(&mut tasks, &door, stream, address);
                }
            }
            _ = tasks.join_next(), if !tasks.is_empty() => {}
            () = stopped(&mut stopping) => break,
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn usable(accepted: std::io::Result<(TcpStream, SocketAddr)>) -> Option<(TcpStream, SocketAddr)> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn admit(tasks: &mut JoinSet<()>, door: &Door, stream: TcpStream, address: SocketAddr) {
    if door.gate.is_turned_away(address.ip()) {
        return door.metrics.connection_refused("turned-away");
    }
    match door.connections.enter(address.ip()) {
        Ok(place) => {
            let door = door.clone();
            tasks.spawn(async move {
                if let Err(kind) = serve_connection(&door, stream, address).await {
                    door.metrics.connection_refused(kind);
                }
                drop(place);
            });
        }
        Err(kind) => door.metrics.connection_refused(kind),
    }
}

/// One connection from its first byte to its last; an error is what it is counted as.
async fn serve_connection(door: &Door, stream: TcpStream, address: SocketAddr) -> Result<(), &'static str> {
    tune(&stream);
    let failed = |why: &dyn std::fmt::Display, kind| {
        tracing::debug!(%address, %why, "no TLS");
        door.gate.failed(address.ip());
        kind
    };
    let mut stopping = door.stopping.clone();
    let stream = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE_WITHIN, door.tls.accept(stream)) => match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(&error, "handshake")),
            Err(_) => return Err(failed(&"the handshake took too long", "handshake-timeout")),
        },
        () = stopped(&mut stopping) => return Ok(()),
    };
    let key = stream.get_ref().1.peer_certificates().and_then(|chain| tls::cluster_key(chain.first()?).ok());
    // The verifier let in nothing else; without a key there is no one to serve.
    let Some(key) = key else { return Err(failed(&"no client key", "handshake")) };
    let service = WithPeer {
        inner: TowerToHyperService::new(door.router.clone()),
        peer: Peer { key, address: address.ip() },
    };
    serve_http(TokioIo::new(stream), service, stopping).await
}

/// Serves HTTP/1.1 on a stream until it ends or, once the broker is to stop, the request under way does.
async fn serve_http<I, S>(stream: I, service: S, mut stopping: Receiver<bool>) -> Result<(), &'static str>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: Service<Request<Incoming>, Response = Response, Error = std::convert::Infallible>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(MAX_HEAD)
        .max_headers(64)
        .serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match ended {
        Ok(()) => Ok(()),
        Err(error) if error.is_parse() => Err("malformed-http"),
        Err(error) if error.is_timeout() => Err("idle"),
        Err(_) => Err("broken-off"),
    }
}

/// Small answers go out at once, and a peer that is gone is noticed. A kernel that lacks an option is as
/// good a reason to go on as any.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &5);
    let stalled = u32::try_from(STALLED_AFTER.as_millis()).unwrap_or(u32::MAX);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &stalled);
}

/// Tells every request who is at the other end.
struct WithPeer {
    inner: TowerToHyperService<Router>,
    peer: Peer,
}

impl Service<Request<Incoming>> for WithPeer {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        Box::pin(self.inner.call(request))
    }
}

/// Serves plain HTTP on `listener` until the broker has stopped: health and metrics, to at most `most`
/// connections at once. For a further one the first is closed: were it kept waiting instead, a few clients
/// that say nothing would keep out the kubelet and Prometheus.
pub async fn serve_plain(listener: TcpListener, router: Router, most: usize, stopping: Receiver<bool>) {
    let mut tasks = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut until = stopping.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Some((stream, _)) = usable(accepted).await {
                    tune(&stream);
                    open.retain(|connection| !connection.is_finished());
                    if open.len() >= most && let Some(first) = open.pop_front() {
                        first.abort();
                    }
                    let service = TowerToHyperService::new(router.clone());
                    let stopping = stopping.clone();
                    open.push_back(tasks.spawn(async move {
                        let _ = serve_http(TokioIo::new(stream), service, stopping).await;
                    }));
                }
            }
            _ = tasks.join_next(), if !tasks.is_empty() => {}
            () = stopped(&mut until) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        let router = Router::new().route("/healthz", get(async || "ok"));
        let server = tokio::spawn(serve_plain(listener, router, 3, stopping));
        let mut silent = Vec::new();
        for _ in 0..5 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(HEAD_WITHIN / 6, client.read_to_string(&mut answer)).await;
        read.expect("nobody waits for the silent").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        server.abort();
    }
}
