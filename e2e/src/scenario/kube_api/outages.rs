//! What goes away for good, or for long: a token, a node, a broker.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use podspan_wire::status::{Reachability, Status};
use serde_json::json;

use super::joined::{Joined, annotate, apply_settings};
use crate::kube::KubeApi;
use crate::scenario::Findings;

const SOON: Duration = Duration::from_secs(30);

fn reached(status: &Status) -> bool {
    status.clusters.iter().any(|cluster| cluster.state == Reachability::Up)
}

/// kubelet cannot renew a pod's token while the API server is away; the agent reads the file again when it is back.
pub(super) fn token(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "token")?;
    apply_settings(api, &json!({}))?;
    let agent = joined.agent(api, "t1")?;
    let file = api.directory("token")?.join("token");
    let mint = |api: &KubeApi, bound: &str| -> Result<()> {
        let token = api.bound_token("podspan-system", "podspan-agent", bound)?;
        std::fs::write(&file, token).context("cannot write the token")
    };
    mint(api, "first")?;
    let kubeconfig = file.with_file_name("kubeconfig");
    let config =
        std::fs::read_to_string(api.kubeconfig_for_service_account("podspan-system", "podspan-agent")?)?;
    let mut config: serde_json::Value = serde_json::from_str(&config)?;
    config["users"][0]["user"] = json!({ "tokenFile": file });
    std::fs::write(&kubeconfig, config.to_string()).context("cannot write the kubeconfig")?;
    let path = kubeconfig.display().to_string();
    agent.edit_settings(|text| {
        let other = |line: &str| {
            if line.starts_with("kubeconfig = ") {
                format!("kubeconfig = \"{path}\"")
            } else {
                line.to_owned()
            }
        };
        text.lines().map(other).collect::<Vec<_>>().join("\n") + "\n"
    })?;
    joined.give_bundle(&agent)?;
    super::joined::apply_node(api, &agent.host, 1)?;
    super::joined::label(api, "t1", "podspan.io/gateway=true")?;
    joined.start_agent(api, &agent)?;
    let beta = joined.start_beta(api)?;
    agent.until("the tunnel", SOON, reached)?;

    api.kubectl(&["-n", "podspan-system", "delete", "secret", "first"])?;
    api.stop()?;
    api.start()?;
    agent.until("it is told that the token is refused", Duration::from_secs(60), |status| {
        status.problems.iter().any(|problem| problem.contains("401"))
    })?;
    let status = agent.status()?;
    findings.require(reached(&status) && status.node.gateway, || "it does not forward any more".into());
    mint(api, "second")?;
    annotate(api, "t1", "podspan.io/pod-cidrs=10.61.50.0/24")?;
    let taken = agent.until("it follows with the new token", Duration::from_secs(120), |status| {
        status.node.pod_cidrs.to_string() == "10.61.50.0/24"
    })?;
    println!("       a new token in the file is used after {:.0} s", taken.as_secs_f64());
    findings.require(reached(&agent.status()?), || "the tunnel fell".into());
    drop(beta);
    joined.end(api)?;
    api.kubectl(&["-n", "podspan-system", "delete", "secret", "second"])?;
    findings.conclude(2)
}

