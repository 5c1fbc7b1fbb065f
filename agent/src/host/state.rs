//! What podspan must remember to leave a host as it found it: a small file in the state directory.
//!
//! Routes, rules, addresses and the nftables table carry podspan's mark and are found without it. A sysctl
//! carries none, so its value is written down here, durably, before it is changed. So is the number of
//! each routing table, for the day when the configuration names another. What the nftables table looked like is
//! written down after: an agent that starts leaves it alone if it still looks so.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::nft::Table;

/// The file's name in the state directory.
pub(super) const FILE: &str = "host.json";

/// A foreign sysctl as it was before podspan changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// The path below `/proc/sys`.
    pub(super) key: String,
    /// The value it had.
    pub(super) before: String,
    /// The value podspan gives it.
    pub(super) set: String,
    /// What the kernel changes along with it, as it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) effects: Vec<(String, String)>,
}

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The routing tables that podspan used.
    #[serde(default)]
    pub(super) tables: BTreeSet<u32>,
    /// The interfaces that it used.
    #[serde(default)]
    pub(super) interfaces: BTreeSet<String>,
    /// The sysctls that it changed, in that order.
    #[serde(default)]
    pub(super) sysctls: Vec<Remembered>,
    /// The nftables table as podspan last wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_known")]
    pub(super) nft: Option<Written>,
}

/// An nftables table that podspan wrote, and how nft listed it right after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    table: Table,
    /// The table whole, as the version of podspan that wrote it puts it.
    text: String,
    pub(super) listing: String,
}

impl Written {
    pub(super) fn new(table: Table, listing: String) -> Self {
        Self { text: table.whole(), table, listing }
    }

    /// Whether it is this table, in the words of this version too.
    pub(super) fn is(&self, table: &Table) -> bool {
        self.text == table.whole()
    }

    /// The transaction that makes it `table`; `None` if it has to be written anew.
    pub(super) fn change(&self, table: &Table) -> Option<String> {
        if self.is(&self.table) { table.change(&self.table) } else { None }
    }
}

/// What another version of podspan wrote down in another form only has the table written anew; the rest of the file is
/// needed to leave the host as it was.
fn if_known<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Written>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

impl State {
    /// Reads the file; `Default` if there is none yet.
    ///
    /// # Errors
    /// If it cannot be read, or holds something else ([`io::ErrorKind::InvalidData`]).
    pub(super) fn load(directory: &Path) -> io::Result<Self> {
        match std::fs::read(directory.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Like [`State::load`], but a file that holds something else is put aside under a new name, so that
    /// nothing in it is lost, and told of.
    pub(super) fn load_or_put_aside(directory: &Path) -> io::Result<(Self, Option<String>)> {
        match Self::load(directory) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let path = directory.join(FILE);
                let aside = unused(directory);
                std::fs::rename(&path, &aside)?;
                let told = format!(
                    "{}: unreadable ({error}), kept as {}; sysctls that it named are not put back by clean: look there",
                    path.display(),
                    aside.display()
                );
                Ok((Self::default(), Some(told)))
            }
            loaded => loaded.map(|state| (state, None)),
        }
    }

    /// Writes the file: a whole new one in its place, on the disk before this returns.
    ///
    /// # Errors
    /// If the directory cannot be written to; what stood there before then still stands.
    pub(super) fn store(&self, directory: &Path) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        crate::files::replace(&directory.join(FILE), &text)
            .map_err(|error| io::Error::other(format!("{error:#}")))
    }

    /// Removes the file; that there is none is as good.
    pub(super) fn remove(directory: &Path) -> io::Result<()> {
        // The second is what a crash in the middle of a write leaves.
        for name in [FILE.to_owned(), format!(".{FILE}.tmp")] {
            match std::fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes, durably, that podspan is about to make `interface`: between its making and its alias there is a
    /// moment in which an agent may die.
    ///
    /// # Errors
    /// If the directory cannot be written to, or the file holds something else.
    pub(super) fn claim(directory: &Path, interface: &str) -> io::Result<()> {
        let mut state = Self::load(directory)?;
        if state.interfaces.insert(interface.to_owned()) { state.store(directory) } else { Ok(()) }
    }

    /// Remembers a sysctl before its first change; later changes do not touch what was noted then.
    pub(super) fn remember(&mut self, write: &super::sysctl::Write) -> bool {
        if self.sysctls.iter().any(|remembered| remembered.key == write.key) {
            return false;
        }
        self.sysctls.push(Remembered {
            key: write.key.clone(),
            before: write.before.clone(),
            set: write.value.clone(),
            effects: write.effects.clone(),
        });
        true
    }
}

fn unused(directory: &Path) -> PathBuf {
    (1u32..)
        .map(|n| directory.join(format!("{FILE}.unreadable-{n}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| directory.join(format!("{FILE}.unreadable")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sysctl::Write;

    fn write(before: &str) -> Write {
        Write {
            key: "net/ipv4/ip_forward".into(),
            before: before.into(),
            value: "1".into(),
            foreign: true,
            effects: vec![("net/ipv4/conf/eth0/forwarding".into(), "1".into())],
        }
    }

    #[test]
    fn survives_a_round_trip_and_remembers_the_first_value_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::load(directory.path()).unwrap();
        assert_eq!(state, State::default());
        assert!(state.remember(&write("0")));
        assert!(!state.remember(&write("7")));
        state.tables.insert(7183);
        state.store(directory.path()).unwrap();
        let read = State::load(directory.path()).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.sysctls[0].before, "0");
        std::fs::write(directory.path().join(format!(".{FILE}.tmp")), "{").unwrap();
        State::remove(directory.path()).unwrap();
        State::remove(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_table_in_the_words_of_another_version_is_written_anew_and_nothing_else_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut table = Table::default();
        table.set("remote4".into(), "ipv4_addr", vec!["10.2.0.0/16".into()]);
        let mut written = Written::new(table.clone(), "listed".into());
        assert!(written.is(&table) && written.change(&table).as_deref() == Some(""));
        let mut state = State { nft: Some(written.clone()), ..State::default() };
        state.remember(&write("0"));
        state.store(directory.path()).unwrap();
        assert_eq!(State::load(directory.path()).unwrap(), state);
        written.text.push_str("# once");
        assert!(!written.is(&table) && written.change(&table).is_none());
        let file = directory.path().join(FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"elements\"", "\"prefixes\"")).unwrap();
        assert_eq!(State::load(directory.path()).unwrap(), State { nft: None, ..state });
    }

    #[test]
    fn an_unreadable_file_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        for n in 1..3 {
            std::fs::write(directory.path().join(FILE), format!("{{ broken {n}")).unwrap();
            let (state, told) = State::load_or_put_aside(directory.path()).unwrap();
            assert_eq!(state, State::default());
            let aside = directory.path().join(format!("{FILE}.unreadable-{n}"));
            assert!(told.unwrap().contains(&aside.display().to_string()));
            assert_eq!(std::fs::read_to_string(aside).unwrap(), format!("{{ broken {n}"));
        }
    }
}
