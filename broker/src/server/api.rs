//! The handlers of the API; see [`podspan_wire::api`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post, put};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::http::request::Parts;
use podspan_wire::api::{List, MAX_BODY, PutAnswer, Renew, RenewAnswer, Token};
use podspan_wire::{ClusterId, NodeId, RecordState, SignedRecord};
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;

use super::auth::{Gate, Member, Peer};
use super::engine::{Engine, wall_clock};
use super::failure::{Failure, json, json_body};
use super::limits::Buckets;
use super::metrics::Metrics;
use super::registry::{Resume, Stored};
use super::watch;

/// How long a request's body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How long the store may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What the handlers share.
pub struct Shared {
    /// Who may ask.
    pub gate: Arc<Gate>,
    /// Registry and store.
    pub engine: Engine,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How long a lease runs.
    pub lease: Duration,
    /// Requests of each cluster.
    pub requests: Mutex<Buckets<ClusterId>>,
    /// The last list that was asked for, as it was sent.
    pub list: tokio::sync::Mutex<Option<(Token, Bytes)>>,
    /// When the broker was started: the zero of `requests`.
    pub start: Instant,
    /// Becomes true when the broker is to stop.
    pub stopping: Receiver<bool>,
}

type App = State<Arc<Shared>>;

/// The API. Every request must carry a [`Peer`] in its extensions.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/records", get(list))
        .route("/v1/records/{cluster}/{node}", put(put_record).delete(delete_record))
        .route("/v1/records/{cluster}/{node}/renew", post(renew))
        .route("/v1/watch", get(start_watch))
        .fallback(nothing_here)
        .method_not_allowed_fallback(no_such_method)
        .with_state(shared)
}

/// Counts the outcome and makes it an answer.
fn finish(shared: &Shared, route: &'static str, outcome: Result<Response, Failure>) -> Response {
    let response = outcome.unwrap_or_else(|failure| {
        shared.metrics.refused(failure.kind);
        if failure.status == 429 {
            shared.metrics.rate_limited.inc();
        }
        tracing::debug!(route, status = failure.status, kind = failure.kind, why = %failure.error, "refused");
        failure.into_response()
    });
    shared.metrics.answered(route, response.status().as_u16());
    response
}

async fn enter(shared: &Shared, head: &Parts) -> Result<Member, Failure> {
    let Some(peer) = head.extensions.get::<Peer>() else {
        return Err(Failure::new(500, "internal", "the connection's key is not known"));
    };
    let member = within(shared.gate.enter(&head.headers, *peer, &shared.engine)).await?;
    let cluster = member.grant.cluster.clone();
    let mut requests = shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
    requests.take(cluster, shared.start.elapsed()).map_err(|wait| {
        let cluster = &member.grant.cluster;
        Failure::rate_limited(wait, format!("cluster {cluster} sends more requests than this broker allows"))
    })?;
    drop(requests);
    Ok(member)
}

/// Bounds what waits for the engine.
async fn within<T, E: Into<Failure>>(answer: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(Failure::new(
            503,
            "store",
            "the broker's store does not answer; it is not known whether anything was stored: try again",
        )),
    }
}

async fn read(head: &Parts, body: Body) -> Result<Bytes, Failure> {
    let too_large = || {
        let message = format!("the body is larger than {MAX_BODY} bytes");
        Failure::new(413, "body-too-large", message)
    };
    // Told without reading it, where the client says how much it will send.
    let announced = head.headers.get(hyper::header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    let collected = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(BODY_WITHIN, collected).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::new(400, "bad-request", "the body ended before its time")),
        Err(_) => Err(Failure::new(
            408,
            "bad-request",
            format!("the body did not arrive within {} s", BODY_WITHIN.as_secs()),
        )),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|why| Failure::new(400, "malformed", format!("the body is not {what}: {why}")))
}

/// The node of the path, if the cluster may write it.
fn own_node(member: &Member, cluster: &str, node: &str) -> Result<NodeId, Failure> {
    let bad = |why| Failure::new(400, "bad-request", format!("the path names no node: {why}"));
    let id = NodeId { cluster: cluster.parse().map_err(bad)?, node: node.parse().map_err(bad)? };
    if id.cluster != member.grant.cluster {
        return Err(Failure::new(
            403,
            "not-own",
            format!(
                "cluster {} may not write the record of {id}, only those of its own nodes",
                member.grant.cluster
            ),
        ));
    }
    Ok(id)
}

async fn put_record(state: App, Path((cluster, node)): Path<(String, String)>, request: Request) -> Response {
    let outcome = write(&state, &cluster, &node, request, RecordState::Active).await;
    finish(&state, "put", outcome)
}

async fn delete_record(
    state: App,
    Path((cluster, node)): Path<(String, String)>,
    request: Request,
) -> Response {
    let outcome = write(&state, &cluster, &node, request, RecordState::Withdrawn).await;
    finish(&state, "delete", outcome)
}

