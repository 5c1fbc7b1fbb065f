//! `podspan clusterset show`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use podspan_wire::{CidrSet, ClusterId, ClusterSetId, PublicKey, UnixTime};
use serde::Serialize;

use crate::args::Output;
use crate::clusterset::{ClusterSet, Layout};
use crate::files;
use crate::human;
use crate::table::{Cell, Table};
use crate::tls;

/// The document of `--output json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    name: &'a str,
    cluster_set: ClusterSetId,
    created: UnixTime,
    brokers: Vec<String>,
    broker_ca_not_after: Option<UnixTime>,
    broker_certificate_not_after: Option<UnixTime>,
    grants: Vec<ShownGrant<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownGrant<'a> {
    cluster: &'a ClusterId,
    cluster_key: PublicKey,
    serial: u64,
    given: UnixTime,
    not_after: UnixTime,
    pod_cidrs: &'a CidrSet,
    service_cidrs: &'a CidrSet,
}

/// What a cluster set's directory tells.
pub(crate) fn show(dir: &Path, output: Output) -> Result<String> {
    let layout = Layout::new(dir);
    let set = ClusterSet::load(&layout)?;
    let certificate = layout.broker_certificate();
    // The directory of the broker may well have been moved to the broker.
    let certificate_end = match certificate.exists() {
        true => Some(tls::not_after(&files::read(&certificate)?)?),
        false => None,
    };
    let shown = Shown {
        name: &set.name,
        cluster_set: set.id,
        created: set.created,
        brokers: set.brokers.iter().map(ToString::to_string).collect(),
        broker_ca_not_after: tls::not_after(&set.broker_ca).ok(),
        broker_certificate_not_after: certificate_end,
        grants: set
            .grants
            .iter()
            .map(|given| ShownGrant {
                cluster: &given.grant.cluster,
                cluster_key: given.grant.cluster_key,
                serial: given.grant.serial,
                given: given.given,
                not_after: given.grant.not_after,
                pod_cidrs: &given.grant.pod_cidrs,
                service_cidrs: &given.grant.service_cidrs,
            })
            .collect(),
    };
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(&shown)? + "\n"),
        Output::Table => table(&shown, tls::now()?),
    }
}

fn table(shown: &Shown<'_>, now: UnixTime) -> Result<String> {
    let end = |end: Option<UnixTime>| match end {
        Some(end) => format!("ends {} ({})", human::date(end), human::until(end, now)),
        None => "not here".to_owned(),
    };
    let mut text = String::new();
    writeln!(text, "Cluster set {}, made {}", shown.name, human::date(shown.created))?;
    writeln!(text, "  root public key     {}", shown.cluster_set)?;
    writeln!(text, "  brokers             {}", shown.brokers.join(", "))?;
    writeln!(text, "  broker certificate  {}", end(shown.broker_certificate_not_after))?;
    writeln!(text, "  broker CA           {}", end(shown.broker_ca_not_after))?;
    writeln!(text)?;
    if shown.grants.is_empty() {
        writeln!(text, "No cluster has a grant yet: give one with `podspan cluster grant NAME`.")?;
        return Ok(text);
    }
    let mut table = Table::new(&["CLUSTER", "GRANT", "ENDS", "PODS", "SERVICES"]);
    for grant in &shown.grants {
        let ended = grant.not_after < now;
        let ends = format!("{}{}", human::date(grant.not_after), if ended { " (over)" } else { "" });
        // One CIDR a line: a list of all would be wider than any screen.
        let (mut pods, mut services) = (grant.pod_cidrs.iter(), grant.service_cidrs.iter());
        let mut first = true;
        loop {
            let (pod, service) = (pods.next(), services.next());
            if !first && pod.is_none() && service.is_none() {
                break;
            }
            let once = |cell: String| Cell::plain(if first { cell } else { String::new() });
            table.row(vec![
                once(grant.cluster.to_string()),
                once(grant.serial.to_string()),
                once(ends.clone()),
                Cell::plain(pod.map(ToString::to_string).unwrap_or_default()),
                Cell::plain(service.map(ToString::to_string).unwrap_or_default()),
            ]);
            first = false;
        }
    }
    table.write(&mut text, "", false);
    Ok(text)
}
