//! The takeover as the owner of a [`Dataplane`] sees it.

use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use super::{LendError, LentLane, OBEY_WITHIN, Order};
use crate::dataplane::Dataplane;
use crate::settings::{Settings, StartError};
use crate::worker::Command;

fn wait<T>(answer: &Receiver<T>, deadline: Instant) -> Option<T> {
    answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}

impl Dataplane {
    /// Starts beside the dataplane that has lent `lanes`: shakes hands, opens what is relayed, and neither
    /// reads the TUN nor the sockets until it is told to by the other or by [`Self::own`].
    ///
    /// # Errors
    /// If the settings cannot be, or what was lent is of another interface or of other ports.
    pub fn start_beside(settings: Settings, lanes: Vec<LentLane>) -> Result<Self, StartError> {
        Self::launch(settings, Some(lanes))
    }

    /// Lends everything to another dataplane, which is to be [started beside](Self::start_beside) this one.
    /// From here on this one begins no handshake for tunnels that have a session, answers none, and relays
    /// what is not its own, until it is stopped or [takes everything back](Self::take_back). Blocks for a turn
    /// of the workers, two seconds at most.
    ///
    /// # Errors
    /// If some lane cannot; then none does.
    pub fn lend(&self) -> Result<Vec<LentLane>, LendError> {
        let deadline = Instant::now() + OBEY_WITHIN;
        let asked: Vec<_> = self
            .each()
            .map(|(lane, tell)| {
                let (answer, answered) = channel();
                tell(Command::Takeover(Order::Lend(answer)));
                (lane, answered)
            })
            .collect();
        let mut lent = Vec::with_capacity(asked.len());
        let mut failed = None;
        for (lane, answered) in asked {
            match wait(&answered, deadline) {
                Some(Ok(lane)) => lent.push(lane),
                Some(Err(why)) => failed = failed.or(Some(why)),
                None => failed = failed.or(Some(LendError::Hung(lane))),
            }
        }
        let Some(why) = failed else { return Ok(lent) };
        // Of two that ask at the same time the second must not undo what the first was lent.
        if !matches!(why, LendError::Busy) {
            self.take_back();
        }
        Err(why)
    }

    /// Reads the TUN no more: what was read has been sent when this returns, and the other dataplane has been
    /// told to go on. Blocks for a turn of the workers, two seconds at most; whether all have done it.
    pub fn cut(&self) -> bool {
        let deadline = Instant::now() + OBEY_WITHIN;
        let asked: Vec<_> = self
            .each()
            .map(|(_, tell)| {
                let (answer, answered) = channel();
                tell(Command::Takeover(Order::Cut(answer)));
                answered
            })
            .collect();
        asked.iter().all(|answered| wait(answered, deadline).is_some())
    }

    /// The other dataplane is gone: goes on as before, and shakes hands with every peer anew, since they have
    /// moved to the other's sessions.
    pub fn take_back(&self) {
        self.each().for_each(|(_, tell)| tell(Command::Takeover(Order::TakeBack)));
    }

    /// Reads the TUN from now on: the other dataplane says that it does not. Does nothing twice.
    pub fn read_tun(&self) {
        self.each().for_each(|(_, tell)| tell(Command::Takeover(Order::ReadTun)));
    }

    /// Reads everything from now on: the other dataplane has ended. What it has relayed comes first. Does
    /// nothing twice.
    pub fn own(&self) {
        self.each().for_each(|(_, tell)| tell(Command::Takeover(Order::Own)));
    }
}
