//! The pure core by tables and properties, and the installer at work on real directories.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::conflist::{self, with_entry, without_entries};
use super::mode::{CniSettings, Mode};
use super::plan::{
    Chained, DROP_IN, File, Listing, OWNED, Plan, Standing, Step, Wanted, Way, plan, uninstall,
};
use super::task::{self, Order};

const ENTRY: &str = r#"{ "type": "podspan" }"#;
const LIST: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    { "type": "bridge", "isGateway": true, "unknown": [1.50, 1E+300, "\u00e4"] },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;
const SINGLE: &str = r#"{"cniVersion": "0.4.0", "name": "old", "type": "bridge", "x": {"y": 1.0}}"#;

fn listing(files: &[(&str, &str)]) -> Listing {
    let files = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), File { text: Ok((*text).to_owned()), link: false }));
    Listing { files: files.collect(), ..Listing::default() }
}

fn decide(listing: &Listing, mode: Mode) -> Plan {
    plan(listing, &Wanted { mode, entry: ENTRY, rather_owned: false })
}

/// The listing once the plan is carried out; nothing must be left to do then.
fn done(listing: &Listing, mode: Mode) -> (Listing, Standing) {
    let first = decide(listing, mode);
    let after = first.steps.iter().fold(listing.clone(), Listing::after);
    let second = decide(&after, mode);
    assert_eq!(second.steps, [], "done is done");
    assert_eq!(second.standing, first.standing);
    assert_eq!(second.present, matches!(second.standing, Standing::Chained(_)));
    (after, first.standing)
}

/// The chain that a runtime would use: libcni's rules.
fn chain(listing: &Listing) -> Vec<String> {
    let Some((name, file)) = listing.files.iter().next() else { return Vec::new() };
    let value: Value = serde_json::from_str(file.text.as_ref().unwrap()).unwrap();
    let kind = |plugin: &Value| plugin["type"].as_str().unwrap().to_owned();
    if !name.ends_with(".conflist") {
        return vec![kind(&value)];
    }
    let inlined = value["plugins"].as_array().into_iter().flatten().map(kind);
    let dropped = listing.drop_ins.get(value["name"].as_str().unwrap());
    let dropped = dropped.filter(|_| value["loadOnlyInlinedPlugins"] != json!(true));
    inlined.chain(dropped.map(|text| kind(&serde_json::from_str(text).unwrap()))).collect()
}

#[test]
fn each_mode_chains_podspan_once_and_last_from_whatever_stood_before() {
    let start = listing(&[("10-pods.conflist", LIST), ("99-loopback.conf", SINGLE)]);
    let modes = [Mode::Auto, Mode::Append, Mode::Owned, Mode::DropIn];
    for (mode, way, carrier) in [
        (Mode::Auto, Way::Append, "10-pods.conflist"),
        (Mode::Append, Way::Append, "10-pods.conflist"),
        (Mode::Owned, Way::Owned, OWNED[0]),
        (Mode::DropIn, Way::DropIn, "pods/99-podspan.conf"),
    ] {
        for earlier in modes {
            let (before, _) = done(&start, earlier);
            // On the way there is never a chain with podspan twice, nor one without the cluster's own plugins.
            let mut now = before.clone();
            for step in decide(&before, mode).steps {
                now = now.after(&step);
                let chain = chain(&now);
                assert_eq!(&chain[..2], ["bridge", "portmap"], "{earlier:?} -> {mode:?}");
                assert!(chain.len() <= 3, "{earlier:?} -> {mode:?}: {chain:?}");
            }
            let (after, standing) = done(&before, mode);
            assert_eq!(chain(&after), ["bridge", "portmap", "podspan"], "{earlier:?} -> {mode:?}");
            let primary = "10-pods.conflist".to_owned();
            assert_eq!(standing, Standing::Chained(Chained { way, primary, carrier: carrier.to_owned() }));
            let (bare, _) = done(&after, Mode::Off);
            assert_eq!(bare, start, "{mode:?}: byte for byte as before");
        }
    }
}

