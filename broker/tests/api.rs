//! The API over real TLS: what it does, and whom and what it refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::time::Duration;

use podspan_broker::client::{Client, Error};
use podspan_wire::api::{Lease, MAX_BODY};
use podspan_wire::{ClusterKey, Record, RootKey, UnixTime};
use support::*;

fn status(error: &Error) -> u16 {
    match error {
        Error::Refused { status, .. } => *status,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[tokio::test]
async fn records_are_put_listed_renewed_and_withdrawn() {
    let broker = Running::start().await;
    let (alpha, beta) = (cluster("alpha", 1), cluster("beta", 2));
    let (a, b) = (broker.client(&alpha), broker.client(&beta));

    let first = a.put(&alpha.active("n1", 1)).await.unwrap();
    assert_eq!((first.revision, first.lease_seconds), (1, 30));
    assert_eq!(b.put(&beta.active("n1", 1)).await.unwrap().revision, 2);
    assert_eq!(a.put(&alpha.active("n1", 2)).await.unwrap().revision, 3);
    let stored = alpha.active("n2", 1);
    assert_eq!(a.put(&stored).await.unwrap().revision, 4);
    assert_eq!(a.put(&stored).await.unwrap().revision, 4, "the same record again changes nothing");

    assert_eq!(a.renew(&alpha.id("n1"), version(2)).await.unwrap().lease_seconds, 30);
    assert!(matches!(
        a.renew(&alpha.id("n1"), version(1)).await.unwrap_err(),
        Error::Conflict { stored, .. } if stored == version(2)
    ));
    assert_eq!(a.renew(&alpha.id("n9"), version(1)).await.unwrap_err(), Error::NotFound);

    assert_eq!(a.withdraw(&alpha.withdrawn("n1", 3)).await.unwrap().revision, 5);
    let error = a.renew(&alpha.id("n1"), version(3)).await.unwrap_err();
    assert!(error.to_string().contains("was withdrawn"), "{error}");

    // A member reads everything, in the order of revision, exactly as it was signed.
    let list = b.list().await.unwrap();
    assert_eq!(list.token.revision, 5);
    let listed: Vec<_> = list.entries.iter().map(|entry| (entry.revision, claim(entry))).collect();
    let expected = [(2, "beta/n1", 1), (4, "alpha/n2", 1), (5, "alpha/n1", 3)];
    assert_eq!(listed, expected.map(|(revision, id, sequence)| (revision, (id.to_owned(), sequence))));
    assert_eq!(list.entries[1].signed, stored);
    assert!(list.entries.iter().all(|entry| entry.lease == Lease::Fresh));
    assert_eq!(broker.metric("podspan_broker_entries"), 3.0);
    assert_eq!(broker.metric("podspan_broker_revision"), 5.0);
}

#[tokio::test]
async fn older_and_different_records_of_a_version_are_conflicts() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    client.put(&alpha.active("n1", 5)).await.unwrap();
    let other = alpha.sign(&Record { gateway: false, ..alpha.record("n1", 5) });
    for refused in [alpha.active("n1", 4), other] {
        let error = client.put(&refused).await.unwrap_err();
        assert!(matches!(&error, Error::Conflict { stored, .. } if *stored == version(5)), "{error:?}");
        assert!(error.to_string().contains("alpha/n1"), "{error}");
    }
    let older = client.withdraw(&alpha.withdrawn("n1", 5)).await.unwrap_err();
    assert!(matches!(older, Error::Conflict { .. }), "{older:?}");
    assert_eq!(claim(&client.list().await.unwrap().entries[0]).1, 5, "what was stored stands");
    assert_eq!(broker.metric("podspan_broker_refusals_total{kind=\"replayed\"}"), 3.0);
}

#[tokio::test]
async fn a_cluster_writes_only_its_own() {
    let broker = Running::start().await;
    let (alpha, beta) = (cluster("alpha", 1), cluster("beta", 2));
    let a = broker.client(&alpha);
    // Beta's own, good record, sent with alpha's credentials.
    let error = a.put(&beta.active("n1", 1)).await.unwrap_err();
    assert_eq!(status(&error), 403);
    assert!(error.to_string().contains("alpha may not write the record of beta/n1"), "{error}");
    assert_eq!(status(&a.withdraw(&beta.withdrawn("n1", 2)).await.unwrap_err()), 403);
    assert_eq!(status(&a.renew(&beta.id("n1"), version(1)).await.unwrap_err()), 403);
    // The same under a path of alpha's: path and record differ.
    let body = serde_json::to_vec(&beta.active("n1", 1)).unwrap();
    let grant = alpha.grant_header();
    let answer =
        broker.site.request(&alpha, broker.address(), "PUT /v1/records/alpha/n1", Some(&grant), &body).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.error().message.contains("the path names alpha/n1, the record is of beta/n1"));
    assert!(a.list().await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn records_that_do_not_verify_are_refused() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    let forged = alpha.record("n1", 1).sign(&ClusterKey::from_seed(&[99; 32]), alpha.grant.clone());
    let expired = alpha.sign(&Record { not_after: UnixTime(1_000), ..alpha.record("n1", 1) });
    let outside =
        Record { pod_cidrs: ["10.9.0.0/16".parse().unwrap()].into_iter().collect(), ..alpha.record("n1", 1) };
    let outside = alpha.sign(&outside);
    let no_lanes = alpha.sign(&Record { lanes: Vec::new(), ..alpha.record("n1", 1) });
    for (signed, expected, kind) in [
        (forged, 403, "record-signature"),
        (expired, 403, "record-expired"),
        (outside, 403, "outside-grant"),
        (no_lanes, 400, "malformed"),
    ] {
        assert_eq!(status(&client.put(&signed).await.unwrap_err()), expected, "{kind}");
        let counted = format!("podspan_broker_refusals_total{{kind=\"{kind}\"}}");
        assert_eq!(broker.metric(&counted), 1.0, "{kind}");
    }
    // An active record is no deletion, and a withdrawal no put.
    assert_eq!(status(&client.withdraw(&alpha.active("n1", 1)).await.unwrap_err()), 400);
    assert_eq!(status(&client.put(&alpha.withdrawn("n1", 1)).await.unwrap_err()), 400);
    client.put(&alpha.active("n1", 1)).await.unwrap();
}

#[tokio::test]
async fn grants_that_do_not_hold_are_refused() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let soon = now().after(DAY);
    let with = |grant| Cluster { grant, ..alpha.clone() };
    let other_root = RootKey::from_seed(&[66; 32]);
    let forged = with(grant_by(&other_root, "alpha", &alpha.key, "10.1.0.0/16", 1, soon));
    let expired = with(grant_by(&root(), "alpha", &alpha.key, "10.1.0.0/16", 1, UnixTime(1_000)));
    // A good grant, of another key than TLS proved.
    let stolen = Cluster { key: ClusterKey::from_seed(&[55; 32]), ..alpha.clone() };
    for (cluster, kind, says) in [
        (&forged, "grant-signature", "not signed by the root"),
        (&expired, "grant-expired", "podspan cluster grant alpha --renew"),
        (&stolen, "wrong-key", "not of the key that the grant of cluster alpha names"),
    ] {
        let error = broker.client(cluster).list().await.unwrap_err();
        assert_eq!(status(&error), 403, "{kind}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(broker.metric(&format!("podspan_broker_refusals_total{{kind=\"{kind}\"}}")), 1.0);
    }
    // Missing and unreadable ones.
    for (grant, expected) in [(None, 401), (Some("!"), 400), (Some("e30="), 400)] {
        let answer = broker.site.request(&alpha, broker.address(), "GET /v1/records", grant, b"").await;
        assert_eq!(answer.status, expected, "{answer:?}");
        assert!(answer.error().message.contains("podspan-grant"));
    }
    broker.client(&alpha).list().await.unwrap();
}

