//! Everything that is wrong, told at once.

use anyhow::{Result, anyhow};

/// Collects what is wrong with a command's input.
#[derive(Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    /// Notes one.
    pub(crate) fn push(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// The value of `result`; its error is noted.
    pub(crate) fn take<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.push(format!("{error:#}"))).ok()
    }

    /// Fails with all that was noted; `what` says what was not done.
    pub(crate) fn check(&self, what: &str) -> Result<()> {
        match self.0.as_slice() {
            [] => Ok(()),
            [one] => Err(anyhow!("{what}: {one}")),
            all => Err(anyhow!("{what}, {} things are wrong:\n  - {}", all.len(), all.join("\n  - "))),
        }
    }
}
