//! How a request fails: a status, a kind for counting, and an [`ApiError`] for the caller.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use podspan_wire::api::ApiError;
use podspan_wire::{NodeId, Refusal, Version};

use super::engine::EngineError;
use super::registry::Refused;

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The HTTP status.
    pub status: u16,
    /// What it is counted as.
    pub kind: &'static str,
    /// What the caller is told.
    pub error: Box<ApiError>,
    /// When to try again, if that is of use.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that says `message`.
    pub fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        let error = Box::new(ApiError { message: message.into(), stored: None, node: None });
        Self { status, kind, error, retry_after: None }
    }

    /// 429, with the time to wait.
    pub fn rate_limited(wait: Duration, message: impl Into<String>) -> Self {
        Self { retry_after: Some(wait), ..Self::new(429, "rate-limited", message) }
    }

    fn about(mut self, node: NodeId, stored: Option<Version>) -> Self {
        self.error.node = Some(node);
        self.error.stored = stored;
        self
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, &self.error);
        if let Some(wait) = self.retry_after {
            // Whole seconds (RFC 9110 section 10.2.3), rounded up.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

/// An answer with a JSON body.
pub(crate) fn json<T: serde::Serialize>(status: StatusCode, body: &T) -> Response {
    // These types always serialise: no maps with keys other than text.
    json_body(status, serde_json::to_vec(body).unwrap_or_default().into())
}

/// An answer whose body is JSON already.
pub(crate) fn json_body(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        use podspan_wire::RefusalKind::Malformed;
        let status = if refusal.kind == Malformed { 400 } else { 403 };
        Self::new(status, refusal.kind.label(), refusal.detail)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        let refused = match error {
            EngineError::Refused(refused) => refused,
            EngineError::Watchers { .. } => {
                return Self { kind: "watchers", ..Self::rate_limited(Duration::from_secs(10), message) };
            }
            EngineError::Busy | EngineError::Store | EngineError::Stopped => {
                let kind = match error {
                    EngineError::Busy => "busy",
                    EngineError::Store => "store",
                    _ => "stopped",
                };
                let retry_after = Some(Duration::from_secs(1));
                return Self { retry_after, ..Self::new(503, kind, message) };
            }
        };
        match refused {
            Refused::NotNewer { id, stored, .. } => {
                Self::new(409, "replayed", message).about(id, Some(stored))
            }
            Refused::OtherVersion { id, stored, .. } => {
                Self::new(409, "other-version", message).about(id, Some(stored))
            }
            Refused::Withdrawn { id, stored } => Self::new(409, "withdrawn", message).about(id, Some(stored)),
            Refused::Unknown { id } => Self::new(404, "unknown-node", message).about(id, None),
            Refused::Overlap(overlap) => Self::new(409, "overlap", message).about(overlap.node, None),
            Refused::Superseded { .. } | Refused::OtherKey { .. } => {
                Self::new(403, "grant-superseded", message)
            }
            Refused::Full { .. } => Self::new(507, "full", message),
        }
    }
}
