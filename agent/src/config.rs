//! The agent's settings: one TOML file, read whole.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use podspan_dataplane::Offload;
use podspan_wire::NodeName;
use podspan_wire::settings::{FilePath, ListenAddress, Reader, Section, SettingsError};

use crate::cni_install::CniSettings;
use crate::pod_delivery::Delivery;
use crate::policy::Policy;

/// What happens to tunnels, routes and rules when the agent is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// They stay, for the next start: packets wait in the interface instead of leaking elsewhere.
    Keep,
    /// They go, and the node is withdrawn from the broker.
    Remove,
}

impl FromStr for OnExit {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "keep" => Ok(Self::Keep),
            "remove" => Ok(Self::Remove),
            _ => Err("use \"keep\" or \"remove\""),
        }
    }
}

/// What an agent does once another one has taken over from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterTakeover {
    /// It ends.
    End,
    /// It stands by until it is told to stop: where whoever started it would only start it again. Should the
    /// other agent end, it takes the node back.
    Wait,
}

impl FromStr for AfterTakeover {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "end" => Ok(Self::End),
            "wait" => Ok(Self::Wait),
            _ => Err("use \"end\" or \"wait\""),
        }
    }
}

/// Where the facts about this node come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A TOML file, read again whenever it changes.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// The API server of the Kubernetes cluster that the node belongs to.
    Kubernetes(KubernetesSource),
}

/// How the API server is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubernetesSource {
    /// The Node's name; that of the environment's `NODE_NAME` unless set.
    pub node: Option<NodeName>,
    /// The kubeconfig file; the pod's own service account unless set.
    pub kubeconfig: Option<PathBuf>,
}

/// The settings of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The bundle file of this cluster; mode 0600.
    pub bundle: PathBuf,
    /// Where the agent keeps its keys and what it knows; mode 0700.
    pub state_dir: PathBuf,
    /// The unix socket of status and CNI plugin.
    pub socket: PathBuf,
    /// Where `/healthz`, `/readyz` and `/metrics` are answered; nowhere unless set.
    pub health_listen: Option<SocketAddr>,
    /// What happens when the agent is told to stop.
    pub on_exit: OnExit,
    /// What it does once another one has taken over from it.
    pub after_takeover: AfterTakeover,
    /// The unix socket on which this very process is asked whether it is alive and ready; none unless set.
    pub probe_socket: Option<PathBuf>,
    /// Where the facts about this node come from.
    pub source: Source,
    /// The CNI plugin's place on the node; untouched unless set.
    pub cni: Option<CniSettings>,
    /// The packet path.
    pub tunnel: Tunnel,
    /// How packets get from a gateway to pods on other nodes of its cluster.
    pub delivery: Delivery,
    /// How the gateways of other clusters are used.
    pub policy: Policy,
    /// Offloads of the kernel that are used where it has them; all, but for diagnosis.
    pub offload: Offload,
}

/// Settings of the packet path and of what stands in the kernel for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The TUN interface's name, at most 15 characters.
    pub interface: String,
    /// How many lanes, and thus workers, this node has, if that is set; see [`Self::lanes`].
    pub lanes: Option<usize>,
    /// UDP port of the first lane; lane `i` listens on this port plus `i`.
    pub port: u16,
    /// The tunnel's MTU in bytes; follows the underlay unless set.
    pub mtu: Option<u32>,
    /// Firewall mark of outer packets.
    pub fwmark: u32,
    /// Number of podspan's routing table.
    pub table: u32,
    /// Priority of the rule that leads there.
    pub rule_priority: u32,
    /// Interval of keepalives from a node that may sit behind NAT; zero for none.
    pub persistent_keepalive: Duration,
}

/// Outer packets' mark. Clear of the bits that kube-proxy (0x4000, 0x8000), Cilium (0x0f00), Calico and
/// Weave (the upper 16) and the AWS VPC CNI (0x80) give a meaning of their own.
const DEFAULT_FWMARK: u32 = 0x3073;

