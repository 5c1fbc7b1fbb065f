//! WireGuard's cross-platform configuration protocol (<https://www.wireguard.com/xplatform/>), which wireguard-go,
//! boringtun and gotatun all speak: lines `key=value` on a unix socket, ended by an empty line.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::keys::hex;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The one peer, as it is to be.
#[derive(Clone, Debug)]
pub(crate) struct PeerSettings {
    pub(crate) public: [u8; 32],
    /// Where it is dialled; without one it must dial.
    pub(crate) endpoint: Option<SocketAddr>,
    /// CIDRs.
    pub(crate) allowed: Vec<String>,
    /// Seconds between keepalives.
    pub(crate) keepalive: Option<u16>,
}

/// The peer, as the program tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerState {
    pub(crate) endpoint: Option<SocketAddr>,
    /// When the last handshake was, since 1970; zero if there was none.
    pub(crate) handshake: Duration,
    /// Bytes received and sent.
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
}

/// What is sent to set up an interface with one peer, which replaces all others.
fn settings(secret: &[u8; 32], port: u16, peer: &PeerSettings) -> String {
    let mut text = format!(
        "set=1\nprivate_key={}\nlisten_port={port}\nreplace_peers=true\npublic_key={}\n",
        hex(secret),
        hex(&peer.public)
    );
    if let Some(endpoint) = peer.endpoint {
        text.push_str(&format!("endpoint={endpoint}\n"));
    }
    if let Some(keepalive) = peer.keepalive {
        text.push_str(&format!("persistent_keepalive_interval={keepalive}\n"));
    }
    text.push_str("replace_allowed_ips=true\n");
    for cidr in &peer.allowed {
        text.push_str(&format!("allowed_ip={cidr}\n"));
    }
    text.push('\n');
    text
}

/// Sets up an interface.
pub(super) fn set(socket: &Path, secret: &[u8; 32], port: u16, peer: &PeerSettings) -> Result<()> {
    ask(socket, &settings(secret, port, peer)).map(drop)
}

/// Moves an interface to another UDP port.
pub(super) fn set_port(socket: &Path, port: u16) -> Result<()> {
    ask(socket, &format!("set=1\nlisten_port={port}\n\n")).map(drop)
}

/// The state of the one peer.
pub(super) fn peer(socket: &Path) -> Result<PeerState> {
    read_peer(&ask(socket, "get=1\n\n")?)
}

fn read_peer(lines: &[String]) -> Result<PeerState> {
    let mut state = PeerState::default();
    for (key, value) in lines.iter().filter_map(|line| line.split_once('=')) {
        let number = || value.parse::<u64>().with_context(|| format!("{key}={value} is no number"));
        match key {
            "endpoint" => {
                let endpoint = value.parse().with_context(|| format!("{key}={value} is no endpoint"))?;
                state.endpoint = Some(endpoint);
            }
            "last_handshake_time_sec" => state.handshake += Duration::from_secs(number()?),
            "last_handshake_time_nsec" => state.handshake += Duration::from_nanos(number()?),
            "rx_bytes" => state.rx_bytes = number()?,
            "tx_bytes" => state.tx_bytes = number()?,
            _ => {}
        }
    }
    Ok(state)
}

/// Sends a request and gives the lines of the answer.
fn ask(socket: &Path, request: &str) -> Result<Vec<String>> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("nobody answers at the socket {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes()).context("the configuration cannot be sent")?;
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.context("the answer to the configuration does not come")?;
        // gotatun's answer ends with its errno, the others' with an empty line after it.
        if line.is_empty() {
            break;
        }
        if let Some(errno) = line.strip_prefix("errno=") {
            if errno != "0" {
                bail!("the configuration is refused with errno {errno}");
            }
            break;
        }
        lines.push(line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_lines_of_the_protocol() {
        let peer = PeerSettings {
            public: [0xab; 32],
            endpoint: Some("192.0.2.2:51840".parse().unwrap()),
            allowed: vec!["10.202.0.0/24".into(), "fd00::/64".into()],
            keepalive: Some(5),
        };
        let text = settings(&[1; 32], 7, &peer);
        assert!(text.starts_with("set=1\nprivate_key=0101") && text.ends_with("allowed_ip=fd00::/64\n\n"));
        assert!(text.contains("\nlisten_port=7\n") && text.contains("\nendpoint=192.0.2.2:51840\n"));
        assert!(text.contains(&format!("public_key={}\n", "ab".repeat(32))));
    }

    #[test]
    fn a_peers_state_is_read() {
        let lines = ["private_key=00", "endpoint=192.0.2.9:5", "last_handshake_time_sec=3", "rx_bytes=7"];
        let state = read_peer(&lines.map(String::from)).unwrap();
        assert_eq!((state.endpoint.unwrap().port(), state.handshake.as_secs(), state.rx_bytes), (5, 3, 7));
        assert!(read_peer(&["rx_bytes=x".to_owned()]).is_err());
    }
}
