//! `lab bench`: podspan's data plane measured side by side with what people would use instead.
//!
//! Two network namespaces are joined by a veth; a program at each end makes a tunnel; the load goes through it. The
//! contenders take turns, round after round, so that what else the machine does meets all of them alike.

mod contender;
pub(crate) mod cpu;
mod crypto;
mod failover;
mod figure;
mod forwarder;
mod frame;
mod goals;
mod iperf;
mod measure;
mod memory;
mod metric;
mod priority;
mod report;
mod stats;
mod table;
mod udp;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::kube::Site;
use crate::netns::Netns;
use crate::screen::Screen;
use crate::tunnel::{self, Installed, Kind};
use crate::{build, requirements, signals};

use contender::{Contender, Tunnel};
pub(crate) use forwarder::{Forwarder, forward};
use measure::{Pace, Turn};
use metric::Results;
use report::Surroundings;

/// How the result is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// The same on standard error, and one JSON document as the last line of standard output.
    Json,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_precedence_over_arg = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    other: Option<OtherBench>,
    /// Only contenders with this in their name
    filter: Option<String>,
    /// Fewer and shorter rounds: less than 4 minutes, once everything is built
    #[arg(long)]
    quick: bool,
    /// text is for people; json ends with one JSON document as the last line of standard output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// Leave this program out instead of failing if it cannot be installed
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Measure this build of dataplane/examples/node.rs instead of building it
    #[arg(long, value_name = "PATH")]
    podspan: Option<PathBuf>,
    /// How many rounds
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
}

/// What else is measured, apart from throughput and cost.
#[derive(Debug, Subcommand)]
enum OtherBench {
    /// How long traffic stops when a gateway dies
    Failover(failover::FailoverArgs),
}

/// Runs it.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match &args.other {
        Some(OtherBench::Failover(args)) => failover::run(args),
        None => tunnels(args),
    }
}