/// Bits by which kube-proxy knows packets to masquerade (`--iptables-masquerade-bit`, 14) and, in versions
/// before 1.28, kubelet those to drop (15).
const KUBE_PROXY_BITS: u32 = 0xc000;

/// The most lanes that a gateway takes by itself, and another node: the one carries a cluster's packets, the other
/// its pods' only.
const GATEWAY_LANES: usize = 16;
const NODE_LANES: usize = 2;

impl Tunnel {
    /// How many lanes this node starts with: as the settings say, else one for each core, up to 16 on a gateway
    /// and 2 elsewhere.
    #[must_use]
    pub fn lanes(&self, gateway: bool) -> usize {
        self.lanes.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            Self::lanes_for(cores, gateway)
        })
    }

    fn lanes_for(cores: usize, gateway: bool) -> usize {
        cores.min(if gateway { GATEWAY_LANES } else { NODE_LANES })
    }

    /// The routing table, beside [`Self::table`], of what a gateway hands to other nodes of its cluster through
    /// tunnels: the next one.
    #[must_use]
    pub fn delivery_table(&self) -> u32 {
        self.table.wrapping_add(1)
    }

    /// What is to be said of a node that runs `now` lanes, having started in another role than it has.
    #[must_use]
    pub fn too_few_lanes(&self, gateway: bool, now: usize) -> Option<String> {
        let wanted = self.lanes(gateway);
        (self.lanes.is_none() && now < wanted).then(|| {
            format!(
                "this node became a gateway after its agent's start and has {now} of {wanted} lanes, so it carries \
                 less than it could: restart the agent when there is another gateway"
            )
        })
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            interface: podspan_wire::INTERFACE.to_owned(),
            lanes: None,
            port: podspan_wire::DEFAULT_PORT,
            mtu: None,
            fwmark: DEFAULT_FWMARK,
            table: 7183,
            rule_priority: 5183,
            persistent_keepalive: Duration::from_secs(25),
        }
    }
}

/// The name of a network interface (`IFNAMSIZ`, `dev_valid_name` of the kernel).
struct InterfaceName(String);

impl FromStr for InterfaceName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ok = (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'"' && b != b'%');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err("an interface name has 1 to 15 characters, no space, '/' or ':'")
        }
    }
}

impl Config {
    /// Reads the settings from the text of the file at `path`; nothing of the file system is looked at.
    ///
    /// # Errors
    /// Every fault of the file at once, each with line and key.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let base = path.parent().unwrap_or(Path::new("."));
        let (mut reader, mut top) = Reader::new(text);
        let r = &mut reader;
        let resolve = |path: FilePath| path.within(base);

