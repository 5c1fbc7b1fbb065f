//! How to chain, and the settings of the installer: section `[cni]` of the agent's settings.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use podspan_wire::settings::{FilePath, Reader, Section};

use crate::earlier_pods::EarlierPods;

/// How podspan gets into the chain of CNI plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Appended to the primary list; in an owned copy where that cannot be or does not last.
    #[default]
    Auto,
    /// Appended to the primary list.
    Append,
    /// In a copy of the primary that sorts before it.
    Owned,
    /// In the network's drop-in directory: for runtimes with libcni 1.3 or later.
    DropIn,
    /// Not at all; what the installer put there before goes.
    Off,
}

impl Mode {
    /// The word for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Append => "append",
            Self::Owned => "owned",
            Self::DropIn => "dropIn",
            Self::Off => "off",
        }
    }
}

impl FromStr for Mode {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::Append, Self::Owned, Self::DropIn, Self::Off]
            .into_iter()
            .find(|mode| mode.label() == text)
            .ok_or("use \"auto\", \"append\", \"owned\", \"dropIn\" or \"off\"")
    }
}

/// Section `[cni]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniSettings {
    /// How to chain.
    pub mode: Mode,
    /// The directory of the plugins' binaries, as the agent sees it.
    pub bin_dir: PathBuf,
    /// The directory of the network configurations, as the agent sees it.
    pub conf_dir: PathBuf,
    /// The plugin that is installed.
    pub plugin: PathBuf,
    /// The directory in which runtimes remember what became of ADDs, as the agent sees it.
    pub results_dir: PathBuf,
}

impl CniSettings {
    /// Reads the section; relative paths are relative to `base`.
    #[must_use]
    pub fn read<'t>(r: &mut Reader<'t>, mut section: Section<'t>, base: &Path) -> Self {
        let mut path = |r: &mut Reader<'t>, key, default: &str| {
            section
                .optional::<FilePath>(r, key)
                .map_or_else(|| PathBuf::from(default), |path| path.within(base))
        };
        let bin_dir = path(r, "bin-dir", "/opt/cni/bin");
        let conf_dir = path(r, "conf-dir", "/etc/cni/net.d");
        let plugin = path(r, "plugin", "/podspan-cni");
        let results_dir = path(r, "results-dir", podspan_cni::results::DIRECTORY);
        let mode = section.optional(r, "mode").unwrap_or_default();
        section.finish(r);
        Self { mode, bin_dir, conf_dir, plugin, results_dir }
    }

    /// Where to look for pods that were there before podspan.
    #[must_use]
    pub fn earlier_pods(&self) -> EarlierPods {
        EarlierPods { results_dir: self.results_dir.clone(), conf_dir: self.conf_dir.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<CniSettings, String> {
        let (mut reader, mut top) = Reader::new(text);
        let section = top.section(&mut reader, "cni").expect("a section");
        let settings = CniSettings::read(&mut reader, section, Path::new("/etc/podspan"));
        top.finish(&mut reader);
        reader.finish("agent.toml").map(|()| settings).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_the_section() {
        let settings =
            read("[cni]\nmode = \"dropIn\"\nconf-dir = \"/host/etc/cni/net.d\"\nplugin = \"p\"\n").unwrap();
        assert_eq!(settings.mode, Mode::DropIn);
        assert_eq!(settings.bin_dir, Path::new("/opt/cni/bin"));
        assert_eq!(settings.conf_dir, Path::new("/host/etc/cni/net.d"));
        assert_eq!(settings.plugin, Path::new("/etc/podspan/p"));
        let error = read("[cni]\nmode = \"dropin\"\nbindir = \"/x\"\n").unwrap_err();
        assert!(error.contains("line 2: cni.mode") && error.contains("cni.bindir"), "{error}");
    }
}
