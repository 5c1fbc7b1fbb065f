//! Which gateways forward, by the questions that were asked through them. Pure.
//!
//! A gateway is taken to forward until it is clear that it does not: the last [`STREAK`] questions through it to
//! a node are unanswered, while the same node answered one that was asked meanwhile by another way, and the gateway
//! itself was heard in its tunnel. What is ambiguous is no evidence: a node that answers nobody says nothing of any
//! gateway, and what is asked while the gateway itself is silent says no more than its tunnel does.
//!
//! ```text
//! asked each 100 ms    x fails   unanswered for 40 ms longer than usual: asked by all ways, each 50 ms
//! ──┬────────────────┬─┴──────────────┬───────┬───────┬───────┬──► time
//!   0              100              200     250     300     350: three are unanswered, 250 ms after the first
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use podspan_wire::NodeId;
use tokio::time::Instant;

/// So many questions in a row decide.
pub const STREAK: usize = 3;
/// How long an answer may take beyond a round trip of the tunnel, while none has come.
const UNKNOWN: Duration = Duration::from_millis(100);
/// How much longer than usual one may take at least.
const LATE: Duration = Duration::from_millis(40);
/// An answer that comes so late tells of a machine that stood still, not of the way.
const STANDSTILL: Duration = Duration::from_secs(2);
/// Questions in a row that are asked in haste once one is unanswered: then it is clear, or will not be soon.
const HASTY: usize = 6;
/// Questions that are remembered of one way to one node.
const KEPT: usize = 8;
/// A way that was not asked for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// One question.
#[derive(Clone, Copy, Debug)]
struct Question {
    nonce: u64,
    at: Instant,
    /// How long its answer may take.
    patience: Duration,
    answered: bool,
}

/// What was asked by one way, and how long answers take by it.
#[derive(Debug, Default)]
struct Way {
    questions: Vec<Question>,
    /// Smoothed time of an answer and its variation (RFC 6298 section 2): the way back may be another one than
    /// the tunnel's.
    took: Option<(Duration, Duration)>,
}

impl Way {
    fn patience(&self, rtt: Duration) -> Duration {
        self.took.map_or(2 * rtt + UNKNOWN, |(took, variation)| took + (4 * variation).max(LATE))
    }

    fn measure(&mut self, took: Duration) {
        if took > STANDSTILL {
            return;
        }
        self.took = Some(match self.took {
            None => (took, took / 2),
            Some((smooth, variation)) => {
                (smooth * 7 / 8 + took / 8, variation * 3 / 4 + smooth.abs_diff(took) / 4)
            }
        });
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// What was asked by way of a gateway of a node: (gateway, node).
    asked: BTreeMap<(NodeId, NodeId), Way>,
    /// Gateways that do not forward.
    refuted: Vec<NodeId>,
}

impl Verdicts {
    /// Notes a question by way of `gateway` to `node`, with a round trip of `rtt` to be expected.
    pub fn ask(&mut self, now: Instant, gateway: &NodeId, node: &NodeId, nonce: u64, rtt: Duration) {
        let way = self.asked.entry((gateway.clone(), node.clone())).or_default();
        if way.questions.len() >= KEPT {
            way.questions.remove(0);
        }
        way.questions.push(Question { nonce, at: now, patience: way.patience(rtt), answered: false });
    }

    /// Takes an answer in; returns whether it was asked for.
    pub fn answer(&mut self, now: Instant, nonce: u64) -> bool {
        for way in self.asked.values_mut() {
            let asked = way.questions.iter_mut().find(|asked| asked.nonce == nonce && !asked.answered);
            if let Some(question) = asked {
                question.answered = true;
                let took = now - question.at;
                way.measure(took);
                return true;
            }
        }
        false
    }

    /// Whether `node` is to be asked in haste, by all ways: one of them has just begun to give no answers, and the
    /// others are to say whether that is the node's fault.
    #[must_use]
    pub fn is_in_doubt(&self, node: &NodeId, now: Instant) -> bool {
        self.asked.iter().filter(|((_, to), _)| to == node).any(|(_, way)| {
            let unanswered = settled(&way.questions, now).rev().take_while(|question| !question.answered);
            (1..=HASTY).contains(&unanswered.count())
        })
    }

