//! Times and amounts as a person reads them, and text of others made safe for a terminal.

use std::time::Duration;

use podspan_wire::UnixTime;

/// The day of `time`, in UTC: `2026-11-23`.
pub(crate) fn date(time: UnixTime) -> String {
    let mut text = time.to_string();
    text.truncate(10);
    text
}

/// How far `end` lies ahead or behind: `in 364 days`, `4 hours ago`.
pub(crate) fn until(end: UnixTime, now: UnixTime) -> String {
    if end >= now { format!("in {}", long(end.since(now))) } else { format!("{} ago", long(now.since(end))) }
}

/// One unit, rounded down, in words: `364 days`.
fn long(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Two units, short: `12s`, `3m05s`, `2h07m`, `3d04h`.
pub(crate) fn age(seconds: f64) -> String {
    // Saturates; a negative or undefined age of a broken clock reads as 0.
    let s = seconds as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// Bytes in binary units, at most 4 digits: `0`, `999`, `1.5K`, `20M`, `3.1G`.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count, 1024.0, &["K", "M", "G", "T", "P", "E"])
}

/// A count in decimal units: `0`, `999`, `1.5k`, `20M`.
pub(crate) fn count(count: u64) -> String {
    scaled(count, 1000.0, &["k", "M", "G", "T", "P", "E"])
}

fn scaled(count: u64, base: f64, units: &[&str]) -> String {
    if count < 1000 {
        return count.to_string();
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in units {
        // 999.5 would be shown as 1000.
        if !unit.is_empty() && value < 999.5 {
            break;
        }
        value /= base;
        unit = next;
    }
    if value < 9.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
}

/// Microseconds: `85us`, `1.4ms`, `23ms`, `1.2s`.
pub(crate) fn micros(micros: u64) -> String {
    let ms = micros as f64 / 1000.0;
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..9_950 => format!("{ms:.1}ms"),
        9_950..999_500 => format!("{ms:.0}ms"),
        _ => format!("{:.1}s", ms / 1000.0),
    }
}

/// `1 cluster`, `2 clusters`.
pub(crate) fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Text of somebody else's making on one line and without control characters: a broker's error must not
/// write to the terminal what it likes.
pub(crate) fn safe(text: &str) -> String {
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| {
            if c == '\n' || c == '\t' {
                ' '
            } else if hostile(c) {
                '?'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (1536, "1.5K"),
            (10_239, "10K"),
            (1_023_487, "999K"),
            (1_023_488, "1.0M"),
            (20 << 20, "20M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
        for (n, text) in [(7, "7"), (1_500, "1.5k"), (12_345, "12k"), (2_000_000, "2.0M")] {
            assert_eq!(count(n), text, "{n}");
        }
        for (n, text) in [
            (0, "0us"),
            (850, "850us"),
            (1_449, "1.4ms"),
            (23_000, "23ms"),
            (999_499, "999ms"),
            (1_200_000, "1.2s"),
        ] {
            assert_eq!(micros(n), text, "{n}");
        }
    }

    #[test]
    fn times() {
        for (s, text) in [
            (0.0, "0s"),
            (59.9, "59s"),
            (185.0, "3m05s"),
            (7_620.0, "2h07m"),
            (273_600.0, "3d04h"),
            (-5.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(age(s), text, "{s}");
        }
        let now = UnixTime(1_795_305_600);
        assert_eq!(date(now), "2026-11-22");
        assert_eq!(until(now.after(Duration::from_secs(365 * 86_400)), now), "in 365 days");
        assert_eq!(until(UnixTime(now.0 - 3_600), now), "1 hour ago");
    }

    #[test]
    fn hostile_text_is_tamed() {
        assert_eq!(safe("a\x1b[2Jb\nc\u{202e}d\u{9b}e"), "a?[2Jb c?d?e");
    }
}
