//! Building podspan's programs as a user would, and finding them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::Cmd;
use crate::requirements;
use crate::screen::Screen;

/// How long a build may take; on a small machine the first one compiles for many minutes.
const TIME: Duration = Duration::from_secs(3600);

/// podspan's programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) agent: PathBuf,
    pub(crate) broker: PathBuf,
    pub(crate) cli: PathBuf,
    /// The CNI plugin, always a static program.
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

/// The packages of the programs but for the plugin.
const PACKAGES: [&str; 6] = ["-p", "podspan-agent", "-p", "podspan-broker", "-p", "podspan-cli"];

/// Builds everything that is out of date, as hosts without Kubernetes run it.
pub(crate) fn programs(screen: &Screen) -> Result<Programs> {
    screen.line("building podspan (the first time this takes some minutes)");
    build(&[&["--release"], &PACKAGES[..]].concat())?;
    let plugin = plugin(screen)?;
    Programs::of(&target_directory()?.join("release"), plugin)
}

/// The same for the container image: static programs, which need nothing below them.
pub(crate) fn image_programs(screen: &Screen) -> Result<Programs> {
    screen.line("building podspan for its image (the first time this takes some minutes)");
    let target = static_target();
    ensure_target(&target, screen)?;
    if std::env::var_os(static_compiler()).is_none() {
        requirements::ensure_static_compiler(screen)?;
    }
    build(&[&["--profile", "image", "--target", &target], &PACKAGES[..]].concat())?;
    let plugin = plugin(screen)?;
    Programs::of(&image_directory()?, plugin)
}

/// Where [`image_programs`] puts them.
pub(crate) fn image_directory() -> Result<PathBuf> {
    Ok(target_directory()?.join(static_target()).join("image"))
}

impl Programs {
    fn of(directory: &Path, plugin: PathBuf) -> Result<Self> {
        let programs = Self {
            agent: directory.join("podspan-agent"),
            broker: directory.join("podspan-broker"),
            cli: directory.join("podspan"),
            plugin,
        };
        for program in [&programs.agent, &programs.broker, &programs.cli, &programs.plugin] {
            if !program.is_file() {
                bail!("the build made no {}", program.display());
            }
        }
        Ok(programs)
    }
}

fn plugin(screen: &Screen) -> Result<PathBuf> {
    let target = static_target();
    ensure_target(&target, screen)?;
    build(&["--profile", "cni", "-p", "podspan-cni", "--target", &target])?;
    Ok(target_directory()?.join(target).join("cni").join("podspan-cni"))
}

fn build(args: &[&str]) -> Result<()> {
    let mut cargo = cargo()
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(manifest())
        .args(args)
        .timeout(TIME)
        .show();
    let compiler = static_compiler();
    if std::env::var_os(&compiler).is_none() {
        cargo = cargo.env(&compiler, "musl-gcc");
    }
    cargo.run_ok().context("podspan does not build; see above")?;
    Ok(())
}

/// The target of static programs.
fn static_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// The variable that names the C compiler for static programs, which would have another name for each target; on
/// Debian it has one.
fn static_compiler() -> String {
    format!("CC_{}", static_target().replace('-', "_"))
}

/// A fresh toolchain does not have the target of static programs yet.
fn ensure_target(target: &str, screen: &Screen) -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let directory = Cmd::new(rustc).args(["--print", "target-libdir", "--target", target]).text()?;
    if Path::new(directory.trim()).is_dir() {
        return Ok(());
    }
    screen.line(&format!("installing the Rust target {target} for static programs"));
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
