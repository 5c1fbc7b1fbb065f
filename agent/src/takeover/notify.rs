//! Tells a service manager that the agent runs, and by which process (sd_notify(3)): a service whose agent was
//! followed by another one is that one's from then on.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// Where the service manager listens.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Says that this process is the service's, and ready; nothing where no service manager wants to know.
pub fn running() {
    let Some(socket) = std::env::var_os(VARIABLE) else { return };
    if let Err(error) = say(&socket, &format!("MAINPID={}\nREADY=1\n", std::process::id())) {
        warn!(%error, "the service manager cannot be told that the agent runs");
    }
}

fn say(socket: &OsStr, what: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        // An abstract name.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sent = UnixDatagram::unbound()?.send_to_addr(what.as_bytes(), &address)?;
    if sent == what.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("podspan-test-{}", std::process::id());
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (socket, name) in sockets {
            say(&name, "READY=1\n").unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\n");
        }
        assert!(say(OsStr::new("/nowhere"), "READY=1\n").is_err());
    }
}
