//! The images of the lab, made from the programs that were built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::image::Image;
use super::programs::KubePrograms;
use super::settings::{COREDNS_IMAGE, PAUSE_IMAGE, PROBE_IMAGE};
use crate::build::Programs;
use crate::command::Cmd;
use crate::state;

/// podspan's image as the manifests name it, in the full form to which container runtimes complete a name without
/// a registry.
pub(crate) const PODSPAN_IMAGE: &str = concat!("docker.io/library/podspan:", env!("CARGO_PKG_VERSION"));

/// The same programs under the name of a later version.
pub(crate) const NEXT_IMAGE: &str = concat!("docker.io/library/podspan:", env!("CARGO_PKG_VERSION"), "-next");

/// Where `nft` is on Debian.
const NFT: &str = "/usr/sbin/nft";

/// Writes the images that every cluster of the lab needs, podspan's too if it was built, and gives the archives.
pub(crate) fn write_all(kubernetes: &KubePrograms, podspan: Option<&Programs>) -> Result<Vec<PathBuf>> {
    let directory = state::directory("kube/images")?;
    // The link itself would be the link of whoever reads it.
    let lab = std::fs::read_link("/proc/self/exe").context("the lab's own program")?;
    let own = [
        (PAUSE_IMAGE, "pause", "/pause", kubernetes.path("pause")),
        (COREDNS_IMAGE, "coredns", "/coredns", kubernetes.path("coredns")),
        (PROBE_IMAGE, "probe", "/lab", lab),
    ];
    let mut archives = Vec::new();
    let stripped = tempfile::tempdir().context("cannot make a directory for stripped programs")?;
    for (name, file, at, program) in own {
        let program = strip(&program, stripped.path())?;
        let archive = directory.join(format!("{file}.tar"));
        Image::new(&[at]).program(at, &program)?.write(name, &archive)?;
        archives.push(archive);
    }
    if let Some(programs) = podspan {
        let archive = directory.join("podspan.tar");
        write_podspan(programs, PODSPAN_IMAGE, &archive)?;
        archives.push(archive);
    }
    Ok(archives)
}

/// The archives that [`write_all`] has written.
pub(crate) fn written(podspan: bool) -> Vec<PathBuf> {
    let files = ["pause", "coredns", "probe", "podspan"];
    let count = if podspan { files.len() } else { files.len() - 1 };
    files[..count].iter().map(|file| state::path("kube/images").join(format!("{file}.tar"))).collect()
}

/// Writes podspan's image: all its programs, which are static, and nft, through which the agent sets packet rules,
/// with its libraries.
pub(crate) fn write_podspan(programs: &Programs, name: &str, archive: &Path) -> Result<()> {
    let version = name.rsplit_once(':').map_or("", |(_, tag)| tag);
    Image::new(&["/podspan-agent"])
        .label("org.opencontainers.image.title", "podspan")
        .label("org.opencontainers.image.version", version)
        .label("org.opencontainers.image.licenses", "Apache-2.0")
        .static_program("/podspan-agent", &programs.agent)?
        .static_program("/podspan-broker", &programs.broker)?
        .static_program("/podspan-cni", &programs.plugin)?
        .static_program("/podspan", &programs.cli)?
        .program(NFT, Path::new(NFT))?
        .write(name, archive)
}

/// A copy without symbols and line tables, which are more than half of a program.
fn strip(program: &Path, directory: &Path) -> Result<PathBuf> {
    let copy = directory.join(program.file_name().context("a program without a name")?);
    // From binutils, without which nothing could have been linked here.
    Cmd::new("strip").arg("-o").arg(&copy).arg(program).run_ok()?;
    Ok(copy)
}
