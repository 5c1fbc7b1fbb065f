//! Signed statements: the exact bytes that were signed, and the signature over them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keys::{PublicKey, Signature};

/// The largest statement that is looked at, in bytes. A record with 64 lanes and 64 CIDRs stays below.
const MAX_PAYLOAD: usize = 32 * 1024;

/// Why a signed statement was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The signature is not the key's over this payload.
    #[error("the signature is not by {key}")]
    Signature {
        /// The key that should have signed.
        key: PublicKey,
    },
    /// More than 32 KiB.
    #[error("the statement has {size} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLarge {
        /// How many bytes it has.
        size: usize,
    },
    /// The payload is not a statement of the kind asked for.
    #[error("the statement cannot be read: {0}")]
    Malformed(String),
    /// The payload says the same as another byte string would: only one of them may be signed.
    #[error("the statement is not in canonical form")]
    NotCanonical,
}

/// A kind of statement. `CONTEXT` keeps a signature over one kind from passing for another's.
pub(crate) trait Statement: Serialize + DeserializeOwned {
    const CONTEXT: &'static str;
}

/// A statement's payload as it was signed, and the signature.
///
/// The payload is compact JSON in the canonical form: the fields in the order of their definition, no
/// white space, lists sorted. It is kept as text, so that a person can read what was signed, and it is
/// only read after the signature was checked. What is signed is the statement's context (such as
/// `podspan record v1`), a zero byte, and the payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The canonical payload.
    pub payload: String,
    /// The signature over context, zero byte and payload.
    pub signature: Signature,
}

fn message(context: &str, payload: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(context.len() + 1 + payload.len());
    message.extend_from_slice(context.as_bytes());
    message.push(0);
    message.extend_from_slice(payload.as_bytes());
    message
}

/// The error in words, bounded: serde quotes what it did not expect, and that may be the whole payload.
fn brief(error: &serde_json::Error) -> String {
    const MOST: usize = 200;
    let text = error.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((end, _)) => {
            format!("{}... at line {} column {}", &text[..end], error.line(), error.column())
        }
    }
}

impl Envelope {
    pub(crate) fn seal<S: Statement>(statement: &S, sign: impl FnOnce(&[u8]) -> Signature) -> Self {
        // Serialising these structs cannot fail: no maps with non-text keys, no fallible serialisers.
        let payload = serde_json::to_string(statement).unwrap_or_default();
        let signature = sign(&message(S::CONTEXT, &payload));
        Self { payload, signature }
    }

    /// Checks the signature, then reads the payload.
    pub(crate) fn open<S: Statement>(&self, key: &PublicKey) -> Result<S, EnvelopeError> {
        if self.payload.len() > MAX_PAYLOAD {
            return Err(EnvelopeError::TooLarge { size: self.payload.len() });
        }
        if !key.verifies(&message(S::CONTEXT, &self.payload), &self.signature) {
            return Err(EnvelopeError::Signature { key: *key });
        }
        self.peek()
    }

    /// Reads the payload without looking at the signature: for telling who must have signed, and for
    /// naming in an error what was refused. Nothing of it may be believed.
    pub(crate) fn peek<S: Statement>(&self) -> Result<S, EnvelopeError> {
        if self.payload.len() > MAX_PAYLOAD {
            return Err(EnvelopeError::TooLarge { size: self.payload.len() });
        }
        let statement: S =
            serde_json::from_str(&self.payload).map_err(|e| EnvelopeError::Malformed(brief(&e)))?;
        match serde_json::to_string(&statement) {
            Ok(canonical) if canonical == self.payload => Ok(statement),
            _ => Err(EnvelopeError::NotCanonical),
        }
    }
}