/// A machine is deleted, and its Node: nobody is left who could withdraw its record but the others of its cluster.
pub(super) fn departed(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "departed")?;
    apply_settings(api, &json!({}))?;
    let agents = [joined.node(api, "d1", 1, true)?, joined.node(api, "d2", 2, true)?];
    let beta = joined.start_beta(api)?;
    let known = |name: &'static str| {
        move |status: &Status| {
            let nodes = status.clusters.iter().flat_map(|cluster| &cluster.nodes);
            nodes.into_iter().any(|node| node.id.node.as_str() == name)
        }
    };
    beta.until("both gateways of alpha", SOON, |status| known("d1")(status) && known("d2")(status))?;
    // Both are killed; of one the Node goes too. The other one is only away.
    joined.process(&agents[1])?.signal(Signal::SIGKILL)?;
    api.kubectl(&["delete", "node", "d2"])?;
    let taken =
        beta.until("the deleted node is withdrawn", Duration::from_secs(120), |status| !known("d2")(status))?;
    println!(
        "       a node that was deleted with its machine is withdrawn after {:.0} s",
        taken.as_secs_f64()
    );
    findings.require(known("d1")(&beta.status()?), || "the other node went too".into());
    findings.require(reached(&beta.status()?), || "alpha is not reached any more".into());

    // It comes back by its former name.
    super::joined::apply_node(api, &agents[1].host, 2)?;
    super::joined::label(api, "d2", "podspan.io/gateway=true")?;
    joined.start_agent(api, &agents[1])?;
    let taken = beta.until("it is known again", SOON, known("d2"))?;
    println!("       a node that comes back by its former name is known after {:.1} s", taken.as_secs_f64());
    // Killed with its Node still there: nobody withdraws it.
    joined.process(&agents[1])?.signal(Signal::SIGKILL)?;
    beta.until("nobody renews its lease", Duration::from_secs(60), |status| {
        let nodes = status.clusters.iter().flat_map(|cluster| &cluster.nodes);
        nodes.into_iter().any(|node| node.id.node.as_str() == "d2" && node.stale)
    })?;
    crate::signals::sleep(Duration::from_secs(40))?;
    findings.require(known("d2")(&beta.status()?), || "a node that is only away was withdrawn".into());
    joined.end(api)?;
    findings.conclude(3)
}

/// One of two brokers is down from the start, then the other.
pub(super) fn brokers(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::with_brokers(api, "brokers", 2)?;
    apply_settings(api, &json!({}))?;
    joined.start_broker(api, 0)?;
    let agent = joined.node(api, "b1", 1, true)?;
    let beta = joined.start_beta(api)?;
    agent.until("the tunnel, by the first broker", SOON, reached)?;
    let missing = |status: &Status| status.problems.iter().any(|problem| problem.contains("broker"));
    agent.until("the missing broker is told", SOON, missing)?;
    findings
        .require(agent.health("/readyz")?.0.contains("200"), || "not ready with one of two brokers".into());

    joined.start_broker(api, 1)?;
    let both = |status: &Status| status.broker.connected.as_ref().is_some_and(|all| all.contains(", "));
    let taken = agent.until("both are heard", SOON, |status| both(status) && !missing(status))?;
    println!("       a broker that comes back is heard after {:.1} s", taken.as_secs_f64());
    beta.until("both are heard", SOON, |status| both(status) && !missing(status))?;

    // Whoever comes now knows the second one only.
    joined.end_broker(api, 0)?;
    agent.until("the first one is missed", SOON, missing)?;
    let late = joined.node(api, "b2", 2, true)?;
    let taken = late.until("the tunnel, by the second broker", SOON, reached)?;
    println!(
        "       an agent that starts with the other broker only has its tunnel after {:.1} s",
        taken.as_secs_f64()
    );
    let knows = |status: &Status| {
        status
            .clusters
            .iter()
            .flat_map(|cluster| &cluster.nodes)
            .any(|node| node.id.node.as_str() == "b2" && !node.stale)
    };
    beta.until("the new node is known", SOON, knows)?;
    // A lease's time later nobody is stale: all are renewed at the second broker.
    crate::signals::sleep(Duration::from_secs(45))?;
    let status = beta.status()?;
    let stale: Vec<_> = status
        .clusters
        .iter()
        .flat_map(|c| &c.nodes)
        .filter(|node| node.stale)
        .map(|n| n.id.to_string())
        .collect();
    findings.expect("nodes that nobody confirms", Vec::<String>::new(), stale);
    findings.require(agent.pings("10.62.1.0")?, || "nothing goes through the tunnel".into());
    joined.end(api)?;
    findings.conclude(3)
}
