//! Names: of cluster sets, clusters and nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::keys::{KeyError, PublicKey};

/// Why a name was refused. The text says what a name must look like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("the name is empty")]
    Empty,
    /// More characters than the kind of name may have.
    #[error("the name has {length} characters, at most {most} are allowed")]
    TooLong {
        /// How many bytes the name has.
        length: usize,
        /// How many it may have.
        most: usize,
    },
    /// A character outside `a-z`, `0-9`, `-` (and `.` between labels of a node's name), or a label that
    /// starts or ends with `-`.
    #[error("{name:?} is not a DNS name: use a-z, 0-9 and '-', starting and ending with a letter or a digit")]
    NotDns {
        /// The name as it was given.
        name: String,
    },
    /// A node id without exactly one `/`.
    #[error("{text:?} is not a node id: write CLUSTER/NODE")]
    NotNodeId {
        /// The text as it was given.
        text: String,
    },
}

fn check_label(label: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.len() <= 63
        && bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
        && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
}

/// Bounds a name before it is quoted in an error, so that hostile input cannot flood a log.
fn quote(name: &str) -> String {
    name.chars().take(80).collect()
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $most:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                if name.is_empty() {
                    return Err(NameError::Empty);
                }
                if name.len() > $most {
                    return Err(NameError::TooLong { length: name.len(), most: $most });
                }
                let check: fn(&str) -> bool = $check;
                if !check(name) {
                    return Err(NameError::NotDns { name: quote(name) });
                }
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// The name of one cluster of a cluster set: a DNS label (RFC 1123), at most 63 characters.
    ClusterId,
    63,
    check_label
);

name!(
    /// The name of a node within its cluster: a DNS subdomain (RFC 1123), as Kubernetes names nodes; at
    /// most 253 characters.
    NodeName,
    253,
    |name| name.split('.').all(check_label)
);

/// The cluster set, named by its root's public key: two sets of the same display name are never mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterSetId(PublicKey);

impl ClusterSetId {
    /// The cluster set that `root` names.
    #[must_use]
    pub fn new(root: PublicKey) -> Self {
        Self(root)
    }

    /// The root's public key.
    #[must_use]
    pub fn root(&self) -> &PublicKey {
        &self.0
    }
}

impl fmt::Display for ClusterSetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ClusterSetId {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self)
    }
}

/// A node of the cluster set: `CLUSTER/NODE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId {
    /// The node's cluster.
    pub cluster: ClusterId,
    /// The node's name within it.
    pub node: NodeName,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.node)
    }
}

impl FromStr for NodeId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((cluster, node)) => Ok(Self { cluster: cluster.parse()?, node: node.parse()? }),
            None => Err(NameError::NotNodeId { text: quote(text) }),
        }
    }
}

impl TryFrom<String> for NodeId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names() {
        for good in ["a", "alpha", "a-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<ClusterId>().unwrap().as_str(), good);
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a b", "ä", "a/b", "a\0", &"x".repeat(64)] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?}");
        }
        assert!("ip-10-0-0-1.eu.example".parse::<NodeName>().is_ok());
        assert!("ip-10-0-0-1.eu.example".parse::<ClusterId>().is_err());
        for bad in ["a..b", ".a", "a.", &"a.".repeat(127)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn node_ids_round_trip_and_bound_what_they_quote() {
        let id: NodeId = "alpha/node-1.example".parse().unwrap();
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        let error = "x".repeat(10_000).parse::<NodeId>().unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
        assert!("alpha/a/b".parse::<NodeId>().is_err());
    }
}