/// Where pictures and documents go, made if it is not there: `target/lab/bench`.
pub(crate) fn artefacts() -> Result<PathBuf> {
    let directory = build::target_directory()?.join("lab/bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// How long a run may take at all, before it is ended and cleaned up.
const MOST: Duration = Duration::from_secs(3600);

impl BenchArgs {
    fn wanted(&self) -> Result<Vec<Contender>> {
        for name in &self.without {
            if !Kind::ALL.iter().any(|kind| kind.name() == name) {
                let names = Kind::ALL.map(Kind::name).join(", ");
                bail!("there is no program {name:?} to leave out; there are: {names}");
            }
        }
        let is_wanted = |contender: &Contender| {
            let fits = self.filter.as_deref().is_none_or(|filter| contender.name().contains(filter));
            let out =
                contender.kind().is_some_and(|kind| self.without.iter().any(|name| name == kind.name()));
            fits && !out
        };
        let wanted: Vec<_> = Contender::ALL.into_iter().filter(is_wanted).collect();
        if wanted.is_empty() {
            let names = Contender::ALL.map(Contender::name).join(", ");
            bail!(
                "nothing has {:?} in its name; there are: {names}",
                self.filter.as_deref().unwrap_or_default()
            );
        }
        Ok(wanted)
    }

    fn pace(&self) -> Pace {
        let pace = if self.quick { Pace::QUICK } else { Pace::FULL };
        Pace { rounds: self.rounds.map_or(pace.rounds, usize::from), ..pace }
    }
}

fn tunnels(args: &BenchArgs) -> Result<ExitCode> {
    let wanted = args.wanted()?;
    let screen = Screen::new(args.output == Output::Json);
    requirements::ensure_bench(&screen)?;
    let mut results = Results::default();
    let programs = install(&wanted, args.podspan.as_deref(), &screen, &mut results)?;
    let is_there = |contender: &Contender| contender.kind().is_none_or(|kind| programs.contains_key(&kind));
    let contenders: Vec<_> = wanted.into_iter().filter(is_there).collect();
    let surroundings =
        signals::within(MOST, || measure_all(&contenders, &programs, args.pace(), screen, &mut results))?;
    screen.raw(&format!("\n{}\n{}", report::table(&results), report::goal_table(&results)));
    for line in report::remarks(&results, &surroundings) {
        screen.raw(&line);
    }
    let document = report::document(&results, &surroundings);
    let [svg, png] = report::figure(&results, &surroundings).save("throughput")?;
    let file = artefacts()?.join("throughput.json");
    std::fs::write(&file, format!("{document:#}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    screen.line(&format!("written: {} {} {}", svg.display(), png.display(), file.display()));
    if args.output == Output::Json {
        println!("{document}");
    }
    let complete = results.missing.is_empty() && results.failures.is_empty();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs what is wanted. What cannot be is noted as missing, but for podspan, without which there is nothing to do.
fn install(
    wanted: &[Contender],
    podspan: Option<&Path>,
    screen: &Screen,
    results: &mut Results,
) -> Result<BTreeMap<Kind, Installed>> {
    let mut programs = BTreeMap::new();
    for kind in Kind::ALL {
        if !wanted.iter().any(|contender| contender.kind() == Some(kind)) {
            continue;
        }
        if let (Kind::Podspan, Some(path)) = (kind, podspan) {
            let path = path.canonicalize().with_context(|| format!("there is no {}", path.display()))?;
            programs.insert(kind, Installed { kind, path });
            continue;
        }
        match tunnel::ensure(kind, screen) {
            Ok(program) => {
                programs.insert(kind, program);
            }
            Err(error) if kind == Kind::Podspan || signals::was_interrupted() => return Err(error),
            Err(error) => {
                let why = format!(
                    "{name} cannot be installed, so there is nothing to compare with it (`--without {name}` leaves it \
                     out): {error:#}",
                    name = kind.name()
                );
                screen.line(&format!("MISSING: {why}"));
                results.missing.push(why);
            }
        }
    }
    Ok(programs)
}

fn measure_all(
    contenders: &[Contender],
    programs: &BTreeMap<Kind, Installed>,
    pace: Pace,
    screen: Screen,
    results: &mut Results,
) -> Result<Surroundings> {
    let netns = ["psp-bench-a", "psp-bench-b"].map(Netns::named);
    let _first = priority::Raised::take();
    let (load, before) = (cpu::load()?, (cpu::Machine::now()?, cpu::of_lab()?));
    let begin = std::time::Instant::now();
    let mut site = Site::plain(screen, &netns)?;
    tunnel::wire([&netns[0], &netns[1]])?;
    let iperf = iperf::serve(&mut site, &netns[1])?;
    let mut broken = Vec::new();
    for round in 1..=pace.rounds {
        let pings = contenders.iter().filter(|contender| contender.is_pinged());
        let pings = std::iter::repeat_n(pings, pace.pings).flatten();
        let turns = contenders.iter().map(|contender| (contender, true)).chain(pings.map(|c| (c, false)));
        for (contender, is_whole) in turns {
            signals::check()?;
            if broken.contains(contender) {
                continue;
            }
            let what = if is_whole { "" } else { ", pings" };
            screen.line(&format!("round {round} of {}: {}{what}", pace.rounds, contender.name()));
            let program = contender.kind().and_then(|kind| programs.get(&kind));
            match Tunnel::start(&mut site, *contender, program, &netns) {
                Ok(mut tunnel) => {
                    let turn = Turn { contender: *contender, netns: &netns, iperf, pace };
                    if is_whole { turn.run(&mut tunnel, results) } else { turn.pings(results) }?;
                    tunnel.stop()?;
                }
                Err(error) => {
                    signals::check()?;
                    let why = format!("{} does not start and is left out: {error:#}", contender.name());
                    screen.line(&why);
                    results.failures.push(why);
                    broken.push(*contender);
                    contender::end_all(&site, iperf)?;
                }
            }
        }
    }
    let left = site.take_down()?;
    if !left.is_empty() {
        results.failures.push(format!("left behind: {left}"));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let machine = cpu::Machine::now()?.since(before.0);
    let own = (cpu::of_lab()? - before.1).as_secs_f64();
    let mut versions = Vec::new();
    for kind in programs.keys() {
        versions.push(format!("{} {}", kind.name(), kind.version()?));
    }
    Ok(Surroundings {
        rounds: pace.rounds,
        cores: measure::cores(),
        kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
        processor: processor(),
        load: [load, cpu::load()?],
        others: ((machine.busy - own) / (measure::cores() * seconds)).max(0.0),
        seconds,
        versions,
    })
}

/// The processor's name, as proc(5) tells it on x86.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("an unknown processor".into(), |(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(words: &[&str]) -> BenchArgs {
        Line::try_parse_from([&["bench"], words].concat()).unwrap().args
    }

    #[test]
    fn contenders_are_chosen_by_name() {
        assert_eq!(parse(&[]).wanted().unwrap().len(), Contender::ALL.len());
        let two = parse(&["podspan"]).wanted().unwrap();
        assert_eq!(two, [Contender::Podspan, Contender::PodspanTwoLanes]);
        let without = parse(&["--without", "boringtun-cli", "--without", "gotatun"]).wanted().unwrap();
        assert_eq!(without.len(), Contender::ALL.len() - 3);
        assert!(parse(&["nonsense"]).wanted().unwrap_err().to_string().contains("wireguard-go"));
        assert!(parse(&["--without", "nonsense"]).wanted().is_err());
    }

    #[test]
    fn a_quick_run_is_quicker() {
        assert!(parse(&["--quick"]).pace().rounds < parse(&[]).pace().rounds);
        assert_eq!(parse(&["--rounds", "9"]).pace().rounds, 9);
    }
}
