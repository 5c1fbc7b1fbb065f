//! The discovery endpoint of podspan, and the client that agents use.
//!
//! The broker stores the signed records of the clusters of one cluster set, keeps their leases, and
//! streams every change to whoever watches. It is trusted for availability only: what it hands out is
//! signed by its cluster, and agents verify it themselves. The API is [`podspan_wire::api`].
//!
//! - feature `server` (default): [`server`], the endpoint, and the binary `podspan-broker`;
//! - feature `client`: [`client`], which lists, watches, puts, renews and withdraws.

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod server;
