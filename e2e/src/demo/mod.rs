//! `lab demo`: what podspan does, live, for somebody who sees it for the first time.

mod failover;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::build;
use crate::commands::VariantArgs;
use crate::matrix::Matrix;
use crate::probe::{self, Job, Task};
use crate::requirements;
use crate::screen::Screen;
use crate::topology::{Family, POD_PORT, Shape};
use crate::world::{self, World};

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Leave everything running at the end, and tell how to look around
    #[arg(long)]
    keep: bool,
    /// text is for people; json ends with one JSON document as the last line of standard output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    variant: VariantArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// The JSON document.
#[derive(Clone, Debug, Serialize)]
struct Summary {
    clusters: usize,
    nodes: usize,
    pods: usize,
    /// Ordered pairs of pods, each family counted by itself.
    pairs: Count,
    /// Pods and services, each family counted by itself.
    services: Count,
    /// A gateway that died under traffic; null if it could not be shown.
    failover: Option<failover::Seen>,
    /// What was there after the clean-up and not before; empty with --keep, where nothing is cleaned up.
    leftovers: Vec<String>,
    seconds: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Count {
    tried: usize,
    reached: usize,
}

impl Count {
    fn of(matrix: &Matrix) -> Self {
        Self { tried: matrix.tried(), reached: matrix.reached() }
    }

    fn all(self) -> bool {
        self.tried > 0 && self.tried == self.reached
    }
}

const PICTURE: &str = "
 Three clouds, each with a Kubernetes-like cluster of its own and a network of its own. All of it is made of
 network namespaces on this machine, and nothing outside of them is touched.

        alpha 192.0.2.0/24            beta 198.51.100.0/24           gamma 203.0.113.0/24
    +------------------------+    +------------------------+    +----------------------------+
    | alpha-1  gateway       |    | beta-1   gateway       |    | gamma-1  gateway           |
    | alpha-2  gateway       |    | beta-2                 |    | gamma-2  behind a NAT      |
    | alpha-3                |    |                        |    |                            |
    | pods     10.1.0.0/16   |    | pods     10.2.0.0/16   |    | pods     10.3.0.0/16       |
    |          fd00:10:1::/48|    |          fd00:10:2::/48|    |          fd00:10:3::/48    |
    | services 10.101.0.0/16 |    | services 10.102.0.0/16 |    | services 10.103.0.0/16     |
    +-----------+------------+    +-----------+------------+    +-------------+--------------+
                |                             |                               |
    ============+=============================+===============================+=============
      the router: knows none of these pod and service addresses, and drops every packet that has one
    ============+=============================+=============================================
                |                             |
         the broker 10.99.0.2         \"the internet\" 10.98.0.2