        let bundle =
            top.required::<FilePath>(r, "bundle", "the path of the file that `podspan cluster grant` wrote");
        let state_dir = top.optional::<FilePath>(r, "state-dir");
        let socket = top.optional::<FilePath>(r, "socket");
        let health_listen = top.optional::<ListenAddress>(r, "health-listen").map(|address| address.0);
        let on_exit = top.optional(r, "on-exit").unwrap_or(OnExit::Keep);
        let after_takeover = top.optional(r, "after-takeover").unwrap_or(AfterTakeover::End);
        let probe_socket = top.optional::<FilePath>(r, "probe-socket").map(resolve);
        let delivery: Delivery = top.optional(r, "delivery").unwrap_or_default();
        let source = match top.section(r, "source") {
            Some(section) => Self::source(r, section, base),
            None => {
                r.fault(&top, "source", "is missing: say where this node's facts come from, such as [source] with file = \"node.toml\"");
                None
            }
        };
        let cni = top.section(r, "cni").map(|section| CniSettings::read(r, section, base));
        let tunnel = match top.section(r, "tunnel") {
            Some(section) => Self::tunnel(r, section),
            None => Tunnel::default(),
        };
        if delivery.has_tunnels() && matches!(tunnel.delivery_table(), 0 | 253) {
            let message = format!(
                "delivery through tunnels uses the table after tunnel.table ({}) as well, which is the kernel's own: \
                 use another number there",
                tunnel.table
            );
            r.fault(&top, "delivery", message);
        }
        let policy = Policy::read(r, &mut top);
        let offload = match top.section(r, "offload") {
            Some(section) => Self::offload(r, section),
            None => Offload::default(),
        };
        top.finish(r);
        reader.finish(&path.display().to_string())?;
        // Every `None` of a required value left a fault behind, so that `finish` has returned above.
        let missing = || SettingsError { file: path.display().to_string(), faults: Vec::new() };
        Ok(Self {
            bundle: bundle.map(resolve).ok_or_else(missing)?,
            state_dir: state_dir.map_or_else(|| PathBuf::from("/var/lib/podspan"), resolve),
            socket: socket.map_or_else(|| PathBuf::from(podspan_wire::DEFAULT_SOCKET), resolve),
            health_listen,
            on_exit,
            after_takeover,
            probe_socket,
            source: source.ok_or_else(missing)?,
            cni,
            tunnel,
            delivery,
            policy,
            offload,
        })
    }

    fn source<'t>(r: &mut Reader<'t>, mut section: Section<'t>, base: &Path) -> Option<Source> {
        let s = &mut section;
        let file = s.optional::<FilePath>(r, "file");
        let source = match s.optional::<bool>(r, "kubernetes").unwrap_or(false) {
            true => {
                if file.is_some() {
                    r.fault(s, "file", "stands beside kubernetes = true: the facts come from one of them");
                }
                let node = s.optional(r, "node");
                let kubeconfig = s.optional::<FilePath>(r, "kubeconfig").map(|path| path.within(base));
                Some(Source::Kubernetes(KubernetesSource { node, kubeconfig }))
            }
            false => {
                if file.is_none() {
                    r.fault(
                        s,
                        "file",
                        "is missing: the path of the file with this node's facts, or else kubernetes = true",
                    );
                }
                file.map(|file| Source::File { path: file.within(base) })
            }
        };
        section.finish(r);
        source
    }

    fn offload<'t>(r: &mut Reader<'t>, mut section: Section<'t>) -> Offload {
        let mut read = |key| section.optional::<bool>(r, key).unwrap_or(true);
        let offload = Offload { tso: read("tso"), uso: read("uso"), gso: read("gso"), gro: read("gro") };
        section.finish(r);
        offload
    }

    fn tunnel<'t>(r: &mut Reader<'t>, mut section: Section<'t>) -> Tunnel {
        let default = Tunnel::default();
        let s = &mut section;
        let interface = s.optional::<InterfaceName>(r, "interface").map_or(default.interface, |name| name.0);
        let own = s.number(r, "lanes", 1..=podspan_wire::MAX_LANES as u64, 0);
        let lanes = if own == 0 { GATEWAY_LANES as u64 } else { own };
        let port = s.number(r, "port", 1..=65535, default.port.into());
        if port + lanes - 1 > 65535 {
            r.fault(
                s,
                "port",
                format!("{lanes} lanes from port {port} on go past 65535: use at most {}", 65536 - lanes),
            );
        }
        let mtu = s.number(r, "mtu", 0..=65535, 0);
        if mtu != 0 && !(1280..=65455).contains(&mtu) {
            r.fault(
                s,
                "mtu",
                format!("{mtu} is out of bounds: use 1280 to 65455, or leave it out to follow the underlay"),
            );
        }
        // Tables 0 and 253 to 255 are the kernel's own; priorities 0 and from 32766 on likewise.
        let table = s.number(r, "table", 1..=u32::MAX.into(), default.table.into());
        if (253..=255).contains(&table) {
            r.fault(s, "table", format!("{table} is one of the kernel's own tables: use another number"));
        }
        let fwmark = s.number(r, "fwmark", 1..=u32::MAX.into(), default.fwmark.into()) as u32;
        if fwmark & KUBE_PROXY_BITS != 0 {
            let message = format!(
                "{fwmark:#x} has bits 0x4000 or 0x8000, by which kube-proxy knows packets to masquerade and to \
                 drop: use a mark without them"
            );
            r.fault(s, "fwmark", message);
        }
        let tunnel = Tunnel {
            interface,
            lanes: (own != 0).then_some(own as usize),
            port: port as u16,
            mtu: (mtu != 0).then_some(mtu as u32),
            fwmark,
            table: table as u32,
            rule_priority: s.number(r, "rule-priority", 1..=32765, default.rule_priority.into()) as u32,
            persistent_keepalive: Duration::from_secs(s.number(
                r,
                "persistent-keepalive-seconds",
                0..=3600,
                default.persistent_keepalive.as_secs(),
            )),
        };
        section.finish(r);
        tunnel
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
bundle = "alpha.bundle"
state-dir = "/var/lib/podspan"
socket = "/run/podspan/agent.sock"
health-listen = "127.0.0.1:9840"
on-exit = "keep"
after-takeover = "wait"
probe-socket = "probe.sock"
delivery = "auto"

