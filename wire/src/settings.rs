//! Reading a TOML settings file whole: every error at once, each with its line and key.
//!
//! A program takes its keys one by one out of a [`Section`]; whatever is missing, wrong or left over
//! becomes an entry of one [`SettingsError`]. Values are read by the `FromStr` of their type, so that the
//! error a person sees is the type's own.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Everything that is wrong with a settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// The file's name, for a person.
    pub file: String,
    /// The faults in the order of their lines; never empty.
    pub faults: Vec<Fault>,
}

/// One fault of a settings file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The line, from 1; 0 where something is missing from the whole file.
    pub line: usize,
    /// The key, with the sections that lead to it; empty for faults of syntax.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        write!(f, "{}: {count} error{}", self.file, if count == 1 { "" } else { "s" })?;
        for fault in &self.faults {
            write!(f, "\n  ")?;
            if fault.line > 0 {
                write!(f, "line {}: ", fault.line)?;
            }
            if !fault.key.is_empty() {
                write!(f, "{}: ", fault.key)?;
            }
            write!(f, "{}", fault.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

/// A path of a settings file; relative ones are relative to the file's own directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(PathBuf);

impl FilePath {
    /// The path, with `base` before it if it is relative.
    #[must_use]
    pub fn within(self, base: &Path) -> PathBuf {
        base.join(self.0)
    }
}

impl FromStr for FilePath {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() { Err("a path is needed here") } else { Ok(Self(PathBuf::from(text))) }
    }
}

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(80).collect();
        let error = |_| format!("{shown:?} is not ADDRESS:PORT, such as \"0.0.0.0:7443\" or \"[::1]:7443\"");
        text.parse().map(Self).map_err(error)
    }
}

/// A settings file that is being read.
pub struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
}

/// One table of the file. Keys that nobody took when the section is finished are faults.
pub struct Section<'t> {
    path: String,
    line: usize,
    entries: Vec<Item<'t>>,
    known: Vec<&'static str>,
    /// Where the keys stood that were taken.
    spans: Vec<(&'static str, Range<usize>)>,
}

struct Item<'t> {
    key: String,
    span: Range<usize>,
    value: Spanned<DeValue<'t>>,
}

impl<'t> Reader<'t> {
    /// Parses the syntax; faults of it are kept for [`Self::finish`].
    #[must_use]
    pub fn new(text: &'t str) -> (Self, Section<'t>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Self { text, faults: Vec::new() };
        for error in errors {
            let line = error.span().map_or(0, |span| reader.line(&span));
            reader.faults.push(Fault { line, key: String::new(), message: error.message().to_owned() });
        }
        let section = Section::new(String::new(), 0, table.into_inner());
        (reader, section)
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let end = span.start.min(self.text.len());
        self.text.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count() + 1
    }

    /// Notes a fault of a key that was read well but cannot be used, or that is missing. Nothing is added to
    /// a key that could not be read: it would only be a consequence.
    pub fn fault(&mut self, section: &Section<'_>, key: &str, message: impl Into<String>) {
        let span = section.spans.iter().find(|(taken, _)| *taken == key).map(|(_, span)| span);
        let line = span.map_or(section.line, |span| self.line(span));
        let key = section.full(key);
        if !self.faults.iter().any(|fault| fault.key == key && fault.line >= line && line > 0) {
            self.faults.push(Fault { line, key, message: message.into() });
        }
    }

