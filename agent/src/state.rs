//! The state directory: what an agent must not forget.
//!
//! | file | holds | if it is lost |
//! | --- | --- | --- |
//! | `lock` | nothing; locked by the running agent | |
//! | `lanes.json` | the lanes' secret keys | new keys, a new epoch |
//! | `version.json` | epoch and sequence of the last record signed | a new epoch |
//! | `known.json` | the records taken in and the highest versions seen | asked from the broker anew |
//! | `endpoints.json` | where peers were last heard | peers behind NAT dial again in time |
//! | `delivery.json` | nodes of the own cluster that were found to need a tunnel | found out anew |
//! | `attachments.json` | pods attached through the CNI plugin | repaired when the runtime asks |
//! | `facts.json` | the last good facts of the API server, in Kubernetes | asked for anew |
//! | `host/` | what was changed in the kernel and how it was before | |

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use podspan_dataplane::LaneSecret;
use podspan_wire::local::AttachmentDetail;
use podspan_wire::{HighWater, NodeId, SignedRecord, UnixTime, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;
use zeroize::Zeroizing;

use crate::facts::LocalFacts;
use crate::files::{self, Stored};

/// An open state directory. Only one agent at a time has it.
pub struct StateDir {
    path: PathBuf,
    /// Locked (flock(2)). The lock is of the open file, not of the process: it goes when the last descriptor of
    /// it is closed, and is never taken off, since another agent may have one.
    lock: File,
}

/// What an agent that has not the state directory may read in it.
pub struct Peek {
    /// The lanes' keys.
    pub lanes: Vec<LaneSecret>,
    /// What is known of the cluster set.
    pub known: Known,
    /// The last good facts of the API server.
    pub facts: Option<LocalFacts>,
}

/// What is known of the cluster set, as it is kept on disk.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Known {
    /// The highest versions and grants seen.
    pub high_water: HighWater,
    /// The records that are in use, in the order in which their clusters were first seen.
    pub records: Vec<SignedRecord>,
}

/// Endpoints at which peers were last heard, by node: local lane, remote lane, address.
pub type Endpoints = BTreeMap<NodeId, Vec<(usize, usize, SocketAddr)>>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Lanes {
    /// Secret X25519 keys, base64, in the order of the lanes.
    keys: Vec<Zeroizing<String>>,
    /// How many of them are in use.
    #[serde(default)]
    count: usize,
    /// The latest wall-clock time at which the keys were known to be in use.
    used: UnixTime,
}

/// How far the clock may have gone back before the lanes' keys are made anew.
const CLOCK_SLACK_SECONDS: u64 = 2;
/// Whether a person drained this node.
pub const DRAINED: &str = "drained.json";

/// What is kept as JSON.
const FILES: [&str; 7] = [
    "lanes.json",
    "version.json",
    "known.json",
    "endpoints.json",
    "delivery.json",
    "attachments.json",
    "facts.json",
];

