//! The commands (CNI spec section 2, "CNI operations").

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use podspan_wire::local::{Answer, Attachment, AttachmentDetail, PodRoutes, Request};
use serde_json::value::RawValue;

use crate::agent::{self, AgentError, Deadline};
use crate::config::{self, NetConf, OnFailure, Settings};
use crate::environment::{Args, Command, Environment};
use crate::error::{CniError, Code, join};
use crate::prev_result::{self, PodInterface};
use crate::version::SpecVersion;
use crate::{netns, pending, pod_routes};

/// Between two looks at a pod whose routes the agent is still setting.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// What a command leaves to be done by the caller: print and exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output; empty if the spec wants nothing there.
    pub stdout: String,
    /// For standard error: what went another way than it should have, for the runtime's log.
    pub notes: Vec<String>,
    /// The exit code: 0 or 1.
    pub exit: u8,
}

/// Runs the command that `environment` names on the configuration `input`.
pub fn run(environment: &Environment, input: &[u8]) -> Outcome {
    let mut notes = Vec::new();
    match dispatch(environment, input, &mut notes) {
        Ok(stdout) => Outcome { stdout, notes, exit: 0 },
        Err((version, error)) => Outcome { stdout: error.to_json(version), notes, exit: 1 },
    }
}

type Failure = (SpecVersion, CniError);

fn dispatch(environment: &Environment, input: &[u8], notes: &mut Vec<String>) -> Result<String, Failure> {
    let command = environment.command().map_err(|error| (SpecVersion::NEWEST, error))?;
    if command == Command::Version {
        return version(input).map_err(|error| (SpecVersion::NEWEST, error));
    }
    let conf = config::parse(input)?;
    let result = match command {
        Command::Del => del(environment, &conf, notes).map(|()| String::new()),
        _ => known_to(command, conf.version).and_then(|()| {
            let settings = conf.settings.clone()?;
            match command {
                Command::Add => add(environment, &conf, &settings, notes),
                Command::Check => check(environment, &conf, &settings, notes).map(|()| String::new()),
                Command::Gc => gc(&conf, &settings, notes).map(|()| String::new()),
                Command::Status => status(&settings, notes).map(|()| String::new()),
                Command::Del | Command::Version => Ok(String::new()),
            }
        }),
    };
    result.map_err(|error| (conf.version, error))
}

/// Refuses a command that the runtime's version of the spec does not have.
fn known_to(command: Command, version: SpecVersion) -> Result<(), CniError> {
    let (name, since) = match command {
        Command::Check => ("CHECK", SpecVersion::V0_4_0),
        Command::Gc => ("GC", SpecVersion::V1_1_0),
        Command::Status => ("STATUS", SpecVersion::V1_1_0),
        Command::Add | Command::Del | Command::Version => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    Err(CniError::new(
        Code::IncompatibleVersion,
        format!("cniVersion {version} has no {name}"),
        format!("{name} came with {since}: raise cniVersion in the conflist, or do not call it"),
    ))
}

/// What ADD and CHECK know of the pod.
struct Pod {
    attachment: Attachment,
    netns: File,
    detail: AttachmentDetail,
}

impl Pod {
    fn new(
        attachment: Attachment,
        path: &Path,
        conf: &NetConf,
        interface: PodInterface,
        args: &Args,
    ) -> Result<Self, CniError> {
        // Not code 3, even when the path is gone: it would tell the runtime to skip DEL, and the earlier
        // plugins of the chain hold addresses.
        let wrong = |details: String| {
            let message = "CNI_NETNS is no usable network namespace";
            CniError::new(Code::InvalidEnvironment, message, details)
        };
        let netns =
            netns::open(path).map_err(|error| wrong(format!("CNI_NETNS={}: {error}", path.display())))?;
        // Routes meant for a pod would take the node's own traffic with them.
        let own = netns::open(Path::new("/proc/self/ns/net"));
        if own.and_then(|own| netns::same(&own, &netns)).unwrap_or(false) {
            return Err(wrong(format!("CNI_NETNS={} is the node's own namespace", path.display())));
        }
        let detail = AttachmentDetail {
            attachment: attachment.clone(),
            netns: path.to_string_lossy().into_owned(),
            network: conf.name.clone(),
            addresses: interface.addresses,
            gateways: interface.gateways,
            pod: args.pod_name(),
        };
        Ok(Self { attachment, netns, detail })
    }

    /// The pod that ADD or CHECK is about, and the earlier plugins' result; everything is validated
    /// here, before anything is touched. No pod if it has opted out.
    fn read<'a>(
        environment: &Environment,
        conf: &'a NetConf,
        settings: &Settings,
    ) -> Result<(Option<Self>, &'a RawValue), CniError> {
        let (attachment, path) = environment.attachment(true)?;
        let args = environment.args()?;
        let previous = conf.prev_result.as_deref().ok_or_else(|| {
            CniError::new(
                Code::InvalidConfig,
                "prevResult is missing",
                "podspan is a chained plugin: list it in the conflist behind the plugin that makes the interface",
            )
        })?;
        let interface = prev_result::parse(previous, &attachment.interface)?;
        let namespace = args.namespace.as_ref();
        let opted_out = args.off || namespace.is_some_and(|name| settings.opt_out_namespaces.contains(name));
        if opted_out {
            return Ok((None, previous));
        }
        let path = path.unwrap_or_default();
        Ok((Some(Self::new(attachment, &path, conf, interface, &args)?), previous))
    }

    fn attach(&self, settings: &Settings, deadline: Deadline) -> Result<PodRoutes, AgentError> {
        let request = Request::Attach(self.detail.clone());
        match agent::ask(&settings.socket, &request, settings.timeout, deadline)? {
            Answer::Routes(routes) => Ok(routes),
            other => Err(AgentError::Unexpected(agent::name_of(&other))),
        }
    }
}

