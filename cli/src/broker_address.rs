//! Where a broker is: `HOST[:PORT]` as a person types it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The port of a broker unless another is named.
pub(crate) const DEFAULT_PORT: u16 = 7443;

/// A broker's host and port. Prints as the URL that agents use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokerAddress {
    /// Name or address.
    pub(crate) host: Host,
    /// TCP port, never 0.
    pub(crate) port: u16,
}

/// What stands in the broker's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A DNS name, in lower case.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "https://{name}:{}", self.port),
            Host::Address(IpAddr::V4(v4)) => write!(f, "https://{v4}:{}", self.port),
            Host::Address(IpAddr::V6(v6)) => write!(f, "https://[{v6}]:{}", self.port),
        }
    }
}

/// A text that is no broker address.
#[derive(Debug)]
pub(crate) struct NotBroker(String);

impl fmt::Display for NotBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a broker address: write HOST or HOST:PORT, such as broker.example.com, 192.0.2.10:7443 \
             or [2001:db8::10]:7443",
            self.0
        )
    }
}

impl std::error::Error for NotBroker {}

impl FromStr for BrokerAddress {
    type Err = NotBroker;
    fn from_str(text: &str) -> Result<Self, NotBroker> {
        let bad = || NotBroker(text.chars().take(80).collect());
        let bare = text.strip_prefix("https://").unwrap_or(text);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        // An IPv6 address without brackets is a host without a port: its colons are its own.
        if let Ok(v6) = bare.parse::<Ipv6Addr>() {
            return Self::new(Host::Address(v6.into()), DEFAULT_PORT).ok_or_else(bad);
        }
        if let Some(rest) = bare.strip_prefix('[') {
            let (v6, port) = rest.split_once(']').ok_or_else(bad)?;
            let v6: Ipv6Addr = v6.parse().map_err(|_| bad())?;
            let port = match port {
                "" => DEFAULT_PORT,
                port => port.strip_prefix(':').and_then(read_port).ok_or_else(bad)?,
            };
            return Self::new(Host::Address(v6.into()), port).ok_or_else(bad);
        }
        let (host, port) = match bare.split_once(':') {
            Some((host, port)) => (host, read_port(port).ok_or_else(bad)?),
            None => (bare, DEFAULT_PORT),
        };
        let host = match host.parse::<IpAddr>() {
            Ok(address) => Host::Address(address),
            Err(_) if is_dns_name(host) => Host::Name(host.to_ascii_lowercase()),
            Err(_) => return Err(bad()),
        };
        Self::new(host, port).ok_or_else(bad)
    }
}

impl BrokerAddress {
    /// None where nobody could ever connect.
    fn new(host: Host, port: u16) -> Option<Self> {
        let usable = match &host {
            Host::Address(address) => !address.is_unspecified() && !address.is_multicast(),
            Host::Name(_) => true,
        };
        (usable && port != 0).then_some(Self { host, port })
    }
}

fn read_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port != 0)
}

/// Whether it is a host name (RFC 1123 section 2.1) that no resolver takes for an address: the last label
/// has a letter.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(label) && last.bytes().any(|b| b.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_person_types() {
        for (text, url) in [
            ("broker.example.com", "https://broker.example.com:7443"),
            ("Broker.Example.COM:443", "https://broker.example.com:443"),
            ("https://broker.example.com:7443/", "https://broker.example.com:7443"),
            ("192.0.2.10", "https://192.0.2.10:7443"),
            ("192.0.2.10:8443", "https://192.0.2.10:8443"),
            ("2001:db8::10", "https://[2001:db8::10]:7443"),
            ("[2001:db8::10]", "https://[2001:db8::10]:7443"),
            ("[2001:0DB8::10]:8443", "https://[2001:db8::10]:8443"),
            ("localhost", "https://localhost:7443"),
        ] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), url);
            assert_eq!(url.parse::<BrokerAddress>().unwrap(), address);
        }
    }

    #[test]
    fn refuses_what_nobody_could_dial() {
        for text in [
            "",
            ":7443",
            "a:0",
            "a:65536",
            "a:+1",
            "a:",
            "a b",
            "a/b",
            "http://a",
            "-a",
            "a..b",
            "192.0.2",
            "192.0.2.300",
            "0.0.0.0",
            "[::]:7443",
            "[2001:db8::1",
            "[2001:db8::1]7443",
            "[192.0.2.1]:1",
            "224.0.0.1",
            "a_b",
        ] {
            assert!(text.parse::<BrokerAddress>().is_err(), "{text:?}");
        }
    }
}
