//! A WireGuard tunnel between two network namespaces, with a program of one's choice at each end: what `lab bench`
//! measures, and what the scenarios of interoperation try.
//!
//! podspan's end is `dataplane/examples/node.rs`: the packet path of the agent, without the control plane.

mod end;
mod install;
mod keys;
mod uapi;
mod wiring;

pub(crate) use end::{End, Options, PORT, end};
pub(crate) use install::{Installed, Kind, ensure};
pub(crate) use keys::{public, secret};
pub(crate) use wiring::{inner, inner_v6, outer, wire};

/// MTU of the tunnel: 1500 less the outer headers of IPv6 and WireGuard's own.
pub(crate) const TUNNEL_MTU: u32 = 1420;
