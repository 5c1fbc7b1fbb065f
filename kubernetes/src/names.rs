//! Names, labels and annotations that podspan's parts and its users share.

/// The API group of podspan's own types.
pub const GROUP: &str = "podspan.io";
/// Their version.
pub const VERSION: &str = "v1alpha1";

/// The namespace of everything that has one.
pub const NAMESPACE: &str = "podspan-system";
/// The agents' DaemonSet and ServiceAccount, and the ConfigMap with their settings.
pub const AGENT: &str = "podspan-agent";
/// The key of the settings file in the ConfigMap [`AGENT`].
pub const AGENT_SETTINGS_KEY: &str = "agent.toml";
/// The broker's Deployment, Service and ServiceAccount.
pub const BROKER: &str = "podspan-broker";
/// The Secret with the bundle of this cluster.
pub const BUNDLE_SECRET: &str = "podspan-bundle";
/// The key of the bundle file in [`BUNDLE_SECRET`].
pub const BUNDLE_KEY: &str = "bundle";
/// The Secret with the broker's TLS key and certificate.
pub const BROKER_TLS_SECRET: &str = "podspan-broker-tls";
/// The Lease of the agent that writes status.
pub const STATUS_LEASE: &str = "podspan-status";

/// The one `ClusterSet` that counts.
pub const CLUSTER_SET: &str = "podspan";

/// A node with this label and the value `true` is a gateway.
pub const GATEWAY_LABEL: &str = "podspan.io/gateway";
/// The addresses at which other clusters reach a gateway, separated by commas; wins over everything else.
pub const ENDPOINTS_ANNOTATION: &str = "podspan.io/endpoints";
/// The weight of a gateway among those of its cluster, 1 to 100; 10 unless set.
pub const GATEWAY_WEIGHT_ANNOTATION: &str = "podspan.io/gateway-weight";
/// The pod CIDRs that a node owns, separated by commas; wins over everything else.
pub const POD_CIDRS_ANNOTATION: &str = "podspan.io/pod-cidrs";
/// The addresses, one of each family, under which the node itself goes to other clusters; they must lie in its pod
/// CIDRs, and no pod may ever get them.
pub const HOST_ADDRESSES_ANNOTATION: &str = "podspan.io/host-addresses";

/// The field manager of server-side apply in the agents: status.
pub const AGENT_MANAGER: &str = "podspan-agent";
/// The field manager of server-side apply in the CLI: everything else.
pub const CLI_MANAGER: &str = "podspan";

/// The namespace for Events about objects that have none (Kubernetes takes no other).
pub const CLUSTER_EVENTS_NAMESPACE: &str = "default";