    /// What has become clear: gateways, and whether they forward. `heard` tells when a gateway last answered in its own
    /// tunnel, or nothing if it is silent at the moment; it is asked only about those through which a question has just
    /// remained unanswered.
    pub fn judge(&mut self, now: Instant, heard: impl Fn(&NodeId) -> Option<Instant>) -> Vec<(NodeId, bool)> {
        self.asked.retain(|_, way| way.questions.last().is_some_and(|last| now - last.at < FORGOTTEN));
        let mut gateways: Vec<NodeId> = self.asked.keys().map(|(gateway, _)| gateway.clone()).collect();
        gateways.dedup();
        let mut news = Vec::new();
        for gateway in gateways {
            let heard = match self.is_in_question(&gateway, now) {
                true => heard(&gateway),
                false => Some(now),
            };
            let Some(heard) = heard else {
                self.asked.retain(|(via, _), _| *via != gateway);
                continue;
            };
            let known = self.refuted.contains(&gateway);
            let forwards = self.forwards(&gateway, now);
            match self.silent_since(&gateway, now) {
                Some(silent) if !known && !forwards && heard > silent => news.push((gateway, false)),
                None if known && forwards => news.push((gateway, true)),
                _ => {}
            }
        }
        for (gateway, forwards) in &news {
            self.refuted.retain(|refuted| refuted != gateway);
            if !forwards {
                self.refuted.push(gateway.clone());
            }
        }
        news
    }

    /// The ways through `gateway` to other nodes.
    fn through<'a>(&'a self, gateway: &'a NodeId) -> impl Iterator<Item = (&'a NodeId, &'a Vec<Question>)> {
        let own = self.asked.iter().filter(move |((via, to), _)| via == gateway && to != gateway);
        own.map(|((_, to), way)| (to, &way.questions))
    }

    /// Whether the last question by some way through it is unanswered.
    fn is_in_question(&self, gateway: &NodeId, now: Instant) -> bool {
        self.through(gateway)
            .any(|(_, questions)| settled(questions, now).next_back().is_some_and(|last| !last.answered))
    }

    /// Whether the last questions by some way through it were all answered.
    fn forwards(&self, gateway: &NodeId, now: Instant) -> bool {
        self.through(gateway).any(|(_, questions)| {
            let mut last = settled(questions, now).rev().take(STREAK);
            let n = last.len();
            n >= STREAK && last.all(|question| question.answered)
        })
    }

    /// When the second of those questions was asked through it that are unanswered though the node can be reached. The
    /// first may have been under way when whatever happened did.
    fn silent_since(&self, gateway: &NodeId, now: Instant) -> Option<Instant> {
        self.through(gateway).find_map(|(node, questions)| {
            let last: Vec<&Question> = settled(questions, now).rev().take(STREAK).collect();
            if last.len() < STREAK || last.iter().any(|question| question.answered) {
                return None;
            }
            let since = last[STREAK - 1].at;
            // A node that dies between two questions of one round is no witness.
            let meanwhile = last[STREAK - 2].at;
            // Nor may one of those be answered that have not had their time yet.
            let later = questions.iter().any(|question| question.at > since && question.answered);
            let mut others = self.asked.iter().filter(|((via, to), _)| to == node && via != gateway);
            let elsewhere =
                others.any(|(_, way)| way.questions.iter().any(|q| q.at >= meanwhile && q.answered));
            (!later && elsewhere).then_some(meanwhile)
        })
    }
}

