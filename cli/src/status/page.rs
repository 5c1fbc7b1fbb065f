//! The status as a page for a person: problems first, then who is reached how.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use podspan_wire::status::{ClusterStatus, NodeStatus, Reachability, Status};
use podspan_wire::{CidrSet, UnixTime};

use super::lanes::{Summary, add_drops};
use crate::human::{self, safe};
use crate::table::{Cell, Style, Table};

/// How the page is shown.
pub(super) struct View {
    /// Whether styles become colours.
    pub(super) colour: bool,
    /// Columns of the terminal, if it is one.
    pub(super) width: Option<usize>,
    /// Whether nodes without tunnels are listed.
    pub(super) all: bool,
}

/// Grants that end within this many days are pointed at.
const GRANT_SOON: u64 = 30 * 24 * 60 * 60;

/// The page.
pub(super) fn write(status: &Status, view: &View) -> String {
    let mut page = Page { text: String::new(), view };
    page.header(status);
    page.problems(status);
    page.clusters(status);
    page.delivery(status);
    page.drops(status);
    page.refused(status);
    page.kernel(status);
    page.text
}

struct Page<'a> {
    text: String,
    view: &'a View,
}

impl Page<'_> {
    fn paint(&self, style: Style, text: &str) -> String {
        style.paint(text, self.view.colour)
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn heading(&mut self, style: Style, heading: &str) {
        let heading = self.paint(style, heading);
        self.line("");
        self.line(&heading);
    }

    /// `label  value`, the value broken at the terminal's width and at words only.
    fn field(&mut self, label: &str, value: &str) {
        const INDENT: usize = 10;
        self.wrapped(&format!("{label:<INDENT$}"), INDENT, value);
    }

    /// `value` after `first`, further lines indented.
    fn wrapped(&mut self, first: &str, indent: usize, value: &str) {
        let most = self.view.width.unwrap_or(110).max(40);
        let mut line = first.to_owned();
        let mut width = first.chars().count();
        let mut empty = true;
        for word in value.split(' ').filter(|word| !word.is_empty()) {
            let length = word.chars().count();
            if !empty && width + 1 + length > most {
                self.line(&line);
                line = " ".repeat(indent);
                width = indent;
                empty = true;
            }
            if !empty {
                line.push(' ');
                width += 1;
            }
            line.push_str(word);
            width += length;
            empty = false;
        }
        self.line(&line);
    }

    fn header(&mut self, status: &Status) {
        let node = &status.node;
        let role = match (&node.draining, node.gateway) {
            (Some(why), _) => format!("gateway, draining ({})", safe(why)),
            (None, true) => "gateway".to_owned(),
            (None, false) => "node".to_owned(),
        };
        let first = self.paint(Style::Strong, &node.id.to_string());
        let up = human::age(status.now.since(status.started).as_secs_f64());
        self.line(&format!("{first}  {role}, podspan {}, up {up}", safe(&status.version)));
        self.field("Set", &node.cluster_set.to_string());
        self.field("Broker", &broker(status));
        let mut owns = format!("pods {}", or_none(&node.pod_cidrs));
        let _ = write!(owns, "; services {}", or_none(&node.service_cidrs));
        self.field("Owns", &owns);
        let ports: Vec<u16> = node.lanes.iter().map(|lane| lane.port).collect();
        let mut here = human::plural(node.lanes.len(), "lane");
        if let (Some(low), Some(high)) = (ports.iter().min(), ports.iter().max()) {
            let range = if low == high { format!("port {low}") } else { format!("ports {low}-{high}") };
            let _ = write!(here, ", UDP {range}");
        }
        if !node.endpoints.is_empty() {
            let endpoints: Vec<String> = node.endpoints.iter().map(ToString::to_string).collect();
            let _ = write!(here, " at {}", endpoints.join(", "));
        }
        let _ = write!(here, "; MTU {}", node.mtu);
        if node.underlay_mtu > 0 {
            let _ = write!(here, " (underlay {})", node.underlay_mtu);
        }
        let _ = write!(here, "; {}", human::plural(status.attachments, "attached pod"));
        self.field("Here", &here);
        let end = node.grant_not_after;
        if end < status.now {
            let value = format!(
                "over since {}: renew it with `podspan cluster grant {} --renew`",
                end, node.id.cluster
            );
            self.field("Grant", &value);
        } else if end.since(status.now).as_secs() < GRANT_SOON {
            let value = format!(
                "ends {} ({}): renew it with `podspan cluster grant {} --renew`",
                human::date(end),
                human::until(end, status.now),
                node.id.cluster
            );
            self.field("Grant", &value);
        } else {
            self.field("Grant", &format!("ends {} ({})", human::date(end), human::until(end, status.now)));
        }
    }

    fn problems(&mut self, status: &Status) {
        if status.problems.is_empty() {
            self.heading(Style::Good, "No problems");
            return;
        }
        self.heading(Style::Bad, &format!("PROBLEMS ({})", status.problems.len()));
        for problem in &status.problems {
            self.wrapped("  - ", 4, &safe(problem));
        }
    }

    fn clusters(&mut self, status: &Status) {
        if status.clusters.is_empty() {
            self.heading(Style::Warn, "No other cluster is known yet");
            return;
        }
        self.line("");
        let (wide, via) = self.table(status, true);
        let fits = self.view.width.is_none_or(|width| wide.width() <= width);
        let table = if fits { wide } else { self.table(status, false).0 };
        table.write(&mut self.text, "", self.view.colour);
        if !fits {
            self.endpoints(status);
        }
        if via > 0 {
            let line = format!(
                "and {} reached via their cluster's gateways (--all lists them)",
                human::plural(via, "node")
            );
            let line = self.paint(Style::Faint, &line);
            self.line(&line);
        }
        self.line("");
        for cluster in &status.clusters {
            self.cluster(cluster);
        }
    }

    /// How packets get to pods on other nodes of this cluster, if not as ever.
    fn delivery(&mut self, status: &Status) {
        const NAMED: usize = 10;
        let Some(delivery) = &status.delivery else { return };
        let (total, gateway) = (delivery.nodes.len(), status.node.gateway);
        let up = delivery.nodes.iter().filter(|node| node.state == Reachability::Up).count();
        let what = if gateway { "other node" } else { "gateway" };
        let mut line = format!(
            "{}: tunnels to {up} of {} of this cluster",
            safe(&delivery.mode),
            human::plural(total, what)
        );
        if gateway {
            let (tunnel, native) = (delivery.count("tunnel"), delivery.count("native"));
            let _ = write!(
                line,
                "; packets of other clusters take them to {tunnel}, the cluster's own network to {native}"
            );
        }
        self.line("");
        self.field("Delivery", &line);
        // What is found out is worth a reason; what the settings say is not.
        let by_tunnel = delivery.nodes.iter().filter(|node| node.by.as_deref() == Some("tunnel"));
        let named: Vec<_> = by_tunnel.filter(|_| delivery.mode == "auto").collect();
        for node in named.iter().take(NAMED) {
            self.wrapped("  ", 4, &format!("{} through a tunnel: {}", node.node, safe(&node.why)));
        }
        if named.len() > NAMED {
            self.line(&format!("  and {} more", named.len() - NAMED));
        }
    }

    /// The endpoints, where the table had no room for them.
    fn endpoints(&mut self, status: &Status) {
        for node in status.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            if let Some(endpoint) = Summary::of(node).endpoint {
                self.wrapped("  ", 4, &format!("{} at {endpoint}", node.id));
            }
        }
    }

    fn cluster(&mut self, cluster: &ClusterStatus) {
        let gateways = cluster.nodes.iter().filter(|node| node.gateway).count();
        let state = self.paint(style(cluster.state), cluster.state.label());
        let first = format!("{}: ", cluster.cluster);
        let mtu = cluster.path_mtu.map_or_else(String::new, |mtu| format!("path MTU {mtu}, "));
        // The width is counted without the colour's codes, so the coloured word stands last.
        self.wrapped(
            &first,
            4,
            &format!(
                "{}, {}, {mtu}routes {} - {state}",
                human::plural(cluster.nodes.len(), "node"),
                human::plural(gateways, "gateway"),
                or_none(&cluster.cidrs)
            ),
        );
    }

    /// The table of nodes, with or without the endpoint, and how many nodes are left out.
    fn table(&self, status: &Status, wide: bool) -> (Table, usize) {
        let mut headings = vec!["CLUSTER", "NODE", "ROLE", "STATE", "LANES"];
        if wide {
            headings.push("ENDPOINT");
        }
        headings.extend(if wide { ["HANDSHAKE", "RTT"] } else { ["AGE", "RTT"] });
        if wide {
            headings.push("LOSS");
        }
        headings.extend(["RX", "TX", "DROPS"]);
        let mut table = Table::new(&headings);
        let mut via = 0;
        for cluster in &status.clusters {
            for node in &cluster.nodes {
                let quiet = node.state == Reachability::Via && !node.gateway && node.lanes.is_empty();
                if quiet && !self.view.all {
                    via += 1;
                } else {
                    table.row(row(node, wide));
                }
            }
        }
        (table, via)
    }

    fn drops(&mut self, status: &Status) {
        let mut lines = Vec::new();
        for node in status.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            let drops = Summary::of(node).drops;
            if !drops.is_empty() {
                lines.push(format!("{}: {}", node.id, causes(&drops)));
            }
        }
        let mut own = BTreeMap::new();
        for worker in &status.workers {
            add_drops(&mut own, &worker.drops);
        }
        if !own.is_empty() {
            lines.push(format!("from nobody known: {}", causes(&own)));
        }
        if !lines.is_empty() {
            self.heading(Style::Strong, "Dropped packets since the start");
            for line in lines {
                self.wrapped("  ", 4, &line);
            }
        }
        let failed: Vec<String> = status
            .workers
            .iter()
            .filter_map(|worker| {
                let why = safe(worker.failed.as_ref()?);
                Some(format!("lane {} (UDP port {}): {why}", worker.lane, worker.port))
            })
            .collect();
        if !failed.is_empty() {
            self.heading(Style::Bad, "Packet workers that do not run");
            for line in failed {
                self.wrapped("  - ", 4, &line);
            }
        }
    }

    fn refused(&mut self, status: &Status) {
        let total = status.refusals.values().fold(0u64, |sum, count| sum.saturating_add(*count));
        if total == 0 && status.refused.is_empty() {
            return;
        }
        let kinds: Vec<String> = status
            .refusals
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(kind, count)| format!("{} {kind}", human::count(*count)))
            .collect();
        self.heading(Style::Warn, &format!("Refused records since the start: {}", kinds.join(", ")));
        for refused in &status.refused {
            let claimed = refused.claimed.as_ref().map_or("unreadable".to_owned(), ToString::to_string);
            let again = if refused.times > 1 {
                format!(", {} times", human::count(refused.times))
            } else {
                String::new()
            };
            let ago = ago(status.now, refused.at);
            self.wrapped(
                "  ",
                4,
                &format!("{claimed}: {}: {} ({ago}{again})", refused.kind, safe(&refused.detail)),
            );
        }
    }

    fn kernel(&mut self, status: &Status) {
        let kernel = &status.kernel;
        self.line("");
        let healed = match kernel.healed {
            0 => "nothing had to be put right".to_owned(),
            1 => "1 thing put right since the start".to_owned(),
            count => format!("{} things put right since the start", human::count(count)),
        };
        let line = format!(
            "{}, routing table {}, {}; {healed}",
            safe(&kernel.interface),
            kernel.table,
            human::plural(kernel.routes.len(), "route"),
        );
        self.field("Kernel", &line);
        let routes: Vec<String> = kernel.routes.iter().map(ToString::to_string).collect();
        if !routes.is_empty() {
            self.field("Routes", &routes.join(", "));
        }
        if !kernel.failing.is_empty() {
            self.heading(Style::Bad, "Cannot be put right in the kernel (tried again until it works)");
            for failing in &kernel.failing {
                self.wrapped("  - ", 4, &safe(failing));
            }
        }
    }
}

