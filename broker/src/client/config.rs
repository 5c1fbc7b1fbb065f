//! What a client is made of.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use podspan_wire::{Bundle, ClusterKey, Envelope};
use rustls::pki_types::ServerName;

use super::error::Error;

/// The parts of a cluster's bundle that a client needs.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The brokers, each `https://HOST:PORT`; HOST is a name, an IPv4 address, or an IPv6 one in brackets.
    pub brokers: Vec<String>,
    /// The certificate authority of the brokers' TLS, PEM; no other is trusted.
    pub broker_ca: String,
    /// The key that proves the cluster.
    pub cluster_key: ClusterKey,
    /// The root's grant for it.
    pub grant: Envelope,
    /// How long to wait for what.
    pub timing: Timing,
}

impl From<&Bundle> for ClientConfig {
    fn from(bundle: &Bundle) -> Self {
        Self {
            brokers: bundle.brokers.clone(),
            broker_ca: bundle.broker_ca.clone(),
            cluster_key: bundle.cluster_key.clone(),
            grant: bundle.grant.clone(),
            timing: Timing::default(),
        }
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For a TCP connection to one address.
    pub connect: Duration,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the answer of one broker to a put, renewal or withdrawal, connecting included.
    pub request: Duration,
    /// For one broker's list.
    pub list: Duration,
    /// For the next line of a watch; the broker sends one every 10 s at least.
    pub silence: Duration,
    /// Before a watch is tried again, at first; doubled with each failure. The actual pause is a random
    /// one between half of it and all of it.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            handshake: Duration::from_secs(5),
            request: Duration::from_secs(10),
            list: Duration::from_secs(60),
            silence: Duration::from_secs(25),
            pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
        }
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no broker to ask.
    #[error("no broker is named")]
    NoBroker,
    /// A broker's address cannot be used.
    #[error("the broker {0:?} is not https://HOST:PORT")]
    Broker(String),
    /// The certificate authority cannot be used.
    #[error("the broker's certificate authority cannot be used: {0}")]
    Authority(String),
    /// The client's own certificate cannot be made.
    #[error("no TLS certificate can be made of the cluster's key: {0}")]
    Certificate(String),
    /// The grant cannot be sent.
    #[error("the grant cannot be put into a header: {0}")]
    Grant(String),
}

/// A broker's address.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) name: ServerName<'static>,
}

impl Broker {
    pub(super) fn parse(text: &str) -> Result<Self, SetupError> {
        let bad = || SetupError::Broker(text.chars().take(80).collect());
        let (host, port) =
            text.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(bad)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            Some(_) => return Err(bad()),
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
        Ok(Self { host: host.to_owned(), port, name })
    }

    /// `HOST:PORT`, as the header `Host` has it.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub(super) fn unreachable(&self, why: impl Into<String>) -> Error {
        Error::Unreachable { broker: self.to_string(), why: why.into() }
    }

    pub(super) fn ended(&self, why: impl Into<String>) -> Error {
        Error::Ended { broker: self.to_string(), why: why.into() }
    }

    pub(super) fn protocol(&self, why: impl Into<String>) -> Error {
        Error::Protocol { broker: self.to_string(), why: why.into() }
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

pub(super) fn grant_header(grant: &Envelope) -> Result<HeaderValue, SetupError> {
    let json = serde_json::to_vec(grant).map_err(|why| SetupError::Grant(why.to_string()))?;
    HeaderValue::from_str(&STANDARD.encode(json)).map_err(|why| SetupError::Grant(why.to_string()))
}

/// A random number, for spreading load only; 0 if the system has none to give.
pub(super) fn random() -> u32 {
    getrandom::u32().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_addresses() {
        for good in ["https://broker.example:7443", "https://192.0.2.1:1", "https://[2001:db8::1]:7443"] {
            assert_eq!(Broker::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "http://a:1",
            "https://a",
            "https://a:0",
            "https://a:65536",
            "https://2001:db8::1:1",
            "https://[a]:1",
            "https://a b:1",
            "https://:1",
        ] {
            assert!(matches!(Broker::parse(bad), Err(SetupError::Broker(_))), "{bad}");
        }
    }
}
