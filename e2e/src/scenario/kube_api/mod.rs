//! Against a real API server without a cluster.

mod server;

use std::time::Duration;

use anyhow::Result;

use super::Scenario;
use super::place::ApiSetting;
use crate::kube::KubeApi;

/// All of them: first those without podspan, then those that run its programs, each kind with one API server.
pub(super) fn all() -> Vec<Scenario<KubeApi>> {
    let bare = ApiSetting { podspan: false };
    vec![scenario(
        bare,
        "server",
        "objects survive an API server that is ended like by a crash, and permissions hold",
        server::server,
    )]
}

fn scenario(
    setting: ApiSetting,
    name: &'static str,
    about: &'static str,
    run: fn(&mut KubeApi) -> Result<()>,
) -> Scenario<KubeApi> {
    Scenario { setting, name, about, timeout: Duration::from_secs(120), run }
}
