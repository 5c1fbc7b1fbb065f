//! The configuration directory: listed, and changed step by step.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use anyhow::{Context as _, bail};

use super::plan::{self, DROP_IN, ENDINGS, Listing, Step};

/// Configurations are a few KiB; more than this is not read.
const MAX_SIZE: u64 = 1024 * 1024;
/// How many files are looked at.
const MAX_FILES: usize = 1000;
/// Not one of the endings that runtimes look for.
const TEMPORARY: &str = ".podspan.tmp";

/// Reads the directory. One that is not there has no files.
///
/// # Errors
/// If it cannot be listed.
pub fn list(directory: &Path) -> anyhow::Result<Listing> {
    let mut listing = Listing::default();
    let context = || format!("cannot read {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
        entries => entries.with_context(context)?,
    };
    for entry in entries.take(MAX_FILES) {
        let entry = entry.with_context(context)?;
        // What is not UTF-8 is none of podspan's, and not named by any CNI.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if let Ok(Some(text)) = read(&entry.path().join(DROP_IN)).map_err(drop) {
                listing.drop_ins.insert(name, text);
            }
        } else if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            let text = match read(&entry.path()) {
                Ok(Some(text)) => Ok(text),
                // Gone since.
                Ok(None) if !kind.is_symlink() => continue,
                Ok(None) => Err("a symbolic link to what the agent cannot see".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            };
            listing.files.insert(name, plan::File { text, link: kind.is_symlink() });
        }
    }
    Ok(listing)
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    // Not to wait for a writer, should somebody have put a pipe there.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.context("cannot be opened")?,
    };
    if !file.metadata().context("cannot be read")?.is_file() {
        bail!("not a file");
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).context("cannot be read")?;
    if bytes.len() as u64 > MAX_SIZE {
        bail!("larger than {MAX_SIZE} bytes");
    }
    String::from_utf8(bytes).map(Some).map_err(|_| anyhow::anyhow!("not UTF-8"))
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is made.
    Yes,
    /// The file is another by now: decide again.
    Changed,
}

/// Makes one step.
///
/// # Errors
/// Whatever the file system answers, with the path; nothing half-done is left.
pub fn make(directory: &Path, step: &Step) -> anyhow::Result<Made> {
    match step {
        Step::Write { path, text, before, like } => {
            let target = directory.join(path);
            write(directory, &target, text, before.as_deref(), &directory.join(like))
                .with_context(|| format!("cannot write {}", target.display()))
        }
        Step::Remove { path } => {
            let target = directory.join(path);
            remove(directory, &target).with_context(|| format!("cannot remove {}", target.display()))?;
            Ok(Made::Yes)
        }
    }
}

fn write(
    directory: &Path,
    target: &Path,
    text: &str,
    before: Option<&str>,
    like: &Path,
) -> anyhow::Result<Made> {
    let parent = target.parent().unwrap_or(directory);
    if parent != directory {
        match fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    let model = fs::metadata(if before.is_some() { target } else { like })?;
    let made = replace(parent, target, text.as_bytes(), model.mode() & 0o7777, |file| {
        // Without the right to give files away a file of another owner becomes root's, with the same mode.
        let _ = fchown(file, Some(model.uid()), Some(model.gid()));
        // As late as can be: whoever has written since shall not lose it.
        Ok(read(target)?.as_deref() == before)
    })?;
    Ok(if made { Made::Yes } else { Made::Changed })
}

/// Puts `bytes` in the place of `target` in one rename, with everything on disk, unless `check` says no.
pub(super) fn replace(
    directory: &Path,
    target: &Path,
    bytes: &[u8],
    mode: u32,
    check: impl FnOnce(&File) -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let temporary = directory.join(TEMPORARY);
    // What a crash left.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let write = || -> anyhow::Result<bool> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode & 0o700).open(&temporary)?;
        file.write_all(bytes)?;
        // Beyond the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        if !check(&file)? {
            return Ok(false);
        }
        drop(file);
        fs::rename(&temporary, target)?;
        File::open(directory)?.sync_all()?;
        Ok(true)
    };
    let done = write();
    if !matches!(done, Ok(true)) {
        let _ = fs::remove_file(&temporary);
    }
    done
}

fn remove(directory: &Path, target: &Path) -> anyhow::Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let parent = target.parent().unwrap_or(directory);
    File::open(parent)?.sync_all()?;
    if parent != directory {
        // A drop-in directory that others have files in stays.
        match fs::remove_dir(parent) {
            Ok(()) => File::open(directory)?.sync_all()?,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
