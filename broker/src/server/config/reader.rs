//! Takes keys out of a TOML table and collects what is wrong with them.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Fault;

/// The line, counted from 1, on which the byte `offset` lies.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The document's table, as far as it can be read, and what cannot.
pub(super) fn parse(text: &str) -> (DeTable<'_>, Vec<Fault>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let faults = errors
        .iter()
        .map(|error| Fault {
            line: error.span().map(|span| line_of(text, span.start)),
            key: String::new(),
            what: error.message().to_owned(),
        })
        .collect();
    (table.into_inner(), faults)
}

/// One table: what was asked of it, what is left, what was wrong.
pub(super) struct Reader<'t> {
    text: &'t str,
    prefix: String,
    table: DeTable<'t>,
    known: Vec<&'static str>,
    faults: Vec<Fault>,
}

impl<'t> Reader<'t> {
    /// Reads `table` of the document `text`; `prefix` stands before its keys in errors.
    pub(super) fn new(text: &'t str, prefix: String, table: Option<DeTable<'t>>) -> Self {
        Self { text, prefix, table: table.unwrap_or_default(), known: Vec::new(), faults: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<(Range<usize>, DeValue<'t>)> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        Some((value.span(), value.into_inner()))
    }

    fn fault(&mut self, at: Option<&Range<usize>>, key: &str, what: impl Into<String>) {
        let line = at.map(|span| line_of(self.text, span.start));
        self.faults.push(Fault { line, key: format!("{}{key}", self.prefix), what: what.into() });
    }

    fn missing(&mut self, key: &str, what: &str) {
        self.fault(None, key, format!("is missing: set it to {what}"));
    }

    fn wrong(&mut self, at: &Range<usize>, key: &str, value: &DeValue<'_>, what: &str) {
        self.fault(Some(at), key, format!("is {}, expected {what}", article(value)));
    }

    /// A text that must be there and parse.
    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &'static str,
        what: &str,
    ) -> Option<T> {
        match self.take(key) {
            None => self.missing(key, what),
            Some((at, DeValue::String(value))) => match value.parse() {
                Ok(value) => return Some(value),
                Err(why) => self.fault(Some(&at), key, format!("{why}: expected {what}")),
            },
            Some((at, value)) => self.wrong(&at, key, &value, what),
        }
        None
    }

    /// A path that must be there; a relative one starts at `base`.
    pub(super) fn path(&mut self, key: &'static str, base: &Path) -> Option<PathBuf> {
        const WHAT: &str = "a path in quotes";
        match self.take(key) {
            None => self.missing(key, WHAT),
            Some((at, DeValue::String(value))) if value.is_empty() => {
                self.fault(Some(&at), key, "is empty");
            }
            Some((_, DeValue::String(value))) => return Some(base.join(&*value)),
            Some((at, value)) => self.wrong(&at, key, &value, WHAT),
        }
        None
    }

    /// A whole number within a range; `default` if it is not there.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<i64>, default: i64) -> i64 {
        let what = format!("a whole number from {} to {}", range.start(), range.end());
        match self.take(key) {
            None => {}
            Some((at, DeValue::Integer(value))) => {
                let digits = value.as_str().replace('_', "");
                match i64::from_str_radix(&digits, value.radix()) {
                    Ok(value) if range.contains(&value) => return value,
                    _ => self.fault(Some(&at), key, format!("is {}, expected {what}", value.as_str())),
                }
            }
            Some((at, value)) => self.wrong(&at, key, &value, &what),
        }
        default
    }

    /// An address to listen on, if the key is there.
    pub(super) fn address(&mut self, key: &'static str) -> Option<SocketAddr> {
        let (at, value) = self.take(key)?;
        self.socket_address(&at, key, &value)
    }

    /// The addresses to listen on; at least one, none twice.
    pub(super) fn addresses(&mut self, key: &'static str) -> Vec<SocketAddr> {
        const WHAT: &str = "a list such as [\"[::]:7443\"], every address of this host, IPv4 and IPv6";
        let mut addresses = Vec::new();
        match self.take(key) {
            None => self.missing(key, WHAT),
            Some((at, DeValue::Array(values))) => {
                if values.is_empty() {
                    self.fault(Some(&at), key, format!("is empty, expected {WHAT}"));
                }
                for value in values {
                    let at = value.span();
                    let Some(address) = self.socket_address(&at, key, value.get_ref()) else { continue };
                    if addresses.contains(&address) {
                        self.fault(Some(&at), key, format!("names {address} twice"));
                    }
                    addresses.push(address);
                }
            }
            Some((at, value)) => self.wrong(&at, key, &value, WHAT),
        }
        addresses
    }

    fn socket_address(&mut self, at: &Range<usize>, key: &str, value: &DeValue<'_>) -> Option<SocketAddr> {
        const WHAT: &str = "ADDRESS:PORT, such as \"0.0.0.0:7443\" or \"[::1]:7443\"";
        let DeValue::String(text) = value else {
            self.wrong(at, key, value, WHAT);
            return None;
        };
        match text.parse::<SocketAddr>() {
            Ok(address) => Some(address),
            Err(_) => {
                let text: String = text.chars().take(80).collect();
                self.fault(Some(at), key, format!("{text:?} is not {WHAT}"));
                None
            }
        }
    }

    /// A table that may be missing.
    pub(super) fn table(&mut self, key: &'static str) -> Self {
        let table = match self.take(key) {
            None => None,
            Some((_, DeValue::Table(table))) => Some(table),
            Some((at, value)) => {
                self.wrong(&at, key, &value, &format!("a table: [{key}]"));
                None
            }
        };
        Self::new(self.text, format!("{}{key}.", self.prefix), table)
    }

    /// What was wrong, with the keys that nobody asked for.
    pub(super) fn finish(mut self) -> Vec<Fault> {
        let unknown: Vec<Spanned<String>> =
            self.table.iter().map(|(key, _)| Spanned::new(key.span(), key.get_ref().to_string())).collect();
        for key in unknown {
            let name: String = key.get_ref().chars().take(80).collect();
            let what = match nearest(&name, &self.known) {
                Some(known) => format!("is not a key here: did you mean `{}{known}`?", self.prefix),
                None => format!("is not a key here: known are {}", self.known.join(", ")),
            };
            self.fault(Some(&key.span()), &name, what);
        }
        self.faults
    }
}

fn article(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    format!("{} {kind}", if kind.starts_with(['a', 'i']) { "an" } else { "a" })
}

/// The known key that a mistyped one was most likely meant to be.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', ' '], "-");
    known
        .iter()
        .map(|known| (distance(&plain(name), known), *known))
        .min()
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .map(|(_, known)| known)
}

/// The number of single-letter edits between two texts (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_keys_find_their_like() {
        let known = ["listen", "cluster-set", "lease-seconds"];
        assert_eq!(nearest("lisen", &known), Some("listen"));
        assert_eq!(nearest("Cluster_Set", &known), Some("cluster-set"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
