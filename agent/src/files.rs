//! Files that must survive a crash: written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest file of ours that is read, in bytes: a damaged one must not eat the memory.
const MAX_SIZE: u64 = 256 * 1024 * 1024;

/// Replaces `path` by `bytes` (mode 0600): temporary file, fsync, rename, fsync of the directory. After
/// a crash the file holds either the old or the new contents.
///
/// # Errors
/// Whatever the file system answers, with the path.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write(path, bytes, Durability::Disk)
}

/// What a file must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    /// A loss of power.
    Disk,
    /// A crash of the agent; after a loss of power it may be empty.
    Process,
}

fn write(path: &Path, bytes: &[u8], durability: Durability) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.tmp"));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        if durability == Durability::Disk {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)?;
        if durability == Durability::Disk {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    write()
        .inspect_err(|_| {
            // On a full disk half a file would only take the room that others need.
            let _ = fs::remove_file(&temporary);
        })
        .with_context(|| format!("cannot write {}", path.display()))
}

/// [`replace`] with the JSON of `value`.
///
/// # Errors
/// As [`replace`].
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    replace(path, &encode(path, value)?)
}

/// As [`replace_json`], for what need not outlive the host: the disk is not waited for. After a crash of
/// the agent the file holds either the old or the new value.
///
/// # Errors
/// As [`replace`].
pub fn replace_json_quickly<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    write(path, &encode(path, value)?, Durability::Process)
}

fn encode<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<Vec<u8>> {
    serde_json::to_vec(value).with_context(|| format!("cannot encode {}", path.display()))
}

/// The text of the file, or `None` if there is none.
///
/// # Errors
/// If it cannot be read, is not text or is larger than 256 MiB.
pub fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    if bytes.len() as u64 > MAX_SIZE {
        bail!("{} is larger than {MAX_SIZE} bytes", path.display());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            // It may have held a secret.
            drop(zeroize::Zeroizing::new(error.into_bytes()));
            bail!("{} is not text: byte {at} is not UTF-8", path.display())
        }
    }
}

/// The bytes of the file, or the first of them if it is larger than is read; `None` if there is none.
fn read_bytes(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    // Not to wait for a writer, should somebody have put a pipe there.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(bytes))
}

/// What a file of ours holds: the value; nothing; or damage, in which case the file was set aside under
/// the returned path.
pub enum Stored<T> {
    /// The value that was written last.
    Value(T),
    /// There is no such file.
    Absent,
    /// The file could not be understood. It was renamed, not deleted.
    Damaged {
        /// Where it lies now.
        aside: PathBuf,
        /// Why it could not be understood.
        why: String,
    },
}

/// Reads what [`replace_json`] wrote. A file that cannot be understood, whatever it holds, is set aside.
///
/// # Errors
/// If the file cannot be read or, being damaged, not be set aside.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Stored<T>> {
    let Some(bytes) = read_bytes(path)?.map(zeroize::Zeroizing::new) else { return Ok(Stored::Absent) };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Stored::Value(value)),
        Err(error) => {
            let aside = path.with_extension("damaged");
            fs::rename(path, &aside).with_context(|| format!("cannot set {} aside", path.display()))?;
            Ok(Stored::Damaged {
                aside,
                // The file may hold keys: only the place is told.
                why: format!("not what podspan wrote, at line {}, column {}", error.line(), error.column()),
            })
        }
    }
}

/// Reads a file that holds a secret; refuses one that others may read.
///
/// # Errors
/// If it is missing, cannot be read, or is accessible to group or others.
pub fn read_secret(path: &Path) -> anyhow::Result<zeroize::Zeroizing<String>> {
    let mode = fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?.mode();
    if mode & 0o077 != 0 {
        bail!(
            "{} holds a secret key but its mode is {:04o}: run `chmod 0600 {}`",
            path.display(),
            mode & 0o7777,
            path.display()
        );
    }
    let text = read(path)?.with_context(|| format!("{} is gone", path.display()))?;
    Ok(zeroize::Zeroizing::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn replaces_whole_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        replace_json(&path, &vec![1, 2]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(read_json::<Vec<u8>>(&path).unwrap(), Stored::Value(v) if v == [1, 2]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_set_aside_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, "{\"secret\": \"hunter2\"").unwrap();
        let Stored::Damaged { aside, why } = read_json::<Vec<u8>>(&path).unwrap() else { panic!() };
        assert!(aside.exists() && !path.exists());
        assert!(!why.contains("hunter2"));
    }

    #[test]
    fn damage_of_every_kind_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        for damage in [&b""[..], &[0; 4096], b"\xff\xfe\x80[1,2]", b"[1,2]\xff", b"[1,2", b"{}"] {
            fs::write(&path, damage).unwrap();
            assert!(
                matches!(read_json::<Vec<u8>>(&path).unwrap(), Stored::Damaged { .. }),
                "{}",
                String::from_utf8_lossy(damage)
            );
            assert!(matches!(read_json::<Vec<u8>>(&path).unwrap(), Stored::Absent));
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_and_no_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        // A directory cannot be replaced by a file.
        fs::create_dir(&path).unwrap();
        let error = format!("{:#}", replace_json(&path, &vec![1]).unwrap_err());
        assert!(error.contains("x.json"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn nobody_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(""));
    }

    #[test]
    fn open_secrets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 0600"), "{error}");
    }
}
