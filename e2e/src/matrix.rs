//! Who reaches whom: every pod every other, and every service, in both families.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::netns::Netns;
use crate::probe::{self, Job, Task};
use crate::topology::{Family, POD_PORT, SERVICE_PORT};
use crate::world::World;

/// Bytes that are echoed on every way: more than one packet.
const PAYLOAD: usize = 3000;

/// What became of each way that was tried.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matrix {
    ways: Vec<Way>,
}

/// From a pod to a pod or a service in one family.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) family: Family,
    pub(crate) error: Option<String>,
    /// The client's own address, and the one that the server saw.
    pub(crate) own: IpAddr,
    pub(crate) seen_as: Option<IpAddr>,
}

impl Matrix {
    /// Every ordered pair of pods.
    pub(crate) fn of_pods(world: &World) -> Result<Self> {
        let targets = world.topology.pods().map(|pod| pod.id()).collect::<Vec<_>>();
        Self::take(world, &targets, |id, family| {
            Ok(SocketAddr::new(world.pod_address(id, family)?, POD_PORT))
        })
    }

    /// Every pod to every service of every cluster.
    pub(crate) fn of_services(world: &World) -> Result<Self> {
        let services: BTreeMap<_, _> =
            world.topology.services().into_iter().map(|service| (service.id(), service.address)).collect();
        let targets: Vec<_> = world.topology.services().iter().map(crate::topology::Service::id).collect();
        Self::take(world, &targets, |id, family| Ok(SocketAddr::new(services[id].of(family), SERVICE_PORT)))
    }

    fn take(
        world: &World,
        targets: &[String],
        address: impl Fn(&str, Family) -> Result<SocketAddr>,
    ) -> Result<Self> {
        let mut lists: Vec<(Netns, Vec<Job>)> = Vec::new();
        let mut ways = Vec::new();
        for pod in world.topology.pods() {
            let mut jobs = Vec::new();
            for to in targets.iter().filter(|to| **to != pod.id()) {
                for family in Family::BOTH {
                    let from = pod.id();
                    let job = Job::new(
                        format!("{from} -> {to}"),
                        address(to, family)?,
                        Task::Tcp { bytes: PAYLOAD },
                    );
                    jobs.push(job);
                    let own = world.pod_address(&from, family)?;
                    ways.push(Way { from, to: to.clone(), family, error: None, own, seen_as: None });
                }
            }
            lists.push((pod.netns(), jobs));
        }
        let outcomes = probe::ask_all(&lists)?.into_iter().flatten();
        for (way, outcome) in ways.iter_mut().zip(outcomes) {
            way.error = outcome.error;
            way.seen_as = outcome.seen_as;
        }
        Ok(Self { ways })
    }

    pub(crate) fn ways(&self) -> &[Way] {
        &self.ways
    }

    pub(crate) fn tried(&self) -> usize {
        self.ways.len()
    }

    pub(crate) fn reached(&self) -> usize {
        self.ways.iter().filter(|way| way.error.is_none()).count()
    }

    /// The matrix as a table: a row for each pod, a column for each target.
    pub(crate) fn table(&self) -> String {
        let mut columns: Vec<&str> = Vec::new();
        let mut rows: BTreeMap<&str, BTreeMap<&str, BTreeSet<Family>>> = BTreeMap::new();
        for way in &self.ways {
            if !columns.contains(&way.to.as_str()) {
                columns.push(&way.to);
            }
            let cell = rows.entry(&way.from).or_default().entry(&way.to).or_default();
            if way.error.is_none() {
                cell.insert(way.family);
            }
        }
        // The first row lacks its own column, which the second one brings to the end.
        columns.sort_unstable();
        let mut text = String::new();
        for (number, column) in columns.iter().enumerate() {
            text.push_str(&format!("{:>4} {column}\n", number + 1));
        }
        text.push_str(&format!("\n{:>14} ", "from \\ to"));
        for number in 1..=columns.len() {
            text.push_str(&format!("{number:>3}"));
        }
        text.push('\n');
        for (from, cells) in rows {
            text.push_str(&format!("{from:>14} "));
            for column in &columns {
                let mark = cells.get(column).map_or("-", |families| {
                    match (families.contains(&Family::V4), families.contains(&Family::V6)) {
                        (true, true) => "ok",
                        (true, false) => "v4",
                        (false, true) => "v6",
                        (false, false) => "NO",
                    }
                });
                text.push_str(&format!("{mark:>3}"));
            }
            text.push('\n');
        }
        text
    }

    /// What was not reached, in words, each way a line.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failed = self.ways.iter().filter_map(|way| {
            let error = way.error.as_ref()?;
            Some(format!("{} -> {} {}: {error}", way.from, way.to, way.family))
        });
        failed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_is_reached_by_which_family() {
        let way = |from: &str, to: &str, family, error: Option<&str>| Way {
            from: from.into(),
            to: to.into(),
            family,
            error: error.map(str::to_owned),
            own: [10, 1, 1, 2].into(),
            seen_as: None,
        };
        let matrix = Matrix {
            ways: vec![
                way("a/pod1", "a/pod2", Family::V4, None),
                way("a/pod1", "a/pod2", Family::V6, None),
                way("a/pod2", "a/pod1", Family::V4, None),
                way("a/pod2", "a/pod1", Family::V6, Some("timed out")),
            ],
        };
        let table = matrix.table();
        assert!(table.contains("a/pod1   - ok\n") && table.contains("a/pod2  v4  -\n"), "{table}");
        assert_eq!((matrix.tried(), matrix.reached()), (4, 3));
        assert_eq!(matrix.failures(), ["a/pod2 -> a/pod1 IPv6: timed out"]);
    }
}
