//! `lab test`: the workspace's own tests, then the scenarios, world by world.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use super::place::{Built, Place};
use super::{Scenario, all, failover, interop, kube_api, kube_clusters};
use crate::screen::Screen;
use crate::tunnel::{self, Kind};
use crate::{build, kube, requirements, signals};

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Only what has this in its name; see --list
    filter: Option<String>,
    /// Also what takes two clusters of real Kubernetes
    #[arg(long)]
    kube: bool,
    /// Try what is tried several times 30 times instead of 3, and what takes long; an API server is away for ten minutes
    #[arg(long)]
    soak: bool,
    /// Tell the names and what each shows, and run nothing
    #[arg(long)]
    list: bool,
    /// At the first failure stop and leave the world as it is
    #[arg(long)]
    keep_on_failure: bool,
}

impl TestArgs {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_deref().is_none_or(|filter| name.contains(filter))
    }
}

/// How long the workspace's own tests may take, their compilation included.
const CARGO_TIME: Duration = Duration::from_secs(3600);

/// The tests that `cargo test` runs: name, what they show, arguments.
const CARGO_TESTS: [(&str, &str, &[&str]); 2] = [
    ("cargo/workspace", "unit and property tests of all crates", &["test", "--workspace"]),
    (
        "cargo/simulated",
        "pairs of nodes in virtual time: loss, reordering, duplication, MTU",
        &["test", "-p", "podspan-dataplane", "--features", "sim"],
    ),
];

/// How much of what failed is told again at the end, where a reader of a long log looks first.
const RETOLD_LINES: usize = 12;

/// The first lines of what went wrong.
fn retold(name: &str, why: &str) -> String {
    let lines = why.lines().filter(|line| !line.trim().is_empty()).take(RETOLD_LINES);
    let lines = lines.map(|line| format!("\n    {}", line.chars().take(300).collect::<String>()));
    format!("failed: {name}{}", lines.collect::<String>())
}

/// An error with its causes, and without the backtrace that `RUST_BACKTRACE` would add: what failed is the
/// world under test, not this program.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  because: ")
}

#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: Vec<String>,
    failed_count: u64,
}

impl Tally {
    fn fail(&mut self, name: &str, count: u64, why: &str) {
        self.failed.push(retold(name, why));
        self.failed_count += count;
    }
}

