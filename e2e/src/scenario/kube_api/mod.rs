//! Against a real API server without a cluster.

mod facts;
mod install;
mod joined;
mod long_outage;
mod outages;
mod rights;
mod schema;
mod server;
mod status;

use std::time::Duration;

use anyhow::Result;

use super::place::ApiSetting;
use super::{Scenario, failover};
use crate::kube::KubeApi;

type Run = fn(&mut KubeApi) -> Result<()>;

/// All of them: first those without podspan, then those that run its programs, each kind with one API server.
pub(super) fn all() -> Vec<Scenario<KubeApi>> {
    let bare = ApiSetting { podspan: false };
    let podspan = ApiSetting { podspan: true };
    let all: [(ApiSetting, &'static str, &'static str, Run); 13] = [
        (
            bare,
            "server",
            "objects survive an API server that is ended like by a crash, and permissions hold",
            server::server,
        ),
        (bare, "schema", "podspan's types refuse what is wrong with words that help", schema::schema),
        (
            bare,
            "rights",
            "the agents' service account may do what it needs and nothing more",
            rights::rights_of_the_agent,
        ),
        (
            podspan,
            "waiting",
            "an agent without bundle or Node waits, alive and not ready, and says for what",
            facts::waiting,
        ),
        (
            podspan,
            "sources",
            "labels, annotations, addresses, ServiceCIDRs, Services and the ClusterSet are followed",
            facts::sources,
        ),
        (
            podspan,
            "malformed",
            "objects that make no sense are named by condition and Event, and what worked goes on",
            facts::malformed,
        ),
        (
            podspan,
            "peers",
            "a peer joins, is lost and comes back, another one leaves: their objects and Events tell",
            status::peers,
        ),
        (podspan, "lease", "one agent writes the status; another follows when it is gone", status::lease),
        (
            podspan,
            "manifests",
            "applied twice, by kubectl or by podspan join, they change nothing",
            install::manifests,
        ),
        (
            podspan,
            "leave",
            "an agent stays with an update and leaves no trace when its DaemonSet is deleted",
            install::leave,
        ),
        (
            podspan,
            "away",
            "with the API server away everything goes on, and agents can start; a token that ended meanwhile is read anew",
            outages::away,
        ),
        (
            podspan,
            "departed",
            "a node that was deleted with its machine is withdrawn by another of its cluster",
            outages::departed,
        ),
        (
            podspan,
            "brokers",
            "of two brokers one is enough, whichever: one down from the start, then the other",
            outages::brokers,
        ),
    ];
    let mut all: Vec<_> =
        all.into_iter().map(|(setting, name, about, run)| scenario(setting, name, about, run)).collect();
    if failover::is_soak() {
        let about =
            "with the API server away for an hour everything goes on, and all is followed when it is back";
        all.push(Scenario {
            timeout: long_outage::LIMIT,
            ..scenario(podspan, "away-hour", about, long_outage::hour)
        });
    }
    all
}

/// Leases end, and tokens are renewed, after minutes.
const TIME: Duration = Duration::from_secs(600);

fn scenario(setting: ApiSetting, name: &'static str, about: &'static str, run: Run) -> Scenario<KubeApi> {
    Scenario { setting, name, about, timeout: TIME, run }
}
