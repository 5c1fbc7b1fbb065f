//! To which nodes of its cluster a gateway hands packets through a tunnel, by questions that take the cluster's own
//! network with a foreign source, as those packets would. Pure.
//!
//! ```text
//!            3 in a row unanswered, while the tunnel to the node works
//!  native ─────────────────────────────────────────────────────────────► tunnel
//!    ▲  asked each 5 s, each second once an answer is missing              │ asked each 5 s,
//!    │                                                                     │ each 2 s once there is an answer
//!    ├───────────── 6 in a row answered; twice as many each time ──────────┤
//!    └───────────── the tunnel does not work ──────────────────────────────┘
//! ```
//!
//! What is not known is native. One that comes and goes does so ever more seldom: each time that it is found to need
//! the tunnel again more answers are asked for, until ten minutes have
//! passed without a question unanswered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podspan_wire::NodeId;
use tokio::time::Instant;

/// So many questions in a row that nobody answers decide for the tunnel.
pub const STREAK: u32 = 3;
/// How long an answer may take, and how soon it is asked again if it was too long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between questions while nothing changes.
const SETTLED: Duration = Duration::from_secs(5);
/// Between questions once one is answered that is to be handed packets through the tunnel.
const RETURNING: Duration = Duration::from_secs(2);
/// So many answers in a row decide for the cluster's own network at first; at most 32 times as many.
const RETURNED: u32 = 6;
const MOST_FAILURES: u32 = 5;
/// After so long without a question unanswered all is as at first.
const FORGIVEN: Duration = Duration::from_secs(600);
/// How long the tunnel to a node that needed it in the agent's last life may take to stand.
const GRACE: Duration = Duration::from_secs(15);

/// Why a node is handed packets as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Why {
    /// It cannot be asked: no address of another cluster is known, or it has none itself.
    #[default]
    Unasked,
    /// It has not answered yet, and not been silent for long enough.
    Asking,
    /// It answers.
    Answers,
    /// It does not answer, though its tunnel works.
    Silent,
    /// It does not answer, and its tunnel does not work.
    Down,
    /// It was silent in the agent's last life.
    Remembered,
}

impl Why {
    /// What it means, for a person.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Unasked => "not asked: no address of another cluster and of the node's own is known",
            Self::Asking => "it is being asked",
            Self::Answers => {
                "packets with the addresses of other clusters reach it over the cluster's own network"
            }
            Self::Silent => {
                "packets with the addresses of other clusters do not reach it over the cluster's own network"
            }
            Self::Down => "neither the cluster's own network nor the tunnel reaches it",
            Self::Remembered => "the cluster's own network did not bring them in the agent's last life",
        }
    }
}

/// What is found of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether it is handed packets through the tunnel.
    pub tunnel: bool,
    /// Why.
    pub why: Why,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Verdicts {
    nodes: BTreeMap<NodeId, Node>,
    /// Those that needed the tunnel in the agent's last life.
    remembered: BTreeSet<NodeId>,
    /// Whose question a nonce is.
    nonces: BTreeMap<u64, NodeId>,
    /// Whether what is found has changed since it was last asked for.
    changed: bool,
}

#[derive(Debug)]
struct Node {
    found: Found,
    /// Whether its tunnel works.
    usable: bool,
    /// Until when its tunnel need not work for it to be used.
    grace: Option<Instant>,
    /// Questions in a row that were, and were not answered.
    answered: u32,
    unanswered: u32,
    /// When it is to be asked next.
    due: Instant,
    /// The question that waits for its answers.
    question: Option<Question>,
    /// How often it was found to need the tunnel, and when a question was last not answered.
    failures: u32,
    failed: Instant,
}

#[derive(Debug)]
struct Question {
    at: Instant,
    /// Answers that are missing, one for each address family.
    missing: Vec<u64>,
}

impl Verdicts {
    /// Begins with those that needed the tunnel in the agent's last life.
    #[must_use]
    pub fn new(remembered: BTreeSet<NodeId>) -> Self {
        Self { remembered, ..Self::default() }
    }

