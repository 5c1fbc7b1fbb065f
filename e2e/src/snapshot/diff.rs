//! Comparing snapshots: what is new, gone or changed, one line for each.

use std::collections::{BTreeMap, BTreeSet};

type Sections = BTreeMap<String, BTreeMap<String, String>>;

pub(super) fn differences(before: &Sections, after: &Sections) -> Vec<String> {
    let mut lines = Vec::new();
    let empty = BTreeMap::new();
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for section in names {
        let (old, new) = (before.get(section).unwrap_or(&empty), after.get(section).unwrap_or(&empty));
        for (key, value) in new {
            match old.get(key) {
                None => lines.push(format!("{section}: new: {}", entry(key, value))),
                Some(was) if was != value => {
                    lines.push(format!("{section}: changed: {key}: {}", change(was, value)))
                }
                Some(_) => {}
            }
        }
        for (key, value) in old.iter().filter(|(key, _)| !new.contains_key(*key)) {
            lines.push(format!("{section}: gone: {}", entry(key, value)));
        }
    }
    lines
}

fn entry(key: &str, value: &str) -> String {
    if value.is_empty() { key.to_owned() } else { format!("{key} = {value}") }
}

/// Short values as they are, long ones by the lines that differ.
fn change(was: &str, is: &str) -> String {
    if !was.contains('\n') && !is.contains('\n') {
        return format!("was {was:?}, is {is:?}");
    }
    let (old, new): (Vec<_>, Vec<_>) = (was.lines().collect(), is.lines().collect());
    let minus = old.iter().filter(|line| !new.contains(line)).map(|line| format!("\n    - {line}"));
    let plus = new.iter().filter(|line| !old.contains(line)).map(|line| format!("\n    + {line}"));
    let text: String = minus.chain(plus).collect();
    if !text.is_empty() {
        return text;
    }
    let sorted = |mut lines: Vec<&str>| {
        lines.sort_unstable();
        lines.join("\n")
    };
    if sorted(old) == sorted(new) { ORDER.into() } else { "some lines are there more or less often".into() }
}

/// What is said of a text whose lines are only in another order.
pub(crate) const ORDER: &str = "the same lines in another order";

#[cfg(test)]
mod tests {
    use super::*;

    fn sections(entries: &[(&str, &str)]) -> Sections {
        let entries = entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        BTreeMap::from([("s".to_owned(), entries)])
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let before = sections(&[("same", "1"), ("gone", "2"), ("changed", "3"), ("text", "a\nb\n")]);
        let after = sections(&[("same", "1"), ("new", ""), ("changed", "4"), ("text", "a\nc\n")]);
        assert_eq!(
            differences(&before, &after),
            [
                "s: changed: changed: was \"3\", is \"4\"",
                "s: new: new",
                "s: changed: text: \n    - b\n    + c",
                "s: gone: gone = 2"
            ]
        );
        assert!(differences(&before, &before).is_empty());
        let swapped = sections(&[("same", "1"), ("gone", "2"), ("changed", "3"), ("text", "b\na\n")]);
        assert_eq!(differences(&before, &swapped), [format!("s: changed: text: {ORDER}")]);
        let twice = sections(&[("same", "1"), ("gone", "2"), ("changed", "3"), ("text", "a\nb\nb\n")]);
        assert!(differences(&before, &twice)[0].contains("more or less often"));
        assert_eq!(differences(&before, &Sections::new()).len(), 4);
    }
}
