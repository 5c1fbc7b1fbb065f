//! A cluster set's directory: what is in it, read and written.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use podspan_wire::{ClusterId, ClusterSetId, Envelope, Grant, RootKey, Signature, Trust, UnixTime};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::broker_address::BrokerAddress;
use crate::files::{self, Existing, PUBLIC};
use crate::tls::Pair;

const KIND: &str = "podspan cluster set v1";

/// The files of a cluster set's directory.
pub(crate) struct Layout {
    /// The directory.
    pub(crate) dir: PathBuf,
}

impl Layout {
    /// The layout below `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What is public: names, keys, grants.
    pub(crate) fn clusterset(&self) -> PathBuf {
        self.dir.join("clusterset.json")
    }

    /// The root key; secret.
    pub(crate) fn root_key(&self) -> PathBuf {
        self.dir.join("root.key")
    }

    /// The key of the brokers' certificate authority; secret.
    pub(crate) fn broker_ca_key(&self) -> PathBuf {
        self.dir.join("broker-ca.key")
    }

    /// What a broker needs: its configuration, certificate and key.
    pub(crate) fn broker(&self) -> PathBuf {
        self.dir.join("broker")
    }

    /// The broker's configuration.
    pub(crate) fn broker_config(&self) -> PathBuf {
        self.broker().join("broker.toml")
    }

    /// The broker's certificate.
    pub(crate) fn broker_certificate(&self) -> PathBuf {
        self.broker().join("broker.crt")
    }

    /// The broker's TLS key; secret.
    pub(crate) fn broker_key(&self) -> PathBuf {
        self.broker().join("broker.key")
    }
}

/// A cluster set as its owner knows it: public, except that it tells which addresses are in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterSet {
    /// The name for people.
    pub(crate) name: String,
    /// The root's public key.
    pub(crate) id: ClusterSetId,
    /// When it was made.
    pub(crate) created: UnixTime,
    /// Where the brokers are.
    pub(crate) brokers: Vec<BrokerAddress>,
    /// The certificate of the brokers' authority, PEM.
    pub(crate) broker_ca: String,
    /// The newest grant of each cluster, by the cluster's name.
    pub(crate) grants: Vec<Given>,
}

/// A grant that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Given {
    /// When.
    pub(crate) given: UnixTime,
    /// Its contents, readable.
    pub(crate) grant: Grant,
    /// The root's signature over them.
    pub(crate) signature: Signature,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    kind: String,
    name: String,
    cluster_set: ClusterSetId,
    created: UnixTime,
    brokers: Vec<String>,
    broker_ca: String,
    grants: Vec<Given>,
}

impl ClusterSet {
    /// Reads `clusterset.json` and checks every grant in it against the root's public key: a file that was
    /// changed by hand must not decide what the root signs next.
    pub(crate) fn load(layout: &Layout) -> Result<Self> {
        let path = layout.clusterset();
        if !layout.dir.is_dir() {
            bail!(
                "there is no directory {}: make a cluster set with `podspan clusterset create --dir {0}`, or name \
                 the one there is with --dir",
                layout.dir.display()
            );
        }
        if !path.exists() {
            bail!(
                "{} is not the directory of a cluster set (it has no clusterset.json): make one with `podspan \
                 clusterset create`, or name the right one with --dir",
                layout.dir.display()
            );
        }
        Self::parse(&files::read(&path)?).with_context(|| {
            format!("{} is damaged or was changed by hand; restore it from its backup", path.display())
        })
    }

    fn parse(text: &str) -> Result<Self> {
        let raw: Raw = serde_json::from_str(text)?;
        if raw.kind != KIND {
            bail!("its kind is {:?}, expected {KIND:?}: another version of podspan wrote it", raw.kind);
        }
        check_name(&raw.name)?;
        let trust = Trust::new(raw.cluster_set);
        for given in &raw.grants {
            // At the beginning of time nothing has expired: an old grant still owns its CIDRs.
            trust
                .verify_grant(&given.envelope()?, UnixTime(0))
                .map_err(|refusal| anyhow::anyhow!("cluster {}: {refusal}", given.grant.cluster))?;
        }
        let brokers = raw.brokers.iter().map(|broker| broker.parse()).collect::<Result<Vec<_>, _>>()?;
        let (name, id, created) = (raw.name, raw.cluster_set, raw.created);
        Ok(Self { name, id, created, brokers, broker_ca: raw.broker_ca, grants: raw.grants })
    }

