//! `lab resolve`: asks one DNS server for the addresses of a name (RFC 1035, RFC 3596), from within a pod that has
//! nothing but this program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Record types: an IPv4 address, an IPv6 address.
const A: u16 = 1;
const AAAA: u16 = 28;

/// How long the server may take in all.
const TIME: Duration = Duration::from_secs(5);

/// Prints the addresses, each on a line, sorted.
pub(crate) fn run(server: IpAddr, name: &str) -> Result<()> {
    let mut found = Vec::new();
    for kind in [A, AAAA] {
        found.extend(ask(server, name, kind).with_context(|| format!("{server} on {name}"))?);
    }
    found.sort();
    for address in found {
        println!("{address}");
    }
    Ok(())
}

fn ask(server: IpAddr, name: &str, kind: u16) -> Result<Vec<IpAddr>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(SocketAddr::new(server, 53))?;
    socket.set_read_timeout(Some(Duration::from_millis(1000)))?;
    let question = question(name, kind);
    let end = Instant::now() + TIME;
    let mut buffer = [0; 4096];
    loop {
        socket.send(&question).context("cannot ask")?;
        match socket.recv(&mut buffer) {
            Ok(length) => return addresses(&buffer[..length], kind),
            Err(error) if Instant::now() > end => return Err(error).context("no answer"),
            Err(_) => {}
        }
    }
}

/// A query with one question; recursion is not asked for.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0x70, 0x73, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(0));
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

/// The addresses among the answers of that type.
fn addresses(packet: &[u8], kind: u16) -> Result<Vec<IpAddr>> {
    let short = "the answer is cut short";
    let number = |at: usize| -> Result<u16> {
        let bytes = packet.get(at..at + 2).context(short)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let code = number(2)? & 0xf;
    if code != 0 {
        bail!("the server refuses: code {code}");
    }
    let (questions, answers) = (number(4)?, number(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(packet, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = after_name(packet, at)?;
        let (type_, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = packet.get(at + 10..at + 10 + length).context(short)?;
        if type_ == kind {
            let address = match kind {
                A => <[u8; 4]>::try_from(data).map(IpAddr::from),
                _ => <[u8; 16]>::try_from(data).map(IpAddr::from),
            };
            found.push(address.context("an address of a wrong length")?);
        }
        at += 10 + length;
    }
    Ok(found)
}

/// Where a name that begins at `at` ends: after a zero label, or a pointer of two bytes.
fn after_name(packet: &[u8], mut at: usize) -> Result<usize> {
    loop {
        let length = *packet.get(at).context("the answer is cut short")?;
        match length {
            0 => return Ok(at + 1),
            pointer if pointer >= 0xc0 => return Ok(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let mut packet = question("a.b", A);
        packet[2] = 0x84;
        packet[7] = 2;
        // Twice a pointer to the question's name, type A, class IN, 5 s, 4 bytes.
        for last in [7, 8] {
            packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 2, 0, last]);
        }
        let found = addresses(&packet, A).unwrap();
        assert_eq!(found, [IpAddr::from([10, 2, 0, 7]), IpAddr::from([10, 2, 0, 8])]);
        assert!(addresses(&packet, AAAA).unwrap().is_empty());
        assert!(addresses(&packet[..packet.len() - 1], A).is_err());
        packet[3] = 3;
        assert!(addresses(&packet, A).unwrap_err().to_string().contains("code 3"));
    }
}
