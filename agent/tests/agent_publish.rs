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

/// Brokers, and the bundle of the one cluster that uses them.
struct World {
    directory: TempDir,
    brokers: Vec<Option<Broker>>,
    configs: Vec<Config>,
    bundle: Arc<Bundle>,
    grant: VerifiedGrant,
}

impl World {
    async fn start() -> Self {
        Self::with(1).await
    }

    async fn with(count: usize) -> Self {
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
        let (certificate, private_key) =
            (file("broker.crt", certificate.pem()), file("broker.key", key.serialize_pem()));
        let (mut brokers, mut configs) = (Vec::new(), Vec::new());
        for number in 0..count {
            let mut config = Config {
                listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
                cluster_set,
                certificate: certificate.clone(),
                private_key: private_key.clone(),
                data: directory.path().join(format!("data-{number}")),
                lease: LEASE,
                health_listen: None,
                limits: Limits::default(),
            };
            let broker = Broker::start(&config).await.unwrap();
            // The same place when it is started again.
            config.listen = broker.addresses().to_vec();
            brokers.push(Some(broker));
            configs.push(config);
        }

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
            brokers: configs.iter().map(|config| format!("https://{}", config.listen[0])).collect(),
            broker_ca: authority.pem(),
        };
        let (bundle, grant) = Bundle::parse(&bundle.to_secret_text()).unwrap();
        Self { directory, brokers, configs, bundle: Arc::new(bundle), grant }
    }

    fn path(&self, agent: &str) -> std::path::PathBuf {
        self.directory.path().join(agent)
    }

    async fn stored(&self) -> (Version, RecordState) {
        self.stored_at(0).await.unwrap()
    }

    /// What one of the brokers has of the node.
    async fn stored_at(&self, broker: usize) -> Option<(Version, RecordState)> {
        let client = Client::new(ClientConfig::from(&*self.bundle)).unwrap().each().remove(broker);
        let list = client.list().await.unwrap();
        let entry = list.entries.first()?;
        let verified = Trust::new(self.bundle.cluster_set).verify(&entry.signed, now()).unwrap();
        Some((verified.record().version, verified.record().state))
    }

    /// Ends one of the brokers; with `lose` its store is gone too.
    async fn stop(&mut self, broker: usize, lose: bool) {
        assert!(self.brokers[broker].take().unwrap().stop(Duration::from_secs(5)).await);
        if lose {
            std::fs::remove_dir_all(&self.configs[broker].data).unwrap();
        }
    }

    async fn start_again(&mut self, broker: usize) {
        self.brokers[broker] = Some(Broker::start(&self.configs[broker]).await.unwrap());
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
        let mut membership = Membership::new(trust, own, &world.grant, Known::default(), false, now());
        let mut events = podspan_agent::brokers::watch(&client);
        let (tell_seen, seen) = watch::channel(Seen::default());
        let watching = tokio::spawn(async move {
            while let Some((broker, event)) = events.next().await {
                if let Event::Event(event) = event {
                    membership.handle(broker, event, now());
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
            gateway_weight: None,
            host_addresses: Vec::new(),
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
        self.farewell.withdraw(&signed).await.unwrap();
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

/// Waits until one of the brokers has a version.
async fn has(world: &World, broker: usize, version: Version) {
    for _ in 0..100 {
        if world.stored_at(broker).await.is_some_and(|(stored, _)| stored == version) {
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
    panic!("broker {broker} never had {version}: {:?}", world.stored_at(broker).await);
}

#[tokio::test]
async fn every_broker_has_the_record_and_one_is_enough() {
    let mut world = World::with(2).await;
    // One is down from the start.
    world.stop(1, true).await;
    let mut agent = Agent::start(&world, &world.path("a"), 1);
    let version = agent.taken(None).await;
    assert_eq!(world.stored_at(0).await.unwrap().0, version);
    let told = agent.wait("what is missing", |p| p.partly.is_some()).await;
    assert!(told.problem.is_none(), "{told:?}");
    assert!(told.partly.unwrap().contains(&world.bundle.brokers[1]));

    // It comes, and has the same record; nothing is left to be told.
    world.start_again(1).await;
    has(&world, 1, version).await;
    agent.wait("all is well", |p| p.partly.is_none() && p.problem.is_none()).await;

    // Then the other one goes: the node is confirmed all the same, and by the same record.
    world.stop(0, false).await;
    let gone = now();
    let later = |p: &Published| p.acknowledged.is_some_and(|at| at > gone.after(Duration::from_secs(3)));
    let told = agent.wait("renewals at the one that is left", later).await;
    assert_eq!((told.problem, told.version), (None, Some(version)));
    assert_eq!(world.stored_at(1).await.unwrap(), (version, RecordState::Active));

    // It comes back without its store.
    std::fs::remove_dir_all(&world.configs[0].data).unwrap();
    world.start_again(0).await;
    has(&world, 0, version).await;

    // A withdrawal goes to both.
    agent.withdraw().await;
    for broker in [0, 1] {
        let (withdrawn, state) = world.stored_at(broker).await.unwrap();
        assert!(withdrawn > version && state == RecordState::Withdrawn, "broker {broker}");
    }
}

#[tokio::test]
async fn a_broker_that_still_has_a_former_life_does_not_silence_the_node() {
    let mut world = World::with(2).await;
    let mut agent = Agent::start(&world, &world.path("a"), 1);
    let version = agent.taken(None).await;
    has(&world, 0, version).await;
    has(&world, 1, version).await;
    agent.crash().await;
    // The node's state is lost, and so is the store of one of the brokers: that one takes anything.
    world.stop(0, true).await;
    world.start_again(0).await;
    std::fs::remove_dir_all(world.path("a")).unwrap();
    let begun = std::time::Instant::now();
    let mut again = Agent::start(&world, &world.path("a"), 2);
    let next = again.taken(Some(version)).await;
    has(&world, 0, next).await;
    has(&world, 1, next).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
