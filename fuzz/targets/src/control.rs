//! The decoders of `podspan-wire`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use podspan_wire::api::{ApiError, Entry, List, PutAnswer, Renew, RenewAnswer, Token, WatchEvent};
use podspan_wire::local::{Answer, Request};
use podspan_wire::{
    Bundle, Cidr, CidrSet, ClusterId, ClusterKey, ClusterSetId, Envelope, Grant, HighWater, LaneKey, NodeId,
    NodeName, PublicKey, RootKey, Signature, SignedRecord, Trust, UnixTime,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const ROOT: [u8; 32] = [1; 32];
const CLUSTER: [u8; 32] = [2; 32];

fn trust() -> Trust {
    Trust::new(ClusterSetId::new(RootKey::from_seed(&ROOT).public()))
}

/// The grant on which the records of the corpus stand.
fn grant_of_cluster() -> Option<Envelope> {
    let grant = Grant {
        cluster_set: *trust().cluster_set(),
        cluster: "alpha".parse().ok()?,
        cluster_key: ClusterKey::from_seed(&CLUSTER).public(),
        pod_cidrs: ["10.1.0.0/16", "fd00:10:1::/48"].iter().filter_map(|text| text.parse().ok()).collect(),
        service_cidrs: ["10.101.0.0/16", "fd00:10:101::/112"]
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect(),
        serial: 1,
        not_after: UnixTime(u64::MAX),
        extensions: Default::default(),
    };
    Some(grant.sign(&RootKey::from_seed(&ROOT)))
}

/// Signs whatever the input is, so that what stands behind the signature is fuzzed too.
fn sign(context: &str, payload: &str, seed: &[u8; 32]) -> Option<Envelope> {
    let message = [context.as_bytes(), &[0], payload.as_bytes()].concat();
    let signature = SigningKey::from_bytes(seed).sign(&message).to_bytes();
    let signature: Signature = STANDARD.encode(signature).parse().ok()?;
    Some(Envelope { payload: payload.to_owned(), signature })
}

/// What was read and written again must read as the same.
fn again<T: Serialize + DeserializeOwned>(value: &T) {
    let text = serde_json::to_string(value).expect("what was read can be written");
    let read: T = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(serde_json::to_string(&read).expect("what was read can be written"), text);
}

fn json<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let value = serde_json::from_slice(data).ok()?;
    again(&value);
    Some(value)
}

/// Envelopes, and grants behind a good signature.
pub fn grant(data: &[u8]) {
    let now = UnixTime(0);
    if let Some(envelope) = json::<Envelope>(data) {
        let _ = trust().verify_grant(&envelope, now);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(envelope) = sign("podspan grant v1", text, &ROOT) else { return };
    match trust().verify_grant(&envelope, now) {
        Ok(grant) => {
            assert_eq!(
                serde_json::to_string(&*grant).ok().as_deref(),
                Some(text),
                "only the canonical form is taken"
            );
            assert_eq!(grant.fault(), None);
        }
        Err(refusal) => assert!(refusal.to_string().len() < 1024, "an error is for a person: {refusal}"),
    }
}

/// Signed records, and records behind a good signature.
pub fn record(data: &[u8]) {
    let now = UnixTime(0);
    if let Some(signed) = json::<SignedRecord>(data) {
        let _ = signed.claim();
        let _ = trust().verify(&signed, now);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (Some(grant), Some(record)) = (grant_of_cluster(), sign("podspan record v1", text, &CLUSTER)) else {
        return;
    };
    let signed = SignedRecord { grant, record };
    match trust().verify(&signed, now) {
        Ok(verified) => {
            let record = verified.record();
            assert_eq!(
                serde_json::to_string(record).ok().as_deref(),
                Some(text),
                "only the canonical form is taken"
            );
            assert_eq!(record.fault(), None);
            assert!(record.pod_cidrs.iter().all(|cidr| verified.grant().pod_cidrs.covers(cidr)));
            assert_eq!(signed.claim(), Some((record.id(), record.version)));
            let mut water = HighWater::default();
            assert_eq!(water.admit(&verified), Ok(()));
            assert_eq!(water.admit(&verified), Ok(()), "the same again is fine");
        }
        Err(refusal) => assert!(refusal.to_string().len() < 1024, "an error is for a person: {refusal}"),
    }
}

/// Bundle files.
pub fn bundle(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Bundle::parse(text) {
        Ok((bundle, _)) => {
            let written = bundle.to_secret_text();
            let (read, _) = Bundle::parse(&written).expect("what was written can be read");
            assert_eq!(read.to_secret_text(), written);
        }
        Err(error) => {
            assert!(error.to_string().len() < 1024, "an error is for a person");
            // The secret of the corpus, whose seed is all twos.
            assert!(!error.to_string().contains("AgICAgICAgIC"), "an error quotes no secret");
        }
    }
}

/// Every document of the broker's API.
pub fn api(data: &[u8]) {
    json::<List>(data);
    json::<Entry>(data);
    json::<WatchEvent>(data);
    json::<Renew>(data);
    json::<RenewAnswer>(data);
    json::<PutAnswer>(data);
    json::<ApiError>(data);
    json::<HighWater>(data);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(token) = text.parse::<Token>()
    {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
}

/// The protocol of the agent's unix socket, both ways.
pub fn local(data: &[u8]) {
    json::<Request>(data);
    json::<Answer>(data);
}

/// Prefixes, and what is asked of them.
pub fn cidr(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut cidrs = Vec::new();
    for word in text.split([' ', '\n', ',']).take(16) {
        match word.parse::<Cidr>() {
            Ok(cidr) => {
                assert_eq!(cidr.to_string().parse(), Ok(cidr));
                assert!(cidr.contains(cidr.address()) && cidr.covers(&cidr) && cidr.overlaps(&cidr));
                assert_eq!(Cidr::containing(cidr.address(), cidr.length()), Ok(cidr));
                let _ = cidr.not_announceable();
                cidrs.push(cidr);
            }
            Err(error) => assert!(error.to_string().len() < 1024, "an error is for a person"),
        }
    }
    let set: CidrSet = cidrs.iter().copied().collect();
    let reversed: CidrSet = cidrs.iter().rev().copied().collect();
    assert_eq!(set, reversed);
    again(&set);
    for a in &cidrs {
        assert!(set.covers(a) && set.contains(a.address()));
        for b in &cidrs {
            assert_eq!(a.overlaps(b), b.overlaps(a));
            assert_eq!(a.covers(b) && b.covers(a), a == b);
        }
    }
}

/// Names, keys and signatures as text.
pub fn names(data: &[u8]) {
    fn same<T: std::str::FromStr + ToString>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert_eq!(value.to_string(), text, "one way of writing a thing");
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    same::<ClusterId>(text);
    same::<NodeName>(text);
    same::<NodeId>(text);
    same::<ClusterSetId>(text);
    same::<PublicKey>(text);
    same::<Signature>(text);
    same::<LaneKey>(text);
    let _ = ClusterKey::from_secret_text(text);
}
