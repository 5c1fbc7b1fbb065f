//! Events: what a person should know, at the object that it is about, and never a flood of it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use podspan_kubernetes::conditions::shorten;
use podspan_kubernetes::names;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::client::describe;

/// How soon the same thing may be told again of the same object.
const AGAIN: Duration = Duration::from_secs(300);
/// How many Events may be told at once, and how soon after that one more.
const BURST: u32 = 25;
const ONE_MORE: Duration = Duration::from_secs(10);
/// The longest note, in bytes (Event v1, `note`).
const MAX_NOTE: usize = 1024;
/// How long telling one may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// The object that it is about.
    pub about: ObjectReference,
    /// Whether it is a warning.
    pub warning: bool,
    /// What happened, in one word.
    pub reason: String,
    /// What happened, and what to do.
    pub note: String,
}

/// Lets through what is not a flood.
pub struct Limiter {
    told: BTreeMap<(String, String, String), (String, Instant)>,
    left: u32,
    refilled: Instant,
}

impl Limiter {
    /// A full measure.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { told: BTreeMap::new(), left: BURST, refilled: now }
    }

    /// Whether this may be told now. The same words at the same object are told once in a while; other words
    /// of the same kind too, so that a flapping peer is told of as often as one that is lost for good.
    pub fn allows(&mut self, news: &News, now: Instant) -> bool {
        let more =
            u32::try_from(now.duration_since(self.refilled).as_secs() / ONE_MORE.as_secs()).unwrap_or(BURST);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.refilled = now;
        }
        self.told.retain(|_, (_, at)| now.duration_since(*at) < AGAIN);
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        // A contradiction has the same reason as another one, but other words.
        let words = if news.reason.starts_with("Peer") { String::new() } else { news.note.clone() };
        let key =
            (format!("{}/{}", part(&news.about.kind), part(&news.about.name)), news.reason.clone(), words);
        if self.left == 0 || self.told.contains_key(&key) {
            return false;
        }
        self.left -= 1;
        self.told.insert(key, (news.note.clone(), now));
        true
    }
}

/// Tells.
pub struct Teller {
    api: Api<Event>,
    instance: String,
    limiter: Limiter,
}

impl Teller {
    /// For the agent of `node`.
    #[must_use]
    pub fn new(client: Client, node: &str) -> Self {
        Self {
            api: Api::namespaced(client, names::CLUSTER_EVENTS_NAMESPACE),
            // At most 128 characters (Event v1, `reportingInstance`).
            instance: shorten(&format!("{}-{node}", names::AGENT), 128),
            limiter: Limiter::new(Instant::now()),
        }
    }

    /// Tells it, unless that would be a flood. An Event that cannot be written is lost: the status stays.
    pub async fn tell(&mut self, news: News) {
        if !self.limiter.allows(&news, Instant::now()) {
            debug!(reason = news.reason, note = news.note, "an Event was held back");
            return;
        }
        let event = Event {
            metadata: ObjectMeta {
                // Of a name that ends in a dot the API server wants to hear nothing.
                generate_name: news.about.name.as_ref().map(|name| format!("{name}-")),
                ..ObjectMeta::default()
            },
            type_: Some(if news.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(news.reason),
            note: Some(shorten(&news.note, MAX_NOTE)),
            action: Some("Observe".to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            reporting_controller: Some(names::AGENT.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            regarding: Some(news.about),
            ..Event::default()
        };
        match timeout(WITHIN, self.api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => debug!(why = describe(&error), "an Event could not be written"),
            Err(_) => debug!("an Event could not be written in time"),
        }
    }
}

/// A reference to an object without a namespace.
#[must_use]
pub fn reference(api_version: &str, kind: &str, name: &str, uid: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        uid,
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(name: &str, reason: &str, note: &str) -> News {
        News {
            about: reference("podspan.io/v1alpha1", "PeerCluster", name, None),
            warning: true,
            reason: reason.into(),
            note: note.into(),
        }
    }

    #[test]
    fn a_flapping_peer_makes_no_flood() {
        let begin = Instant::now();
        let mut limiter = Limiter::new(begin);
        let mut told = 0;
        for second in 0..600 {
            let now = begin + Duration::from_secs(second);
            told += u32::from(limiter.allows(&news("beta", "PeerLost", &format!("{second}")), now));
            told += u32::from(limiter.allows(&news("beta", "PeerBack", ""), now));
        }
        assert_eq!(told, 4, "each twice in ten minutes");
    }

    #[test]
    fn different_things_are_told_up_to_a_bound() {
        let begin = Instant::now();
        let mut limiter = Limiter::new(begin);
        let told = |limiter: &mut Limiter, from: u32, now| {
            (from..from + 1_000)
                .filter(|i| limiter.allows(&news("beta", "Conflict", &i.to_string()), now))
                .count()
        };
        assert_eq!(told(&mut limiter, 0, begin), BURST as usize);
        assert_eq!(told(&mut limiter, 5_000, begin + ONE_MORE * 3), 3);
        assert!(!limiter.allows(&news("beta", "Conflict", "1"), begin + ONE_MORE * 4), "told already");
    }
}