#[test]
fn a_single_plugin_is_chained_in_an_owned_list() {
    let start = listing(&[("10-old.conf", SINGLE)]);
    for mode in [Mode::Auto, Mode::Append, Mode::Owned, Mode::DropIn] {
        let (after, _) = done(&start, mode);
        assert_eq!(chain(&after), ["bridge", "podspan"]);
        assert_eq!(done(&after, Mode::Off).0, start);
    }
}

#[test]
fn without_a_primary_nothing_is_installed() {
    let loopback = r#"{"cniVersion":"0.2.0","name":"lo","type":"loopback"}"#;
    let own = r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"podspan"}]}"#;
    for files in [
        &[][..],
        &[("99-loopback.conf", loopback)],
        &[("10-broken.conflist", "{\"cniVersion\": \"1.0.0\", \"na")],
        &[("10-only.conflist", own)],
        &[("10-empty.conflist", "")],
    ] {
        let plan = decide(&listing(files), Mode::Auto);
        assert!(plan.steps.is_empty() && matches!(plan.standing, Standing::Waiting(_)), "{files:?}");
    }
    // The primary went: what is a copy of it would keep a network alive that is no more.
    let (with, _) = done(&listing(&[("10-pods.conflist", LIST)]), Mode::Owned);
    let mut gone = with.clone();
    gone.files.remove("10-pods.conflist");
    let plan = decide(&gone, Mode::Owned);
    assert_eq!(plan.steps, [Step::Remove { path: OWNED[0].into() }]);
    assert!(plan.unsettled, "perhaps it is only being replaced");
}

#[test]
fn where_podspan_could_fail_a_pod_it_is_not_chained() {
    let old = LIST.replace("1.0.0", "0.2.0");
    let new = LIST.replace("\"cniVersion\": \"1.0.0\"", "\"cniVersions\": [\"1.0.0\", \"9.0.0\"]");
    for (text, why) in [(&old, "0.2.0"), (&new, "9.0.0")] {
        // Also after it was chained while that was still possible.
        let with = with_entry(text, ENTRY).unwrap();
        for text in [text, &with] {
            let (after, standing) = done(&listing(&[("10-pods.conflist", text)]), Mode::Auto);
            let Standing::Refused(told) = standing else { panic!("{standing:?}") };
            assert!(told.contains(why) && told.contains("10-pods.conflist"), "{told}");
            assert!(!chain(&after).contains(&"podspan".to_owned()));
        }
    }
    let inlined = LIST.replace("\"name\"", "\"loadOnlyInlinedPlugins\": true, \"name\"");
    let (_, standing) = done(&listing(&[("10-pods.conflist", &inlined)]), Mode::DropIn);
    assert!(matches!(standing, Standing::Refused(why) if why.contains("loadOnlyInlinedPlugins")));
    let empty = r#"{"cniVersion": "1.1.0", "name": "pods"}"#;
    for (mode, chained) in
        [(Mode::Auto, true), (Mode::Append, false), (Mode::Owned, false), (Mode::DropIn, true)]
    {
        let (_, standing) = done(&listing(&[("10-pods.conflist", empty)]), mode);
        assert_eq!(matches!(standing, Standing::Chained(_)), chained, "{mode:?}: {standing:?}");
    }
}

#[test]
fn an_owned_copy_sorts_before_its_primary() {
    for (primary, own) in [
        ("10-calico.conflist", OWNED[0]),
        ("05-cilium.conflist", OWNED[0]),
        ("00-multus.conflist", OWNED[1]),
        ("--x.conflist", OWNED[2]),
    ] {
        let (after, _) = done(&listing(&[(primary, LIST)]), Mode::Owned);
        assert_eq!(after.files.keys().next().unwrap(), own);
    }
    let (_, standing) = done(&listing(&[("!!.conflist", LIST)]), Mode::Owned);
    assert!(matches!(standing, Standing::Refused(why) if why.contains("append")));
}

