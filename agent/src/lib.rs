//! The node daemon of podspan.
//!
//! The way of a record, and of a fact, through this crate:
//!
//! ```text
//!  brokers ──watch──► membership ──┐
//!  source  ──facts──► controller ──┴─► desired ──► data plane (tunnels)
//!                        │                  ├────► host (routes, rules, nftables, sysctls)
//!                        │                  └────► attachments (routes inside pods)
//!                        └──► publish ──► brokers
//! ```
//!
//! [`membership`], [`desired`](mod@desired) and [`overview`](mod@overview) are pure: what comes out depends
//! on what goes in. Everything that does IO stands at the edges.

pub mod attachments;
pub mod brokers;
pub mod bundle_watch;
pub mod cni_install;
pub mod config;
pub mod conflict;
pub mod control_socket;
pub mod controller;
pub mod delivery;
pub mod departed;
pub mod desired;
pub mod disk;
pub mod drain;
pub mod earlier_pods;
pub mod facts;
pub mod files;
pub mod host;
pub mod http;
pub mod install;
pub mod kube;
pub mod kube_leave;
pub mod liveness_log;
pub mod membership;
pub mod metrics;
pub mod overview;
pub mod path_mtu;
pub mod places;
pub mod pod_delivery;
pub mod policy;
pub mod probe;
pub mod publish;
pub mod refusals;
pub mod run;
pub mod source;
pub mod start;
pub mod state;
pub mod takeover;
pub mod underlay;
