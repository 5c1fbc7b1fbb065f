//! `podspan clusterset create` and `podspan clusterset broker-cert`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use podspan_wire::{ClusterSetId, RootKey, UnixTime};

use crate::args::{BrokerCert, Create};
use crate::broker_address::BrokerAddress;
use crate::clusterset::{self, ClusterSet, Layout, check_name, root_key_text};
use crate::files::{self, Existing, PUBLIC, SECRET};
use crate::human;
use crate::problems::Problems;
use crate::tls;

const DIRECTORY: u32 = 0o700;

/// Makes a cluster set's directory, whole or not at all. Returns what to tell.
pub(crate) fn create(args: &Create) -> Result<String> {
    let now = tls::now()?;
    let mut problems = Problems::default();
    problems.take(check_name(&args.name));
    let brokers = read_brokers(&args.broker, &mut problems);
    let listen = read_listen(&args.listen, &mut problems);
    problems.take(check_free(&args.dir));
    problems.check("the cluster set was not created")?;
    let listen = if listen.is_empty() { default_listen(&brokers) } else { listen };

    let root = RootKey::generate()?;
    let authority = tls::make_authority(&args.name, now)?;
    let set = ClusterSet {
        name: args.name.clone(),
        id: ClusterSetId::new(root.public()),
        created: now,
        brokers,
        broker_ca: authority.certificate.clone(),
        grants: Vec::new(),
    };

    // Everything is made beside its place and then moved there: a crash leaves no half cluster set.
    let parent = files::parent(&args.dir);
    let made = tempfile::Builder::new()
        .prefix(".podspan-")
        .permissions(Permissions::from_mode(DIRECTORY))
        .tempdir_in(parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    fs::set_permissions(made.path(), Permissions::from_mode(DIRECTORY))
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    let layout = Layout::new(made.path());
    let root_key = root_key_text(&args.name, &root);
    files::write(&layout.root_key(), root_key.as_bytes(), SECRET, Existing::Refuse)?;
    files::write(&layout.broker_ca_key(), authority.key.as_bytes(), SECRET, Existing::Refuse)?;
    make_broker_directory(&layout, &set, &listen)?;
    write_broker_certificate(&layout, &set, &authority, now)?;
    set.save(&layout)?;
    files::sync_directory(&layout.dir)?;
    fs::rename(made.path(), &args.dir)
        .with_context(|| format!("cannot move the finished directory to {}", args.dir.display()))?;
    // It has moved: there is nothing left to remove.
    let _ = made.keep();
    files::sync_directory(parent)?;

    told(&set, &Layout::new(&args.dir), &listen)
}

fn told(set: &ClusterSet, layout: &Layout, listen: &[SocketAddr]) -> Result<String> {
    let dir = layout.dir.display();
    let config = layout.broker_config();
    let brokers: Vec<String> = set.brokers.iter().map(ToString::to_string).collect();
    let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    writeln!(text, "Made the cluster set {} in {dir}", set.name)?;
    writeln!(text, "  root public key  {}", set.id)?;
    writeln!(text, "  brokers          {} (listening on {})", brokers.join(", "), listen.join(", "))?;
    writeln!(text)?;
    writeln!(text, "  root.key         SECRET: signs grants; move it offline and keep a second copy")?;
    writeln!(text, "  broker-ca.key    SECRET: signs the brokers' certificates; keep it with root.key")?;
    writeln!(text, "  broker/          for the broker's machine (holds its TLS key); nothing else of this")?;
    writeln!(text, "                   directory belongs there")?;
    writeln!(text, "  clusterset.json  public: what was granted to whom; back it up with the keys")?;
    writeln!(text)?;
    writeln!(text, "Next:")?;
    writeln!(text, "  podspan cluster grant NAME --dir {dir} --pod-cidr CIDR --service-cidr CIDR")?;
    writeln!(text, "and the broker, on a machine of its own or in one of the Kubernetes clusters:")?;
    writeln!(text, "  podspan-broker --config {}", config.display())?;
    writeln!(text, "  podspan join --bundle NAME.bundle --broker-here --broker-tls {dir}/broker")?;
    Ok(text)
}

/// Signs the brokers' certificate anew; makes what of `broker/` is missing.
pub(crate) fn broker_cert(args: &BrokerCert) -> Result<String> {
    let now = tls::now()?;
    let layout = Layout::new(&args.dir);
    let mut problems = Problems::default();
    let brokers = read_brokers(&args.broker, &mut problems);
    problems.check("no certificate was made")?;
    let _lock = lock_existing(&layout)?;
    let mut set = ClusterSet::load(&layout)?;
    let changed = !brokers.is_empty() && brokers != set.brokers;
    if changed {
        set.brokers = brokers;
    }
    let authority = set.authority(&layout)?;
    if !layout.broker().is_dir() {
        make_broker_directory(&layout, &set, &default_listen(&set.brokers))?;
    }
    write_broker_certificate(&layout, &set, &authority, now)?;
    if changed {
        set.save(&layout)?;
    }
    let certificate = layout.broker_certificate();
    let end = tls::not_after(&files::read(&certificate)?)?;
    let brokers: Vec<String> = set.brokers.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    writeln!(text, "Made {}", certificate.display())?;
    writeln!(text, "  for   {}", brokers.join(", "))?;
    writeln!(text, "  ends  {} ({})", human::date(end), human::until(end, now))?;
    if changed {
        writeln!(
            text,
            "  Bundles made from now on name these brokers; those given before keep the former ones."
        )?;
    }
    writeln!(text, "Next: bring {} to every broker and restart it.", layout.broker().display())?;
    Ok(text)
}

/// The lock of a cluster set's directory; where there is none, the error that `load` gives.
pub(crate) fn lock_existing(layout: &Layout) -> Result<files::DirectoryLock> {
    if !layout.dir.is_dir() {
        ClusterSet::load(layout)?;
    }
    files::lock(&layout.dir)
}

fn read_brokers(texts: &[String], problems: &mut Problems) -> Vec<BrokerAddress> {
    let mut brokers: Vec<BrokerAddress> = Vec::new();
    for text in texts {
        match problems.take(text.parse::<BrokerAddress>()) {
            Some(broker) if brokers.contains(&broker) => {
                problems.push(format!("the broker {broker} is named twice"))
            }
            Some(broker) => brokers.push(broker),
            None => {}
        }
    }
    brokers
}

fn read_listen(texts: &[String], problems: &mut Problems) -> Vec<SocketAddr> {
    let mut listen = Vec::new();
    for text in texts {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => listen.push(address),
            _ => problems
                .push(format!("--listen {text:?} is not ADDRESS:PORT, such as 192.0.2.10:7443 or [::]:7443")),
        }
    }
    listen
}