    /// Takes in which nodes there are to be asked, and whether the tunnels to them work.
    pub fn follow(&mut self, now: Instant, nodes: &[(&NodeId, bool)]) {
        let kept: BTreeSet<&NodeId> = nodes.iter().map(|(id, _)| *id).collect();
        let before = self.nodes.len();
        self.nodes.retain(|id, _| kept.contains(id));
        self.changed |= self.nodes.len() != before;
        self.nonces.retain(|_, id| kept.contains(id));
        for &(id, usable) in nodes {
            let remembered = &mut self.remembered;
            let changed = &mut self.changed;
            let node = self.nodes.entry(id.clone()).or_insert_with(|| {
                *changed = true;
                Node::new(now, remembered.remove(id))
            });
            let before = node.found;
            node.set_usable(now, usable);
            self.changed |= node.found != before;
        }
    }

    /// Who is to be asked now: those that wait for longest, at most so many.
    #[must_use]
    pub fn due(&self, now: Instant, most: usize) -> Vec<NodeId> {
        let is_due = |node: &Node| node.question.is_none() && node.due <= now;
        let mut due: Vec<(Instant, &NodeId)> =
            self.nodes.iter().filter(|(_, node)| is_due(node)).map(|(id, node)| (node.due, id)).collect();
        due.sort();
        due.into_iter().take(most).map(|(_, id)| id.clone()).collect()
    }

    /// Notes a question with these nonces, one for each address family; without any it could not be asked.
    pub fn ask(&mut self, now: Instant, id: &NodeId, nonces: Vec<u64>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if nonces.is_empty() {
            node.due = now + PATIENCE;
            return;
        }
        self.nonces.extend(nonces.iter().map(|nonce| (*nonce, id.clone())));
        node.question = Some(Question { at: now, missing: nonces });
        if node.found.why == Why::Unasked {
            node.found.why = Why::Asking;
            self.changed = true;
        }
    }

    /// Takes an answer in.
    pub fn answer(&mut self, now: Instant, nonce: u64) {
        let Some(node) = self.nonces.remove(&nonce).and_then(|id| self.nodes.get_mut(&id)) else { return };
        let Some(question) = &mut node.question else { return };
        question.missing.retain(|missing| *missing != nonce);
        if question.missing.is_empty() {
            node.question = None;
            let before = node.found;
            node.has_answered(now);
            self.changed |= node.found != before;
        }
    }

    /// Looks whose time is over.
    pub fn judge(&mut self, now: Instant) {
        for node in self.nodes.values_mut() {
            if let Some(question) = node.question.take_if(|question| now - question.at >= PATIENCE) {
                for nonce in question.missing {
                    self.nonces.remove(&nonce);
                }
                let before = node.found;
                node.was_silent(now);
                self.changed |= node.found != before;
            }
        }
    }

    /// What is found of each node, if it has changed since it was last asked for.
    pub fn news(&mut self) -> Option<BTreeMap<NodeId, Found>> {
        std::mem::take(&mut self.changed).then(|| self.found())
    }

    /// What is found of each node.
    #[must_use]
    pub fn found(&self) -> BTreeMap<NodeId, Found> {
        self.nodes.iter().map(|(id, node)| (id.clone(), node.found)).collect()
    }
}

impl Node {
    fn new(now: Instant, remembered: bool) -> Self {
        let why = if remembered { Why::Remembered } else { Why::Unasked };
        Self {
            found: Found { tunnel: remembered, why },
            usable: false,
            grace: remembered.then(|| now + GRACE),
            answered: 0,
            unanswered: 0,
            due: now,
            question: None,
            failures: u32::from(remembered),
            failed: now,
        }
    }

