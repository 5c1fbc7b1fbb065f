//! Packet rules: nftables (with what iptables-nft has made there), and iptables-legacy, both families.

use std::collections::BTreeMap;

use anyhow::Result;

use super::tool;
use crate::netns::Netns;

pub(super) fn add(
    netns: Option<&Netns>,
    sections: &mut BTreeMap<String, BTreeMap<String, String>>,
) -> Result<()> {
    // Stateless: without counters. The order of rules matters, so lines are numbered within their table.
    let text = tool(netns, "nft", &["-s", "list", "ruleset"]).text()?;
    sections.insert("nftables".into(), by_table(&text));
    for (section, program) in
        [("iptables-legacy", "iptables-legacy-save"), ("ip6tables-legacy", "ip6tables-legacy-save")]
    {
        // It lists only the tables that are there, and so makes none.
        let text = tool(netns, program, &[]).text()?;
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(without_counters);
        sections.insert(section.into(), numbered(lines));
    }
    Ok(())
}

/// One entry for each table with its whole text: tables are listed in the order in which they were made,
/// which means nothing.
fn by_table(text: &str) -> BTreeMap<String, String> {
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    let mut current = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with("table ") {
            current = Some(line.trim_end_matches([' ', '{']).to_owned());
        }
        if let Some(table) = &current {
            let body = tables.entry(table.clone()).or_default();
            body.push_str(line);
            body.push('\n');
        }
    }
    tables
}

/// `:FORWARD ACCEPT [12:345]` without its counters.
fn without_counters(line: &str) -> String {
    match line.rsplit_once(" [") {
        Some((head, tail)) if line.starts_with(':') && tail.ends_with(']') => head.to_owned(),
        _ => line.to_owned(),
    }
}

fn numbered(lines: impl Iterator<Item = String>) -> BTreeMap<String, String> {
    lines.enumerate().map(|(i, line)| (format!("{i:05}"), line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_told_apart_and_counters_left_out() {
        let tables = by_table("table inet a {\n\tchain x {\n\t}\n}\n# Warning\ntable ip b {\n}\n");
        assert_eq!(tables.keys().collect::<Vec<_>>(), ["table inet a", "table ip b"]);
        assert!(tables["table inet a"].contains("chain x"));
        assert_eq!(without_counters(":FORWARD ACCEPT [12:345]"), ":FORWARD ACCEPT");
        assert_eq!(
            without_counters("-A X -m comment --comment \"a [b]\""),
            "-A X -m comment --comment \"a [b]\""
        );
    }
}
