//! Links, addresses, routes of all tables, rules and queueing disciplines, as iproute2 tells them in JSON.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use podspan_wire::INTERFACE;
use serde_json::Value;

use super::tool;
use crate::netns::Netns;

/// Fields that change by themselves (as all timers of bridges do), or that name a thing by a number which is new each time.
const VOLATILE: [&str; 19] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "stats",
    "stats64",
    "valid_life_time",
    "preferred_life_time",
    "expires",
    "used",
    "refcnt",
    "lastuse",
    "bytes",
    "packets",
    "drops",
    "overlimits",
    "requeues",
    "backlog",
    "qlen",
    "handle",
];

/// One list to be taken: section, program, arguments.
const LISTS: [(&str, &str, &[&str]); 8] = [
    ("links", "ip", &["-j", "-d", "link", "show"]),
    ("addresses", "ip", &["-j", "address", "show"]),
    ("IPv4 routes", "ip", &["-j", "-N", "-d", "-4", "route", "show", "table", "all"]),
    ("IPv6 routes", "ip", &["-j", "-N", "-d", "-6", "route", "show", "table", "all"]),
    ("IPv4 rules", "ip", &["-j", "-N", "-4", "rule", "show"]),
    ("IPv6 rules", "ip", &["-j", "-N", "-6", "rule", "show"]),
    ("static neighbours", "ip", &["-j", "neigh", "show", "nud", "permanent"]),
    ("queueing disciplines", "tc", &["-j", "qdisc", "show"]),
];

pub(super) fn add(
    netns: Option<&Netns>,
    sections: &mut BTreeMap<String, BTreeMap<String, String>>,
) -> Result<()> {
    for (section, program, args) in LISTS {
        let text = tool(netns, program, args).text()?;
        let list = parse(&text).with_context(|| format!("the answer of {program} {}", args.join(" ")))?;
        sections.insert(section.to_owned(), entries(list));
    }
    Ok(())
}

/// iproute2 writes nothing at all for an empty list.
fn parse(text: &str) -> Result<Vec<Value>> {
    if text.trim().is_empty() { Ok(Vec::new()) } else { Ok(serde_json::from_str(text)?) }
}

/// Each entry as its own key, so that an entry more or less is a line of its own; alike ones are counted.
fn entries(list: Vec<Value>) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for mut entry in list {
        strip(&mut entry);
        if entry.as_object().is_some_and(|entry| !entry.is_empty()) {
            *counts.entry(entry.to_string()).or_default() += 1;
        }
    }
    counts
        .into_iter()
        .map(|(entry, count)| (entry, if count == 1 { String::new() } else { format!("{count} times") }))
        .collect()
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !VOLATILE.contains(&key.as_str()) && !key.ends_with("_timer"));
            // A link without carrier is UNKNOWN until its first event, and works no worse for it.
            if fields.get("operstate").is_some_and(|state| state == "UNKNOWN") {
                fields.insert("operstate".into(), "UP".into());
            }
            // Routes to other clusters take what their paths were last found to take.
            if fields.get("dev").is_some_and(|dev| dev == INTERFACE)
                && let Some(Value::Array(metrics)) = fields.get_mut("metrics")
            {
                metrics.iter_mut().filter_map(Value::as_object_mut).for_each(|metric| {
                    metric.remove("mtu");
                });
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_by_itself_is_left_out_and_the_rest_kept() {
        let list = parse(
            r#"[{"ifindex":2,"ifname":"eth0","mtu":1500,"linkinfo":{"info_data":{"gc_timer":3,"x":1}}},{}]"#,
        );
        let found = entries(list.unwrap());
        let keys: Vec<_> = found.keys().collect();
        assert_eq!(keys, [r#"{"ifname":"eth0","linkinfo":{"info_data":{"x":1}},"mtu":1500}"#]);
        assert!(parse("").unwrap().is_empty());
        let routes = |dev: &str, mtu: u32| {
            entries(parse(&format!(r#"[{{"dev":"{dev}","metrics":[{{"mtu":{mtu},"advmss":9}}]}}]"#)).unwrap())
        };
        assert_eq!(routes(INTERFACE, 1420), routes(INTERFACE, 1440));
        assert_ne!(routes("eth0", 1420), routes("eth0", 1440));
    }
}