#[tokio::test]
async fn a_later_grant_ends_the_earlier_also_after_a_restart() {
    let broker = Running::start().await;
    let old = cluster_with("alpha", 1, "10.1.0.0/16", 1);
    let new = cluster_with("alpha", 1, "10.1.0.0/16", 2);
    let (before, after) = (broker.client(&old), broker.client(&new));
    before.put(&old.active("n1", 1)).await.unwrap();
    let mut watch = before.watch(None);
    to_bookmark(&mut watch).await;
    // That the new grant was shown is enough: nothing has to be put with it.
    after.list().await.unwrap();
    let error = before.list().await.unwrap_err();
    assert_eq!(status(&error), 403);
    assert!(error.to_string().contains("grant 1 of cluster alpha was superseded by grant 2"), "{error}");
    // The watch that stood on it has ended.
    loop {
        if let podspan_broker::client::Event::Disconnected { why: Error::Refused { status, .. }, .. } =
            next(&mut watch).await
        {
            assert_eq!(status, 403);
            break;
        }
    }
    drop(watch);
    // A record that stands on it is refused too, whoever sends it.
    assert_eq!(status(&after.put(&old.active("n1", 2)).await.unwrap_err()), 403);
    let broker = broker.restart().await;
    assert_eq!(status(&broker.client(&old).list().await.unwrap_err()), 403);
    broker.client(&new).put(&new.active("n1", 2)).await.unwrap();
}

