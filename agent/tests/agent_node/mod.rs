//! A node on which the agent's binary runs: a network namespace and the agent's files.

#![allow(dead_code, reason = "not every test that takes it in needs all of it")]

#[path = "../host_support/mod.rs"]
pub(crate) mod host_support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use host_support::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;
use podspan_wire::{Bundle, ClusterKey, ClusterSetId, Grant, RootKey, UnixTime};

/// A node: its namespace and its files.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) directory: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
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
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut agent = Agent(child);
        agent.wait(Duration::from_secs(20));
        let mut output = Output { status: agent.0.wait().unwrap(), stdout: Vec::new(), stderr: Vec::new() };
        std::io::Read::read_to_end(&mut agent.0.stdout.take().unwrap(), &mut output.stdout).unwrap();
        std::io::Read::read_to_end(&mut agent.0.stderr.take().unwrap(), &mut output.stderr).unwrap();
        output
    }

    /// Starts the agent and waits until it answers.
    pub(crate) fn start(&self, arguments: &[&str]) -> Agent {
        let agent = Agent(self.command(arguments).stdout(Stdio::null()).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(10);
        while self.ask(&Request::Ready).is_none() {
            assert!(Instant::now() < end, "the agent does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    pub(crate) fn ask(&self, request: &Request) -> Option<Answer> {
        let mut stream = UnixStream::connect(self.path("run/agent.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(serde_json::to_string(request).unwrap().as_bytes()).ok()?;
        stream.write_all(b"\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    pub(crate) fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Some(Answer::Status(status)) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Waits until some problem holds these words.
    pub(crate) fn wait_for_problem(&self, words: &str) {
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

    pub(crate) fn link(&self) -> bool {
        self.netns.run("ip -o link").contains("podspan0")
    }
}

pub(crate) struct Agent(pub(crate) Child);

impl Agent {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    /// Waits for its end; returns whether that was a good one.
    pub(crate) fn wait(&mut self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < end, "the agent does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn stop(mut self, signal: Signal) -> bool {
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

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
