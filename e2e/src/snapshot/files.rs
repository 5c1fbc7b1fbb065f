//! Files below a directory: kind, mode, owner and contents.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

pub(super) fn read(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    add(directory, &mut found)?;
    Ok(found)
}

fn add(path: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    let data = match std::fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    let context = || format!("cannot read {}", path.display());
    let kind = data.file_type();
    let contents = if kind.is_symlink() {
        format!("-> {}", std::fs::read_link(path).with_context(context)?.display())
    } else if kind.is_file() {
        String::from_utf8_lossy(&std::fs::read(path).with_context(context)?).into_owned()
    } else {
        String::new()
    };
    let value = format!("mode {:o}, owner {}:{} {contents}", data.mode(), data.uid(), data.gid());
    found.insert(path.to_string_lossy().into_owned(), value);
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).with_context(context)? {
            add(&entry?.path(), found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_modes_and_absence_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        std::fs::write(&file, "one").unwrap();
        let before = read(directory.path()).unwrap();
        std::fs::write(&file, "two").unwrap();
        assert_ne!(read(directory.path()).unwrap(), before);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read(directory.path()).unwrap().len(), 1);
        assert!(read(&file).unwrap().is_empty());
    }
}
