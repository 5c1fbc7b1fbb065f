//! Attachments that the agent could not be told of, because it was down when the pod was added.
//!
//! With `onFailure: open` such a pod starts. So that the agent can put its routes right once it is back,
//! the plugin leaves one file per attachment in the directory `pending` beside the agent's socket; each
//! holds an [`AttachmentDetail`] as JSON. The agent reads them when it starts and removes what it has taken
//! in; the plugin removes one with its pod, and with the plugin's last file the directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use podspan_wire::local::{Attachment, AttachmentDetail};

/// The directory for the agent whose unix socket is `socket`.
#[must_use]
pub fn directory(socket: &Path) -> PathBuf {
    socket.with_file_name("pending")
}

/// Neither part can hold a `/` (CNI spec section 2), and an identifier cannot hold a `@`.
fn file(socket: &Path, attachment: &Attachment) -> PathBuf {
    directory(socket).join(format!("{}@{}.json", attachment.container_id, attachment.interface))
}

/// Keeps an attachment for the agent. Nothing is made where the socket's own directory is missing: no
/// agent was ever started there.
///
/// # Errors
/// Of the file system.
pub fn keep(socket: &Path, detail: &AttachmentDetail) -> io::Result<()> {
    let directory = directory(socket);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let text = serde_json::to_vec(detail).map_err(io::Error::other)?;
    let file = file(socket, &detail.attachment);
    // Readers see a whole file or none.
    let unfinished = file.with_extension("tmp");
    fs::write(&unfinished, text)?;
    fs::rename(&unfinished, &file)
}

/// Forgets an attachment; it need not be there. The directory goes with the last one.
///
/// # Errors
/// Of the file system.
pub fn forget(socket: &Path, attachment: &Attachment) -> io::Result<()> {
    match fs::remove_file(file(socket, attachment)) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(error);
        }
        _ => {}
    }
    // Fails while others are left, which is just as well.
    let _ = fs::remove_dir(directory(socket));
    Ok(())
}

/// What is kept for the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The attachments, in no order.
    pub details: Vec<AttachmentDetail>,
    /// Files that cannot be read, each with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// All that is kept. A directory that is missing holds nothing.
///
/// # Errors
/// If the directory cannot be listed.
pub fn list(socket: &Path) -> io::Result<Kept> {
    let entries = match fs::read_dir(directory(socket)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        other => other?,
    };
    let mut kept = Kept::default();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let read = fs::read(&path).map_err(|error| error.to_string());
        match read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string())) {
            Ok(detail) => kept.details.push(detail),
            Err(error) => kept.unreadable.push((path, error)),
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(container_id: &str) -> AttachmentDetail {
        AttachmentDetail {
            attachment: Attachment { container_id: container_id.into(), interface: "eth0".into() },
            netns: "/run/netns/p".into(),
            network: "pods".into(),
            addresses: vec!["10.1.1.2".parse().unwrap()],
            gateways: Vec::new(),
            pod: None,
        }
    }

    #[test]
    fn what_is_kept_is_listed_until_forgotten_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        assert!(list(&socket).unwrap() == Kept::default());
        for id in ["a", "b"] {
            keep(&socket, &detail(id)).unwrap();
            keep(&socket, &detail(id)).unwrap();
        }
        fs::write(super::directory(&socket).join("c@eth0.json"), "{").unwrap();
        let Kept { mut details, unreadable } = list(&socket).unwrap();
        details.sort_by(|a, b| a.attachment.cmp(&b.attachment));
        assert_eq!(details, [detail("a"), detail("b")]);
        assert_eq!(unreadable.len(), 1);
        for id in ["a", "b", "c", "c"] {
            forget(&socket, &detail(id).attachment).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_made_where_no_agent_ever_was() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nowhere/agent.sock");
        assert_eq!(keep(&socket, &detail("a")).unwrap_err().kind(), io::ErrorKind::NotFound);
        forget(&socket, &detail("a").attachment).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
