//! The CNI installer: puts podspan's plugin onto the node and into the chain of the cluster's own CNI, keeps
//! it there, and takes it out again.
//!
//! ```text
//!  conf-dir ──list──► plan (pure) ──steps──► conf-dir        binary: placed, and known to run, before any step
//!     ▲  inotify, slow look                     │
//!     └─────────────── look again ◄─────────────┘
//! ```
//!
//! A pod needs nothing of the plugin to start and to be reached: it only learns routes and MTU from it. So the
//! installer never takes a risk. Without a primary it waits; where the plugin could fail a pod's ADD it is not
//! chained and the status says why; another program that takes it out again is not fought in a loop.

pub mod binary;
pub mod conflist;
pub mod directory;
pub mod fight;
pub mod mode;
pub mod notice;
pub mod plan;
mod record;
mod task;
#[cfg(test)]
mod tests;

pub use mode::{CniSettings, Mode};
pub use task::{Order, spawn, uninstall};
