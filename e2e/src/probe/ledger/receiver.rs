//! The ledger at a pod's probe server.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::tally::Tally;
use super::{Arrivals, Arrived, Message, TOLD};

/// What has arrived at this pod.
#[derive(Debug)]
pub(in crate::probe) struct Receiver {
    /// The pod's name; empty where there is none, and then nothing is checked.
    name: String,
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    flows: BTreeMap<u64, (String, Tally)>,
    wrong: u64,
    examples: Vec<String>,
}

impl Receiver {
    pub(in crate::probe) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), begin: Instant::now(), state: Mutex::default() }
    }

    /// Takes note of a datagram and gives its echo; none for what is wrong.
    pub(in crate::probe) fn take(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let now = self.begin.elapsed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let message = match Message::read(datagram) {
            Ok(message) => message,
            Err(error) => {
                state.complain(format!("at {}: damaged in a way that no checksum told: {error}", self.name));
                return None;
            }
        };
        if !self.name.is_empty() && !message.is_for(&self.name) {
            state.complain(format!("at {}: from {} for {}", self.name, message.from, message.to));
            return None;
        }
        let (_, tally) = state.flows.entry(message.flow).or_insert_with(|| {
            let mut tally = Tally::default();
            tally.begin(now, message.number);
            (message.from.clone(), tally)
        });
        tally.arrive(now, message.number);
        Some(Message { by: self.name.clone(), ..message }.write())
    }

    /// What has arrived since the last look.
    pub(in crate::probe) fn look(&self) -> Arrivals {
        let now = self.begin.elapsed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let flows = state.flows.iter_mut().map(|(flow, (from, tally))| {
            let window = tally.window(now, tally.next());
            tally.begin(now, tally.next());
            Arrived { flow: *flow, from: from.clone(), window }
        });
        Arrivals { flows: flows.collect(), wrong: state.wrong, examples: state.examples.clone() }
    }
}

impl State {
    fn complain(&mut self, what: String) {
        self.wrong += 1;
        if self.examples.len() < TOLD {
            self.examples.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_for_another_pod_is_told_and_not_echoed() {
        let receiver = Receiver::new("beta/pod3");
        let message = |to: &str| Message { to: to.into(), from: "alpha/pod5".into(), ..Message::default() };
        let echo = receiver.take(&message("beta/pod3").write()).unwrap();
        assert_eq!(Message::read(&echo).unwrap().by, "beta/pod3");
        assert_eq!(receiver.take(&message("beta/pod4").write()), None);
        assert_eq!(receiver.take(b"psl1 damaged"), None);
        let arrivals = receiver.look();
        assert_eq!((arrivals.wrong, arrivals.flows.len()), (2, 1));
        assert!(arrivals.examples[0].contains("for beta/pod4"), "{arrivals:?}");
    }
}
