//! Notices that the bundle file changed while the agent runs. The agent goes on with what it read: a
//! restart costs no more than two seconds of traffic, and the key that signs, the brokers and the TLS
//! authority hang together. But a person who renewed the grant must be told that it is not in use yet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podspan_wire::Bundle;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;
use zeroize::Zeroizing;

use crate::files;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(5);

/// What a person must know of the file now that it holds something else than `used`, if it does.
#[must_use]
pub fn look(path: &Path, used: &str) -> Option<String> {
    let file = path.display();
    let text = match files::read_secret(path) {
        Ok(text) => text,
        Err(error) => {
            return Some(format!(
                "the bundle cannot be read any more, the agent would not start again: {error:#}"
            ));
        }
    };
    if text.as_str() == used {
        return None;
    }
    Some(match Bundle::parse(&text) {
        Ok((_, grant)) => format!(
            "the bundle {file} changed since the start (it holds grant {} of cluster {} now): restart the agent to \
             use it",
            grant.serial, grant.cluster
        ),
        Err(error) => {
            format!("the bundle {file} is not good any more, the agent would not start again: {error}")
        }
    })
}

/// Watches the file; the receiver has what [`look`] says. Within a Tokio runtime.
#[must_use]
pub fn watch(path: PathBuf, used: Zeroizing<String>) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let found = look(&path, &used);
            sender.send_if_modified(|told| {
                let changed = *told != found;
                if let (true, Some(problem)) = (changed, &found) {
                    warn!("{problem}");
                }
                *told = found;
                changed
            });
            if sender.is_closed() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::{cluster, root};
    use std::os::unix::fs::PermissionsExt as _;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn each_change_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alpha.bundle");
        let mut alpha = cluster("alpha", 1);
        let bundle = |alpha: &crate::membership::tests::Cluster| Bundle {
            cluster_set: alpha.grant.cluster_set,
            grant: alpha.grant.sign(&root()),
            cluster_key: alpha.key.clone(),
            brokers: vec!["https://192.0.2.1:7443".into()],
            broker_ca: String::new(),
        };
        let used = bundle(&alpha).to_secret_text();
        write(&path, &used, 0o600);
        assert_eq!(look(&path, &used), None);
        alpha.grant.serial = 2;
        write(&path, &bundle(&alpha).to_secret_text(), 0o600);
        let told = look(&path, &used).unwrap();
        assert!(told.contains("grant 2 of cluster alpha") && told.contains("restart"), "{told}");
        for (text, mode, what) in [("{}", 0o600, "not good any more"), (used.as_str(), 0o644, "chmod 0600")] {
            write(&path, text, mode);
            let told = look(&path, &used).unwrap();
            assert!(told.contains(what) && told.contains("would not start again"), "{told}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(look(&path, &used).unwrap().contains("cannot be read any more"));
    }
}
