//! What goes away for good, or for long: the API server, a token, a node, a broker.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use podspan_wire::status::{Reachability, Status};
use serde_json::json;

use super::joined::{Joined, annotate, apply_node, apply_settings, label, until};
use super::status::beta_is;
use crate::kube::KubeApi;
use crate::scenario::Findings;

const SOON: Duration = Duration::from_secs(30);
/// The time of the brokers' leases where a scenario waits for it.
const LEASE: Duration = Duration::from_secs(6);

pub(super) fn reached(status: &Status) -> bool {
    status.clusters.iter().any(|cluster| cluster.state == Reachability::Up)
}

/// The API server is away: everything goes on, an agent can even start; and it is back: all is followed again. One
/// agent's token ends meanwhile, which kubelet can renew only afterwards: it reads the file again.
pub(super) fn away(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "away")?;
    apply_settings(api, &json!({}))?;
    let agent = joined.node(api, "v1", 1, true)?;
    let beta = joined.start_beta(api)?;
    agent.until("the tunnel", SOON, reached)?;
    // beta may still be setting itself up when its tunnel stands.
    until("an answer through the tunnel", SOON, || {
        Ok(if agent.pings("10.62.1.0")? { Ok(()) } else { Err("none".into()) })
    })?;
    let tokens = Tokens::new(api)?;
    tokens.mint(api, "first")?;
    let other = joined.agent(api, "v2")?;
    other.edit_settings(|text| tokens.in_place_of_kubeconfig(text))?;
    joined.give_bundle(&other)?;
    apply_node(api, &other.host, 2)?;
    label(api, "v2", "podspan.io/gateway=true")?;
    joined.start_agent(api, &other)?;
    other.until("the tunnel", SOON, reached)?;

    api.kubectl(&["-n", "podspan-system", "delete", "secret", "first"])?;
    api.stop()?;
    agent.until("it is told that the API server is away", Duration::from_secs(60), |status| {
        status.problems.iter().any(|problem| problem.contains("the API server does not answer"))
    })?;
    findings.require(agent.pings("10.62.1.0")?, || "no answer without the API server".into());
    let (ready, why) = agent.health("/readyz")?;
    findings.require(ready.contains("200"), || format!("not ready without the API server: {why}"));

    // A new start without it: the last good facts are used.
    joined.process(&agent)?.signal(Signal::SIGKILL)?;
    joined.process(&agent)?.wait(Duration::from_secs(5))?;
    joined.start_agent(api, &agent)?;
    let taken = agent.until("it forwards again", Duration::from_secs(40), reached)?;
    println!(
        "       an agent that starts without the API server has its tunnel after {:.1} s",
        taken.as_secs_f64()
    );
    let status = agent.status()?;
    findings.expect("its pods", 2, status.node.pod_cidrs.len());
    findings.require(status.node.gateway, || "it is a gateway by what was kept".into());
    findings.require(agent.pings("10.62.1.0")?, || "no answer after a start without the API server".into());
    // Longer than an agent needs to notice, so that it has a return to notice too. Outages of minutes are for the full
    // clusters.
    crate::signals::sleep(Duration::from_secs(12))?;
    findings.require(reached(&agent.status()?), || "the tunnel fell while the API server was away".into());

    api.start()?;
    annotate(api, "v1", "podspan.io/pod-cidrs=10.61.50.0/24")?;
    annotate(api, "v2", "podspan.io/pod-cidrs=10.61.60.0/24")?;
    other.until("it is told that the token is refused", Duration::from_secs(60), |status| {
        status.problems.iter().any(|problem| problem.contains("401"))
    })?;
    let status = other.status()?;
    findings.require(reached(&status) && status.node.gateway, || "it does not forward any more".into());
    tokens.mint(api, "second")?;
    let taken = agent.until("it follows again", Duration::from_secs(60), |status| {
        status.node.pod_cidrs.to_string() == "10.61.50.0/24"
            && !status.problems.iter().any(|problem| problem.contains("API server"))
    })?;
    println!(
        "       once the API server is back, and another agent's token is known to be refused, a change is followed \
         after {:.1} s",
        taken.as_secs_f64()
    );
    beta_is(api, "Connected", "AllGatewaysUp", Duration::from_secs(60))?;
    // The file is read again once a minute.
    let taken = other.until("it follows with the new token", Duration::from_secs(120), |status| {
        status.node.pod_cidrs.to_string() == "10.61.60.0/24"
    })?;
    println!("       a new token in the file is used after {:.0} s more", taken.as_secs_f64());
    findings.require(reached(&other.status()?), || "the tunnel fell".into());
    drop(beta);
    joined.end(api)?;
    api.kubectl(&["-n", "podspan-system", "delete", "secret", "second"])?;
    findings.conclude(8)
}

/// A token of the agents' service account in a file, as kubelet keeps one for a pod.
pub(super) struct Tokens {
    file: PathBuf,
    kubeconfig: PathBuf,
}

