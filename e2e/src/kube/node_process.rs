//! `lab kube-node`: a node as a process of its own. It makes namespaces for mounts, processes, IPC and the host
//! name; in them a root directory that is the machine's with everything written to it kept apart (overlayfs), and
//! as process 1 it starts the node's programs and starts them again when they end, as an init system would.
//!
//! When it is ended, the kernel ends all that runs on the node and removes its mounts: a power cut.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

/// What a node is made of. Paths are the machine's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeProcess {
    /// The host name.
    pub(crate) name: String,
    /// Where the node's root is put together; a directory on a file system that takes overlays.
    pub(crate) root: PathBuf,
    /// What the node writes anywhere else than to `binds`.
    pub(crate) upper: PathBuf,
    /// overlayfs' own directory, on the same file system as `upper`.
    pub(crate) work: PathBuf,
    /// Directories of the machine and where they are on the node.
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
    pub(crate) programs: Vec<NodeProgram>,
}

/// A program that runs on the node as long as the node does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeProgram {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    /// On the machine.
    pub(crate) log: PathBuf,
}

/// A program that has ended is started again after this time, as by systemd's `RestartSec`.
const RESTART: Duration = Duration::from_secs(1);

/// Runs the node described in the file, outside of its process namespace: waits for process 1.
pub(crate) fn run(file: &Path) -> Result<()> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(flags).context("cannot make the node's namespaces")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("kube-node-init").arg(file).stdin(Stdio::null());
    let follow = || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into);
    // SAFETY: prctl is async-signal-safe and touches no memory.
    unsafe { command.pre_exec(follow) };
    let status = command.status().context("cannot start the node's process 1")?;
    anyhow::bail!("the node's process 1 has ended: {status}");
}

/// Is process 1 of the node described in the file.
pub(crate) fn run_init(file: &Path) -> Result<()> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let node: NodeProcess = serde_json::from_slice(&text).context("the node's description")?;
    let mut programs: Vec<Supervised> = node.programs.iter().map(Supervised::new).collect::<Result<_>>()?;
    make_root(&node).with_context(|| format!("cannot make the root directory of {}", node.name))?;
    set_host_name(&node.name)?;
    loop {
        for program in &mut programs {
            program.start_if_due();
        }
        reap(&mut programs);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn set_host_name(name: &str) -> Result<()> {
    // SAFETY: the pointer is to `name`'s bytes, of which there are as many as the length says.
    let result = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    nix::errno::Errno::result(result).map(drop).context("cannot set the host name")
}

struct Supervised {
    program: NodeProgram,
    log: std::fs::File,
    child: Option<Child>,
    due: Instant,
}

impl Supervised {
    /// The log is opened while the machine's files can be seen.
    fn new(program: &NodeProgram) -> Result<Self> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&program.log)
            .with_context(|| format!("cannot open the log {}", program.log.display()))?;
        Ok(Self { program: program.clone(), log, child: None, due: Instant::now() })
    }

    fn start_if_due(&mut self) {
        if self.child.is_some() || Instant::now() < self.due {
            return;
        }
        match self.start() {
            Ok(child) => self.child = Some(child),
            Err(error) => {
                eprintln!("{}: cannot be started: {error:#}", self.program.name);
                self.due = Instant::now() + RESTART;
            }
        }
    }

    fn start(&self) -> Result<Child> {
        let (program, args) = self.program.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?)
            .process_group(0);
        Ok(command.spawn()?)
    }
}

/// Takes note of programs that have ended, and of orphans: whatever runs on the node and loses its parent
/// becomes a child of process 1.
fn reap(programs: &mut [Supervised]) {
    loop {
        let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit status {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal.to_string()),
            _ => return,
        };
        for program in programs.iter_mut() {
            if program.child.as_ref().is_some_and(|child| i64::from(child.id()) == i64::from(pid.as_raw())) {
                eprintln!("{}: has ended ({how}), it is started again", program.program.name);
                program.child = None;
                program.due = Instant::now() + RESTART;
            }
        }
    }
}

fn make_root(node: &NodeProcess) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make mounts private")?;
    let options = format!("lowerdir=/,upperdir={},workdir={}", node.upper.display(), node.work.display());
    mount(Some("overlay"), &node.root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("cannot mount the overlay")?;
    let at = |below: &str| -> Result<PathBuf> {
        let path = node.root.join(below.trim_start_matches('/'));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    };
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), &at("proc")?, Some("proc"), quiet | MsFlags::MS_NOEXEC, none).context("proc")?;
    for shared in ["/sys", "/dev"] {
        mount(Some(shared), &at(shared)?, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).context(shared)?;
    }
    for fresh in ["run", "tmp"] {
        let mode = if fresh == "tmp" { "mode=1777" } else { "mode=755" };
        mount(Some("tmpfs"), &at(fresh)?, Some("tmpfs"), quiet, Some(mode)).context(fresh)?;
    }
    for (source, target) in &node.binds {
        let target = at(&target.to_string_lossy())?;
        mount(Some(source), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))?;
    }
    let old = at("mnt")?;
    nix::unistd::pivot_root(&node.root, &old).context("cannot change to the node's root")?;
    std::env::set_current_dir("/")?;
    umount2("/mnt", MntFlags::MNT_DETACH).context("cannot let go of the machine's root")?;
    // As systemd does; volumes with mount propagation need it.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("cannot share mounts")?;
    Ok(())
}
