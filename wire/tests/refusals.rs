//! What is refused: every kind of refusal, statements in another than the canonical form, any change to a
//! signed statement.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::*;
use ed25519_dalek::{Signer as _, SigningKey};
use podspan_wire::{
    Bundle, BundleError, ClusterKey, ClusterSetId, Envelope, HighWater, LaneKey, MAX_CIDRS, MAX_ENDPOINTS,
    MAX_LANES, Record, RefusalKind, RootKey, SignedRecord, UnixTime, Version,
};

/// Signs any text as if it were a statement: what a cluster with a broken or malicious signer can do.
fn sign_text(context: &str, payload: &str, seed: u8) -> Envelope {
    let message = [context.as_bytes(), &[0], payload.as_bytes()].concat();
    let signature = SigningKey::from_bytes(&[seed; 32]).sign(&message).to_bytes();
    let signature = serde_json::to_value(Base64(&signature)).unwrap();
    serde_json::from_value(serde_json::json!({"payload": payload, "signature": signature})).unwrap()
}

struct Base64<'a>(&'a [u8]);

impl serde::Serialize for Base64<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(self.0))
    }
}

fn sign_record_text(payload: &str) -> SignedRecord {
    SignedRecord { grant: signed_grant(), record: sign_text("podspan record v1", payload, 2) }
}

fn sign_grant_text(payload: &str) -> Envelope {
    sign_text("podspan grant v1", payload, 1)
}

#[track_caller]
fn refused(signed: &SignedRecord, kind: RefusalKind) -> String {
    let refusal = trust().verify(signed, NOW).unwrap_err();
    assert_eq!(refusal.kind, kind, "{refusal}");
    assert!(!refusal.detail.is_empty());
    refusal.to_string()
}

#[test]
fn the_helpers_sign_as_the_crate_does() {
    let signed = sign(&gateway());
    assert_eq!(sign_record_text(&signed.record.payload), signed);
    assert_eq!(sign_grant_text(&signed.grant.payload), signed.grant);
}

#[test]
fn every_kind_of_refusal_but_those_of_the_agent() {
    let other_root = RootKey::from_seed(&[9; 32]);
    let other_set = ClusterSetId::new(other_root.public());
    let other_key = ClusterKey::from_seed(&[8; 32]);
    let record = gateway();
    let with = |change: fn(&mut Record)| {
        let mut record = gateway();
        change(&mut record);
        sign(&record)
    };

    let mut foreign = grant();
    foreign.cluster_set = other_set;
    refused(&record.sign(&cluster_key(), foreign.sign(&other_root)), RefusalKind::OtherClusterSet);
    // Our root signed a grant that names another set; our cluster a record that does.
    refused(&record.sign(&cluster_key(), foreign.sign(&root())), RefusalKind::OtherClusterSet);
    let mut elsewhere = gateway();
    elsewhere.cluster_set = other_set;
    refused(&sign(&elsewhere), RefusalKind::OtherClusterSet);

    refused(&record.sign(&cluster_key(), grant().sign(&other_root)), RefusalKind::GrantSignature);
    refused(&record.sign(&other_key, signed_grant()), RefusalKind::RecordSignature);
    // A signature over a statement of one kind is none over another's.
    let as_record = sign_text("podspan grant v1", &sign(&record).record.payload, 2);
    refused(&SignedRecord { grant: signed_grant(), record: as_record }, RefusalKind::RecordSignature);

    let mut over = grant();
    over.not_after = UnixTime(NOW.0 - 1);
    let text = refused(&record.sign(&cluster_key(), over.sign(&root())), RefusalKind::GrantExpired);
    assert!(text.contains("podspan cluster grant alpha --renew"), "{text}");
    refused(&with(|record| record.not_after = UnixTime(NOW.0 - 1)), RefusalKind::RecordExpired);

    for outside in [
        with(|record| record.pod_cidrs = cidrs(&["10.2.0.0/24"])),
        with(|record| record.pod_cidrs = cidrs(&["10.0.0.0/8"])),
        with(|record| record.pod_cidrs = cidrs(&["10.101.0.0/24"])),
        with(|record| record.service_cidrs = cidrs(&["10.1.0.0/24"])),
        with(|record| record.pod_cidrs = cidrs(&["10.1.0.0/24", "fd00:10:2::/64"])),
        with(|record| record.cluster = "beta".parse().unwrap()),
    ] {
        refused(&outside, RefusalKind::OutsideGrant);
    }
}