fn try_again(error: &AgentError) -> CniError {
    CniError::new(Code::TryAgainLater, "the podspan agent cannot serve this pod now", error.to_string())
}

/// ADD: tells the agent of the pod, sets its routes, prints the earlier plugins' result.
fn add(
    environment: &Environment,
    conf: &NetConf,
    settings: &Settings,
    notes: &mut Vec<String>,
) -> Result<String, CniError> {
    let (pod, previous) = Pod::read(environment, conf, settings)?;
    let result = prev_result::pass_on(previous, conf.version);
    let Some(pod) = pod else { return Ok(result) };
    let deadline = Deadline::after(settings.timeout);
    let routes = match pod.attach(settings, deadline) {
        Ok(routes) => routes,
        Err(error) if settings.on_failure == OnFailure::Closed => return Err(try_again(&error)),
        Err(error) => {
            let later = match pending::keep(&settings.socket, &pod.detail) {
                Ok(()) => "the agent will do so when it is back".to_owned(),
                Err(kept) => format!("and the agent could not be left a note either ({kept})"),
            };
            notes.push(format!(
                "{error}. The pod starts without routes to other clusters (onFailure is open); {later}."
            ));
            return Ok(result);
        }
    };
    if let Err(error) = set_routes(&pod, &routes, notes) {
        // Back to how it was; what fails now fails again when the runtime calls DEL, and is said there.
        let _ = pod_routes::remove(&pod.netns, &pod.attachment.interface);
        if settings.on_failure == OnFailure::Closed {
            let detach = Request::Detach(pod.attachment.clone());
            let _ = agent::ask(&settings.socket, &detach, settings.timeout, deadline);
            return Err(error);
        }
        notes.push(format!(
            "{error}. The pod starts all the same (onFailure is open); the agent will try again."
        ));
    }
    Ok(result)
}

fn set_routes(pod: &Pod, routes: &PodRoutes, notes: &mut Vec<String>) -> Result<(), CniError> {
    let failed = |details: String| CniError::new(Code::Routes, "cannot set the pod's routes", details);
    let report = pod_routes::sync(&pod.netns, &pod.attachment.interface, routes, &pod.detail.gateways)
        .map_err(|error| failed(error.to_string()))?;
    for cidr in &report.foreign {
        notes.push(format!("the pod has a route of its own to {cidr}: left as it is"));
    }
    if report.failed.is_empty() {
        return Ok(());
    }
    let all: Vec<_> = report.failed.iter().map(|(cidr, error)| format!("{cidr}: {error}")).collect();
    Err(failed(join(&all)))
}

/// DEL: never fails for something that is already gone, and works with broken settings too: nobody could
/// get rid of a pod otherwise.
fn del(environment: &Environment, conf: &NetConf, notes: &mut Vec<String>) -> Result<(), CniError> {
    let (attachment, path) = environment.attachment(false)?;
    let settings = conf.settings.clone().unwrap_or_else(|error| {
        notes.push(format!("{error}. The defaults are used to remove the pod."));
        Settings::default()
    });
    let deadline = Deadline::after(settings.timeout);
    if let Err(error) = pending::forget(&settings.socket, &attachment) {
        notes.push(format!(
            "cannot remove the note about this pod in {}: {error}",
            pending::directory(&settings.socket).display()
        ));
    }
    // The agent first, so that it does not put back what is removed next.
    let request = Request::Detach(attachment.clone());
    match agent::ask(&settings.socket, &request, settings.timeout, deadline) {
        Ok(Answer::Done) => {}
        Ok(other) => notes.push(AgentError::Unexpected(agent::name_of(&other)).to_string()),
        Err(error) => notes.push(format!("{error}. It will notice by itself that the pod is gone.")),
    }
    if let Some(path) = path
        && let Ok(pod) = netns::open(&path)
        && !netns::open(Path::new("/proc/self/ns/net"))
            .and_then(|own| netns::same(&own, &pod))
            .unwrap_or(true)
        && let Err(error) = pod_routes::remove(&pod, &attachment.interface)
    {
        notes.push(format!("cannot remove the pod's routes: {error}"));
    }
    Ok(())
}

