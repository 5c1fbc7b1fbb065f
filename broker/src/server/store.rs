//! Where entries survive a restart: the [`Store`] trait, and one file of redb behind it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use podspan_wire::api::{Entry, Lease};
use podspan_wire::{ClusterId, ClusterSetId, SignedRecord};
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::registry::Batch;

/// Why the store does not work. The text says which file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {why}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// Another process has the file open.
    #[error("{path} is in use by another process: is another broker running with this data directory?")]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// The file cannot be read as a store.
    #[error(
        "{path} cannot be read as a broker's store ({why}): put a backup in its place, or move it away and \
         start the broker; it begins empty then, and the agents publish their records again by themselves"
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file is of another cluster set.
    #[error(
        "{path} is the store of cluster set {found}, but the configuration says {expected}: set `data` to a \
         directory of this cluster set's own, or correct `cluster-set`"
    )]
    OtherClusterSet {
        /// Which file.
        path: PathBuf,
        /// The set it was made for.
        found: String,
        /// The set that is configured.
        expected: ClusterSetId,
    },
    /// The file was written by a later version.
    #[error("{path} has format {found}, this broker knows {FORMAT}: upgrade the broker")]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Reading or writing failed.
    #[error("{path}: {what}: {why}: is the disk full or failing?")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// What the store said.
        why: String,
    },
    /// The system's random source failed.
    #[error("cannot make a store id: {0}")]
    Random(String),
}

/// What a store holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Random id of the store, made when it was.
    pub store: String,
    /// The last revision that was given out.
    pub revision: u64,
    /// The entries, not verified.
    pub entries: Vec<Entry>,
    /// The highest serial seen of each cluster's grants.
    pub serials: Vec<(ClusterId, u64)>,
    /// How many entries could not be read; they are left as they are.
    pub unreadable: usize,
}

/// Keeps what the registry acknowledges. All calls block; they are made from one thread.
pub trait Store: Send {
    /// Opens the store, anew if it was open, and reads all of it. Whatever a failed
    /// [`Store::commit`] left behind is either whole or gone then.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&mut self) -> Result<Contents, StoreError>;

    /// Writes a batch, whole or not at all; once this returns, it survives a loss of power.
    ///
    /// # Errors
    /// [`StoreError`]; whether the batch was written is then unknown until the next [`Store::load`].
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;
}

const FORMAT: u64 = 1;
const WRITING: &str = "cannot write to the store";
const CONTRADICTS: &str = "its structure contradicts itself";
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const SERIALS: TableDefinition<'_, &str, u64> = TableDefinition::new("grant-serials");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");

/// An entry on disk: JSON, so that a later version can add fields.
#[derive(Serialize, Deserialize)]
struct OnDisk {
    revision: u64,
    lease: Lease,
    signed: SignedRecord,
}

/// One redb file, `records.redb` in the data directory.
pub struct RedbStore {
    path: PathBuf,
    cluster_set: ClusterSetId,
    database: Option<Database>,
}

impl RedbStore {
    /// The store in the directory `data`, for one cluster set. Nothing is opened yet.
    #[must_use]
    pub fn new(data: &Path, cluster_set: ClusterSetId) -> Self {
        Self { path: data.join("records.redb"), cluster_set, database: None }
    }