    /// The text of `clusterset.json`.
    pub(crate) fn to_text(&self) -> Result<String> {
        let raw = Raw {
            kind: KIND.into(),
            name: self.name.clone(),
            cluster_set: self.id,
            created: self.created,
            brokers: self.brokers.iter().map(ToString::to_string).collect(),
            broker_ca: self.broker_ca.clone(),
            grants: self.grants.clone(),
        };
        Ok(serde_json::to_string_pretty(&raw)? + "\n")
    }

    /// Replaces `clusterset.json`.
    pub(crate) fn save(&self, layout: &Layout) -> Result<()> {
        files::write(&layout.clusterset(), self.to_text()?.as_bytes(), PUBLIC, Existing::Replace)
    }

    /// The grant of a cluster.
    pub(crate) fn grant_of(&self, cluster: &ClusterId) -> Option<&Given> {
        self.grants.iter().find(|given| given.grant.cluster == *cluster)
    }

    /// Puts a grant in the place of the cluster's former one, if any.
    pub(crate) fn put(&mut self, given: Given) {
        self.grants.retain(|other| other.grant.cluster != given.grant.cluster);
        self.grants.push(given);
        self.grants.sort_by(|a, b| a.grant.cluster.cmp(&b.grant.cluster));
    }

    /// Reads the brokers' certificate authority.
    pub(crate) fn authority(&self, layout: &Layout) -> Result<Pair> {
        let key = files::read_secret(&layout.broker_ca_key())?;
        Ok(Pair { certificate: self.broker_ca.clone(), key })
    }
}

impl Given {
    /// The grant as it was signed.
    pub(crate) fn envelope(&self) -> Result<Envelope> {
        // The canonical payload is the serialised grant: see `Envelope`.
        Ok(Envelope { payload: serde_json::to_string(&self.grant)?, signature: self.signature })
    }
}

/// The name of a cluster set is a DNS label, like a cluster's.
pub(crate) fn check_name(name: &str) -> Result<()> {
    match name.parse::<ClusterId>() {
        Ok(_) => Ok(()),
        Err(error) => bail!("the cluster set's name: {error}"),
    }
}

/// The text of `root.key`.
pub(crate) fn root_key_text(name: &str, root: &RootKey) -> Zeroizing<String> {
    let secret = root.to_secret_text();
    Zeroizing::new(format!(
        "# SECRET: root key of the podspan cluster set {name}, {}\n\
         # Whoever has it can let any cluster into the set and grant it any CIDR. Only `podspan cluster grant`\n\
         # needs it: keep it offline (a removable disk, a vault) with a second copy in a safe place, and name\n\
         # it with --root-key when you grant. It belongs on no broker, no node and in no repository.\n\
         {}\n",
        root.public(),
        secret.as_str()
    ))
}

/// Reads the root key, and makes sure that it is the root of `id`.
pub(crate) fn load_root_key(path: &Path, id: ClusterSetId) -> Result<RootKey> {
    if !fs::exists(path).unwrap_or(true) {
        bail!("there is no root key at {}: name the file with --root-key", path.display());
    }
    let text = files::read_secret(path)?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        bail!("{} is not a root key: expected comments and one line of base64", path.display());
    };
    let root =
        RootKey::from_secret_text(line).with_context(|| format!("{} cannot be used", path.display()))?;
    if root.public() != *id.root() {
        bail!(
            "{} is the root key of another cluster set ({}), this one is {id}: name the right file with --root-key",
            path.display(),
            root.public()
        );
    }
    Ok(root)
}
