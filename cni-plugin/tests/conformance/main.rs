//! The real binary against the CNI specification 1.1.0, section by section: real network namespaces, a
//! small runtime that keeps to the specification's rules, a fake agent that can misbehave.
//!
//! Needs root, iproute2, nsenter (util-linux) and Debian's containernetworking-plugins; fails, and says
//! so, where one is missing. Everything is done inside namespaces `psp-cni-*` of the tests' own.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![allow(unreachable_pub, reason = "a test is a crate that nobody depends on")]

mod fake_agent;
mod namespace;
mod plugin;
mod runtime;

mod bad_input;
mod section_1_configuration;
mod section_2_add;
mod section_2_check;
mod section_2_del;
mod section_2_gc;
mod section_2_status;
mod section_2_version;
mod section_3_chain;
mod section_5_errors;
mod the_agent_fails;
mod the_pods_routes;
mod timing;
