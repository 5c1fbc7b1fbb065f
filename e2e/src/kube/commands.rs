//! `cargo lab kube ...`: what a person types.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::clusters::Clusters;
use super::images;
use super::programs::{self, Wanted};
use crate::screen::Screen;
use crate::state::{Record, Stage};
use crate::{build, requirements};

/// Two clusters of real Kubernetes
#[derive(Debug, Subcommand)]
pub(crate) enum KubeCommand {
    /// Build the Kubernetes programs that are not built yet
    Build(Build),
    /// Make two clusters, alpha and beta, with a pod on every node, and leave them running
    Up(Up),
    /// Take the clusters down and check that nothing is left of them
    Down,
    /// Tell what stands and what runs
    Status,
    /// Run kubectl for a cluster: kubectl alpha -- get pods -A
    Kubectl(Place),
    /// Run a command on a node (alpha-1, ...), or on the host outside of both clouds (outside)
    Exec(Place),
    /// Write podspan's image as an archive, for `ctr -n k8s.io images import`
    Image(WriteImage),
    /// Bring an image's archive to every node of both clusters
    Import(Image),
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// Only what an API server alone takes: kube-apiserver and kubectl
    #[arg(long)]
    api_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Without podspan's image, which is then not built
    #[arg(long)]
    bare: bool,
    /// Also join them
    #[arg(long, conflicts_with = "bare")]
    join: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    place: String,
    /// The arguments
    #[arg(last = true, required = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Image {
    /// The archive's file
    archive: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WriteImage {
    /// The archive's file
    archive: PathBuf,
    /// Also put the program `podspan` here, which is in the image, too
    #[arg(long, value_name = "FILE")]
    cli: Option<PathBuf>,
}

/// Runs the subcommand.
pub(crate) fn run(command: &KubeCommand) -> Result<ExitCode> {
    match command {
        KubeCommand::Build(args) => build_programs(args),
        KubeCommand::Up(args) => up(args),
        KubeCommand::Down => crate::commands::down(),
        KubeCommand::Status => status(),
        KubeCommand::Kubectl(place) => kubectl(place),
        KubeCommand::Exec(place) => exec(place),
        KubeCommand::Image(args) => image(args),
        KubeCommand::Import(args) => import(args),
    }
}

fn build_programs(args: &Build) -> Result<ExitCode> {
    let screen = Screen::new(false);
    programs::ensure(if args.api_only { Wanted::Api } else { Wanted::All }, &screen)?;
    Ok(ExitCode::SUCCESS)
}

fn up(args: &Up) -> Result<ExitCode> {
    let screen = Screen::new(false);
    requirements::ensure_kube(&screen)?;
    let kubernetes = programs::ensure(Wanted::All, &screen)?;
    let podspan = if args.bare { None } else { Some(build::image_programs(&screen)?) };
    let begin = Instant::now();
    let mut clusters = Clusters::create(&kubernetes, podspan.as_ref(), screen)?;
    if args.join {
        clusters.start_podspan()?;
    } else {
        clusters.deploy_probes()?;
    }
    clusters.stay()?;
    screen.line(&format!("two clusters are up after {:.1} s", begin.elapsed().as_secs_f64()));
    screen.raw(
        "\n  cargo lab kube kubectl alpha -- get pods -A     kubectl in a cluster\n  \
         cargo lab kube exec alpha-1 -- ip route         a command on a node\n  \
         cargo lab kube exec outside -- bash             a shell with kubectl's network and files\n  \
         cargo lab kube status\n  cargo lab kube down",
    );
    Ok(ExitCode::SUCCESS)
}

/// The clusters that stand, without the right to change what the lab has made.
fn standing(screen: Screen) -> Result<Clusters> {
    requirements::ensure_root()?;
    let record = Record::load()?.filter(|record| record.kube.as_ref().is_some_and(|kube| kube.clusters));
    let record = record.context("there are no clusters; make them with `cargo lab kube up`")?;
    let kubernetes = programs::find()?;
    Clusters::standing(record, &kubernetes, screen)
}

fn kubectl(place: &Place) -> Result<ExitCode> {
    let clusters = standing(Screen::new(false))?;
    let arguments: Vec<&str> = place.arguments.iter().map(String::as_str).collect();
    let code = clusters.kubectl_cmd(&place.place, &arguments)?.hand_over()?;
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
}

fn exec(place: &Place) -> Result<ExitCode> {
    let clusters = standing(Screen::new(false))?;
    let arguments: Vec<&str> = place.arguments.iter().map(String::as_str).collect();
    let cmd = if place.place == "outside" {
        let (program, rest) = arguments.split_first().context("no command was given")?;
        // kubectl, and podspan as the image has it.
        let mut paths = vec![programs::find()?.directory().to_owned(), build::image_directory()?];
        paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        crate::command::Cmd::new(program)
            .args(rest)
            .env("PATH", std::env::join_paths(paths)?)
            .env("KUBECONFIG", clusters.kubeconfigs())
            .within(&clusters.outside())
    } else {
        clusters.on(&clusters.node(&place.place)?, &arguments)?
    };
    let code = cmd.hand_over()?;
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
}

fn status() -> Result<ExitCode> {
    let screen = Screen::new(false);
    let clusters = standing(screen)?;
    let record = &clusters.site.record;
    if record.stage != Stage::Up {
        screen.raw("the clusters are being made or used by a running command, or were left by one that was cut short");
    }
    let (alive, dead): (Vec<_>, Vec<_>) = record.daemons.iter().partition(|daemon| daemon.process.is_alive());
    screen.raw(&format!("processes: {} running", alive.len()));
    for daemon in &dead {
        screen.raw(&format!(
            "  ended: {} (see {})",
            daemon.name,
            crate::world::log_path(&daemon.name)?.display()
        ));
    }
    let mut well = dead.is_empty();
    for cluster in &clusters.plan.clusters {
        screen.raw(&format!(
            "\ncluster {}: pods {}, {}; services {}, {}; kube-proxy: {}; CNI: {}\n  kubeconfig: {}",
            cluster.name,
            cluster.pods.v4,
            cluster.pods.v6,
            cluster.services.v4,
            cluster.services.v6,
            cluster.proxy.name(),
            cluster.network.name(),
            clusters.kubeconfig(cluster.name)?.display(),
        ));
        match clusters.not_ready(cluster.name) {
            Ok(missing) if missing.is_empty() => screen.raw("  all nodes and CoreDNS are ready"),
            Ok(missing) => {
                well = false;
                screen.raw(&format!("  not ready: {}", missing.join(", ")));
            }
            Err(error) => {
                well = false;
                screen.raw(&format!("  its API server does not answer: {error:#}"));
            }
        }
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn import(args: &Image) -> Result<ExitCode> {
    let screen = Screen::new(false);
    let clusters = standing(screen)?;
    clusters.import(std::slice::from_ref(&args.archive))?;
    screen.line(&format!("{} is on every node", args.archive.display()));
    Ok(ExitCode::SUCCESS)
}

fn image(args: &WriteImage) -> Result<ExitCode> {
    let screen = Screen::new(false);
    for (file, what) in [(Some(&args.archive), "archive"), (args.cli.as_ref(), "program")] {
        if let Some(file) = file.filter(|file| file.is_dir()) {
            bail!("{} is a directory; name the {what}'s file", file.display());
        }
    }
    let podspan = build::image_programs(&screen)?;
    images::write_podspan(&podspan, images::PODSPAN_IMAGE, &args.archive)?;
    screen.line(&format!("{} holds the image {}", args.archive.display(), images::PODSPAN_IMAGE));
    if let Some(cli) = &args.cli {
        std::fs::copy(&podspan.cli, cli)
            .with_context(|| format!("cannot put the program podspan at {}", cli.display()))?;
        screen.line(&format!("{} is the program podspan, static", cli.display()));
    }
    Ok(ExitCode::SUCCESS)
}