fn broker(status: &Status) -> String {
    let broker = &status.broker;
    let mut text = match &broker.connected {
        Some(address) => format!("connected to {}", safe(address)),
        None => format!("NOT connected (known: {})", safe(&broker.addresses.join(", "))),
    };
    let when = |what: &str, time: Option<UnixTime>| match time {
        Some(time) => format!("{what} {}", ago(status.now, time)),
        None => format!("never {what}"),
    };
    let _ = write!(text, "; {}", when("heard", broker.last_heard));
    let _ = write!(text, "; {}", when("published", broker.last_published));
    for (address, error) in &broker.errors {
        let _ = write!(text, "; {}: {}", safe(address), safe(error));
    }
    if broker.connected.is_none() && broker.last_heard.is_some() {
        text.push_str("; what was last heard stays in use");
    }
    text
}

fn ago(now: UnixTime, time: UnixTime) -> String {
    format!("{} ago", human::age(now.since(time).as_secs_f64()))
}

fn or_none(cidrs: &CidrSet) -> String {
    if cidrs.is_empty() { "none".to_owned() } else { cidrs.to_string() }
}

fn causes(drops: &BTreeMap<String, u64>) -> String {
    let causes: Vec<String> =
        drops.iter().map(|(cause, count)| format!("{} {}", human::count(*count), safe(cause))).collect();
    causes.join(", ")
}

