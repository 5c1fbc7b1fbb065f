//! The protocol of the agent's unix socket: one JSON document per line, a [`Request`] in, an [`Answer`]
//! out, as many as the client likes. The socket belongs to root and has mode 0600.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cidr::CidrSet;
use crate::status::Status;

/// The longest line, in bytes; a longer one ends the connection.
pub const MAX_LINE: usize = 1024 * 1024;

/// A CNI attachment: one interface of one container (CNI spec section 2, "Attachment").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name inside the pod.
    pub interface: String,
}

/// What the agent is told of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentDetail {
    /// Which one it is.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// `CNI_NETNS`: the path of the pod's network namespace.
    pub netns: String,
    /// The network's name in the CNI configuration; GC is per network.
    pub network: String,
    /// The pod's addresses on the interface.
    pub addresses: Vec<IpAddr>,
    /// The pod's gateways, by family, as the earlier plugins of the chain chose them.
    pub gateways: Vec<IpAddr>,
    /// Namespace and name of the pod, if the runtime told them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// What a pod needs to know of the other clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRoutes {
    /// The remote pod and service CIDRs.
    pub cidrs: CidrSet,
    /// The largest packet towards them, in bytes.
    pub mtu: u32,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// Everything there is to know: answered with [`Answer::Status`].
    Status,
    /// A pod's interface was added: remembered, and answered with [`Answer::Routes`].
    Attach(AttachmentDetail),
    /// A pod's interface goes away: forgotten, whether it was known or not; [`Answer::Done`].
    Detach(Attachment),
    /// What should stand in this pod: [`Answer::Routes`], or [`Answer::Unknown`].
    Check(Attachment),
    /// Of the network's attachments only these are left: [`Answer::Done`].
    Collect {
        /// The network's name in the CNI configuration.
        network: String,
        /// The attachments that are still valid.
        valid: Vec<Attachment>,
    },
    /// Drain this node, or end that: peers take other gateways where there are any. [`Answer::Done`].
    Drain {
        /// Whether it is to be drained from now on.
        drain: bool,
    },
    /// Whether a pod may be added now, whatever the state of remote clusters: [`Answer::Done`].
    Ready,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// Done; nothing to tell.
    Done,
    /// What the pod needs.
    Routes(PodRoutes),
    /// The attachment is not known here.
    Unknown,
    /// The agent's state.
    Status(Box<Status>),
    /// The request was refused or could not be carried out.
    Error {
        /// What was wrong and what to do.
        message: String,
    },
}