#[test]
fn a_broken_file_before_the_primary_is_waited_for() {
    let files = listing(&[("05-new.conflist", "{\"cniVer"), ("10-pods.conflist", LIST)]);
    assert!(decide(&files, Mode::Auto).unsettled);
    assert!(!decide(&listing(&[("10-pods.conflist", LIST)]), Mode::Auto).unsettled);
}

#[test]
fn a_link_is_not_turned_into_a_file() {
    let mut files = listing(&[("10-pods.conflist", LIST)]);
    files.files.get_mut("10-pods.conflist").unwrap().link = true;
    assert!(matches!(done(&files, Mode::Auto).1, Standing::Chained(Chained { way: Way::Owned, .. })));
    assert!(matches!(done(&files, Mode::Append).1, Standing::Refused(_)));
}

/// Any JSON value.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(Value::from("podspan")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(".{0,6}", inner, 0..4)
                .prop_map(|map| Value::from(map.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    })
}

/// Any list of plugins with whatever other keys, printed in any of three layouts.
fn any_list() -> impl Strategy<Value = (Value, String)> {
    let kind = prop_oneof![4 => "[a-z]{1,6}", 1 => Just("podspan".to_owned())];
    let plugin =
        (kind, prop::collection::hash_map("[a-zA-Z]{0,6}", any_json(), 0..4)).prop_map(|(kind, keys)| {
            let mut plugin: serde_json::Map<_, _> = keys.into_iter().collect();
            plugin.insert("type".into(), kind.into());
            Value::from(plugin)
        });
    let plugins = prop::collection::vec(plugin, 0..5);
    let extra = prop::collection::hash_map("[xyz\u{e4}\"{\\[,]{1,4}", any_json(), 0..4);
    (plugins, extra, 0..3_usize).prop_map(|(plugins, extra, layout)| {
        let mut list: serde_json::Map<_, _> = extra.into_iter().collect();
        list.insert("cniVersion".into(), "1.0.0".into());
        list.insert("name".into(), "net".into());
        list.insert("plugins".into(), plugins.into());
        let list = Value::from(list);
        let text = match layout {
            0 => serde_json::to_string(&list).unwrap(),
            1 => serde_json::to_string_pretty(&list).unwrap() + "\n",
            _ => format!(" \r\n\t{}\t ", serde_json::to_string_pretty(&list).unwrap().replace('\n', " \r\n")),
        };
        (list, text)
    })
}

