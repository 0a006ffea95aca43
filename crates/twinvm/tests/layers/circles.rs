//! Below the top of a crate, modules of one parent use each other without circles.

use std::collections::{BTreeMap, BTreeSet};

use super::HOUSE;
use super::sources::{Sources, imports, used_paths};

/// Circles that there are: the parent, from the crate on, and its children that use each other. Each is one thing in several files, or stays until somebody opens it;
/// none is added without a look.
const CIRCLES: &[(&str, &[&str])] = &[
    ("bench::ft", &["checkpoints", "execution", "measure", "report"]),
    ("cluster::controller", &["action", "autostart", "idle", "look", "operation", "restart"]),
    ("cluster::records", &["admission", "cluster", "datastore", "host", "run_lease", "seen", "state", "tokens"]),
    ("cluster::store::folder", &["files", "state"]),
    ("cpu::sse", &["element", "exception", "native"]),
    ("cpu::sys", &["event", "task"]),
    ("machine::boot", &["early_tables", "state"]),
    ("machine::devices::virtio", &["chain", "device", "queue"]),
    (
        "machine::devices::virtio::block",
        &["checked", "device", "operation", "queued", "state", "synchronous", "workers"],
    ),
    ("machine::devices::virtio::net", &["device", "receive", "transmit"]),
    ("machine::engine::kvm", &["profile", "state", "support", "trial", "tsc", "vcpu"]),
    ("replication::channel", &["connection", "receiver", "sender"]),
    ("replication::channel", &["error", "frame"]),
    ("replication::disk", &["backend", "blocks", "codec", "deferred", "digests", "set"]),
    ("replication::driver", &["first_copy", "primary"]),
    ("replication::driver", &["follower", "secondary"]),
    ("replication::lockstep::log", &["bytes", "entry", "history", "segment"]),
    ("storage::disk", &["create", "frozen", "image", "open"]),
    ("storage::disk", &["freezer", "kept"]),
    (
        "storage::image",
        &["apt", "boot_files", "build", "guest", "install", "manifest", "pull", "store", "users", "versions"],
    ),
    ("twinvm::cli", &["ft", "vm"]),
];

/// Which children of a module use which others of them.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The modules of a crate below its top, by their parent.
fn uses_below_the_top(sources: &Sources) -> BTreeMap<Vec<String>, Uses> {
    let modules: BTreeSet<&[String]> =
        sources.files.iter().flat_map(|(_, module, _)| (0..=module.len()).map(move |depth| &module[..depth])).collect();
    let imported: BTreeMap<&[String], BTreeMap<String, String>> = sources
        .files
        .iter()
        .map(|(_, module, tokens)| {
            let is_child = |found: &&&[String]| found.len() == module.len() + 1 && found.starts_with(module);
            let children =
                modules.iter().filter(is_child).filter_map(|child| child.last()).map(String::as_str).collect();
            (module.as_slice(), imports(tokens.clone(), &children))
        })
        .collect();
    let mut found: BTreeMap<Vec<String>, Uses> = BTreeMap::new();
    for (_, module, tokens) in &sources.files {
        for (path, _) in used_paths(tokens.clone(), module) {
            let used = module_of(&path, &modules, &imported);
            let shared = module.iter().zip(&used).take_while(|(own, used)| own == used).count();
            if shared > 0
                && let (Some(user), Some(used)) = (module.get(shared), used.get(shared))
            {
                let uses = found.entry(module[..shared].to_vec()).or_default();
                uses.entry(user.clone()).or_default().insert(used.clone());
            }
        }
    }
    found
}

/// The module that a path leads into, also where a module on the way only passes a name on.
fn module_of(
    path: &[String],
    modules: &BTreeSet<&[String]>,
    imported: &BTreeMap<&[String], BTreeMap<String, String>>,
) -> Vec<String> {
    let mut module: Vec<String> = Vec::new();
    for name in path {
        let inner = [module.as_slice(), std::slice::from_ref(name)].concat();
        if modules.contains(inner.as_slice()) {
            module = inner;
            continue;
        }
        let passed_on = imported.get(module.as_slice()).and_then(|imported| imported.get(name));
        module.extend(passed_on.cloned());
        break;
    }
    module
}

/// The children that use each other in a circle, each circle once.
fn circles(uses: &Uses) -> BTreeSet<Vec<String>> {
    let reached = |from: &String| {
        let (mut found, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(module) = left.pop() {
            left.extend(uses.get(module).into_iter().flatten().filter(|used| found.insert((*used).clone())));
        }
        found
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = uses.keys().map(|module| (module, reached(module))).collect();
    let circle = |module: &String| -> Vec<String> {
        let back = |other: &&String| reached.get(*other).is_some_and(|reached| reached.contains(module));
        reached[module].iter().filter(back).cloned().collect()
    };
    uses.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

#[test]
fn modules_below_the_top_use_each_other_in_the_circles_that_are_known() {
    let expected: BTreeSet<String> =
        CIRCLES.iter().map(|(parent, modules)| format!("{parent}: {}", modules.join(", "))).collect();
    let mut found = BTreeSet::new();
    for krate in HOUSE {
        for (parent, uses) in uses_below_the_top(&Sources::of(krate.name)) {
            let parent = format!("{}::{}", krate.name, parent.join("::"));
            found.extend(circles(&uses).into_iter().map(|circle| format!("{parent}: {}", circle.join(", "))));
        }
    }
    let new: Vec<_> = found.difference(&expected).collect();
    let gone: Vec<_> = expected.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "circles that are in no list: {new:#?}\nin the list, and gone: {gone:#?}"
    );
}

#[test]
fn circles_are_found_through_others_and_once() {
    let uses = |pairs: &[(&str, &[&str])]| -> Uses {
        pairs
            .iter()
            .map(|(user, used)| ((*user).to_owned(), used.iter().map(|&used| used.to_owned()).collect()))
            .collect()
    };
    assert!(circles(&uses(&[("a", &["b", "c"]), ("b", &["c"])])).is_empty());
    let found = circles(&uses(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &["a"])]));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [["a", "b", "c"]]);
}
