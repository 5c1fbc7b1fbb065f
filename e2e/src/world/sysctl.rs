//! The sysctls of the namespaces, as kubelet, kube-proxy and the CNIs leave them; set before any interface is
//! made.

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::rules::{Backend, Variant};
use crate::topology::{Pod, Topology};

/// Sets the sysctls of all namespaces.
pub(super) fn prepare(topology: &Topology, variant: Variant) -> Result<()> {
    for netns in topology.fixed_namespaces() {
        set(&netns, &plain())?;
    }
    for pod in topology.pods().map(Pod::netns) {
        set(&pod, &[("net/ipv6/conf/all/disable_ipv6", "0"), ("net/ipv6/conf/default/disable_ipv6", "0")])?;
    }
    set(&topology.router(), &forwarding())?;
    for cloud in &topology.clouds {
        if cloud.lan.is_some() {
            set(&cloud.nat(), &forwarding())?;
        }
        for node in &cloud.nodes {
            let netns = node.netns();
            set(&netns, &forwarding())?;
            let filter = cloud.rp_filter.to_string();
            set(
                &netns,
                &[("net/ipv4/conf/all/rp_filter", &filter), ("net/ipv4/conf/default/rp_filter", &filter)],
            )?;
            // kubeadm asks for these two.
            set(
                &netns,
                &[("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")],
            )?;
            if variant.backend != Backend::Nft {
                // kube-proxy in iptables mode.
                set(&netns, &[("net/ipv4/conf/all/route_localnet", "1")])?;
            }
        }
    }
    Ok(())
}

/// A host that is not a node: nothing learned from routers, no wait for duplicate address detection.
fn plain() -> Vec<(&'static str, &'static str)> {
    vec![
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/all/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/dad_transmits", "0"),
        // The layer-2 networks switch, they do not filter.
        ("net/bridge/bridge-nf-call-iptables", "0"),
        ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ]
}

/// Makes a namespace a plain host.
pub(crate) fn plain_host(netns: &Netns) -> Result<()> {
    set(netns, &plain())
}

/// Makes a namespace a router.
pub(crate) fn router(netns: &Netns) -> Result<()> {
    set(netns, &forwarding())
}

/// What a node of Kubernetes has besides: bridged packets pass the packet rules.
pub(crate) fn kubernetes_node(netns: &Netns) -> Result<()> {
    set(netns, &[("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")])
}

fn forwarding() -> Vec<(&'static str, &'static str)> {
    vec![
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/forwarding", "1"),
    ]
}

fn set(netns: &Netns, values: &[(&str, &str)]) -> Result<()> {
    netns.enter(|| {
        for (key, value) in values {
            let path = format!("/proc/sys/{key}");
            match std::fs::write(&path, value) {
                // A kernel without bridge netfilter has nothing to switch.
                Err(error)
                    if key.starts_with("net/bridge/") && error.kind() == std::io::ErrorKind::NotFound => {}
                result => result.with_context(|| format!("cannot set {path} in {netns}"))?,
            }
        }
        Ok(())
    })
}
