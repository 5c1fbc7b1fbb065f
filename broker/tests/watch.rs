//! Watching: nothing is lost between snapshot and live, over restarts, or by being slow.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::time::Duration;

use podspan_broker::client::{Client, Error, Event};
use podspan_wire::api::WatchEvent;
use support::*;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpSocket;

#[tokio::test]
async fn a_watch_sees_the_snapshot_then_every_change() {
    let broker = Running::start().await;
    let (alpha, beta) = (cluster("alpha", 1), cluster("beta", 2));
    let client = broker.client(&alpha);
    client.put(&alpha.active("n1", 1)).await.unwrap();
    client.put(&alpha.active("n2", 1)).await.unwrap();
    let mut watch = broker.client(&beta).watch(None);
    assert!(
        matches!(next(&mut watch).await, Event::Connected { broker: name } if name == format!("https://{}", broker.address()))
    );
    assert_eq!(next(&mut watch).await, Event::Event(WatchEvent::Reset));
    let (_, entries, token) = to_bookmark(&mut watch).await;
    assert_eq!(
        entries.iter().map(claim).collect::<Vec<_>>(),
        [("alpha/n1".into(), 1), ("alpha/n2".into(), 1)]
    );
    assert_eq!(token.revision, 2);

    client.put(&alpha.active("n1", 2)).await.unwrap();
    client.withdraw(&alpha.withdrawn("n2", 2)).await.unwrap();
    let live = [next_entry(&mut watch).await, next_entry(&mut watch).await];
    assert_eq!(live.each_ref().map(|entry| entry.revision), [3, 4]);
    assert_eq!(live[1].signed, alpha.withdrawn_like(&live[1]));
    // Without changes there are still bookmarks, within 10 s.
    let (reset, entries, token) = tokio::time::timeout(Duration::from_secs(10), to_bookmark(&mut watch))
        .await
        .expect("no bookmark in 10 s");
    assert!(!reset && entries.is_empty());
    assert_eq!(token.revision, 4);
}

impl Cluster {
    /// What was signed is passed on to the byte: the entry must verify and be the withdrawal.
    fn withdrawn_like(&self, entry: &podspan_wire::api::Entry) -> podspan_wire::SignedRecord {
        let trust = podspan_wire::Trust::new(cluster_set());
        let verified = trust.verify(&entry.signed, now()).unwrap();
        assert!(podspan_wire::HighWater::is_withdrawal(verified.record()));
        verified.signed().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_between_snapshot_and_live() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let writer = {
        let (client, alpha) = (broker.client(&alpha), alpha.clone());
        tokio::spawn(async move {
            for sequence in 1..=300 {
                client.put(&alpha.active("n1", sequence)).await.unwrap();
            }
        })
    };
    let mut watchers = tokio::task::JoinSet::new();
    for delay in 0..12 {
        let client = broker.client(&alpha);
        watchers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay * 20)).await;
            let mut watch = client.watch(None);
            let mut last = None;
            loop {
                let entry = next_entry(&mut watch).await;
                let sequence = claim(&entry).1;
                assert_eq!(entry.revision, sequence, "one put, one revision");
                if let Some(last) = last {
                    assert_eq!(sequence, last + 1, "every change after the snapshot, in order");
                }
                last = Some(sequence);
                if sequence == 300 {
                    return;
                }
            }
        });
    }
    while let Some(watched) = watchers.join_next().await {
        watched.unwrap();
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_token_resumes_across_a_restart_without_a_reset() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    client.put(&alpha.active("n1", 1)).await.unwrap();
    let mut watch = client.watch(None);
    let (_, _, token) = to_bookmark(&mut watch).await;
    let broker = broker.restart().await;
    let again = broker.client(&alpha);
    again.put(&alpha.active("n2", 1)).await.unwrap();
    // The watch that was there first goes on by itself ...
    let mut reset = false;
    let entry = loop {
        match next(&mut watch).await {
            Event::Event(WatchEvent::Reset) => reset = true,
            Event::Event(WatchEvent::Entry(entry)) => break entry,
            _ => {}
        }
    };
    assert!(!reset, "a known token must not reset");
    assert_eq!(claim(&entry), ("alpha/n2".into(), 1));
    // ... and so does a new one from the token.
    let (reset, entries, end) = to_bookmark(&mut again.watch(Some(token.clone()))).await;
    assert!(!reset);
    assert_eq!(entries.iter().map(claim).collect::<Vec<_>>(), [("alpha/n2".into(), 1)]);
    assert_eq!((end.store, end.revision), (token.store, 2));
}