/// Runs the tests. The last line is `N passed, N failed`.
pub(crate) fn test(args: &TestArgs) -> Result<ExitCode> {
    fn wanted_of<P: Place>(args: &TestArgs, all: Vec<Scenario<P>>) -> Vec<Scenario<P>> {
        all.into_iter().filter(|scenario| args.wants(&scenario.full_name())).collect()
    }
    if args.soak {
        failover::soak();
        kube_clusters::SOAK.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    let cargo: Vec<_> = CARGO_TESTS.into_iter().filter(|(name, ..)| args.wants(name)).collect();
    let worlds = wanted_of(args, all());
    let api = wanted_of(args, kube_api::all());
    let tunnels = wanted_of(args, interop::all());
    let clusters = if args.kube { wanted_of(args, kube_clusters::all()) } else { Vec::new() };
    if worlds.is_empty() && api.is_empty() && tunnels.is_empty() && clusters.is_empty() && cargo.is_empty() {
        bail!(
            "no test has {:?} in its name; see `cargo lab test --list`, or `--list --kube`",
            args.filter.as_deref().unwrap_or("")
        );
    }
    let screen = Screen::new(false);
    if args.list {
        let cargo = cargo.iter().map(|(name, about, _)| ((*name).to_owned(), *about));
        let places = listed(&worlds).chain(listed(&tunnels)).chain(listed(&api)).chain(listed(&clusters));
        for (name, about) in cargo.chain(places) {
            screen.raw(&format!("{name:<32} {about}"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    requirements::ensure(&screen)?;
    let mut tally = Tally::default();
    for (name, about, arguments) in cargo {
        screen.heading(&format!("{name}: {about}"));
        run_cargo(name, arguments, &screen, &mut tally)?;
    }
    let mut built = Built::default();
    if worlds.iter().any(|scenario| scenario.setting.podspan)
        || api.iter().any(|scenario| scenario.setting.podspan)
    {
        built.podspan = Some(build::programs(&screen)?);
    }
    if clusters.iter().any(|scenario| scenario.setting.podspan()) {
        built.image = Some(build::image_programs(&screen)?);
    }
    if !tunnels.is_empty() {
        for kind in interop::PEERS.into_iter().chain([Kind::Podspan]) {
            built.tunnels.insert(kind, tunnel::ensure(kind, &screen)?);
        }
    }
    if !clusters.is_empty() {
        requirements::ensure_kube(&screen)?;
        built.kubernetes = Some(kube::ensure_programs(kube::Wanted::All, &screen)?);
    } else if !api.is_empty() {
        requirements::ensure_kube_api(&screen)?;
        built.kubernetes = Some(kube::ensure_programs(kube::Wanted::Api, &screen)?);
    }
    let means = Means { args, screen: &screen, built };
    let mut next = run_places(&worlds, &means, &mut tally)?;
    if next == Next::GoOn {
        next = run_places(&tunnels, &means, &mut tally)?;
    }
    if next == Next::GoOn {
        next = run_places(&api, &means, &mut tally)?;
    }
    if next == Next::GoOn {
        next = run_places(&clusters, &means, &mut tally)?;
    }
    if next == Next::Stop {
        screen.raw("stopped at the first failure");
    }
    for failure in &tally.failed {
        screen.raw(failure);
    }
    screen.raw(&format!("{} passed, {} failed", tally.passed, tally.failed_count));
    Ok(if tally.failed_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn listed<P: Place>(scenarios: &[Scenario<P>]) -> impl Iterator<Item = (String, &'static str)> {
    scenarios.iter().map(|scenario| (scenario.full_name(), scenario.about))
}

fn run_cargo(name: &str, arguments: &[&str], screen: &Screen, tally: &mut Tally) -> Result<()> {
    let (subcommand, more) = arguments.split_first().context("a cargo subcommand")?;
    let finished = build::cargo()
        .arg(subcommand)
        .arg("--no-fail-fast")
        .arg("--manifest-path")
        .arg(build::manifest())
        .args(more)
        .timeout(CARGO_TIME)
        .run()?;
    let (stdout, stderr) = (finished.stdout_text(), finished.stderr_text());
    let (passed, failed) = count_results(&stdout);
    tally.passed += passed;
    screen.line(&format!("{passed} passed, {failed} failed"));
    // A test program that crashes, or does not compile, has no result line.
    if !finished.status.success() || failed > 0 || passed == 0 {
        screen.raw(&format!("{stdout}\n{stderr}"));
        tally.fail(name, failed.max(1), &complaints(&stdout, &stderr));
    }
    Ok(())
}

/// What a reader looks for in the output of `cargo test`: which tests failed and why they panicked, or what did
/// not compile.
fn complaints(stdout: &str, stderr: &str) -> String {
    let mut told = Vec::new();
    for text in [stdout, stderr] {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.ends_with("... FAILED") || line.starts_with("error") {
                told.push(line);
            } else if line.contains("panicked at") {
                told.push(line);
                told.extend(lines.next());
            }
        }
    }
    told.join("\n")
}

/// Sums up lines such as `test result: ok. 24 passed; 0 failed; ...`.
fn count_results(text: &str) -> (u64, u64) {
    let mut sum = (0, 0);
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        let count = |word: &str| -> u64 {
            let parts = line.split([';', '.']).map(str::trim);
            parts.filter_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok()).sum()
        };
        sum = (sum.0 + count(" passed"), sum.1 + count(" failed"));
    }
    sum
}

#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Stop,
}

/// What every world of the run is made with.
struct Means<'a> {
    args: &'a TestArgs,
    screen: &'a Screen,
    built: Built,
}

impl Means<'_> {
    fn make<P: Place>(&self, setting: P::Setting) -> Result<P> {
        signals::within(P::TIME, || P::make(setting, &self.built, *self.screen))
            .context("the world could not be made")
    }
}

/// Runs scenarios, those of one setting in one world.
fn run_places<P: Place>(scenarios: &[Scenario<P>], means: &Means<'_>, tally: &mut Tally) -> Result<Next> {
    let mut rest = scenarios;
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|scenario| scenario.setting == first.setting).count();
        let (group, later) = rest.split_at(count);
        rest = later;
        if run_world(first.setting, group, means, tally)? == Next::Stop {
            return Ok(Next::Stop);
        }
    }
    Ok(Next::GoOn)
}

