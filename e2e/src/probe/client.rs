//! The probe client: runs the jobs that it reads, many at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use super::pattern::Pattern;
use super::server::{check_pattern, send_pattern};
use super::{Job, Outcome, Task, stream};

/// How many jobs run at a time.
const PARALLEL: usize = 8;

/// Reads jobs, runs them, writes their outcomes in the same order.
pub(crate) fn run_client() -> Result<()> {
    let jobs: Vec<Job> = serde_json::from_reader(std::io::stdin()).context("cannot read the jobs")?;
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![Outcome::default(); jobs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(jobs.len()) {
            scope.spawn(|| {
                while let Some((i, job)) = take(&next, &jobs) {
                    let outcome = run(job);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes[i] = outcome;
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    serde_json::to_writer(std::io::stdout(), &outcomes)?;
    Ok(())
}

fn take<'a>(next: &AtomicUsize, jobs: &'a [Job]) -> Option<(usize, &'a Job)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    jobs.get(i).map(|job| (i, job))
}

fn run(job: &Job) -> Outcome {
    let mut outcome = Outcome { id: job.id.clone(), ..Outcome::default() };
    let begin = Instant::now();
    let result = match job.task {
        Task::Tcp { bytes } => tcp(job, bytes, &mut outcome),
        Task::Udp { bytes } => udp(job, bytes, &mut outcome),
        Task::Upload { bytes } => upload(job, bytes, &mut outcome),
        Task::Download { bytes } => download(job, bytes, &mut outcome),
        Task::Latency { count } => latency(job, count, &mut outcome),
        Task::Flood { millis } => flood(job, millis, &mut outcome),
        Task::TcpStream { millis, interval_ms } => stream::tcp(job, millis, interval_ms, &mut outcome),
        Task::UdpStream { millis, interval_ms } => stream::udp(job, millis, interval_ms, &mut outcome),
    };
    if outcome.micros == 0 {
        outcome.micros = micros(begin.elapsed());
    }
    outcome.error = result.err().map(|error| format!("{error:#}"));
    outcome
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn timeout(job: &Job) -> Duration {
    Duration::from_millis(job.timeout_ms.max(1))
}

fn seed(job: &Job) -> u64 {
    job.id.bytes().fold(u64::from(job.target.port()), |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()))
}

/// Connects and sends the request line; gives the connection after the server's `ADDRESS PORT`.
pub(super) fn connect(job: &Job, request: &str, outcome: &mut Outcome) -> Result<BufReader<TcpStream>> {
    let timeout = timeout(job);
    let socket = Socket::new(Domain::for_address(job.target), Type::STREAM, Some(Protocol::TCP))?;
    socket.connect_timeout(&job.target.into(), timeout).context("connect")?;
    let stream: TcpStream = socket.into();
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    writeln!(&stream, "{request}").context("request")?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let mut line = String::new();
    reader.by_ref().take(128).read_line(&mut line).context("answer")?;
    outcome.seen_as = Some(seen_as(&line)?);
    Ok(reader)
}

/// The address in a line `ADDRESS PORT`.
fn seen_as(line: &str) -> Result<IpAddr> {
    let address = line.split(' ').next().and_then(|word| word.parse().ok());
    address.with_context(|| format!("the answer does not start with an address: {line:?}"))
}

fn payload(job: &Job, bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; bytes];
    Pattern::new(seed(job)).fill(&mut payload);
    payload
}

fn tcp(job: &Job, bytes: usize, outcome: &mut Outcome) -> Result<()> {
    let mut connection = connect(job, "echo", outcome)?;
    let payload = payload(job, bytes);
    let begin = Instant::now();
    connection.get_ref().write_all(&payload).context("send")?;
    let mut echoed = vec![0; bytes];
    connection.read_exact(&mut echoed).with_context(|| format!("echo of {bytes} bytes"))?;
    outcome.rtt_min_us = Some(micros(begin.elapsed()));
    if echoed != payload {
        bail!("what came back is not what was sent");
    }
    outcome.bytes = bytes as u64;
    Ok(())
}

/// A connected UDP socket.
pub(super) fn udp_socket(job: &Job) -> Result<UdpSocket> {
    let any: IpAddr = match job.target {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(job.target).context("connect")?;
    Ok(socket)
}

/// Splits an answer into the address and the payload.
pub(super) fn datagram(answer: &[u8]) -> Result<(IpAddr, &[u8])> {
    let end = answer.iter().position(|&b| b == b'\n').context("the answer has no first line")?;
    let line = std::str::from_utf8(&answer[..end]).context("the answer's first line is no text")?;
    Ok((seen_as(line)?, &answer[end + 1..]))
}

fn udp(job: &Job, bytes: usize, outcome: &mut Outcome) -> Result<()> {
    let socket = udp_socket(job)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let payload = payload(job, bytes);
    let mut buffer = vec![0; 65_536];
    let end = Instant::now() + timeout(job);
    loop {
        let begin = Instant::now();
        let result = socket.send(&payload).and_then(|_| socket.recv(&mut buffer));
        match result {
            Ok(length) => {
                let (seen_as, echoed) = datagram(&buffer[..length])?;
                if echoed != payload {
                    bail!("what came back is not what was sent");
                }
                outcome.seen_as = Some(seen_as);
                outcome.rtt_min_us = Some(micros(begin.elapsed()));
                outcome.bytes = bytes as u64;
                return Ok(());
            }
            Err(error) if Instant::now() >= end => return Err(error).context("no echo"),
            // Nothing yet, or an ICMP answer to an earlier datagram.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn upload(job: &Job, bytes: u64, outcome: &mut Outcome) -> Result<()> {
    let seed = seed(job);
    let mut connection = connect(job, &format!("upload {bytes} {seed}"), outcome)?;
    let begin = Instant::now();
    send_pattern(connection.get_ref(), bytes, seed)?;
    let mut answer = String::new();
    connection.read_line(&mut answer).context("the server's word on the upload")?;
    if answer.trim() != "ok" {
        bail!("the server found the data changed: {}", answer.trim());
    }
    outcome.micros = micros(begin.elapsed());
    outcome.bytes = bytes;
    Ok(())
}

fn download(job: &Job, bytes: u64, outcome: &mut Outcome) -> Result<()> {
    let seed = seed(job);
    let mut connection = connect(job, &format!("download {bytes} {seed}"), outcome)?;
    let begin = Instant::now();
    if let Err(offset) = check_pattern(&mut connection, bytes, seed)? {
        bail!("byte {offset} of the download is not what was sent");
    }
    outcome.micros = micros(begin.elapsed());
    outcome.bytes = bytes;
    Ok(())
}

fn latency(job: &Job, count: usize, outcome: &mut Outcome) -> Result<()> {
    let mut connection = connect(job, "echo", outcome)?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        connection.get_ref().write_all(b"x")?;
        connection.read_exact(&mut [0])?;
        times.push(micros(begin.elapsed()));
    }
    outcome.rtt_min_us = times.iter().min().copied();
    outcome.rtt_mean_us = (!times.is_empty()).then(|| times.iter().sum::<u64>() / times.len() as u64);
    Ok(())
}

fn flood(job: &Job, millis: u64, outcome: &mut Outcome) -> Result<()> {
    let mut connection = connect(job, &format!("flood {millis}"), outcome)?;
    let begin = Instant::now();
    loop {
        let length = connection.fill_buf().context("flood")?.len();
        if length == 0 {
            break;
        }
        connection.consume(length);
        outcome.bytes += length as u64;
    }
    outcome.micros = micros(begin.elapsed());
    Ok(())
}
