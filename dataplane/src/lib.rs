//! The packet path of podspan: workers, lanes, lookup, WireGuard.
//!
//! [`Dataplane::start`] opens one TUN queue and one UDP socket for each lane and runs a worker thread on
//! each pair; [`Dataplane::set_table`] hands all workers a new immutable table of peers and routes;
//! [`Dataplane::status`] reads counters without stopping anybody. Addresses, routes, MTU and the state of
//! the interface are the caller's business: this crate knows no netlink.
//!
//! ```text
//!                 worker i (one thread, shares nothing)
//!            ┌──────────────────────────────────────────────┐
//!  TUN queue │ read batch ─► parse ─► longest prefix ─► owner│ UDP socket
//!     i      │   or gateway by rendezvous ─► seal ─► send    │ port + i
//!            │                                              │
//!            │ write ◄─ source belongs to peer? ◄─ open ◄─  │
//!            │          handshakes: verified, queued, later │
//!            └──────────────────────────────────────────────┘
//! ```
//!
//! A big packet of the TUN stands for many, and so does a big buffer of the socket: [`offload`] says how.
//!
//! The [`core`] does all of that without a socket, a clock or a thread, so that tests run it in virtual
//! time; the private `worker` module joins it to the kernel.
//!
//! boringtun logs ordinary events (a handshake that is tried again, a session that expired) at WARN and
//! ERROR: a subscriber had better turn its target off (`boringtun=off`). What matters is logged here.

pub mod core;
mod counters;
mod dataplane;
pub mod offload;
mod secret;
mod settings;
mod status;
pub mod table;
mod takeover;
pub mod tun;
mod worker;

pub use core::PathLimits;
pub use counters::{DropCause, DropCounts};
pub use dataplane::Dataplane;
pub use secret::LaneSecret;
pub use settings::{DEFAULT_HANDSHAKE_LIMIT, Offload, Settings, StartError};
pub use status::{BlackHole, Calls, LaneStatus, Liveness, PathStatus, PeerStatus, Status, WorkerStatus};
pub use table::{ClusterSpec, PeerSpec, Rejected, RouteSpec, TableError, TableSpec};
pub use takeover::{LendError, LentLane};
