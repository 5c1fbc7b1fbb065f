//! podspan-agent: the node daemon of podspan.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use podspan_agent::config::{AfterTakeover, OnExit};
use podspan_agent::run;
use podspan_agent::takeover::probe;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

/// Joins this node's pods to those of other clusters: tunnels, routes and rules.
#[derive(Parser)]
#[command(name = "podspan-agent", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Args)]
struct Run {
    /// The settings file.
    #[arg(long, value_name = "FILE", default_value = "/etc/podspan/agent.toml")]
    config: PathBuf,
    /// What happens to routes and rules when the agent is told to stop; overrides `on-exit`.
    #[arg(long, value_parser = |text: &str| text.parse::<OnExit>())]
    on_exit: Option<OnExit>,
    /// What it does once another agent has taken over from it; overrides `after-takeover`.
    #[arg(long, value_parser = |text: &str| text.parse::<AfterTakeover>())]
    after_takeover: Option<AfterTakeover>,
    /// Where this very process is asked by `podspan-agent probe`; overrides `probe-socket`.
    #[arg(long, value_name = "PATH")]
    probe_socket: Option<PathBuf>,
    /// How log lines look. Levels by the variable PODSPAN_LOG, such as `debug` or `podspan_agent=debug`.
    #[arg(long, value_enum, default_value_t = Log::Text)]
    log: Log,
    /// Read the settings, say what is wrong with them, and end.
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Take out everything that podspan put onto this node: routes, rules, the interface, sysctls, state.
    ///
    /// The agent must not run. Safe to repeat, and after a crash.
    Clean {
        /// The settings file.
        #[arg(long, value_name = "FILE", default_value = "/etc/podspan/agent.toml")]
        config: PathBuf,
    },
    /// Ask the agent with this probe-socket whether it is alive, or ready.
    ///
    /// For a kubelet: while one agent follows another, both run on one node, and the health port is the node's.
    Probe {
        /// What is asked.
        #[arg(value_enum)]
        question: Question,
        /// The agent's probe-socket.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Question {
    /// Whether the controller answers and every worker runs.
    Alive,
    /// Whether everything stands in the kernel, and packets can go to and come from other clusters.
    Ready,
}

#[derive(Clone, Copy, ValueEnum)]
enum Log {
    /// For a person.
    Text,
    /// One JSON document per line.
    Json,
}

fn set_up_log(log: Log) {
    // boringtun and kube log ordinary events as errors; what matters of them is logged by us.
    let (filter, wrong) = match std::env::var("PODSPAN_LOG") {
        Err(_) => (None, None),
        Ok(levels) => match EnvFilter::try_new(&levels) {
            Ok(filter) => (Some(filter), None),
            Err(error) => (None, Some(error.to_string())),
        },
    };
    let filter =
        filter.unwrap_or_else(|| EnvFilter::new("info,boringtun=off,kube_client=off,kube_runtime=off"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log {
        Log::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Log::Json => builder.json().init(),
    }
    if let Some(error) = wrong {
        tracing::warn!(error, "PODSPAN_LOG cannot be used, logging as usual");
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podspan-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How long work that blocks, such as a write to a disk that does not answer, can hold up the end.
const LAST_WORK: Duration = Duration::from_secs(5);

fn start(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = work(cli, &runtime);
    runtime.shutdown_timeout(LAST_WORK);
    done
}

fn work(cli: Cli, runtime: &Runtime) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Clean { config }) => {
            set_up_log(Log::Text);
            runtime.block_on(run::clean(&run::read_config(&config)?))
        }
        Some(Command::Probe { question, socket }) => {
            let question = match question {
                Question::Alive => "alive",
                Question::Ready => "ready",
            };
            println!("{}", runtime.block_on(probe::ask(&socket, question))?);
            Ok(())
        }
        None => {
            let mut config = run::read_config(&cli.run.config)?;
            if cli.run.check {
                println!("{} is good", cli.run.config.display());
                return Ok(());
            }
            config.on_exit = cli.run.on_exit.unwrap_or(config.on_exit);
            config.after_takeover = cli.run.after_takeover.unwrap_or(config.after_takeover);
            config.probe_socket = cli.run.probe_socket.or(config.probe_socket);
            set_up_log(cli.run.log);
            runtime.block_on(run::run(config))
        }
    }
}
