//! `podspan cluster grant`.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Instant, SystemTime};

use podspan_wire::{Bundle, Trust, UnixTime, VerifiedGrant};
use support::Bench;

const ALPHA: &str =
    "cluster grant alpha --dir prod --pod-cidr 10.1.0.0/16,fd00:10:1::/48 --service-cidr 10.101.0.0/16";

/// The bundle, its grant verified for now by a trust that comes from the cluster set's public file.
fn bundle(bench: &Bench, name: &str) -> (Bundle, VerifiedGrant) {
    let (bundle, _) = Bundle::parse(&bench.read(name)).unwrap();
    let set: serde_json::Value = serde_json::from_str(&bench.read("prod/clusterset.json")).unwrap();
    let trust = Trust::new(set["clusterSet"].as_str().unwrap().parse().unwrap());
    let grant = trust.verify_grant(&bundle.grant, UnixTime::from(SystemTime::now())).unwrap();
    (bundle, grant)
}

#[test]
fn a_grant_makes_a_bundle_that_verifies() {
    let bench = Bench::with_cluster_set();
    let told = bench.ok(ALPHA);
    let (made, grant) = bundle(&bench, "alpha.bundle");
    assert_eq!(bench.mode("alpha.bundle"), 0o600);
    assert_eq!((grant.cluster.as_str(), grant.serial), ("alpha", 1));
    assert_eq!(grant.pod_cidrs.to_string(), "10.1.0.0/16, fd00:10:1::/48");
    assert_eq!(grant.service_cidrs.to_string(), "10.101.0.0/16");
    assert_eq!(made.brokers, ["https://127.0.0.1:7443", "https://broker.example.com:8443"]);
    let days = grant.not_after.since(UnixTime::from(SystemTime::now())).as_secs().div_ceil(86_400);
    assert_eq!(days, 365);
    let set = bench.read("prod/clusterset.json");
    assert!(set.contains(&grant.cluster_key.to_string()));
    let secret = made.cluster_key.to_secret_text();
    assert!(!told.contains(secret.as_str()) && !set.contains(secret.as_str()), "the cluster's key got out");
    let root = bench.read("prod/root.key");
    assert!(!told.contains(root.lines().last().unwrap()), "the root key got out");
    assert!(
        !bench.read("alpha.bundle").contains(root.lines().last().unwrap()),
        "the root key is in the bundle"
    );
}

