//! `podspan cluster grant`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podspan_wire::{
    Bundle, Cidr, CidrSet, ClusterId, ClusterKey, Envelope, Grant, MAX_CIDRS, PublicKey, Trust, UnixTime,
};

use crate::args;
use crate::clusterset::{ClusterSet, Given, Layout, load_root_key};
use crate::create::lock_existing;
use crate::files::{self, Existing, PUBLIC, SECRET};
use crate::human;
use crate::problems::Problems;
use crate::tls;

/// Gives the grant, notes it in the cluster set, writes the bundle. Returns what to tell.
pub(crate) fn grant(args: &args::Grant) -> Result<String> {
    let now = tls::now()?;
    let layout = Layout::new(&args.dir);
    let _lock = lock_existing(&layout)?;
    let mut set = ClusterSet::load(&layout)?;
    let wanted = Wanted::check(args, &set)?;
    let root_key = args.root_key.clone().unwrap_or_else(|| layout.root_key());
    let root = load_root_key(&root_key, set.id)?;
    let key = match wanted.kept_key {
        Some(key) => key,
        None => ClusterKey::generate()?,
    };

    let former = set.grant_of(&wanted.cluster).map(|given| given.grant.clone());
    let grant = Grant {
        cluster_set: set.id,
        cluster: wanted.cluster,
        cluster_key: key.public(),
        pod_cidrs: wanted.pod_cidrs,
        service_cidrs: wanted.service_cidrs,
        serial: former.as_ref().map_or(0, |former| former.serial) + 1,
        not_after: now.after(Duration::from_secs(u64::from(args.days) * 24 * 60 * 60)),
        extensions: former.as_ref().map(|former| former.extensions.clone()).unwrap_or_default(),
    };
    let envelope = grant.sign(&root);
    let bundle = Bundle {
        cluster_set: set.id,
        grant: envelope.clone(),
        cluster_key: key,
        brokers: set.brokers.iter().map(ToString::to_string).collect(),
        broker_ca: set.broker_ca.clone(),
    };
    let text = bundle.to_secret_text();
    // What agents would refuse is not handed out.
    Bundle::parse(&text).context("the bundle that was made is not good; this is an error in podspan")?;
    set.put(given(&grant, &envelope, now));

    // Both files are on disk before either is in its place, and the grant is noted before anybody can use
    // it: whatever is cut short, no grant is out that the cluster set does not know.
    let existing = if args.overwrite { Existing::Replace } else { Existing::Refuse };
    let bundle_file = files::prepare(&wanted.out, text.as_bytes(), SECRET, existing)?;
    let set_file =
        files::prepare(&layout.clusterset(), set.to_text()?.as_bytes(), PUBLIC, Existing::Replace)?;
    set_file.commit()?;
    bundle_file.commit().with_context(|| {
        format!(
            "grant {} of cluster {} was given but its bundle could not be put in place; run the command again with \
             `--renew {}`",
            grant.serial,
            grant.cluster,
            if args.bundle.is_some() { "--bundle FILE" } else { "--new-key" }
        )
    })?;
    told(&set, &grant, former.as_ref(), &wanted.out, now)
}

fn given(grant: &Grant, envelope: &Envelope, now: UnixTime) -> Given {
    Given { given: now, grant: grant.clone(), signature: envelope.signature }
}

