//! What to write and what to remove: from the files of the configuration directory and the mode. Pure.

use std::collections::BTreeMap;
use std::fmt;

use super::conflist::{self, Network, Shape};
use super::mode::Mode;

/// Names of the owned copy, in the order of preference. Runtimes take the file whose name sorts first; the
/// later ones sort before primaries that begin with `00-` themselves.
pub const OWNED: [&str; 3] = ["00-podspan.conflist", "00--podspan.conflist", "!00-podspan.conflist"];

/// The name of the file in a network's drop-in directory. Late in the order: podspan stands behind what
/// makes the interface.
pub const DROP_IN: &str = "99-podspan.conf";

/// The endings by which runtimes know configurations (libcni).
pub const ENDINGS: [&str; 3] = [".conf", ".conflist", ".json"];

/// What is in the configuration directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The files with one of the [`ENDINGS`], by name: in the order of runtimes.
    pub files: BTreeMap<String, File>,
    /// The networks whose drop-in directory has podspan's file, with its text.
    pub drop_ins: BTreeMap<String, String>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its text, or why it cannot be read.
    pub text: Result<String, String>,
    /// Whether it is a symbolic link: a rename would put a plain file in its place.
    pub link: bool,
}

/// How podspan is chained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// An entry at the end of the primary list.
    Append,
    /// A copy of the primary with the entry, which sorts before it.
    Owned,
    /// A file in the network's drop-in directory (CNI 1.1).
    DropIn,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Append => "appended to",
            Self::Owned => "in an owned copy of",
            Self::DropIn => "in the drop-in directory of",
        })
    }
}

/// One change. Paths are relative to the configuration directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file gets this text, in one rename.
    Write {
        /// Which.
        path: String,
        /// The text.
        text: String,
        /// The text it had when this was decided; none if there was no such file. If it has another by now,
        /// the step must not be made.
        before: Option<String>,
        /// The file whose mode and owner it gets, if it is new.
        like: String,
    },
    /// A file goes.
    Remove {
        /// Which.
        path: String,
    },
}

/// How it stands once the steps are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// podspan is in the chain.
    Chained(Chained),
    /// There is no primary yet.
    Waiting(String),
    /// There is one, and podspan cannot be chained to it; why, and what to do.
    Refused(String),
    /// Nothing is wanted.
    Off,
}

/// Where podspan is chained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chained {
    /// How.
    pub way: Way,
    /// The primary's file.
    pub primary: String,
    /// The file that has podspan's entry.
    pub carrier: String,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in the order in which they must be made.
    pub steps: Vec<Step>,
    /// What they lead to.
    pub standing: Standing,
    /// Whether the carrier had podspan's entry before any step.
    pub present: bool,
    /// Whether a file may be half written at this moment: look again before something is taken away or put
    /// where it may not belong.
    pub unsettled: bool,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// How to chain.
    pub mode: Mode,
    /// podspan's entry, a JSON object.
    pub entry: &'a str,
    /// For [`Mode::Auto`]: appending was tried, and another program takes it out again.
    pub rather_owned: bool,
}

/// Decides.
#[must_use]
pub fn plan(listing: &Listing, wanted: &Wanted<'_>) -> Plan {
    if wanted.mode == Mode::Off {
        return Plan { standing: Standing::Off, ..uninstall(listing) };
    }
    let mut doubtful: Option<String> = None;
    let mut primary = None;
    for (name, file) in &listing.files {
        if OWNED.contains(&name.as_str()) {
            continue;
        }
        match read(name, file) {
            Ok(network) if network.has_others() => {
                primary = Some((name.as_str(), file, network));
                break;
            }
            Ok(_) => {}
            Err(why) => {
                doubtful.get_or_insert(format!("{name} cannot be used: {why}"));
            }
        }
    }
    let Some((name, file, network)) = primary else {
        // An owned copy without what it is a copy of would outlive the cluster's own network.
        let why = doubtful.clone().unwrap_or_else(|| {
            "there is no network configuration yet: the cluster's own CNI has not put one there".into()
        });
        let steps = remove_owned(listing, None).chain(remove_drop_ins(listing, None)).collect();
        return Plan { steps, standing: Standing::Waiting(why), present: false, unsettled: true };
    };
    let plan = match chain(listing, wanted, name, file, &network) {
        Ok(plan) => plan,
        Err(why) => {
            let why = format!("podspan's CNI plugin is not chained: {name}: {why}");
            Plan { standing: Standing::Refused(why), ..uninstall(listing) }
        }
    };
    Plan { unsettled: doubtful.is_some(), ..plan }
}

fn read(name: &str, file: &File) -> Result<Network, String> {
    let text = file.text.as_ref().map_err(Clone::clone)?;
    if name.ends_with(".conflist") { conflist::read_list(text) } else { conflist::read_single(text) }
}

