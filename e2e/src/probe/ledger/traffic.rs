//! `lab traffic`: the sender's process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::http::Requests;
use super::tcp::Connections;
use super::udp::Flows;
use super::{Answer, Plan, Report, Request};
use crate::control;

#[derive(Debug, Args)]
pub(crate) struct TrafficArgs {
    /// What to send, JSON
    #[arg(long)]
    plan: PathBuf,
    /// The unix socket at which the ledger is shown
    #[arg(long)]
    socket: PathBuf,
}

/// What was sent last is given so long to come back before it counts as lost.
const GRACE: Duration = Duration::from_millis(400);

#[derive(Debug, Default)]
struct All {
    udp: Vec<Arc<Flows>>,
    tcp: Vec<Arc<Connections>>,
    http: Vec<Arc<Requests>>,
}

/// Sends until it is ended.
pub(crate) fn run(args: &TrafficArgs) -> Result<()> {
    let plan = std::fs::read(&args.plan).with_context(|| args.plan.display().to_string())?;
    let plan: Plan = serde_json::from_slice(&plan).context("the plan")?;
    // What is measured is the network, not how busy this machine is with other things.
    // SAFETY: setpriority takes numbers and touches no memory of ours.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    let all = start(plan)?;
    control::serve(&args.socket, move |request| {
        Ok(match request {
            Request::Begin => {
                all.begin();
                Answer::Done
            }
            Request::Report => Answer::Report(Box::new(all.report())),
            Request::Count => Answer::Count(all.udp.iter().map(|flows| flows.count()).sum()),
        })
    })?;
    loop {
        std::thread::park();
    }
}

fn start(plan: Plan) -> Result<All> {
    let mut all = All::default();
    // Unique among processes; numbers of flows add to it.
    let mut flow = u64::from(std::process::id()) << 32;
    for udp in plan.udp {
        let count = udp.flows as u64;
        let flows = Arc::new(Flows::new(&plan.from, udp, flow)?);
        flow += count;
        all.udp.push(flows.clone());
        std::thread::spawn(move || {
            if let Err(error) = flows.run() {
                eprintln!("udp: {error:#}");
                std::process::exit(1);
            }
        });
    }
    for tcp in plan.tcp {
        let connections = Arc::new(Connections::new(tcp));
        all.tcp.push(connections.clone());
        for number in 0..connections.count() {
            let connections = connections.clone();
            std::thread::spawn(move || connections.run(number));
        }
    }
    for http in plan.http {
        let requests = Arc::new(Requests::new(http));
        all.http.push(requests.clone());
        std::thread::spawn(move || requests.run());
    }
    Ok(all)
}

impl All {
    fn begin(&self) {
        self.udp.iter().for_each(|flows| flows.start_window());
        self.tcp.iter().for_each(|connections| connections.start_window());
        self.http.iter().for_each(|requests| requests.start_window());
    }

    fn report(&self) -> Report {
        let ends: Vec<_> = self.udp.iter().map(|flows| flows.end_window()).collect();
        std::thread::sleep(GRACE);
        let mut report = Report::default();
        for (flows, end) in self.udp.iter().zip(&ends) {
            let (udp, wrong, stall) = flows.report(end);
            report.udp.extend(udp);
            report.wrong.extend(wrong);
            report.own_stall_us = report.own_stall_us.max(stall);
        }
        report.tcp = self.tcp.iter().map(|connections| connections.report()).collect();
        report.http = self.http.iter().map(|requests| requests.report()).collect();
        report
    }
}
