//! The versions of the CNI spec that the plugin speaks.

use std::fmt;

/// A version of the CNI spec with chained plugins. 0.1.0 and 0.2.0 know no `prevResult`, so a chained
/// plugin cannot speak them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.0: the first with chaining.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: brings CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: addresses no longer name their family.
    V1_0_0,
    /// 1.1.0: brings GC and STATUS.
    V1_1_0,
}

impl SpecVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest; what errors are written in as long as the runtime's version is not known.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version of this name, if the plugin speaks it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.label() == text)
    }

    /// The name, as it stands in `cniVersion`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The names of all versions, for a person.
    #[must_use]
    pub fn listed() -> String {
        Self::ALL.map(Self::label).join(", ")
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}
