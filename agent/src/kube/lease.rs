//! Which agent writes the status: the holder of a Lease (`coordination.k8s.io/v1`).
//!
//! Clocks of nodes are not compared. Each agent measures by its own clock how long the lease has not changed;
//! the holder counts its time from before it asked for the renewal. So two agents believe to hold it at once
//! only if one's clock runs much faster than the other's, and then they write the same things twice.
//!
//! Gateways look often and step in quickly; other nodes look seldom, so that a large cluster's API server is
//! not asked by all of them every few seconds.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// How long a lease holds after its last renewal.
pub const DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews it.
pub const RENEW: Duration = Duration::from_secs(5);
/// How long before its end the holder stops writing: what is under way must arrive before another writes.
const MARGIN: Duration = Duration::from_secs(3);
/// The longest duration that is believed of somebody else's lease.
const LONGEST: Duration = Duration::from_secs(60);

/// How eager an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How often it looks while another holds the lease.
    pub look: Duration,
    /// How long after the lease's end it waits for one who is more eager.
    pub patience: Duration,
}

impl Pace {
    /// A gateway's: it sees the other clusters' tunnels first hand.
    pub const GATEWAY: Self = Self { look: Duration::from_secs(5), patience: Duration::ZERO };
    /// Any other node's.
    pub const NODE: Self = Self { look: Duration::from_secs(45), patience: Duration::from_secs(30) };
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Somebody else holds it: look again later.
    Wait,
    /// There is none: create this one.
    Create(Box<Lease>),
    /// Replace it by this one; its resource version makes sure that nobody was faster.
    Replace(Box<Lease>),
}

/// One agent's part in the election.
pub struct Election {
    me: String,
    name: String,
    /// The lease's resource version, and since when it has been this.
    seen: Option<(String, Instant)>,
    held_until: Option<Instant>,
}

impl Election {
    /// For the agent `me` and the lease `name`.
    #[must_use]
    pub fn new(me: String, name: String) -> Self {
        Self { me, name, seen: None, held_until: None }
    }

