//! TUN queues (Linux `Documentation/networking/tuntap.rst`).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::offload::{Merge, VNET_HEADER, VnetHeader};
use crate::settings::Offload;

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
    /// A queue that was handed over is of another interface.
    #[error("the queue that was handed over is of the TUN interface {found}, not of {name}")]
    OtherQueue {
        /// The interface that is wanted.
        name: String,
        /// The one it is of.
        found: String,
    },
    /// Anything else.
    #[error("cannot attach to the TUN interface {name}: {error}")]
    Attach {
        /// The interface.
        name: String,
        /// The system's word for it.
        error: io::Error,
    },
}

/// One queue of a multi-queue TUN interface, non-blocking. A packet is one read or one write; with offloads
/// it may stand for many, as its [`VnetHeader`] says.
#[derive(Debug)]
pub struct Queue {
    file: File,
    /// Whether a `virtio_net_hdr` stands before each packet.
    vnet: bool,
    merge: Merge,
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
    nix::ioctl_read_bad!(
        features,
        nix::request_code_read!(b'T', 207, size_of::<libc::c_uint>()),
        libc::c_uint
    );
    nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_read_bad!(get_iff, nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()), libc::ifreq);
    nix::ioctl_write_ptr_bad!(
        set_vnet_header,
        nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
        libc::c_int
    );
}

/// `TUN_F_*` of `linux/if_tun.h`.
const CHECKSUM: u32 = 0x01;
const TSO: u32 = 0x02 | 0x04;
const TSO_ECN: u32 = 0x08;
const USO: u32 = 0x20 | 0x40;

impl Queue {
    /// Attaches one more queue to the TUN interface `name`, making the interface if there is none. With
    /// `persist` it outlives the process; without, it goes with the last queue, even if it was persistent
    /// before. Of `offload` it takes what the kernel has; an interface that has queues already keeps the
    /// mode that they were attached with.
    ///
    /// # Errors
    /// If the name cannot be, is something else's, or the system refuses.
    pub fn attach(name: &str, persist: bool, offload: Offload) -> Result<Self, TunError> {
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
        let mut features = 0;
        // SAFETY: the descriptor is open and of /dev/net/tun; the kernel writes one number.
        let known = unsafe { ioctl::features(file.as_raw_fd(), &raw mut features) };
        let wanted = offload.tso || offload.uso;
        let vnet = wanted && known.is_ok() && features & libc::IFF_VNET_HDR as libc::c_uint != 0;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
        let flags = flags | if vnet { libc::IFF_VNET_HDR } else { 0 };
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the descriptor is open and of /dev/net/tun; the kernel reads and writes one `ifreq`,
        // whose name is terminated (it is at most 15 of 16 bytes) and which outlives the call.
        let attached = unsafe { ioctl::set_iff(file.as_raw_fd(), &raw mut request) };
        attached.map_err(|error| explain(name, error))?;
        // SAFETY: the descriptor is an attached TUN queue; the argument is a number, not a pointer.
        let persisted = unsafe { ioctl::set_persist(file.as_raw_fd(), i32::from(persist)) };
        persisted.map_err(|error| TunError::Attach { name: name.to_owned(), error: error.into() })?;
        let mut queue = Self { file, vnet: false, merge: Merge { tcp: false, udp: false } };
        queue.set_mode(name, offload)?;
        Ok(queue)
    }

    /// Takes over a queue of the TUN interface `name` that another process has attached and may still use.
    /// Whether the interface is persistent stays as it is.
    ///
    /// # Errors
    /// If it is a queue of another interface, or the system refuses.
    pub fn adopt(fd: OwnedFd, name: &str, offload: Offload) -> Result<Self, TunError> {
        let file = File::from(fd);
        // SAFETY: `ifreq` is plain old data; all zeros is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one `ifreq`; on anything but a TUN queue it refuses.
        let known = unsafe { ioctl::get_iff(file.as_raw_fd(), &raw mut request) };
        known.map_err(|error| TunError::Attach { name: name.to_owned(), error: error.into() })?;
        let found: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
        if found != name.as_bytes() {
            return Err(TunError::OtherQueue {
                name: name.to_owned(),
                found: String::from_utf8_lossy(&found).into_owned(),
            });
        }
        let mut queue = Self { file, vnet: false, merge: Merge { tcp: false, udp: false } };
        queue.set_mode(name, offload)?;
        Ok(queue)
    }

