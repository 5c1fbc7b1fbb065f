//! The agent's binary from start to end, in a network namespace without any broker.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "host_support/mod.rs"]
mod host_support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use host_support::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podspan_wire::local::{Answer, Attachment, AttachmentDetail, Request};
use podspan_wire::status::Status;
use podspan_wire::{Bundle, ClusterKey, ClusterSetId, Grant, RootKey, UnixTime};

/// A node: its namespace and its files.
struct Node {
    netns: Netns,
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = RootKey::from_seed(&[1; 32]);
        let cluster_key = ClusterKey::from_seed(&[2; 32]);
        let grant = Grant {
            cluster_set: ClusterSetId::new(root.public()),
            cluster: "alpha".parse().unwrap(),
            cluster_key: cluster_key.public(),
            pod_cidrs: host_support::set(&["10.1.0.0/16"]),
            service_cidrs: host_support::set(&["10.101.0.0/16"]),
            serial: 1,
            not_after: UnixTime(u64::MAX / 2),
            extensions: Default::default(),
        };
        let certificate = rcgen::generate_simple_self_signed(vec!["192.0.2.1".into()]).unwrap();
        let bundle = Bundle {
            cluster_set: grant.cluster_set,
            grant: grant.sign(&root),
            cluster_key,
            brokers: vec!["https://192.0.2.1:7443".into()],
            broker_ca: certificate.cert.pem(),
        };
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("alpha.bundle", &bundle.to_secret_text());
        write(
            "node.toml",
            "name = \"node-1\"\ngateway = true\nendpoints = [\"192.0.2.11\"]\npod-cidrs = [\"10.1.1.0/24\"]\n",
        );
        write(
            "agent.toml",
            "bundle = \"alpha.bundle\"\nstate-dir = \"state\"\nsocket = \"run/agent.sock\"\n\
             health-listen = \"127.0.0.1:9840\"\nsource.file = \"node.toml\"\ntunnel.lanes = 2\n",
        );
        Self { netns: Netns::new("agent"), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns.name()))
            .arg(env!("CARGO_BIN_EXE_podspan-agent"))
            .args(arguments)
            .arg("--config")
            .arg(self.path("agent.toml"))
            .env("PODSPAN_LOG", "warn")
            .stdin(Stdio::null());
        command
    }

    /// Runs the agent to its end, which it must come to by itself.
    fn run(&self, arguments: &[&str]) -> Output {
        let child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut agent = Agent(child);
        agent.wait(Duration::from_secs(20));
        let mut output = Output { status: agent.0.wait().unwrap(), stdout: Vec::new(), stderr: Vec::new() };
        std::io::Read::read_to_end(&mut agent.0.stdout.take().unwrap(), &mut output.stdout).unwrap();
        std::io::Read::read_to_end(&mut agent.0.stderr.take().unwrap(), &mut output.stderr).unwrap();
        output
    }

    /// Starts the agent and waits until it answers.
    fn start(&self, arguments: &[&str]) -> Agent {
        let agent = Agent(self.command(arguments).stdout(Stdio::null()).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(10);
        while self.ask(&Request::Ready).is_none() {
            assert!(Instant::now() < end, "the agent does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    fn ask(&self, request: &Request) -> Option<Answer> {
        let mut stream = UnixStream::connect(self.path("run/agent.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(serde_json::to_string(request).unwrap().as_bytes()).ok()?;
        stream.write_all(b"\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Some(Answer::Status(status)) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Waits until some problem holds these words.
    fn wait_for_problem(&self, words: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let problems = self.status().problems;
            if problems.iter().any(|problem| problem.contains(words)) {
                return;
            }
            assert!(Instant::now() < end, "no {words:?} in {problems:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn link(&self) -> bool {
        self.netns.run("ip -o link").contains("podspan0")
    }
}

struct Agent(Child);

impl Agent {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    /// Waits for its end; returns whether that was a good one.
    fn wait(&mut self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < end, "the agent does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(mut self, signal: Signal) -> bool {
        self.signal(signal);
        self.wait(Duration::from_secs(20))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn from_start_to_clean() {
    let node = Node::new();
    let before = node.netns.snapshot();
    let agent = node.start(&[]);
    node.wait_for_problem("no broker answers");
    assert_eq!(node.status().workers.len(), 2);
    assert!(node.link());

    // A second agent, and a clean under way of the first, are refused; the first goes on.
    for arguments in [&[][..], &["clean"]] {
        let refused = node.run(arguments);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused).contains("another podspan-agent runs"), "{}", text(&refused));
    }
    assert!(node.link() && node.ask(&Request::Ready).is_some());

    // A disk that takes nothing: pods are attached, and a person is told.
    let taken = node.path("state").join(".attachments.json.tmp");
    std::fs::create_dir(&taken).unwrap();
    let attached = node.ask(&Request::Attach(AttachmentDetail {
        attachment: Attachment { container_id: "c".into(), interface: "eth0".into() },
        netns: format!("/run/netns/{}", node.netns.name()),
        network: "pods".into(),
        addresses: Vec::new(),
        gateways: Vec::new(),
        pod: None,
    }));
    assert!(matches!(attached, Some(Answer::Routes(_))), "{attached:?}");
    node.wait_for_problem("attachments.json");
    std::fs::remove_dir(&taken).unwrap();

    // Renewing the bundle is noticed.
    let bundle = std::fs::read_to_string(node.path("alpha.bundle")).unwrap();
    std::fs::write(node.path("alpha.bundle"), bundle.replace("192.0.2.1:7443", "192.0.2.2:7443")).unwrap();
    node.wait_for_problem("restart the agent to use it");
    std::fs::write(node.path("alpha.bundle"), bundle).unwrap();

    // Killed, the agent is back at once; the interface stays all the while.
    agent.stop(Signal::SIGKILL);
    assert!(node.link());
    let begun = Instant::now();
    let agent = node.start(&[]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(agent.stop(Signal::SIGTERM));
    assert!(node.link(), "--on-exit keep");
    assert!(!node.path("run/agent.sock").exists());

    let cleaned = node.run(&["clean"]);
    assert!(cleaned.status.success(), "{}", text(&cleaned));
    assert!(text(&cleaned).contains("removed interface podspan0"), "{}", text(&cleaned));
    assert!(!node.path("state").exists());
    assert_eq!(before, node.netns.snapshot());
    let again = node.run(&["clean"]);
    assert!(again.status.success() && text(&again).is_empty(), "{}", text(&again));
}

#[test]
fn a_signal_at_any_time_of_the_start_leaves_nothing() {
    let node = Node::new();
    let before = node.netns.snapshot();
    for milliseconds in [0, 5, 15, 30, 60, 120, 250, 500] {
        let mut agent = Agent(node.command(&["--on-exit", "remove"]).stdout(Stdio::null()).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(milliseconds));
        agent.signal(Signal::SIGTERM);
        agent.wait(Duration::from_secs(20));
        assert!(!node.link(), "after {milliseconds} ms");
        assert!(!node.path("run/agent.sock").exists(), "after {milliseconds} ms");
    }
    assert_eq!(before, node.netns.snapshot());
    assert!(!node.path("state/known.json").exists());
}

#[test]
fn a_start_that_fails_says_why_and_leaves_what_was_there() {
    let node = Node::new();
    let refused = |why: &str| {
        let output = node.run(&[]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(why), "{why:?} in {}", text(&output));
        assert!(!node.path("run/agent.sock").exists());
    };
    // Something else has the interface's name.
    node.netns.run("ip link add podspan0 type bridge");
    refused("podspan0");
    assert!(node.netns.run("ip -d link show podspan0").contains("bridge"), "it is not ours to remove");
    node.netns.run("ip link del podspan0");
    // The state cannot be read: nothing is made in the kernel.
    std::fs::create_dir_all(node.path("state/known.json")).unwrap();
    refused("known.json");
    assert!(!node.link());
    std::fs::remove_dir(node.path("state/known.json")).unwrap();
    std::fs::set_permissions(node.path("alpha.bundle"), std::fs::Permissions::from_mode(0o644)).unwrap();
    refused("chmod 0600");
    assert!(!node.link());
}