fn types(value: &Value) -> Vec<&str> {
    value["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap()).collect()
}

proptest! {
    /// Everything but podspan's own entry is as it was; it is there once, behind the others; twice is once.
    #[test]
    fn an_entry_changes_nothing_else((list, text) in any_list()) {
        let others: Vec<&Value> =
            list["plugins"].as_array().unwrap().iter().filter(|p| p["type"] != "podspan").collect();
        match with_entry(&text, ENTRY) {
            Err(_) => prop_assert!(others.is_empty()),
            Ok(with) => {
                let value: Value = serde_json::from_str(&with).unwrap();
                let mut kept = value.clone();
                kept["plugins"].as_array_mut().unwrap().retain(|p| p["type"] != "podspan");
                // As it is read back: serde_json does not read every number as it was printed, which is why the
                // text is kept.
                let mut expected: Value = serde_json::from_str(&text).unwrap();
                expected["plugins"].as_array_mut().unwrap().retain(|p| p["type"] != "podspan");
                prop_assert_eq!(kept, expected);
                let own = types(&value);
                prop_assert_eq!(own.iter().filter(|kind| **kind == "podspan").count(), 1);
                prop_assert_ne!(own[0], "podspan");
                prop_assert_eq!(&with_entry(&with, ENTRY).unwrap(), &with);
            }
        }
    }

    /// What goes in comes out: byte for byte.
    #[test]
    fn uninstall_undoes_install((list, text) in any_list()) {
        if types(&list).contains(&"podspan") || types(&list).is_empty() {
            let bare = without_entries(&text).unwrap();
            prop_assert!(!conflist::read_list(&bare).unwrap().has_own());
        } else {
            prop_assert_eq!(&without_entries(&text).unwrap(), &text);
            let with = with_entry(&text, ENTRY).unwrap();
            prop_assert_eq!(&without_entries(&with).unwrap(), &text);
        }
    }

    /// Whatever lies in the directory, whatever mode is next: no panic, done is done, and off undoes all.
    #[test]
    fn any_directory_in_any_order_of_modes(
        lists in prop::collection::vec(("[0-9!-]{1,3}[a-z]{0,3}", any_list(), 0..6_usize), 0..4),
        modes in prop::collection::vec(0..5_usize, 1..4),
    ) {
        let mut files = Listing::default();
        for (name, (_, text), kind) in lists {
            let (name, text) = match kind {
                0 => (format!("{name}.conf"), SINGLE.to_owned()),
                1 => (format!("{name}.conflist"), text.chars().take(text.len() / 2).collect()),
                2 => (format!("{name}.json"), text),
                _ => (format!("{name}.conflist"), text),
            };
            // An entry that somebody put there by hand is taken out with the others.
            let bare = without_entries(&text).unwrap_or(text);
            files.files.insert(name, File { text: Ok(bare), link: false });
        }
        let mut now = files.clone();
        for mode in modes {
            now = done(&now, [Mode::Auto, Mode::Append, Mode::Owned, Mode::DropIn, Mode::Off][mode]).0;
        }
        let off = uninstall(&now);
        let after = off.steps.iter().fold(now, Listing::after);
        prop_assert_eq!(after, files);
    }
}

/// A node's directories, with a plugin that answers VERSION.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["conf", "bin", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let node = Self { dir };
        let answer = "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{\"supportedVersions\":[\"1.0.0\"]}'\n";
        fs::write(node.path("plugin"), answer).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.path("conf").join(name)
    }

    fn settings(&self, mode: Mode) -> CniSettings {
        let (bin_dir, conf_dir, plugin) = (self.path("bin"), self.path("conf"), self.path("plugin"));
        CniSettings { mode, bin_dir, conf_dir, plugin, results_dir: self.path("results") }
    }

    fn start(&self, mode: Mode) -> Running {
        let (orders, receiver) = watch::channel(Order::default());
        let socket = PathBuf::from(podspan_wire::DEFAULT_SOCKET);
        let (problem, task) = task::spawn(self.settings(mode), socket, self.path("state"), receiver);
        Running { orders, problem, task }
    }

    /// Every file below the directories, with its text and mode.
    fn all(&self) -> Vec<(PathBuf, String, u32)> {
        fn walk(directory: &Path, all: &mut Vec<(PathBuf, String, u32)>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let mode = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777;
                if path.is_dir() {
                    all.push((path.clone(), String::new(), mode));
                    walk(&path, all);
                } else {
                    all.push((path.clone(), fs::read_to_string(&path).unwrap(), mode));
                }
            }
        }
        let mut all = Vec::new();
        walk(self.dir.path(), &mut all);
        all.sort();
        all
    }
}