/// CHECK: the pod's routes stand as the agent would have them. A pod that the agent does not know is made
/// known to it, and gets the rest of the bound to be put right.
fn check(
    environment: &Environment,
    conf: &NetConf,
    settings: &Settings,
    notes: &mut Vec<String>,
) -> Result<(), CniError> {
    let (Some(pod), _) = Pod::read(environment, conf, settings)? else { return Ok(()) };
    let deadline = Deadline::after(settings.timeout);
    let request = Request::Check(pod.attachment.clone());
    let answer = match agent::ask(&settings.socket, &request, settings.timeout, deadline) {
        Ok(Answer::Routes(routes)) => Ok((routes, true)),
        Ok(Answer::Unknown) => pod.attach(settings, deadline).map(|routes| (routes, false)),
        Ok(other) => Err(AgentError::Unexpected(agent::name_of(&other))),
        Err(error) => Err(error),
    };
    let (routes, known) = match answer {
        Ok(answer) => answer,
        Err(error) if settings.on_failure == OnFailure::Closed => return Err(try_again(&error)),
        Err(error) => {
            notes.push(format!("{error}. The pod's routes were not checked (onFailure is open)."));
            return Ok(());
        }
    };
    if !known {
        notes.push("the podspan agent did not know this pod and was told of it".into());
    }
    loop {
        let differences =
            pod_routes::differences(&pod.netns, &pod.attachment.interface, &routes, &pod.detail.gateways)
                .map_err(|error| {
                    CniError::new(Code::Routes, "cannot read the pod's routes", error.to_string())
                })?;
        if differences.is_empty() {
            return Ok(());
        }
        if known || deadline.left().is_none_or(|left| left <= CHECK_INTERVAL) {
            return Err(CniError::new(
                Code::RoutesMissing,
                "the pod's routes to other clusters are not as they should be",
                format!(
                    "in {}, interface {}: {}",
                    pod.detail.netns,
                    pod.attachment.interface,
                    join(&differences)
                ),
            ));
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
}

/// GC: the agent forgets what is not valid any more.
fn gc(conf: &NetConf, settings: &Settings, notes: &mut Vec<String>) -> Result<(), CniError> {
    let Some(valid) = conf.valid_attachments.clone() else {
        return Err(CniError::new(
            Code::InvalidConfig,
            "cni.dev/valid-attachments is missing",
            "GC needs the list of valid attachments, even an empty one: without it everything would be removed. \
             Nothing was",
        ));
    };
    let deadline = Deadline::after(settings.timeout);
    match pending::list(&settings.socket) {
        Ok(kept) => {
            for detail in kept.details {
                if detail.network == conf.name
                    && !valid.contains(&detail.attachment)
                    && let Err(error) = pending::forget(&settings.socket, &detail.attachment)
                {
                    notes.push(format!("cannot remove a note about a pod that is gone: {error}"));
                }
            }
        }
        Err(error) => {
            notes.push(format!("cannot list {}: {error}", pending::directory(&settings.socket).display()))
        }
    }
    let request = Request::Collect { network: conf.name.clone(), valid };
    let error = match agent::ask(&settings.socket, &request, settings.timeout, deadline) {
        Ok(Answer::Done) => return Ok(()),
        Ok(other) => AgentError::Unexpected(agent::name_of(&other)),
        Err(error) => error,
    };
    if settings.on_failure == OnFailure::Closed {
        return Err(try_again(&error));
    }
    notes.push(format!("{error}. Nothing was collected; the next GC will (onFailure is open)."));
    Ok(())
}

/// STATUS: whether ADD would work. Only the local agent counts, and only if ADD depends on it; a remote
/// cluster never does.
fn status(settings: &Settings, notes: &mut Vec<String>) -> Result<(), CniError> {
    let deadline = Deadline::after(settings.timeout);
    let error = match agent::ask(&settings.socket, &Request::Ready, settings.timeout, deadline) {
        Ok(Answer::Done) => return Ok(()),
        Ok(other) => AgentError::Unexpected(agent::name_of(&other)),
        Err(error) => error,
    };
    if settings.on_failure == OnFailure::Open {
        notes.push(format!("{error}. Pods can be added all the same (onFailure is open)."));
        return Ok(());
    }
    // Without the agent no packet goes between the clusters either.
    let code = if error.was_answered() { Code::NotAvailable } else { Code::LimitedConnectivity };
    Err(CniError::new(code, "no pod can be added: the podspan agent is not available", error.to_string()))
}

/// VERSION: every version that is spoken here.
fn version(input: &[u8]) -> Result<String, CniError> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions<'a> {
        cni_version: &'a str,
        supported_versions: [&'static str; SpecVersion::ALL.len()],
    }
    let asked = config::parse_version_probe(input)?;
    let versions = Versions {
        cni_version: asked.as_deref().unwrap_or(SpecVersion::NEWEST.label()),
        supported_versions: SpecVersion::ALL.map(SpecVersion::label),
    };
    // Texts only: serialising cannot fail.
    Ok(serde_json::to_string(&versions).unwrap_or_default())
}