[source]
file = "node.toml"

[tunnel]
interface = "podspan0"
lanes = 2
port = 51840
mtu = 1420
fwmark = 12403
table = 7183
rule-priority = 5183
persistent-keepalive-seconds = 25

[offload]
tso = false
uso = true
gso = false
gro = true
"#;

    fn parse(text: &str) -> Result<Config, SettingsError> {
        Config::parse(Path::new("/etc/podspan/agent.toml"), text)
    }

    #[test]
    fn the_whole_file_is_read() {
        let config = parse(WHOLE).unwrap();
        assert_eq!(config.bundle, Path::new("/etc/podspan/alpha.bundle"));
        assert_eq!(config.source, Source::File { path: "/etc/podspan/node.toml".into() });
        assert_eq!(config.after_takeover, AfterTakeover::Wait);
        assert_eq!(config.probe_socket.as_deref(), Some(Path::new("/etc/podspan/probe.sock")));
        assert_eq!(config.delivery, Delivery::Auto);
        assert_eq!(config.tunnel.lanes, Some(2));
        assert_eq!(config.tunnel.mtu, Some(1420));
        assert_eq!(config.offload, Offload { tso: false, uso: true, gso: false, gro: true });
    }

    #[test]
    fn little_is_needed() {
        let config = parse("bundle = \"b\"\nsource.file = \"n\"\n").unwrap();
        assert_eq!(config.health_listen, None, "no port that nobody asked for");
        assert_eq!(config.on_exit, OnExit::Keep);
        assert_eq!(config.offload, Offload::ALL);
    }

    #[test]
    fn the_source_is_a_file_or_kubernetes() {
        let source = |text: &str| parse(&format!("bundle = \"b\"\n[source]\n{text}\n"));
        assert_eq!(
            source("kubernetes = true").unwrap().source,
            Source::Kubernetes(KubernetesSource::default())
        );
        let whole = source("kubernetes = true\nnode = \"node-1\"\nkubeconfig = \"admin.conf\"").unwrap();
        let expected = KubernetesSource {
            node: Some("node-1".parse().unwrap()),
            kubeconfig: Some("/etc/podspan/admin.conf".into()),
        };
        assert_eq!(whole.source, Source::Kubernetes(expected));
        for (text, key) in [
            ("kubernetes = true\nfile = \"x\"", "source.file"),
            ("kubernetes = \"perhaps\"\nfile = \"x\"", "source.kubernetes"),
            ("kubernetes = true\nnode = \"Node 1\"", "source.node"),
            ("kubernetes = false", "source.file"),
            ("file = \"x\"\nnode = \"node-1\"", "source.node"),
            ("", "source.file"),
        ] {
            let error = source(text).unwrap_err();
            assert_eq!(error.faults.len(), 1, "{text}: {error}");
            assert_eq!(error.faults[0].key, key, "{text}: {error}");
        }
    }

    /// Each field wrong in turn: one fault, on its line, under its key.
    #[test]
    fn each_field_wrong_in_turn() {
        let wrong = [
            ("bundle", "bundle = \"\""),
            ("state-dir", "state-dir = 5.5"),
            ("socket", "socket = []"),
            ("health-listen", "health-listen = \"9840\""),
            ("on-exit", "on-exit = \"stay\""),
            ("after-takeover", "after-takeover = \"stay\""),
            ("probe-socket", "probe-socket = \"\""),
            ("delivery", "delivery = \"tunnels\""),
            ("source.file", "file = {}"),
            ("tunnel.interface", "interface = \"a/b\""),
            ("tunnel.interface", "interface = \"a-name-of-sixteen\""),
            ("tunnel.lanes", "lanes = 0"),
            ("tunnel.lanes", "lanes = 65"),
            ("tunnel.port", "port = 0"),
            ("tunnel.port", "port = 65535"),
            ("tunnel.mtu", "mtu = 1279"),
            ("tunnel.mtu", "mtu = -1"),
            ("tunnel.fwmark", "fwmark = 0"),
            ("tunnel.fwmark", "fwmark = 0x7073"),
            ("tunnel.table", "table = 254"),
            ("tunnel.rule-priority", "rule-priority = 32766"),
            ("tunnel.persistent-keepalive-seconds", "persistent-keepalive-seconds = \"often\""),
            ("offload.tso", "tso = 1"),
            ("offload.uso", "uso = \"no\""),
            ("offload.gso", "gso = []"),
            ("offload.gro", "gro = {}"),
        ];
        for (key, line) in wrong {
            let name = line.split(' ').next().unwrap();
            let number = WHOLE.lines().position(|l| l.split(' ').next() == Some(name)).unwrap();
            let text: Vec<&str> =
                WHOLE.lines().enumerate().map(|(i, l)| if i == number { line } else { l }).collect();
            let error = parse(&text.join("\n")).unwrap_err();
            assert_eq!(error.faults.len(), 1, "{line}: {error}");
            assert_eq!(error.faults[0].key, key, "{line}: {error}");
            let at = error.faults[0].line;
            // What contradicts another field is told of the section.
            assert!(at == number + 1 || (at > 0 && at < number + 1), "{line}: {error}");
            assert!(!error.faults[0].message.is_empty());
        }
    }

    #[test]
    fn delivery_has_a_table_of_its_own() {
        let with = |delivery, table: u32| {
            parse(&format!(
                "bundle = \"b\"\nsource.file = \"n\"\ndelivery = \"{delivery}\"\n[tunnel]\ntable = {table}"
            ))
        };
        assert_eq!(with("tunnel", 7183).unwrap().tunnel.delivery_table(), 7184);
        assert!(with("native", 252).is_ok());
        for table in [252, u32::MAX] {
            let error = with("auto", table).unwrap_err();
            assert_eq!((error.faults.len(), error.faults[0].key.as_str()), (1, "delivery"), "{error}");
        }
    }

    #[test]
    fn all_faults_at_once() {
        let error =
            parse("bundel = \"x\"\non-exit = \"no\"\n[tunnel]\nlanes = 0\nport = \"x\"\n").unwrap_err();
        assert_eq!(error.faults.len(), 6, "{error}");
    }

    #[test]
    fn a_gateways_lanes_scale_with_its_cores_and_another_node_has_few() {
        let lanes = |cores| [false, true].map(|gateway| Tunnel::lanes_for(cores, gateway));
        assert_eq!([1, 2, 8, 64].map(lanes), [[1, 1], [2, 2], [2, 8], [2, 16]]);
        let set = Tunnel { lanes: Some(5), ..Tunnel::default() };
        assert_eq!([false, true].map(|gateway| set.lanes(gateway)), [5, 5]);
        assert_eq!(set.too_few_lanes(true, 4), None, "it is as it was told");
        let own = Tunnel::default();
        assert_eq!(own.too_few_lanes(true, own.lanes(true)), None);
        assert!(own.too_few_lanes(true, 0).unwrap().contains("has 0 of "));
    }
}
