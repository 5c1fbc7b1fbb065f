//! What is done to which packets, as data: what the lab sends to the forwarder, and what it gets back.

use std::net::IpAddr;

use anyhow::{Result, bail};
use podspan_wire::Cidr;
use serde::{Deserialize, Serialize};

/// Everything that is done. A packet passes all rules that match it, one after the other, as it would pass the
/// links of a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// The same seed and the same packets in the same order meet the same fate.
    pub(crate) seed: u64,
    pub(crate) rules: Vec<Rule>,
}

/// What happens to the packets of one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Outer sources; empty means any.
    #[serde(default)]
    pub(crate) from: Vec<Cidr>,
    /// Outer destinations; empty means any.
    #[serde(default)]
    pub(crate) to: Vec<Cidr>,
    #[serde(default)]
    pub(crate) fault: Fault,
}

/// What can go wrong on a link. Probabilities are from 0 to 1. The default is a perfect link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Fault {
    /// Dropped.
    pub(crate) loss: f64,
    /// Sent twice.
    pub(crate) duplicate: f64,
    /// Held back by [`Fault::hold_us`], so that later ones overtake it.
    pub(crate) reorder: f64,
    /// How long a packet that is to be overtaken is held back, microseconds.
    pub(crate) hold_us: u64,
    /// One bit of the transport's payload is turned; of UDP the checksum is made right again, so that the
    /// packet arrives and its reader must notice.
    pub(crate) corrupt: f64,
    /// Every packet takes this long, microseconds.
    pub(crate) delay_us: u64,
    /// And up to so much longer; what is delayed only keeps its order.
    pub(crate) jitter_us: u64,
    /// The link's rate, kilobits per second; a queue of [`Fault::queue_bytes`] is before it.
    pub(crate) rate_kbit: Option<u64>,
    /// What the queue before a slow link holds; more is dropped. 0 stands for [`QUEUE_BYTES`].
    pub(crate) queue_bytes: u64,
    /// Larger packets are dropped and nobody is told: a black hole.
    pub(crate) mtu: Option<u32>,
}

/// A slow link's queue unless it is told otherwise: 256 KiB.
pub(crate) const QUEUE_BYTES: u64 = 256 * 1024;

impl Plan {
    /// What does not make sense in it.
    pub(crate) fn check(&self) -> Result<()> {
        for (number, rule) in self.rules.iter().enumerate() {
            let fault = &rule.fault;
            for (what, value) in [
                ("loss", fault.loss),
                ("duplicate", fault.duplicate),
                ("reorder", fault.reorder),
                ("corrupt", fault.corrupt),
            ] {
                if !(0.0..=1.0).contains(&value) {
                    bail!("rule {number}: {what} is {value}, which is no probability");
                }
            }
            if fault.rate_kbit == Some(0) {
                bail!("rule {number}: a rate of 0; to block everything, give a loss of 1");
            }
        }
        Ok(())
    }
}

impl Rule {
    /// One direction between two sets of addresses.
    pub(crate) fn between(from: &[IpAddr], to: &[IpAddr], fault: Fault) -> Self {
        let hosts = |addresses: &[IpAddr]| addresses.iter().map(|address| Cidr::host(*address)).collect();
        Self { from: hosts(from), to: hosts(to), fault }
    }

    /// Both directions of everything that these addresses send and get.
    pub(crate) fn around(addresses: &[IpAddr], fault: &Fault) -> [Self; 2] {
        [Self::between(addresses, &[], fault.clone()), Self::between(&[], addresses, fault.clone())]
    }

    /// Whether a packet of these addresses is meant.
    pub(crate) fn matches(&self, from: IpAddr, to: IpAddr) -> bool {
        let within = |cidrs: &[Cidr], address| cidrs.is_empty() || cidrs.iter().any(|c| c.contains(address));
        within(&self.from, from) && within(&self.to, to)
    }
}

impl Fault {
    /// Nothing passes.
    pub(crate) fn block() -> Self {
        Self::lossy(1.0)
    }

    pub(crate) fn lossy(loss: f64) -> Self {
        Self { loss, ..Self::default() }
    }
}

/// What the forwarder has done since it was given its plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Packets that came.
    pub(crate) seen: u64,
    /// Packets that went on, duplicates included.
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    /// Dropped before a slow link whose queue was full.
    pub(crate) overflowed: u64,
    pub(crate) too_big: u64,
    pub(crate) duplicated: u64,
    pub(crate) held: u64,
    pub(crate) corrupted: u64,
    /// Neither IPv4 nor IPv6, or link-local: not forwarded.
    pub(crate) foreign: u64,
}