impl StateDir {
    /// Opens the directory, making it if need be (mode 0700), and locks it.
    ///
    /// # Errors
    /// If it cannot be made, belongs to others, or another agent runs on it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the state directory {}", path.display()))?;
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .with_context(|| format!("{} is open to others and cannot be closed", path.display()))?;
            warn!(path = %path.display(), "the state directory was open to others; its mode is 0700 now");
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .with_context(|| format!("cannot open {}", path.join("lock").display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "another podspan-agent runs with the state directory {}: stop it first, or give this one a \
                 state-dir of its own",
                path.display()
            ),
            Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
        }
    }

    /// The directory whose lock another agent has handed over.
    #[must_use]
    pub fn adopt(path: &Path, lock: OwnedFd) -> Self {
        Self { path: path.to_owned(), lock: lock.into() }
    }

    /// The lock, for another agent.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Reads the directory of an agent that runs; nothing is changed. All files are only ever replaced whole.
    /// Without a number of `lanes`, there are as many as that agent has.
    ///
    /// # Errors
    /// If a file is not there or damaged, or the lanes' keys are to be made anew.
    pub fn peek(path: &Path, lanes: Option<usize>, now: UnixTime) -> anyhow::Result<Peek> {
        fn read<T: DeserializeOwned>(path: &Path, name: &str) -> anyhow::Result<Option<T>> {
            let path = path.join(name);
            let Some(text) = files::read(&path)?.map(Zeroizing::new) else { return Ok(None) };
            let value =
                serde_json::from_str(&text).map_err(|_| anyhow::anyhow!("{} is damaged", path.display()))?;
            Ok(Some(value))
        }
        let stored: Lanes =
            read(path, "lanes.json")?.with_context(|| format!("{} holds no keys", path.display()))?;
        if now.0 + CLOCK_SLACK_SECONDS < stored.used.0 {
            bail!("the clock went back: the lanes' keys are to be made anew, which peers must hear of first");
        }
        let lanes = lanes.unwrap_or(stored.count);
        if stored.keys.len() < lanes || lanes == 0 {
            bail!("there are keys for {} lanes, not for {lanes}", stored.keys.len());
        }
        Ok(Peek {
            lanes: stored.keys.iter().take(lanes).map(|key| decode(key)).collect::<anyhow::Result<_>>()?,
            known: read(path, "known.json")?.unwrap_or_default(),
            facts: read(path, "facts.json")?,
        })
    }

    /// A file of the directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn load<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<Option<T>> {
        Ok(match files::read_json(&self.file(name))? {
            Stored::Value(value) => Some(value),
            Stored::Absent => None,
            Stored::Damaged { aside, why } => {
                warn!(file = %self.file(name).display(), aside = %aside.display(), why, "a damaged state file was set aside; going on without it");
                None
            }
        })
    }

    /// The lanes' keys: those on disk, and new ones for what lacks. All are made anew when the clock went
    /// back since they were last used: WireGuard's handshakes carry the time (TAI64N, paper section
    /// 5.4.2), and peers would refuse ours as replays until the clock has caught up.
    ///
    /// Keys that are on disk already can be used whether or not it can be written to.
    ///
    /// # Errors
    /// If the file cannot be read, new keys cannot be written, or randomness fails.
    pub fn lanes(&self, count: usize, now: UnixTime) -> anyhow::Result<Vec<LaneSecret>> {
        let mut keys: Vec<Zeroizing<String>> = match self.load::<Lanes>("lanes.json")? {
            Some(stored) if now.0 + CLOCK_SLACK_SECONDS < stored.used.0 => {
                warn!(
                    now = %now, used = %stored.used,
                    "the clock went back since the last start: making new lane keys, peers would refuse the old"
                );
                Vec::new()
            }
            Some(stored) => stored.keys,
            None => Vec::new(),
        };
        let stored = keys.len();
        while keys.len() < count {
            keys.push(Zeroizing::new(STANDARD.encode(LaneSecret::generate()?.to_bytes())));
        }
        let secrets = keys.iter().take(count).map(|key| decode(key)).collect::<anyhow::Result<Vec<_>>>();
        let secrets = secrets.with_context(|| {
            format!(
                "{} is damaged: remove it and start again; new keys are made",
                self.file("lanes.json").display()
            )
        })?;
        let made = keys.len() > stored;
        match files::replace_json(&self.file("lanes.json"), &Lanes { keys, count, used: now }) {
            Err(error) if !made => {
                // A full disk must not keep the node from its tunnels.
                warn!(error = format!("{error:#}"), "the use of the lanes' keys cannot be noted");
                Ok(secrets)
            }
            written => written.map(|()| secrets),
        }
    }

    /// Notes that the keys are in use at `now`.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn touch_lanes(&self, now: UnixTime) -> anyhow::Result<()> {
        if let Some(mut lanes) = self.load::<Lanes>("lanes.json")?
            && now > lanes.used
        {
            lanes.used = now;
            files::replace_json(&self.file("lanes.json"), &lanes)?;
        }
        Ok(())
    }

    /// The version of the last record signed, or none in a fresh directory.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn version(&self) -> anyhow::Result<Option<Version>> {
        self.load("version.json")
    }

    /// Keeps a version; to be called before anything is signed with it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_version(&self, version: Version) -> anyhow::Result<()> {
        files::replace_json(&self.file("version.json"), &version)
    }

    /// What was known of the cluster set.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn known(&self) -> anyhow::Result<Known> {
        Ok(self.load("known.json")?.unwrap_or_default())
    }

    /// Keeps what is known of the cluster set; to be called before it is used.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_known(&self, known: &Known) -> anyhow::Result<()> {
        files::replace_json(&self.file("known.json"), known)
    }

    /// Where peers were last heard.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn endpoints(&self) -> anyhow::Result<Endpoints> {
        Ok(self.load("endpoints.json")?.unwrap_or_default())
    }

    /// Keeps where peers were last heard.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_endpoints(&self, endpoints: &Endpoints) -> anyhow::Result<()> {
        files::replace_json_quickly(&self.file("endpoints.json"), endpoints)
    }

    /// The nodes of the own cluster that were found to need a tunnel.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn delivery(&self) -> anyhow::Result<BTreeSet<NodeId>> {
        Ok(self.load("delivery.json")?.unwrap_or_default())
    }

    /// Keeps them.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_delivery(&self, nodes: &BTreeSet<NodeId>) -> anyhow::Result<()> {
        files::replace_json_quickly(&self.file("delivery.json"), nodes)
    }

    /// The last good facts of the API server.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn facts(&self) -> anyhow::Result<Option<LocalFacts>> {
        self.load("facts.json")
    }

    /// Keeps the last good facts of the API server.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_facts(&self, facts: &LocalFacts) -> anyhow::Result<()> {
        files::replace_json(&self.file("facts.json"), facts)
    }

    /// The pods attached through the CNI plugin.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn attachments(&self) -> anyhow::Result<Vec<AttachmentDetail>> {
        Ok(self.load("attachments.json")?.unwrap_or_default())
    }

    /// Keeps the pods attached through the CNI plugin. They end with the host, so that the disk is not
    /// waited for: a pod waits for this.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_attachments(&self, attachments: &[&AttachmentDetail]) -> anyhow::Result<()> {
        files::replace_json_quickly(&self.file("attachments.json"), &attachments)
    }
}

