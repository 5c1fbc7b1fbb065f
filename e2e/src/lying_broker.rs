//! A broker that lies: it has the real one's certificate, says yes to everything, and streams whatever it is
//! told to. It stands in for a broker that was taken over.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use podspan_wire::SignedRecord;
use podspan_wire::api::{Entry, Lease, List, PutAnswer, RenewAnswer, Token, WatchEvent};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde::{Deserialize, Serialize};

/// How long a lying broker lets its clients wait for the next bookmark.
const BOOKMARKS: Duration = Duration::from_secs(3);

const LEASE_SECONDS: u64 = 30;

/// What it streams, in this order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Lies {
    pub(crate) records: Vec<SignedRecord>,
    /// Lines that are sent as they are, before the records.
    pub(crate) lines: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LyingBroker {
    /// TCP port
    #[arg(long)]
    port: u16,
    /// Certificate, PEM
    #[arg(long)]
    certificate: PathBuf,
    /// Its key, PEM
    #[arg(long)]
    private_key: PathBuf,
    /// What to stream, JSON
    #[arg(long)]
    lies: PathBuf,
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// Serves until it is ended.
pub(crate) fn run(args: &LyingBroker) -> Result<()> {
    let certificates = CertificateDer::pem_file_iter(&args.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("{} is no certificate", args.certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(&args.private_key)
        .with_context(|| format!("{} is no private key", args.private_key.display()))?;
    let config = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?);
    let lies: Arc<Lies> = Arc::new(serde_json::from_slice(&std::fs::read(&args.lies)?)?);
    let listener = TcpListener::bind(("::", args.port))?;
    for stream in listener.incoming() {
        let (config, lies) = (config.clone(), lies.clone());
        let stream = stream?;
        std::thread::spawn(move || {
            if let Err(error) = serve(stream, config, &lies) {
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, lies: &Lies) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let (mut length, mut first, mut line) = (0, String::new(), String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            bail!("closed before the end of the request");
        }
        let header = line.trim().to_ascii_lowercase();
        if first.is_empty() {
            first = line.trim().to_owned();
        } else if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().context("content-length")?;
        } else if header.is_empty() {
            break;
        }
    }
    reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
    let tls = reader.get_mut();
    eprintln!("{first}");
    if first.starts_with("GET /v1/watch") {
        return watch(tls, lies);
    }
    if first.starts_with("GET ") {
        return answer(tls, &List { token: token(0), entries: entries(lies) });
    }
    if first.contains("/renew ") {
        return answer(tls, &RenewAnswer { lease_seconds: LEASE_SECONDS });
    }
    answer(tls, &PutAnswer { revision: 1, lease_seconds: LEASE_SECONDS })
}

/// The same store for all time.
fn token(revision: u64) -> Token {
    Token { store: "1e".into(), revision }
}

fn entries(lies: &Lies) -> Vec<Entry> {
    let entry = |(revision, signed): (u64, &SignedRecord)| Entry {
        revision,
        lease: Lease::Fresh,
        signed: signed.clone(),
    };
    (1..).zip(&lies.records).map(entry).collect()
}

fn answer(tls: &mut Tls, body: &impl Serialize) -> Result<()> {
    let body = serde_json::to_string(body)?;
    let length = body.len();
    write!(
        tls,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    tls.conn.send_close_notify();
    Ok(tls.flush()?)
}

fn watch(tls: &mut Tls, lies: &Lies) -> Result<()> {
    write!(tls, "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n")?;
    send(tls, &serde_json::to_string(&WatchEvent::Reset)?)?;
    for line in &lies.lines {
        send(tls, line)?;
    }
    for entry in entries(lies) {
        send(tls, &serde_json::to_string(&WatchEvent::Entry(entry))?)?;
    }
    let bookmark = WatchEvent::Bookmark { token: token(lies.records.len() as u64) };
    loop {
        send(tls, &serde_json::to_string(&bookmark)?)?;
        std::thread::sleep(BOOKMARKS);
    }
}

fn send(tls: &mut Tls, line: &str) -> Result<()> {
    writeln!(tls, "{line}")?;
    Ok(tls.flush()?)
}