fn chain(
    listing: &Listing,
    wanted: &Wanted<'_>,
    name: &str,
    file: &File,
    network: &Network,
) -> Result<Plan, String> {
    let unspoken = network.unspoken();
    if !unspoken.is_empty() {
        return Err(format!(
            "its cniVersion {} is not one of those that podspan speaks ({}): every new pod would fail",
            unspoken.join(", "),
            podspan_cni::version::SpecVersion::listed()
        ));
    }
    let text = file.text.as_ref().map_err(Clone::clone)?;
    let way = way(wanted, file, network)?;
    let (carrier, carried) = match way {
        Way::Append => (name.to_owned(), conflist::with_entry(text, wanted.entry)?),
        Way::Owned => {
            let copy = match network.shape {
                Shape::List { .. } => conflist::with_entry(text, wanted.entry)?,
                Shape::Single { .. } => conflist::list_of_single(text, wanted.entry)?,
            };
            let carrier = OWNED.into_iter().find(|own| *own < name).ok_or_else(|| {
                "no name of podspan's sorts before it, so that runtimes would not take an owned copy: use mode append"
                    .to_owned()
            })?;
            (carrier.to_owned(), copy)
        }
        Way::DropIn => (format!("{}/{DROP_IN}", network.name), format!("{}\n", wanted.entry)),
    };
    let there = match way {
        Way::DropIn => listing.drop_ins.get(&network.name).cloned(),
        _ => listing.files.get(&carrier).and_then(|file| file.text.clone().ok()),
    };
    let present = match way {
        Way::DropIn => there.is_some(),
        _ => there
            .as_deref()
            .is_some_and(|there| conflist::read_list(there).is_ok_and(|network| network.has_own())),
    };
    let write = (there.as_deref() != Some(carried.as_str())).then(|| Step::Write {
        path: carrier.clone(),
        text: carried,
        before: there,
        like: name.to_owned(),
    });
    let bare = (way != Way::Append).then(|| without(name, file)).flatten();
    let drop_ins = remove_drop_ins(listing, (way == Way::DropIn).then_some(network.name.as_str()));
    let owned: Vec<Step> = remove_owned(listing, (way == Way::Owned).then_some(carrier.as_str())).collect();
    // On the way from one to the other podspan is never in the chain twice. Where there is a moment without
    // it, a pod starts without routes of its own and gets them from the agent.
    let steps = match way {
        Way::Append => drop_ins.chain(write).chain(owned).collect(),
        Way::Owned => drop_ins.chain(write).chain(bare).chain(owned).collect(),
        Way::DropIn => bare.into_iter().chain(owned).chain(drop_ins).chain(write).collect(),
    };
    let standing = Standing::Chained(Chained { way, primary: name.to_owned(), carrier });
    Ok(Plan { steps, standing, present, unsettled: false })
}

fn way(wanted: &Wanted<'_>, file: &File, network: &Network) -> Result<Way, String> {
    let Shape::List { plugins, inlined_only } = &network.shape else {
        // To a single plugin nothing can be appended, and it has no drop-in directory.
        return Ok(Way::Owned);
    };
    match wanted.mode {
        Mode::Auto if plugins.is_none() => Ok(Way::DropIn),
        Mode::Auto if file.link || wanted.rather_owned => Ok(Way::Owned),
        Mode::Append if file.link => {
            Err("it is a symbolic link, which writing would turn into a file: use mode owned".into())
        }
        Mode::Append | Mode::Owned if plugins.is_none() => {
            Err("all its plugins are in its drop-in directory: use mode dropIn".into())
        }
        Mode::DropIn if *inlined_only => Err(
            "loadOnlyInlinedPlugins is set, so that runtimes look into no drop-in directory: use mode append"
                .into(),
        ),
        Mode::Auto | Mode::Append => Ok(Way::Append),
        Mode::Owned => Ok(Way::Owned),
        Mode::DropIn => Ok(Way::DropIn),
        Mode::Off => Err("mode is off".into()),
    }
}

/// Takes podspan out of every configuration. First what runtimes read first, so that none is left with a
/// chain that was half taken apart.
#[must_use]
pub fn uninstall(listing: &Listing) -> Plan {
    let entries = listing
        .files
        .iter()
        .filter(|(name, _)| !OWNED.contains(&name.as_str()))
        .filter_map(|(name, file)| without(name, file));
    // The bare primary stands before the owned copy that hid it goes.
    let steps = remove_drop_ins(listing, None).chain(entries).chain(remove_owned(listing, None)).collect();
    Plan { steps, standing: Standing::Off, present: false, unsettled: false }
}

/// The step that takes podspan's entries out of a list, if there are any.
fn without(name: &str, file: &File) -> Option<Step> {
    let text = file.text.as_ref().ok()?;
    let network = read(name, file).ok()?;
    if !network.has_own() || matches!(network.shape, Shape::Single { .. }) {
        return None;
    }
    let bare = conflist::without_entries(text).ok()?;
    Some(Step::Write { path: name.to_owned(), text: bare, before: Some(text.clone()), like: name.to_owned() })
}

fn remove_owned<'a>(listing: &'a Listing, but: Option<&'a str>) -> impl Iterator<Item = Step> + 'a {
    OWNED
        .into_iter()
        .filter(move |name| listing.files.contains_key(*name) && but != Some(*name))
        .map(|name| Step::Remove { path: name.to_owned() })
}

fn remove_drop_ins<'a>(listing: &'a Listing, but: Option<&'a str>) -> impl Iterator<Item = Step> + 'a {
    listing
        .drop_ins
        .keys()
        .filter(move |network| Some(network.as_str()) != but)
        .map(|network| Step::Remove { path: format!("{network}/{DROP_IN}") })
}

impl Listing {
    /// The listing after a step.
    #[cfg(test)]
    #[must_use]
    pub(super) fn after(mut self, step: &Step) -> Self {
        let network = |path: &str| path.strip_suffix(&format!("/{DROP_IN}")).map(str::to_owned);
        match step {
            Step::Write { path, text, .. } => match network(path) {
                Some(network) => drop(self.drop_ins.insert(network, text.clone())),
                None => {
                    let link = false;
                    self.files.insert(path.clone(), File { text: Ok(text.clone()), link });
                }
            },
            Step::Remove { path } => match network(path) {
                Some(network) => drop(self.drop_ins.remove(&network)),
                None => drop(self.files.remove(path)),
            },
        }
        self
    }
}
