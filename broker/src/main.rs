//! The binary `podspan-broker`: configuration, log, signals. The work is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use podspan_broker::server::{Broker, Config, DRAIN_WITHIN, tls};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The discovery endpoint of podspan: stores and streams the signed records of one cluster set.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (TOML), as `podspan clusterset create` writes it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How to write the log, which goes to standard error; RUST_LOG sets how much (default: info).
    #[arg(long, value_enum, default_value = "text")]
    log: Log,
    /// Check the configuration, certificate and key, and exit: 0 if all is well.
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Log {
    Json,
    Text,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log {
        Log::Json => log.json().init(),
        Log::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // For the person who started it, whatever the log's format and level.
            eprintln!("podspan-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check {
        tls::server_config(&config.certificate, &config.private_key)?;
        println!("{}: ok", arguments.config.display());
        return Ok(());
    }
    raise_open_files(config.limits.connections);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(&config));
    // A store that hangs must not keep the process from ending.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let broker = Broker::start(config).await?;
    tracing::info!(cluster_set = %config.cluster_set, version = env!("CARGO_PKG_VERSION"), "ready");
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal, "shutting down");
    let in_time = broker.stop(DRAIN_WITHIN).await;
    tracing::info!(in_time, "stopped");
    Ok(())
}

/// Every connection is a file descriptor, and most systems start a process with 1024 of them.
fn raise_open_files(connections: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = connections as u64 + 64;
    if soft < wanted {
        let raised = wanted.min(hard);
        if setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_err() || raised < wanted {
            tracing::warn!(
                open_files = raised.max(soft),
                connections,
                "fewer open files are allowed than limits.connections asks for: raise the service's LimitNOFILE"
            );
        }
    }
}
