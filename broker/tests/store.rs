//! The store: failing disks, foreign and broken files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use podspan_broker::client::Error;
use podspan_broker::server::Broker;
use podspan_broker::server::registry::Batch;
use podspan_broker::server::store::{Contents, RedbStore, Store, StoreError};
use podspan_wire::api::Lease;
use podspan_wire::{ClusterSetId, RootKey};
use support::*;

/// A store whose writes fail on demand: before they reach the disk, or after.
struct Failing {
    inner: RedbStore,
    before: Arc<AtomicBool>,
    after: Arc<AtomicBool>,
}

fn failure() -> StoreError {
    StoreError::Io { path: "test".into(), what: "cannot write", why: "told to fail".into() }
}

impl Store for Failing {
    fn load(&mut self) -> Result<Contents, StoreError> {
        if self.before.load(Ordering::SeqCst) { Err(failure()) } else { self.inner.load() }
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.before.load(Ordering::SeqCst) {
            return Err(failure());
        }
        self.inner.commit(batch)?;
        if self.after.swap(false, Ordering::SeqCst) { Err(failure()) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_acknowledges_nothing_and_heals() {
    let site = Site::new();
    let (before, after) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let inner = RedbStore::new(&site.path("data"), cluster_set());
    let store = Failing { inner, before: before.clone(), after: after.clone() };
    let mut config = site.config();
    config.health_listen = Some((site.address, 0).into());
    let broker = Broker::start_with(&config, Box::new(store)).await.unwrap();
    let alpha = cluster("alpha", 1);
    let client = site.client(&alpha, broker.addresses()[0]);
    let health = broker.health_address().unwrap();
    client.put(&alpha.active("n1", 1)).await.unwrap();
    let mut watch = client.watch(None);
    to_bookmark(&mut watch).await;
    assert_eq!(get(health, "/readyz").await.0, 200);

    before.store(true, Ordering::SeqCst);
    let error = client.put(&alpha.active("n1", 2)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { status: 503, error } if error.message.contains("nothing was stored")),
        "{error:?}"
    );
    assert_eq!(get(health, "/readyz").await.0, 503);
    assert_eq!(get(health, "/healthz").await.0, 200);
    assert!(metric(&get(health, "/metrics").await.1, "podspan_broker_store_failures_total") >= 1.0);
    // What was acknowledged is still served.
    assert_eq!(claim(&client.list().await.unwrap().entries[0]).1, 1);

    before.store(false, Ordering::SeqCst);
    let tries = AtomicU32::new(0);
    while client.put(&alpha.active("n1", 2)).await.is_err() {
        assert!(tries.fetch_add(1, Ordering::SeqCst) < 100, "the store never healed");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(get(health, "/readyz").await.0, 200);
    let entry = next_entry(&mut watch).await;
    assert_eq!((entry.revision, claim(&entry).1), (2, 2), "one revision for one change");

    // The write fails after it reached the disk: it was not acknowledged, but it is there, and watchers
    // come to know.
    after.store(true, Ordering::SeqCst);
    let third = alpha.active("n1", 3);
    client.put(&third).await.unwrap_err();
    let entry = next_entry(&mut watch).await;
    assert_eq!((entry.revision, claim(&entry).1), (3, 3));
    assert_eq!(client.put(&third).await.unwrap().revision, 3);
    drop(watch);
    assert!(broker.stop(std::time::Duration::from_secs(10)).await);
}

fn commit(store: &mut RedbStore, revision: u64, node: &str) {
    let alpha = cluster("alpha", 1);
    let entry = podspan_wire::api::Entry { revision, lease: Lease::Fresh, signed: alpha.active(node, 1) };
    let serials = vec![("alpha".parse().unwrap(), 4)];
    store
        .commit(&Batch { revision, entries: vec![(alpha.id(node), entry)], removed: vec![], serials })
        .unwrap();
}

#[test]
fn what_is_committed_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RedbStore::new(&directory.path().join("a/b"), cluster_set());
    let first = store.load().unwrap();
    assert_eq!((first.revision, first.entries.len()), (0, 0));
    commit(&mut store, 1, "n1");
    commit(&mut store, 2, "n2");
    let alpha = cluster("alpha", 1);
    let gone = Batch { revision: 3, removed: vec![alpha.id("n1")], ..Batch::default() };
    store.commit(&gone).unwrap();
    let contents = store.load().unwrap();
    assert_eq!(contents.store, first.store, "one id for life");
    assert_eq!(contents.revision, 3);
    assert_eq!(contents.entries.iter().map(claim).collect::<Vec<_>>(), [("alpha/n2".into(), 1)]);
    assert_eq!(contents.serials, [("alpha".parse().unwrap(), 4)]);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn foreign_files_are_refused_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RedbStore::new(directory.path(), cluster_set());
    store.load().unwrap();
    let mut second = RedbStore::new(directory.path(), cluster_set());
    assert!(matches!(second.load(), Err(StoreError::InUse { .. })));
    drop(store);
    let other = ClusterSetId::new(RootKey::from_seed(&[9; 32]).public());
    let error = RedbStore::new(directory.path(), other).load().unwrap_err();
    assert!(matches!(error, StoreError::OtherClusterSet { .. }), "{error}");
    assert!(error.to_string().contains("set `data` to a directory"), "{error}");
    let file = directory.path().join("not-a-directory");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(RedbStore::new(&file, cluster_set()).load(), Err(StoreError::Directory { .. })));
}

#[test]
fn broken_files_are_refused_or_read_and_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RedbStore::new(directory.path(), cluster_set());
    store.load().unwrap();
    for revision in 1..=50 {
        commit(&mut store, revision, &format!("n{revision}"));
    }
    let path = store.path().to_owned();
    drop(store);
    let good = std::fs::read(&path).unwrap();
    let mut refused = 0;
    let mut cases: Vec<Vec<u8>> = vec![b"this is no store".to_vec(), vec![0xff; 10_000]];
    for part in 1..8 {
        cases.push(good[..good.len() * part / 8].to_vec());
    }
    for place in 0..60 {
        let mut bent = good.clone();
        let at = good.len() * place / 60;
        for byte in bent.iter_mut().skip(at).take(64) {
            *byte = !*byte;
        }
        cases.push(bent);
    }
    for case in &cases {
        std::fs::write(&path, case).unwrap();
        match RedbStore::new(directory.path(), cluster_set()).load() {
            // Unused space was hit, or redb repaired it.
            Ok(contents) => assert!(contents.entries.len() <= 50),
            Err(error) => {
                assert!(
                    matches!(
                        error,
                        StoreError::Corrupt { .. }
                            | StoreError::OtherClusterSet { .. }
                            | StoreError::Format { .. }
                    ),
                    "{error}"
                );
                if matches!(error, StoreError::Corrupt { .. }) {
                    assert!(error.to_string().contains("the agents publish their records again"), "{error}");
                }
                refused += 1;
            }
        }
    }
    assert!(refused >= 3, "{refused} of {}", cases.len());
}