#[tokio::test]
async fn the_later_of_two_overlapping_clusters_is_refused() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let beta = cluster_with("beta", 2, "10.1.128.0/17", 1);
    let (a, b) = (broker.client(&alpha), broker.client(&beta));
    a.put(&alpha.active("n1", 1)).await.unwrap();
    let error = b.put(&beta.active("n1", 1)).await.unwrap_err();
    let Error::Refused { status: 409, error } = error else { panic!("{error:?}") };
    assert!(error.message.contains("cluster beta has 10.1.128.0/17"), "{error}");
    assert!(error.message.contains("10.1.0.0/16 of cluster alpha"), "{error}");
    assert_eq!(error.node, Some(alpha.id("n1")));
    a.put(&alpha.active("n1", 2)).await.expect("the earlier one goes on");
    // Once the earlier is gone, the addresses are free.
    a.withdraw(&alpha.withdrawn("n1", 3)).await.unwrap();
    b.put(&beta.active("n1", 1)).await.unwrap();
    assert_eq!(status(&a.put(&alpha.active("n1", 4)).await.unwrap_err()), 409);
}

#[tokio::test]
async fn leases_lapse_and_come_back_and_survive_a_restart() {
    let broker = Running::with(|config| config.lease = Duration::from_millis(900)).await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    client.put(&alpha.active("n1", 1)).await.unwrap();
    let mut watch = client.watch(None);
    let (_, entries, _) = to_bookmark(&mut watch).await;
    assert_eq!((entries[0].revision, entries[0].lease), (1, Lease::Fresh));
    let lapsed = next_entry(&mut watch).await;
    assert_eq!((lapsed.revision, lapsed.lease), (2, Lease::Lapsed));
    drop(watch);

    let broker = broker.restart().await;
    let client = broker.client(&alpha);
    let list = client.list().await.unwrap();
    assert_eq!((list.token.revision, list.entries[0].lease), (2, Lease::Lapsed));
    let mut watch = client.watch(Some(list.token));
    to_bookmark(&mut watch).await;
    client.renew(&alpha.id("n1"), version(1)).await.unwrap();
    let renewed = next_entry(&mut watch).await;
    assert_eq!((renewed.revision, renewed.lease), (3, Lease::Fresh));
    // Renewed in time, it does not lapse.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.renew(&alpha.id("n1"), version(1)).await.unwrap();
    }
    assert_eq!(client.list().await.unwrap().token.revision, 3);
}

#[tokio::test]
async fn withdrawals_are_kept_until_their_time() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    client.put(&alpha.active("n1", 1)).await.unwrap();
    client.withdraw(&alpha.withdrawn("n1", 2)).await.unwrap();
    let broker = broker.restart().await;
    let client = broker.client(&alpha);
    assert_eq!(claim(&client.list().await.unwrap().entries[0]).1, 2);
    assert!(matches!(
        client.put(&alpha.active("n1", 1)).await.unwrap_err(),
        Error::Conflict { stored, .. } if stored == version(2)
    ));
    assert_eq!(client.put(&alpha.active("n1", 3)).await.unwrap().revision, 3, "it may come back");
}

