//! `/healthz`, `/readyz` and `/metrics`, where the settings ask for them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

use crate::control_socket::Query;
use crate::places::Places;
use crate::{metrics, overview};

/// How many connections are open at a time; for a further one the first is closed.
const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take, and how long a connection may be idle.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may last in all; a scraper opens another.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);
/// The largest request head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How long to wait when no connection can be accepted, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long the controller may take to answer before the agent counts as hung.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the health port.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on health-listen {address}: choose another address or free this one")
    })
}

/// Serves the three paths for ever. Whoever can reach the address may ask, so that connections are bounded
/// in number and time: they must not use up the file descriptors that tunnels and pods need.
pub async fn serve(listener: TcpListener, queries: mpsc::Sender<Query>) {
    let app = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(scrape))
        .with_state(queries);
    let mut places = Places::new(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = TowerToHyperService::new(app.clone());
                places.serve(async move {
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_WITHIN)
                        .max_buf_size(MAX_HEAD)
                        .serve_connection(TokioIo::new(stream), app);
                    // How a client fares is its own affair.
                    let _ = timeout(CONNECTION_WITHIN, connection).await;
                });
            }
            Err(error) => {
                warn!(%error, "the health port cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The agent's state, or why it cannot run yet.
async fn status(queries: &mpsc::Sender<Query>) -> Result<Result<Box<Status>, String>, (StatusCode, String)> {
    let hung = || (StatusCode::SERVICE_UNAVAILABLE, "the controller does not answer\n".to_owned());
    let (answer, answered) = oneshot::channel();
    let query = Query { request: Request::Status, answer };
    timeout(PATIENCE, queries.send(query)).await.map_err(|_| hung())?.map_err(|_| hung())?;
    match timeout(PATIENCE, answered).await {
        Ok(Ok(Answer::Status(status))) => Ok(Ok(status)),
        Ok(Ok(Answer::Error { message })) => Ok(Err(message)),
        _ => Err(hung()),
    }
}

/// Alive: the controller answers and every worker runs. An agent that waits is alive: starting it again would
/// not bring what it waits for.
///
/// # Errors
/// What is wrong.
pub async fn alive(queries: &mpsc::Sender<Query>) -> Result<String, String> {
    let Ok(status) = status(queries).await.map_err(|(_, why)| why)? else {
        return Ok("ok, but waiting\n".to_owned());
    };
    match status.workers.iter().find_map(|worker| worker.failed.as_ref().map(|why| (worker.lane, why))) {
        Some((lane, why)) => Err(format!("lane {lane}: {why}\n")),
        None => Ok("ok\n".to_owned()),
    }
}

/// Ready: everything in the kernel stands, and it is known what should.
///
/// # Errors
/// What is missing, a line each.
pub async fn ready(queries: &mpsc::Sender<Query>) -> Result<String, String> {
    let reasons = match status(queries).await.map_err(|(_, why)| why)? {
        Ok(status) => match overview::ready(&status) {
            Ok(()) => return Ok("ready\n".to_owned()),
            Err(reasons) => reasons,
        },
        Err(waiting) => vec![waiting],
    };
    Err(reasons.join("\n") + "\n")
}

async fn health(State(queries): State<mpsc::Sender<Query>>) -> Result<String, (StatusCode, String)> {
    alive(&queries).await.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why))
}

async fn readiness(State(queries): State<mpsc::Sender<Query>>) -> Result<String, (StatusCode, String)> {
    ready(&queries).await.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why))
}

async fn scrape(
    State(queries): State<mpsc::Sender<Query>>,
) -> Result<impl IntoResponse, (StatusCode, String)> {
    let status =
        status(&queries).await?.map_err(|waiting| (StatusCode::SERVICE_UNAVAILABLE, waiting + "\n"))?;
    let text =
        metrics::encode(*status).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE * 2, stream.read_to_end(&mut answer)).await.expect("an answer in time");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A controller that has gone is told as such; whatever is sent, and however many only connect, it
    /// goes on answering.
    #[tokio::test]
    async fn survives_whoever_connects() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (queries, gone) = mpsc::channel(1);
        drop(gone);
        let server = tokio::spawn(serve(listener, queries));
        let get = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        for garbage in [&b"\x16\x03\x01\x00\xff garbage"[..], &[b'x'; 100_000], b"GET /\r\n\r\n", b"\r\n"] {
            let _ = timeout(Duration::from_millis(300), ask(address, garbage)).await;
        }
        let answer = ask(address, get).await;
        assert!(answer.contains("503") && answer.contains("does not answer"), "{answer}");
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 10 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let begin = std::time::Instant::now();
        assert!(ask(address, get).await.contains("503"), "full: the first is closed, not the one who asks");
        assert!(begin.elapsed() < Duration::from_secs(2), "nobody waits for the silent");
        drop(silent);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(ask(address, get).await.contains("503"));
        server.abort();
    }
}
