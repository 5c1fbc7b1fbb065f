//! The root's owner: signs grants that no command of podspan's would give.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use podspan_wire::{
    CidrSet, ClusterKey, ClusterSetId, Envelope, Grant, Lane, LaneKey, Record, RecordState, RootKey,
    SignedRecord, UnixTime, Version,
};

use crate::state;

/// The directory of the lab's cluster set.
pub(super) fn set_directory() -> PathBuf {
    state::path("podspan/set")
}

/// Who has the root key.
pub(super) struct Signer {
    root: RootKey,
    now: UnixTime,
}

/// A cluster with a grant that the root signed.
pub(super) struct Realm {
    name: &'static str,
    key: ClusterKey,
    grant: Envelope,
    pods: CidrSet,
    set: ClusterSetId,
    now: UnixTime,
}

impl Signer {
    pub(super) fn new() -> Result<Self> {
        let text = std::fs::read_to_string(set_directory().join("root.key")).context("the root key")?;
        let key = text.lines().find_map(|line| RootKey::from_secret_text(line.trim()).ok());
        Ok(Self { root: key.context("no line of root.key is a key")?, now: SystemTime::now().into() })
    }

    /// Grants `pods` to the cluster `name` with the key of `seed`.
    pub(super) fn grant(&self, name: &'static str, seed: u8, serial: u64, pods: &[&str]) -> Result<Realm> {
        let key = ClusterKey::from_seed(&[seed; 32]);
        let set = ClusterSetId::new(self.root.public());
        let pods = pods.iter().map(|pod| pod.parse()).collect::<Result<CidrSet, _>>()?;
        let grant = Grant {
            cluster_set: set,
            cluster: name.parse()?,
            cluster_key: key.public(),
            pod_cidrs: pods.clone(),
            service_cidrs: CidrSet::default(),
            serial,
            not_after: self.now.after(Duration::from_secs(86_400)),
            extensions: BTreeMap::new(),
        };
        Ok(Realm { name, key, grant: grant.sign(&self.root), pods, set, now: self.now })
    }
}

impl Realm {
    /// A record of a node that owns all of the cluster's pods and dials only.
    pub(super) fn record(&self, node: &str, state: RecordState, sequence: u64) -> Result<SignedRecord> {
        // Each node has a key of its own.
        let mut lane = [0; 32];
        for (to, from) in lane.iter_mut().zip(self.name.bytes().chain(node.bytes())) {
            *to = from;
        }
        let record = Record {
            cluster_set: self.set,
            cluster: self.name.parse()?,
            node: node.parse()?,
            state,
            lanes: vec![Lane { key: LaneKey::from_bytes(lane), port: 51840 }],
            endpoints: Vec::new(),
            pod_cidrs: self.pods.clone(),
            service_cidrs: CidrSet::default(),
            gateway: false,
            version: Version { epoch: self.now.0, sequence },
            not_after: self.now.after(Duration::from_secs(3600)),
            extensions: BTreeMap::new(),
        };
        Ok(record.sign(&self.key, self.grant.clone()))
    }
}
