//! `podspan`: what a person types.
//!
//! `clusterset` and `cluster` work on files alone and never touch the network; `join`, `leave` and `upgrade`
//! ask the API server of a Kubernetes cluster; `status` asks the agent of this node through its unix socket;
//! `agent` hands over to `podspan-agent`.

mod agent;
mod args;
mod broker_address;
mod clusterset;
mod create;
mod files;
mod grant;
mod human;
mod kube;
mod problems;
mod show;
mod status;
mod table;
mod tls;

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Cluster, Clusterset, Command, Output};

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    let text = match command {
        Command::Clusterset(Clusterset::Create(args)) => create::create(args)?,
        Command::Clusterset(Clusterset::BrokerCert(args)) => create::broker_cert(args)?,
        Command::Clusterset(Clusterset::Show { dir, output }) => show::show(dir, *output)?,
        Command::Cluster(Cluster::Grant(args)) => grant::grant(args)?,
        Command::Join(args) => return kube::join::run(args),
        Command::Leave(args) => return kube::leave::run(args),
        Command::Upgrade(args) => return kube::upgrade::run(args),
        Command::Gateway(command) => return status::drain(command),
        Command::Status(args) => return status::run(args),
        Command::Agent { arguments } => {
            agent::run(arguments)?;
            String::new()
        }
        Command::Version { output } => version(*output)?,
        Command::Completions { shell } => completions(*shell)?,
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn version(output: Output) -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    Ok(match output {
        Output::Table => format!("podspan {version}\n"),
        Output::Json => {
            let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
            serde_json::to_string(&serde_json::json!({ "version": version, "os": os, "arch": arch }))? + "\n"
        }
    })
}

fn completions(shell: clap_complete::Shell) -> Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podspan", &mut script);
    String::from_utf8(script).context("the completion script is not text")
}

/// Writes to the standard output. A reader that has seen enough (`podspan status | head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("cannot write to the standard output"),
    }
}