#[tokio::test]
async fn another_store_resets_the_watcher() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    for node in ["n1", "n2", "n3"] {
        client.put(&alpha.active(node, 1)).await.unwrap();
    }
    let mut watch = client.watch(None);
    let (_, _, before) = to_bookmark(&mut watch).await;
    let broker = broker.restart_after(|config| std::fs::remove_dir_all(&config.data).unwrap()).await;
    let (reset, entries, after) = to_bookmark(&mut watch).await;
    assert!(reset && entries.is_empty());
    assert_ne!(before.store, after.store);
    // A token of the same store that is ahead of it: the store was put back from a copy.
    let mut ahead = after.clone();
    ahead.revision = 7;
    assert!(to_bookmark(&mut broker.client(&alpha).watch(Some(ahead))).await.0);
    drop(watch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_is_told_to_resync_and_misses_nothing_before_it() {
    let broker = Running::with(|config| config.limits.watcher_queue = 8).await;
    let alpha = cluster("alpha", 1);
    // A watcher with a small window that reads nothing for now.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(broker.address()).await.unwrap();
    let mut slow = broker.site.handshake(&alpha, stream).await;
    let request =
        format!("GET /v1/watch HTTP/1.1\r\nhost: x\r\npodspan-grant: {}\r\n\r\n", alpha.grant_header());
    slow.write_all(request.as_bytes()).await.unwrap();
    slow.flush().await.unwrap();
    until("the watcher is registered", || broker.metric("podspan_broker_watchers") == 1.0).await;
    // A fast one beside it is not concerned.
    let mut fast = broker.client(&alpha).watch(None);
    to_bookmark(&mut fast).await;

    let client = broker.client(&alpha);
    let mut sequence = 0;
    while broker.metric("podspan_broker_watchers_overflowed_total") == 0.0 {
        sequence += 1;
        assert!(sequence < 5000, "the slow watcher was never cut off");
        client.put(&alpha.large("n1", sequence)).await.unwrap();
        assert_eq!(claim(&next_entry(&mut fast).await).1, sequence);
    }
    // What it reads now: every revision from the first on, then the resync, then the end.
    let mut lines = BufReader::new(slow).lines();
    let (mut last, mut resync) = (0, false);
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap_or(None) {
            match serde_json::from_str(&line) {
                Ok(WatchEvent::Entry(entry)) => {
                    assert_eq!(entry.revision, last + 1, "skipped silently");
                    last = entry.revision;
                }
                Ok(WatchEvent::Resync) => {
                    resync = true;
                    break;
                }
                // The head, chunk sizes, bookmarks.
                _ => assert!(!resync),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("no resync");
    assert!(resync, "cut off without a word after revision {last}");
    assert!(last < sequence, "there was something that it had not got");
}

#[tokio::test]
async fn a_client_goes_on_to_the_next_broker_and_stays_there() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    // Nobody listens on the first: a port of the site's own address that was free a moment ago.
    let dead = {
        let listener = std::net::TcpListener::bind((broker.site.address, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    for _ in 0..4 {
        let config = broker.site.client_config(&alpha, &[dead, broker.address()]);
        let client = Client::new(config).unwrap();
        client.list().await.unwrap();
        let mut watch = client.watch(None);
        assert!(matches!(next(&mut watch).await, Event::Connected { .. }), "it knows which one answers");
    }
    let client = Client::new(broker.site.client_config(&alpha, &[dead])).unwrap();
    let error = client.list().await.unwrap_err();
    let Error::Unreachable { broker: named, why } = &error else { panic!("{error:?}") };
    assert_eq!(*named, format!("https://{dead}"));
    assert!(why.contains("refused"), "{why}");
    let both = Client::new(broker.site.client_config(&alpha, &[dead, dead])).unwrap();
    assert!(both.list().await.unwrap_err().to_string().matches(&dead.to_string()).count() >= 2);
}

#[tokio::test]
async fn a_dropped_watch_leaves_no_watcher_behind() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    for _ in 0..5 {
        let mut watch = client.watch(None);
        to_bookmark(&mut watch).await;
        drop(watch);
    }
    until("no watcher is left", || broker.metric("podspan_broker_watchers") == 0.0).await;
    drop(client);
    until("no connection is left", || broker.metric("podspan_broker_connections") == 0.0).await;
}
