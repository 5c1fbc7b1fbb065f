//! `lab status`: what stands and what runs.

use std::process::ExitCode;

use anyhow::Result;

use crate::netns::Netns;
use crate::requirements;
use crate::screen::Screen;
use crate::state::{Record, Stage};
use crate::topology::{Cloud, Topology};
use crate::world;

/// Shows it; the exit code tells whether all is as `lab up` left it.
pub(crate) fn status() -> Result<ExitCode> {
    requirements::ensure_root()?;
    let screen = Screen::new(false);
    let Some(record) = Record::load()? else {
        screen.raw("there is no lab; make one with `cargo lab up`");
        return Ok(ExitCode::FAILURE);
    };
    if record.kube.is_some() {
        return crate::kube::run(&crate::kube::KubeCommand::Status);
    }
    let stage = match record.stage {
        Stage::Up => "up",
        Stage::Working => "being made or used by a running command, or left by one that was cut short",
    };
    let podspan = if record.podspan { "yes" } else { "no" };
    screen.raw(&format!("lab: {stage}; rules: {}; podspan: {podspan}", record.variant));
    let topology = Topology::of(record.shape);
    for cloud in &topology.clouds {
        show_cloud(cloud, &record, &screen);
    }
    let well = show_processes(&record, &screen)? & show_underlay(&topology, &record, &screen);
    Ok(if well && record.stage == Stage::Up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_cloud(cloud: &Cloud, record: &Record, screen: &Screen) {
    let (pods, services) = (cloud.pod_cidr, cloud.service_cidr);
    screen.raw(&format!(
        "\ncluster {}: pods {}, {}; services {}, {}",
        cloud.name, pods.v4, pods.v6, services.v4, services.v6
    ));
    for node in &cloud.nodes {
        let kind = match (node.gateway, node.behind_nat) {
            (true, _) => "gateway",
            (false, true) => "behind NAT",
            (false, false) => "ordinary node",
        };
        let addresses: Vec<_> = node.addresses().map(|address| address.to_string()).collect();
        screen.raw(&format!("  {} ({kind}): {}", node.name, addresses.join(", ")));
        for pod in &node.pods {
            let addresses = match record.pods.get(&pod.id()) {
                Some(address) => format!("{}, {}", address.v4, address.v6),
                None => "not attached".into(),
            };
            screen.raw(&format!("    {:<12} {addresses}", pod.id()));
        }
    }
    for service in cloud.services() {
        let address = service.address;
        screen.raw(&format!("  {:<18} {}, {}", service.id(), address.v4, address.v6));
    }
}

fn show_processes(record: &Record, screen: &Screen) -> Result<bool> {
    let (alive, dead): (Vec<_>, Vec<_>) = record.daemons.iter().partition(|daemon| daemon.process.is_alive());
    screen.raw(&format!("\nprocesses: {} running", alive.len()));
    for daemon in &dead {
        let log = world::log_path(&daemon.name)?;
        screen.raw(&format!("  ended: {} (see {})", daemon.name, log.display()));
    }
    Ok(dead.is_empty())
}

fn show_underlay(topology: &Topology, record: &Record, screen: &Screen) -> bool {
    let gone: Vec<_> =
        record.namespaces.iter().filter(|name| !Netns::named(*name).exists()).cloned().collect();
    if !gone.is_empty() {
        screen.raw(&format!("namespaces that are not there: {}", gone.join(", ")));
        return false;
    }
    match world::leaks(topology) {
        Ok(leaks) => {
            let leaks: Vec<_> = leaks.iter().map(|(from, packets)| format!("{from} {packets}")).collect();
            let leaks = leaks.join(", ");
            screen.raw(&format!("packets that the router dropped since the underlay does not own their addresses, by origin: {leaks}"));
            true
        }
        Err(error) => {
            screen.raw(&format!("the router is not ready: {error:#}"));
            false
        }
    }
}
