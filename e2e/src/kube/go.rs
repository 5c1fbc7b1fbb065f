//! Finding a Go that can build the Kubernetes programs, or getting one.
//!
//! Go 1.21 and newer fetch by themselves the Go that a module asks for. Debian 12's is older; it can still
//! fetch a module, and Go's own toolchains are published as modules.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::build;
use crate::command::Cmd;
use crate::screen::Screen;

/// The oldest Go that can fetch the Go a module asks for by itself.
const SELF_UPDATING: (u32, u32) = (1, 21);

/// How long fetching a toolchain (some 70 MB) may take.
const FETCH: Duration = Duration::from_secs(900);

/// What `go mod download -json` says, as far as it is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    dir: PathBuf,
}

/// A Go that can build the modules below `e2e`.
pub(crate) fn find(screen: &Screen) -> Result<PathBuf> {
    let kept = toolchain_directory()?.join("bin/go");
    let mut old = None;
    for candidate in installed().into_iter().chain([kept]).filter(|candidate| candidate.is_file()) {
        match version_of(&candidate) {
            Some(version) if version >= SELF_UPDATING => return Ok(candidate),
            Some(_) => old = Some(candidate),
            None => {}
        }
    }
    if old.is_none() {
        screen.line("there is no Go: installing Debian's");
        crate::requirements::install_package("golang-go")?;
        old = installed().into_iter().find(|candidate| candidate.is_file());
    }
    let Some(old) = old else {
        bail!("the Kubernetes programs are built with Go, and Debian's package golang-go brought none");
    };
    if version_of(&old).is_some_and(|version| version >= SELF_UPDATING) {
        return Ok(old);
    }
    screen.line(&format!("{} is too old: fetching Go {} with it", old.display(), wanted()?));
    fetch(&old).context("no newer Go could be fetched; any of 1.21 or newer in /usr/local/go will do")
}

/// Where Go may be: on the search path, or where its own archive puts it.
fn installed() -> Vec<PathBuf> {
    const PLACES: [&str; 2] = ["/usr/local/go/bin/go", "/usr/lib/go/bin/go"];
    let search = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&search).map(|directory| directory.join("go"));
    on_path.chain(PLACES.map(PathBuf::from)).collect()
}

fn version_of(go: &Path) -> Option<(u32, u32)> {
    let text = Cmd::new(go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").text().ok()?;
    parse_version(text.trim())
}

/// `go1.26.8` as numbers.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(['.', 'r', 'b', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The version that the modules ask for, such as `1.26.0`.
fn wanted() -> Result<&'static str> {
    let lines = include_str!("../../kube/go.mod").lines();
    lines
        .filter_map(|line| line.strip_prefix("go "))
        .next()
        .context("the lab's go.mod names no version of Go")
}

fn toolchain_directory() -> Result<PathBuf> {
    Ok(build::target_directory()?.join("lab/kube").join(format!("go-{}", wanted()?)))
}

/// Fetches the wanted toolchain as the module that it is published as, with an older Go, and puts it below the
/// target directory. A module's files come without the right to be run.
fn fetch(old: &Path) -> Result<PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no name of Go's is known here for the architecture {other}"),
    };
    let place = toolchain_directory()?;
    let below = place.parent().context("a directory above")?;
    std::fs::create_dir_all(below).with_context(|| format!("cannot make {}", below.display()))?;
    let work = tempfile::tempdir_in(below).context("a directory to work in")?;
    let module = format!("golang.org/toolchain@v0.0.1-go{}.linux-{arch}", wanted()?);
    let answer = Cmd::new("sh")
        .args(["-c", "cd \"$1\" && exec \"$2\" mod download -json \"$3\"", "sh"])
        .arg(work.path())
        .arg(old)
        .arg(&module)
        .env("GOFLAGS", "")
        .env("GOWORK", "off")
        .timeout(FETCH)
        .run_ok()?;
    let downloaded: Downloaded =
        serde_json::from_str(&answer.stdout_text()).context("what go mod download says")?;
    let copy = work.path().join("go");
    Cmd::new("cp")
        .args(["-r", "--no-preserve=mode"])
        .arg(&downloaded.dir)
        .arg(&copy)
        .timeout(FETCH)
        .run_ok()?;
    make_runnable(&copy.join("bin"))?;
    make_runnable(&copy.join("pkg/tool"))?;
    std::fs::rename(&copy, &place).with_context(|| format!("cannot put Go in {}", place.display()))?;
    Ok(place.join("bin/go"))
}

/// Gives the programs below `directory` the right to be run.
fn make_runnable(directory: &Path) -> Result<()> {
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_runnable(&entry.path())?;
        } else {
            std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_read() {
        assert_eq!(parse_version("go1.26.8"), Some((1, 26)));
        assert_eq!(parse_version("go1.22rc1"), Some((1, 22)));
        assert_eq!(parse_version(""), None);
        assert!(parse_version("go1.19.8").unwrap() < SELF_UPDATING);
        assert!(parse_version(&format!("go{}", wanted().unwrap())).unwrap() >= SELF_UPDATING);
    }
}
