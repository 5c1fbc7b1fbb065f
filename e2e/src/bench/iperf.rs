//! TCP by iperf3.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::Cmd;
use crate::kube::Site;
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::signals;

/// How long the server may still be at work on an earlier run whose client has given up.
const BUSY: Duration = Duration::from_secs(10);

/// What of iperf3's document is looked at.
#[derive(Deserialize)]
struct Document {
    end: Option<End>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct End {
    sum_received: Option<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    bytes: f64,
    seconds: f64,
}

/// What came through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stream {
    /// Bytes of payload.
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
}

impl Stream {
    pub(crate) fn gbit(self) -> f64 {
        self.bytes * 8.0 / self.seconds / 1e9
    }
}

/// Starts the server in a namespace; it serves any number of runs, one after the other.
pub(crate) fn serve(site: &mut Site, netns: &Netns) -> Result<ProcessId> {
    site.start(&format!("iperf3 {netns}"), &Cmd::new("iperf3").arg("--server").same_session().within(netns))
}

/// One run from `client` to the server at `to`; in reverse the server sends.
pub(crate) fn run(client: &Netns, to: Ipv4Addr, streams: u8, reverse: bool, seconds: u32) -> Result<Stream> {
    let mut cmd = Cmd::new("iperf3")
        .args(["--json", "--client", &to.to_string()])
        .args(["--parallel", &streams.to_string(), "--time", &seconds.to_string()])
        .args(["--connect-timeout", "5000"])
        .within(client)
        .timeout(Duration::from_secs(u64::from(seconds) + 15));
    if reverse {
        cmd = cmd.arg("--reverse");
    }
    let give_up = Instant::now() + BUSY;
    loop {
        let answer = cmd.run()?.stdout_text();
        match read(&answer) {
            Err(error) if format!("{error:#}").contains("busy") && Instant::now() < give_up => {
                signals::sleep(Duration::from_millis(100))?;
            }
            result => return result.with_context(|| cmd.line()),
        }
    }
}

fn read(text: &str) -> Result<Stream> {
    let document: Document = serde_json::from_str(text).context("iperf3 wrote no document")?;
    if let Some(error) = document.error {
        bail!("iperf3: {error}");
    }
    let sum = document.end.and_then(|end| end.sum_received).context("iperf3 received nothing")?;
    if sum.bytes <= 0.0 || sum.seconds <= 0.0 {
        bail!("iperf3 received {} bytes in {} s", sum.bytes, sum.seconds);
    }
    Ok(Stream { bytes: sum.bytes, seconds: sum.seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read() {
        let text = r#"{"start":{},"end":{"sum_sent":{"bytes":9},"sum_received":{"bytes":1000000000,"seconds":2.0,"x":1}}}"#;
        assert_eq!(read(text).unwrap().gbit(), 4.0);
        let error = read(r#"{"start":{},"end":{},"error":"unable to connect"}"#).unwrap_err().to_string();
        assert!(error.contains("unable to connect"), "{error}");
        assert!(read("").is_err() && read(r#"{"end":{}}"#).is_err());
    }
}
