//! Running probe clients in namespaces, from the lab's side.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::{Arrivals, Job, Outcome, TIMEOUT, Task};
use crate::command::Cmd;
use crate::netns::Netns;
use crate::topology::POD_PORT;

/// The longest that all of the jobs together can take, with something to spare.
pub(crate) fn bound(jobs: &[Job]) -> Duration {
    let one = |job: &Job| {
        let work = match job.task {
            Task::Flood { millis } | Task::TcpStream { millis, .. } | Task::UdpStream { millis, .. } => {
                millis
            }
            // 5 MB/s is slow enough for any transfer here.
            Task::Upload { bytes } | Task::Download { bytes } => bytes / 5_000,
            _ => 0,
        };
        Duration::from_millis(work + 3 * job.timeout_ms)
    };
    jobs.iter().map(one).sum::<Duration>() + Duration::from_secs(10)
}

/// Runs the jobs in the namespace and gives their outcomes in order.
pub(crate) fn ask(netns: &Netns, jobs: &[Job]) -> Result<Vec<Outcome>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let text = Cmd::lab()
        .arg("probe-client")
        .within(netns)
        .stdin(serde_json::to_vec(jobs)?)
        .timeout(bound(jobs))
        .text()?;
    let outcomes: Vec<Outcome> = serde_json::from_str(&text).context("the probe client's answer")?;
    if outcomes.len() != jobs.len() {
        return Err(anyhow!("{} jobs, {} outcomes", jobs.len(), outcomes.len()));
    }
    Ok(outcomes)
}

/// The same from many namespaces at a time; outcomes in the order of the list.
pub(crate) fn ask_all(lists: &[(Netns, Vec<Job>)]) -> Result<Vec<Vec<Outcome>>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            lists.iter().map(|(netns, jobs)| scope.spawn(move || ask(netns, jobs))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a probe thread panicked"))?)
            .collect()
    })
}

/// Jobs that run while something else is done.
#[derive(Debug)]
pub(crate) struct Pending(JoinHandle<Result<Vec<Outcome>>>);

/// Starts the jobs in the background.
pub(crate) fn start(netns: &Netns, jobs: Vec<Job>) -> Pending {
    let netns = netns.clone();
    Pending(std::thread::spawn(move || ask(&netns, &jobs)))
}

impl Pending {
    /// Waits for the outcomes.
    pub(crate) fn finish(self) -> Result<Vec<Outcome>> {
        self.0.join().map_err(|_| anyhow!("a probe thread panicked"))?
    }
}

/// What has arrived at the pod in this namespace since the last look.
pub(crate) fn arrivals(netns: &Netns) -> Result<Arrivals> {
    netns.enter(|| {
        let stream = TcpStream::connect_timeout(&([127, 0, 0, 1], POD_PORT).into(), TIMEOUT)
            .context("no probe server answers in this pod")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        writeln!(&stream, "arrivals")?;
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut String::new())?;
        serde_json::from_reader(reader).context("the probe server's answer")
    })
}
