//! What a person can type.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// podspan joins the pod networks of Kubernetes clusters in different clouds.
///
/// Pods and services of one cluster are reached from every other by their own addresses, encrypted by WireGuard.
/// A cluster set has one root key, kept offline; it grants each cluster the CIDRs that the cluster may announce.
#[derive(Debug, Parser)]
#[command(
    name = "podspan",
    version,
    arg_required_else_help = true,
    propagate_version = false,
    max_term_width = 100
)]
#[command(after_help = "\
Examples:
  A cluster set of two clusters, from the machine that keeps the root key:
    podspan clusterset create --dir prod --name prod --broker broker.example.com
    podspan cluster grant alpha --dir prod \\
      --pod-cidr 10.1.0.0/16 --service-cidr 10.101.0.0/16
    podspan cluster grant beta --dir prod \\
      --pod-cidr 10.2.0.0/16 --service-cidr 10.102.0.0/16
  In Kubernetes, with each cluster's kubeconfig:
    podspan join --bundle alpha.bundle --broker-here --broker-tls prod/broker
    podspan join --bundle beta.bundle
  How it goes, on a node:
    podspan status")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make and look after a cluster set: its root key and its brokers' certificates
    #[command(subcommand, arg_required_else_help = true)]
    Clusterset(Clusterset),
    /// Let clusters into a cluster set
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(Cluster),
    /// Install podspan into a Kubernetes cluster and join it to its cluster set
    Join(Join),
    /// Take podspan out of a Kubernetes cluster: everything, from every node
    Leave(Leave),
    /// Bring another version into a Kubernetes cluster, node by node
    Upgrade(Upgrade),
    /// Drain this node's gateway before maintenance, and end that
    #[command(subcommand, arg_required_else_help = true)]
    Gateway(Gateway),
    /// Show how this node reaches the other clusters
    Status(Status),
    /// Run podspan-agent, the node's daemon, with the arguments that follow
    #[command(disable_help_flag = true)]
    #[command(after_help = "Example: podspan agent clean --config /etc/podspan/agent.toml")]
    Agent {
        /// Arguments of podspan-agent; `podspan agent --help` shows them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Print the version
    Version {
        /// How to print
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  podspan completions bash > /etc/bash_completion.d/podspan
  podspan completions zsh > \"${fpath[1]}/_podspan\"
  podspan completions fish > ~/.config/fish/completions/podspan.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// `podspan clusterset ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Clusterset {
    /// Make a cluster set: the root key, and what its brokers need
    Create(Create),
    /// Renew the brokers' TLS certificate (it holds for 2 years)
    BrokerCert(BrokerCert),
    /// Show which clusters were granted what
    Show {
        /// The cluster set's directory
        #[arg(long)]
        dir: PathBuf,
        /// How to print
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
}

/// `podspan clusterset create`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podspan clusterset create --dir prod --name prod --broker broker.example.com
  podspan clusterset create --dir prod --name prod \\
    --broker 192.0.2.10 --broker '[2001:db8::10]:7443'

The directory holds the root key: whoever has it can let any cluster in.
Make it on a machine that is not part of any cluster, and keep root.key
offline afterwards.")]
pub(crate) struct Create {
    /// Directory to make; it must not exist yet
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Name of the cluster set, for people: a-z, 0-9 and '-'
    #[arg(long)]
    pub(crate) name: String,
    /// Where agents reach a broker: a name or an address, with a port unless it is 7443. Give it once for each
    /// broker, or for each address of one
    #[arg(long, required = true, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub(crate) broker: Vec<String>,
    /// Where the broker listens on its machine; by default on all addresses, at the ports named by --broker
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',')]
    pub(crate) listen: Vec<String>,
}

/// `podspan clusterset broker-cert`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podspan clusterset broker-cert --dir prod

The broker's key stays if DIR/broker/broker.key is there; remove that file
first to change the key too. If DIR/broker is gone, it is made anew.
Clusters need no new bundle.")]
pub(crate) struct BrokerCert {
    /// The cluster set's directory
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The brokers' addresses from now on; by default those the cluster set has
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub(crate) broker: Vec<String>,
}

/// `podspan cluster ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Grant a cluster its CIDRs and make its bundle, the one file its agents need
    Grant(Grant),
}

/// `podspan cluster grant`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podspan cluster grant alpha --dir prod \\
    --pod-cidr 10.1.0.0/16,fd00:10:1::/48 --service-cidr 10.101.0.0/16
  podspan cluster grant alpha --dir prod --renew \\
    --bundle alpha.bundle --out alpha-2.bundle
  podspan cluster grant alpha --dir prod --renew --new-key --overwrite

The bundle holds the cluster's secret key: give it to that cluster's agents
and to nobody else. No copy of the key stays behind, so keep the bundle or
renew with --new-key. As soon as other agents see a cluster's newer grant,
its older ones count no more.")]
pub(crate) struct Grant {
    /// The cluster's name: a-z, 0-9 and '-'
    #[arg(value_name = "NAME")]
    pub(crate) cluster: String,
    /// The cluster set's directory
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Where the cluster's pods have their addresses; repeat it or separate by commas
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) pod_cidr: Vec<String>,
    /// Where the cluster's services have their addresses; repeat it or separate by commas
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_cidr: Vec<String>,
    /// For how many days the grant holds
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
    /// Where to write the bundle; by default NAME.bundle in the current directory
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Write the bundle over a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Grant anew to a cluster that has a grant; its CIDRs stay unless they are given
    #[arg(long)]
    pub(crate) renew: bool,
    /// With --renew: the cluster's present bundle, whose key stays
    #[arg(long, value_name = "FILE", requires = "renew", conflicts_with = "new_key")]
    pub(crate) bundle: Option<PathBuf>,
    /// With --renew: make the cluster a new key; the former bundle is worthless from then on
    #[arg(long, requires = "renew")]
    pub(crate) new_key: bool,
    /// The root key, if it is not at DIR/root.key
    #[arg(long, value_name = "FILE")]
    pub(crate) root_key: Option<PathBuf>,
}

