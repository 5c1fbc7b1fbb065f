//! What is measured of each contender.

use std::collections::BTreeMap;

use super::contender::Contender;
use super::stats::Summary;

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Metric {
    Tcp1,
    Tcp1Reverse,
    Tcp4,
    Tcp4Reverse,
    /// Of the daemons at both ends, under one TCP stream.
    CpuPerGb,
    /// The same under four.
    CpuPerGb4,
    Udp64,
    CpuPerPacket,
    RttP50,
    RttP99,
    RttLoadP99,
    RssIdle,
    RssLoad,
    CallsPerMb,
}

impl Metric {
    pub(crate) const ALL: [Self; 14] = [
        Self::Tcp1,
        Self::Tcp1Reverse,
        Self::Tcp4,
        Self::Tcp4Reverse,
        Self::CpuPerGb,
        Self::CpuPerGb4,
        Self::Udp64,
        Self::CpuPerPacket,
        Self::RttP50,
        Self::RttP99,
        Self::RttLoadP99,
        Self::RssIdle,
        Self::RssLoad,
        Self::CallsPerMb,
    ];

    /// The streams of TCP, with the number of them and whether they go in reverse.
    pub(crate) const TCP: [(Self, u8, bool); 4] = [
        (Self::Tcp1, 1, false),
        (Self::Tcp1Reverse, 1, true),
        (Self::Tcp4, 4, false),
        (Self::Tcp4Reverse, 4, true),
    ];

    /// The key in the document.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp1Reverse => "tcp1_reverse",
            Self::Tcp4 => "tcp4",
            Self::Tcp4Reverse => "tcp4_reverse",
            Self::CpuPerGb => "cpu_s_per_gb",
            Self::CpuPerGb4 => "cpu_s_per_gb_tcp4",
            Self::Udp64 => "udp64_kpps",
            Self::CpuPerPacket => "cpu_us_per_packet",
            Self::RttP50 => "rtt_p50_us",
            Self::RttP99 => "rtt_p99_us",
            Self::RttLoadP99 => "rtt_load_p99_us",
            Self::RssIdle => "rss_idle_mb",
            Self::RssLoad => "rss_load_mb",
            Self::CallsPerMb => "calls_per_mb",
        }
    }

    /// What it is to a person.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP 1 stream, Gbit/s",
            Self::Tcp1Reverse => "TCP 1 stream, reverse, Gbit/s",
            Self::Tcp4 => "TCP 4 streams, Gbit/s",
            Self::Tcp4Reverse => "TCP 4 streams, reverse, Gbit/s",
            Self::CpuPerGb => "daemons' CPU s per GB, 1 stream",
            Self::CpuPerGb4 => "daemons' CPU s per GB, 4 streams",
            Self::Udp64 => "64-byte UDP delivered, kpps",
            Self::CpuPerPacket => "CPU us per packet at 20 kpps",
            Self::RttP50 => "RTT p50 idle, us",
            Self::RttP99 => "RTT p99 idle, us",
            Self::RttLoadP99 => "RTT p99 under TCP, us",
            Self::RssIdle => "RSS idle, MB",
            Self::RssLoad => "RSS under load, MB",
            Self::CallsPerMb => "system calls per MB",
        }
    }

    /// Whether more of it is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Tcp1 | Self::Tcp1Reverse | Self::Tcp4 | Self::Tcp4Reverse | Self::Udp64)
    }

    /// The better one of two values.
    pub(crate) fn better(self, a: f64, b: f64) -> f64 {
        if self.more_is_better() { a.max(b) } else { a.min(b) }
    }
}

