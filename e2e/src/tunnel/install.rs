//! The programs: built or fetched once, kept below the target directory under a name with the version.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command::Cmd;
use crate::kube::find_go;
use crate::screen::Screen;

/// How long one program may take to build on a small, busy machine.
const TIME: Duration = Duration::from_secs(1800);

const BORINGTUN: &str = "0.7.1";
const GOTATUN: &str = "0.10.2";

/// A WireGuard program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// podspan's data plane.
    Podspan,
    /// Jason Donenfeld's, in Go.
    WireguardGo,
    /// Mullvad's.
    Gotatun,
    /// Cloudflare's.
    Boringtun,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Podspan, Self::WireguardGo, Self::Gotatun, Self::Boringtun];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Podspan => "podspan",
            Self::WireguardGo => "wireguard-go",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun-cli",
        }
    }

    /// The version that is measured.
    pub(crate) fn version(self) -> Result<&'static str> {
        Ok(match self {
            Self::Podspan => env!("CARGO_PKG_VERSION"),
            Self::WireguardGo => wireguard_go_version(include_str!("../../bench/go.mod"))?,
            Self::Gotatun => GOTATUN,
            Self::Boringtun => BORINGTUN,
        })
    }
}

/// The version that the lab's go.mod requires, as `v0.0.0-20260522210424-ecfc5a8d5446`.
fn wireguard_go_version(go_mod: &'static str) -> Result<&'static str> {
    let version =
        |line: &'static str| line.trim().strip_prefix("golang.zx2c4.com/wireguard ")?.split(' ').next();
    go_mod.lines().find_map(version).context("the lab's go.mod requires no version of wireguard-go")
}

/// A program that is there.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

/// Builds or fetches the program, unless it is there.
pub(crate) fn ensure(kind: Kind, screen: &Screen) -> Result<Installed> {
    let path = match kind {
        Kind::Podspan => podspan(screen)?,
        Kind::WireguardGo => kept(kind, "wireguard-go", screen, wireguard_go)?,
        Kind::Gotatun => kept(kind, "gotatun", screen, |root, _| crate_of("gotatun-cli", GOTATUN, root))?,
        Kind::Boringtun => {
            kept(kind, "boringtun-cli", screen, |root, _| crate_of("boringtun-cli", BORINGTUN, root))?
        }
    };
    if !path.is_file() {
        bail!("the installation of {} made no {}", kind.name(), path.display());
    }
    Ok(Installed { kind, path })
}

/// podspan's is built at every run, as everything of its own is.
fn podspan(screen: &Screen) -> Result<PathBuf> {
    screen.line("building podspan's data plane");
    build::cargo()
        .args(["build", "--quiet", "--locked", "--release", "-p", "podspan-dataplane", "--example", "node"])
        .arg("--manifest-path")
        .arg(build::manifest())
        .timeout(TIME)
        .show()
        .run_ok()
        .context("podspan's data plane does not build; see above")?;
    Ok(build::target_directory()?.join("release/examples/node"))
}

/// A program in a directory of its version, made if it is not there.
fn kept(
    kind: Kind,
    file: &str,
    screen: &Screen,
    make: impl FnOnce(&Path, &Screen) -> Result<()>,
) -> Result<PathBuf> {
    let name = format!("{}-{}", kind.name(), kind.version()?);
    let root = build::target_directory()?.join("lab/bench/programs").join(name);
    let path = root.join("bin").join(file);
    if path.is_file() {
        return Ok(path);
    }
    screen.line(&format!(
        "installing {} {}; the first time this takes a minute or more",
        kind.name(),
        kind.version()?
    ));
    let begin = Instant::now();
    std::fs::create_dir_all(root.join("bin")).with_context(|| format!("cannot make {}", root.display()))?;
    make(&root, screen)?;
    screen.line(&format!("installed {} in {:.0} s", kind.name(), begin.elapsed().as_secs_f64()));
    Ok(path)
}

fn wireguard_go(root: &Path, screen: &Screen) -> Result<()> {
    let go = find_go(screen)?;
    let module = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bench"));
    let new = root.join("bin").join(format!(".new.{}", std::process::id()));
    Cmd::new(go)
        .arg("-C")
        .arg(module)
        .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags=-s -w", "-o"])
        .arg(&new)
        .arg("golang.zx2c4.com/wireguard")
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .timeout(TIME)
        .run_ok()
        .with_context(|| format!("wireguard-go could not be built from {}", module.display()))?;
    std::fs::rename(&new, root.join("bin/wireguard-go")).context("cannot put wireguard-go in its place")
}

/// Optimised for this very kind of CPU or not: as its authors' readers would install it.
fn crate_of(name: &str, version: &str, root: &Path) -> Result<()> {
    build::cargo()
        .args(["install", "--quiet", "--locked", "--force", "--version", version, "--root"])
        .arg(root)
        .arg(name)
        // A target directory inside the one that holds the result, so that nothing is built twice by two runs.
        .env("CARGO_TARGET_DIR", root.join("build"))
        .timeout(TIME)
        .run_ok()
        .with_context(|| format!("by hand: cargo install --locked --version {version} {name}"))?;
    std::fs::remove_dir_all(root.join("build")).ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_a_version() {
        for kind in Kind::ALL {
            assert!(kind.version().unwrap().contains('.'), "{}", kind.name());
        }
        assert!(Kind::WireguardGo.version().unwrap().starts_with("v0.0.0-2026"));
        assert!(wireguard_go_version("module x").is_err());
    }
}
