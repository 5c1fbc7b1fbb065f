//! An nftables table as data: its text whole, and the transaction that changes one into another.
//!
//! A table that is replaced whole loses packets, though nftables does it in one transaction: a packet that is under
//! way meets the new chain before the transaction counts, and the old one when it counts no more. With a thousand packets
//! a second that happened at one in thirty (Linux 6.18), and a transit packet that is tracked, or masqueraded, is lost. So
//! what stays is left alone, chains stay where they hook in, and their rules are exchanged within them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::nft::{COMMENT, TABLE};

/// A table with its sets and chains, in nft's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    sets: Vec<Set>,
    chains: Vec<Chain>,
}

/// A named set of prefixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Set {
    name: String,
    /// Of what.
    kind: String,
    elements: Vec<String>,
}

/// A base chain that accepts what no rule decides about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chain {
    name: String,
    /// Type, hook and priority.
    hook: String,
    rules: Vec<String>,
}

impl Table {
    /// Adds a set of prefixes, `kind` one of nft's types.
    pub(super) fn set(&mut self, name: String, kind: &str, elements: Vec<String>) {
        self.sets.push(Set { name, kind: kind.to_owned(), elements });
    }

    /// Adds a chain of rules, each with a comment.
    pub(super) fn chain(&mut self, name: &str, hook: &str, rules: &[(String, &str)]) {
        let rules = rules.iter().map(|(rule, comment)| format!("{rule} comment \"{comment}\"")).collect();
        self.chains.push(Chain { name: name.to_owned(), hook: hook.to_owned(), rules });
    }

    /// The transaction that puts the table in the place of whatever table of this name there is, if any.
    ///
    /// Removing a table that does not exist is an error, so it is first added; nft takes the three as one.
    #[must_use]
    pub fn whole(&self) -> String {
        let mut text =
            format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n\tcomment \"{COMMENT}\"\n");
        for Set { name, kind, elements } in &self.sets {
            let _ = write!(text, "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval\n");
            if !elements.is_empty() {
                let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
            }
            text.push_str("\t}\n");
        }
        for Chain { name, hook, rules } in &self.chains {
            let _ = write!(text, "\tchain {name} {{\n\t\ttype {hook}; policy accept;\n");
            for rule in rules {
                let _ = writeln!(text, "\t\t{rule}");
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    /// The transaction that makes this table of `before`, which stands; `None` if a chain would have to move to
    /// another hook, or a set to become one of another type.
    #[must_use]
    pub fn change(&self, before: &Self) -> Option<String> {
        let old_set = |name: &str| before.sets.iter().find(|set| set.name == name);
        let old_chain = |name: &str| before.chains.iter().find(|chain| chain.name == name);
        let has_moved =
            self.sets.iter().any(|set| old_set(&set.name).is_some_and(|old| old.kind != set.kind))
                || self.chains.iter().any(|c| old_chain(&c.name).is_some_and(|old| old.hook != c.hook));
        if has_moved {
            return None;
        }
        let mut text = String::new();
        // A set can go, and an element with it, only once no rule names it.
        for old in &before.chains {
            match self.chains.iter().find(|chain| chain.name == old.name) {
                Some(chain) if chain.rules == old.rules => {}
                _ => drop(writeln!(text, "flush chain {TABLE} {}", old.name)),
            }
        }
        for Chain { name, hook, .. } in self.chains.iter().filter(|chain| old_chain(&chain.name).is_none()) {
            let _ = writeln!(text, "add chain {TABLE} {name} {{ type {hook}; policy accept; }}");
        }
        for Set { name, kind, elements } in &self.sets {
            let old = old_set(name).map_or(&[][..], |old| &old.elements);
            if old_set(name).is_none() {
                let _ = writeln!(text, "add set {TABLE} {name} {{ type {kind}; flags interval; }}");
            }
            // First what goes: two that overlap are refused.
            for (verb, from, without) in [("delete", old, &elements[..]), ("add", &elements[..], old)] {
                let different: Vec<_> = from.iter().filter(|element| !without.contains(element)).collect();
                for element in different {
                    let _ = writeln!(text, "{verb} element {TABLE} {name} {{ {element} }}");
                }
            }
        }
        for Chain { name, rules, .. } in &self.chains {
            if old_chain(name).is_none_or(|old| old.rules != *rules) {
                for rule in rules {
                    let _ = writeln!(text, "add rule {TABLE} {name} {rule}");
                }
            }
        }
        for old in before.chains.iter().filter(|old| self.chains.iter().all(|c| c.name != old.name)) {
            let _ = writeln!(text, "delete chain {TABLE} {}", old.name);
        }
        for old in before.sets.iter().filter(|old| self.sets.iter().all(|set| set.name != old.name)) {
            let _ = writeln!(text, "delete set {TABLE} {}", old.name);
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(elements: &[&str], rules: &[&str]) -> Table {
        let mut table = Table::default();
        table.set("remote4".into(), "ipv4_addr", elements.iter().map(ToString::to_string).collect());
        let rules: Vec<_> = rules.iter().map(|rule| (rule.to_string(), "why")).collect();
        table.chain("transit", "filter hook prerouting priority raw", &rules);
        table
    }

    #[test]
    fn what_stays_is_left_alone() {
        let before = table(&["10.2.0.0/16", "10.3.0.0/16"], &["a"]);
        assert_eq!(before.change(&before).unwrap(), "");
        assert_eq!(
            table(&["10.2.0.0/16", "10.0.0.0/8"], &["a"]).change(&before).unwrap(),
            "delete element inet podspan remote4 { 10.3.0.0/16 }\nadd element inet podspan remote4 { 10.0.0.0/8 }\n"
        );
        assert_eq!(
            table(&["10.2.0.0/16", "10.3.0.0/16"], &["b", "c"]).change(&before).unwrap(),
            "flush chain inet podspan transit\nadd rule inet podspan transit b comment \"why\"\n\
             add rule inet podspan transit c comment \"why\"\n"
        );
    }

    #[test]
    fn chains_and_sets_come_and_go() {
        let before = table(&["10.2.0.0/16"], &["a"]);
        let mut after = before.clone();
        after.set("more".into(), "ipv6_addr", vec!["fd00::/48".into()]);
        after.chain("errors", "filter hook forward priority filter", &[("x".into(), "why")]);
        assert_eq!(
            after.change(&before).unwrap(),
            "add chain inet podspan errors { type filter hook forward priority filter; policy accept; }\n\
             add set inet podspan more { type ipv6_addr; flags interval; }\n\
             add element inet podspan more { fd00::/48 }\nadd rule inet podspan errors x comment \"why\"\n"
        );
        assert_eq!(
            before.change(&after).unwrap(),
            "flush chain inet podspan errors\ndelete chain inet podspan errors\ndelete set inet podspan more\n"
        );
    }

    #[test]
    fn what_would_have_to_move_is_written_anew() {
        let before = table(&[], &["a"]);
        let mut elsewhere = Table::default();
        elsewhere.chain("transit", "filter hook forward priority raw", &[("a".into(), "why")]);
        assert_eq!(elsewhere.change(&before), None);
        let mut other_kind = Table::default();
        other_kind.set("remote4".into(), "ipv6_addr", vec![]);
        assert_eq!(other_kind.change(&before), None);
    }
}