fn decode(key: &str) -> anyhow::Result<LaneSecret> {
    let bytes = Zeroizing::new(STANDARD.decode(key).map_err(|_| anyhow::anyhow!("a key is not base64"))?);
    let bytes: [u8; 32] =
        bytes.as_slice().try_into().map_err(|_| anyhow::anyhow!("a key has not 32 bytes"))?;
    Ok(LaneSecret::from_bytes(bytes))
}

impl StateDir {
    /// Removes everything of an agent that does not run any more, and gives up the lock with it.
    ///
    /// # Errors
    /// If something cannot be removed, or the directory holds what is not podspan's.
    pub fn remove(self) -> anyhow::Result<()> {
        for name in FILES.into_iter().chain([DRAINED]) {
            for file in [
                self.file(name),
                self.file(name).with_extension("damaged"),
                self.file(&format!(".{name}.tmp")),
            ] {
                match fs::remove_file(&file) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("cannot remove {}", file.display()));
                    }
                    _ => {}
                }
            }
        }
        match fs::remove_dir(self.file("host")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.with_context(|| format!("cannot remove {}", self.file("host").display()))?,
        }
        fs::remove_file(self.file("lock"))
            .with_context(|| format!("cannot remove {}", self.file("lock").display()))?;
        match fs::remove_dir(&self.path) {
            // In a container it is a mount, on a root file system that is read-only: empty it is gone as far as
            // that can be.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::ResourceBusy | std::io::ErrorKind::ReadOnlyFilesystem
                ) && fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_none()) =>
            {
                return Ok(());
            }
            done => done,
        }
        .with_context(|| {
            format!(
                "{} holds files that are not podspan's: remove it yourself if nothing in it is needed",
                self.path.display()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn publics(keys: &[LaneSecret]) -> Vec<String> {
        keys.iter().map(|key| key.public().to_string()).collect()
    }

    #[test]
    fn lane_keys_stay_and_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let two = publics(&state.lanes(2, UnixTime(100)).unwrap());
        assert_eq!(fs::metadata(path.join("lanes.json")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let three = publics(&state.lanes(3, UnixTime(101)).unwrap());
        assert_eq!(two[..], three[..2]);
        assert_eq!(publics(&state.lanes(1, UnixTime(102)).unwrap())[..], two[..1]);
        assert_eq!(publics(&state.lanes(3, UnixTime(102)).unwrap()), three, "fewer lanes forget no key");
    }

    #[test]
    fn a_clock_that_went_back_makes_new_keys() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let before = publics(&state.lanes(1, UnixTime(10_000)).unwrap());
        state.touch_lanes(UnixTime(13_600)).unwrap();
        assert_eq!(publics(&state.lanes(1, UnixTime(13_599)).unwrap()), before, "a second is no matter");
        assert_ne!(publics(&state.lanes(1, UnixTime(10_000)).unwrap()), before);
    }

    #[test]
    fn keys_are_used_though_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let before = publics(&state.lanes(2, UnixTime(100)).unwrap());
        // The place of the temporary file is taken: nothing can be written.
        fs::create_dir(dir.path().join(".lanes.json.tmp")).unwrap();
        assert_eq!(publics(&state.lanes(2, UnixTime(200)).unwrap()), before);
        assert!(state.lanes(3, UnixTime(200)).is_err(), "a new key that cannot be kept is not used");
    }

    #[test]
    fn damaged_files_do_not_keep_the_agent_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for name in FILES {
            fs::write(dir.path().join(name), b"\xff\x00\xfe").unwrap();
        }
        assert_eq!(state.lanes(1, UnixTime(1)).unwrap().len(), 1);
        assert_eq!(state.version().unwrap(), None);
        assert!(state.known().unwrap().records.is_empty());
        assert!(state.endpoints().unwrap().is_empty());
        assert!(state.delivery().unwrap().is_empty());
        assert!(state.attachments().unwrap().is_empty());
        assert!(state.facts().unwrap().is_none());
        assert!(dir.path().join("known.damaged").exists(), "set aside, not lost");
        state.remove().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_running_agents_directory_is_read_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let now = UnixTime(10_000);
        assert!(StateDir::peek(dir.path(), Some(2), now).is_err(), "no keys yet");
        let keys = publics(&state.lanes(2, now).unwrap());
        let before = fs::read(dir.path().join("lanes.json")).unwrap();
        assert_eq!(publics(&StateDir::peek(dir.path(), Some(2), UnixTime(20_000)).unwrap().lanes), keys);
        assert_eq!(publics(&StateDir::peek(dir.path(), None, now).unwrap().lanes), keys);
        let refused =
            |lanes, now| StateDir::peek(dir.path(), Some(lanes), now).err().map(|e| e.to_string()).unwrap();
        assert!(refused(3, now).contains("for 2 lanes, not for 3"));
        assert!(refused(2, UnixTime(9_000)).contains("clock went back"));
        fs::write(dir.path().join("known.json"), "{").unwrap();
        assert!(refused(2, now).contains("known.json is damaged"));
        assert!(dir.path().join("known.json").exists(), "left where it is");
        assert_eq!(fs::read(dir.path().join("lanes.json")).unwrap(), before);
    }

    #[test]
    fn a_lock_that_was_handed_over_lasts_until_both_are_done() {
        let dir = tempfile::tempdir().unwrap();
        let old = StateDir::open(dir.path()).unwrap();
        let new = StateDir::adopt(dir.path(), old.lock().try_clone_to_owned().unwrap());
        drop(old);
        assert!(StateDir::open(dir.path()).is_err());
        drop(new);
        assert!(StateDir::open(dir.path()).is_ok());
    }

    #[test]
    fn one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _state = StateDir::open(dir.path()).unwrap();
        let Err(error) = StateDir::open(dir.path()) else { panic!("locked twice") };
        assert!(error.to_string().contains("another podspan-agent runs"), "{error}");
    }

    #[test]
    fn remove_leaves_nothing_and_takes_nothing_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        state.lanes(1, UnixTime(1)).unwrap();
        state.keep_version(Version { epoch: 1, sequence: 1 }).unwrap();
        state.remove().unwrap();
        assert!(!path.exists());

        let state = StateDir::open(&path).unwrap();
        fs::write(path.join("mine"), "x").unwrap();
        assert!(state.remove().unwrap_err().to_string().contains("not podspan's"));
        assert!(path.join("mine").exists());
    }
}
