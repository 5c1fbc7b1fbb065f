//! `/healthz`, `/readyz` and `/metrics`, where the settings ask for them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::control_socket::Query;
use crate::{metrics, overview};

/// How long the controller may take to answer before the agent counts as hung.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the three paths at `address` for ever.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on health-listen {address}: choose another address or free this one")
    })
}

/// Serves the three paths for ever.
pub async fn serve(listener: TcpListener, queries: mpsc::Sender<Query>) {
    let app = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(scrape))
        .with_state(queries);
    // axum's server goes on over failed accepts and never returns an error.
    let _ = axum::serve(listener, app).await;
}

async fn status(queries: &mpsc::Sender<Query>) -> Result<Box<Status>, (StatusCode, String)> {
    let hung = || (StatusCode::SERVICE_UNAVAILABLE, "the controller does not answer\n".to_owned());
    let (answer, answered) = oneshot::channel();
    let query = Query { request: Request::Status, answer };
    timeout(PATIENCE, queries.send(query)).await.map_err(|_| hung())?.map_err(|_| hung())?;
    match timeout(PATIENCE, answered).await {
        Ok(Ok(Answer::Status(status))) => Ok(status),
        _ => Err(hung()),
    }
}

/// Alive: the controller answers and every worker runs.
async fn health(State(queries): State<mpsc::Sender<Query>>) -> Result<String, (StatusCode, String)> {
    let status = status(&queries).await?;
    match status.workers.iter().find_map(|worker| worker.failed.as_ref().map(|why| (worker.lane, why))) {
        Some((lane, why)) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("lane {lane}: {why}\n"))),
        None => Ok("ok\n".to_owned()),
    }
}

/// Ready: everything in the kernel stands, and it is known what should.
async fn readiness(State(queries): State<mpsc::Sender<Query>>) -> Result<String, (StatusCode, String)> {
    match overview::ready(&*status(&queries).await?) {
        Ok(()) => Ok("ready\n".to_owned()),
        Err(reasons) => Err((StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")),
    }
}

async fn scrape(
    State(queries): State<mpsc::Sender<Query>>,
) -> Result<impl IntoResponse, (StatusCode, String)> {
    let status = status(&queries).await?;
    let text =
        metrics::encode(*status).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text))
}
