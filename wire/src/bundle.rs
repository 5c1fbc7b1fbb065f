//! The bundle: the one file that a cluster's agents need.

use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::keys::ClusterKey;
use crate::names::ClusterSetId;
use crate::trust::{Refusal, Trust, VerifiedGrant};

/// Why a bundle file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It is not a bundle.
    #[error("this is not a bundle file ({0}): make one with `podspan cluster grant`")]
    Malformed(String),
    /// The grant inside is not good.
    #[error("the bundle's grant is not good: {0}")]
    Grant(#[from] Refusal),
    /// The key inside is not the one that was granted.
    #[error("the bundle's cluster key is not the one that its grant names: make the bundle anew")]
    Key,
    /// No broker is named.
    #[error("the bundle names no broker: make it anew with `--broker`")]
    NoBroker,
    /// A broker address cannot be used.
    #[error("the bundle's broker {0:?} is not https://HOST:PORT")]
    Broker(String),
}

/// What `podspan cluster grant` hands to a cluster: who to trust, who one is, where the brokers are.
/// Holds a secret key: a file of mode 0600, a Secret in Kubernetes.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The cluster set to trust.
    pub cluster_set: ClusterSetId,
    /// The grant as the root signed it.
    pub grant: Envelope,
    /// The key that signs this cluster's records.
    pub cluster_key: ClusterKey,
    /// Broker addresses, `https://HOST:PORT`; one that answers is enough.
    pub brokers: Vec<String>,
    /// The certificate authority of the brokers' TLS, PEM.
    pub broker_ca: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    kind: String,
    cluster_set: ClusterSetId,
    grant: Envelope,
    cluster_key: zeroize::Zeroizing<String>,
    brokers: Vec<String>,
    broker_ca: String,
}

const KIND: &str = "podspan bundle v1";

impl Bundle {
    /// Reads a bundle file. The grant is checked, but not its time: an agent may start with a clock that
    /// is not yet set.
    ///
    /// # Errors
    /// Whatever is wrong with the file, without quoting its secret.
    pub fn parse(text: &str) -> Result<(Self, VerifiedGrant), BundleError> {
        let raw: Raw = serde_json::from_str(text)
            // serde quotes unexpected values; the key must not get into a log that way.
            .map_err(|e| BundleError::Malformed(format!("line {}, column {}", e.line(), e.column())))?;
        if raw.kind != KIND {
            return Err(BundleError::Malformed(format!("its kind is not {KIND:?}")));
        }
        let cluster_key = ClusterKey::from_secret_text(&raw.cluster_key)
            .map_err(|e| BundleError::Malformed(e.to_string()))?;
        let grant = Trust::new(raw.cluster_set).verify_grant(&raw.grant, crate::UnixTime(0))?;
        if grant.cluster_key != cluster_key.public() {
            return Err(BundleError::Key);
        }
        if raw.brokers.is_empty() {
            return Err(BundleError::NoBroker);
        }
        for broker in &raw.brokers {
            if !is_broker(broker) {
                return Err(BundleError::Broker(broker.chars().take(80).collect()));
            }
        }
        let bundle = Self {
            cluster_set: raw.cluster_set,
            grant: raw.grant,
            cluster_key,
            brokers: raw.brokers,
            broker_ca: raw.broker_ca,
        };
        Ok((bundle, grant))
    }

    /// The bundle as the text of its file; holds the secret key.
    #[must_use]
    pub fn to_secret_text(&self) -> zeroize::Zeroizing<String> {
        let raw = Raw {
            kind: KIND.into(),
            cluster_set: self.cluster_set,
            grant: self.grant.clone(),
            cluster_key: self.cluster_key.to_secret_text(),
            brokers: self.brokers.clone(),
            broker_ca: self.broker_ca.clone(),
        };
        let mut text = serde_json::to_string_pretty(&raw).unwrap_or_default();
        text.push('\n');
        zeroize::Zeroizing::new(text)
    }
}

/// Whether `text` is `https://HOST:PORT`, with HOST a name, an IPv4 address or an IPv6 one in brackets.
fn is_broker(text: &str) -> bool {
    let Some((host, port)) = text.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':')) else {
        return false;
    };
    let host_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-'),
    };
    host_ok && port.parse::<u16>().is_ok_and(|port| port != 0)
}
