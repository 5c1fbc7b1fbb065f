//! Publishing against a real broker in this process, over loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podspan_agent::membership::Membership;
use podspan_agent::publish::{Announcement, Published, Publisher, Seen};
use podspan_agent::state::{Known, StateDir};
use podspan_broker::client::{Client, ClientConfig, Event};
use podspan_broker::server::{Broker, Config, Limits};
use podspan_wire::{
    Bundle, CidrSet, ClusterKey, ClusterSetId, Grant, Lane, LaneKey, NodeId, RecordState, RootKey, Trust,
    UnixTime, VerifiedGrant, Version,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The shortest lease with which a test has time to look: renewed every second.
const LEASE: Duration = Duration::from_secs(3);

fn now() -> UnixTime {
    SystemTime::now().into()
}

/// A broker, and the bundle of the one cluster that uses it.
struct World {
    directory: TempDir,
    _broker: Broker,
    bundle: Arc<Bundle>,
    grant: VerifiedGrant,
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = RootKey::from_seed(&[1; 32]);
        let cluster_set = ClusterSetId::new(root.public());
        let cluster_key = ClusterKey::from_seed(&[2; 32]);

        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let file = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let config = Config {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            cluster_set,
            certificate: file("broker.crt", certificate.pem()),
            private_key: file("broker.key", key.serialize_pem()),
            data: directory.path().join("data"),
            lease: LEASE,
            health_listen: None,
            limits: Limits::default(),
        };
        let broker = Broker::start(&config).await.unwrap();

        let grant = Grant {
            cluster_set,
            cluster: "alpha".parse().unwrap(),
            cluster_key: cluster_key.public(),
            pod_cidrs: [pods()].into_iter().collect(),
            service_cidrs: CidrSet::default(),
            serial: 1,
            not_after: now().after(Duration::from_secs(86_400)),
            extensions: Default::default(),
        };
        let bundle = Bundle {
            cluster_set,
            grant: grant.sign(&root),
            cluster_key,
            brokers: vec![format!("https://{}", broker.addresses()[0])],
            broker_ca: authority.pem(),
        };
        let (bundle, grant) = Bundle::parse(&bundle.to_secret_text()).unwrap();
        Self { directory, _broker: broker, bundle: Arc::new(bundle), grant }
    }

    fn path(&self, agent: &str) -> std::path::PathBuf {
        self.directory.path().join(agent)
    }

    async fn stored(&self) -> (Version, RecordState) {
        let client = Client::new(ClientConfig::from(&*self.bundle)).unwrap();
        let list = client.list().await.unwrap();
        let verified = Trust::new(self.bundle.cluster_set).verify(&list.entries[0].signed, now()).unwrap();
        (verified.record().version, verified.record().state)
    }
}

fn pods() -> podspan_wire::Cidr {
    "10.1.0.0/16".parse().unwrap()
}

/// What of an agent publishes: its own state directory, its own watch, the name `node-1`.
struct Agent {
    published: watch::Receiver<Published>,
    farewell: Publisher,
    tasks: Vec<JoinHandle<()>>,
    announcement: Announcement,
    _announce: watch::Sender<Option<Announcement>>,
}

