//! What a failed command prints (CNI spec section 5, "Error").

use serde::Serialize;

use crate::version::SpecVersion;

/// The error codes that the plugin uses. Those below 100 are the CNI spec's ("Error", section 5, and
/// STATUS, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The spec's version is not spoken here, or does not know the command.
    IncompatibleVersion = 1,
    /// A key inside podspan's own configuration that does not exist; the message names key and value.
    UnsupportedField = 2,
    /// A `CNI_*` variable is missing or wrong; the message names it.
    InvalidEnvironment = 4,
    /// Standard input or output failed.
    Io = 5,
    /// Standard input is not the JSON it should be.
    Decode = 6,
    /// The configuration is JSON, but wrong.
    InvalidConfig = 7,
    /// Not now; the runtime should try again.
    TryAgainLater = 11,
    /// STATUS: no pod can be added.
    NotAvailable = 50,
    /// STATUS: no pod can be added, and pods that are there may not reach the other clusters.
    LimitedConnectivity = 51,
    /// podspan's own: the pod's routes cannot be read or set.
    Routes = 100,
    /// podspan's own: CHECK found the pod's routes missing or wrong.
    RoutesMissing = 101,
}

/// An error as the plugin prints it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct CniError {
    /// The code.
    pub code: Code,
    /// What is wrong, short.
    pub message: String,
    /// Where, and what to do.
    pub details: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl CniError {
    /// An error of this code.
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// The error as JSON, in the version of the spec that the runtime speaks.
    #[must_use]
    pub fn to_json(&self, version: SpecVersion) -> String {
        let printed = Printed {
            cni_version: version.label(),
            code: self.code as u32,
            msg: &self.message,
            details: &self.details,
        };
        // Two numbers and texts: serialising cannot fail.
        serde_json::to_string(&printed).unwrap_or_default()
    }
}

/// Joins faults to one text, bounded.
pub(crate) fn join(faults: &[String]) -> String {
    const MOST: usize = 16;
    let mut text = faults.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join("; ");
    if faults.len() > MOST {
        text.push_str(&format!("; and {} more", faults.len() - MOST));
    }
    text
}

/// A JSON error in words, bounded: serde quotes what it did not expect, and that may be all of the input.
pub(crate) fn brief(error: &serde_json::Error) -> String {
    const MOST: usize = 200;
    let text = error.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((end, _)) => {
            let start = text.get(..end).unwrap_or_default();
            format!("{start}... at line {} column {}", error.line(), error.column())
        }
    }
}

/// Bounds foreign input that stands in an error.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// Quotes foreign input in an error, bounded.
pub(crate) fn quote(text: &str) -> String {
    format!("{:?}", shorten(text))
}