    fn set_usable(&mut self, now: Instant, usable: bool) {
        if usable {
            self.grace = None;
            if !self.usable {
                // What was not answered before says nothing: the node may have been away.
                self.unanswered = 0;
                if self.found.why == Why::Down {
                    self.found.why = Why::Asking;
                }
                self.due = self.due.min(now);
            }
        } else if self.found.tunnel && self.grace.is_none_or(|grace| now >= grace) {
            self.grace = None;
            self.found = Found { tunnel: false, why: Why::Down };
            self.unanswered = 0;
        }
        self.usable = usable;
    }

    fn has_answered(&mut self, now: Instant) {
        self.unanswered = 0;
        self.answered = self.answered.saturating_add(1);
        if self.found.tunnel {
            if self.answered >= RETURNED << self.failures.saturating_sub(1).min(MOST_FAILURES) {
                self.found = Found { tunnel: false, why: Why::Answers };
            }
        } else {
            self.found.why = Why::Answers;
            if now - self.failed >= FORGIVEN {
                self.failures = 0;
            }
        }
        self.due = now + if self.found.tunnel { RETURNING } else { SETTLED };
    }

    fn was_silent(&mut self, now: Instant) {
        self.answered = 0;
        self.failed = now;
        self.unanswered = self.unanswered.saturating_add(1);
        if !self.found.tunnel && self.unanswered >= STREAK {
            if self.usable {
                self.found = Found { tunnel: true, why: Why::Silent };
                self.failures = self.failures.saturating_add(1);
            } else {
                self.found.why = Why::Down;
            }
        } else if self.found.why == Why::Remembered {
            self.found.why = Why::Silent;
        }
        let settled = self.found.tunnel || self.unanswered >= STREAK;
        self.due = if settled { now + SETTLED - PATIENCE } else { now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        format!("beta/{name}").parse().unwrap()
    }

    struct World {
        verdicts: Verdicts,
        now: Instant,
        begun: Instant,
        asked: u64,
    }

    impl World {
        fn new(remembered: &[&str]) -> Self {
            let now = Instant::now();
            let remembered = remembered.iter().map(|name| id(name)).collect();
            Self { verdicts: Verdicts::new(remembered), now, begun: now, asked: 0 }
        }

        /// Lets so many seconds pass; returns after how many of them, and to what, the verdict on `n` changed.
        fn run(
            &mut self,
            seconds: u64,
            usable: bool,
            answers: impl Fn(u64) -> bool,
        ) -> Vec<(u64, bool, Why)> {
            let (n, mut news) = (id("n"), Vec::new());
            let begun = self.now;
            for tick in 0..seconds * 20 {
                let before = self.verdicts.found().get(&n).copied().unwrap_or_default();
                if tick.is_multiple_of(20) {
                    self.verdicts.follow(self.now, &[(&n, usable)]);
                }
                self.verdicts.judge(self.now);
                for node in self.verdicts.due(self.now, 10) {
                    let nonces = vec![2 * self.asked, 2 * self.asked + 1];
                    self.verdicts.ask(self.now, &node, nonces.clone());
                    // Of two families one is no answer.
                    self.verdicts.answer(self.now, nonces[0]);
                    if answers(self.asked) {
                        self.verdicts.answer(self.now, nonces[1]);
                    }
                    self.asked += 1;
                }
                let after = self.verdicts.found()[&n];
                let told = self.verdicts.news().map(|found| found[&n]);
                assert_eq!(told, (tick == 0 && self.asked <= 1 || before != after).then_some(after));
                if before != after {
                    news.push(((self.now - begun).as_secs(), after.tunnel, after.why));
                }
                self.now += Duration::from_millis(50);
            }
            assert!(self.verdicts.nonces.len() <= 2, "what is over is forgotten");
            assert!(self.begun < self.now);
            news
        }

        fn tunnel(&self) -> bool {
            self.verdicts.found().get(&id("n")).is_some_and(|found| found.tunnel)
        }
    }

    #[test]
    fn silence_is_found_within_ten_seconds_and_its_end_too() {
        let mut world = World::new(&[]);
        assert_eq!(world.run(60, true, |_| true), [(0, false, Why::Answers)]);
        assert!((12..=13).contains(&world.asked), "each 5 s: {}", world.asked);
        let news = world.run(30, true, |_| false);
        let [(after, true, Why::Silent)] = news[..] else { panic!("{news:?}") };
        assert!(after <= 8, "{after}");
        let news = world.run(30, true, |_| true);
        let [(after, false, Why::Answers)] = news[..] else { panic!("{news:?}") };
        assert!((8..=20).contains(&after), "{after}");
    }

    #[test]
    fn at_the_start_it_is_found_in_three_seconds() {
        let news = World::new(&[]).run(10, true, |_| false);
        assert_eq!(news, [(0, false, Why::Asking), (3, true, Why::Silent)]);
    }

    #[test]
    fn a_question_or_two_lost_changes_nothing() {
        let mut world = World::new(&[]);
        assert_eq!(world.run(300, true, |n| n % 3 == 0), [(0, false, Why::Answers)]);
        assert!(!world.tunnel());
    }

    #[test]
    fn without_a_tunnel_that_works_there_is_none_to_be_used() {
        let mut world = World::new(&[]);
        let news = world.run(30, false, |_| false);
        assert_eq!(news.last().unwrap(), &(3, false, Why::Down));
        assert!(world.asked < 12, "{}", world.asked);
        // The node is back, and the network drops: three questions anew.
        let news = world.run(10, true, |_| false);
        let [.., (after, true, Why::Silent)] = news[..] else { panic!("{news:?}") };
        assert!((2..=5).contains(&after), "{after}");
        // It goes again.
        assert_eq!(world.run(2, false, |_| false)[0], (0, false, Why::Down));
        // And returns with a network that brings all.
        let news = world.run(10, true, |_| true);
        assert_eq!(news.last().unwrap().2, Why::Answers);
        assert!(!world.tunnel());
    }

    #[test]
    fn one_that_comes_and_goes_does_so_ever_more_seldom() {
        let mut world = World::new(&[]);
        let mut took = Vec::new();
        for _ in 0..3 {
            assert!(!world.tunnel());
            world.run(15, true, |_| false);
            assert!(world.tunnel());
            took.push(world.run(120, true, |_| true)[0].0);
        }
        assert!(took[0] < 20 && took[1] > took[0] + 8 && took[2] > took[1] + 16, "{took:?}");
        world.run(700, true, |_| true);
        world.run(15, true, |_| false);
        assert!(world.run(120, true, |_| true)[0].0 < 20, "it is forgiven");
    }

    #[test]
    fn what_was_found_in_the_last_life_holds_until_it_is_refuted() {
        let mut world = World::new(&["n"]);
        assert_eq!(world.run(10, false, |_| false).last().unwrap(), &(1, true, Why::Silent));
        assert!(world.tunnel(), "its tunnel has some time to come up");
        world.run(20, true, |_| false);
        assert!(world.tunnel());
        let mut world = World::new(&["n"]);
        world.run(14, false, |_| false);
        assert!(world.tunnel());
        world.run(3, false, |_| false);
        assert!(!world.tunnel(), "and not for ever");
    }

    #[test]
    fn thousands_are_asked_in_turn() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        let ids: Vec<NodeId> = (0..3000).map(|n| id(&format!("n{n}"))).collect();
        let nodes: Vec<(&NodeId, bool)> = ids.iter().map(|id| (id, true)).collect();
        verdicts.follow(now, &nodes);
        let mut asked: BTreeMap<NodeId, u32> = BTreeMap::new();
        for n in 0..600 {
            for node in verdicts.due(now, 10) {
                verdicts.ask(now, &node, vec![n * 10_000 + asked.len() as u64]);
                verdicts.answer(now, n * 10_000 + asked.len() as u64);
                *asked.entry(node).or_default() += 1;
            }
            now += Duration::from_millis(50);
        }
        assert_eq!(asked.len(), 3000);
        assert!(asked.values().all(|n| *n == 2), "each once in 15 s");
    }
}
