//! The agent that runs, and is asked to hand over.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podspan_dataplane::Dataplane;
use podspan_wire::LaneKey;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::talk::{Talk, TalkError};
use super::{Ask, Begin, PROTOCOL, Reply, Session};
use crate::start::Door;
use crate::state::StateDir;

/// How long the heir may take over its handshakes.
const HANDSHAKES_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take over anything else before it is committed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long its control half may take to start. After that it has what it was given in any case.
const RUNS_WITHIN: Duration = Duration::from_secs(60);
/// How long after the cut peers may still send on the old sessions: they have moved, but for what is on its
/// way.
const LATE: Duration = Duration::from_secs(1);

/// Somebody asks to take over.
#[derive(Debug)]
pub struct Asked {
    /// Who.
    pub begin: Begin,
    /// The connection.
    pub talk: Talk,
}

/// What an agent can hand over.
pub struct Lender {
    /// The TUN interface.
    pub interface: String,
    /// UDP port of the first lane.
    pub port: u16,
    /// Public keys of the lanes.
    pub lanes: Vec<LaneKey>,
    /// The packet path.
    pub dataplane: Arc<Dataplane>,
}

/// Why the controller is to stop.
pub enum Until {
    /// The agent was told to.
    Stopped,
    /// Another one takes over.
    Yield(Taken),
}

/// A takeover whose packets go the new way already.
pub struct Taken {
    talk: Talk,
    heir: String,
    cut: Instant,
}

/// How a takeover ended.
pub enum Outcome {
    /// The other agent does everything. It reads the sockets as soon as the connection closes: only then is the
    /// packet path to have ended.
    Gone(Talk),
    /// It does not: this one is to go on.
    Back(String),
}

impl Lender {
    /// Waits until the agent is told to stop, or has given another one all packets. Whoever is told to stop in the
    /// middle of a takeover brings it to its end first.
    pub async fn until(
        &self,
        stop: &mut Pin<&mut impl Future<Output = ()>>,
        asked: &mut mpsc::Receiver<Asked>,
    ) -> Until {
        loop {
            tokio::select! {
                () = stop.as_mut() => return Until::Stopped,
                Some(asked) = asked.recv() => {
                    if let Some(taken) = self.lend(asked).await {
                        return Until::Yield(taken);
                    }
                }
            }
        }
    }

    /// Why this agent cannot hand over to that one.
    fn objection(&self, begin: &Begin) -> Option<String> {
        if begin.protocol != PROTOCOL {
            return Some(format!("it speaks version {PROTOCOL} of the takeover, not {}", begin.protocol));
        }
        if begin.interface != self.interface {
            return Some(format!("its interface is {}, not {}", self.interface, begin.interface));
        }
        if begin.port != self.port {
            return Some(format!("its first UDP port is {}, not {}", self.port, begin.port));
        }
        if begin.lanes.len() != self.lanes.len() {
            return Some(format!("it has {} lanes, not {}", self.lanes.len(), begin.lanes.len()));
        }
        (begin.lanes != self.lanes)
            .then(|| "its lanes have other keys: it has another state directory".to_owned())
    }