struct Running {
    orders: watch::Sender<Order>,
    problem: watch::Receiver<Option<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn told(&self) -> String {
        self.problem.borrow().clone().unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[track_caller]
fn wait(what: &str, mut until: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let what = what.to_owned();
    async move {
        let end = Instant::now() + Duration::from_secs(20);
        while !until() {
            assert!(Instant::now() < end, "not within 20 s: {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn has_entry(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.contains("\"podspan\""))
}

#[tokio::test]
async fn waits_for_the_primary_then_installs_and_leaves_no_trace() {
    let node = Node::new();
    let before_all = node.all();
    let running = node.start(Mode::Auto);
    wait("waiting is told", || running.told().contains("waiting")).await;
    assert_eq!(node.all(), before_all, "nothing is touched without a primary");

    let primary = node.conf("10-pods.conflist");
    fs::write(&primary, LIST).unwrap();
    fs::set_permissions(&primary, Permissions::from_mode(0o604)).unwrap();
    let before = node.all();
    wait("chained", || has_entry(&primary)).await;
    wait("nothing more to tell", || running.told().is_empty()).await;
    assert_eq!(fs::read_to_string(&primary).unwrap(), with_entry(LIST, ENTRY).unwrap());
    assert_eq!(fs::metadata(&primary).unwrap().permissions().mode() & 0o7777, 0o604);
    assert_eq!(fs::metadata(node.path("bin/podspan")).unwrap().permissions().mode() & 0o7777, 0o755);

    // The binary comes back, too.
    fs::remove_file(node.path("bin/podspan")).unwrap();
    wait("the binary is back", || node.path("bin/podspan").exists()).await;

    running.orders.send(Order { leave: true, ..Order::default() }).unwrap();
    wait("the entry is out", || !has_entry(&primary)).await;
    assert!(node.path("bin/podspan").exists(), "a runtime may still call it");
    wait("the binary goes last", || !node.path("bin/podspan").exists()).await;
    wait("as before", || node.all() == before).await;
}

#[tokio::test]
async fn a_primary_that_is_rewritten_keeps_podspan_and_no_loop_begins() {
    let node = Node::new();
    let primary = node.conf("10-pods.conflist");
    fs::write(&primary, LIST).unwrap();
    let running = node.start(Mode::Append);
    wait("chained", || has_entry(&primary)).await;
    // A primary that starts anew writes its file, slowly and not in one rename.
    fs::write(&primary, &LIST[..40]).unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(fs::read_to_string(&primary).unwrap(), LIST[..40], "half a file is left alone");
    fs::write(&primary, LIST).unwrap();
    wait("chained again", || has_entry(&primary)).await;
    // And again: the second loss within the hour is answered later, and told.
    fs::write(&primary, LIST).unwrap();
    wait("it is told", || running.told().contains("took podspan out of 10-pods.conflist 2 times")).await;
    assert!(!has_entry(&primary));
    sleep(Duration::from_millis(500)).await;
    assert!(!has_entry(&primary), "no loop");
}

#[tokio::test]
async fn auto_turns_to_an_owned_copy_where_appending_does_not_last() {
    let node = Node::new();
    let (primary, own) = (node.conf("10-pods.conflist"), node.conf(OWNED[0]));
    fs::write(&primary, LIST).unwrap();
    let running = node.start(Mode::Auto);
    for _ in 0..2 {
        wait("chained", || has_entry(&primary)).await;
        // Until it has been seen.
        wait("seen", || running.told().is_empty()).await;
        sleep(Duration::from_millis(500)).await;
        fs::write(&primary, LIST).unwrap();
        sleep(Duration::from_millis(500)).await;
    }
    // The third time comes after the wait of ten seconds.
    wait("chained after the wait", || has_entry(&primary)).await;
    sleep(Duration::from_millis(500)).await;
    fs::write(&primary, LIST).unwrap();
    wait("an owned copy", || has_entry(&own)).await;
    assert_eq!(fs::read_to_string(&primary).unwrap(), LIST);

    // The copy follows its primary.
    fs::write(&primary, LIST.replace("isGateway\": true", "isGateway\": false")).unwrap();
    wait("the copy follows", || fs::read_to_string(&own).is_ok_and(|text| text.contains("false"))).await;
    fs::remove_file(&primary).unwrap();
    wait("and goes with it", || !own.exists()).await;
    assert!(node.path("bin/podspan").exists());
}

#[tokio::test]
async fn a_plugin_that_does_not_run_is_never_chained() {
    let node = Node::new();
    let primary = node.conf("10-pods.conflist");
    fs::write(&primary, LIST).unwrap();
    fs::write(node.path("plugin"), "#!/nowhere/interpreter\n").unwrap();
    let running = node.start(Mode::Auto);
    wait("it is told", || running.told().contains("does not run at")).await;
    assert_eq!(fs::read_to_string(&primary).unwrap(), LIST);
    drop(running);
    fs::remove_file(node.path("plugin")).unwrap();
    let running = node.start(Mode::Auto);
    wait("it is told", || running.told().contains("cannot be read from")).await;
    assert_eq!(fs::read_to_string(&primary).unwrap(), LIST);
}

#[tokio::test]
async fn what_was_put_there_by_hand_stays_unless_the_installer_was_at_work() {
    let node = Node::new();
    let primary = node.conf("10-pods.conflist");
    let by_hand = with_entry(LIST, ENTRY).unwrap();
    fs::write(&primary, &by_hand).unwrap();
    fs::write(node.path("bin/podspan"), "mine").unwrap();
    let before = node.all();
    assert!(
        task::uninstall(&node.settings(Mode::Auto), &node.path("state"), false).await.unwrap().is_empty()
    );
    let running = node.start(Mode::Off);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(node.all(), before);
    drop(running);
}

#[tokio::test]
async fn the_drop_in_directory_goes_if_nobody_else_uses_it() {
    let node = Node::new();
    fs::write(node.conf("10-pods.conflist"), LIST).unwrap();
    let before = node.all();
    let drop_in = node.conf("pods").join(DROP_IN);
    let running = node.start(Mode::DropIn);
    wait("chained", || has_entry(&drop_in)).await;
    drop(running);
    let settings = node.settings(Mode::DropIn);
    let removed = task::uninstall(&settings, &node.path("state"), false).await.unwrap();
    assert!(removed[0].ends_with(DROP_IN) && removed[1].ends_with("bin/podspan"), "{removed:?}");
    assert_eq!(node.all(), before);

    let running = node.start(Mode::DropIn);
    wait("chained", || has_entry(&drop_in)).await;
    drop(running);
    fs::write(node.conf("pods/20-other.conf"), "{}").unwrap();
    let removed = task::uninstall(&settings, &node.path("state"), true).await.unwrap();
    assert_eq!(removed.len(), 1, "the plugin stays when it is told to: {removed:?}");
    assert!(node.conf("pods/20-other.conf").exists() && node.path("bin/podspan").exists());
}

#[test]
fn what_cannot_be_read_is_named_not_followed() {
    let node = Node::new();
    symlink("/nowhere", node.conf("05-link.conflist")).unwrap();
    fs::create_dir(node.conf("06-dir.conflist")).unwrap();
    nix::unistd::mkfifo(&node.conf("07-pipe.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(node.conf("08-binary.conf"), b"\xff\xfe").unwrap();
    fs::write(node.conf("09-huge.conf"), vec![b' '; 2 * 1024 * 1024]).unwrap();
    fs::write(node.conf("10-pods.conflist"), LIST).unwrap();
    fs::write(node.conf("note.txt"), "podspan").unwrap();
    let listing = super::directory::list(&node.path("conf")).unwrap();
    let names: Vec<_> = listing.files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["05-link.conflist", "07-pipe.conf", "08-binary.conf", "09-huge.conf", "10-pods.conflist"]
    );
    assert!(listing.files.values().take(4).all(|file| file.text.is_err()));
    let plan = decide(&listing, Mode::Auto);
    assert!(plan.unsettled && matches!(plan.standing, Standing::Chained(_)));
}

/// Somebody writes between the look and the change: what was written is not lost.
#[test]
fn what_was_written_meanwhile_is_not_lost() {
    let node = Node::new();
    let primary = node.conf("10-pods.conflist");
    fs::write(&primary, LIST).unwrap();
    let listing = super::directory::list(&node.path("conf")).unwrap();
    let steps = decide(&listing, Mode::Append).steps;
    let newer = LIST.replace("bridge", "ptp");
    fs::write(&primary, &newer).unwrap();
    let made = super::directory::make(&node.path("conf"), &steps[0]).unwrap();
    assert_eq!(made, super::directory::Made::Changed);
    assert_eq!(fs::read_to_string(&primary).unwrap(), newer);
    assert_eq!(fs::read_dir(node.path("conf")).unwrap().count(), 1, "no temporary file is left");
}