async fn write(
    shared: &Shared,
    cluster: &str,
    node: &str,
    request: Request,
    state: RecordState,
) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let member = enter(shared, &head).await?;
    let id = own_node(&member, cluster, node)?;
    let signed: SignedRecord = parse(&read(&head, body).await?, "a signed record")?;
    let verified = shared.gate.trust().verify(&signed, wall_clock())?;
    let record = verified.record();
    if record.id() != id {
        return Err(Failure::new(
            400,
            "bad-request",
            format!("the path names {id}, the record is of {}", record.id()),
        ));
    }
    if record.state != state {
        return Err(Failure::new(
            400,
            "bad-request",
            match state {
                RecordState::Active => "the record is a withdrawal: send it with DELETE",
                RecordState::Withdrawn => "the record is not a withdrawal: send it with PUT",
            },
        ));
    }
    let version = record.version;
    let revision = within(shared.engine.put(verified)).await?;
    tracing::debug!(%id, %version, revision, ?state, "stored");
    Ok(json(StatusCode::OK, &PutAnswer { revision, lease_seconds: shared.lease.as_secs() }))
}

async fn renew(state: App, Path((cluster, node)): Path<(String, String)>, request: Request) -> Response {
    let outcome = async {
        let (head, body) = request.into_parts();
        let member = enter(&state, &head).await?;
        let id = own_node(&member, &cluster, &node)?;
        let Renew { version } = parse(&read(&head, body).await?, "a renewal")?;
        within(state.engine.renew(id, version)).await?;
        Ok(json(StatusCode::OK, &RenewAnswer { lease_seconds: state.lease.as_secs() }))
    };
    let outcome = outcome.await;
    finish(&state, "renew", outcome)
}

async fn list(state: App, request: Request) -> Response {
    let outcome = async {
        enter(&state, &request.into_parts().0).await?;
        let resume = within(state.engine.list()).await?;
        // One at a time, and the same revision only once: a list may be large.
        let mut last = state.list.lock().await;
        let body = match &*last {
            Some((token, body)) if *token == resume.token => body.clone(),
            _ => {
                let body = serialised(&resume);
                *last = Some((resume.token, body.clone()));
                body
            }
        };
        drop(last);
        Ok(json_body(StatusCode::OK, body))
    };
    let outcome = outcome.await;
    finish(&state, "list", outcome)
}

fn serialised(resume: &Resume) -> Bytes {
    let entries = resume.entries().iter().map(Stored::entry).collect();
    // These types always serialise: no maps with keys other than text.
    serde_json::to_vec(&List { token: resume.token.clone(), entries }).unwrap_or_default().into()
}

async fn start_watch(state: App, request: Request) -> Response {
    let outcome = async {
        let head = request.into_parts().0;
        let member = enter(&state, &head).await?;
        let from = from_token(head.uri.query().unwrap_or_default())?;
        let (cluster, serial) = (member.grant.cluster.clone(), member.grant.serial);
        let subscription = within(state.engine.watch(from, cluster, serial)).await?;
        let lines = watch::lines(subscription, member.grant.not_after, state.stopping.clone());
        let mut response = Response::new(Body::from_stream(lines));
        response.headers_mut().insert(
            hyper::header::CONTENT_TYPE,
            hyper::header::HeaderValue::from_static("application/x-ndjson"),
        );
        Ok(response)
    };
    let outcome = outcome.await;
    finish(&state, "watch", outcome)
}

/// The token of `from=TOKEN`. A token holds only hexadecimal digits, decimal ones and a colon, so the one
/// escape that can stand in it is the colon's.
fn from_token(query: &str) -> Result<Option<Token>, Failure> {
    let mut token = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let bad = |why: &str| {
            let pair: String = pair.chars().take(80).collect();
            Failure::new(400, "bad-request", format!("the query {pair:?}: {why}"))
        };
        match pair.split_once('=') {
            Some(("from", "")) => {}
            Some(("from", text)) => {
                let text = text.replace("%3A", ":").replace("%3a", ":");
                token = Some(text.parse().map_err(bad)?);
            }
            _ => return Err(bad("known is `from=TOKEN`")),
        }
    }
    Ok(token)
}

async fn nothing_here(state: App, request: Request) -> Response {
    let path: String = request.uri().path().chars().take(80).collect();
    finish(&state, "other", Err(Failure::new(404, "no-route", format!("there is nothing at {path:?}"))))
}

async fn no_such_method(state: App, request: Request) -> Response {
    let message = format!("{} is not possible here", request.method());
    finish(&state, "other", Err(Failure::new(405, "no-route", message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_queries() {
        let token: Token = "ab:7".parse().unwrap();
        assert_eq!(from_token("").unwrap(), None);
        assert_eq!(from_token("from=").unwrap(), None);
        assert_eq!(from_token("from=ab:7").unwrap(), Some(token.clone()));
        assert_eq!(from_token("from=ab%3A7").unwrap(), Some(token));
        for bad in ["from=x", "from=ab:-1", "form=ab:7", "from", "from=ab:99999999999999999999999"] {
            assert_eq!(from_token(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
