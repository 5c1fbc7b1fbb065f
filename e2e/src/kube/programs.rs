//! Building the Kubernetes programs from their Go modules, and finding them again.
//!
//! The versions are those of `e2e/kube/go.mod` and `e2e/kube/coredns/go.mod`, nowhere else. What was built is
//! kept below the target directory under a name with the version, so a new version builds anew.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::go;
use crate::build;
use crate::command::Cmd;
use crate::screen::Screen;

/// How long one program may take: from a cold cache on a small machine kubelet compiles for many minutes.
const TIME: Duration = Duration::from_secs(3600);

/// A program and where it comes from.
struct Source {
    name: &'static str,
    /// The Go module's directory below `e2e/kube`.
    module: &'static str,
    package: &'static str,
}

const fn kubernetes(name: &'static str, package: &'static str) -> Source {
    Source { name, module: ".", package }
}

/// What the API server alone takes, first.
const SOURCES: [Source; 8] = [
    kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    kubernetes("pause", "./pause"),
    Source { name: "coredns", module: "coredns", package: "." },
];

/// The programs of an API server without anything else.
const API_ONLY: usize = 2;

/// Which programs are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// kube-apiserver and kubectl.
    Api,
    /// All that two clusters take.
    All,
}

/// Where the built programs are.
#[derive(Clone, Debug)]
pub(crate) struct KubePrograms {
    kubernetes: PathBuf,
    coredns: PathBuf,
}

impl KubePrograms {
    /// The directory with the programs of Kubernetes.
    pub(crate) fn directory(&self) -> &Path {
        &self.kubernetes
    }

    /// A program by its name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name == "coredns" { self.coredns.join(name) } else { self.kubernetes.join(name) }
    }
}

/// The version of Kubernetes, such as `v1.36.3`.
pub(crate) fn version() -> Result<&'static str> {
    required(include_str!("../../kube/go.mod"), "k8s.io/kubernetes")
}

/// The version of CoreDNS.
pub(crate) fn coredns_version() -> Result<&'static str> {
    required(include_str!("../../kube/coredns/go.mod"), "github.com/coredns/coredns")
}

/// The version that a go.mod requires of a module.
fn required(go_mod: &'static str, module: &str) -> Result<&'static str> {
    let words = |line: &'static str| -> Option<&'static str> {
        let mut words = line.trim().trim_start_matches("require ").split_ascii_whitespace();
        (words.next()? == module).then(|| words.next()).flatten().filter(|word| word.starts_with('v'))
    };
    go_mod.lines().find_map(words).with_context(|| format!("the lab's go.mod does not require {module}"))
}

/// Where the programs are, built or not.
pub(crate) fn find() -> Result<KubePrograms> {
    let below = build::target_directory()?.join("lab/kube");
    Ok(KubePrograms {
        kubernetes: below.join(version()?).join("bin"),
        coredns: below.join(format!("coredns-{}", coredns_version()?)).join("bin"),
    })
}

/// Builds what is wanted and not there yet.
pub(crate) fn ensure(wanted: Wanted, screen: &Screen) -> Result<KubePrograms> {
    let version = version()?;
    let programs = find()?;
    for directory in [&programs.kubernetes, &programs.coredns] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let sources = match wanted {
        Wanted::Api => &SOURCES[..API_ONLY],
        Wanted::All => &SOURCES[..],
    };
    let missing: Vec<_> = sources.iter().filter(|source| !programs.path(source.name).is_file()).collect();
    if missing.is_empty() {
        screen.line(&format!("the programs of Kubernetes {version} are there"));
        return Ok(programs);
    }
    let go = go::find(screen)?;
    let names: Vec<_> = missing.iter().map(|source| source.name).collect();
    screen.line(&format!(
        "building {} of Kubernetes {version} from their Go modules; from a cold cache this takes many minutes",
        names.join(", ")
    ));
    for source in missing {
        let begin = Instant::now();
        build_one(&go, source, version, &programs)?;
        screen.line(&format!("built {} in {:.0} s", source.name, begin.elapsed().as_secs_f64()));
    }
    Ok(programs)
}

/// Static, without symbols, and put in its place whole.
fn build_one(go: &Path, source: &Source, version: &str, programs: &KubePrograms) -> Result<()> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    // As Kubernetes' own build does: a server that does not know its version is refused by its clients.
    let of = "k8s.io/component-base/version";
    let flags =
        format!("-s -w -X {of}.gitVersion={version} -X {of}.gitMajor={major} -X {of}.gitMinor={minor}");
    let new = programs.path(source.name).with_file_name(format!(".{}.{}", source.name, std::process::id()));
    let module = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kube")).join(source.module);
    let built = Cmd::new("nice")
        .args(["-n", "10"])
        .arg(go)
        .arg("-C")
        .arg(&module)
        .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", &flags, "-o"])
        .arg(&new)
        .arg(source.package)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .timeout(TIME)
        .run_ok()
        .with_context(|| format!("{} could not be built from {}", source.name, module.display()))
        .and_then(|_| {
            std::fs::rename(&new, programs.path(source.name))
                .with_context(|| format!("cannot put {} in its place", source.name))
        });
    if built.is_err() {
        std::fs::remove_file(&new).ok();
    }
    built
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_modules() {
        assert!(version().unwrap().starts_with("v1."));
        assert!(coredns_version().unwrap().starts_with("v1."));
        assert_eq!(required("require a.b/c v1.2.3 // indirect\n", "a.b/c").unwrap(), "v1.2.3");
        assert!(required("replace a.b/c => d v1.2.3\nrequire a.b/cd v1\n", "a.b/c").is_err());
    }

    #[test]
    fn every_staging_module_is_replaced_by_the_release_that_goes_with_it() {
        let staging = version().unwrap().replacen("v1.", "v0.", 1);
        let replaced = include_str!("../../kube/go.mod").lines().filter(|line| line.contains(" => k8s.io/"));
        let replaced: Vec<_> = replaced.collect();
        assert!(replaced.len() > 30, "{}", replaced.len());
        assert!(replaced.iter().all(|line| line.ends_with(&staging)), "{replaced:#?}");
    }
}
