//! What is signed and sent stays as it is, byte for byte: another version of podspan must read it.
//!
//! A difference here is a change of the format. Only if that is meant, write the files anew with
//! `PODSPAN_BLESS=1 cargo test -p podspan-wire --test golden` and say so in the change's message.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use std::path::Path;

use common::*;
use podspan_wire::{Bundle, Envelope, SignedRecord};

/// Compares with a golden file and gives its text back.
fn golden(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("PODSPAN_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, file, "{name} is written in another way than before");
    file
}

fn line(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap() + "\n"
}

#[test]
fn a_grant() {
    let file = golden("grant.json", &line(&signed_grant()));
    let envelope: Envelope = serde_json::from_str(&file).unwrap();
    assert_eq!(*trust().verify_grant(&envelope, NOW).unwrap(), grant());
}

#[test]
fn records() {
    let all = [
        ("record-gateway.json", gateway()),
        ("record-behind-nat.json", dialler()),
        ("record-withdrawn.json", withdrawn()),
        ("record-with-extension.json", extended()),
    ];
    for (name, record) in all {
        let file = golden(name, &line(&sign(&record)));
        let signed: SignedRecord = serde_json::from_str(&file).unwrap();
        let verified = trust().verify(&signed, NOW).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(*verified.record(), record, "{name}");
        assert_eq!(**verified.grant(), grant(), "{name}");
        assert_eq!(*verified.signed(), signed, "{name}");
    }
}

#[test]
fn a_bundle() {
    let file = golden("bundle.json", &bundle().to_secret_text());
    let (read, granted) = Bundle::parse(&file).unwrap();
    assert_eq!(*granted, grant());
    assert_eq!(read.to_secret_text(), bundle().to_secret_text());
    assert_eq!(read.cluster_key.public(), cluster_key().public());
}
