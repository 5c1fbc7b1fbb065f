//! The lab: clusters made of network namespaces on one machine, to see podspan at work and to prove it.
//!
//! `cargo lab demo` shows, `cargo lab test` proves, `cargo lab up` makes a world to look around in.

mod agent_socket;
mod bench;
mod build;
mod capture;
mod cni_runtime;
mod command;
mod commands;
mod control;
mod demo;
mod impair;
mod kube;
mod lying_broker;
mod matrix;
mod netns;
mod probe;
mod process;
mod random;
mod requirements;
mod rules;
mod scenario;
mod screen;
mod signals;
mod snapshot;
mod state;
mod status;
mod topology;
mod tun;
mod tunnel;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The lab: three clusters made of network namespaces on this machine, joined by podspan.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what podspan does, live, then clean up
    Demo(demo::Demo),
    /// Make the world and leave it running
    Up(commands::Up),
    /// Take the world down and check that nothing is left of it
    Down,
    /// Tell what stands and what runs
    Status,
    /// Run a command in a pod, on a node or on the router
    Exec(commands::Exec),
    /// Two clusters of real Kubernetes: build, up, status, kubectl, exec, down
    #[command(subcommand)]
    Kube(kube::KubeCommand),
    /// Run all tests: unit, property, simulated, and the lab's scenarios
    Test(scenario::TestArgs),
    /// Do random things to the world, by seed, and look at what must hold whatever happens
    Chaos(scenario::ChaosArgs),
    /// Measure podspan's data plane side by side with what people would use instead
    Bench(bench::BenchArgs),
    /// Be one end of a tunnel that encrypts nothing
    #[command(hide = true)]
    BenchForwarder(bench::Forwarder),
    /// Serve probes in the calling namespace
    #[command(hide = true)]
    ProbeServer {
        /// TCP and UDP port
        #[arg(long)]
        port: u16,
        /// The pod's name: messages for another one are complained about
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Send what a plan says, and keep a ledger of it
    #[command(hide = true)]
    Traffic(probe::TrafficArgs),
    /// Be a node of a cluster
    #[command(hide = true)]
    KubeNode {
        /// The node's description
        file: std::path::PathBuf,
    },
    /// Be process 1 of a node
    #[command(hide = true)]
    KubeNodeInit {
        /// The node's description
        file: std::path::PathBuf,
    },
    /// Ask a DNS server for a name's addresses
    #[command(hide = true)]
    Resolve {
        /// The server's address
        server: std::net::IpAddr,
        /// The name, in full
        name: String,
    },
    /// Send one datagram and wait for its echo
    #[command(hide = true)]
    FirstPacket {
        /// Where to
        target: std::net::SocketAddr,
    },
    /// Be a broker that lies
    #[command(hide = true)]
    LyingBroker(lying_broker::LyingBroker),
    /// Forward the underlay's packets with faults
    #[command(hide = true)]
    Impair(impair::Impair),
    /// Run the probe jobs given as JSON on standard input
    #[command(hide = true)]
    ProbeClient,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        // The probes are ended by plain signals.
        Command::ProbeServer { port, name } => probe::run_server(port, &name).map(|()| ExitCode::SUCCESS),
        Command::ProbeClient => probe::run_client().map(|()| ExitCode::SUCCESS),
        Command::BenchForwarder(args) => bench::forward(&args).map(|()| ExitCode::SUCCESS),
        Command::LyingBroker(args) => lying_broker::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Traffic(args) => probe::run_traffic(&args).map(|()| ExitCode::SUCCESS),
        Command::Impair(args) => impair::run(&args).map(|()| ExitCode::SUCCESS),
        Command::KubeNode { file } => kube::run_node(&file).map(|()| ExitCode::SUCCESS),
        Command::KubeNodeInit { file } => kube::run_node_init(&file).map(|()| ExitCode::SUCCESS),
        Command::FirstPacket { target } => kube::first_packet(target).map(|()| ExitCode::SUCCESS),
        Command::Resolve { server, name } => kube::resolve(server, &name).map(|()| ExitCode::SUCCESS),
        Command::Exec(exec) => commands::exec(&exec),
        command => signals::listen().and_then(|()| match command {
            Command::Demo(demo) => demo::demo(&demo),
            Command::Up(up) => commands::up(&up),
            Command::Down => commands::down(),
            Command::Kube(command) => kube::run(&command),
            Command::Chaos(args) => scenario::chaos(&args),
            Command::Test(args) => scenario::test(&args),
            Command::Bench(args) => bench::run(&args),
            _ => status::status(),
        }),
    };
    match result {
        Ok(_) if signals::was_interrupted() => ExitCode::from(130),
        Ok(code) => code,
        Err(error) => {
            if signals::was_interrupted() {
                return ExitCode::from(130);
            }
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
