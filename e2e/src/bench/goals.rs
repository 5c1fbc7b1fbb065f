//! The goals, each a ratio within one run, and whether they are met.

use super::contender::Contender;
use super::metric::{Metric, Results};
use super::stats::ratio_between;
use super::table::short;

/// One goal with what was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Goal {
    /// What is to be, with the figure that it is about.
    pub(crate) what: String,
    /// The value that decides; nothing if it could not be measured.
    pub(crate) value: Option<f64>,
    pub(crate) limit: f64,
    /// Whether the value must be at least the limit, rather than at most.
    pub(crate) at_least: bool,
    /// Between what the value lies with 95 % certainty, where the goal is to be no worse than another.
    pub(crate) between: Option<[f64; 2]>,
}

impl Goal {
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.value.map(|value| if self.at_least { value >= self.limit } else { value <= self.limit })
    }

    /// Whether the turns do not tell which of the two is better.
    pub(crate) fn is_even(&self) -> bool {
        self.between.is_some_and(|[low, high]| low <= self.limit && self.limit <= high)
    }

    /// `met`, `even` or `NOT MET` with the numbers.
    pub(crate) fn verdict(&self) -> [String; 3] {
        let sign = if self.at_least { ">=" } else { "<=" };
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) if self.is_even() => "even: the turns do not tell them apart",
            Some(false) => "NOT MET",
            None => "not measured",
        };
        let between = |[low, high]: [f64; 2]| format!(" ({} to {})", short(low), short(high));
        let seen = self.value.map(|value| short(value) + &self.between.map(between).unwrap_or_default());
        [seen.unwrap_or("-".into()), format!("{sign} {}", short(self.limit)), verdict.into()]
    }
}

/// The goals that these results can decide.
pub(crate) fn of(results: &Results) -> Vec<Goal> {
    let mine = |metric| results.median(Contender::Podspan, metric);
    let mut goals = Vec::new();
    let mut goal = |what: String, value: Option<f64>, limit: f64, at_least: bool| {
        goals.push(Goal { what, value, limit, at_least, between: None });
    };
    let ratio = |metric, other: Option<f64>| Some(mine(metric)? / other?);
    for (metric, ..) in Metric::TCP {
        let other = results.median(Contender::WireguardGo, metric);
        goal(format!("{}: x wireguard-go", metric.title()), ratio(metric, other), 2.0, true);
    }
    for (metric, ..) in Metric::TCP {
        goal(
            format!("{}: share of the bound", metric.title()),
            ratio(metric, results.bound(metric)),
            0.6,
            true,
        );
    }
    for metric in [Metric::CpuPerGb, Metric::CpuPerGb4] {
        let other = results.median(Contender::WireguardGo, metric);
        goal(format!("{}: x wireguard-go", metric.title()), ratio(metric, other), 0.45, false);
    }
    let best = |metric| results.best_peer(metric);
    let named = |metric: Metric, peer: Option<(Contender, f64)>| {
        let name = peer.map_or("the best peer", |(contender, _)| contender.name());
        format!("{}: x {name}", metric.title())
    };
    let udp = best(Metric::Udp64);
    let value = ratio(Metric::Udp64, udp.map(|(_, value)| value));
    goal(named(Metric::Udp64, udp), value, 1.5, true);
    for metric in [Metric::CpuPerPacket, Metric::RttP50, Metric::RttP99, Metric::RttLoadP99] {
        let peer = best(metric);
        let turns = |contender| results.turns(contender, metric);
        goals.push(Goal {
            what: named(metric, peer),
            value: ratio(metric, peer.map(|(_, value)| value)),
            limit: 1.0,
            at_least: false,
            between: peer.and_then(|(peer, _)| ratio_between(turns(Contender::Podspan), turns(peer))),
        });
    }
    let mut goal = |what: String, value: Option<f64>, limit: f64, at_least: bool| {
        goals.push(Goal { what, value, limit, at_least, between: None });
    };
    goal(Metric::RssIdle.title().into(), mine(Metric::RssIdle), 16.0, false);
    goal(Metric::RssLoad.title().into(), mine(Metric::RssLoad), 64.0, false);
    for metric in [Metric::Tcp4, Metric::Tcp4Reverse] {
        let two = results.median(Contender::PodspanTwoLanes, metric);
        let value = two.zip(mine(metric)).map(|(two, one)| two / one);
        goal(format!("{}: two lanes x one", metric.title()), value, 1.0, true);
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_decided_by_ratios() {
        let mut results = Results::default();
        results.add(Contender::Podspan, Metric::Tcp1, 5.0);
        results.add(Contender::WireguardGo, Metric::Tcp1, 2.0);
        results.add_bound(Metric::Tcp1, 10.0);
        results.add(Contender::Podspan, Metric::RttP99, 110.0);
        results.add(Contender::WireguardGo, Metric::RttP99, 400.0);
        results.add(Contender::Gotatun, Metric::RttP99, 100.0);
        results.add(Contender::Podspan, Metric::Tcp4, 4.0);
        results.add(Contender::PodspanTwoLanes, Metric::Tcp4, 4.0);
        let goals = of(&results);
        let met = |what: &str| goals.iter().find(|goal| goal.what.starts_with(what)).unwrap().is_met();
        assert_eq!(met("TCP 1 stream, Gbit/s: x wireguard-go"), Some(true));
        assert_eq!(met("TCP 1 stream, Gbit/s: share of the bound"), Some(false));
        assert_eq!(met("RTT p99 idle, us: x gotatun"), Some(false));
        assert_eq!(met("TCP 4 streams, Gbit/s: two lanes"), Some(true));
        assert_eq!(met("RSS idle"), None);
    }

    #[test]
    fn what_cannot_be_told_apart_is_even() {
        let verdict = |mine: [f64; 5], theirs: [f64; 5]| {
            let mut results = Results::default();
            for (mine, theirs) in mine.into_iter().zip(theirs) {
                results.add(Contender::Podspan, Metric::RttP50, mine);
                results.add(Contender::BoringtunOne, Metric::RttP50, theirs);
            }
            let goals = of(&results);
            goals.into_iter().find(|goal| goal.what.starts_with("RTT p50")).unwrap().verdict()
        };
        let base = [100.0, 110.0, 95.0, 140.0, 102.0];
        let [seen, _, word] = verdict([103.0, 99.0, 130.0, 101.0, 120.0], base);
        assert!(seen.starts_with("1.01 (") && word.starts_with("even"), "{seen} {word}");
        assert_eq!(verdict(base.map(|value| value * 1.1), base)[2], "NOT MET");
        assert_eq!(verdict(base.map(|value| value * 0.9), base)[2], "met");
    }
}