fn told(
    set: &ClusterSet,
    grant: &Grant,
    former: Option<&Grant>,
    out: &Path,
    now: UnixTime,
) -> Result<String> {
    let or_none = |cidrs: &CidrSet| if cidrs.is_empty() { "none".to_owned() } else { cidrs.to_string() };
    let mut text = String::new();
    writeln!(
        text,
        "Granted to cluster {} of cluster set {} (grant {})",
        grant.cluster, set.name, grant.serial
    )?;
    writeln!(text, "  pod CIDRs      {}", or_none(&grant.pod_cidrs))?;
    writeln!(text, "  service CIDRs  {}", or_none(&grant.service_cidrs))?;
    writeln!(
        text,
        "  ends           {} ({})",
        human::date(grant.not_after),
        human::until(grant.not_after, now)
    )?;
    writeln!(text, "  bundle         {}", out.display())?;
    writeln!(text)?;
    writeln!(
        text,
        "The bundle is SECRET: it holds the cluster's key, and no copy stays here. Give it to nobody but"
    )?;
    writeln!(text, "cluster {}: in Kubernetes with podspan join --bundle {};", grant.cluster, out.display())?;
    writeln!(text, "elsewhere bring it to the nodes and name it in their agents' configuration.")?;
    if let Some(former) = former {
        writeln!(
            text,
            "It takes the place of grant {}: give it to every node of the cluster.",
            former.serial
        )?;
        if former.cluster_key != grant.cluster_key {
            writeln!(
                text,
                "The key is a new one: the former bundle is worthless as soon as this one is in use."
            )?;
        }
        let gone: CidrSet =
            former.cidrs().iter().filter(|cidr| !grant.cidrs().covers(cidr)).copied().collect();
        if !gone.is_empty() {
            writeln!(
                text,
                "No longer granted: {gone}. What the cluster still announces of that will be refused."
            )?;
        }
    }
    Ok(text)
}

/// What is asked for, checked.
struct Wanted {
    cluster: ClusterId,
    pod_cidrs: CidrSet,
    service_cidrs: CidrSet,
    kept_key: Option<ClusterKey>,
    out: PathBuf,
}

impl Wanted {
    /// Checks everything and reports all that is wrong at once.
    fn check(args: &args::Grant, set: &ClusterSet) -> Result<Self> {
        let mut problems = Problems::default();
        let what = format!("no grant was given to {:?}", args.cluster.chars().take(80).collect::<String>());
        let cluster = problems.take(args.cluster.parse::<ClusterId>().context("the cluster's name"));
        let former = cluster.as_ref().and_then(|cluster| set.grant_of(cluster));
        let mut kept_key = None;
        match (&cluster, former) {
            (Some(cluster), Some(former)) if !args.renew => problems.push(format!(
                "cluster {cluster} has grant {} already, given on {}: use --renew to grant anew, or another name if \
                 this is another cluster",
                former.grant.serial,
                human::date(former.given)
            )),
            (Some(cluster), None) if args.renew => problems.push(format!(
                "cluster {cluster} has no grant that could be renewed{}: leave --renew out to give its first one",
                known(set)
            )),
            (Some(cluster), Some(former)) => match &args.bundle {
                Some(path) => {
                    kept_key = problems.take(load_key(path, set, cluster, former.grant.cluster_key));
                }
                None if !args.new_key => problems.push(
                    "--renew needs the cluster's key: name its present bundle with --bundle FILE to keep the key, or \
                     say --new-key",
                ),
                None => {}
            },
            _ => {}
        }

        let pods = Cidrs::read("pod", &args.pod_cidr, former.map(|f| &f.grant.pod_cidrs), &mut problems);
        let services =
            Cidrs::read("service", &args.service_cidr, former.map(|f| &f.grant.service_cidrs), &mut problems);
        if args.pod_cidr.is_empty() && !args.renew {
            problems.push("no pod CIDR was given: name at least one with --pod-cidr");
        }
        check_overlaps(&pods, &services, cluster.as_ref(), set, &mut problems);

        let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.bundle", args.cluster)));
        if cluster.is_some() || args.out.is_some() {
            check_out(&out, args.overwrite, &mut problems);
        }
        problems.check(&what)?;
        let Some(cluster) = cluster else { bail!("{what}") };
        let (pod_cidrs, service_cidrs) = (pods.set(), services.set());
        Ok(Self { cluster, pod_cidrs, service_cidrs, kept_key, out })
    }
}

fn known(set: &ClusterSet) -> String {
    let names: Vec<&str> = set.grants.iter().map(|given| given.grant.cluster.as_str()).collect();
    if names.is_empty() { String::new() } else { format!(" (there are {})", names.join(", ")) }
}

/// CIDRs of one kind.
struct Cidrs {
    kind: &'static str,
    list: Vec<Cidr>,
}

