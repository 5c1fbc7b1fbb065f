//! Section 2, VERSION: probe plugin version support.

use serde_json::{Value, json};

use crate::bad_input::with_input;
use crate::plugin::VERSIONS;

#[test]
fn the_answer_repeats_the_version_and_lists_what_is_spoken() {
    for asked in VERSIONS.iter().chain(&["0.1.0", "0.2.0", "9.9.9"]) {
        let output = with_input("VERSION", format!(r#"{{"cniVersion":"{asked}"}}"#).as_bytes());
        let answer: Value = serde_json::from_str(&output.succeeded().stdout).unwrap();
        assert_eq!(answer, json!({"cniVersion": asked, "supportedVersions": VERSIONS}));
    }
}

#[test]
fn before_1_0_0_a_runtime_sends_nothing() {
    for input in ["", "\n", "{}"] {
        let output = with_input("VERSION", input.as_bytes());
        let answer: Value = serde_json::from_str(&output.succeeded().stdout).unwrap();
        assert_eq!(answer, json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
    }
}

#[test]
fn a_version_that_is_not_spoken_is_code_1_for_every_other_command() {
    let configs = [
        r#"{"cniVersion":"0.1.0","name":"n","type":"podspan"}"#,
        r#"{"cniVersion":"0.2.0","name":"n","type":"podspan"}"#,
        r#"{"cniVersion":"1.2.0","name":"n","type":"podspan"}"#,
        r#"{"cniVersion":"","name":"n","type":"podspan"}"#,
        // Section 1: no version is 0.1.0.
        r#"{"name":"n","type":"podspan"}"#,
    ];
    for config in configs {
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let output = with_input(command, config.as_bytes());
            assert_eq!(output.code(), 1, "{command} {config}");
            assert!(output.stdout.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{output:?}");
        }
    }
}