#[test]
fn times_hold_to_their_last_second() {
    let signed = sign(&gateway());
    let last = gateway().not_after;
    assert!(trust().verify(&signed, last).is_ok());
    assert_eq!(trust().verify(&signed, UnixTime(last.0 + 1)).unwrap_err().kind, RefusalKind::RecordExpired);
    // What was taken in once stays good while nobody can be heard; nothing else is forgiven.
    assert!(trust().verify_kept(&signed).is_ok());
    let forged = gateway().sign(&ClusterKey::from_seed(&[8; 32]), signed_grant());
    assert_eq!(trust().verify_kept(&forged).unwrap_err().kind, RefusalKind::RecordSignature);
    assert!(trust().verify_grant(&signed_grant(), LATER).is_ok());
    assert!(trust().verify_grant(&signed_grant(), UnixTime(LATER.0 + 1)).is_err());
}

#[test]
fn records_that_contradict_themselves_are_malformed() {
    type Change = fn(&mut Record);
    let cases: [(&str, Change); 12] = [
        ("0 lanes", |r| r.lanes.clear()),
        ("lanes", |r| {
            let lane = r.lanes[0];
            r.lanes = (0..=MAX_LANES)
                .map(|i| podspan_wire::Lane {
                    key: LaneKey::from_bytes([u8::try_from(i).unwrap(); 32]),
                    ..lane
                })
                .collect();
        }),
        ("port 0", |r| r.lanes[0].port = 0),
        ("one key", |r| r.lanes[1].key = r.lanes[0].key),
        ("endpoints", |r| {
            r.endpoints = (0..=MAX_ENDPOINTS).map(|i| format!("192.0.2.{i}").parse().unwrap()).collect();
        }),
        ("127.0.0.1", |r| r.endpoints = vec!["127.0.0.1".parse().unwrap()]),
        ("fe80::1", |r| r.endpoints = vec!["fe80::1".parse().unwrap()]),
        ("::ffff:192.0.2.1", |r| r.endpoints = vec!["::ffff:192.0.2.1".parse().unwrap()]),
        ("0.0.0.0", |r| r.endpoints = vec!["0.0.0.0".parse().unwrap()]),
        ("239.1.1.1", |r| r.endpoints = vec!["239.1.1.1".parse().unwrap()]),
        ("gateway without an endpoint", |r| r.endpoints.clear()),
        ("\"!critical\"", |r| {
            r.extensions.insert("!critical".into(), serde_json::Value::Null);
        }),
    ];
    for (word, change) in cases {
        let mut record = gateway();
        change(&mut record);
        let text = refused(&sign(&record), RefusalKind::Malformed);
        assert!(text.contains(word), "{word}: {text}");
    }
    let mut many = gateway();
    many.pod_cidrs = (0..=MAX_CIDRS).map(|i| format!("10.1.{i}.0/24").parse().unwrap()).collect();
    refused(&sign(&many), RefusalKind::Malformed);
}

#[test]
fn grants_that_contradict_themselves_are_malformed() {
    let refused = |change: fn(&mut podspan_wire::Grant)| {
        let mut grant = grant();
        change(&mut grant);
        let refusal = trust().verify_grant(&grant.sign(&root()), NOW).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Malformed, "{refusal}");
    };
    refused(|g| g.pod_cidrs = cidrs(&[]));
    refused(|g| g.pod_cidrs = cidrs(&["0.0.0.0/0"]));
    refused(|g| g.pod_cidrs = cidrs(&["127.0.0.0/8"]));
    refused(|g| g.service_cidrs = cidrs(&["fe80::/64"]));
    refused(|g| g.service_cidrs = cidrs(&["10.1.7.0/24"]));
    refused(|g| g.pod_cidrs = (0..=MAX_CIDRS).map(|i| format!("10.{i}.0.0/16").parse().unwrap()).collect());
    refused(|g| {
        g.extensions.insert("!new".into(), serde_json::Value::Null);
    });
}

