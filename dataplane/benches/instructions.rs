//! Instructions per packet on the ways that packets take, counted by callgrind and compared with what is noted in
//! `instructions.txt`: `cargo bench -p podspan-dataplane --bench instructions`. A count that has grown by more than
//! [`TOLERANCE`] percent is an error. Whoever has made something better, or dearer for a reason, notes the new
//! counts with `cargo bench -p podspan-dataplane --bench instructions -- --update`.
//!
//! Counts depend on the code and not on what else the machine does. Nor do they on the processor, as long as it
//! is an x86-64 with AVX2: valgrind shows programs a processor of its own, which has AVX2 where the machine does and
//! never AVX-512. So the cipher is aws-lc's here. Another version of the compiler, which is not pinned, or of glibc inlines
//! and copies otherwise, and so does the same compiler when something near has changed (`coalescing` has moved by 6 % up
//! and down again without being touched): the tolerance leaves room for that. What is below it goes unseen, and adds up:
//! of `seal` and `open`, most of which is the cipher, that may be a checksum of the packet, which `segmentation` and
//! `coalescing` would show. So note the counts anew when they have moved for a reason.

// Helpers of tests are tests too, though clippy does not see it.
#![allow(clippy::unwrap_used)]

#[path = "work/mod.rs"]
mod work;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use work::{WORK, Work};

/// By how much a count may grow, percent.
const TOLERANCE: f64 = 10.0;
/// Rounds of each work.
const ROUNDS: usize = 20;
const NOTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const HEAD: &str = "# Instructions per packet (or lookup), by callgrind. Made by:
# cargo bench -p podspan-dataplane --bench instructions -- --update
";

/// What is counted: callgrind is told the name.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// Runs inside callgrind.
fn run(work: &Work) {
    let mut prepared = (work.prepare)();
    for _ in 0..ROUNDS {
        let mut round = prepared();
        measured(&mut *round);
    }
}

/// Has callgrind run this program for `work`: the instructions of a packet.
fn count(work: &Work) -> Result<f64, String> {
    let this = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*instructions*measured*",
        ])
        .arg(this)
        .args(["--count", work.name])
        .output()
        .map_err(|error| format!("cannot run valgrind (Debian: apt-get install valgrind): {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected =
        text.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse::<f64>().ok());
    match collected.filter(|&n| n > 0.0 && output.status.success()) {
        Some(n) => Ok(n / ROUNDS as f64 / work.packets as f64),
        None => Err(format!("{} counted nothing under callgrind; it said:\n{text}", work.name)),
    }
}

fn noted() -> Result<BTreeMap<String, f64>, String> {
    let text = std::fs::read_to_string(NOTED).map_err(|error| format!("cannot read {NOTED}: {error}"))?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let parse = |line: &str| -> Option<(String, f64)> {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    lines.map(|line| parse(line).ok_or_else(|| format!("{NOTED}: cannot read {line:?}"))).collect()
}

fn compare(update: bool) -> Result<(), String> {
    if !(cfg!(target_arch = "x86_64") && work::has_avx2()) {
        return Err(
            "the counts are those of an x86-64 processor with AVX2: they cannot be compared here".into()
        );
    }
    let before = if update { BTreeMap::new() } else { noted()? };
    let mut now = String::from(HEAD);
    let mut wrong = Vec::new();
    println!("{:<16} {:>10} {:>10} {:>8}", "", "noted", "now", "change");
    for work in WORK {
        let count = count(work)?;
        now.push_str(&format!("{} {count:.1}\n", work.name));
        let Some(&was) = before.get(work.name) else {
            println!("{:<16} {:>10} {count:>10.1}", work.name, "-");
            if !update {
                wrong.push(format!("{} is not noted", work.name));
            }
            continue;
        };
        let change = (count / was - 1.0) * 100.0;
        println!("{:<16} {was:>10.1} {count:>10.1} {change:>+7.1}%", work.name);
        if change > TOLERANCE {
            wrong.push(format!("{} takes {change:.1} % more instructions", work.name));
        } else if change < -TOLERANCE {
            println!("{:<16} takes less: note it with --update, so that it stays so", "");
        }
    }
    if update {
        return std::fs::write(NOTED, now).map_err(|error| format!("cannot write {NOTED}: {error}"));
    }
    match wrong.as_slice() {
        [] => Ok(()),
        wrong => Err(format!(
            "{}.\nIf that is the price of something worth it: cargo bench -p podspan-dataplane --bench instructions -- --update",
            wrong.join("; ")
        )),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = words.iter().position(|word| word == "--count") {
        let name = words.get(at + 1).map_or("", String::as_str);
        return match WORK.iter().find(|work| work.name == name) {
            Some(work) => {
                run(work);
                ExitCode::SUCCESS
            }
            None => ExitCode::FAILURE,
        };
    }
    match compare(words.iter().any(|word| word == "--update")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