impl Tokens {
    /// Makes a kubeconfig that names the file, which is not there yet.
    pub(super) fn new(api: &KubeApi) -> Result<Self> {
        let file = api.directory("token")?.join("token");
        let kubeconfig = file.with_file_name("kubeconfig");
        let config =
            std::fs::read_to_string(api.kubeconfig_for_service_account("podspan-system", "podspan-agent")?)?;
        let mut config: serde_json::Value = serde_json::from_str(&config)?;
        config["users"][0]["user"] = json!({ "tokenFile": file });
        std::fs::write(&kubeconfig, config.to_string()).context("cannot write the kubeconfig")?;
        Ok(Self { file, kubeconfig })
    }

    /// Writes a token that holds for as long as the Secret `bound` is there.
    pub(super) fn mint(&self, api: &KubeApi, bound: &str) -> Result<()> {
        let token = api.bound_token("podspan-system", "podspan-agent", bound)?;
        std::fs::write(&self.file, token).context("cannot write the token")
    }

    /// An agent's settings with this kubeconfig.
    pub(super) fn in_place_of_kubeconfig(&self, settings: &str) -> String {
        let ours = format!("kubeconfig = \"{}\"", self.kubeconfig.display());
        let lines = settings.lines().map(|line| match line.starts_with("kubeconfig = ") {
            true => ours.clone(),
            false => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n") + "\n"
    }
}

/// Machines fail: of one the Node is deleted too. Nobody is left who could withdraw its record but the others of its
/// cluster; the other machine is only away, for all that they know.
pub(super) fn departed(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::with_brokers(api, "departed", 1)?.with_leases_of(LEASE);
    joined.start_broker(api, 0)?;
    apply_settings(api, &json!({}))?;
    // The one that is left writes the status from the beginning on: nobody has to wait until it takes that over.
    let first = joined.node(api, "d1", 1, true)?;
    until("d1 writes the status", SOON, || {
        let holder = api
            .get_json(&["-n", "podspan-system", "lease", "podspan-status"])
            .map(|lease| lease["spec"]["holderIdentity"].to_string());
        Ok(if holder.as_ref().is_ok_and(|holder| holder == "\"d1\"") {
            Ok(())
        } else {
            Err(format!("{holder:?}"))
        })
    })?;
    let (deleted, away) = (joined.node(api, "d2", 2, true)?, joined.node(api, "d3", 3, true)?);
    let beta = joined.start_beta(api)?;
    let node = |status: &Status, name: &str| {
        let mut nodes = status.clusters.iter().flat_map(|cluster| &cluster.nodes);
        nodes.find(|node| node.id.node.as_str() == name).cloned()
    };
    let known = |status: &Status, name: &str| node(status, name).is_some();
    beta.until("all gateways of alpha", SOON, |status| {
        [&first, &deleted, &away].iter().all(|agent| known(status, &agent.node))
    })?;
    joined.process(&away)?.signal(Signal::SIGKILL)?;
    joined.process(&deleted)?.signal(Signal::SIGKILL)?;
    api.kubectl(&["delete", "node", "d2"])?;
    let taken =
        beta.until("the deleted node is withdrawn", Duration::from_secs(120), |status| !known(status, "d2"))?;
    println!(
        "       a node that was deleted with its machine is withdrawn after {:.0} s, with leases of {} s",
        taken.as_secs_f64(),
        LEASE.as_secs()
    );
    findings.require(known(&beta.status()?, "d1"), || "the agent that is left went too".into());
    findings.require(reached(&beta.status()?), || "alpha is not reached any more".into());

    // It comes back by its former name.
    apply_node(api, &deleted.host, 2)?;
    label(api, "d2", "podspan.io/gateway=true")?;
    joined.start_agent(api, &deleted)?;
    let taken = beta.until("it is known again", SOON, |status| known(status, "d2"))?;
    println!("       a node that comes back by its former name is known after {:.1} s", taken.as_secs_f64());
    // The one that was killed before it, with its Node still there: nobody withdraws it, however long ago that was.
    crate::signals::sleep(Duration::from_secs(8))?;
    let status = beta.status()?;
    findings.require(node(&status, "d3").is_some_and(|node| node.stale), || {
        format!(
            "a node that is only away should be known, and as one that nobody confirms: {:?}",
            node(&status, "d3")
        )
    });
    findings.require(node(&status, "d2").is_some_and(|node| !node.stale), || {
        format!("the node that is back should be confirmed: {:?}", node(&status, "d2"))
    });
    joined.end(api)?;
    findings.conclude(4)
}

/// One of two brokers is down from the start, then the other.
pub(super) fn brokers(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::with_brokers(api, "brokers", 2)?.with_leases_of(LEASE);
    apply_settings(api, &json!({}))?;
    joined.start_broker(api, 0)?;
    let agent = joined.node(api, "b1", 1, true)?;
    let beta = joined.start_beta(api)?;
    agent.until("the tunnel, by the first broker", SOON, reached)?;
    let missing = |status: &Status| status.problems.iter().any(|problem| problem.contains("broker"));
    agent.until("the missing broker is told", SOON, missing)?;
    until("ready with one of two brokers", SOON, || {
        let (ready, why) = agent.health("/readyz")?;
        Ok(if ready.contains("200") {
            Ok(())
        } else {
            println!("       not ready yet: {}", why.trim());
            Err(why)
        })
    })?;

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
    // Two leases' time later nobody is stale: all are renewed at the second broker.
    crate::signals::sleep(2 * LEASE)?;
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
    findings.conclude(2)
}
