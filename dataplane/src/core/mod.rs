//! The core: packets and time in, packets out; no socket, no clock, no thread.
pub mod lanes;
pub(crate) mod rendezvous;
mod time;
pub use time::Time;