    /// Ends the reading: all faults, or none.
    ///
    /// # Errors
    /// Every fault noted so far, in the order of the lines; what is missing from the whole file comes last.
    pub fn finish(mut self, file: &str) -> Result<(), SettingsError> {
        if self.faults.is_empty() {
            return Ok(());
        }
        // Beside an error of syntax a key may be missing only because it could not be read.
        if self.faults.iter().any(|fault| fault.key.is_empty()) {
            self.faults.retain(|fault| fault.line > 0);
        }
        self.faults.sort_by_key(|fault| (fault.line == 0, fault.clone()));
        self.faults.dedup();
        Err(SettingsError { file: file.to_owned(), faults: self.faults })
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

impl<'t> Section<'t> {
    fn new(path: String, line: usize, table: DeTable<'t>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| Item { span: key.span(), key: key.into_inner().into_owned(), value })
            .collect();
        Self { path, line, entries, known: Vec::new(), spans: Vec::new() }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The line on which the section starts; 0 for the file itself.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    fn take(&mut self, key: &'static str) -> Option<Item<'t>> {
        self.known.push(key);
        let index = self.entries.iter().position(|item| item.key == key)?;
        let item = self.entries.swap_remove(index);
        self.spans.push((key, item.span.clone()));
        Some(item)
    }

    fn fault(&self, reader: &mut Reader<'t>, item: &Item<'t>, message: String) {
        let line = reader.line(&item.span);
        reader.faults.push(Fault { line, key: self.full(&item.key), message });
    }

    fn text_of(value: &DeValue<'_>) -> Option<String> {
        match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Boolean(value) => Some(value.to_string()),
            _ => None,
        }
    }

    /// The value of `key`, if it is there and good.
    pub fn optional<T>(&mut self, reader: &mut Reader<'t>, key: &'static str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let item = self.take(key)?;
        let Some(text) = Self::text_of(item.value.get_ref()) else {
            let message = format!("expected a value in quotes, found {}", kind(item.value.get_ref()));
            self.fault(reader, &item, message);
            return None;
        };
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let shown: String = text.chars().take(80).collect();
                let error = error.to_string();
                // Not every type's error says what it was about.
                let message =
                    if error.contains(&shown) { error } else { format!("{shown:?} cannot be used: {error}") };
                self.fault(reader, &item, message);
                None
            }
        }
    }

    /// The value of `key`; a fault if it is not there, with `hint` saying what belongs there.
    pub fn required<T>(&mut self, reader: &mut Reader<'t>, key: &'static str, hint: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        if self.entries.iter().any(|item| item.key == key) {
            return self.optional(reader, key);
        }
        self.known.push(key);
        let message = format!("is missing: {hint}");
        reader.faults.push(Fault { line: self.line, key: self.full(key), message });
        None
    }

    /// As [`Self::list`], but a fault if it is not there or empty.
    pub fn required_list<T>(&mut self, reader: &mut Reader<'t>, key: &'static str, hint: &str) -> Vec<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let at = self.entries.iter().find(|item| item.key == key).map(|item| reader.line(&item.span));
        let faults = reader.faults.len();
        let values = self.list(reader, key).unwrap_or_default();
        if values.is_empty() && reader.faults.len() == faults {
            let (line, what) = at.map_or((self.line, "is missing"), |line| (line, "is empty"));
            reader.faults.push(Fault { line, key: self.full(key), message: format!("{what}: {hint}") });
        }
        values
    }

    /// The value of `key`, within bounds (both included), or `default`.
    pub fn number(
        &mut self,
        reader: &mut Reader<'t>,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let Some(item) = self.take(key) else { return default };
        let (least, most) = (bounds.start(), bounds.end());
        let message = match item.value.get_ref() {
            // Decimal, hexadecimal, octal or binary, as TOML has them; a sign is out of bounds in any case.
            DeValue::Integer(number) => match u64::from_str_radix(number.as_str(), number.radix()) {
                Ok(value) if bounds.contains(&value) => return value,
                _ => format!("{number} is out of bounds: use {least} to {most}"),
            },
            other => format!("expected a whole number from {least} to {most}, found {}", kind(other)),
        };
        self.fault(reader, &item, message);
        default
    }

    /// The values of the list `key`; every bad element is a fault of its own. `None` if it is not there.
    pub fn list<T>(&mut self, reader: &mut Reader<'t>, key: &'static str) -> Option<Vec<T>>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let item = self.take(key)?;
        let DeValue::Array(elements) = item.value.get_ref() else {
            let message = format!("expected a list such as [\"...\"], found {}", kind(item.value.get_ref()));
            self.fault(reader, &item, message);
            return None;
        };
        let mut values = Vec::new();
        for element in elements.iter() {
            let line = reader.line(&element.span());
            let message = match Self::text_of(element.get_ref()) {
                None => format!("expected a value in quotes, found {}", kind(element.get_ref())),
                Some(text) => match text.parse() {
                    Ok(value) => {
                        values.push(value);
                        continue;
                    }
                    Err(error) => format!("{error}"),
                },
            };
            reader.faults.push(Fault { line, key: self.full(key), message });
        }
        Some(values)
    }

    /// The section `key`, if it is there.
    pub fn section(&mut self, reader: &mut Reader<'t>, key: &'static str) -> Option<Section<'t>> {
        let item = self.take(key)?;
        if !matches!(item.value.get_ref(), DeValue::Table(_)) {
            let message =
                format!("expected a section [{}], found {}", self.full(key), kind(item.value.get_ref()));
            self.fault(reader, &item, message);
            return None;
        }
        let line = reader.line(&item.span);
        match item.value.into_inner() {
            DeValue::Table(table) => Some(Section::new(self.full(key), line, table)),
            _ => None,
        }
    }

    /// Ends the section: what nobody took is a fault, with the nearest known key as a hint.
    pub fn finish(self, reader: &mut Reader<'t>) {
        for item in &self.entries {
            let near = self
                .known
                .iter()
                .map(|known| (distance(known, &item.key), *known))
                .min()
                .filter(|(distance, known)| *distance <= 2.max(known.len() / 3));
            let message = match near {
                Some((_, known)) => format!("is not a setting: did you mean {known:?}?"),
                None => {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    format!("is not a setting; there are {}", known.join(", "))
                }
            };
            let line = reader.line(&item.span);
            let key = self.full(&item.key.chars().take(80).collect::<String>());
            reader.faults.push(Fault { line, key, message });
        }
    }
}

