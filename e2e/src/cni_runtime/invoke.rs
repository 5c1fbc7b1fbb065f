//! One run of a plugin (CNI specification section 2, "CNI operations").

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::Attachment;
use crate::command::Cmd;
use crate::netns::Netns;

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Operation {
    fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// A plugin's error result (section 5, "Error").
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("CNI plugin {plugin}, {operation}: code {code}: {msg}{}", detail(.details))]
pub(crate) struct CniError {
    #[serde(skip)]
    pub(crate) plugin: String,
    #[serde(skip)]
    pub(crate) operation: String,
    pub(crate) code: u32,
    pub(crate) msg: String,
    #[serde(default)]
    pub(crate) details: String,
}

fn detail(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!("; {details}") }
}

pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) plugin_type: &'a str,
    pub(super) config: Value,
    pub(super) attachment: Option<&'a Attachment>,
    pub(super) plugin_dirs: &'a [PathBuf],
    pub(super) netns: &'a Netns,
    pub(super) timeout: Duration,
}

impl Call<'_> {
    /// Runs the plugin. What it answers must be JSON, or nothing where the operation has no result.
    pub(super) fn run(&self) -> Result<Option<Value>> {
        let name = self.plugin_type;
        let program = self
            .plugin_dirs
            .iter()
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("there is no CNI plugin {name:?} in {:?}", self.plugin_dirs))?;
        let path: Vec<_> = self.plugin_dirs.iter().map(|dir| dir.to_string_lossy().into_owned()).collect();
        // The environment is what the specification says and a PATH, nothing of the lab's own.
        let mut cmd = Cmd::new(program)
            .clear_env()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", self.operation.text())
            .env("CNI_PATH", path.join(":"))
            .within(self.netns)
            .timeout(self.timeout)
            .stdin(serde_json::to_vec(&self.config)?);
        if let Some(attachment) = self.attachment {
            cmd =
                cmd.env("CNI_CONTAINERID", &attachment.container_id).env("CNI_IFNAME", &attachment.interface);
            if let Some(netns) = &attachment.netns {
                cmd = cmd.env("CNI_NETNS", netns);
            }
            if !attachment.args.is_empty() {
                let args: Vec<_> = attachment.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
                cmd = cmd.env("CNI_ARGS", args.join(";"));
            }
        }
        let finished = cmd.run()?;
        let (stdout, stderr) = (finished.stdout_text(), finished.stderr_text());
        if !finished.status.success() {
            let error = serde_json::from_str::<CniError>(&stdout).map(|error| CniError {
                plugin: name.to_owned(),
                operation: self.operation.text().to_owned(),
                ..error
            });
            return Err(match error {
                Ok(error) => error.into(),
                Err(_) => anyhow::anyhow!(
                    "CNI plugin {name}, {}: failed ({}) without an error result: {} {}",
                    self.operation.text(),
                    finished.status,
                    stdout.trim(),
                    stderr.trim()
                ),
            });
        }
        if stdout.trim().is_empty() {
            if matches!(self.operation, Operation::Add | Operation::Version) {
                anyhow::bail!("CNI plugin {name}, {}: it answered nothing", self.operation.text());
            }
            return Ok(None);
        }
        let answer = serde_json::from_str(&stdout).with_context(|| {
            format!("CNI plugin {name}, {}: its answer is no JSON: {stdout}", self.operation.text())
        })?;
        Ok(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_result_reads_as_one_line() {
        let mut error: CniError =
            serde_json::from_str(r#"{"cniVersion":"1.0.0","code":7,"msg":"bad","details":"x"}"#).unwrap();
        error.plugin = "p".into();
        error.operation = "ADD".into();
        assert_eq!(error.to_string(), "CNI plugin p, ADD: code 7: bad; x");
    }
}
