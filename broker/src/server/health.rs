//! `/healthz`, `/readyz`, `/metrics`, over plain HTTP on an address of their own.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use tokio::sync::watch::Receiver;

use super::engine::Engine;
use super::metrics::Metrics;

#[derive(Clone)]
struct Health {
    engine: Engine,
    metrics: Arc<Metrics>,
    draining: Receiver<bool>,
}

/// The three pages. `draining` becomes true when the broker is to stop.
pub(super) fn router(engine: Engine, metrics: Arc<Metrics>, draining: Receiver<bool>) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .with_state(Health { engine, metrics, draining })
}

/// The process serves; whether it can do its work is `/readyz`'s to say.
async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(health): State<Health>) -> Response {
    let why = if *health.draining.borrow() {
        "draining: the broker is shutting down\n"
    } else if !health.engine.is_healthy() {
        "the store does not work: see the log\n"
    } else {
        return "ready\n".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn metrics_page(State(health): State<Health>) -> Response {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, OPENMETRICS)], health.metrics.encode()).into_response()
}