    /// The store's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, what: &'static str, why: impl Into<redb::Error>) -> StoreError {
        let path = self.path.clone();
        match why.into() {
            redb::Error::Corrupted(why) => StoreError::Corrupt { path, why },
            why @ (redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. }) => {
                StoreError::Corrupt { path, why: why.to_string() }
            }
            why => StoreError::Io { path, what, why: why.to_string() },
        }
    }

    fn open(&self) -> Result<Database, StoreError> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let cannot = |why| StoreError::Directory { path: directory.to_owned(), why };
        std::fs::create_dir_all(directory).map_err(cannot)?;
        // Made here, so that nobody else can read it from its first moment on.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(cannot)?;
        let corrupt = |why: String| StoreError::Corrupt { path: self.path.clone(), why };
        // redb panics on some files that it did not write; that must not take the error's place.
        let opened = catch_unwind(AssertUnwindSafe(|| Database::builder().create(&self.path)));
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => {
                return Err(StoreError::InUse { path: self.path.clone() });
            }
            Ok(Err(why)) => return Err(corrupt(why.to_string())),
            Err(_) => return Err(corrupt(CONTRADICTS.into())),
        };
        // A file that was just made is only there after a loss of power if its directory was synced.
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(cannot)?;
        Ok(database)
    }

    /// Makes the tables and the store's id if the file is new.
    fn prepare(&self, database: &Database) -> Result<(), StoreError> {
        let what = "cannot prepare the store";
        let write = database.begin_write().map_err(|e| self.io(what, e))?;
        {
            let mut numbers = write.open_table(NUMBERS).map_err(|e| self.io(what, e))?;
            let format = numbers.get("format").map_err(|e| self.io(what, e))?.map(|format| format.value());
            // Leaving without a commit changes nothing.
            match format {
                Some(FORMAT) => return Ok(()),
                Some(found) => return Err(StoreError::Format { path: self.path.clone(), found }),
                None => {}
            }
            let mut texts = write.open_table(TEXTS).map_err(|e| self.io(what, e))?;
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|e| StoreError::Random(e.to_string()))?;
            let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            texts.insert("store", id.as_str()).map_err(|e| self.io(what, e))?;
            let set = self.cluster_set.to_string();
            texts.insert("cluster-set", set.as_str()).map_err(|e| self.io(what, e))?;
            numbers.insert("format", FORMAT).map_err(|e| self.io(what, e))?;
            numbers.insert("revision", 0).map_err(|e| self.io(what, e))?;
            write.open_table(ENTRIES).map_err(|e| self.io(what, e))?;
            write.open_table(SERIALS).map_err(|e| self.io(what, e))?;
        }
        write.commit().map_err(|e| self.io(what, e))
    }

    fn read(&self, database: &Database) -> Result<Contents, StoreError> {
        let what = "cannot read the store";
        let missing =
            |name: &str| StoreError::Corrupt { path: self.path.clone(), why: format!("{name} is missing") };
        let read = database.begin_read().map_err(|e| self.io(what, e))?;
        let texts = read.open_table(TEXTS).map_err(|e| self.io(what, e))?;
        let text = |name| {
            let value = texts.get(name).map_err(|e| self.io(what, e))?;
            value.map(|value| value.value().to_owned()).ok_or_else(|| missing(name))
        };
        let found = text("cluster-set")?;
        if found != self.cluster_set.to_string() {
            let (path, expected) = (self.path.clone(), self.cluster_set);
            return Err(StoreError::OtherClusterSet { path, found, expected });
        }
        let numbers = read.open_table(NUMBERS).map_err(|e| self.io(what, e))?;
        let revision = numbers.get("revision").map_err(|e| self.io(what, e))?;
        let revision = revision.ok_or_else(|| missing("revision"))?.value();
        let mut contents = Contents { store: text("store")?, revision, ..Contents::default() };
        let serials = read.open_table(SERIALS).map_err(|e| self.io(what, e))?;
        for row in serials.iter().map_err(|e| self.io(what, e))? {
            let (cluster, serial) = row.map_err(|e| self.io(what, e))?;
            match cluster.value().parse() {
                Ok(cluster) => contents.serials.push((cluster, serial.value())),
                Err(_) => contents.unreadable += 1,
            }
        }
        let entries = read.open_table(ENTRIES).map_err(|e| self.io(what, e))?;
        for row in entries.iter().map_err(|e| self.io(what, e))? {
            let (_, value) = row.map_err(|e| self.io(what, e))?;
            match serde_json::from_slice(value.value()) {
                Ok(OnDisk { revision, lease, signed }) => {
                    contents.entries.push(Entry { revision, lease, signed });
                }
                Err(_) => contents.unreadable += 1,
            }
        }
        Ok(contents)
    }

    fn write(&self, database: &Database, batch: &Batch) -> Result<(), StoreError> {
        let what = WRITING;
        let mut write = database.begin_write().map_err(|e| self.io(what, e))?;
        write.set_durability(Durability::Immediate).map_err(|e| self.io(what, e))?;
        {
            let mut entries = write.open_table(ENTRIES).map_err(|e| self.io(what, e))?;
            for (id, entry) in &batch.entries {
                let Entry { revision, lease, signed } = entry.clone();
                let json = serde_json::to_vec(&OnDisk { revision, lease, signed })
                    .map_err(|e| StoreError::Io { path: self.path.clone(), what, why: e.to_string() })?;
                entries.insert(id.to_string().as_str(), json.as_slice()).map_err(|e| self.io(what, e))?;
            }
            for id in &batch.removed {
                entries.remove(id.to_string().as_str()).map_err(|e| self.io(what, e))?;
            }
            let mut serials = write.open_table(SERIALS).map_err(|e| self.io(what, e))?;
            for (cluster, serial) in &batch.serials {
                serials.insert(cluster.as_str(), serial).map_err(|e| self.io(what, e))?;
            }
            let mut numbers = write.open_table(NUMBERS).map_err(|e| self.io(what, e))?;
            numbers.insert("revision", batch.revision).map_err(|e| self.io(what, e))?;
        }
        write.commit().map_err(|e| self.io(what, e))
    }
}

impl Store for RedbStore {
    fn load(&mut self) -> Result<Contents, StoreError> {
        // Close first: the file has one owner at a time.
        self.database = None;
        let database = self.open()?;
        // As in `open`: a file that fits on the surface may still make redb panic further in.
        let contents = catch_unwind(AssertUnwindSafe(|| {
            self.prepare(&database)?;
            self.read(&database)
        }))
        .unwrap_or_else(|_| {
            let why = CONTRADICTS.into();
            Err(StoreError::Corrupt { path: self.path.clone(), why })
        })?;
        self.database = Some(database);
        Ok(contents)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let Some(database) = &self.database else {
            let (path, what, why) = (self.path.clone(), WRITING, "it is not open".into());
            return Err(StoreError::Io { path, what, why });
        };
        // As in `open`: damage that shows only now must not take the thread down.
        catch_unwind(AssertUnwindSafe(|| self.write(database, batch))).unwrap_or_else(|_| {
            let why = CONTRADICTS.into();
            Err(StoreError::Corrupt { path: self.path.clone(), why })
        })
    }
}
