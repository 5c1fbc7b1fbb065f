//! Statements from fixed seeds, shared by the tests.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::collections::BTreeMap;

use podspan_wire::{
    Bundle, CidrSet, ClusterKey, ClusterSetId, Envelope, Grant, Lane, LaneKey, Record, RecordState, RootKey,
    SignedRecord, Trust, UnixTime, Version,
};

/// 2027-01-01T00:00:00Z, within the time of all statements here.
pub const NOW: UnixTime = UnixTime(1_798_761_600);
/// 2030-01-01T00:00:00Z.
pub const LATER: UnixTime = UnixTime(1_893_456_000);

pub fn root() -> RootKey {
    RootKey::from_seed(&[1; 32])
}

pub fn cluster_key() -> ClusterKey {
    ClusterKey::from_seed(&[2; 32])
}

pub fn cluster_set() -> ClusterSetId {
    ClusterSetId::new(root().public())
}

pub fn trust() -> Trust {
    Trust::new(cluster_set())
}

pub fn cidrs(texts: &[&str]) -> CidrSet {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub fn grant() -> Grant {
    Grant {
        cluster_set: cluster_set(),
        cluster: "alpha".parse().unwrap(),
        cluster_key: cluster_key().public(),
        pod_cidrs: cidrs(&["10.1.0.0/16", "fd00:10:1::/48"]),
        service_cidrs: cidrs(&["10.101.0.0/16", "fd00:10:101::/112"]),
        serial: 1,
        not_after: LATER,
        extensions: BTreeMap::new(),
    }
}

pub fn signed_grant() -> Envelope {
    grant().sign(&root())
}

/// A gateway with both families and four lanes.
pub fn gateway() -> Record {
    Record {
        cluster_set: cluster_set(),
        cluster: "alpha".parse().unwrap(),
        node: "node-1.eu.example".parse().unwrap(),
        state: RecordState::Active,
        lanes: (0..4)
            .map(|i| Lane { key: LaneKey::from_bytes([10 + i; 32]), port: 51840 + u16::from(i) })
            .collect(),
        endpoints: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        pod_cidrs: cidrs(&["10.1.1.0/24", "fd00:10:1:1::/64"]),
        service_cidrs: cidrs(&["10.101.0.0/16", "fd00:10:101::/112"]),
        gateway: true,
        version: Version { epoch: 1_798_000_000, sequence: 7 },
        not_after: UnixTime(1_798_848_000),
        extensions: BTreeMap::new(),
    }
}

/// A node of one family behind NAT: no endpoint, no services.
pub fn dialler() -> Record {
    Record {
        node: "node-2".parse().unwrap(),
        lanes: vec![Lane { key: LaneKey::from_bytes([20; 32]), port: 51840 }],
        endpoints: Vec::new(),
        pod_cidrs: cidrs(&["10.1.2.0/24"]),
        service_cidrs: CidrSet::default(),
        gateway: false,
        ..gateway()
    }
}

pub fn withdrawn() -> Record {
    Record {
        state: RecordState::Withdrawn,
        version: Version { epoch: 1_798_000_000, sequence: 8 },
        ..gateway()
    }
}

/// A record of a later version of podspan, with something that may be ignored.
pub fn extended() -> Record {
    let extensions = [("zone".to_owned(), serde_json::json!({"name": "eu-1a", "weights": [1, 2, 3]}))];
    Record { extensions: extensions.into_iter().collect(), ..gateway() }
}

pub fn sign(record: &Record) -> SignedRecord {
    record.sign(&cluster_key(), signed_grant())
}

pub fn bundle() -> Bundle {
    Bundle {
        cluster_set: cluster_set(),
        grant: signed_grant(),
        cluster_key: cluster_key(),
        brokers: vec!["https://broker.example:8443".into(), "https://[2001:db8::53]:8443".into()],
        broker_ca: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n".into(),
    }
}
