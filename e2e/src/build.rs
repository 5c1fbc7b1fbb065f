//! Building podspan's programs as a user would, and finding them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::Cmd;
use crate::screen::Screen;

/// How long a build may take; on a small machine the first one compiles for many minutes.
const TIME: Duration = Duration::from_secs(3600);

/// podspan's programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) agent: PathBuf,
    pub(crate) broker: PathBuf,
    pub(crate) cli: PathBuf,
    /// The CNI plugin, a static program.
    pub(crate) plugin: PathBuf,
}

/// The workspace's root.
pub(crate) fn manifest() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
}

/// cargo as this run of the lab was started by.
pub(crate) fn cargo() -> Cmd {
    Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds everything that is out of date.
pub(crate) fn programs(screen: &Screen) -> Result<Programs> {
    screen.line("building podspan (the first time this takes some minutes)");
    let build = |args: &[&str]| {
        cargo()
            .args(["build", "--quiet", "--locked", "--manifest-path"])
            .arg(manifest())
            .args(args)
            .timeout(TIME)
            .show()
            .run_ok()
            .context("podspan does not build; see above")
    };
    build(&["--release", "-p", "podspan-agent", "-p", "podspan-broker", "-p", "podspan-cli"])?;
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    ensure_target(&target, screen)?;
    build(&["--profile", "cni", "-p", "podspan-cni", "--target", &target])?;
    let directory = target_directory()?;
    let release = directory.join("release");
    let programs = Programs {
        agent: release.join("podspan-agent"),
        broker: release.join("podspan-broker"),
        cli: release.join("podspan"),
        plugin: directory.join(&target).join("cni").join("podspan-cni"),
    };
    for program in [&programs.agent, &programs.broker, &programs.cli, &programs.plugin] {
        if !program.is_file() {
            bail!("the build made no {}", program.display());
        }
    }
    Ok(programs)
}

/// The CNI plugin is static, for a target that a fresh toolchain does not have yet.
fn ensure_target(target: &str, screen: &Screen) -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let directory = Cmd::new(rustc).args(["--print", "target-libdir", "--target", target]).text()?;
    if Path::new(directory.trim()).is_dir() {
        return Ok(());
    }
    screen.line(&format!("installing the Rust target {target} for the CNI plugin"));
    Cmd::new("rustup").args(["target", "add", target]).timeout(TIME).run_ok().with_context(|| {
        format!("the Rust target {target} is missing; by hand: rustup target add {target}")
    })?;
    Ok(())
}

/// cargo's target directory.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let text = cargo()
        .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
        .arg(manifest())
        .text()?;
    let value: serde_json::Value = serde_json::from_str(&text).context("cargo's metadata")?;
    let directory = value["target_directory"].as_str().context("cargo's metadata has no target directory")?;
    Ok(directory.into())
}
