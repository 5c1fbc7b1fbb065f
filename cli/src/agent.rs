//! `podspan agent`: hands over to the agent's own program.

use std::env;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Result, anyhow};

const PROGRAM: &str = "podspan-agent";

/// Becomes `podspan-agent` with these arguments: the one beside this program, else the one in `PATH`.
/// Returns only if that fails.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let mut looked = Vec::new();
    for program in beside.into_iter().chain([PROGRAM.into()]) {
        let error = Command::new(&program).args(arguments).exec();
        if error.kind() != ErrorKind::NotFound {
            return Err(anyhow!("cannot run {}: {error}", program.display()));
        }
        looked.push(program.display().to_string());
    }
    Err(anyhow!(
        "there is no {PROGRAM} here: looked at {} and in the PATH. Install it beside podspan",
        looked.first().map_or(PROGRAM, String::as_str)
    ))
}
