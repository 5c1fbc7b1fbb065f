//! `podspan version`, `completions`, `agent` and the help.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::Bench;

#[test]
fn version() {
    let bench = Bench::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(bench.ok("version"), format!("podspan {version}\n"));
    assert_eq!(bench.ok("--version"), format!("podspan {version}\n"));
    let document: serde_json::Value = serde_json::from_str(&bench.ok("version --output json")).unwrap();
    assert_eq!(document["version"], version);
}

#[test]
fn completions_know_the_commands() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = bench.ok(&format!("completions {shell}"));
        for word in ["clusterset", "broker-cert", "pod-cidr", "status"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(bench.run("completions tcsh").code, 2);
}

#[test]
fn the_bash_completion_is_valid_bash() {
    let bench = Bench::new();
    fs::write(bench.path("c.bash"), bench.ok("completions bash")).unwrap();
    let status = Command::new("bash").arg("-n").arg(bench.path("c.bash")).status().unwrap();
    assert!(status.success());
}

#[test]
fn help_has_examples_everywhere_it_matters() {
    let bench = Bench::new();
    for words in [
        "--help",
        "clusterset create --help",
        "clusterset broker-cert --help",
        "cluster grant --help",
        "status --help",
    ] {
        let help = bench.ok(words);
        assert!(help.contains("Example"), "{words}");
        assert!(help.contains("podspan "), "{words}");
        // What follows the options is wrapped by hand, for a terminal of 80 columns.
        let examples = &help[help.find("Example").unwrap()..];
        assert!(examples.lines().all(|line| line.len() <= 80), "{examples}");
    }
    assert_eq!(bench.run("").code, 2);
    assert_eq!(bench.run("frobnicate").code, 2);
}

/// A `podspan-agent` that tells how it was called.
fn stub(bench: &Bench, dir: &str) {
    fs::create_dir(bench.path(dir)).unwrap();
    let script = bench.path(&format!("{dir}/script"));
    fs::write(&script, format!("#!/bin/sh\necho {dir} \"$@\"\nexit 7\n")).unwrap();
    install(&script, &bench.path(&format!("{dir}/podspan-agent")));
}

/// Copies a program. Not in this process: children that other tests start meanwhile would hold the file open for
/// writing for a moment, and such a file cannot be run (`ETXTBSY`).
fn install(from: &Path, to: &Path) {
    assert!(Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap().success());
}

#[test]
fn agent_hands_over_to_the_program_beside_it_then_to_that_in_the_path() {
    let bench = Bench::new();
    stub(&bench, "beside");
    stub(&bench, "path");
    fs::create_dir(bench.path("alone")).unwrap();
    for dir in ["beside", "alone"] {
        install(Path::new(env!("CARGO_BIN_EXE_podspan")), &bench.path(&format!("{dir}/podspan")));
    }
    let run = |dir: &str, path: &str, words: &[&str]| {
        let output = Command::new(bench.path(&format!("{dir}/podspan")))
            .args(words)
            .env("PATH", format!("{}:/usr/bin:/bin", bench.path(path).display()))
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let words = ["agent", "clean", "--config", "a b.toml", "--help"];
    assert_eq!(
        run("beside", "path", &words),
        (7, "beside clean --config a b.toml --help\n".into(), String::new())
    );
    assert_eq!(run("alone", "path", &words).1, "path clean --config a b.toml --help\n");
    let (code, _, error) = run("alone", "nowhere", &words);
    assert_eq!(code, 1);
    assert!(error.contains("there is no podspan-agent") && error.contains("alone/podspan-agent"), "{error}");
}
