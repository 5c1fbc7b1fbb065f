//! Cores joined by a simulated network in virtual time. Run with
//! `cargo test -p podspan-dataplane --features sim`.

mod hostile;
mod lifecycle;
mod net;
mod path;
mod scale;
