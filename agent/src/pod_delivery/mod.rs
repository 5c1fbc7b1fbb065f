//! How what comes from other clusters gets from a gateway to pods on other nodes of its cluster.
//!
//! `native`: the kernel forwards it over the cluster's own network, with the foreign source that it has. Networks
//! that drop such packets (clouds with a source/destination check, nodes with a strict rp_filter that may not be
//! changed) need `tunnel`: the gateway hands them to the pod's own node through a tunnel inside the cluster. `auto`
//! asks each node ([`verdict`]) and uses the tunnel where the network drops.
//!
//! ```text
//!            gateway beta-1                                    node beta-2
//!  podspan0 ─► rule "iif podspan0": table 7184 ─► podspan0 ═ tunnel ═► podspan0 ─► route of beta's own CNI ─► pod
//!           └► no route there: main table ─► eth0 ─── beta's own network ──► eth0 ─┘
//! ```
//!
//! Only what came out of a tunnel goes into one again; the cluster's own traffic is untouched.

pub mod questions;
pub mod report;
pub mod siblings;
pub mod verdict;

use std::str::FromStr;

/// The setting, the same on all nodes of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Over the cluster's own network.
    #[default]
    Native,
    /// Through tunnels.
    Tunnel,
    /// Through tunnels to those nodes to which the cluster's own network does not bring it.
    Auto,
}

impl Delivery {
    /// The word for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tunnel => "tunnel",
            Self::Auto => "auto",
        }
    }

    /// Whether tunnels are held inside the cluster.
    #[must_use]
    pub fn has_tunnels(self) -> bool {
        self != Self::Native
    }
}

impl FromStr for Delivery {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "native" => Ok(Self::Native),
            "tunnel" => Ok(Self::Tunnel),
            "auto" => Ok(Self::Auto),
            _ => Err("use \"native\", \"tunnel\" or \"auto\""),
        }
    }
}
