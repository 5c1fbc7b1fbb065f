//! The `CNI_*` environment variables (CNI spec section 2, "Parameters").

use std::path::PathBuf;

use podspan_wire::local::Attachment;

use crate::error::{CniError, Code, join, quote};

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Add the container to the network.
    Add,
    /// Remove it.
    Del,
    /// See whether its networking is as it should be.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Tell whether containers can be added.
    Status,
    /// Tell which versions of the spec are spoken.
    Version,
}

/// The variables as they were found, before they are checked; a variable that is not UTF-8 or empty is
/// told apart from one that is not set only where that makes a difference to a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Option<String>,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<String>,
    /// `CNI_NETNS`.
    pub netns: Option<String>,
    /// `CNI_IFNAME`.
    pub ifname: Option<String>,
    /// `CNI_ARGS`.
    pub args: Option<String>,
}

/// `CNI_ARGS`, as far as podspan reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `PODSPAN=off`: the pod wants to be left alone.
    pub off: bool,
    /// `K8S_POD_NAMESPACE`.
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`.
    pub pod: Option<String>,
}

impl Args {
    /// The pod's name with its namespace, as far as the runtime told them.
    #[must_use]
    pub fn pod_name(&self) -> Option<String> {
        self.pod.as_ref().map(|name| match &self.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.clone(),
        })
    }
}

impl Environment {
    /// Reads the process's environment.
    #[must_use]
    pub fn read() -> Self {
        // A replacement character is outside what any of the variables may hold, so that the checks below
        // name the variable; a path is the exception and simply does not exist then.
        let get = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
        }
    }

    /// The command.
    ///
    /// # Errors
    /// Code 4.
    pub fn command(&self) -> Result<Command, CniError> {
        match self.command.as_deref() {
            Some("ADD") => Ok(Command::Add),
            Some("DEL") => Ok(Command::Del),
            Some("CHECK") => Ok(Command::Check),
            Some("GC") => Ok(Command::Gc),
            Some("STATUS") => Ok(Command::Status),
            Some("VERSION") => Ok(Command::Version),
            None | Some("") => Err(invalid(&[
                "CNI_COMMAND is not set: this program is a CNI plugin, run by the container runtime".into(),
            ])),
            Some(other) => Err(invalid(&[format!(
                "CNI_COMMAND is {}: expected ADD, DEL, CHECK, GC, STATUS or VERSION",
                quote(other)
            )])),
        }
    }

    /// Container and interface, which ADD, CHECK and DEL need, and the namespace's path, which ADD and
    /// CHECK need and DEL may lack.
    ///
    /// # Errors
    /// Code 4 with every variable that is missing or wrong.
    pub fn attachment(&self, needs_netns: bool) -> Result<(Attachment, Option<PathBuf>), CniError> {
        let mut faults = Vec::new();
        let mut required = |name: &str, value: &Option<String>, good: fn(&str) -> bool, rule: &str| {
            let text = value.clone().unwrap_or_default();
            if text.is_empty() {
                faults.push(format!("{name} is not set"));
            } else if !good(&text) {
                faults.push(format!("{name} is {}: {rule}", quote(&text)));
            }
            text
        };
        let container_id = required(
            "CNI_CONTAINERID",
            &self.container_id,
            is_identifier,
            "start with a letter or digit, go on with those and '_', '.', '-'",
        );
        let interface = required(
            "CNI_IFNAME",
            &self.ifname,
            is_interface_name,
            "an interface name has 1 to 15 characters, none of them '/', ':' or white space, and is not '.' or '..'",
        );
        if needs_netns {
            required("CNI_NETNS", &self.netns, |_| true, "");
        }
        if !faults.is_empty() {
            return Err(invalid(&faults));
        }
        let netns = self.netns.clone().filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok((Attachment { container_id, interface }, netns))
    }

    /// The extra arguments; keys that podspan does not know are somebody else's.
    ///
    /// # Errors
    /// Code 4 if it is not a list of `KEY=VALUE`, or `PODSPAN` is neither `on` nor `off`.
    pub fn args(&self) -> Result<Args, CniError> {
        let (mut args, mut faults) = (Args::default(), Vec::new());
        let text = self.args.as_deref().unwrap_or_default();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("PODSPAN", "off")) => args.off = true,
                Some(("PODSPAN", "on")) => args.off = false,
                Some(("PODSPAN", other)) => {
                    faults.push(format!("CNI_ARGS: PODSPAN={} is neither on nor off", quote(other)));
                }
                Some(("K8S_POD_NAMESPACE", name)) => args.namespace = Some(name.to_owned()),
                Some(("K8S_POD_NAME", name)) => args.pod = Some(name.to_owned()),
                Some(_) => {}
                None => faults.push(format!("CNI_ARGS: {} is not KEY=VALUE", quote(pair))),
            }
        }
        if faults.is_empty() { Ok(args) } else { Err(invalid(&faults)) }
    }
}

fn invalid(faults: &[String]) -> CniError {
    CniError::new(
        Code::InvalidEnvironment,
        "the environment variables of the CNI call are not valid",
        join(faults),
    )
}

/// A container id or network name: a letter or digit, then those and `_`, `.`, `-` (CNI spec section 2,
/// `CNI_CONTAINERID`; section 1, `name`).
pub(crate) fn is_identifier(text: &str) -> bool {
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// What Linux takes for an interface's name (`dev_valid_name` in the kernel).
pub(crate) fn is_interface_name(text: &str) -> bool {
    (1..16).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.chars().any(|c| c == '/' || c == ':' || c == '\0' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named_at_once() {
        let environment = Environment {
            container_id: Some("-x".into()),
            ifname: Some("an interface".into()),
            ..Environment::default()
        };
        let error = environment.attachment(true).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(error.details.contains(name), "{error}");
        }
        assert!(!environment.attachment(false).unwrap_err().details.contains("CNI_NETNS"));
    }

    #[test]
    fn identifiers_and_interface_names() {
        for good in ["a", "0", "a_b.c-d", &"f".repeat(64)] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä"] {
            assert!(!is_identifier(bad), "{bad}");
        }
        for good in ["eth0", "a", "123456789012345", "e-1.2@x"] {
            assert!(is_interface_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "1234567890123456"] {
            assert!(!is_interface_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn args_are_read_and_strangers_ignored() {
        let with = |args: &str| Environment { args: Some(args.into()), ..Environment::default() }.args();
        let args = with("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;PODSPAN=off").unwrap();
        assert_eq!(args, Args { off: true, namespace: Some("shop".into()), pod: Some("cart-0".into()) });
        assert_eq!(with("").unwrap(), Args::default());
        assert_eq!(with(";;").unwrap(), Args::default());
        assert!(with("PODSPAN=maybe").unwrap_err().details.contains("maybe"));
        assert!(with("nonsense").unwrap_err().details.contains("CNI_ARGS"));
    }
}
