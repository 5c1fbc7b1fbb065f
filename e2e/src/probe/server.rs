//! The probe server: TCP and UDP, IPv4 and IPv6, on one port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use super::ledger::{Message, Receiver};
use super::pattern::{Checker, Pattern};

/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(120);

/// How long a client's first line may be.
const MAX_LINE: u64 = 256;

/// Serves until it is ended. Messages of a ledger must be meant for the pod `name`, unless that is empty.
pub(crate) fn run_server(port: u16, name: &str) -> Result<()> {
    let address: SocketAddr = (Ipv6Addr::UNSPECIFIED, port).into();
    let udp: UdpSocket = socket(Type::DGRAM, Protocol::UDP, address)?.into();
    let listener = socket(Type::STREAM, Protocol::TCP, address)?;
    listener.listen(128)?;
    let listener: TcpListener = listener.into();
    let receiver = Arc::new(Receiver::new(name));
    let arrivals = receiver.clone();
    std::thread::spawn(move || serve_udp(&udp, &arrivals));
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                let receiver = receiver.clone();
                std::thread::spawn(move || {
                    if let Err(error) = serve(&stream, from, &receiver) {
                        eprintln!("{from}: {error:#}");
                    }
                });
            }
            Err(error) => {
                eprintln!("accept: {error}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A socket of both families.
fn socket(kind: Type, protocol: Protocol, address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot listen at {address}"))?;
    Ok(socket)
}

/// `ADDRESS PORT` and an end of line; IPv4 as IPv4.
fn seen(from: SocketAddr) -> String {
    format!("{} {}\n", from.ip().to_canonical(), from.port())
}

fn serve_udp(socket: &UdpSocket, receiver: &Receiver) {
    let mut buffer = vec![0; 65_536];
    // This thread only: what ledgers tell is the network's doing, not how busy the machine is.
    // SAFETY: setpriority takes numbers and touches no memory of ours.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    loop {
        // An error here is an ICMP answer to an earlier datagram, and of no concern to the next.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let datagram = &buffer[..length];
            let answer = if Message::is_one(datagram) {
                let Some(echo) = receiver.take(datagram) else { continue };
                echo
            } else {
                [seen(from).as_bytes(), datagram].concat()
            };
            if let Err(error) = socket.send_to(&answer, from) {
                eprintln!("{from}: udp: {error}");
            }
        }
    }
}

fn serve(stream: &TcpStream, from: SocketAddr, receiver: &Receiver) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let mut line = String::new();
    reader.by_ref().take(MAX_LINE).read_line(&mut line)?;
    let mut out = stream;
    out.write_all(seen(from).as_bytes())?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |i: usize| -> Result<u64> {
        words.get(i).and_then(|word| word.parse().ok()).with_context(|| format!("bad request {line:?}"))
    };
    match words.first().copied() {
        Some("echo") => echo(&mut reader, out),
        Some("upload") => upload(&mut reader, out, number(1)?, number(2)?),
        Some("download") => send_pattern(out, number(1)?, number(2)?).map(drop),
        Some("arrivals") => Ok(serde_json::to_writer(out, &receiver.look())?),
        Some("flood") => flood(out, Duration::from_millis(number(1)?)),
        _ => bail!("unknown request {line:?}"),
    }
}

fn echo(reader: &mut impl BufRead, mut out: &TcpStream) -> Result<()> {
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(());
        }
        let length = piece.len();
        out.write_all(piece)?;
        reader.consume(length);
    }
}

fn upload(reader: &mut impl BufRead, mut out: &TcpStream, bytes: u64, seed: u64) -> Result<()> {
    let answer = match check_pattern(reader, bytes, seed)? {
        Ok(()) => "ok\n".to_owned(),
        Err(offset) => format!("bad {offset}\n"),
    };
    out.write_all(answer.as_bytes())?;
    Ok(())
}

/// Reads so many bytes and compares them; the inner error is the offset of the first wrong one.
pub(super) fn check_pattern(reader: &mut impl BufRead, bytes: u64, seed: u64) -> Result<Result<(), u64>> {
    let mut checker = Checker::new(seed);
    let mut left = bytes;
    while left > 0 {
        let piece = reader.fill_buf().with_context(|| format!("{left} of {bytes} bytes are missing"))?;
        if piece.is_empty() {
            bail!("the connection was closed when {left} of {bytes} bytes were missing");
        }
        let length = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if let Err(offset) = checker.take(&piece[..length]) {
            return Ok(Err(offset));
        }
        reader.consume(length);
        left -= length as u64;
    }
    Ok(Ok(()))
}

/// Sends so many bytes of the pattern; gives their checksum.
pub(super) fn send_pattern(mut out: impl Write, bytes: u64, seed: u64) -> Result<u64> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        pattern.fill(&mut buffer[..length]);
        out.write_all(&buffer[..length]).with_context(|| format!("{left} of {bytes} bytes were not sent"))?;
        left -= length as u64;
    }
    Ok(pattern.sum())
}

fn flood(mut out: &TcpStream, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let buffer = vec![0x5a; 128 * 1024];
    while Instant::now() < end {
        out.write_all(&buffer)?;
    }
    Ok(())
}
