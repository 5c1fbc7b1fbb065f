//! One connection to one broker.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::config::{Broker, Timing};
use super::error::chain;

/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 32 * 1024;

/// A connection; closed when dropped.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects: name lookup, TCP to one address after the other, TLS. The error is for a person.
    pub(super) async fn open(broker: &Broker, tls: &TlsConnector, timing: &Timing) -> Result<Self, String> {
        let addresses = timeout(timing.connect, tokio::net::lookup_host((broker.host.as_str(), broker.port)))
            .await
            .map_err(|_| format!("{} could not be looked up in time", broker.host))?
            .map_err(|why| format!("{} cannot be looked up: {why}", broker.host))?;
        let mut failures = Vec::new();
        let mut stream = None;
        for address in addresses {
            match timeout(timing.connect, TcpStream::connect(address)).await {
                Ok(Ok(connected)) => {
                    stream = Some(connected);
                    break;
                }
                Ok(Err(why)) => failures.push(format!("{address}: {why}")),
                Err(_) => failures.push(format!("{address}: no answer within {:?}", timing.connect)),
            }
        }
        let stream = stream.ok_or_else(|| match failures.len() {
            0 => format!("{} has no address", broker.host),
            _ => failures.join("; "),
        })?;
        // Small requests go out at once; a system without the option is as good.
        let _ = stream.set_nodelay(true);
        let stream = timeout(timing.handshake, tls.connect(broker.name.clone(), stream))
            .await
            .map_err(|_| format!("no TLS within {:?}", timing.handshake))?
            .map_err(|why| format!("TLS: {}", chain(&why)))?;
        let (sender, connection) = Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(64)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|why| chain(&why))?;
        let task = tokio::spawn(async move {
            // How it ends is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Self { sender, task })
    }

    /// Whether the connection, having been idle, still stands as far as is known.
    pub(super) async fn is_usable(&mut self) -> bool {
        !self.sender.is_closed() && self.sender.ready().await.is_ok()
    }

    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}
