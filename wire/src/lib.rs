//! What podspan's programs say to each other, and what of it may be believed.
//!
//! Everything that crosses a trust boundary is defined here once: the [`Grant`] by which the root key
//! lets a cluster announce CIDRs, the [`Record`] by which a cluster announces a node, the broker's API
//! ([`api`]) and the protocol of the agent's unix socket ([`local`]).
//!
//! Raw bytes become valid values in one place each: the types of this crate cannot hold an invalid name,
//! a CIDR with host bits or a key of the wrong length, and a [`VerifiedRecord`] can only be had from
//! [`Trust::verify`], which checks root -> grant -> record. Nothing here does IO or reads a clock.

pub mod api;
mod bundle;
mod cidr;
mod envelope;
mod grant;
mod keys;
pub mod local;
mod names;
mod record;
#[cfg(feature = "settings")]
pub mod settings;
pub mod status;
mod time;
mod trust;

pub use bundle::{Bundle, BundleError};
pub use cidr::{Cidr, CidrError, CidrSet};
pub use envelope::{Envelope, EnvelopeError};
pub use grant::{Grant, MAX_CIDRS};
pub use keys::{ClusterKey, KeyError, LaneKey, PublicKey, RootKey, Signature};
pub use names::{ClusterId, ClusterSetId, NameError, NodeId, NodeName};
pub use record::{
    DEFAULT_GATEWAY_WEIGHT, Lane, MAX_ENDPOINTS, MAX_GATEWAY_WEIGHT, MAX_LANES, Record, RecordState,
    SignedRecord, Version,
};
pub use time::UnixTime;
pub use trust::{HighWater, Refusal, RefusalKind, Trust, VerifiedGrant, VerifiedRecord};

/// Name of the TUN interface, the routing rule's owner and the nftables table: one name everywhere.
pub const INTERFACE: &str = "podspan0";

/// First UDP port of a node's lanes unless its configuration names another; lane `i` listens on the
/// base port plus `i`.
pub const DEFAULT_PORT: u16 = 51840;

/// The UDP port at which agents answer probes that come through a gateway of their cluster, on the node's own
/// addresses within its pod CIDRs.
pub const PROBE_PORT: u16 = 51839;

/// Where the agent's unix socket is unless its configuration names another path.
pub const DEFAULT_SOCKET: &str = "/run/podspan/agent.sock";
