//! `lab bench failover`: how long traffic stops when a gateway dies, for each way to die.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::figure::{self, Distribution};
use super::stats::percentile;
use super::table::Table;
use super::{Output, artefacts};
use crate::build;
use crate::commands::VariantArgs;
use crate::requirements;
use crate::scenario::failover::{ALL, Strike, Trial, run_trials};
use crate::screen::Screen;
use crate::topology::Shape;
use crate::world::World;

#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    /// Only ways to die with this in their name, such as "power cut"
    filter: Option<String>,
    /// How often a gateway dies in each way
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    trials: u16,
    /// text is for people; json ends with one JSON document as the last line of standard output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    variant: VariantArgs,
}

/// The JSON document.
#[derive(Clone, Debug, Serialize)]
struct Document {
    /// Of all trials: the longest time that any flow was without an answer.
    gap_ms: Gap,
    trials: usize,
    tcp_broken: u64,
    requests_failed: u64,
    kinds: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Gap {
    p50: f64,
    p99: f64,
    max: f64,
}

/// One way to die.
#[derive(Clone, Debug, Serialize)]
struct Kind {
    name: &'static str,
    gap_ms: Gap,
    trials: usize,
    packets_lost: u64,
    packets_sent: u64,
    tcp_broken: u64,
    tcp_longest_stall_ms: u64,
    requests_retried: u64,
    requests_failed: u64,
    /// Connections to a service address were translated on the gateway that died.
    service: Service,
    /// The longest that the measuring program itself was not let run.
    own_stall_ms: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Service {
    tcp_broken: u64,
    requests_retried: u64,
    requests_failed: u64,
    longest_request_ms: u64,
}

impl Gap {
    fn of(gaps: &[f64]) -> Self {
        let at = |share| percentile(gaps, share).unwrap_or(0.0);
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

fn gaps(trials: &[Trial]) -> Vec<f64> {
    // Tenths of a millisecond are all that this is good for.
    trials.iter().map(|trial| (trial.gap().as_secs_f64() * 1e4).round() / 10.0).collect()
}

impl Kind {
    fn of(strike: Strike, trials: &[Trial]) -> Self {
        let sum = |field: fn(&Trial) -> u64| trials.iter().map(field).sum();
        let most = |field: fn(&Trial) -> u64| trials.iter().map(field).max().unwrap_or(0) / 1000;
        Self {
            name: strike.label(),
            gap_ms: Gap::of(&gaps(trials)),
            trials: trials.len(),
            packets_lost: sum(|trial| trial.seen.lost),
            packets_sent: sum(|trial| trial.seen.sent),
            tcp_broken: sum(|trial| trial.seen.pods.broken),
            tcp_longest_stall_ms: most(|trial| trial.seen.pods.stall_us),
            requests_retried: sum(|trial| trial.seen.pods.retried),
            requests_failed: sum(|trial| trial.seen.pods.failed),
            service: Service {
                tcp_broken: sum(|trial| trial.seen.service.broken),
                requests_retried: sum(|trial| trial.seen.service.retried),
                requests_failed: sum(|trial| trial.seen.service.failed),
                longest_request_ms: most(|trial| trial.seen.service.longest_us),
            },
            own_stall_ms: most(|trial| trial.seen.own_stall_us),
        }
    }
}

pub(super) fn run(args: &FailoverArgs) -> Result<ExitCode> {
    let screen = Screen::new(args.output == Output::Json);
    let is_wanted = |strike: &Strike| args.filter.as_deref().is_none_or(|part| strike.label().contains(part));
    let wanted: Vec<_> = ALL.into_iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        bail!("no way to die has that in its name; there are: {}", ALL.map(Strike::label).join(", "));
    }
    requirements::ensure(&screen)?;
    let programs = build::programs(&screen)?;
    let mut world = World::create(Shape::Standard, args.variant.variant(), screen)?;
    world.start_all(Some(&programs))?;
    let mut all: Vec<(Strike, Vec<Trial>)> = Vec::new();
    for strike in wanted {
        screen.line(&format!("{}: {} times", strike.label(), args.trials));
        all.push((strike, run_trials(&mut world, strike, args.trials.into(), &screen)?));
    }
    let left = world.down()?;
    let document = document(&all);
    screen.raw(&format!("\n{}", table(&document.kinds)));
    screen.raw(
        "gap: the longest time that any of 20 flows, 1000 datagrams a second together, was without an answer; of \
         nearest rank. Requests are tried twice. A service's connections are translated on the gateway that died.",
    );
    let distributions: Vec<_> = all
        .iter()
        .map(|(strike, trials)| Distribution { name: strike.label().to_owned(), values: gaps(trials) })
        .collect();
    let title = "Traffic without an answer when a gateway dies";
    let [svg, png] = figure::distribution(title, "ms", &distributions).save("failover")?;
    let text = serde_json::to_string(&document)?;
    let file = artefacts()?.join("failover.json");
    std::fs::write(&file, format!("{text}\n"))?;
    screen.line(&format!("written: {} {} {}", svg.display(), png.display(), file.display()));
    if args.output == Output::Json {
        println!("{text}");
    }
    if !left.is_empty() {
        bail!("this was left: {left}");
    }
    Ok(ExitCode::SUCCESS)
}

fn document(all: &[(Strike, Vec<Trial>)]) -> Document {
    let every: Vec<f64> = all.iter().flat_map(|(_, trials)| gaps(trials)).collect();
    let kinds: Vec<Kind> = all.iter().map(|(strike, trials)| Kind::of(*strike, trials)).collect();
    Document {
        gap_ms: Gap::of(&every),
        trials: every.len(),
        tcp_broken: kinds.iter().map(|kind| kind.tcp_broken).sum(),
        requests_failed: kinds.iter().map(|kind| kind.requests_failed).sum(),
        kinds,
    }
}

fn table(kinds: &[Kind]) -> Table {
    let mut table = Table::new([
        "gateway's death",
        "trials",
        "gap p50 ms",
        "p99",
        "max",
        "lost",
        "TCP broken",
        "longest stall ms",
        "requests retried",
        "failed",
        "service: TCP broken",
        "retried",
        "failed",
    ]);
    for kind in kinds {
        let gap = |ms: f64| format!("{ms:.0}");
        table.row([
            kind.name.to_owned(),
            kind.trials.to_string(),
            gap(kind.gap_ms.p50),
            gap(kind.gap_ms.p99),
            gap(kind.gap_ms.max),
            format!("{} of {}", kind.packets_lost, kind.packets_sent),
            kind.tcp_broken.to_string(),
            kind.tcp_longest_stall_ms.to_string(),
            kind.requests_retried.to_string(),
            kind.requests_failed.to_string(),
            kind.service.tcp_broken.to_string(),
            kind.service.requests_retried.to_string(),
            kind.service.requests_failed.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::failover::Seen;

    #[test]
    fn the_document_has_the_shape_that_is_asked_for() {
        let trial = |gap_us| Trial {
            victim: "alpha-1",
            seen: Seen { gap_us, ..Seen::default() },
            still_through_it: 0,
            accusations: 0,
        };
        let all = vec![
            (Strike::PowerCut, vec![trial(100_000), trial(300_000)]),
            (Strike::Lossy, vec![trial(200_000)]),
        ];
        let value = serde_json::to_value(document(&all)).unwrap();
        assert_eq!(value["gap_ms"], serde_json::json!({"p50": 200.0, "p99": 300.0, "max": 300.0}));
        assert_eq!((&value["trials"], &value["tcp_broken"]), (&3.into(), &0.into()));
        assert!(table(&document(&all).kinds).to_string().contains("power cut"));
    }
}
