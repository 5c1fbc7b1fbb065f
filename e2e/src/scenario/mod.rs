//! Scenarios: each shows one thing in a world of a certain kind.

mod baseline;
mod chaos;
pub(crate) mod failover;
mod gateways;
mod impaired;
mod interop;
mod joined;
mod kube_api;
mod kube_clusters;
mod machinery;
mod place;
mod runner;

use std::time::Duration;

use anyhow::Result;

use crate::rules::{Backend, Variant};
use crate::topology::Shape;
use crate::world::World;

pub(crate) use chaos::{ChaosArgs, chaos};
use place::Place;
pub(crate) use runner::{TestArgs, test};

/// In which world a scenario plays. Those of one world run one after the other in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Setting {
    pub(crate) shape: Shape,
    pub(crate) variant: Variant,
    /// Whether podspan joins the clusters.
    pub(crate) podspan: bool,
}

/// One thing to be shown, in a world of the lab's own clusters or in a place of another kind.
#[derive(Clone)]
pub(crate) struct Scenario<P: Place = World> {
    pub(crate) setting: P::Setting,
    pub(crate) name: &'static str,
    /// What it shows, in one line.
    pub(crate) about: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) run: fn(&mut P) -> Result<()>,
}

impl<P: Place> Scenario<P> {
    /// The name with the world it plays in: `bare/nft/internet`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", P::name(self.setting), self.name)
    }
}

impl Setting {
    fn name(&self) -> String {
        let kind = if self.podspan { "joined" } else { "bare" };
        let backend = match self.variant.backend {
            Backend::IptablesLegacy => "legacy",
            Backend::IptablesNft => "iptables-nft",
            Backend::Nft => "nft",
        };
        let cidr = if self.variant.cluster_cidr { "" } else { "-no-cidr" };
        let shape = match self.shape {
            Shape::Standard => "",
            Shape::FiveGateways => "-five-gateways",
        };
        format!("{kind}{shape}/{backend}{cidr}")
    }
}

const ALL_BACKENDS: [Backend; 3] = [Backend::IptablesLegacy, Backend::IptablesNft, Backend::Nft];

/// All scenarios, those of one world together.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for backend in ALL_BACKENDS {
        for cluster_cidr in [true, false] {
            let setting = standard(backend, cluster_cidr, false);
            all.extend(baseline::scenarios(setting));
            if backend == Backend::IptablesNft && cluster_cidr {
                all.extend(machinery::scenarios(setting));
            }
        }
    }
    for backend in ALL_BACKENDS {
        for cluster_cidr in [true, false] {
            let setting = standard(backend, cluster_cidr, true);
            all.extend(joined::reach(setting));
            if backend == Backend::IptablesNft && cluster_cidr {
                all.extend(joined::rest(setting));
                all.extend(failover::scenarios(setting));
                all.extend(chaos::scenarios(setting));
            }
        }
    }
    let shape = Shape::FiveGateways;
    all.extend(gateways::scenarios(Setting { shape, ..standard(Backend::IptablesNft, true, true) }));
    all
}

fn standard(backend: Backend, cluster_cidr: bool, podspan: bool) -> Setting {
    Setting { shape: Shape::Standard, variant: Variant { backend, cluster_cidr }, podspan }
}

/// Collects what is not as it should be, so that one run tells all of it.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    wrong: Vec<String>,
    checked: usize,
}

impl Findings {
    /// Notes `what` if `seen` is not as expected.
    pub(crate) fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, expected: T, seen: T) {
        self.checked += 1;
        if expected != seen {
            self.wrong.push(format!("{what}: expected {expected:?}, saw {seen:?}"));
        }
    }

    /// Notes `what` unless `good`.
    pub(crate) fn require(&mut self, good: bool, what: impl FnOnce() -> String) {
        self.checked += 1;
        if !good {
            self.wrong.push(what());
        }
    }

    /// All is well, if at least `least` things were looked at: a check of nothing shows nothing.
    pub(crate) fn conclude(self, least: usize) -> Result<()> {
        const SHOWN: usize = 20;
        const LINE: usize = 8000;
        if self.checked < least {
            anyhow::bail!("only {} things were checked, at least {least} should have been", self.checked);
        }
        if self.wrong.is_empty() {
            return Ok(());
        }
        let more = self.wrong.len().saturating_sub(SHOWN);
        let mut text = format!("{} of {} checks failed:", self.wrong.len(), self.checked);
        for line in self.wrong.iter().take(SHOWN) {
            text.push_str("\n  ");
            text.extend(line.chars().take(LINE));
        }
        if more > 0 {
            text.push_str(&format!("\n  and {more} more"));
        }
        anyhow::bail!(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_worlds_are_not_torn_apart() {
        let all = all();
        let names: std::collections::HashSet<_> = all
            .iter()
            .map(Scenario::full_name)
            .chain(kube_api::all().iter().map(Scenario::full_name))
            .chain(interop::all().iter().map(Scenario::full_name))
            .collect();
        assert_eq!(names.len(), all.len() + kube_api::all().len() + interop::all().len());
        let mut worlds: Vec<_> = all.iter().map(|scenario| scenario.setting).collect();
        worlds.dedup();
        let distinct: std::collections::BTreeSet<_> = worlds.iter().copied().collect();
        assert_eq!(worlds.len(), distinct.len());
    }

    #[test]
    fn findings_cannot_pass_without_a_check() {
        assert!(Findings::default().conclude(1).is_err());
        let mut findings = Findings::default();
        findings.expect("a", 1, 1);
        findings.require(true, String::new);
        assert!(findings.conclude(2).is_ok());
        let mut findings = Findings::default();
        findings.expect("the answer", 42, 41);
        let error = findings.conclude(1).unwrap_err().to_string();
        assert!(error.contains("the answer: expected 42, saw 41"), "{error}");
    }
}
