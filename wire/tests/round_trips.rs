//! Whatever can be said can be read again, and means the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use std::net::IpAddr;

use common::*;
use podspan_wire::api::{Entry, Lease, List, Token, WatchEvent};
use podspan_wire::local::{Answer, Attachment, AttachmentDetail, PodRoutes, Request};
use podspan_wire::{Cidr, CidrSet, Lane, LaneKey, NodeId, Record, RecordState, Version};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn again<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).unwrap();
    let read = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    read
}

fn pod_cidr() -> impl Strategy<Value = Cidr> {
    prop_oneof![
        (any::<u16>(), 16_u8..=32).prop_map(|(host, length)| {
            let [a, b] = host.to_be_bytes();
            Cidr::containing(IpAddr::from([10, 1, a, b]), length).unwrap()
        }),
        (any::<[u16; 5]>(), 48_u8..=128).prop_map(|(host, length)| {
            let [a, b, c, d, e] = host;
            Cidr::containing(IpAddr::from([0xfd00, 0x10, 1, a, b, c, d, e]), length).unwrap()
        }),
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,10}){0,3}"
}

prop_compose! {
    fn record()(
        node in name(),
        withdrawn in any::<bool>(),
        keys in btree_set(any::<[u8; 32]>(), 1..=64),
        port in 1_u16..,
        endpoints in vec(any::<[u8; 3]>(), 1..=8),
        pod_cidrs in vec(pod_cidr(), 0..=40),
        gateway in any::<bool>(),
        epoch in any::<u64>(),
        sequence in any::<u64>(),
        extension in proptest::option::of(("[a-zA-Z\"\\\\é\u{1}]{1,8}", any::<i64>(), ".{0,20}")),
    ) -> Record {
        Record {
            node: node.parse().unwrap(),
            state: if withdrawn { RecordState::Withdrawn } else { RecordState::Active },
            lanes: keys.into_iter().map(|key| Lane { key: LaneKey::from_bytes(key), port }).collect(),
            endpoints: endpoints.into_iter().map(|[a, b, c]| IpAddr::from([198, a, b, c])).collect(),
            pod_cidrs: pod_cidrs.into_iter().collect(),
            gateway,
            version: Version { epoch, sequence },
            extensions: extension
                .into_iter()
                .map(|(name, number, text)| (name, serde_json::json!({"n": number, "t": [text]})))
                .collect(),
            ..gateway_base()
        }
    }
}

fn gateway_base() -> Record {
    common::gateway()
}

proptest! {
    #[test]
    fn a_record_that_is_signed_verifies_and_says_the_same(record in record()) {
        let signed = again(&sign(&record));
        let verified = trust().verify(&signed, NOW).unwrap();
        prop_assert_eq!(verified.record(), &record);
        prop_assert_eq!(signed.claim(), Some((record.id(), record.version)));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused(record in record(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let signed = sign(&record);
        let mut bytes = signed.record.payload.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(payload) = String::from_utf8(bytes) {
            let mut changed = signed;
            changed.record.payload = payload;
            prop_assert!(trust().verify(&changed, NOW).is_err());
        }
    }

    #[test]
    fn cidrs_are_what_they_print(cidr in pod_cidr()) {
        prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
        prop_assert!(cidr.contains(cidr.address()) && cidr.covers(&cidr));
    }

    #[test]
    fn sets_of_cidrs_do_not_depend_on_their_order(mut cidrs in vec(pod_cidr(), 0..30)) {
        let set: CidrSet = cidrs.iter().copied().collect();
        cidrs.reverse();
        cidrs.extend(set.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(&cidrs.iter().copied().collect::<CidrSet>(), &set);
        prop_assert_eq!(&again(&set), &set);
        prop_assert!(cidrs.iter().all(|cidr| set.covers(cidr) && set.contains(cidr.address())));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
        // What reads prints the same, or names are not canonical.
        if let Ok(id) = text.parse::<NodeId>() {
            prop_assert_eq!(id.to_string(), text.clone());
        }
        if let Ok(token) = text.parse::<Token>() {
            prop_assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        }
        let _ = text.parse::<Cidr>();
    }
}

#[test]
fn the_api_reads_what_it_writes() {
    let entry = Entry { revision: 7, lease: Lease::Lapsed, signed: sign(&gateway()) };
    let token: Token = "00ff:18446744073709551615".parse().unwrap();
    let list = List { token: token.clone(), entries: vec![entry.clone()] };
    assert_eq!(again(&list), list);
    for event in
        [WatchEvent::Reset, WatchEvent::Entry(entry), WatchEvent::Bookmark { token }, WatchEvent::Resync]
    {
        assert_eq!(again(&event), event);
    }
    for bad in [
        "",
        ":",
        "ff",
        "ff:",
        ":1",
        "FF:1",
        "ff:-1",
        "ff:18446744073709551616",
        &format!("{}:1", "f".repeat(65)),
    ] {
        assert!(bad.parse::<Token>().is_err(), "{bad}");
    }
}

#[test]
fn the_local_protocol_reads_what_it_writes() {
    let attachment = Attachment { container_id: "c".into(), interface: "eth0".into() };
    let detail = AttachmentDetail {
        attachment: attachment.clone(),
        netns: "/run/netns/p".into(),
        network: "pods".into(),
        addresses: vec!["10.1.1.2".parse().unwrap()],
        gateways: vec!["fd00:10:1:1::1".parse().unwrap()],
        pod: Some("shop/cart-0".into()),
    };
    let requests = [
        Request::Status,
        Request::Ready,
        Request::Attach(detail),
        Request::Detach(attachment.clone()),
        Request::Check(attachment.clone()),
        Request::Collect { network: "pods".into(), valid: vec![attachment] },
    ];
    for request in requests {
        assert_eq!(again(&request), request);
        assert!(!serde_json::to_string(&request).unwrap().contains('\n'), "one line");
    }
    let routes = PodRoutes { cidrs: cidrs(&["10.2.0.0/16", "fd00:10:2::/48"]), mtu: 1420 };
    for answer in
        [Answer::Done, Answer::Unknown, Answer::Routes(routes), Answer::Error { message: "x\ny".into() }]
    {
        assert_eq!(again(&answer), answer);
        assert!(!serde_json::to_string(&answer).unwrap().contains('\n'), "one line");
    }
}
