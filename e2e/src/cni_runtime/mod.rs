//! A small CNI runtime, as the CNI specification 1.1.0 describes it in sections 3 and 4: it runs a chain of
//! plugins for an attachment, passes each the result of the one before, and remembers the last result for
//! CHECK and DEL.

mod cache;
mod conflist;
mod invoke;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

pub(crate) use conflist::NetworkConfig;
pub(crate) use invoke::CniError;
use invoke::{Call, Operation};

use crate::netns::Netns;

/// The runtime of one node.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    /// The node: plugins run in its namespace.
    pub(crate) netns: Netns,
    /// Where plugins are looked for (`CNI_PATH`).
    pub(crate) plugin_dirs: Vec<PathBuf>,
    /// Where the results are remembered.
    pub(crate) cache: PathBuf,
    pub(crate) config: NetworkConfig,
    /// How long one plugin may take.
    pub(crate) timeout: Duration,
}

/// What is attached: an interface of a container (section 3, "Parameters").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    pub(crate) interface: String,
    /// The container's namespace; a DEL may come without.
    pub(crate) netns: Option<PathBuf>,
    /// `CNI_ARGS`: `KEY=VALUE` pairs.
    pub(crate) args: Vec<(String, String)>,
}

impl Runtime {
    /// Attaches: the plugins in order, each with the result of the one before as `prevResult`. If one
    /// fails the attachment is deleted again, as container runtimes do.
    pub(crate) fn add(&self, attachment: &Attachment) -> Result<Value> {
        if cache::load(&self.cache, &self.config.name, attachment)?.is_some() {
            bail!("{} is attached to {} already", attachment.container_id, self.config.name);
        }
        let mut previous = None;
        for plugin in &self.config.plugins {
            match self.call(Operation::Add, plugin, Some(attachment), previous.as_ref(), None) {
                Ok(result) => previous = result,
                Err(error) => {
                    if let Err(second) = self.delete_with(attachment, None) {
                        return Err(error.context(format!("and the DEL after it failed too: {second:#}")));
                    }
                    return Err(error);
                }
            }
        }
        let Some(result) = previous else {
            bail!("the last plugin of {} gave no result", self.config.name);
        };
        cache::store(&self.cache, &self.config.name, attachment, &result)?;
        Ok(result)
    }

    /// Detaches: the plugins in reverse order, each with the cached result of the ADD. Deleting what is
    /// not attached is no error.
    pub(crate) fn del(&self, attachment: &Attachment) -> Result<()> {
        let previous = cache::load(&self.cache, &self.config.name, attachment)?;
        self.delete_with(attachment, previous.as_ref())?;
        cache::remove(&self.cache, &self.config.name, attachment)
    }

    fn delete_with(&self, attachment: &Attachment, previous: Option<&Value>) -> Result<()> {
        // prevResult with DEL is from 0.4.0 on (section "DEL" of that version).
        let previous = previous.filter(|_| self.config.version >= (0, 4, 0));
        for plugin in self.config.plugins.iter().rev() {
            self.call(Operation::Del, plugin, Some(attachment), previous, None)?;
        }
        Ok(())
    }

    /// Whether the attachment is as its ADD left it.
    pub(crate) fn check(&self, attachment: &Attachment) -> Result<()> {
        if self.config.version < (0, 4, 0) {
            bail!("CHECK is from CNI 0.4.0 on, {} is older", self.config.name);
        }
        if self.config.disable_check {
            return Ok(());
        }
        let Some(previous) = cache::load(&self.cache, &self.config.name, attachment)? else {
            bail!("{} is not attached to {}", attachment.container_id, self.config.name);
        };
        for plugin in &self.config.plugins {
            self.call(Operation::Check, plugin, Some(attachment), Some(&previous), None)?;
        }
        Ok(())
    }

    /// Removes every attachment but the `valid` ones: those that are remembered by a DEL, then what the
    /// plugins themselves know of by a GC, from version 1.1.0 on. All plugins are called, whatever fails.
    pub(crate) fn gc(&self, valid: &[Attachment]) -> Result<()> {
        let mut errors = Vec::new();
        for stale in cache::all(&self.cache, &self.config.name)? {
            let is_valid =
                |a: &&Attachment| (&a.container_id, &a.interface) == (&stale.container_id, &stale.interface);
            if !valid.iter().any(|a| is_valid(&a))
                && let Err(error) = self.del(&stale)
            {
                errors.push(error);
            }
        }
        if self.config.version >= (1, 1, 0) && !self.config.disable_gc {
            let list: Vec<_> =
                valid.iter().map(|a| json!({"containerID": a.container_id, "ifname": a.interface})).collect();
            for plugin in &self.config.plugins {
                if let Err(error) = self.call(Operation::Gc, plugin, None, None, Some(&list)) {
                    errors.push(error);
                }
            }
        }
        match errors.into_iter().next() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Whether an ADD may be made now; from version 1.1.0 on.
    pub(crate) fn status(&self) -> Result<()> {
        if self.config.version >= (1, 1, 0) {
            for plugin in &self.config.plugins {
                self.call(Operation::Status, plugin, None, None, None)?;
            }
        }
        Ok(())
    }

    /// What each plugin says of the versions it supports.
    pub(crate) fn versions(&self) -> Result<Vec<(String, Value)>> {
        let mut all = Vec::new();
        for plugin in &self.config.plugins {
            let answer = self.call(Operation::Version, plugin, None, None, None)?;
            all.push((conflist::plugin_type(plugin)?.to_owned(), answer.unwrap_or(Value::Null)));
        }
        Ok(all)
    }

    fn call(
        &self,
        operation: Operation,
        plugin: &Map<String, Value>,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
        valid: Option<&[Value]>,
    ) -> Result<Option<Value>> {
        let call = Call {
            operation,
            plugin_type: conflist::plugin_type(plugin)?,
            config: self.config.request(plugin, previous, valid),
            attachment,
            plugin_dirs: &self.plugin_dirs,
            netns: &self.netns,
            timeout: self.timeout,
        };
        call.run()
    }
}