#[test]
fn only_the_canonical_form_is_taken_however_well_it_is_signed() {
    let good = sign(&extended()).record.payload;
    assert!(trust().verify(&sign_record_text(&good), NOW).is_ok());
    let changes: [(&str, &str, &str); 15] = [
        ("a space", "\"gateway\":true", "\"gateway\": true"),
        ("an unknown field", "\"gateway\":true", "\"gateway\":true,\"new\":1"),
        ("a duplicate key", "\"gateway\":true", "\"gateway\":true,\"gateway\":true"),
        (
            "reordered keys",
            "\"gateway\":true,\"version\":{\"epoch\":1798000000,\"sequence\":7}",
            "\"version\":{\"epoch\":1798000000,\"sequence\":7},\"gateway\":true",
        ),
        (
            "reordered inner keys",
            "\"epoch\":1798000000,\"sequence\":7",
            "\"sequence\":7,\"epoch\":1798000000",
        ),
        (
            "unsorted CIDRs",
            "[\"10.1.1.0/24\",\"fd00:10:1:1::/64\"]",
            "[\"fd00:10:1:1::/64\",\"10.1.1.0/24\"]",
        ),
        ("a CIDR twice", "[\"10.1.1.0/24\",", "[\"10.1.1.0/24\",\"10.1.1.0/24\","),
        ("an address in capitals", "\"2001:db8::1\"", "\"2001:DB8::1\""),
        ("an address written out", "\"2001:db8::1\"", "\"2001:db8:0::1\""),
        ("an escape", "\"alpha\"", "\"\\u0061lpha\""),
        ("an exponent", "\"sequence\":7", "\"sequence\":7e0"),
        (
            "an empty extension map",
            "\"extensions\":{\"zone\":{\"name\":\"eu-1a\",\"weights\":[1,2,3]}}",
            "\"extensions\":{}",
        ),
        ("a duplicate inside an extension", "{\"name\":\"eu-1a\",", "{\"name\":\"x\",\"name\":\"eu-1a\","),
        (
            "reordered keys of an extension",
            "{\"name\":\"eu-1a\",\"weights\":[1,2,3]}",
            "{\"weights\":[1,2,3],\"name\":\"eu-1a\"}",
        ),
        ("another number inside an extension", "[1,2,3]", "[1,2,3e0]"),
    ];
    for (what, from, to) in changes {
        let changed = good.replacen(from, to, 1);
        assert_ne!(changed, good, "{what}: the test changes nothing");
        refused(&sign_record_text(&changed), RefusalKind::Malformed);
    }
    for text in
        ["", " ", "{}", "null", "[]", &format!("{good} "), &format!("\n{good}"), &good[..good.len() - 1]]
    {
        refused(&sign_record_text(text), RefusalKind::Malformed);
    }
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(32 * 1024));
    refused(&sign_record_text(&large), RefusalKind::Malformed);

    let good = signed_grant().payload;
    for (from, to) in [
        ("\"serial\":1", "\"serial\": 1"),
        ("\"serial\":1", "\"serial\":1,\"serial\":1"),
        ("\"serial\":1", "\"serial\":1,\"x\":1"),
    ] {
        let changed = good.replacen(from, to, 1);
        assert_ne!(changed, good);
        let refusal = trust().verify_grant(&sign_grant_text(&changed), NOW).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Malformed, "{refusal}");
    }
}

#[test]
fn a_refusal_does_not_quote_a_whole_hostile_payload() {
    for payload in
        [format!("\"{}\"", "é\\n".repeat(8000)), format!("{{\"clusterSet\":\"{}\"}}", "x".repeat(30_000))]
    {
        let text = refused(&sign_record_text(&payload), RefusalKind::Malformed);
        assert!(text.len() < 700, "{} bytes", text.len());
        assert!(text.contains(" at line 1 column "), "{text}");
    }
}

#[test]
fn what_is_canonical_does_not_depend_on_how_the_json_library_was_built() {
    // With its feature `raw_value` serde_json reads this key as something else than a key. Features are
    // shared by all crates of a program, and agent and broker must judge alike.
    let good = sign(&extended()).record.payload;
    let odd = good.replacen(
        "{\"name\":\"eu-1a\",\"weights\":[1,2,3]}",
        "{\"$serde_json::private::RawValue\":\"1\"}",
        1,
    );
    assert_ne!(odd, good);
    refused(&sign_record_text(&odd), RefusalKind::Malformed);
}

#[test]
fn envelopes_and_signed_records_take_no_unknown_fields() {
    let mut value = serde_json::to_value(sign(&gateway())).unwrap();
    value["new"] = 1.into();
    assert!(serde_json::from_value::<SignedRecord>(value.clone()).is_err());
    value.as_object_mut().unwrap().remove("new");
    value["record"]["new"] = 1.into();
    assert!(serde_json::from_value::<SignedRecord>(value).is_err());
}

#[test]
fn any_changed_byte_of_a_payload_or_signature_is_refused() {
    let good = sign(&gateway());
    assert!(trust().verify(&good, NOW).is_ok());
    for part in 0..2 {
        let envelope = if part == 0 { &good.grant } else { &good.record };
        let signature: String = envelope.signature.to_string();
        for i in 0..envelope.payload.len() {
            for bit in [0x01, 0x02, 0x20] {
                let mut payload = envelope.payload.clone().into_bytes();
                payload[i] ^= bit;
                let Ok(payload) = String::from_utf8(payload) else { continue };
                let mut changed = good.clone();
                let part = if part == 0 { &mut changed.grant } else { &mut changed.record };
                part.payload = payload;
                assert!(trust().verify(&changed, NOW).is_err(), "byte {i} of the payload");
            }
        }
        for i in 0..signature.len() {
            let mut text = signature.clone().into_bytes();
            text[i] = if text[i] == b'A' { b'B' } else { b'A' };
            // Most are signatures of other bytes; the padding must not be touched at all.
            let Ok(other) = String::from_utf8(text).unwrap().parse() else { continue };
            let mut changed = good.clone();
            let part = if part == 0 { &mut changed.grant } else { &mut changed.record };
            part.signature = other;
            assert!(trust().verify(&changed, NOW).is_err(), "character {i} of the signature");
        }
    }
}