fn style(state: Reachability) -> Style {
    match state {
        Reachability::Up => Style::Good,
        Reachability::Degraded | Reachability::Connecting => Style::Warn,
        Reachability::Down => Style::Bad,
        Reachability::Via => Style::Faint,
    }
}

fn row(node: &NodeStatus, wide: bool) -> Vec<Cell> {
    let sum = Summary::of(node);
    let none = || "-".to_owned();
    let liveness = node.liveness();
    // That what is down is dead needs no saying.
    let notable = liveness.is_avoided() && node.state != Reachability::Down;
    let mut state = node.state.label().to_owned();
    if notable {
        let _ = write!(state, ", {}", liveness.label());
    }
    if node.stale {
        state.push_str(", stale");
    }
    let state_style = match style(node.state) {
        Style::Good if node.stale || notable => Style::Warn,
        other => other,
    };
    let mut cells = vec![
        Cell::plain(node.id.cluster.to_string()),
        Cell::plain(node.id.node.to_string()),
        Cell::plain(if node.gateway { "gateway" } else { "node" }),
        Cell::styled(state, state_style),
    ];
    if sum.total == 0 {
        let dashes = if wide { 8 } else { 6 };
        cells.push(Cell::number(none(), Style::Faint));
        if wide {
            cells.push(Cell::styled(none(), Style::Faint));
        }
        cells.extend((cells.len()..4 + dashes).map(|_| Cell::number(none(), Style::Faint)));
        return cells;
    }
    let lanes_style = match sum.up {
        0 => Style::Bad,
        up if up < sum.total => Style::Warn,
        _ => Style::Plain,
    };
    cells.push(Cell::number(format!("{}/{}", sum.up, sum.total), lanes_style));
    if wide {
        cells.push(Cell::plain(sum.endpoint.clone().unwrap_or_else(none)));
    }
    let dropped = sum.dropped();
    let drops_style = if dropped > 0 { Style::Warn } else { Style::Plain };
    cells.push(Cell::number(sum.handshake_age.map_or_else(none, human::age), Style::Plain));
    cells.push(Cell::number(sum.rtt_us.map_or_else(none, human::micros), Style::Plain));
    if wide {
        let loss = node.loss();
        let loss_style = if loss.is_some_and(|loss| loss > 0.0) { Style::Warn } else { Style::Plain };
        let percent = |loss: f64| format!("{:.0}%", 100.0 * loss);
        cells.push(Cell::number(loss.map_or_else(none, percent), loss_style));
    }
    cells.push(Cell::number(human::bytes(sum.rx_bytes), Style::Plain));
    cells.push(Cell::number(human::bytes(sum.tx_bytes), Style::Plain));
    cells.push(Cell::number(human::count(dropped), drops_style));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../tests/golden/status.json");

    fn page(view: &View) -> String {
        write(&serde_json::from_str(SAMPLE).unwrap(), view)
    }

    #[test]
    fn a_narrow_terminal_gets_a_narrow_page() {
        let wide = page(&View { colour: false, width: Some(150), all: false });
        assert!(wide.contains("ENDPOINT") && wide.contains("HANDSHAKE"), "{wide}");
        assert!(wide.lines().all(|line| line.len() <= 150), "{wide}");
        let narrow = page(&View { colour: false, width: Some(80), all: false });
        assert!(!narrow.contains("ENDPOINT"), "{narrow}");
        assert!(narrow.contains("  gamma/gamma-1 at 203.0.113.11:51840-51841\n"), "{narrow}");
        // A node's name is never cut: only its row may be longer.
        let row = |line: &&str| {
            ["CLUSTER  ", "beta  ", "gamma  ", "delta  "].iter().any(|start| line.starts_with(start))
        };
        for line in narrow.lines().filter(|line| !row(line)) {
            assert!(line.len() <= 80, "{line}");
        }
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let plain = page(&View { colour: false, width: None, all: true });
        let coloured = page(&View { colour: true, width: None, all: true });
        assert!(coloured.contains("\x1b[1;31mPROBLEMS (3)\x1b[0m"), "{coloured:?}");
        let mut stripped = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, code)) = rest.split_once('\x1b') {
            stripped.push_str(before);
            rest = code.split_once('m').unwrap().1;
        }
        stripped.push_str(rest);
        // Where lines are broken may differ, since codes are not counted exactly.
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&stripped), words(&plain));
    }

    #[test]
    fn a_grant_that_is_over_is_told() {
        let mut status: Status = serde_json::from_str(SAMPLE).unwrap();
        status.node.grant_not_after = UnixTime(status.now.0 - 60);
        let page = write(&status, &View { colour: false, width: None, all: false });
        assert!(page.contains("Grant     over since 2026-11-21T23:59:00Z: renew it with"), "{page}");
    }
}