/// `podspan gateway ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Gateway {
    /// Have the other clusters take this cluster's other gateways; holds until undrain, also across restarts
    #[command(after_help = "\
Packets that have no other way still come here, and are forwarded.
In Kubernetes a cordoned node drains by itself.

Example: podspan gateway drain")]
    Drain(Socket),
    /// Let this node be used as a gateway again
    Undrain(Socket),
}

/// Where the agent answers.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// The agent's unix socket
    #[arg(long, value_name = "PATH", default_value = podspan_wire::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
}

/// `podspan status`
#[derive(Debug, Args)]
#[command(after_help = "\
Exit code: 0 if the agent answered, 3 if it could not be asked;
with --exit-code 1 if it reports problems.

States:
  up          all tunnels that should stand do
  degraded    some do
  connecting  the first handshakes are under way
  down        none does
  via         no tunnel of its own: reached through its cluster's gateways
  stale       no broker has confirmed the node of late; it is used as before

Examples:
  podspan status
  podspan status --watch
  podspan status --output json | jq .problems")]
pub(crate) struct Status {
    /// The agent's unix socket
    #[arg(long, value_name = "PATH", default_value = podspan_wire::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// How to print; json is the agent's whole report
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    /// Print again and again, every 2 seconds or as often as said (--watch=10)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) watch: Option<u32>,
    /// List every node, also those that are reached through gateways
    #[arg(long)]
    pub(crate) all: bool,
    /// Exit with 1 if the agent reports problems
    #[arg(long, conflicts_with = "watch")]
    pub(crate) exit_code: bool,
}

/// Which Kubernetes cluster.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// The context of the kubeconfig; its current one by default
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The kubeconfig; by default $KUBECONFIG, or else ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// How manifests are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ManifestFormat {
    /// YAML, for kubectl and GitOps
    #[default]
    Yaml,
    /// A JSON List
    Json,
}

/// `podspan join`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podspan join --bundle alpha.bundle --context alpha \\
    --broker-here --broker-tls prod/broker --gateway node-1,node-2
  podspan join --bundle beta.bundle --context beta --gateway node-7
  podspan join --bundle beta.bundle --dry-run -o yaml > beta.yaml

Safe to repeat: what is there already is brought up to date. What is printed
with --dry-run holds the cluster's secret key; seal it before it goes into a
repository. With --settings-only only what differs from cluster to cluster is
made or printed, for those who apply manifests/ by kustomize.")]
pub(crate) struct Join {
    /// The cluster's bundle, as `podspan cluster grant` wrote it
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: Where,
    /// Run the cluster set's broker in this cluster
    #[arg(long, requires = "broker_tls")]
    pub(crate) broker_here: bool,
    /// The broker's directory, as `podspan clusterset create` made it: DIR/broker
    #[arg(long, value_name = "DIR", requires = "broker_here")]
    pub(crate) broker_tls: Option<PathBuf>,
    /// The image, from wherever the nodes get theirs; by default what runs there, or else podspan:VERSION
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Make these nodes gateways (label podspan.io/gateway=true)
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) gateway: Vec<String>,
    /// Let the agents enter pods (capability SYS_ADMIN), so that those which are there already get routes of their own;
    /// they reach other clusters without, by their default route. By default as it is there, or else false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) enter_pods: Option<bool>,
    /// Only the namespace, podspan's types (not printed), the Secrets, the broker's settings and the ClusterSet
    #[arg(long)]
    pub(crate) settings_only: bool,
    /// Print what would be applied, and ask no cluster
    #[arg(long, conflicts_with_all = ["gateway", "context", "kubeconfig"])]
    pub(crate) dry_run: bool,
    /// With --dry-run: how to print
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT", requires = "dry_run")]
    pub(crate) output: ManifestFormat,
    /// Take over fields that somebody else has set otherwise
    #[arg(long)]
    pub(crate) force_conflicts: bool,
    /// How long the nodes may take to be ready, in seconds; 0 not to wait
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// `podspan leave`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podspan leave --context beta
  podspan leave --context alpha --with-broker

First the agents leave: each takes its CNI entry, tunnels, routes and rules
off its node, and is shown as it does. Then everything else goes. Pods run on.
Exit code: 0 if every node is clean, 1 if something is left; then what, and
what to do.")]
pub(crate) struct Leave {
    #[command(flatten)]
    pub(crate) cluster: Where,
    /// Also if the cluster set's broker runs here, on which the other clusters depend
    #[arg(long)]
    pub(crate) with_broker: bool,
    /// Go on although a node could not be cleaned
    #[arg(long)]
    pub(crate) force: bool,
    /// How long the nodes may take, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// `podspan upgrade`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podspan upgrade --context alpha --image registry.example.com/podspan:0.2.0

One node after the other; the next only when the one before forwards again.
Where a node does not, the others are left as they are, and it says why.
The manifests are those of this podspan: use the program of the version that
is to run.")]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub(crate) cluster: Where,
    /// The image that is to run
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: String,
    /// Take over fields that somebody else has set otherwise
    #[arg(long)]
    pub(crate) force_conflicts: bool,
    /// How long one node may take, in seconds
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}
