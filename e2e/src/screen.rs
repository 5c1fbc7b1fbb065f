//! What the lab shows while it works.

use std::io::Write;
use std::time::Instant;

/// Lines for a person. With JSON output asked for, they go to standard error and standard output stays free
/// for the one document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    to_stderr: bool,
    begun: Instant,
}

impl Screen {
    pub(crate) fn new(to_stderr: bool) -> Self {
        Self { to_stderr, begun: Instant::now() }
    }

    /// A step that is done, with the time since the start.
    pub(crate) fn line(&self, text: &str) {
        self.raw(&format!("[{:6.1} s] {text}", self.begun.elapsed().as_secs_f64()));
    }

    /// A heading.
    pub(crate) fn heading(&self, text: &str) {
        self.raw(&format!("\n== {text}"));
    }

    /// Text as it is.
    pub(crate) fn raw(&self, text: &str) {
        // Whoever closed the pipe wants no more of it; the clean-up must go on all the same.
        let _ = if self.to_stderr {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}
