//! Files that are written whole or not at all, and secrets that nobody else may read.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

/// Mode of a file that holds a secret.
pub(crate) const SECRET: u32 = 0o600;
/// Mode of a file that anybody may read.
pub(crate) const PUBLIC: u32 = 0o644;

/// The largest file that is read, in bytes; a cluster set of a thousand clusters stays far below.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// What to do where the file exists already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Leave it alone and fail.
    Refuse,
    /// Put the new one in its place.
    Replace,
}

/// A file's new contents, on disk beside its place: [`Prepared::commit`] is one rename away. Dropped
/// without it, nothing is left.
pub(crate) struct Prepared {
    temporary: NamedTempFile,
    path: PathBuf,
    existing: Existing,
}

/// Writes `contents` to a temporary file beside `path`, down to the disk.
pub(crate) fn prepare(path: &Path, contents: &[u8], mode: u32, existing: Existing) -> Result<Prepared> {
    let write = || -> std::io::Result<NamedTempFile> {
        let mut temporary = tempfile::Builder::new()
            .prefix(".podspan-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(parent(path))?;
        temporary.write_all(contents)?;
        // The mode above passed through the umask.
        temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
        temporary.as_file().sync_all()?;
        Ok(temporary)
    };
    let temporary = write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Prepared { temporary, path: path.to_owned(), existing })
}

impl Prepared {
    /// Puts the file in its place.
    pub(crate) fn commit(self) -> Result<()> {
        let Self { temporary, path, existing } = self;
        match existing {
            Existing::Refuse => temporary.persist_noclobber(&path).map(drop),
            Existing::Replace => temporary.persist(&path).map(drop),
        }
        .map_err(|e| e.error)
        .with_context(|| format!("cannot write {}", path.display()))?;
        sync_directory(parent(&path))
    }
}

/// Writes a file whole: it has the old contents or the new ones, even if the power fails.
pub(crate) fn write(path: &Path, contents: &[u8], mode: u32, existing: Existing) -> Result<()> {
    prepare(path, contents, mode, existing)?.commit()
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync the directory {}", directory.display()))
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Reads a text file of bounded size.
pub(crate) fn read(path: &Path) -> Result<String> {
    let bytes = read_bytes(path, false)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => bail!("{} is not a text file", path.display()),
    }
}

/// Reads a file that must be readable by its owner alone.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_bytes(path, true)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => bail!("{} is not a text file", path.display()),
    }
}

fn read_bytes(path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let about = file.metadata().with_context(|| format!("cannot read {name}"))?;
    if !about.is_file() {
        bail!("{name} is not a file");
    }
    if secret && about.mode() & 0o077 != 0 {
        bail!(
            "{name} holds a secret and others may read it (its mode is {:04o}): run `chmod 600 {name}`, and \
             think of who may have read it so far",
            about.mode() & 0o7777
        );
    }
    if about.len() > MAX_FILE {
        bail!("{name} has {} bytes: it is not a file of podspan's", about.len());
    }
    // Room for all of it at once, so that no copy of a secret stays behind when the buffer grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(about.len())? + 1));
    file.take(MAX_FILE).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    Ok(bytes)
}

/// Keeps other `podspan` commands out of a directory for as long as it lives.
pub(crate) struct DirectoryLock {
    _held: File,
}

/// Waits up to 10 s for the lock of `directory`.
pub(crate) fn lock(directory: &Path) -> Result<DirectoryLock> {
    let name = directory.display();
    let held = File::open(directory).with_context(|| format!("cannot open the directory {name}"))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match held.try_lock() {
            Ok(()) => return Ok(DirectoryLock { _held: held }),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                bail!("another podspan command is at work in {name}: wait for it to end, then try again")
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock the directory {name}"));
            }
        }
    }
}

/// Makes a directory with this mode, whatever the umask.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make the directory {}", path.display()))
}