#[test]
fn high_water_refuses_what_was_replaced() {
    let mut water = HighWater::default();
    let verified = |record: &Record, serial: u64| {
        let mut grant = grant();
        grant.serial = serial;
        trust().verify(&record.sign(&cluster_key(), grant.sign(&root())), NOW).unwrap()
    };
    let at = |epoch: u64, sequence: u64| Record { version: Version { epoch, sequence }, ..gateway() };
    let id = gateway().id();

    assert_eq!(water.of(&id), None);
    water.admit(&verified(&at(5, 7), 3)).unwrap();
    // Again, as after every reconnect.
    water.admit(&verified(&at(5, 7), 3)).unwrap();
    for (epoch, sequence) in [(5, 6), (4, 99), (0, 0)] {
        let before = water.clone();
        let refusal = water.admit(&verified(&at(epoch, sequence), 3)).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Replayed, "{refusal}");
        assert_eq!(water, before, "a refusal changes nothing");
    }
    let before = water.clone();
    let refusal = water.admit(&verified(&at(9, 9), 2)).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::GrantSuperseded, "{refusal}");
    assert_eq!(water, before);
    // A replayed record does not raise the grant's mark either.
    water.admit(&verified(&at(1, 1), 8)).unwrap_err();
    assert_eq!(water, before);

    water.admit(&verified(&at(6, 1), 4)).unwrap();
    assert_eq!(water.of(&id), Some(Version { epoch: 6, sequence: 1 }));
    // Nodes do not disturb each other; grants are per cluster.
    let other = Record { version: Version { epoch: 1, sequence: 1 }, ..dialler() };
    water.admit(&verified(&other, 4)).unwrap();
    assert_eq!(water.admit(&verified(&other, 3)).unwrap_err().kind, RefusalKind::GrantSuperseded);
    assert!(HighWater::is_withdrawal(&withdrawn()) && !HighWater::is_withdrawal(&gateway()));

    let kept = serde_json::to_string(&water).unwrap();
    assert_eq!(serde_json::from_str::<HighWater>(&kept).unwrap(), water, "it survives a restart");
}

#[test]
fn bundles_are_refused_without_a_word_of_their_secret() {
    let good = bundle().to_secret_text().to_string();
    let secret = cluster_key().to_secret_text().to_string();
    let other = ClusterKey::from_seed(&[8; 32]).to_secret_text().to_string();
    let refuse = |text: &str| {
        let error = Bundle::parse(text).unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(!said.contains(&secret[..20]) && !said.contains(&other[..20]), "{said}");
        error
    };
    assert_eq!(refuse(&good.replace(&secret, &other)), BundleError::Key);
    assert!(matches!(refuse(&good.replace("bundle v1", "bundle v2")), BundleError::Malformed(_)));
    assert!(matches!(refuse(&good.replace(&secret, &secret[..40])), BundleError::Malformed(_)));
    assert!(matches!(refuse(&good.replace("\"brokers\"", "\"broker\"")), BundleError::Malformed(_)));
    assert!(matches!(refuse(&good.replace("\"serial", " \"serial")), BundleError::Malformed(_)));
    assert!(matches!(refuse(&good.replace("10.1.0.0", "10.2.0.0")), BundleError::Grant(_)));
    for broker in [
        "http://broker.example:8443",
        "https://broker.example",
        "https://broker.example:0",
        "https://:1",
        "https://a/b:1",
        "https://[x]:1",
    ] {
        let changed = good.replace("https://broker.example:8443", broker);
        assert!(matches!(refuse(&changed), BundleError::Broker(_)), "{broker}");
    }
    for length in (0..good.len() - 1).step_by(13) {
        refuse(&good[..length]);
    }
    let mut empty = bundle();
    empty.brokers.clear();
    assert_eq!(refuse(&empty.to_secret_text()), BundleError::NoBroker);
    let mut foreign = bundle();
    foreign.cluster_set = ClusterSetId::new(RootKey::from_seed(&[9; 32]).public());
    assert!(matches!(refuse(&foreign.to_secret_text()), BundleError::Grant(_)));
}
