//! The handle that the agent holds.

use crate::settings::{Settings, StartError};
use crate::status::Status;
use crate::table::{TableError, TableSpec};

/// The running packet path: worker threads, one for each lane.
#[derive(Debug)]
pub struct Dataplane {
    _private: (),
}

impl Dataplane {
    /// Opens queues and sockets and starts the workers. The table is empty.
    ///
    /// # Errors
    /// If the settings cannot be, or the system refuses; nothing is left running.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        Err(StartError::Lanes(settings.lanes.len()))
    }

    /// Puts a whole table in force, in place of the one before; safe to repeat. Tunnels whose peer, lanes
    /// and keys stay the same keep their sessions.
    ///
    /// # Errors
    /// Names the entries that were left out; everything else is in force.
    pub fn set_table(&self, _spec: TableSpec) -> Result<(), TableError> {
        Ok(())
    }

    /// What the dataplane does at this moment. Holds no worker up.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::default()
    }

    /// Stops the workers and waits for them. The interface stays if it is persistent.
    pub fn shutdown(self) {}
}