impl Agent {
    fn start(world: &World, state: &Path, key: u8) -> Self {
        let client = Arc::new(Client::new(ClientConfig::from(&*world.bundle)).unwrap());
        let own = NodeId { cluster: "alpha".parse().unwrap(), node: "node-1".parse().unwrap() };
        let trust = Trust::new(world.bundle.cluster_set);
        let mut membership = Membership::new(trust, own, &world.grant, Known::default(), now());
        let mut events = client.watch(None);
        let (tell_seen, seen) = watch::channel(Seen::default());
        let watching = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let Event::Event(event) = event {
                    membership.handle(event, now());
                    let latest =
                        Seen { highest: membership.own_high_water(), stored: membership.own_stored() };
                    tell_seen.send_replace(latest);
                }
            }
        });
        let announcement = Announcement {
            node: "node-1".parse().unwrap(),
            lanes: vec![Lane { key: LaneKey::from_bytes([key; 32]), port: 51840 }],
            endpoints: vec!["192.0.2.1".parse().unwrap()],
            pod_cidrs: [pods()].into_iter().collect(),
            service_cidrs: CidrSet::default(),
            gateway: true,
        };
        let (announce, announcements) = watch::channel(Some(announcement.clone()));
        let state = Arc::new(StateDir::open(state).unwrap());
        let (sender, published) = watch::channel(Published::default());
        let publisher = |published| Publisher {
            client: client.clone(),
            bundle: world.bundle.clone(),
            cluster: world.grant.cluster.clone(),
            state: state.clone(),
            seen: seen.clone(),
            published,
        };
        let farewell = publisher(watch::channel(Published::default()).0);
        let publishing = tokio::spawn(publisher(sender).run(announcements));
        Self { published, farewell, tasks: vec![publishing, watching], announcement, _announce: announce }
    }

    /// Waits for `wanted`, at most ten seconds.
    async fn wait(&mut self, what: &str, wanted: impl FnMut(&Published) -> bool) -> Published {
        let waited = timeout(Duration::from_secs(10), self.published.wait_for(wanted)).await;
        waited.unwrap_or_else(|_| panic!("{what} did not come")).unwrap().clone()
    }

    /// Waits until a version above `version` was taken.
    async fn taken(&mut self, version: Option<Version>) -> Version {
        let higher = |p: &Published| p.problem.is_none() && p.version > version;
        self.wait("an acknowledgement", higher).await.version.unwrap()
    }

    async fn withdraw(self) {
        for task in &self.tasks {
            task.abort();
        }
        let signed = self.farewell.sign(&self.announcement, RecordState::Withdrawn).unwrap();
        self.farewell.client.withdraw(&signed.signed).await.unwrap();
    }

    async fn crash(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

#[tokio::test]
async fn a_node_that_lost_its_state_is_back_at_once() {
    let world = World::start().await;
    let mut first = Agent::start(&world, &world.path("a"), 1);
    let mut version = first.taken(None).await;
    first.crash().await;
    // As after an ordinary restart, with nothing left on the disk, and with an old copy of it put back.
    let copy = std::fs::read(world.path("a").join("version.json")).unwrap();
    for what in ["restart", "lost", "copy"] {
        match what {
            "lost" => std::fs::remove_dir_all(world.path("a")).unwrap(),
            "copy" => std::fs::write(world.path("a").join("version.json"), &copy).unwrap(),
            _ => {}
        }
        let begun = std::time::Instant::now();
        let mut again = Agent::start(&world, &world.path("a"), 2);
        let next = again.taken(None).await;
        assert!(next > version, "{what}: {next} after {version}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{what}: {:?}", begun.elapsed());
        assert_eq!(world.stored().await.0, next, "{what}");
        version = next;
        again.crash().await;
    }
}

#[tokio::test]
async fn two_agents_of_one_name_do_not_fight() {
    let world = World::start().await;
    let mut first = Agent::start(&world, &world.path("a"), 1);
    let before = first.taken(None).await;
    let mut second = Agent::start(&world, &world.path("b"), 2);
    let taken = second.taken(Some(before)).await;

    let told = first.wait("the problem", |published| published.problem.is_some()).await.problem.unwrap();
    assert!(told.contains("another agent") && told.contains("another name"), "{told}");
    // Four renewals long the name stays with the second.
    for _ in 0..8 {
        sleep(Duration::from_millis(500)).await;
        assert_eq!(world.stored().await, (taken, RecordState::Active));
    }
    assert!(first.published.borrow().problem.is_some(), "it is told for as long as it lasts");

    // The second ends in order: the name is free.
    second.withdraw().await;
    let back = first.taken(Some(taken)).await;
    assert_eq!(world.stored().await, (back, RecordState::Active));

    // And the other way: whoever has it crashes, and its lease lapses.
    let mut third = Agent::start(&world, &world.path("c"), 3);
    let taken = third.taken(Some(back)).await;
    first.wait("the problem", |published| published.problem.is_some()).await;
    third.crash().await;
    first.taken(Some(taken)).await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_recovered_from() {
    let world = World::start().await;
    std::fs::create_dir_all(world.path("a").join(".version.json.tmp")).unwrap();
    let mut agent = Agent::start(&world, &world.path("a"), 1);
    let told = agent.wait("the problem", |published| published.problem.is_some()).await.problem.unwrap();
    assert!(told.contains("version.json"), "{told}");
    std::fs::remove_dir(world.path("a").join(".version.json.tmp")).unwrap();
    agent.taken(None).await;
}
