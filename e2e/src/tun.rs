//! TUN interfaces of the lab's own programs.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Makes the TUN `name`, non-blocking, without the header that says nothing but the protocol. Without more `flags` (`IFF_*`)
/// the kernel hands over what would be on the wire: cut to the sender's MTU, with checksums.
pub(crate) fn open(name: &str, flags: libc::c_int) -> Result<File> {
    let file =
        File::options().read(true).write(true).open("/dev/net/tun").context("cannot open /dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI | flags)?,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        bail!("{name} is too long for an interface");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the descriptor is open, and the request is a whole `ifreq` that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot make the TUN {name}"));
    }
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("cannot make the TUN non-blocking")?;
    Ok(file)
}
