//! Runs the real binary in a directory of its own, and plays the agent.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;

/// A directory in which commands run.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

/// What a command did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

#[allow(dead_code, reason = "each test file uses a part of this")]
impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A bench with the cluster set `prod` in the directory `prod`.
    pub(crate) fn with_cluster_set() -> Self {
        let bench = Self::new();
        bench.ok(
            "clusterset create --dir prod --name prod --broker 127.0.0.1 --broker broker.example.com:8443",
        );
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }

    /// Every file and directory, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() {
                    walk(root, &path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut found);
        found.sort();
        found
    }

    /// The binary, set to run here with these words.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podspan"));
        command.args(words.split_whitespace()).current_dir(self.dir.path()).env_remove("NO_COLOR");
        command
    }

    pub(crate) fn run(&self, words: &str) -> Ran {
        Ran::from(self.command(words).output().unwrap())
    }

    /// Runs what must succeed without complaint; returns its output.
    pub(crate) fn ok(&self, words: &str) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, 0, "podspan {words}: {}", ran.stderr);
        assert_eq!(ran.stderr, "", "podspan {words}");
        ran.stdout
    }

    /// Runs what must fail with exit code 1 and print nothing but errors; returns them.
    pub(crate) fn fails(&self, words: &str) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, 1, "podspan {words}: {}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.stdout, "", "podspan {words}");
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
        ran.stderr
    }

    /// Answers one client of the socket `name` with `answer` and a new line, then hangs up. Returns what
    /// was asked when joined.
    pub(crate) fn play_agent(&self, name: &str, answer: Vec<u8>) -> JoinHandle<String> {
        let listener = UnixListener::bind(self.path(name)).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut question).unwrap();
            // The client may hang up first; what it says then is what the test looks at.
            let _ = stream.write_all(&answer);
            question
        })
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it instead.
#[allow(dead_code, reason = "each test file uses a part of this")]
#[track_caller]
pub(crate) fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert!(expected == found, "{name} differs; expected:\n{expected}\nfound:\n{found}");
}
