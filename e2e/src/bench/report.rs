//! What was measured, as tables, as a picture and as one JSON document.

use podspan_aead::Implementation;
use serde_json::{Map, Value, json};

use super::contender::Contender;
use super::figure::{Bar, Figure, Group, Panel, bars};
use super::goals;
use super::metric::{Metric, Results};
use super::stats::Summary;
use super::table::{Table, short};

/// The surroundings of a run.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) rounds: usize,
    pub(crate) cores: f64,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    /// Load averages before and after.
    pub(crate) load: [f64; 2],
    /// Share of the machine's CPU time that others used meanwhile, 0 to 1.
    pub(crate) others: f64,
    pub(crate) seconds: f64,
    /// `NAME VERSION` of what was measured.
    pub(crate) versions: Vec<String>,
}

impl Surroundings {
    fn line(&self) -> String {
        format!(
            "{} rounds, {} cores of {}, Linux {}, load {:.1} before and {:.1} after, others used {:.0} % of the CPU",
            self.rounds,
            self.cores,
            self.processor,
            self.kernel,
            self.load[0],
            self.load[1],
            self.others * 100.0
        )
    }
}

/// Medians with smallest and greatest values, and ratios.
pub(crate) fn table(results: &Results) -> String {
    let contenders = results.contenders();
    let head = std::iter::once("median (min..max)").chain(contenders.iter().map(|one| one.name()));
    let mut table = Table::new(head.chain(["x wireguard-go", "x best peer"]));
    for metric in Metric::ALL {
        let cell = |contender: &Contender| match results.of(*contender, metric) {
            Some(seen) => format!("{} ({}..{})", short(seen.median), short(seen.min), short(seen.max)),
            None => "-".into(),
        };
        let mine = results.median(Contender::Podspan, metric);
        let ratio = |other: Option<f64>| match (mine, other) {
            (Some(mine), Some(other)) => short(mine / other),
            _ => "-".into(),
        };
        let go = ratio(results.median(Contender::WireguardGo, metric));
        let best = match results.best_peer(metric) {
            Some((name, value)) => format!("{} {}", ratio(Some(value)), name.name()),
            None => "-".into(),
        };
        let cells = std::iter::once(metric.title().to_owned()).chain(contenders.iter().map(cell));
        table.row(cells.chain([go, best]));
    }
    table.to_string()
}

/// The goals with met or not met.
pub(crate) fn goal_table(results: &Results) -> String {
    let mut table = Table::new(["goal", "seen", "to be", ""]);
    for goal in goals::of(results) {
        table.row(std::iter::once(goal.what.clone()).chain(goal.verdict()));
    }
    table.to_string()
}

/// What the tables do not hold, line by line.
pub(crate) fn remarks(results: &Results, surroundings: &Surroundings) -> Vec<String> {
    let mut lines = vec![surroundings.line(), surroundings.versions.join(", ")];
    if let (Some(crypto), Some(bound)) = (Summary::of(&results.crypto), results.bound(Metric::Tcp1)) {
        lines.push(format!(
            "the bound: {} Gbit/s for one TCP stream, if all cores had nothing else to do, from the CPU time per GB of the \
             forwarder without crypto and of the load, and {} CPU s per GB of ChaCha20-Poly1305 by {}, which podspan \
             uses here; with aws-lc, as quick as what the others use, it is {}",
            short(bound),
            short(crypto.median),
            Implementation::best(),
            Summary::of(&results.crypto_aws_lc).map_or("not known".into(), |seen| short(seen.median))
        ));
    }
    if let Some(better) = results.better_boringtun() {
        lines.push(format!("of boringtun-cli's two settings {} counts", better.name()));
    }
    lines.extend(results.notes.iter().map(|what| format!("note: {what}")));
    lines.extend(results.missing.iter().map(|what| format!("MISSING: {what}")));
    lines.extend(results.failures.iter().map(|what| format!("FAILED: {what}")));
    lines
}

/// Throughput and CPU per GB.
pub(crate) fn figure(results: &Results, surroundings: &Surroundings) -> Figure {
    let group = |metric: Metric| {
        let bar = |contender: Contender| {
            Some(Bar { name: contender.name().into(), value: results.of(contender, metric)? })
        };
        let title = metric.title().split(", Gbit/s").next().unwrap_or_default().to_owned();
        let shown = results.contenders().into_iter().filter(|contender| *contender != Contender::Bound);
        Group { title, bars: shown.filter_map(bar).collect() }
    };
    let bound =
        results.bound(Metric::Tcp1).map_or(String::new(), |bound| format!("; bound {}", short(bound)));
    let panels = [
        Panel {
            title: format!("Throughput, Gbit/s (more is better{bound})"),
            groups: Metric::TCP.iter().map(|(metric, ..)| group(*metric)).collect(),
        },
        Panel {
            title: "CPU s per GB, daemons of both ends (less is better)".into(),
            groups: [Metric::CpuPerGb, Metric::CpuPerGb4].map(group).into(),
        },
    ];
    let note = format!(
        "medians of {} interleaved rounds, least to most; load {:.1} to {:.1}",
        surroundings.rounds, surroundings.load[0], surroundings.load[1]
    );
    bars("WireGuard in user space, two namespaces on one machine", &note, &panels)
}