 On every node runs a podspan agent. It signs who it is, learns of the others from the broker, and builds
 WireGuard tunnels straight to the gateways of the other clusters. Pods then reach pods by their own addresses.
";

pub(crate) fn demo(demo: &Demo) -> Result<ExitCode> {
    let screen = Screen::new(demo.output == Output::Json);
    screen.raw(PICTURE);
    requirements::ensure(&screen)?;
    let programs = build::programs(&screen)?;
    screen.heading("Making the clouds, starting podspan, attaching pods");
    let mut world = World::create(Shape::Standard, demo.variant.variant(), screen)?;
    world.start_all(Some(&programs))?;
    let pods = show_matrix("Who reaches whom: every pod every other pod", Matrix::of_pods(&world)?, &screen);
    let own = pods.ways().iter().filter(|way| way.seen_as == Some(way.own)).count();
    screen.raw(&format!("In {own} of {} cases the server saw the client pod's own address.", pods.tried()));
    let services =
        show_matrix("Every pod, every service of every cluster", Matrix::of_services(&world)?, &screen);
    show_speed(&world, &screen)?;
    show_leaks(&world, &screen)?;
    let died = failover::show(&mut world, &screen);
    crate::signals::check()?;
    if let Err(error) = &died {
        screen.raw(&format!("This could not be shown: {error:#}"));
    }
    let mut summary = Summary {
        clusters: world.topology.clouds.len(),
        nodes: world.topology.nodes().count(),
        pods: world.record.pods.len(),
        pairs: Count::of(&pods),
        services: Count::of(&services),
        failover: died.ok(),
        leftovers: Vec::new(),
        seconds: 0.0,
    };
    if demo.keep {
        world.stay()?;
        screen.heading("Left running; look around");
        screen.raw(LOOK_AROUND);
    } else {
        summary.leftovers = world.down()?.0;
        screen.heading("Cleaned up");
        screen.raw(
            match summary.leftovers.as_slice() {
                [] => {
                    "The machine's network is as it was before: compared in full, nothing is left.".to_owned()
                }
                left => format!("Left behind:\n  {}", left.join("\n  ")),
            }
            .as_str(),
        );
    }
    summary.seconds = (screen.seconds() * 10.0).round() / 10.0;
    if demo.output == Output::Json {
        println!("{}", serde_json::to_string(&summary)?);
    }
    let good = summary.pairs.all() && summary.services.all() && summary.leftovers.is_empty();
    let good = good && summary.failover.is_some_and(failover::Seen::is_good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const LOOK_AROUND: &str = "
  cargo lab status                                      what stands and runs
  cargo lab exec alpha/pod1 -- ping -c 3 10.2.2.2       from a pod of alpha to a pod of beta
  cargo lab exec alpha-1 -- ip route show table all     on a node
  cargo lab exec router -- tcpdump -n -i alpha          what goes over the wire: only WireGuard and TLS
  target/release/podspan status --socket /run/podspan-lab/nodes/alpha-1/agent.sock
  cargo lab down                                        end it, and check that nothing is left
";

fn show_matrix(title: &str, matrix: Matrix, screen: &Screen) -> Matrix {
    const SHOWN: usize = 12;
    screen.heading(title);
    screen.raw(&matrix.table());
    screen.raw(
        "ok: 3000 bytes were echoed over TCP by IPv4 and by IPv6; v4, v6: by that one only; NO: by neither",
    );
    screen.raw(&format!("{} of {} reached", matrix.reached(), matrix.tried()));
    let failures = matrix.failures();
    for failure in failures.iter().take(SHOWN) {
        screen.raw(&format!("  {failure}"));
    }
    if failures.len() > SHOWN {
        screen.raw(&format!("  and {} more", failures.len() - SHOWN));
    }
    matrix
}

/// One pod of each kind of place, to one of each kind in another cluster.
const SPEED: [(&str, &str, &str); 7] = [
    ("alpha/pod1", "alpha/pod3", "inside a cluster, without podspan"),
    ("alpha/pod1", "beta/pod1", "gateway to gateway"),
    ("alpha/pod1", "beta/pod3", "gateway to ordinary node"),
    ("alpha/pod5", "beta/pod1", "ordinary node to gateway"),
    ("alpha/pod5", "beta/pod3", "ordinary node to ordinary node"),
    ("gamma/pod3", "alpha/pod5", "from behind the NAT"),
    ("beta/pod3", "gamma/pod3", "to behind the NAT"),
];

fn show_speed(world: &World, screen: &Screen) -> Result<()> {
    screen.heading("Round trip and throughput of one TCP connection (all of it on this machine's few cores)");
    for (from, to, what) in SPEED {
        let Some(netns) = world.topology.find(from) else { bail!("there is no {from}") };
        let mut cells = Vec::new();
        for family in Family::BOTH {
            let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
            let jobs = [
                Job::new("latency", target, Task::Latency { count: 50 }),
                Job::new("throughput", target, Task::Flood { millis: 500 }),
            ];
            // One after the other: each would disturb the other.
            for job in jobs {
                let outcome = probe::ask(&netns, &[job.timeout(Duration::from_secs(3))])?.remove(0);
                cells.push(match (&outcome.error, outcome.rtt_mean_us) {
                    (Some(_), _) => "failed".to_owned(),
                    (None, Some(rtt)) => format!("{rtt} us"),
                    (None, None) => format!("{:.0} Mbit/s", outcome.megabits_per_second()),
                });
            }
        }
        screen.raw(&format!(
            "  {from:<11} -> {to:<11}  IPv4 {:>8} {:>12}   IPv6 {:>8} {:>12}   {what}",
            cells[0], cells[1], cells[2], cells[3]
        ));
    }
    Ok(())
}

fn show_leaks(world: &World, screen: &Screen) -> Result<()> {
    let leaked: u64 = world::leaks(&world.topology)?.values().sum();
    screen.heading("What the underlay saw");
    screen.raw(&format!(
        "Packets with addresses that the underlay does not own, dropped by the router: {leaked}."
    ));
    Ok(())
}