/// Every address of the broker's machine, at the ports that were named. `[::]` takes IPv4 too (ipv6(7),
/// `net.ipv6.bindv6only`), and leaves no room for a `0.0.0.0` beside it.
fn default_listen(brokers: &[BrokerAddress]) -> Vec<SocketAddr> {
    let ports: BTreeSet<u16> = brokers.iter().map(|broker| broker.port).collect();
    ports.into_iter().map(|port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).collect()
}

/// Refuses a directory that holds anything, and one whose parent is not there.
fn check_free(dir: &Path) -> Result<()> {
    let name = dir.display();
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            if dir.join("clusterset.json").exists() {
                bail!(
                    "{name} holds a cluster set already, and its keys are never overwritten: name another \
                     directory with --dir, or look at it with `podspan clusterset show --dir {name}`"
                );
            }
            if entries.next().is_some() {
                bail!("{name} is not empty: name a directory that does not exist yet with --dir");
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = files::parent(dir);
            if !parent.is_dir() {
                bail!("there is no directory {0}: make it first with `mkdir -p {0}`", parent.display());
            }
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("cannot use the directory {name}")),
    }
}

fn make_broker_directory(layout: &Layout, set: &ClusterSet, listen: &[SocketAddr]) -> Result<()> {
    files::make_directory(&layout.broker(), DIRECTORY)?;
    let config = broker_config(set, listen);
    files::write(&layout.broker_config(), config.as_bytes(), PUBLIC, Existing::Refuse)
}

/// The key is kept where there is one: then only one file changes, in one step.
fn write_broker_certificate(
    layout: &Layout,
    set: &clusterset::ClusterSet,
    authority: &tls::Pair,
    now: UnixTime,
) -> Result<()> {
    let path = layout.broker_key();
    let key = if path.exists() {
        files::read_secret(&path)?
    } else {
        let key = tls::make_key()?;
        files::write(&path, key.as_bytes(), SECRET, Existing::Refuse)?;
        key
    };
    let certificate = tls::sign_server(&set.name, authority, &key, &set.brokers, now)?;
    files::write(&layout.broker_certificate(), certificate.as_bytes(), PUBLIC, Existing::Replace)
}

fn broker_config(set: &ClusterSet, listen: &[SocketAddr]) -> String {
    let listen: Vec<String> = listen.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "# Broker of the podspan cluster set {name}. Start it with: podspan-broker --config broker.toml\n\
         # Paths are relative to this file.\n\
         \n\
         # Where it listens; [::] is every address of the machine, IPv4 and IPv6.\n\
         listen = [{listen}]\n\
         # The root's public key: only clusters with a grant of this root are served.\n\
         cluster-set = \"{id}\"\n\
         # TLS. Renew the certificate with: podspan clusterset broker-cert\n\
         certificate = \"broker.crt\"\n\
         private-key = \"broker.key\"\n\
         # Where the records are kept.\n\
         data = \"data\"\n\
         # How long a node counts as fresh after it was last heard, in seconds.\n\
         lease-seconds = 30\n",
        name = set.name,
        listen = listen.join(", "),
        id = set.id,
    )
}
