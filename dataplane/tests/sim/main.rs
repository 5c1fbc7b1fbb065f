//! Cores joined by a simulated network in virtual time. Run with
//! `cargo test -p podspan-dataplane --features sim`.

// Helpers of tests are tests too, though clippy does not see it.
#![allow(clippy::unwrap_used)]

mod all_dead;
mod chaos;
mod hostile;
mod lanes;
mod lifecycle;
mod liveness;
mod lossy;
mod net;
mod overload;
mod path;
mod path_mtu;
mod scale;
mod storm;