/// Everything that was measured, and what could not be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    values: BTreeMap<(Contender, Metric), Vec<f64>>,
    /// The bound of each of the TCP figures, Gbit/s.
    bounds: BTreeMap<Metric, Vec<f64>>,
    /// ChaCha20-Poly1305's share, CPU s per GB, with what podspan uses.
    pub(crate) crypto: Vec<f64>,
    /// The same with aws-lc.
    pub(crate) crypto_aws_lc: Vec<f64>,
    /// What a reader should know of single turns.
    pub(crate) notes: Vec<String>,
    /// What went wrong, told with the contender.
    pub(crate) failures: Vec<String>,
    /// Which contenders are missing and why.
    pub(crate) missing: Vec<String>,
}

impl Results {
    pub(crate) fn add(&mut self, contender: Contender, metric: Metric, value: f64) {
        self.values.entry((contender, metric)).or_default().push(value);
    }

    pub(crate) fn add_bound(&mut self, metric: Metric, gbit: f64) {
        self.bounds.entry(metric).or_default().push(gbit);
    }

    pub(crate) fn of(&self, contender: Contender, metric: Metric) -> Option<Summary> {
        Summary::of(self.values.get(&(contender, metric))?)
    }

    /// What each turn came to, in the order of time.
    pub(crate) fn turns(&self, contender: Contender, metric: Metric) -> &[f64] {
        self.values.get(&(contender, metric)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn median(&self, contender: Contender, metric: Metric) -> Option<f64> {
        self.of(contender, metric).map(|summary| summary.median)
    }

    /// What could at most be reached, Gbit/s.
    pub(crate) fn bound(&self, metric: Metric) -> Option<f64> {
        Summary::of(self.bounds.get(&metric)?).map(|summary| summary.median)
    }

    /// Who was measured, in the order of the tables.
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let was_measured =
            |contender: &Contender| self.values.keys().any(|(measured, _)| measured == contender);
        Contender::ALL.into_iter().filter(was_measured).collect()
    }

    /// The best value that a peer has, with its name.
    pub(crate) fn best_peer(&self, metric: Metric) -> Option<(Contender, f64)> {
        let peers = self.contenders().into_iter().filter(|contender| contender.is_peer());
        let values = peers.filter_map(|peer| Some((peer, self.median(peer, metric)?)));
        values.reduce(|best, next| if metric.better(best.1, next.1) == best.1 { best } else { next })
    }

    /// Which of boringtun's two settings counts: the one with the greater throughput.
    pub(crate) fn better_boringtun(&self) -> Option<Contender> {
        let [one, four] = [Contender::BoringtunOne, Contender::BoringtunFour]
            .map(|contender| (contender, self.median(contender, Metric::Tcp1)));
        match (one, four) {
            ((one, Some(a)), (four, Some(b))) => Some(if b > a { four } else { one }),
            ((one, Some(_)), (_, None)) => Some(one),
            ((_, None), (four, Some(_))) => Some(four),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique() {
        let keys: std::collections::HashSet<_> = Metric::ALL.map(Metric::key).into_iter().collect();
        assert_eq!(keys.len(), Metric::ALL.len());
    }

    #[test]
    fn the_best_peer_is_best_in_the_figures_own_sense() {
        let mut results = Results::default();
        for (contender, gbit, cost) in [
            (Contender::Podspan, 9.0, 1.0),
            (Contender::Bound, 90.0, 0.1),
            (Contender::WireguardGo, 2.0, 5.0),
            (Contender::BoringtunFour, 0.5, 18.0),
            (Contender::BoringtunOne, 0.8, 4.0),
        ] {
            results.add(contender, Metric::Tcp1, gbit);
            results.add(contender, Metric::CpuPerGb, cost);
        }
        assert_eq!(results.best_peer(Metric::Tcp1), Some((Contender::WireguardGo, 2.0)));
        assert_eq!(results.best_peer(Metric::CpuPerGb), Some((Contender::BoringtunOne, 4.0)));
        assert_eq!(results.best_peer(Metric::Udp64), None);
        assert_eq!(results.better_boringtun(), Some(Contender::BoringtunOne));
        assert_eq!(results.contenders().len(), 5);
    }
}
