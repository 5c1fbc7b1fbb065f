//! What happens when, made from a seed: the same seed always gives the same.

use std::time::Duration;

use crate::random::Random;

/// Something that is done to the world; each has its end, when it is made good.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// An agent is killed, and started again at the end.
    KillAgent { node: String },
    /// An agent hangs.
    HangAgent { node: String },
    /// A node's plug is pulled.
    CutLink { node: String },
    /// A node's packets are lost, delayed, doubled, overtaken or damaged on their way, in both directions.
    Impair { node: String, fault: Weather },
    /// Nothing passes between two clouds.
    Partition { one: String, other: String },
    /// A cloud does not reach the broker.
    NoBroker { cloud: String },
    /// The broker is killed.
    KillBroker,
    /// An agent's clock is wrong by so many seconds, and then right again; it is started anew for both.
    ClockStep { node: String, seconds: i32 },
    /// What podspan has in a node's kernel is deleted by hand.
    Delete { node: String, what: Part },
    /// A gateway answers and forwards nothing.
    NoForwarding { node: String },
    /// An ordinary node becomes a gateway, or a gateway an ordinary node.
    ToggleGateway { node: String },
}

/// A fault of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    Loss,
    Delay,
    Duplicate,
    Reorder,
    Corrupt,
    Slow,
}

const WEATHERS: [Weather; 6] =
    [Weather::Loss, Weather::Delay, Weather::Duplicate, Weather::Reorder, Weather::Corrupt, Weather::Slow];

/// What somebody deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Routes,
    Rules,
    Table,
    Addresses,
}

const PARTS: [Part; 4] = [Part::Routes, Part::Rules, Part::Table, Part::Addresses];

/// What the seed may choose from.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    pub(super) nodes: Vec<String>,
    /// Nodes that forward for others.
    pub(super) gateways: Vec<String>,
    /// Nodes that other clusters could dial, and that need not be gateways.
    pub(super) toggles: Vec<String>,
    pub(super) clouds: Vec<String>,
}

/// A step of a storm.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) at: Duration,
    /// Whether it begins or is made good.
    pub(super) begins: bool,
    /// Which of the storm's actions.
    pub(super) action: usize,
}

/// Several things at once, for a while.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storm {
    pub(super) seed: u64,
    pub(super) actions: Vec<Action>,
    /// In the order of time; every action begins and ends.
    pub(super) steps: Vec<Step>,
}

/// How long a storm lasts at most.
#[cfg(test)]
const STORM: Duration = Duration::from_secs(8);

const MOST: usize = 4;

impl Storm {
    /// Storm `number` of a seed.
    pub(super) fn new(seed: u64, number: u64, cast: &Cast) -> Self {
        let seed = seed.wrapping_mul(10_007).wrapping_add(number);
        let mut random = Random::new(seed);
        let mut actions: Vec<Action> = Vec::new();
        let mut steps = Vec::new();
        let count = 1 + random.below(MOST);
        while actions.len() < count {
            let action = Action::draw(&mut random, cast);
            let (begin, lasts) = (random.below(3000), 1000 + random.below(4000));
            if actions.iter().any(|other| action.excludes(other)) {
                // The numbers are drawn all the same, so that there is an end to it: another one is tried.
                continue;
            }
            let begin = Duration::from_millis(begin as u64);
            let end = begin + Duration::from_millis(lasts as u64);
            steps.push(Step { at: begin, begins: true, action: actions.len() });
            steps.push(Step { at: end, begins: false, action: actions.len() });
            actions.push(action);
        }
        steps.sort_by_key(|step| step.at);
        Self { seed, actions, steps }
    }

    /// Whether packets may leave in clear for a moment, because somebody deleted what leads them into the tunnel.
    pub(super) fn bares(&self) -> bool {
        self.actions.iter().any(|action| {
            matches!(action, Action::Delete { what: Part::Routes | Part::Rules | Part::Table, .. })
        })
    }
}

