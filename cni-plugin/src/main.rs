//! The plugin's binary: reads the environment and standard input, prints, exits.

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podspan_cni::config::MAX_INPUT;
use podspan_cni::environment::Environment;
use podspan_cni::error::{CniError, Code};
use podspan_cni::plugin::{Outcome, run};
use podspan_cni::version::SpecVersion;

/// How long the runtime may take to write the configuration and close standard input.
const INPUT_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let outcome = match read_input() {
        Ok(input) => run(&Environment::read(), &input),
        Err(error) => {
            let error = CniError::new(Code::Io, "standard input cannot be read", error.to_string());
            Outcome { stdout: error.to_json(SpecVersion::NEWEST), notes: Vec::new(), exit: 1 }
        }
    };
    // Never `print!` or `eprint!`: they panic when the runtime has closed its end.
    let mut notes = io::stderr().lock();
    for note in &outcome.notes {
        let _ = writeln!(notes, "podspan: {note}");
    }
    if outcome.stdout.is_empty() {
        return ExitCode::from(outcome.exit);
    }
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", outcome.stdout).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::from(outcome.exit),
        Err(error) => {
            let _ = writeln!(notes, "podspan: cannot write the result to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads all of standard input, one byte more than [`MAX_INPUT`] at most.
fn read_input() -> io::Result<Vec<u8>> {
    let begin = Instant::now();
    let mut stdin = io::stdin().lock();
    let (mut input, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
    while input.len() <= MAX_INPUT {
        let left = INPUT_TIMEOUT.saturating_sub(begin.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&stdin), PollFlags::POLLIN)], timeout) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the runtime did not close it within 10 s of the call",
                ));
            }
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match stdin.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => input.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    input.truncate(MAX_INPUT + 1);
    Ok(input)
}