/// The document: for each figure an object of medians by contender.
pub(crate) fn document(results: &Results, surroundings: &Surroundings) -> Value {
    let mut document = Map::new();
    let contenders = results.contenders();
    for metric in Metric::ALL {
        let mut values = Map::new();
        for contender in &contenders {
            if let Some(median) = results.median(*contender, metric) {
                values.insert(contender.name().into(), rounded(median));
            }
        }
        if let Some(median) = results.better_boringtun().and_then(|better| results.median(better, metric)) {
            values.insert("boringtun-cli".into(), rounded(median));
        }
        document.insert(metric.key().into(), Value::Object(values));
    }
    let bound = |metric| results.bound(metric).map_or(Value::Null, rounded);
    document.insert("bound_gbit".into(), bound(Metric::Tcp1));
    let bounds: Map<_, _> =
        Metric::TCP.iter().map(|(metric, ..)| (metric.key().to_owned(), bound(*metric))).collect();
    document.insert("bounds_gbit".into(), Value::Object(bounds));
    for (key, values) in
        [("crypto_s_per_gb", &results.crypto), ("crypto_s_per_gb_aws_lc", &results.crypto_aws_lc)]
    {
        document.insert(key.into(), Summary::of(values).map_or(Value::Null, |seen| rounded(seen.median)));
    }
    document.insert("crypto_by".into(), Implementation::best().to_string().into());
    let goals: Vec<Value> = goals::of(results)
        .into_iter()
        .map(|goal| {
            json!({
                "goal": goal.what,
                "value": goal.value.map(rounded),
                "limit": goal.limit,
                "at_least": goal.at_least,
                "met": goal.is_met(),
                "between": goal.between.map(|ends| ends.map(rounded)),
                "even": goal.is_even(),
            })
        })
        .collect();
    document.insert("goals".into(), goals.into());
    let spread: Map<_, _> = Metric::ALL
        .into_iter()
        .map(|metric| {
            let of = |contender: &Contender| {
                let seen = results.of(*contender, metric)?;
                Some((contender.name().to_owned(), json!([rounded(seen.min), rounded(seen.max)])))
            };
            (metric.key().to_owned(), Value::Object(contenders.iter().filter_map(of).collect()))
        })
        .collect();
    document.insert("min_max".into(), Value::Object(spread));
    document.insert("rounds".into(), surroundings.rounds.into());
    document.insert("load".into(), json!(surroundings.load));
    document.insert("others_cpu_share".into(), rounded(surroundings.others));
    document.insert("seconds".into(), rounded(surroundings.seconds));
    document.insert("versions".into(), json!(surroundings.versions));
    document.insert("notes".into(), json!(results.notes));
    document.insert("missing".into(), json!(results.missing));
    document.insert("failures".into(), json!(results.failures));
    Value::Object(document)
}

/// To a thousandth: more digits would say nothing.
fn rounded(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut results = Results::default();
        for (contender, gbit) in [(Contender::Podspan, 5.0), (Contender::BoringtunOne, 0.8)] {
            for metric in Metric::ALL {
                results.add(contender, metric, gbit);
            }
        }
        results.add_bound(Metric::Tcp1, 7.0);
        results.crypto.push(1.0);
        results.crypto_aws_lc.push(2.0);
        results.missing.push("gotatun: no network".into());
        results
    }

    fn surroundings() -> Surroundings {
        Surroundings {
            rounds: 3,
            cores: 2.0,
            kernel: "6.18".into(),
            processor: "a processor".into(),
            load: [0.5, 2.0],
            others: 0.1,
            seconds: 200.0,
            versions: vec!["podspan 0.1.0".into()],
        }
    }

    #[test]
    fn the_document_has_what_was_promised() {
        let document = document(&results(), &surroundings());
        for key in [
            "tcp1",
            "cpu_s_per_gb",
            "udp64_kpps",
            "cpu_us_per_packet",
            "rtt_p50_us",
            "rtt_p99_us",
            "rss_load_mb",
        ] {
            assert_eq!(document[key]["podspan"], 5.0, "{key}");
            assert_eq!(document[key]["boringtun-cli"], 0.8, "{key}");
        }
        assert_eq!(document["bound_gbit"], 7.0);
        assert_eq!(
            (&document["crypto_s_per_gb"], &document["crypto_s_per_gb_aws_lc"]),
            (&json!(1.0), &json!(2.0))
        );
        assert!(!document.to_string().contains('\n'));
    }

    #[test]
    fn tables_name_what_is_missing() {
        let results = results();
        let text = table(&results);
        assert!(text.contains("5.00 (5.00..5.00)") && text.contains("6.25 boringtun-cli-1-thread"), "{text}");
        let goals = goal_table(&results);
        assert!(goals.contains("NOT MET") && goals.contains("not measured"), "{goals}");
        let remarks = remarks(&results, &surroundings()).join("\n");
        assert!(remarks.contains("MISSING: gotatun") && remarks.contains("bound: 7.00 Gbit/s"), "{remarks}");
        let by = format!("1.00 CPU s per GB of ChaCha20-Poly1305 by {}", Implementation::best());
        assert!(remarks.contains(&by) && remarks.contains("it is 2.00"), "{remarks}");
        assert!(figure(&results, &surroundings()).svg().contains("podspan"));
    }
}