#[tokio::test]
async fn bodies_and_heads_are_bounded() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let (site, address, grant) = (&broker.site, broker.address(), alpha.grant_header());
    let line = "PUT /v1/records/alpha/n1";
    let answer = site.request(&alpha, address, line, Some(&grant), &vec![b'x'; MAX_BODY + 1]).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.error().message.contains("larger than 98304 bytes"));
    // Chunked: nobody said beforehand how much it would be.
    let mut chunked = format!(
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\npodspan-grant: {grant}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..7 {
        chunked.extend_from_slice(b"4000\r\n");
        chunked.extend_from_slice(&[b'x'; 0x4000]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(site.raw(&alpha, address, &chunked).await.status, 413);
    let answer = site.request(&alpha, address, line, Some(&grant), b"{\"grant\":").await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(site.request(&alpha, address, line, Some(&"A".repeat(200_000)), b"").await.status, 431);
    let many: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    let answer = site.raw(&alpha, address, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert_eq!(answer.status, 431, "{answer:?}");
    // Other ways to ask for what is not there.
    for (line, expected) in [
        ("GET /", 404),
        ("GET /v1/records/alpha/n1", 405),
        ("PUT /v1/records/ALPHA/n1", 400),
        ("PUT /v1/records/alpha/n_1", 400),
        ("GET /v1/watch?from=nonsense", 400),
        ("GET /v1/watch?form=ab:1", 400),
    ] {
        let answer = site.request(&alpha, address, line, Some(&grant), b"{}").await;
        assert_eq!(answer.status, expected, "{line}: {answer:?}");
        assert!(!answer.error().message.is_empty());
    }
    assert_eq!(broker.metric("podspan_broker_refusals_total{kind=\"body-too-large\"}"), 2.0);
    broker.client(&alpha).put(&alpha.active("n1", 1)).await.expect("it still serves");
}

#[tokio::test]
async fn requests_are_limited_by_cluster() {
    let broker = Running::with(|config| {
        config.limits.requests_per_second = 1;
        config.limits.requests_burst = 3;
    })
    .await;
    let (alpha, beta) = (cluster("alpha", 1), cluster("beta", 2));
    let client = broker.client(&alpha);
    let mut refused = 0;
    for _ in 0..6 {
        match client.list().await {
            Ok(_) => {}
            Err(Error::RateLimited { after }) => {
                assert!((1..=2).contains(&after.as_secs()), "{after:?}");
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(refused >= 2, "{refused}");
    assert_eq!(broker.metric("podspan_broker_rate_limited_total"), f64::from(refused));
    broker.client(&beta).list().await.expect("another cluster is not concerned");
    let answer = broker
        .site
        .request(&alpha, broker.address(), "GET /v1/records", Some(&alpha.grant_header()), b"")
        .await;
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
}

#[tokio::test]
async fn failing_grants_are_limited_by_address_and_good_ones_go_on() {
    let broker = Running::with(|config| {
        config.limits.failures_per_second = 1;
        config.limits.failures_burst = 3;
    })
    .await;
    let alpha = cluster("alpha", 1);
    // One connection, kept open: what is tested here is the header, not the handshake.
    let good = broker.client(&alpha);
    good.list().await.unwrap();
    let bad = Client::new(broker.site.client_config(
        &Cluster { key: ClusterKey::from_seed(&[55; 32]), ..alpha.clone() },
        &[broker.address()],
    ))
    .unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..8 {
        outcomes.push(bad.list().await.unwrap_err());
    }
    assert!(outcomes.iter().any(|error| matches!(error, Error::Refused { status: 403, .. })));
    good.list().await.expect("a known grant on a standing connection is not concerned");
}

#[tokio::test]
async fn limits_on_records_and_watchers() {
    let broker = Running::with(|config| {
        config.limits.records = 3;
        config.limits.records_per_cluster = 2;
        config.limits.watchers_per_cluster = 1;
    })
    .await;
    let (alpha, beta) = (cluster("alpha", 1), cluster("beta", 2));
    let (a, b) = (broker.client(&alpha), broker.client(&beta));
    a.put(&alpha.active("n1", 1)).await.unwrap();
    a.put(&alpha.active("n2", 1)).await.unwrap();
    let error = a.put(&alpha.active("n3", 1)).await.unwrap_err();
    assert_eq!(status(&error), 507);
    assert!(error.to_string().contains("limits.records-per-cluster"), "{error}");
    b.put(&beta.active("n1", 1)).await.unwrap();
    let error = b.put(&beta.active("n2", 1)).await.unwrap_err();
    assert!(error.to_string().contains("`limits.records`"), "{error}");
    a.put(&alpha.active("n1", 2)).await.expect("what is there can still be replaced");

    let mut first = a.watch(None);
    to_bookmark(&mut first).await;
    let mut second = a.watch(None);
    let event = next(&mut second).await;
    assert!(
        matches!(event, podspan_broker::client::Event::Disconnected { why: Error::RateLimited { .. }, .. }),
        "{event:?}"
    );
    let mut other = b.watch(None);
    to_bookmark(&mut other).await;
    drop((first, second));
    // The place is free again once the connection is seen to be gone.
    until("a watcher is gone", || broker.metric("podspan_broker_watchers") < 2.0).await;
    let mut third = a.watch(None);
    to_bookmark(&mut third).await;
}
