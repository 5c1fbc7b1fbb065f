//! Running other programs: in a namespace, within a time, with errors that tell what was run.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;

use crate::netns::{self, Netns};
use crate::signals;

/// How long a program may take unless it is told otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A program to be run.
#[derive(Clone, Debug)]
pub(crate) struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    clear_env: bool,
    namespace: Option<Netns>,
    stdin: Option<Vec<u8>>,
    timeout: Duration,
    show: bool,
    same_session: bool,
}

/// How a program ended and what it wrote.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Finished {
    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            clear_env: false,
            namespace: None,
            stdin: None,
            timeout: TIMEOUT,
            show: false,
            same_session: false,
        }
    }

    /// The lab's own binary, for its hidden subcommands.
    pub(crate) fn lab() -> Self {
        // The link stays good when the binary is built anew while the lab is up.
        Self::new("/proc/self/exe")
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives the program nothing of the lab's own environment.
    pub(crate) fn clear_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Runs it in a network namespace.
    pub(crate) fn within(mut self, namespace: &Netns) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    pub(crate) fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// After this time it is ended and the run is an error.
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets its output go to the screen instead of gathering it.
    pub(crate) fn show(mut self) -> Self {
        self.show = true;
        self
    }

    /// If it is started to live on: in the lab's own session. The kernel shares the CPUs between sessions first and between
    /// threads second (sched(7), autogroup), so that what is measured side by side belongs into one.
    pub(crate) fn same_session(mut self) -> Self {
        self.same_session = true;
        self
    }

    /// The command as a person would type it.
    pub(crate) fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.args);
        let line: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        match &self.namespace {
            Some(namespace) => format!("[{namespace}] {}", line.join(" ")),
            None => line.join(" "),
        }
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        if self.clear_env {
            command.env_clear();
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let namespace = self.namespace.as_ref().map(Netns::open).transpose()?;
        let begin = move || {
            // The mask is inherited, and the lab's own blocks the signals by which a program is ended.
            SigSet::empty().thread_set_mask()?;
            namespace.as_ref().map_or(Ok(()), netns::enter_raw)
        };
        // SAFETY: the closure makes two async-signal-safe system calls, one on a descriptor that it owns.
        unsafe { command.pre_exec(begin) };
        Ok(command)
    }

    /// Runs it to its end, whatever its exit status. Ends it, with its children, after the timeout or when
    /// the lab is interrupted.
    pub(crate) fn run(&self) -> Result<Finished> {
        signals::check()?;
        let mut command = self.command()?;
        command.process_group(0);
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        if !self.show {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child =
            command.spawn().with_context(|| format!("cannot start {:?}", self.program.to_string_lossy()))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (waited, stdout, stderr) = std::thread::scope(|scope| {
            if let (Some(mut pipe), Some(text)) = (stdin, self.stdin.as_deref()) {
                // A program that ends before it has read everything is judged by its exit status.
                scope.spawn(move || pipe.write_all(text).ok());
            }
            let stdout = stdout.map(|pipe| scope.spawn(move || drain(pipe)));
            let stderr = stderr.map(|pipe| scope.spawn(move || drain(pipe)));
            let waited = self.wait(&mut child);
            let take = |thread: Option<std::thread::ScopedJoinHandle<'_, Vec<u8>>>| {
                thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
            };
            (waited, take(stdout), take(stderr))
        });
        match waited {
            Ok(status) => Ok(Finished { status, stdout, stderr }),
            Err(error) if error.is::<signals::Interrupted>() => Err(error),
            Err(error) => {
                Err(error.context(format!("{} {}", self.line(), tail(&String::from_utf8_lossy(&stderr)))))
            }
        }
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        let end = Instant::now() + self.timeout;
        let mut pause = Duration::from_micros(500);
        let why = loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if let Err(interrupted) = signals::check() {
                break interrupted.into();
            }
            if Instant::now() >= end {
                break anyhow::anyhow!("took longer than {} s and was ended", self.timeout.as_secs_f64());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let group = Pid::from_raw(i32::try_from(child.id())?);
        killpg(group, Signal::SIGKILL).ok();
        child.wait()?;
        Err(why)
    }

    /// Runs it and makes a failure an error with what it wrote.
    pub(crate) fn run_ok(&self) -> Result<Finished> {
        let finished = self.run()?;
        if finished.status.success() {
            return Ok(finished);
        }
        let how = match (finished.status.code(), finished.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended".into(),
        };
        bail!("{}: {how}\n{}{}", self.line(), tail(&finished.stderr_text()), tail(&finished.stdout_text()));
    }

    /// What it writes to its standard output; a failure is an error.
    pub(crate) fn text(&self) -> Result<String> {
        Ok(self.run_ok()?.stdout_text())
    }

    /// Starts it to live on by itself, in a session of its own, writing to the end of the file `log`.
    pub(crate) fn start(&self, log: &Path) -> Result<Child> {
        let out = self.log(log)?;
        self.begin(Stdio::null(), out.try_clone()?.into(), out)
    }

    /// The same with pipes to its standard input and from its standard output.
    pub(crate) fn start_talking(&self, log: &Path) -> Result<Child> {
        self.begin(Stdio::piped(), Stdio::piped(), self.log(log)?)
    }

    fn log(&self, log: &Path) -> Result<File> {
        File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log {}", log.display()))
    }

    fn begin(&self, stdin: Stdio, stdout: Stdio, stderr: File) -> Result<Child> {
        signals::check()?;
        let mut command = self.command()?;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        if self.same_session {
            // Ctrl-C is the lab's to deal with.
            command.process_group(0);
        } else {
            // SAFETY: setsid is async-signal-safe and touches no memory.
            unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from)) };
        }
        command.spawn().with_context(|| format!("cannot start {}", self.line()))
    }

    /// Runs it on this very terminal and gives its exit code: for `lab exec`.
    pub(crate) fn hand_over(&self) -> Result<i32> {
        let status = self.command()?.status().with_context(|| format!("cannot start {}", self.line()))?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

fn drain(mut pipe: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    pipe.read_to_end(&mut all).ok();
    all
}

/// The end of a text: enough to tell what went wrong.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    let from = lines.len().saturating_sub(30);
    lines[from..].iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_command_status_and_output() {
        let error = Cmd::new("sh").args(["-c", "echo wrong >&2; exit 3"]).run_ok().unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("status 3") && error.contains("wrong"), "{error}");
    }

    #[test]
    fn a_program_is_ended_with_its_children_after_its_time() {
        let begin = Instant::now();
        let cmd = Cmd::new("sh").args(["-c", "sleep 60 & sleep 60"]).timeout(Duration::from_millis(100));
        let error = format!("{:#}", cmd.run().unwrap_err());
        assert!(error.contains("longer than 0.1 s"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_program_does_not_inherit_blocked_signals() {
        let blocked = std::thread::spawn(|| {
            SigSet::all().thread_block().unwrap();
            Cmd::new("grep").args(["SigBlk", "/proc/self/status"]).text().unwrap()
        });
        assert_eq!(blocked.join().unwrap().trim(), "SigBlk:\t0000000000000000");
    }

    #[test]
    fn input_and_output_larger_than_a_pipe_pass() {
        let text = "x".repeat(1_000_000);
        assert_eq!(Cmd::new("cat").stdin(text.clone()).text().unwrap(), text);
    }
}
