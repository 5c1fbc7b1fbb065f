//! `podspan clusterset`.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podspan_wire::{PublicKey, RootKey};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use support::Bench;

fn ca(bench: &Bench) -> String {
    let set: serde_json::Value = serde_json::from_str(&bench.read("prod/clusterset.json")).unwrap();
    set["brokerCa"].as_str().unwrap().to_owned()
}

/// Verifies the broker's certificate as an agent would that dials `host` at `time`.
fn verify(bench: &Bench, host: &str, time: SystemTime) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca(bench).as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let server = CertificateDer::from_pem_file(bench.path("prod/broker/broker.crt")).unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let time = UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    verifier.verify_server_cert(&server, &[], &name, &[], time).map(drop).map_err(|e| e.to_string())
}

/// The broker's key belongs to its certificate, by rustls.
fn key_matches(bench: &Bench) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificate = CertificateDer::from_pem_file(bench.path("prod/broker/broker.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(bench.path("prod/broker/broker.key")).unwrap();
    rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .is_ok()
}

fn secrets(bench: &Bench) -> Vec<String> {
    ["prod/root.key", "prod/broker-ca.key", "prod/broker/broker.key"]
        .iter()
        .filter(|name| bench.path(name).exists())
        .flat_map(|name| {
            let text = bench.read(name);
            let lines: Vec<String> = text
                .lines()
                .filter(|l| !l.starts_with('#') && !l.starts_with('-'))
                .map(str::to_owned)
                .collect();
            lines
        })
        .filter(|line| line.len() > 16)
        .collect()
}

#[test]
fn create_makes_everything_with_the_right_modes() {
    let bench = Bench::new();
    let told = bench.ok("clusterset create --dir prod --name prod --broker 192.0.2.10,[2001:db8::10]:8443");
    assert_eq!(
        bench.files(),
        [
            "prod",
            "prod/broker",
            "prod/broker-ca.key",
            "prod/broker/broker.crt",
            "prod/broker/broker.key",
            "prod/broker/broker.toml",
            "prod/clusterset.json",
            "prod/root.key"
        ]
    );
    for (name, mode) in [
        ("prod", 0o700),
        ("prod/broker", 0o700),
        ("prod/root.key", 0o600),
        ("prod/broker-ca.key", 0o600),
        ("prod/broker/broker.key", 0o600),
    ] {
        assert_eq!(bench.mode(name), mode, "{name}");
    }
    let set: serde_json::Value = serde_json::from_str(&bench.read("prod/clusterset.json")).unwrap();
    let id: PublicKey = set["clusterSet"].as_str().unwrap().parse().unwrap();
    let root = bench.read("prod/root.key");
    assert!(root.starts_with("# SECRET"), "{root}");
    let root = RootKey::from_secret_text(root.lines().last().unwrap()).unwrap();
    assert_eq!(root.public(), id);
    let config: toml::Table = bench.read("prod/broker/broker.toml").parse().unwrap();
    assert_eq!(config["cluster-set"].as_str().unwrap(), id.to_string());
    let listen: Vec<&str> =
        config["listen"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    assert_eq!(listen, ["[::]:7443", "[::]:8443"]);
    let keys: Vec<&str> = config.keys().map(String::as_str).collect();
    assert_eq!(keys, ["certificate", "cluster-set", "data", "lease-seconds", "listen", "private-key"]);
    let secrets = secrets(&bench);
    assert!(secrets.len() >= 3, "{}", secrets.len());
    for secret in secrets {
        assert!(!told.contains(&secret), "a secret was printed");
        assert!(!bench.read("prod/clusterset.json").contains(&secret), "a secret is in clusterset.json");
    }
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let bench = Bench::new();
    let binary = env!("CARGO_BIN_EXE_podspan");
    for (umask, dir) in [("000", "a"), ("077", "b")] {
        let script =
            format!("umask {umask}; exec {binary} clusterset create --dir {dir} --name {dir} --broker b");
        let status = std::process::Command::new("sh")
            .args(["-c", &script])
            .current_dir(bench.path(""))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(bench.mode(dir), 0o700);
        assert_eq!(bench.mode(&format!("{dir}/root.key")), 0o600);
        assert_eq!(bench.mode(&format!("{dir}/clusterset.json")), 0o644);
    }
}

#[test]
fn listen_is_taken_as_given() {
    let bench = Bench::new();
    bench.ok(
        "clusterset create --dir prod --name prod --broker b --listen 127.0.0.1:9000 --listen [::1]:9001",
    );
    assert!(bench.read("prod/broker/broker.toml").contains(r#"listen = ["127.0.0.1:9000", "[::1]:9001"]"#));
}

#[test]
fn create_never_overwrites() {
    let bench = Bench::with_cluster_set();
    let before: Vec<String> = bench.files();
    let root = bench.read("prod/root.key");
    let error = bench.fails("clusterset create --dir prod --name prod --broker b");
    assert!(error.contains("never overwritten") && error.contains("--dir"), "{error}");
    assert_eq!((bench.files(), bench.read("prod/root.key")), (before, root));

    fs::create_dir(bench.path("full")).unwrap();
    fs::write(bench.path("full/x"), "x").unwrap();
    assert!(bench.fails("clusterset create --dir full --name prod --broker b").contains("not empty"));
    assert!(bench.fails("clusterset create --dir full/x --name prod --broker b").contains("full/x"));
    assert!(bench.fails("clusterset create --dir no/where --name prod --broker b").contains("mkdir -p no"));
    // An empty directory is as good as none.
    fs::create_dir(bench.path("empty")).unwrap();
    bench.ok("clusterset create --dir empty --name prod --broker b");
    assert_eq!(bench.mode("empty"), 0o700);
}

#[test]
fn create_tells_all_that_is_wrong_at_once_and_makes_nothing() {
    let bench = Bench::new();
    let error =
        bench.fails("clusterset create --dir prod --name P --broker a_b,b,b --listen x --listen 1.2.3.4:0");
    for part in ["5 things", "\"P\"", "\"a_b\"", "named twice", "--listen \"x\"", "--listen \"1.2.3.4:0\""] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(bench.files(), Vec::<String>::new());
}

#[test]
fn the_certificate_verifies_for_every_broker_and_nobody_else() {
    let bench = Bench::with_cluster_set();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for host in ["127.0.0.1", "broker.example.com"] {
        verify(&bench, host, now).unwrap();
        verify(&bench, host, now - 2 * hour).unwrap();
        verify(&bench, host, now + 729 * 24 * hour).unwrap();
        assert!(verify(&bench, host, now - 25 * hour).is_err());
        assert!(verify(&bench, host, now + 731 * 24 * hour).is_err());
    }
    for host in ["127.0.0.2", "::1", "example.com", "other.example.com"] {
        assert!(verify(&bench, host, now).is_err(), "{host}");
    }
    assert!(key_matches(&bench));
}

#[test]
fn broker_cert_renews() {
    let bench = Bench::with_cluster_set();
    let (certificate, key) = (bench.read("prod/broker/broker.crt"), bench.read("prod/broker/broker.key"));
    let config = bench.read("prod/broker/broker.toml");
    let set = bench.read("prod/clusterset.json");
    let told = bench.ok("clusterset broker-cert --dir prod");
    assert!(told.contains("in 730 days"), "{told}");
    assert_ne!(bench.read("prod/broker/broker.crt"), certificate);
    assert_eq!(bench.read("prod/broker/broker.key"), key, "the key stays");
    assert_eq!(bench.read("prod/broker/broker.toml"), config);
    assert_eq!(bench.read("prod/clusterset.json"), set);
    verify(&bench, "127.0.0.1", SystemTime::now()).unwrap();

    // The broker's directory has gone to the broker; the brokers have other addresses.
    fs::remove_dir_all(bench.path("prod/broker")).unwrap();
    bench.ok("clusterset broker-cert --dir prod --broker 198.51.100.7");
    assert_ne!(bench.read("prod/broker/broker.key"), key);
    assert_eq!(bench.mode("prod/broker/broker.key"), 0o600);
    assert!(bench.path("prod/broker/broker.toml").exists());
    assert!(key_matches(&bench));
    verify(&bench, "198.51.100.7", SystemTime::now()).unwrap();
    assert!(verify(&bench, "127.0.0.1", SystemTime::now()).is_err());
    assert!(bench.read("prod/clusterset.json").contains("https://198.51.100.7:7443"));
}

#[test]
fn broker_cert_refuses_another_sets_ca_key() {
    let bench = Bench::with_cluster_set();
    bench.ok("clusterset create --dir other --name other --broker b");
    fs::copy(bench.path("other/broker-ca.key"), bench.path("prod/broker-ca.key")).unwrap();
    let before = bench.read("prod/broker/broker.crt");
    assert!(bench.fails("clusterset broker-cert --dir prod").contains("different cluster sets"));
    assert_eq!(bench.read("prod/broker/broker.crt"), before);
    fs::set_permissions(bench.path("prod/broker-ca.key"), Permissions::from_mode(0o640)).unwrap();
    assert!(bench.fails("clusterset broker-cert --dir prod").contains("chmod 600"));
    fs::remove_file(bench.path("prod/broker-ca.key")).unwrap();
    assert!(bench.fails("clusterset broker-cert --dir prod").contains("broker-ca.key"));
}

#[test]
fn show_tells_what_was_granted() {
    let bench = Bench::with_cluster_set();
    assert!(bench.ok("clusterset show --dir prod").contains("No cluster has a grant yet"));
    bench.ok("cluster grant beta --dir prod --pod-cidr 10.2.0.0/16 --service-cidr 10.102.0.0/16");
    bench.ok(
        "cluster grant alpha --dir prod --pod-cidr 10.1.0.0/16,fd00:10:1::/48 --service-cidr 10.101.0.0/16",
    );
    let page = bench.ok("clusterset show --dir prod");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .skip_while(|line| !line.starts_with("CLUSTER"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["CLUSTER", "GRANT", "ENDS", "PODS", "SERVICES"]);
    assert_eq!(
        (rows[1][0], rows[1][1], &rows[1][3..]),
        ("alpha", "1", &["10.1.0.0/16", "10.101.0.0/16"][..])
    );
    assert_eq!(rows[2], ["fd00:10:1::/48"]);
    assert_eq!((rows[3][0], &rows[3][3..]), ("beta", &["10.2.0.0/16", "10.102.0.0/16"][..]));
    let shown: serde_json::Value =
        serde_json::from_str(&bench.ok("clusterset show --dir prod --output json")).unwrap();
    assert_eq!(shown["grants"][0]["cluster"], "alpha");
    assert_eq!(shown["grants"][0]["podCidrs"], serde_json::json!(["10.1.0.0/16", "fd00:10:1::/48"]));
    assert_eq!(
        shown["brokers"],
        serde_json::json!(["https://127.0.0.1:7443", "https://broker.example.com:8443"])
    );
}

#[test]
fn a_damaged_cluster_set_is_refused() {
    let bench = Bench::with_cluster_set();
    bench.ok("cluster grant alpha --dir prod --pod-cidr 10.1.0.0/16");
    let good = bench.read("prod/clusterset.json");
    for (from, to, expected) in [
        // What was not signed by the root must not be believed.
        ("10.1.0.0/16", "10.0.0.0/8", "not signed by the root"),
        ("\"serial\": 1", "\"serial\": 7", "not signed by the root"),
        ("cluster set v1", "cluster set v2", "another version"),
        ("https://127.0.0.1:7443", "http://127.0.0.1:7443", "not a broker address"),
        ("\"name\": \"prod\"", "\"nome\": \"prod\"", "unknown field"),
        ("}", "", "line"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(bench.path("prod/clusterset.json"), good.replacen(from, to, 1)).unwrap();
        let error = bench.fails("clusterset show --dir prod");
        assert!(error.contains(expected) && error.contains("prod/clusterset.json"), "{error}");
    }
    fs::remove_file(bench.path("prod/clusterset.json")).unwrap();
    assert!(bench.fails("clusterset show --dir prod").contains("not the directory of a cluster set"));
    assert!(bench.fails("clusterset show --dir nowhere").contains("no directory nowhere"));
}
