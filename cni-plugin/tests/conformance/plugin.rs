//! One call of the plugin: environment, standard input, what came of it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fake_agent::FakeAgent;
use crate::namespace::Pod;

/// The binary under test: the one cargo built for the tests, or any other that `PODSPAN_CNI_BINARY` names,
/// such as the static one that is installed on nodes.
pub fn binary() -> String {
    std::env::var("PODSPAN_CNI_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_podspan-cni").into())
}
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Longer than the plugin may ever take.
const HANG: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    /// The error's code; the error must be well formed (CNI spec section 5, "Error").
    #[track_caller]
    pub fn code(&self) -> u64 {
        assert!(!self.success, "expected an error: {self:?}");
        let error = self.error();
        for key in ["cniVersion", "msg", "details"] {
            assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "{key} is missing: {self:?}");
        }
        error["code"].as_u64().unwrap()
    }

    #[track_caller]
    pub fn error(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert!(self.success, "{self:?}");
        self
    }

    /// Success without a word on standard output, as the spec has it for all but ADD and VERSION.
    #[track_caller]
    pub fn succeeded_silently(&self) -> &Self {
        assert!(self.success && self.stdout.is_empty(), "{self:?}");
        self
    }
}

/// Runs a program as a runtime would: these variables and no others of CNI, this standard input.
pub fn execute(command: &mut Command, environment: &[(&str, &str)], input: &[u8]) -> Output {
    for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
        command.env_remove(name);
    }
    let begin = Instant::now();
    let mut child = command
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The plugin may exit before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()).unwrap());
    let output = match receiver.recv_timeout(HANG) {
        Ok(output) => output,
        Err(_) => {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            panic!("the plugin was still running after {HANG:?}: {environment:?}");
        }
    };
    let took = begin.elapsed();
    waiter.join().unwrap();
    writer.join().unwrap();
    Output {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        took,
    }
}

/// A call of the plugin that can be varied and made.
#[derive(Clone)]
pub struct Call {
    pub version: String,
    pub container_id: String,
    pub ifname: String,
    pub netns: String,
    pub args: String,
    /// Further keys of the configuration, each with a comma in front.
    pub keys: String,
    pub prev_result: Option<String>,
}

impl Call {
    /// A call for `pod` with the agent at `agent`.
    pub fn new(pod: &Pod, agent: &FakeAgent) -> Self {
        Self::at(pod, &agent.socket())
    }

    pub fn at(pod: &Pod, socket: &Path) -> Self {
        Self {
            version: "1.1.0".into(),
            container_id: pod.namespace.name.clone(),
            ifname: "eth0".into(),
            netns: pod.namespace.path().display().to_string(),
            args: String::new(),
            keys: format!(r#","socket":"{}""#, socket.display()),
            prev_result: Some(pod.result("1.1.0")),
        }
    }

    pub fn version(mut self, pod: &Pod, version: &str) -> Self {
        self.version = version.into();
        self.prev_result = Some(pod.result(version));
        self
    }

    /// Adds `"key":value` to the configuration.
    pub fn key(mut self, key: &str, value: &str) -> Self {
        self.keys.push_str(&format!(r#","{key}":{value}"#));
        self
    }

    pub fn config(&self) -> String {
        let previous =
            self.prev_result.as_ref().map_or(String::new(), |result| format!(r#","prevResult":{result}"#));
        format!(
            r#"{{"cniVersion":"{}","name":"pods","type":"podspan"{}{previous}}}"#,
            self.version, self.keys
        )
    }

    pub fn run(&self, command: &str) -> Output {
        let mut environment = vec![("CNI_COMMAND", command), ("CNI_PATH", "/opt/cni/bin")];
        for (name, value) in [
            ("CNI_CONTAINERID", &self.container_id),
            ("CNI_IFNAME", &self.ifname),
            ("CNI_NETNS", &self.netns),
            ("CNI_ARGS", &self.args),
        ] {
            if !value.is_empty() {
                environment.push((name, value));
            }
        }
        execute(&mut Command::new(binary()), &environment, self.config().as_bytes())
    }
}