/// Levenshtein's distance; keys are short, hostile ones are cut.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(80).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cidr;

    #[test]
    fn every_fault_at_once_with_line_and_key() {
        let text =
            "port = 70000\nlanse = 2\ncidrs = [\"10.0.0.1/8\", \"x\"]\n[health]\nlisten = \"nowhere\"\n";
        let (mut reader, mut top) = Reader::new(text);
        top.number(&mut reader, "port", 1..=65535, 1);
        top.number(&mut reader, "lanes", 1..=64, 1);
        let _: Option<Vec<Cidr>> = top.list(&mut reader, "cidrs");
        let _: Option<String> = top.required(&mut reader, "bundle", "the path of the bundle file");
        let mut health = top.section(&mut reader, "health").unwrap();
        let _: Option<ListenAddress> = health.optional(&mut reader, "listen");
        health.finish(&mut reader);
        top.finish(&mut reader);
        let error = reader.finish("agent.toml").unwrap_err().to_string();
        assert_eq!(
            error,
            "agent.toml: 6 errors\n  \
             line 1: port: 70000 is out of bounds: use 1 to 65535\n  \
             line 2: lanse: is not a setting: did you mean \"lanes\"?\n  \
             line 3: cidrs: \"x\" is not a CIDR: write ADDRESS/LENGTH, such as 10.1.0.0/16 or fd00:1::/48\n  \
             line 3: cidrs: 10.0.0.1/8 has host bits set: did you mean 10.0.0.0/8?\n  \
             line 5: health.listen: \"nowhere\" is not ADDRESS:PORT, such as \"0.0.0.0:7443\" or \"[::1]:7443\"\n  \
             bundle: is missing: the path of the bundle file"
        );
    }

    #[test]
    fn a_fault_found_later_has_the_line_of_its_key_and_is_no_consequence_of_another() {
        let text = "a = [\"1\"]\nb = [\n\"x\"]\n[s]\nd = 7\n";
        let (mut reader, mut top) = Reader::new(text);
        let _: Option<Vec<u8>> = top.list(&mut reader, "a");
        let _: Option<Vec<u8>> = top.list(&mut reader, "b");
        let mut section = top.section(&mut reader, "s").unwrap();
        section.number(&mut reader, "d", 1..=9, 1);
        reader.fault(&top, "a", "one is too few");
        reader.fault(&top, "b", "is needed");
        reader.fault(&top, "c", "is missing");
        reader.fault(&section, "d", "seven is taken");
        reader.fault(&section, "e", "is missing");
        let error = reader.finish("x").unwrap_err().to_string();
        assert_eq!(
            error,
            "x: 5 errors\n  line 1: a: one is too few\n  line 3: b: invalid digit found in string\n  \
             line 4: s.e: is missing\n  line 5: s.d: seven is taken\n  c: is missing"
        );
    }

    #[test]
    fn faults_of_syntax_and_of_keys_come_together() {
        let (mut reader, top) = Reader::new("a = = 1\nb = 2\n");
        top.finish(&mut reader);
        let faults = reader.finish("x").unwrap_err().faults;
        assert!(faults.iter().any(|f| f.line == 1 && f.key.is_empty()), "{faults:?}");
        assert!(faults.iter().any(|f| f.line == 2 && f.key == "b"), "{faults:?}");
    }
}
