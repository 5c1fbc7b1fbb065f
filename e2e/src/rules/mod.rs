//! The packet rules that a cluster's own software puts on its nodes: the CNI's masquerade rules, and
//! kube-proxy's. As text for `iptables-restore` or `nft`, made from the topology; [`apply`] loads them.

mod flannel;
mod kindnet;
mod kube_proxy;
mod underlay;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::command::Cmd;
use crate::netns::Netns;
use crate::topology::{Cloud, Family, Node, Service};

pub(crate) use underlay::{leak_counter, nat, router, router_between};

/// With which tool the cluster's software writes its rules.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// flannel and kube-proxy with iptables-legacy
    IptablesLegacy,
    /// flannel and kube-proxy with iptables-nft
    IptablesNft,
    /// kindnet and kube-proxy with tables of their own in nftables
    Nft,
}

/// The variant of the cluster software's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Variant {
    pub(crate) backend: Backend,
    /// Whether kube-proxy is given `--cluster-cidr`: then traffic to a service from outside the cluster
    /// CIDR is masqueraded.
    pub(crate) cluster_cidr: bool,
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let backend = match self.backend {
            Backend::IptablesLegacy => "iptables-legacy",
            Backend::IptablesNft => "iptables-nft",
            Backend::Nft => "nft",
        };
        let cidr = if self.cluster_cidr { "" } else { ", kube-proxy without cluster CIDR" };
        f.pad(&format!("{backend}{cidr}"))
    }
}

/// Text for one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// For `iptables-restore` of the family, legacy or nft.
    Iptables { family: Family, legacy: bool, text: String },
    /// For `nft -f`.
    Nft(String),
}

/// A pod that serves a service: its addresses.
pub(crate) type Endpoints<'a> = &'a dyn Fn(&Service, Family) -> Vec<std::net::IpAddr>;

/// The masquerade rules of the node's CNI, in force from the start.
pub(crate) fn masquerade(cloud: &Cloud, node: &Node, variant: Variant) -> Vec<Script> {
    match variant.backend {
        Backend::Nft => vec![Script::Nft(kindnet::table(cloud))],
        Backend::IptablesLegacy | Backend::IptablesNft => {
            Family::BOTH.map(|family| iptables(variant, family, flannel::rules(cloud, node, family))).into()
        }
    }
}

/// kube-proxy's rules, for pods whose addresses are known by now.
pub(crate) fn kube_proxy(cloud: &Cloud, variant: Variant, endpoints: Endpoints<'_>) -> Vec<Script> {
    Family::BOTH
        .map(|family| {
            let services = kube_proxy::Services::new(cloud, family, variant.cluster_cidr, endpoints);
            match variant.backend {
                Backend::Nft => Script::Nft(services.nft()),
                Backend::IptablesLegacy | Backend::IptablesNft => {
                    iptables(variant, family, services.iptables())
                }
            }
        })
        .into()
}

fn iptables(variant: Variant, family: Family, text: String) -> Script {
    Script::Iptables { family, legacy: variant.backend == Backend::IptablesLegacy, text }
}

/// Loads the rules into a namespace.
pub(crate) fn apply(scripts: &[Script], netns: &Netns, lock: &std::path::Path) -> Result<()> {
    for script in scripts {
        let cmd = match script {
            Script::Nft(text) => Cmd::new("nft").args(["-f", "-"]).stdin(text.clone()),
            Script::Iptables { family, legacy, text } => {
                let program = match (family, legacy) {
                    (Family::V4, true) => "iptables-legacy-restore",
                    (Family::V6, true) => "ip6tables-legacy-restore",
                    (Family::V4, false) => "iptables-nft-restore",
                    (Family::V6, false) => "ip6tables-nft-restore",
                };
                // Its lock would otherwise be a file outside of the lab.
                Cmd::new(program).arg("--noflush").env("XTABLES_LOCKFILE", lock).stdin(text.clone())
            }
        };
        cmd.within(netns).run_ok()?;
    }
    Ok(())
}