    /// Whether this agent may write.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|end| now < end)
    }

    /// What is to be done, given the lease as it is.
    pub fn step(&mut self, lease: Option<&Lease>, pace: Pace, now: Instant, wall: Timestamp) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            return Step::Create(Box::new(self.lease(None, wall)));
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((known, since)) if *known == version => *since,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(DURATION, Duration::from_secs).min(LONGEST);
        let over = now.duration_since(since) > duration + pace.patience;
        if holder == self.me || holder.is_empty() || over {
            Step::Replace(Box::new(self.lease(Some(lease), wall)))
        } else {
            self.held_until = None;
            Step::Wait
        }
    }

    /// The API server took what [`Self::step`] said; it was asked at `asked`.
    pub fn done(&mut self, lease: &Lease, asked: Instant) {
        self.seen = Some((lease.metadata.resource_version.clone().unwrap_or_default(), asked));
        self.held_until = Some(asked + DURATION - MARGIN);
    }

    /// Somebody was faster.
    pub fn lost(&mut self) {
        self.held_until = None;
        self.seen = None;
    }

    /// The lease as it is given up.
    #[must_use]
    pub fn release(&mut self, lease: &Lease) -> Option<Lease> {
        self.held_until = None;
        let mut lease = lease.clone();
        let spec = lease.spec.as_mut()?;
        (spec.holder_identity.as_deref() == Some(&self.me)).then(|| spec.holder_identity = None)?;
        Some(lease)
    }

    fn lease(&self, before: Option<&Lease>, wall: Timestamp) -> Lease {
        let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(&self.me);
        let transitions = spec.lease_transitions.unwrap_or(0);
        Lease {
            metadata: before.map_or_else(
                || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: if mine { spec.acquire_time.clone() } else { Some(MicroTime(wall)) },
                renew_time: Some(MicroTime(wall)),
                lease_transitions: Some(if before.is_none() || mine {
                    transitions
                } else {
                    transitions.saturating_add(1)
                }),
                ..spec
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An API server of one object.
    #[derive(Default)]
    struct Server {
        lease: Option<Lease>,
        version: u64,
    }

    impl Server {
        /// `false` on a conflict.
        fn write(&mut self, step: Step) -> Option<Lease> {
            let mut lease = match step {
                Step::Wait => return None,
                Step::Create(lease) if self.lease.is_none() => *lease,
                Step::Replace(lease)
                    if self.lease.as_ref().and_then(|l| l.metadata.resource_version.clone())
                        == lease.metadata.resource_version =>
                {
                    *lease
                }
                _ => return None,
            };
            self.version += 1;
            lease.metadata.resource_version = Some(self.version.to_string());
            self.lease = Some(lease.clone());
            Some(lease)
        }

        /// One look of one agent.
        fn visit(&mut self, election: &mut Election, pace: Pace, now: Instant) -> bool {
            let step = election.step(self.lease.as_ref(), pace, now, Timestamp::UNIX_EPOCH);
            if step != Step::Wait {
                match self.write(step) {
                    Some(lease) => election.done(&lease, now),
                    None => election.lost(),
                }
            }
            election.holds(now)
        }
    }

    fn agent(name: &str) -> Election {
        Election::new(name.into(), "podspan-status".into())
    }

    #[test]
    fn one_holds_it_and_another_follows_when_it_is_gone() {
        let (mut server, mut a, mut b) = (Server::default(), agent("a"), agent("b"));
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        for second in (0..60).step_by(5) {
            assert!(server.visit(&mut a, Pace::GATEWAY, at(second)), "at {second}");
            assert!(!server.visit(&mut b, Pace::GATEWAY, at(second + 1)), "at {second}");
        }
        assert_eq!(server.lease.as_ref().unwrap().spec.as_ref().unwrap().lease_transitions, Some(0));
        // a is gone: last renewed at 55, seen by b at 56.
        assert!(!server.visit(&mut b, Pace::GATEWAY, at(70)));
        assert!(!a.holds(at(68)), "the old holder has stopped by itself before");
        assert!(server.visit(&mut b, Pace::GATEWAY, at(72)));
        assert_eq!(server.lease.as_ref().unwrap().spec.as_ref().unwrap().lease_transitions, Some(1));
        assert!(!server.visit(&mut a, Pace::GATEWAY, at(73)), "the old holder does not take it back");
    }

    #[test]
    fn never_two_at_once_whatever_the_order() {
        // A fixed sequence of odd steps stands for chance.
        let (mut server, mut agents) = (Server::default(), [agent("a"), agent("b"), agent("c")]);
        let begin = Instant::now();
        let (mut now, mut seed, mut held) = (0_u64, 1_u64, 0);
        for _ in 0..5_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            now += (seed >> 33) % 9_000;
            let who = (seed >> 20) as usize % 3;
            let at = begin + Duration::from_millis(now);
            server.visit(&mut agents[who], Pace::GATEWAY, at);
            let holders = agents.iter().filter(|agent| agent.holds(at)).count();
            assert!(holders <= 1, "{holders} hold it at {now} ms");
            held += holders;
        }
        assert!(held > 2_500, "mostly somebody holds it: {held}");
    }

    #[test]
    fn nodes_leave_it_to_gateways_and_step_in_where_there_is_none() {
        let (mut server, mut a, mut b) = (Server::default(), agent("a"), agent("b"));
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        assert!(server.visit(&mut a, Pace::GATEWAY, at(0)));
        assert!(!server.visit(&mut b, Pace::NODE, at(1)));
        assert!(!server.visit(&mut b, Pace::NODE, at(45)));
        assert!(server.visit(&mut b, Pace::NODE, at(47)));
    }

    #[test]
    fn what_is_given_up_is_taken_at_once() {
        let (mut server, mut a, mut b) = (Server::default(), agent("a"), agent("b"));
        let now = Instant::now();
        assert!(server.visit(&mut a, Pace::GATEWAY, now));
        let released = a.release(server.lease.as_ref().unwrap()).unwrap();
        assert!(!a.holds(now) && server.write(Step::Replace(Box::new(released))).is_some());
        assert!(server.visit(&mut b, Pace::GATEWAY, now));
        assert!(a.release(server.lease.as_ref().unwrap()).is_none(), "nobody gives up what is another's");
    }

    #[test]
    fn a_hostile_lease_does_not_hold_for_ever() {
        let (mut server, mut a) = (Server::default(), agent("a"));
        let begin = Instant::now();
        let spec = LeaseSpec {
            holder_identity: Some("nobody".into()),
            lease_duration_seconds: Some(i32::MAX),
            lease_transitions: Some(i32::MAX),
            ..LeaseSpec::default()
        };
        server.lease = Some(Lease { spec: Some(spec), ..Lease::default() });
        assert!(!server.visit(&mut a, Pace::GATEWAY, begin));
        assert!(server.visit(&mut a, Pace::GATEWAY, begin + LONGEST + Duration::from_secs(1)));
    }
}