impl Cidrs {
    /// Those that were given; where none was, the former ones.
    fn read(kind: &'static str, texts: &[String], former: Option<&CidrSet>, problems: &mut Problems) -> Self {
        if texts.is_empty() {
            let list = former.map(|former| former.iter().copied().collect()).unwrap_or_default();
            return Self { kind, list };
        }
        if texts.len() > MAX_CIDRS {
            problems
                .push(format!("{} {kind} CIDRs were given, at most {MAX_CIDRS} are allowed", texts.len()));
        }
        let mut list = Vec::new();
        for text in texts {
            let Some(cidr) =
                problems.take(text.trim().parse::<Cidr>().with_context(|| format!("--{kind}-cidr")))
            else {
                continue;
            };
            match cidr.not_announceable() {
                Some(why) => {
                    problems.push(format!("the {kind} CIDR {cidr} {why}: no cluster may announce it"))
                }
                None => list.push(cidr),
            }
        }
        Self { kind, list }
    }

    fn set(&self) -> CidrSet {
        self.list.iter().copied().collect()
    }
}

/// Notes each pair that shares an address: within the grant, and with each other cluster's.
fn check_overlaps(
    pods: &Cidrs,
    services: &Cidrs,
    cluster: Option<&ClusterId>,
    set: &ClusterSet,
    problems: &mut Problems,
) {
    let all: Vec<(&str, Cidr)> =
        [pods, services].iter().flat_map(|cidrs| cidrs.list.iter().map(|cidr| (cidrs.kind, *cidr))).collect();
    for (i, (kind, cidr)) in all.iter().enumerate() {
        for (other_kind, other) in &all[i + 1..] {
            if cidr == other && kind == other_kind {
                problems.push(format!("the {kind} CIDR {cidr} is given twice"));
            } else if cidr.overlaps(other) {
                problems.push(format!("the {kind} CIDR {cidr} and the {other_kind} CIDR {other} overlap"));
            }
        }
        for given in set.grants.iter().filter(|given| Some(&given.grant.cluster) != cluster) {
            for (other_kind, others) in
                [("pod", &given.grant.pod_cidrs), ("service", &given.grant.service_cidrs)]
            {
                for other in others.iter().filter(|other| cidr.overlaps(other)) {
                    problems.push(format!(
                        "the {kind} CIDR {cidr} overlaps the {other_kind} CIDR {other} of cluster {}: addresses must be \
                         unique in a cluster set",
                        given.grant.cluster
                    ));
                }
            }
        }
    }
}

fn check_out(out: &Path, overwrite: bool, problems: &mut Problems) {
    let parent = files::parent(out);
    if !parent.is_dir() {
        problems.push(format!(
            "there is no directory {0} for the bundle: make it first with `mkdir -p {0}`, or name another file with --out",
            parent.display()
        ));
    } else if out.is_dir() {
        problems.push(format!("{} is a directory: name a file with --out", out.display()));
    } else if !overwrite && out.symlink_metadata().is_ok() {
        problems.push(format!(
            "{} exists already: name another file with --out, or say --overwrite",
            out.display()
        ));
    }
}

/// The key of a cluster's present bundle.
fn load_key(path: &Path, set: &ClusterSet, cluster: &ClusterId, granted: PublicKey) -> Result<ClusterKey> {
    let name = path.display();
    let text = files::read_secret(path)?;
    let (bundle, grant) = Bundle::parse(&text).with_context(|| format!("{name} cannot be used"))?;
    // Says which of the two sets it is, as an agent would.
    Trust::new(set.id)
        .verify_grant(&bundle.grant, UnixTime(0))
        .with_context(|| format!("{name} cannot be used"))?;
    if grant.cluster != *cluster {
        bail!("{name} is the bundle of cluster {}, not of {cluster}", grant.cluster);
    }
    if bundle.cluster_key.public() != granted {
        bail!(
            "the key in {name} is not the one that cluster {cluster} has now (its grant is {}): name its newest bundle, \
             or say --new-key",
            grant.serial
        );
    }
    Ok(bundle.cluster_key)
}