/// Questions that were answered or have had their time.
fn settled(questions: &[Question], now: Instant) -> std::vec::IntoIter<&Question> {
    let settled = questions.iter().filter(|q| q.answered || now - q.at >= q.patience);
    settled.collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(1);
    const STEP: Duration = Duration::from_millis(100);
    const TICK: Duration = Duration::from_millis(50);

    fn id(name: &str) -> NodeId {
        format!("beta/{name}").parse().unwrap()
    }

    /// Asks so many times by each way, a step apart; `answers` says by which ways answers come.
    fn run(
        verdicts: &mut Verdicts,
        now: &mut Instant,
        times: u64,
        ways: &[(&str, &str)],
        answers: impl Fn(&str, &str) -> bool,
    ) -> Vec<(NodeId, bool)> {
        let mut news = Vec::new();
        for _ in 0..times {
            let mut nonces = Vec::new();
            for (gateway, node) in ways {
                let nonce = getrandom::u64().unwrap();
                verdicts.ask(*now, &id(gateway), &id(node), nonce, RTT);
                if answers(gateway, node) {
                    nonces.push(nonce);
                }
            }
            assert!(nonces.into_iter().all(|nonce| verdicts.answer(*now + RTT, nonce)));
            *now += STEP;
            news.extend(verdicts.judge(*now, |_| Some(*now)));
        }
        news
    }

    const WAYS: [(&str, &str); 2] = [("g1", "n"), ("g2", "n")];

    #[test]
    fn one_that_does_not_forward_is_found_and_its_return_too() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        assert_eq!(run(&mut verdicts, &mut now, 10, &WAYS, |_, _| true), []);
        let news = run(&mut verdicts, &mut now, 5, &WAYS, |gateway, _| gateway != "g1");
        assert_eq!(news, [(id("g1"), false)]);
        let news = run(&mut verdicts, &mut now, 4, &WAYS, |_, _| true);
        assert_eq!(news, [(id("g1"), true)]);
    }

    #[test]
    fn it_is_found_in_under_half_a_second() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        run(&mut verdicts, &mut now, 10, &WAYS, |_, _| true);
        assert_eq!(run(&mut verdicts, &mut now, 4, &WAYS, |gateway, _| gateway != "g1").len(), 1);
    }

    /// As the prober does it: a round each 100 ms, and each 50 ms while there is doubt. Returns after how long the
    /// news came.
    fn ticks(
        verdicts: &mut Verdicts,
        now: &mut Instant,
        ticks: u32,
        took: Duration,
        answers: impl Fn(&str) -> bool,
    ) -> (u32, Vec<(Duration, NodeId, bool)>) {
        ticks_while_heard(verdicts, now, ticks, took, answers, |_, now| Some(now))
    }

    /// The same, with gateways that answer in their tunnels when `heard` says so.
    fn ticks_while_heard(
        verdicts: &mut Verdicts,
        now: &mut Instant,
        ticks: u32,
        took: Duration,
        answers: impl Fn(&str) -> bool,
        heard: impl Fn(&NodeId, Instant) -> Option<Instant>,
    ) -> (u32, Vec<(Duration, NodeId, bool)>) {
        let (begin, mut asked, mut news) = (*now, 0, Vec::new());
        let mut under_way: Vec<(Instant, u64)> = Vec::new();
        for tick in 0..ticks {
            under_way.retain(|&(at, nonce)| at > *now || !verdicts.answer(at, nonce));
            let judged = verdicts.judge(*now, |gateway| heard(gateway, *now));
            news.extend(judged.into_iter().map(|(id, forwards)| (*now - begin, id, forwards)));
            if tick.is_multiple_of(2) || verdicts.is_in_doubt(&id("n"), *now) {
                for (gateway, node) in WAYS {
                    let nonce = getrandom::u64().unwrap();
                    verdicts.ask(*now, &id(gateway), &id(node), nonce, RTT);
                    asked += 1;
                    if answers(gateway) {
                        under_way.push((*now + took, nonce));
                    }
                }
            }
            *now += TICK;
        }
        (asked, news)
    }

    #[test]
    fn with_haste_it_is_found_in_a_quarter_of_a_second() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        let quiet = ticks(&mut verdicts, &mut now, 40, RTT, |_| true);
        assert_eq!(quiet, (40, vec![]), "no haste without a reason");
        let (_, news) = ticks(&mut verdicts, &mut now, 8, RTT, |gateway| gateway != "g1");
        let [(after, gateway, false)] = &news[..] else { panic!("{news:?}") };
        assert_eq!((gateway, *after), (&id("g1"), Duration::from_millis(150)), "the first was asked at 0");
        // The haste is over soon, though it never answers again.
        ticks(&mut verdicts, &mut now, 20, RTT, |gateway| gateway != "g1");
        let (asked, news) = ticks(&mut verdicts, &mut now, 40, RTT, |gateway| gateway != "g1");
        assert_eq!((asked, news), (40, vec![]));
        let (_, news) = ticks(&mut verdicts, &mut now, 10, RTT, |_| true);
        assert_eq!(news.len(), 1);
    }

    #[test]
    fn a_gateway_that_is_dead_is_not_one_that_does_not_forward() {
        // The last reply in its tunnel came before or just after the first question that met nobody, asked at 1000 ms.
        for alive in [0, 900, 999, 1000, 1001, 1005] {
            let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
            let begin = now;
            ticks(&mut verdicts, &mut now, 20, RTT, |_| true);
            assert_eq!(now - begin, Duration::from_millis(1000));
            let last = begin + Duration::from_millis(alive);
            let g1 = id("g1");
            let heard = |gateway: &NodeId, now| Some(if *gateway == g1 { last } else { now });
            let answers = |gateway: &str| gateway != "g1";
            let (_, news) = ticks_while_heard(&mut verdicts, &mut now, 40, RTT, answers, heard);
            assert_eq!(news, [], "heard at {alive} ms");
            // Its tunnel has noticed; then it is back, at any time between two looks and two questions.
            for tail in 0..6 {
                let silent = |gateway: &NodeId, now| (*gateway != g1).then_some(now);
                let (_, news) = ticks_while_heard(&mut verdicts, &mut now, 20 + tail, RTT, answers, silent);
                assert_eq!(news, []);
                let (_, news) = ticks(&mut verdicts, &mut now, 10, RTT, |_| true);
                assert_eq!(news, [], "back after {tail}");
            }
            // It comes back, and only then does not forward.
            let (_, news) = ticks(&mut verdicts, &mut now, 4, RTT, answers);
            assert_eq!(news.len(), 1);
        }
    }

    #[test]
    fn a_long_way_back_is_no_fault_of_the_gateway() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        for took in [5, 30, 90, 150, 30, 200].map(Duration::from_millis) {
            let (_, news) = ticks(&mut verdicts, &mut now, 100, took, |_| true);
            assert_eq!(news, [], "{took:?}");
        }
        // One way is longer than the other all of a sudden, and nothing is lost.
        let (_, news) = ticks(&mut verdicts, &mut now, 100, Duration::from_millis(5), |_| true);
        assert_eq!(news, []);
    }

    #[test]
    fn ambiguous_evidence_is_none() {
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        // The node is gone, or the way back is.
        assert_eq!(run(&mut verdicts, &mut now, 20, &WAYS, |_, _| false), []);
        // There is only one way.
        assert_eq!(run(&mut verdicts, &mut now, 20, &WAYS[..1], |_, _| false), []);
        // One answer in three comes.
        let mut verdicts = Verdicts::default();
        for _ in 0..10 {
            assert_eq!(run(&mut verdicts, &mut now, 2, &WAYS, |gateway, _| gateway != "g1"), []);
            assert_eq!(run(&mut verdicts, &mut now, 1, &WAYS, |_, _| true), []);
        }
    }

    #[test]
    fn of_two_gateways_each_is_the_others_witness() {
        let ways = [("g1", "g2"), ("g2", "g1"), ("g1", "g1"), ("g2", "g2")];
        let (mut verdicts, mut now) = (Verdicts::default(), Instant::now());
        // g1 forwards nothing, but answers for itself.
        let news = run(&mut verdicts, &mut now, 6, &ways, |gateway, node| gateway != "g1" || node == "g1");
        assert_eq!(news, [(id("g1"), false)]);
        // That g1 cannot be reached by way of g2 any more says the same of g2.
        let mut verdicts = Verdicts::default();
        let news = run(&mut verdicts, &mut now, 6, &ways, |gateway, node| gateway == node);
        assert_eq!(news, [(id("g1"), false), (id("g2"), false)]);
    }

    #[test]
    fn forged_and_repeated_answers_are_not_taken() {
        let (mut verdicts, now) = (Verdicts::default(), Instant::now());
        verdicts.ask(now, &id("g1"), &id("n"), 7, RTT);
        assert!(!verdicts.answer(now, 8) && verdicts.answer(now, 7) && !verdicts.answer(now, 7));
    }
}
