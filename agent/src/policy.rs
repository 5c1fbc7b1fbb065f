//! How the gateways of other clusters are used, and what becomes of packets when all of a cluster's are dead.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use podspan_dataplane::{ClusterSpec, PeerStatus};
use podspan_wire::settings::{Reader, Section};
use podspan_wire::{ClusterId, NodeId};
use tracing::{info, warn};

/// How long a cluster may take to be heard for the first time before its routes are left to the underlay.
const FIRST: Duration = Duration::from_secs(15);

/// Which of the gateways that do well take packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// All, by weight.
    #[default]
    Spread,
    /// The nearest by round trip.
    Nearest,
}

impl FromStr for Choice {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "spread" => Ok(Self::Spread),
            "nearest" => Ok(Self::Nearest),
            _ => Err("use \"spread\" or \"nearest\""),
        }
    }
}

/// What becomes of packets to a cluster whose gateways are all dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDead {
    /// Their senders are told by ICMP that the destination cannot be reached.
    #[default]
    Icmp,
    /// They are dropped.
    Drop,
    /// They are left to the underlay, **in clear**: podspan's routes to the cluster are taken out.
    Bypass,
}

impl FromStr for WhenDead {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "icmp" => Ok(Self::Icmp),
            "drop" => Ok(Self::Drop),
            "bypass" => Err("packets leave in clear by it: name the clusters, such as bypass = [\"beta\"]"),
            _ => Err("use \"icmp\" or \"drop\""),
        }
    }
}

/// The settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Which gateways take packets.
    pub choice: Choice,
    /// What happens when all of a cluster's are dead, unless it is said of the cluster; never [`WhenDead::Bypass`].
    pub default: WhenDead,
    /// The same of single clusters.
    pub clusters: BTreeMap<ClusterId, WhenDead>,
}

impl Policy {
    /// Reads the sections `gateways` and `unreachable` of the settings.
    pub fn read<'t>(r: &mut Reader<'t>, top: &mut Section<'t>) -> Self {
        let mut policy = Self::default();
        if let Some(mut section) = top.section(r, "gateways") {
            policy.choice = section.optional(r, "choice").unwrap_or_default();
            section.finish(r);
        }
        if let Some(mut section) = top.section(r, "unreachable") {
            policy.default = section.optional(r, "default").unwrap_or_default();
            for (key, what) in
                [("icmp", WhenDead::Icmp), ("drop", WhenDead::Drop), ("bypass", WhenDead::Bypass)]
            {
                for cluster in section.list::<ClusterId>(r, key).unwrap_or_default() {
                    if policy.clusters.insert(cluster.clone(), what).is_some() {
                        r.fault(&section, key, format!("{cluster} is listed twice: say one thing of it"));
                    }
                }
            }
            section.finish(r);
        }
        policy
    }

    /// What happens when all gateways of `cluster` are dead.
    #[must_use]
    pub fn when_dead(&self, cluster: &ClusterId) -> WhenDead {
        self.clusters.get(cluster).copied().unwrap_or(self.default)
    }

    /// What the data plane is told of `cluster`.
    #[must_use]
    pub fn spec(&self, cluster: &ClusterId, bypassed: &BTreeSet<ClusterId>) -> ClusterSpec {
        ClusterSpec {
            id: cluster.clone(),
            nearest: self.choice == Choice::Nearest,
            silent: self.when_dead(cluster) == WhenDead::Drop,
            watched: bypassed.contains(cluster),
        }
    }
}

/// Which clusters are left to the underlay at the moment.
#[derive(Debug, Default)]
pub struct Bypass {
    clusters: BTreeSet<ClusterId>,
    /// Clusters of which a gateway was heard since the start.
    heard: BTreeSet<ClusterId>,
}

impl Bypass {
    /// The clusters.
    #[must_use]
    pub fn clusters(&self) -> &BTreeSet<ClusterId> {
        &self.clusters
    }

    /// Looks at the gateways `age` after the start; returns whether something changed.
    pub fn look(
        &mut self,
        policy: &Policy,
        age: Duration,
        peers: &[PeerStatus],
        is_gateway: impl Fn(&NodeId) -> bool,
    ) -> bool {
        let mut now = BTreeSet::new();
        for (cluster, _) in policy.clusters.iter().filter(|(_, what)| **what == WhenDead::Bypass) {
            let mut gateways =
                peers.iter().filter(|peer| peer.id.cluster == *cluster && is_gateway(&peer.id));
            let answers = gateways.any(|peer| peer.lanes.iter().any(|lane| lane.established));
            if answers {
                self.heard.insert(cluster.clone());
            } else if self.heard.contains(cluster) || age >= FIRST {
                now.insert(cluster.clone());
            }
        }
        for cluster in now.difference(&self.clusters) {
            warn!(%cluster, "no gateway answers: its routes are left to the underlay, in clear, as the settings say");
        }
        for cluster in self.clusters.difference(&now) {
            info!(%cluster, "a gateway answers: packets take the tunnels again");
        }
        std::mem::replace(&mut self.clusters, now) != self.clusters
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use podspan_dataplane::LaneStatus;

    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Result<Policy, podspan_wire::settings::SettingsError> {
        let text = format!("bundle = \"b\"\nsource.file = \"n\"\n{text}");
        Config::parse(Path::new("/etc/podspan/agent.toml"), &text).map(|config| config.policy)
    }

    #[test]
    fn settings_are_read_and_closed_is_the_default() {
        assert_eq!(parse("").unwrap(), Policy::default());
        let policy = parse(
            "[gateways]\nchoice = \"nearest\"\n[unreachable]\ndefault = \"drop\"\nicmp = [\"beta\"]\nbypass = [\"gamma\"]",
        )
        .unwrap();
        let when = |cluster: &str| policy.when_dead(&cluster.parse().unwrap());
        assert_eq!(
            (when("alpha"), when("beta"), when("gamma")),
            (WhenDead::Drop, WhenDead::Icmp, WhenDead::Bypass)
        );
        let spec = policy.spec(&"alpha".parse().unwrap(), &BTreeSet::new());
        assert!(spec.nearest && spec.silent && !spec.watched);
        for (text, key) in [
            ("[gateways]\nchoice = \"random\"", "gateways.choice"),
            ("[unreachable]\ndefault = \"bypass\"", "unreachable.default"),
            ("[unreachable]\ndrop = [\"Beta\"]", "unreachable.drop"),
            ("[unreachable]\ndrop = [\"beta\"]\nbypass = [\"beta\"]", "unreachable.bypass"),
            ("[unreachable]\nopen = true", "unreachable.open"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.faults.len(), error.faults[0].key.as_str()), (1, key), "{error}");
        }
    }

    #[test]
    fn only_named_clusters_are_bypassed_and_only_while_nobody_answers() {
        let policy = parse("[unreachable]\nbypass = [\"beta\"]").unwrap();
        let peers = |established: bool| -> Vec<PeerStatus> {
            ["beta/g", "gamma/g"]
                .map(|id| PeerStatus {
                    id: id.parse().unwrap(),
                    lanes: vec![LaneStatus { established, ..LaneStatus::default() }],
                })
                .into()
        };
        let mut bypass = Bypass::default();
        let mut look = |seconds, established| {
            bypass.look(&policy, Duration::from_secs(seconds), &peers(established), |_| true);
            bypass.clusters().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(look(1, false), [""; 0], "it may only just have started");
        assert_eq!(look(15, false), ["beta"]);
        assert_eq!(look(16, true), [""; 0]);
        assert_eq!(look(17, false), ["beta"]);
    }
}