#[test]
fn days_and_out_are_honoured() {
    let bench = Bench::with_cluster_set();
    fs::create_dir(bench.path("out")).unwrap();
    bench.ok("cluster grant a --dir prod --pod-cidr 10.1.0.0/16 --days 1 --out out/x");
    let (_, grant) = bundle(&bench, "out/x");
    assert!(grant.not_after.since(UnixTime::from(SystemTime::now())).as_secs() <= 86_400);
    assert!(!bench.path("a.bundle").exists());
    for days in ["0", "3651", "-1", "x"] {
        let ran = bench.run(&format!("cluster grant b --dir prod --pod-cidr 10.2.0.0/16 --days={days}"));
        assert_eq!(ran.code, 2, "{days}");
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once_and_nothing_changes() {
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    let (files, set, made) = (bench.files(), bench.read("prod/clusterset.json"), bench.read("alpha.bundle"));
    let error = bench.fails(
        "cluster grant alpha --dir prod --pod-cidr 10.5.0.1/16,x,127.0.0.0/8,10.6.0.0/16,10.6.1.0/24 \
         --service-cidr 10.6.0.0/17,10.7.0.0/16,10.7.0.0/16",
    );
    for part in [
        "9 things are wrong",
        "cluster alpha has grant 1 already",
        "--renew",
        "--pod-cidr: 10.5.0.1/16 has host bits set: did you mean 10.5.0.0/16?",
        "--pod-cidr: \"x\" is not a CIDR",
        "the pod CIDR 127.0.0.0/8 holds loopback addresses",
        "the pod CIDR 10.6.0.0/16 and the pod CIDR 10.6.1.0/24 overlap",
        "the pod CIDR 10.6.0.0/16 and the service CIDR 10.6.0.0/17 overlap",
        "the service CIDR 10.7.0.0/16 is given twice",
        "alpha.bundle exists already",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(
        (bench.files(), bench.read("prod/clusterset.json"), bench.read("alpha.bundle")),
        (files, set, made)
    );
    assert!(bench.fails("cluster grant A --dir prod --pod-cidr 10.9.0.0/16").contains("not a DNS name"));
    assert!(bench.fails("cluster grant b --dir prod").contains("no pod CIDR"));
    assert!(bench.fails("cluster grant ../b --dir prod --pod-cidr 10.9.0.0/16").contains("not a DNS name"));
    let many: Vec<String> = (0..65).map(|i| format!("10.200.{i}.0/24")).collect();
    let error = bench.fails(&format!("cluster grant b --dir prod --pod-cidr {}", many.join(",")));
    assert!(error.contains("at most 64"), "{error}");
}

#[test]
fn an_overlap_names_both_clusters() {
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    for (cidrs, part) in [
        (
            "--pod-cidr 10.1.128.0/17",
            "the pod CIDR 10.1.128.0/17 overlaps the pod CIDR 10.1.0.0/16 of cluster alpha",
        ),
        (
            "--pod-cidr 10.0.0.0/8",
            "the pod CIDR 10.0.0.0/8 overlaps the service CIDR 10.101.0.0/16 of cluster alpha",
        ),
        (
            "--pod-cidr 10.2.0.0/16 --service-cidr fd00:10:1::/64",
            "the service CIDR fd00:10:1::/64 overlaps the pod CIDR fd00:10:1::/48 of cluster alpha",
        ),
    ] {
        let error = bench.fails(&format!("cluster grant beta --dir prod {cidrs}"));
        assert!(error.contains("\"beta\"") && error.contains(part), "{error}");
    }
    assert!(!bench.path("beta.bundle").exists());
    bench.ok("cluster grant beta --dir prod --pod-cidr 10.2.0.0/16");
}

#[test]
fn a_bundle_is_overwritten_only_if_asked() {
    let bench = Bench::with_cluster_set();
    fs::write(bench.path("alpha.bundle"), "precious").unwrap();
    assert!(bench.fails(ALPHA).contains("--overwrite"));
    assert_eq!(bench.read("alpha.bundle"), "precious");
    assert!(!bench.read("prod/clusterset.json").contains("alpha"), "no grant without its bundle");
    bench.ok(&format!("{ALPHA} --overwrite"));
    bundle(&bench, "alpha.bundle");
    assert_eq!(bench.mode("alpha.bundle"), 0o600);
    assert!(
        bench.fails("cluster grant b --dir prod --pod-cidr 10.2.0.0/16 --out prod").contains("directory")
    );
    assert!(
        bench.fails("cluster grant b --dir prod --pod-cidr 10.2.0.0/16 --out no/b").contains("mkdir -p no")
    );
}

#[test]
fn renewing_raises_the_serial_and_keeps_key_and_cidrs() {
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    let (first, first_grant) = bundle(&bench, "alpha.bundle");
    bench.ok("cluster grant alpha --dir prod --renew --bundle alpha.bundle --out second.bundle --days 30");
    let (second, second_grant) = bundle(&bench, "second.bundle");
    assert_eq!((first_grant.serial, second_grant.serial), (1, 2));
    assert_eq!(first.cluster_key.public(), second.cluster_key.public());
    assert_eq!(first_grant.cidrs(), second_grant.cidrs());
    assert!(second_grant.not_after < first_grant.not_after);

    let told =
        bench.ok("cluster grant alpha --dir prod --renew --new-key --overwrite --pod-cidr 10.1.0.0/16");
    let (third, third_grant) = bundle(&bench, "alpha.bundle");
    assert_eq!(third_grant.serial, 3);
    assert_ne!(third.cluster_key.public(), second.cluster_key.public());
    assert_eq!(third_grant.pod_cidrs.to_string(), "10.1.0.0/16");
    assert_eq!(third_grant.service_cidrs, first_grant.service_cidrs);
    assert!(told.contains("No longer granted: fd00:10:1::/48"), "{told}");

    // The key of the second bundle is a former one now.
    let error = bench.fails("cluster grant alpha --dir prod --renew --bundle second.bundle --out x");
    assert!(error.contains("not the one that cluster alpha has now"), "{error}");
    // What was given up is free for others.
    bench.ok("cluster grant beta --dir prod --pod-cidr fd00:10:1::/48");
}

#[test]
fn renewing_needs_the_key_and_a_grant() {
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    bench.ok("cluster grant beta --dir prod --pod-cidr 10.2.0.0/16");
    bench.ok("clusterset create --dir other --name other --broker b");
    bench.ok("cluster grant alpha --dir other --pod-cidr 10.1.0.0/16 --out other.bundle");
    let error = bench.fails("cluster grant alpha --dir prod --renew --out x");
    assert!(error.contains("--bundle") && error.contains("--new-key"), "{error}");
    let renew =
        |file: &str| bench.fails(&format!("cluster grant alpha --dir prod --renew --out x --bundle {file}"));
    assert!(renew("beta.bundle").contains("is the bundle of cluster beta"));
    assert!(renew("other.bundle").contains("other-cluster-set"));
    assert!(renew("none.bundle").contains("none.bundle"));
    fs::write(bench.path("bad.bundle"), "{\"clusterKey\": \"hunter2\"}").unwrap();
    fs::set_permissions(bench.path("bad.bundle"), Permissions::from_mode(0o600)).unwrap();
    let error = renew("bad.bundle");
    assert!(error.contains("not a bundle file") && !error.contains("hunter2"), "{error}");
    fs::set_permissions(bench.path("alpha.bundle"), Permissions::from_mode(0o644)).unwrap();
    assert!(renew("alpha.bundle").contains("chmod 600"));
    let error = bench.fails("cluster grant gamma --dir prod --renew --new-key");
    assert!(error.contains("there are alpha, beta"), "{error}");
    assert_eq!(bench.run("cluster grant gamma --dir prod --pod-cidr 10.3.0.0/16 --new-key").code, 2);
    assert_eq!(bench.run("cluster grant alpha --dir prod --renew --new-key --bundle alpha.bundle").code, 2);
    assert!(!bench.path("x").exists());
}

#[test]
fn the_root_key_may_be_elsewhere_and_must_be_the_right_one() {
    let bench = Bench::with_cluster_set();
    bench.ok("clusterset create --dir other --name other --broker b");
    fs::rename(bench.path("prod/root.key"), bench.path("stick.key")).unwrap();
    assert!(bench.fails(ALPHA).contains("--root-key"));
    assert!(bench.fails(&format!("{ALPHA} --root-key other/root.key")).contains("another cluster set"));
    assert!(bench.fails(&format!("{ALPHA} --root-key other/clusterset.json")).contains("chmod 600"));
    fs::write(bench.path("bad.key"), "not a key, but secret").unwrap();
    fs::set_permissions(bench.path("bad.key"), Permissions::from_mode(0o600)).unwrap();
    let error = bench.fails(&format!("{ALPHA} --root-key bad.key"));
    assert!(error.contains("bad.key") && !error.contains("but secret"), "{error}");
    assert!(!bench.path("alpha.bundle").exists());
    bench.ok(&format!("{ALPHA} --root-key stick.key"));
    bundle(&bench, "alpha.bundle");
}

#[test]
fn grants_at_the_same_time_are_all_noted() {
    let bench = Bench::with_cluster_set();
    let children: Vec<_> = (0..8)
        .map(|i| {
            bench
                .command(&format!("cluster grant c{i} --dir prod --pod-cidr 10.{i}.0.0/16"))
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let set: serde_json::Value = serde_json::from_str(&bench.read("prod/clusterset.json")).unwrap();
    let names: Vec<&str> = set["grants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|given| given["grant"]["cluster"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"]);
    assert!(bench.files().iter().all(|name| !name.contains(".podspan-")), "{:?}", bench.files());
}

/// Killed at any moment, what is there is whole: the cluster set reads, the bundle parses and is of a
/// grant that the cluster set knows.
#[test]
fn a_kill_at_any_moment_leaves_nothing_half_written() {
    const ROUNDS: u32 = 40;
    let again = "cluster grant alpha --dir prod --renew --new-key --overwrite";
    let bench = Bench::with_cluster_set();
    bench.ok(ALPHA);
    let start = Instant::now();
    bench.ok(again);
    let whole = start.elapsed();
    let mut killed = 0;
    for round in 0..ROUNDS {
        let mut child = bench.command(again).stdout(Stdio::null()).spawn().unwrap();
        // From the very start to well after the end of the run.
        std::thread::sleep(whole * round * 3 / (ROUNDS * 2));
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().code().is_none());
        let shown: serde_json::Value =
            serde_json::from_str(&bench.ok("clusterset show --dir prod --output json")).unwrap();
        let (_, grant) = bundle(&bench, "alpha.bundle");
        assert!(grant.serial <= shown["grants"][0]["serial"].as_u64().unwrap(), "round {round}");
        assert_eq!(bench.mode("alpha.bundle"), 0o600);
    }
    assert!(killed > 0, "no run was cut short");
    bench.ok(again);
}
