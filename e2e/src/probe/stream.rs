//! Traffic that goes on for a while, to see how long it is ever held up.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{connect, datagram, timeout, udp_socket};
use super::{Job, Outcome, StreamOutcome};

/// One connection; the next message follows the echo of the one before, so a gap is a stall of the
/// connection, retransmissions included.
pub(super) fn tcp(job: &Job, time: u64, interval: u64, outcome: &mut Outcome) -> Result<()> {
    let mut connection = connect(job, "echo", outcome)?;
    let mut stream = StreamOutcome::default();
    let end = Instant::now() + Duration::from_millis(time);
    let mut last = Instant::now();
    let result = loop {
        if Instant::now() >= end {
            break Ok(());
        }
        let message = stream.sent.to_be_bytes();
        let mut echoed = [0; 8];
        let exchange = connection.get_ref().write_all(&message).and_then(|()| {
            stream.sent += 1;
            connection.read_exact(&mut echoed)
        });
        stream.note_gap(last.elapsed());
        if let Err(error) = exchange {
            let (n, limit) = (stream.sent, timeout(job).as_secs_f64());
            break Err(error).with_context(|| format!("message {n} of the stream (limit {limit} s)"));
        }
        if echoed != message {
            break Err(anyhow::anyhow!("message {} came back changed", stream.sent));
        }
        stream.received += 1;
        last = Instant::now();
        std::thread::sleep(Duration::from_millis(interval));
    };
    outcome.stream = Some(stream);
    result
}

/// Numbered datagrams at a fixed rate; a gap is the longest time between two echoes.
pub(super) fn udp(job: &Job, time: u64, interval: u64, outcome: &mut Outcome) -> Result<()> {
    let socket = udp_socket(job)?;
    let interval = Duration::from_millis(interval.max(1));
    let begin = Instant::now();
    let end = begin + Duration::from_millis(time);
    let deadline = end + Duration::from_millis(500);
    let (mut stream, mut seen, mut highest) = (StreamOutcome::default(), HashSet::new(), None);
    let (mut last, mut next) = (begin, begin);
    let mut buffer = [0; 256];
    loop {
        let now = Instant::now();
        if now >= deadline || (now >= end && stream.received == stream.sent) {
            break;
        }
        if now < end && now >= next {
            // While a path is down the kernel may answer with an ICMP error: that is a lost datagram.
            socket.send(&stream.sent.to_be_bytes()).ok();
            stream.sent += 1;
            next += interval;
        }
        let wait = if now < end { next.saturating_duration_since(Instant::now()) } else { deadline - now };
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        let (seen_as, message) = datagram(&buffer[..length])?;
        outcome.seen_as = Some(seen_as);
        let number = u64::from_be_bytes(message.try_into().context("an echo of another length")?);
        stream.note_gap(last.elapsed());
        last = Instant::now();
        if seen.insert(number) {
            stream.received += 1;
        } else {
            stream.duplicated += 1;
        }
        if highest.is_some_and(|highest| number < highest) {
            stream.reordered += 1;
        }
        highest = highest.max(Some(number));
    }
    // Silence up to the end is a gap as well.
    stream.note_gap(end.saturating_duration_since(last));
    stream.lost_in_a_row = longest_run((0..stream.sent).map(|number| !seen.contains(&number)));
    outcome.stream = Some(stream);
    Ok(())
}

/// The most of `true` in a row.
fn longest_run(items: impl Iterator<Item = bool>) -> u64 {
    let mut run = 0;
    items
        .map(|item| {
            run = if item { run + 1 } else { 0 };
            run
        })
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_longest_run_is_found_wherever_it_is() {
        let run = |text: &str| super::longest_run(text.chars().map(|c| c == 'x'));
        assert_eq!([run(""), run("..."), run("xx.x"), run("x..xxx"), run(".xx.")], [0, 0, 2, 3, 2]);
    }
}