/// Runs the scenarios of one world. After a failure the next one gets a new world, so that one failure is not
/// the cause of another.
fn run_world<P: Place>(
    setting: P::Setting,
    group: &[Scenario<P>],
    means: &Means<'_>,
    tally: &mut Tally,
) -> Result<Next> {
    let screen = means.screen;
    screen.heading(&P::name(setting));
    let mut world: Option<P> = None;
    for scenario in group {
        let name = scenario.full_name();
        let mut current = match world.take() {
            Some(world) => world,
            None => match means.make(setting) {
                Ok(world) => world,
                Err(error) => {
                    signals::check()?;
                    let why = told(&error);
                    tally.fail(&name, 1, &why);
                    screen.line(&format!("FAILED: {name}: {why}"));
                    continue;
                }
            },
        };
        let begin = Instant::now();
        let result = signals::within(scenario.timeout, || caught(scenario, &mut current));
        signals::check()?;
        let seconds = begin.elapsed().as_secs_f64();
        let about = scenario.about;
        match result {
            Ok(()) => {
                tally.passed += 1;
                screen.line(&format!("passed: {name} ({seconds:.1} s): {about}"));
                world = Some(current);
            }
            Err(error) => {
                tally.fail(&name, 1, &told(&error));
                screen.line(&format!("FAILED: {name} ({seconds:.1} s): {about}\n{error:#}"));
                screen.raw(&current.diagnosis());
                if means.args.keep_on_failure {
                    current.stay()?;
                    screen.line("the world stands as it failed; end it with `cargo lab down`");
                    return Ok(Next::Stop);
                }
                close(Some(current), &name, screen, tally)?;
            }
        }
    }
    close(world, &P::name(setting), screen, tally)?;
    Ok(Next::GoOn)
}

/// Takes the world down; whatever it leaves is a failure of its own.
fn close<P: Place>(world: Option<P>, name: &str, screen: &Screen, tally: &mut Tally) -> Result<()> {
    if let Some(world) = world {
        let left = world.down()?;
        if left.is_empty() {
            tally.passed += 1;
            screen.line("passed: the world is down and has left nothing");
        } else {
            tally.fail(&format!("{name}: leftovers"), 1, &left.to_string());
            screen.line(&format!("FAILED: the world has left: {left}"));
        }
    }
    Ok(())
}

/// A panic in a scenario is its failure, not the end of the run.
fn caught<P: Place>(scenario: &Scenario<P>, world: &mut P) -> Result<()> {
    let run = std::panic::AssertUnwindSafe(|| (scenario.run)(world));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(anyhow!("the scenario panicked: {}", text.unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_up() {
        let text = "running 3 tests\n\
             test result: ok. 24 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.11s\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.11s\n";
        assert_eq!(count_results(text), (26, 1));
        assert_eq!(
            complaints(
                "test a::b ... FAILED\ntest c ... ok\nthread 'a::b' panicked at x.rs:1:\nboom",
                "error: E"
            ),
            "test a::b ... FAILED\nthread 'a::b' panicked at x.rs:1:\nboom\nerror: E"
        );
        assert_eq!(count_results("error: could not compile"), (0, 0));
    }
}