impl Action {
    fn draw(random: &mut Random, cast: &Cast) -> Self {
        let node = random.pick(&cast.nodes).clone();
        match random.below(13) {
            0 => Self::KillAgent { node },
            1 => Self::HangAgent { node },
            2 => Self::CutLink { node },
            // Weather is what there is most of.
            3..=5 => Self::Impair { node, fault: *random.pick(&WEATHERS) },
            6 => {
                let first = random.below(cast.clouds.len());
                let other = (first + 1 + random.below(cast.clouds.len() - 1)) % cast.clouds.len();
                Self::Partition { one: cast.clouds[first].clone(), other: cast.clouds[other].clone() }
            }
            7 => Self::NoBroker { cloud: random.pick(&cast.clouds).clone() },
            8 => Self::KillBroker,
            9 => Self::ClockStep { node, seconds: if random.chance(0.5) { 3600 } else { -3600 } },
            10 => Self::Delete { node, what: *random.pick(&PARTS) },
            11 => Self::NoForwarding { node: random.pick(&cast.gateways).clone() },
            _ => Self::ToggleGateway { node: random.pick(&cast.toggles).clone() },
        }
    }

    fn node(&self) -> Option<&str> {
        match self {
            Self::KillAgent { node }
            | Self::HangAgent { node }
            | Self::CutLink { node }
            | Self::Impair { node, .. }
            | Self::ClockStep { node, .. }
            | Self::Delete { node, .. }
            | Self::NoForwarding { node }
            | Self::ToggleGateway { node } => Some(node),
            Self::Partition { .. } | Self::NoBroker { .. } | Self::KillBroker => None,
        }
    }

    /// Whether the two cannot be under way together: what undoes one would undo the other, or the end of the
    /// one could not be told from the beginning of the other.
    fn excludes(&self, other: &Self) -> bool {
        let process = |action: &Self| {
            matches!(action, Self::KillAgent { .. } | Self::HangAgent { .. } | Self::ClockStep { .. })
        };
        let facts = |action: &Self| matches!(action, Self::ToggleGateway { .. });
        match (self.node(), other.node()) {
            (Some(a), Some(b)) if a == b => {
                self.kind() == other.kind()
                    || (process(self) && process(other))
                    // Nobody is there to put it right.
                    || (process(self) && matches!(other, Self::Delete { .. }))
                    || (process(other) && matches!(self, Self::Delete { .. }))
            }
            (None, None) => self == other,
            // A record that changes takes a broker to be heard of; how long agents take to come back to one is
            // no matter of the data path.
            _ => {
                let broker = |action: &Self| matches!(action, Self::NoBroker { .. } | Self::KillBroker);
                let news = |action: &Self| facts(action) || matches!(action, Self::ClockStep { .. });
                (broker(self) && news(other)) || (broker(other) && news(self))
            }
        }
    }

    fn kind(&self) -> std::mem::Discriminant<Self> {
        std::mem::discriminant(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast() -> Cast {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Cast {
            nodes: names(&["a-1", "a-2", "a-3", "b-1", "b-2"]),
            gateways: names(&["a-1", "a-2", "b-1"]),
            toggles: names(&["a-2", "a-3"]),
            clouds: names(&["a", "b", "c"]),
        }
    }

    #[test]
    fn a_seed_replays_and_another_one_differs() {
        let storms = |seed| (0..20).map(|n| Storm::new(seed, n, &cast())).collect::<Vec<_>>();
        assert_eq!(storms(1), storms(1));
        assert_ne!(storms(1), storms(2));
    }

    #[test]
    fn every_action_begins_and_ends_in_time_and_none_excludes_another() {
        for seed in 0..300 {
            let storm = Storm::new(seed, 0, &cast());
            assert!(!storm.actions.is_empty() && storm.actions.len() <= MOST);
            for (number, action) in storm.actions.iter().enumerate() {
                let own: Vec<_> = storm.steps.iter().filter(|step| step.action == number).collect();
                assert!(own.len() == 2 && own[0].begins && !own[1].begins && own[0].at < own[1].at);
                assert!(own[1].at <= STORM);
                let others = storm.actions.iter().enumerate().filter(|(other, _)| *other != number);
                for (_, other) in others {
                    assert!(!action.excludes(other), "{action:?} {other:?}");
                }
            }
            if let Some(Action::Partition { one, other }) =
                storm.actions.iter().find(|action| matches!(action, Action::Partition { .. }))
            {
                assert_ne!(one, other);
            }
        }
    }

    #[test]
    fn everything_happens() {
        let mut kinds = std::collections::HashSet::new();
        for seed in 0..300 {
            kinds.extend(Storm::new(seed, 0, &cast()).actions.iter().map(Action::kind));
        }
        assert_eq!(kinds.len(), 11);
    }
}