    /// Finds out the mode of the interface, and sets what it offers to the kernel. The first queue of an
    /// interface, a persistent one too, sets its mode; further ones find it set.
    fn set_mode(&mut self, name: &str, offload: Offload) -> Result<(), TunError> {
        let failed = |error: nix::Error| TunError::Attach { name: name.to_owned(), error: error.into() };
        // SAFETY: `ifreq` is plain old data; all zeros is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is an attached TUN queue; the kernel writes one `ifreq`.
        unsafe { ioctl::get_iff(self.file.as_raw_fd(), &raw mut request) }.map_err(failed)?;
        // SAFETY: the kernel has filled in the flags, and any bits are a number.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & libc::IFF_NO_PI == 0 {
            return Err(TunError::OtherFlags { name: name.to_owned(), flags: flags as u16 as u32 });
        }
        self.vnet = flags & libc::IFF_VNET_HDR != 0;
        if self.vnet {
            // Another program may have made it longer on a persistent interface.
            let length = VNET_HEADER as libc::c_int;
            // SAFETY: the descriptor is an attached TUN queue; the kernel reads one number.
            unsafe { ioctl::set_vnet_header(self.file.as_raw_fd(), &raw const length) }.map_err(failed)?;
        }
        // From what is wanted to nothing: what was offered by an earlier process is still so, and must be
        // taken back where packets have no header to tell of it.
        let tso = if self.vnet && offload.tso { TSO | TSO_ECN } else { 0 };
        let uso = if self.vnet && offload.uso { USO } else { 0 };
        for bits in [tso | uso, tso, 0] {
            let bits = bits | if bits == 0 { 0 } else { CHECKSUM };
            // SAFETY: the descriptor is an attached TUN queue; the argument is a number, not a pointer.
            match unsafe { ioctl::set_offload(self.file.as_raw_fd(), bits as libc::c_int) } {
                Ok(_) => {
                    self.merge = Merge { tcp: bits & TSO != 0, udp: bits & USO != 0 };
                    return Ok(());
                }
                Err(nix::Error::EINVAL) if bits != 0 => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// What may be written merged, and comes so.
    #[must_use]
    pub fn merges(&self) -> Merge {
        self.merge
    }

    /// Reads one packet into `buffer`: where in it the packet lies, and what the kernel says of it; `None` if
    /// that makes no sense.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `EIO` while the interface is down; `EBADFD` when it was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<(Range<usize>, Option<VnetHeader>)> {
        let length = (&self.file).read(buffer)?;
        if !self.vnet {
            return Ok((0..length, Some(VnetHeader::default())));
        }
        // One read instead of a vectored one, which costs more than the packet's odd place in memory.
        let header = buffer[..length.min(buffer.len())].first_chunk().and_then(VnetHeader::decode);
        Ok((VNET_HEADER.min(length)..length, header))
    }

    /// Writes one packet, given in pieces. The first [`VNET_HEADER`] bytes of the first piece are its
    /// [`VnetHeader`], encoded. An interface without offloads does not get to see that, so it must be the
    /// default's.
    ///
    /// # Errors
    /// `EIO` while the interface is down; `EBADFD` when it was deleted; `EINVAL` if it is no IP packet, or
    /// if the kernel does not know how to cut it.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut file = &self.file;
        match (pieces, self.vnet) {
            ([piece], true) => file.write(piece),
            ([piece], false) => file.write(piece.get(VNET_HEADER..).unwrap_or_default()),
            (_, true) => file.write_vectored(pieces),
            // Merged for an interface that has gone since.
            (_, false) => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }?;
        Ok(())
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
            assert!(matches!(Queue::attach(name, false, Offload::ALL), Err(TunError::Name(_))), "{name:?}");
        }
    }
}
