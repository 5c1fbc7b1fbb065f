//! The kinds of places in which scenarios play, as far as the runner has to know them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Setting;
use crate::build::Programs;
use crate::kube::{Clusters, KubeApi, KubePrograms};
use crate::screen::Screen;
use crate::tunnel::{Installed, Kind};
use crate::world::{Leftovers, World};

/// The programs that were built for a run, as far as it needs them.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) podspan: Option<Programs>,
    /// podspan as its container image has it.
    pub(crate) image: Option<Programs>,
    pub(crate) kubernetes: Option<KubePrograms>,
    /// What stands at the ends of single tunnels.
    pub(crate) tunnels: BTreeMap<Kind, Installed>,
}

/// A world of some kind.
pub(crate) trait Place: Sized {
    /// How worlds of this kind differ; scenarios of one setting share a world.
    type Setting: Copy + PartialEq;

    /// How long it may take to stand.
    const TIME: Duration;

    /// What scenarios in it are called by, before their own name.
    fn name(setting: Self::Setting) -> String;

    /// Makes it.
    fn make(setting: Self::Setting, built: &Built, screen: Screen) -> Result<Self>;

    /// What its processes say, for finding out why something failed.
    fn diagnosis(&self) -> String;

    /// Lets it stand when this run ends.
    fn stay(self) -> Result<()>;

    /// Takes it down and tells what is left of it, which should be nothing.
    fn down(self) -> Result<Leftovers>;
}

impl Place for World {
    type Setting = Setting;

    const TIME: Duration = Duration::from_secs(120);

    fn name(setting: Setting) -> String {
        setting.name()
    }

    fn make(setting: Setting, built: &Built, screen: Screen) -> Result<Self> {
        let mut world = Self::create(setting.shape, setting.variant, screen)?;
        let programs = built.podspan.as_ref().filter(|_| setting.podspan);
        if let Err(error) = world.start_all(programs) {
            return Err(error.context(world.diagnosis()));
        }
        Ok(world)
    }

    fn diagnosis(&self) -> String {
        Self::diagnosis(self)
    }

    fn stay(self) -> Result<()> {
        Self::stay(self)
    }

    fn down(self) -> Result<Leftovers> {
        Self::down(self)
    }
}

/// How API servers without a cluster differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApiSetting {
    /// Whether scenarios run podspan's programs against it, which must then be built.
    pub(crate) podspan: bool,
}

impl Place for KubeApi {
    type Setting = ApiSetting;

    const TIME: Duration = Duration::from_secs(120);

    fn name(setting: ApiSetting) -> String {
        if setting.podspan { "kube-api/podspan" } else { "kube-api/bare" }.to_owned()
    }

    fn make(setting: ApiSetting, built: &Built, screen: Screen) -> Result<Self> {
        let kubernetes = built.kubernetes.as_ref().context("kube-apiserver was not built")?;
        let podspan = built.podspan.as_ref().filter(|_| setting.podspan);
        Self::create(kubernetes, podspan.cloned(), screen)
    }

    fn diagnosis(&self) -> String {
        Self::diagnosis(self)
    }

    fn stay(self) -> Result<()> {
        Self::stay(self)
    }

    fn down(self) -> Result<Leftovers> {
        Self::down(self)
    }
}

/// The tainted node.
pub(super) const TAINTED: &str = "beta-2";

/// How clusters differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClustersSetting {
    /// They know nothing of each other.
    Bare,
    /// podspan joins them; one node, [`TAINTED`], is kept for pods that tolerate its taint.
    Joined,
    /// podspan joins them, and nothing but its leaving happens to them: they are compared with what they were.
    Leaving,
}

impl ClustersSetting {
    /// Whether podspan's programs are needed.
    pub(crate) fn podspan(self) -> bool {
        self != Self::Bare
    }
}

impl Place for Clusters {
    type Setting = ClustersSetting;

    const TIME: Duration = Duration::from_secs(600);

    fn name(setting: ClustersSetting) -> String {
        match setting {
            ClustersSetting::Bare => "kube/bare",
            ClustersSetting::Joined => "kube/joined",
            ClustersSetting::Leaving => "kube/leaving",
        }
        .to_owned()
    }

    fn make(setting: ClustersSetting, built: &Built, screen: Screen) -> Result<Self> {
        let kubernetes = built.kubernetes.as_ref().context("Kubernetes was not built")?;
        let podspan = built.image.as_ref().filter(|_| setting.podspan());
        let mut clusters = Self::create(kubernetes, podspan, screen)?;
        if setting == ClustersSetting::Joined {
            clusters.taint(&clusters.node(TAINTED)?)?;
        }
        if setting.podspan()
            && let Err(error) = clusters.start_podspan()
        {
            return Err(error.context(clusters.diagnosis()));
        }
        Ok(clusters)
    }

    fn diagnosis(&self) -> String {
        Self::diagnosis(self)
    }

    fn stay(self) -> Result<()> {
        Self::stay(self)
    }

    fn down(self) -> Result<Leftovers> {
        Self::down(self)
    }
}
