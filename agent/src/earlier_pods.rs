//! Pods that were there before podspan was in the chain: found by what the runtime remembers of them, so that the routes
//! inside them can be set as in others.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use podspan_cni::results;
use podspan_wire::local::{Attachment, AttachmentDetail};
use tracing::debug;

use crate::cni_install::{conflist, directory, plan::Listing};

/// A result is a few KiB; more than this is not read.
const MAX_SIZE: u64 = 1024 * 1024;
/// How many are looked at; a node runs a few hundred pods at most.
const MAX_FILES: usize = 4096;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierPods {
    /// What runtimes remember ([`results::DIRECTORY`]), as the agent sees it.
    pub results_dir: PathBuf,
    /// The network configurations: pods count that are in a network which podspan is in.
    pub conf_dir: PathBuf,
}

impl EarlierPods {
    /// The pods in podspan's networks that are not among `known`. What cannot be read is left out: such pods reach
    /// other clusters by their default route.
    #[must_use]
    pub fn chained(&self, known: &BTreeSet<&Attachment>) -> Vec<AttachmentDetail> {
        let networks = match directory::list(&self.conf_dir) {
            Ok(listing) => networks(&listing),
            Err(error) => {
                debug!(
                    error = format!("{error:#}"),
                    "pods that were there before podspan are not looked for"
                );
                return Vec::new();
            }
        };
        if networks.is_empty() {
            return Vec::new();
        }
        let mut pods = self.all(known);
        pods.retain(|pod| networks.contains(&pod.network));
        pods
    }

    /// The pods of all networks that are not among `known`: podspan may have been in them.
    #[must_use]
    pub fn all(&self, known: &BTreeSet<&Attachment>) -> Vec<AttachmentDetail> {
        // No such directory: a runtime that remembers elsewhere, or one that the agent is not shown.
        let Ok(entries) = fs::read_dir(&self.results_dir) else { return Vec::new() };
        let mut details = Vec::new();
        for entry in entries.take(MAX_FILES).flatten() {
            let path = entry.path();
            match read(&path).and_then(|text| results::parse(&text)) {
                Ok(Some(detail)) if !known.contains(&detail.attachment) => details.push(detail),
                Ok(_) => {}
                Err(error) => debug!(path = %path.display(), error, "what the runtime remembers of a pod"),
            }
        }
        details
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_SIZE).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// The networks that podspan is in.
fn networks(listing: &Listing) -> BTreeSet<String> {
    let texts = listing.files.values().filter_map(|file| file.text.as_ref().ok());
    let lists = texts.filter_map(|text| conflist::read_list(text).ok()).filter(conflist::Network::has_own);
    lists.map(|network| network.name).chain(listing.drop_ins.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(network: &str, container: &str) -> String {
        format!(
            r#"{{"kind":"cniCacheV1","containerId":"{container}","ifName":"eth0","networkName":"{network}",
            "result":{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"/var/run/netns/{container}"}}],
            "ips":[{{"address":"10.1.1.5/24","interface":0}}]}}}}"#
        )
    }

    #[test]
    fn those_of_podspans_networks_are_found_unless_they_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let earlier = EarlierPods {
            results_dir: directory.path().join("results"),
            conf_dir: directory.path().join("net.d"),
        };
        let found = |known: &[&Attachment]| {
            let details = earlier.chained(&known.iter().copied().collect());
            let mut names: Vec<String> =
                details.into_iter().map(|detail| detail.attachment.container_id).collect();
            names.sort();
            names
        };
        assert_eq!(found(&[]), [""; 0]);
        fs::create_dir(&earlier.results_dir).unwrap();
        fs::create_dir(&earlier.conf_dir).unwrap();
        for (network, container) in [("cbr0", "a"), ("cbr0", "b"), ("other", "c"), ("dropped", "d")] {
            let path = earlier.results_dir.join(format!("{network}-{container}-eth0"));
            fs::write(path, result(network, container)).unwrap();
        }
        fs::write(earlier.results_dir.join("cbr0-torn-eth0"), "{").unwrap();
        fs::write(earlier.results_dir.join("cbr0-bytes-eth0"), [0xff, 0xfe]).unwrap();
        let list = |name: &str, entry: &str| {
            let text =
                format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"bridge"}}{entry}]}}"#);
            fs::write(earlier.conf_dir.join(format!("{name}.conflist")), text).unwrap();
        };
        list("cbr0", "");
        list("other", "");
        assert_eq!(found(&[]), [""; 0], "podspan is not in the chain yet");
        list("cbr0", r#",{"type":"podspan"}"#);
        assert_eq!(found(&[]), ["a", "b"]);
        let known = Attachment { container_id: "a".into(), interface: "eth0".into() };
        assert_eq!(found(&[&known]), ["b"]);
        fs::create_dir(earlier.conf_dir.join("dropped")).unwrap();
        fs::write(earlier.conf_dir.join("dropped/99-podspan.conf"), "{}").unwrap();
        assert_eq!(found(&[]), ["a", "b", "d"]);
        assert_eq!(earlier.all(&BTreeSet::from([&known])).len(), 3, "b, c and d");
    }
}