    /// Up to the cut. Whatever fails, everything is taken back.
    async fn lend(&self, Asked { begin, talk }: Asked) -> Option<Taken> {
        let heir = format!("process {}, version {}", begin.pid, begin.version);
        if let Some(why) = self.objection(&begin) {
            info!(heir, why, "another agent asks to take over, and cannot");
            let _ = talk.say(&Reply::Refused { why }, &[]);
            return None;
        }
        let dataplane = Arc::clone(&self.dataplane);
        let lent = spawn_blocking(move || dataplane.lend().map_err(|error| error.to_string())).await;
        let lanes = match lent.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(lanes) => lanes,
            Err(why) => {
                warn!(heir, why, "another agent asks to take over, and cannot");
                let _ = talk.say(&Reply::Refused { why }, &[]);
                return None;
            }
        };
        let sessions = sessions(&self.dataplane);
        info!(heir, sessions = sessions.len(), "another agent takes over");
        let reply = Reply::Lent {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            masks: lanes.iter().map(|lane| lane.mask).collect(),
            sessions,
        };
        let fds: Vec<BorrowedFd<'_>> = lanes
            .iter()
            .flat_map(|lane| [lane.socket.as_fd(), lane.queue.as_fd(), lane.relay.as_fd()])
            .collect();
        let said = talk.say(&reply, &fds);
        // The heir's end of the relays must close with the heir.
        drop(lanes);
        let lent = match said {
            Ok(()) => self.cut(talk, &heir).await,
            Err(error) => Err(error),
        };
        match lent {
            Ok(taken) => Some(taken),
            Err(why) => {
                self.dataplane.take_back();
                warn!(heir, %why, "the other agent does not take over: this one goes on as before");
                None
            }
        }
    }

    async fn cut(&self, talk: Talk, heir: &str) -> Result<Taken, TalkError> {
        let (talk, heard) = talk.listen::<Ask>(HANDSHAKES_WITHIN).await;
        expect(&heard?.0, &Ask::Cut)?;
        let dataplane = Arc::clone(&self.dataplane);
        if !spawn_blocking(move || dataplane.cut()).await.unwrap_or(false) {
            return Err(TalkError::Other(
                "nothing; a packet worker of this agent does not answer".to_owned(),
            ));
        }
        let cut = Instant::now();
        talk.say(&Reply::Cut, &[])?;
        let (talk, heard) = talk.listen::<Ask>(ANSWER_WITHIN).await;
        expect(&heard?.0, &Ask::Control)?;
        Ok(Taken { talk, heir: heir.to_owned(), cut })
    }
}

fn expect(heard: &Ask, wanted: &Ask) -> Result<(), TalkError> {
    match std::mem::discriminant(heard) == std::mem::discriminant(wanted) {
        true => Ok(()),
        false => Err(TalkError::Other(format!("{heard:?} instead of {wanted:?}"))),
    }
}

/// The tunnels that have a session.
fn sessions(dataplane: &Dataplane) -> Vec<Session> {
    let mut sessions = Vec::new();
    for peer in dataplane.status().peers {
        for lane in peer.lanes.iter().filter(|lane| lane.established) {
            let Some(endpoint) = lane.endpoint else { continue };
            sessions.push(Session {
                peer: peer.id.clone(),
                local: lane.local,
                remote: lane.remote,
                endpoint,
            });
        }
    }
    sessions
}

impl Taken {
    /// Hands over the rest, once nothing of this agent writes any more, and waits until the other one runs.
    pub async fn finish(self, state: &StateDir, door: &Door) -> Outcome {
        let Self { talk, heir, cut } = self;
        let back = |why: TalkError| Outcome::Back(why.to_string());
        let (health, fds) = match door.descriptors() {
            (socket, None) => (false, vec![state.lock(), socket]),
            (socket, Some(health)) => (true, vec![state.lock(), socket, health]),
        };
        if let Err(error) = talk.say(&Reply::Control { health }, &fds) {
            return back(error);
        }
        let (talk, heard) = talk.listen::<Ask>(ANSWER_WITHIN).await;
        let committed = heard.and_then(|(ask, _)| expect(&ask, &Ask::Commit));
        if let Err(error) = committed.and_then(|()| talk.say(&Reply::Committed, &[])) {
            return back(error);
        }
        let (talk, heard) = talk.listen::<Ask>(RUNS_WITHIN).await;
        match heard.and_then(|(ask, _)| expect(&ask, &Ask::Running)) {
            Ok(()) => {}
            Err(error @ (TalkError::Ended | TalkError::Io(_))) => return back(error),
            // It has the lock, and lives: two agents must never run.
            Err(error) => {
                warn!(heir, %error, "the other agent has taken over, but does not say that it runs")
            }
        }
        let late = LATE.saturating_sub(cut.elapsed()).max(Duration::from_millis(1));
        let (talk, heard) = talk.listen::<Ask>(late).await;
        if let Err(error @ TalkError::Ended) = heard {
            return back(error);
        }
        info!(heir, "the other agent has taken over; nothing was removed");
        Outcome::Gone(talk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_heard() {
        assert!(expect(&Ask::Cut, &Ask::Cut).is_ok());
        let error = expect(&Ask::Running, &Ask::Commit).unwrap_err().to_string();
        assert!(error.contains("Running instead of Commit"), "{error}");
    }
}
