//! TUN queues (Linux `Documentation/networking/tuntap.rst`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

/// The longest name of an interface, bytes (`IFNAMSIZ` without its NUL).
pub const MAX_NAME: usize = 15;

/// Why a TUN queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// Not a name that Linux would take.
    #[error("{0:?} cannot be the name of an interface: use 1 to 15 bytes, no '/', no ':', no space, no '%'")]
    Name(String),
    /// There is no TUN driver.
    #[error("cannot open /dev/net/tun: {0}: load the `tun` module, and give the container the device")]
    Device(io::Error),
    /// CAP_NET_ADMIN is missing.
    #[error("not allowed to attach to the TUN interface {0}: CAP_NET_ADMIN is needed")]
    Denied(String),
    /// An interface of that name is something else.
    #[error(
        "the interface {0} exists, but is no TUN: delete it (`ip link delete {0}`) or give podspan another name"
    )]
    NotTun(String),
    /// A TUN of that name exists with other flags.
    #[error(
        "the TUN interface {name} exists with other flags ({flags:#x}; wanted is a multi-queue TUN without packet information): delete it (`ip link delete {name}`) or give podspan another name"
    )]
    OtherFlags {
        /// The interface.
        name: String,
        /// Its flags (`linux/if_tun.h`).
        flags: u32,
    },
    /// All queues of the interface are taken.
    #[error("the TUN interface {0} has no queue left: is another agent running?")]
    Busy(String),
    /// Anything else.
    #[error("cannot attach to the TUN interface {name}: {error}")]
    Attach {
        /// The interface.
        name: String,
        /// The system's word for it.
        error: io::Error,
    },
}

/// One queue of a multi-queue TUN interface, non-blocking. A packet is one read or one write, bare: no
/// packet information, no `virtio_net_hdr`. When offloads come, this type hides them.
#[derive(Debug)]
pub struct Queue {
    file: File,
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

mod ioctl {
    nix::ioctl_readwrite_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(set_persist, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));
}

impl Queue {
    /// Attaches one more queue to the TUN interface `name`, making the interface if there is none. With
    /// `persist` it outlives the process; without, it goes with the last queue, even if it was persistent
    /// before.
    ///
    /// # Errors
    /// If the name cannot be, is something else's, or the system refuses.
    pub fn attach(name: &str, persist: bool) -> Result<Self, TunError> {
        let bad = |b: u8| b == b'/' || b == b':' || b == b'%' || b.is_ascii_whitespace() || b == 0;
        if name.is_empty() || name.len() > MAX_NAME || name.bytes().any(bad) || name == "." || name == ".." {
            return Err(TunError::Name(name.chars().take(80).collect()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(TunError::Device)?;

        // SAFETY: `ifreq` is plain old data; all zeros is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as libc::c_short;
        // SAFETY: the descriptor is open and of /dev/net/tun; the kernel reads and writes one `ifreq`,
        // whose name is terminated (it is at most 15 of 16 bytes) and which outlives the call.
        let attached = unsafe { ioctl::set_iff(file.as_raw_fd(), &raw mut request) };
        attached.map_err(|error| explain(name, error))?;
        // SAFETY: the descriptor is an attached TUN queue; the argument is a number, not a pointer.
        let persisted = unsafe { ioctl::set_persist(file.as_raw_fd(), i32::from(persist)) };
        persisted.map_err(|error| TunError::Attach { name: name.to_owned(), error: error.into() })?;
        Ok(Self { file })
    }

    /// Reads one packet into `buffer`.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `EIO` while the interface is down; `EBADFD` when it was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// `EIO` while the interface is down; `EBADFD` when it was deleted; `EINVAL` if it is no IP packet.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(|_| ())
    }
}

/// Finds the words for a refused `TUNSETIFF`.
fn explain(name: &str, error: nix::Error) -> TunError {
    let name = name.to_owned();
    match error {
        nix::Error::EPERM => TunError::Denied(name),
        nix::Error::EBUSY | nix::Error::E2BIG => TunError::Busy(name),
        nix::Error::EINVAL => match std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")) {
            Ok(text) => {
                let flags = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or(0);
                TunError::OtherFlags { name, flags }
            }
            Err(_) => TunError::NotTun(name),
        },
        error => TunError::Attach { name, error: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_names_are_refused_before_the_kernel_sees_them() {
        for name in ["", "a/b", "a b", "podspan%d", "0123456789abcdef", "..", "a\0b"] {
            assert!(matches!(Queue::attach(name, false), Err(TunError::Name(_))), "{name:?}");
        }
    }
}
