//! Crates depend only on crates of floors below, and modules only on modules of layers below.
//!
//! [`HOUSE`] is the map of the code as well as the rule: a crate or module that is not in it fails the test. Of modules below the top, `circles` says which
//! use each other.

#[path = "layers/circles.rs"]
mod circles;
#[path = "layers/sources.rs"]
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::TokenStream;

use sources::{Sources, Use, reexports, test_modules, used_paths};

struct Crate {
    name: &'static str,
    /// A crate may use crates of lower floors only.
    floor: u32,
    /// Top-level modules, the lowest layer first. A module may use those of its own layer and of the layers before it. The
    /// crate's root and all tests stand above them.
    layers: &'static [&'static [&'static str]],
}

const HOUSE: &[Crate] = &[
    Crate {
        name: "spec",
        floor: 0,
        layers: &[
            &[
                "byte_size",
                "cpu_level",
                "disk_format",
                "engine",
                "failure_domain",
                "forward",
                "ft_mode",
                "mac",
                "maintenance",
                "memory_backing",
                "priority",
                "protection",
                "processor",
                "replica_id",
                "vm_id",
            ],
            &["name", "network"],
            &["admission", "vm"],
        ],
    },
    Crate {
        name: "memory",
        floor: 1,
        layers: &[
            &["layout"],
            &["mapping"],
            &["frozen", "frozen_all"],
            &["tracker"],
            &["harvest"],
            &["ram"],
            &["encoding", "vector"],
        ],
    },
    Crate {
        name: "cpu",
        floor: 2,
        layers: &[
            &["bus", "context", "digest", "msr", "state", "stop", "tlb", "width"],
            &["cpuid"],
            &["apic", "unit"],
            &["core"],
            &["op"],
            &["mem", "mmu"],
            &["int", "sse", "sys", "x87"],
            &["decode", "signature"],
            // Blocks keep their translations, and translated code asks for the block to go on with.
            &["block", "translate"],
            &["run"],
        ],
    },
    Crate {
        name: "protocol",
        floor: 1,
        // `replica` is one of the two roles, and each of them makes it the other or ends it.
        layers: &[
            &["callers", "numbers", "suspicion", "time"],
            &["guest_clock", "input", "output"],
            &[
                "disk_copy",
                "disk_failure",
                "disk_watch",
                "early_copy",
                "epochs",
                "farewell",
                "heartbeats",
                "patience",
                "segments",
                "silence",
                "slow_link",
                "standstill",
                "uplink",
            ],
            &["ack", "claim", "first_copy"],
            &["admission", "arbiter"],
            &["command", "event"],
            &["readiness", "status"],
            &["question"],
            &["primary", "replica", "secondary"],
        ],
    },
    Crate { name: "storage", floor: 2, layers: &[&["durable", "file_lock", "plain_file"], &["disk", "image"]] },
    Crate {
        name: "network",
        floor: 2,
        layers: &[
            &["offload", "seqpacket"],
            &["backend", "checksum", "packet"],
            &["coalesce", "retained", "segment", "wire"],
            &["link", "pair", "queue"],
            &["uplink"],
            &["end"],
        ],
    },
    Crate {
        name: "machine",
        floor: 3,
        layers: &[
            &["bus", "clock", "digest", "events", "input", "irq", "snapshot", "triple_fault"],
            &["map"],
            &["boot", "devices"],
            &["acpi", "generation"],
            &["control"],
            &["platform"],
            &["device_meter"],
            &["engine"],
            &["vm"],
            &["probe"],
        ],
    },
    Crate { name: "replication", floor: 4, layers: &[&["channel", "disk", "gate"], &["lockstep"], &["driver"]] },
    Crate { name: "cluster", floor: 5, layers: &[&["store"], &["records"], &["arbiter", "planner"], &["controller"]] },
    Crate {
        name: "backup",
        floor: 5,
        layers: &[
            &["chunk", "error", "key", "pack", "point", "seal"],
            &["retention"],
            // The repository is one; these are what is done with it.
            &["backup", "index", "prune", "repository", "restore", "verify"],
            &["stream"],
        ],
    },
    Crate {
        name: "api",
        floor: 5,
        layers: &[
            &[
                "admission",
                "backups",
                "datastores",
                "events",
                "joining",
                "leaving",
                "maintenance",
                "problem",
                "suspicion",
                "time",
                "unreadable",
            ],
            &["figures"],
            &["status"],
            &["messages"],
            &["client"],
        ],
    },
    Crate {
        name: "sim",
        floor: 6,
        layers: &[
            &["agenda", "coverage", "mutation", "random", "time", "violation"],
            &["copying", "daemon", "disks", "ends", "faults", "history", "network", "process", "store"],
            // The world is one; these are its parts.
            &["controller", "daemons", "identity", "operator", "others", "power", "replica", "strangers", "world"],
            &["restarts", "schedule"],
            &["soak"],
        ],
    },
    Crate {
        name: "terminal",
        floor: 5,
        layers: &[&["choices", "error_text", "interrupt", "output"], &["image_progress"]],
    },
    Crate {
        name: "host",
        floor: 6,
        layers: &[
            &["log_file", "next_store", "passing", "paths", "run_lease", "sandbox"],
            &["foreground"],
            &["replica"],
            &["error", "folder", "hardware", "owner"],
            &["vm_users"],
            &["config", "network_ends"],
            &["token"],
            &["etcd_access", "etcd_setup"],
            &[
                "bases",
                "bundle",
                "datastores",
                "disk_jobs",
                "events",
                "operator",
                "process",
                "repositories",
                "vm_files",
            ],
            &["join", "registry", "vm_folder"],
            &["init"],
            &["store_move"],
            // The daemon is one thing; these are its parts.
            &[
                "admission",
                "backups",
                "daemon",
                "joining",
                "launch",
                "maintenance",
                "metrics",
                "migration",
                "names",
                "operations",
                "power",
                "protection",
                "replicas",
                "rest",
                "restart",
                "runtime",
                "secondary",
                "settings",
                "snapshots",
                "unfinished",
                "views",
            ],
        ],
    },
    Crate {
        name: "bench",
        floor: 7,
        layers: &[
            &["cpu_time", "image", "load"],
            &["demo", "work"],
            &["stopwatch"],
            &["qemu", "report", "soft"],
            &["cpu", "ft", "ha", "kvm", "machines", "scale"],
        ],
    },
    Crate { name: "twinvm", floor: 8, layers: &[&["cli"]] },
];

#[test]
fn crates_depend_only_downwards() {
    let floors: BTreeMap<&str, u32> = HOUSE.iter().map(|krate| (krate.name, krate.floor)).collect();
    let mut wrong = Vec::new();
    for name in crates_found() {
        let Some(&floor) = floors.get(name.as_str()) else {
            wrong.push(format!("crate {name} has no place in HOUSE"));
            continue;
        };
        for needed in dependencies(&name) {
            if let Some(&below) = floors.get(needed.as_str())
                && below >= floor
            {
                wrong.push(format!("{name} (floor {floor}) depends on {needed} (floor {below})"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn modules_depend_only_downwards() {
    let mut wrong = Vec::new();
    for krate in HOUSE {
        let layers: BTreeMap<&str, usize> = krate
            .layers
            .iter()
            .enumerate()
            .flat_map(|(layer, modules)| modules.iter().map(move |&module| (module, layer)))
            .collect();
        let sources = Sources::of(krate.name);
        for module in sources.modules() {
            if !layers.contains_key(module) {
                wrong.push(format!("{}: module {module} has no place in HOUSE", krate.name));
            }
        }
        for module in layers.keys().filter(|module| !sources.modules().any(|found| found == **module)) {
            wrong.push(format!("{}: HOUSE names a module {module} that is not there", krate.name));
        }
        for Use { file, line, user, used } in sources.uses() {
            let (Some(user_layer), Some(used_layer)) = (layers.get(user.as_str()), layers.get(used.as_str())) else {
                continue;
            };
            if used_layer > user_layer {
                wrong.push(format!("{}:{line}: {user} uses {used}, which is above it", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Who plans, keeps records or uses the API has nothing to do with how a VM is run: tools compile none of that, and no decision of a cluster
/// hangs on it.
#[test]
fn neither_the_cluster_nor_the_api_compiles_what_runs_a_vm() {
    let crates = crates_found();
    for (name, forbidden) in [
        ("cluster", ["cpu", "machine", "memory", "network", "replication", "storage"].as_slice()),
        ("api", &["cpu", "machine", "memory", "network", "storage"]),
    ] {
        let mut needed = BTreeSet::new();
        let mut left = vec![name.to_owned()];
        while let Some(krate) = left.pop() {
            let ours = dependencies(&krate).into_iter().filter(|needed| crates.contains(needed));
            left.extend(ours.filter(|krate| needed.insert(krate.clone())));
        }
        assert!(needed.contains("spec"), "{name}: {needed:?}");
        let wrong: Vec<_> = forbidden.iter().filter(|krate| needed.contains(**krate)).collect();
        assert!(wrong.is_empty(), "{name} compiles {wrong:?}");
    }
}

/// The folder that holds all crates.
fn crates_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a folder")
}

fn crates_found() -> BTreeSet<String> {
    fs::read_dir(crates_dir())
        .expect("the folder of crates can be read")
        .map(|entry| entry.expect("its entries can be read"))
        .filter(|entry| entry.path().join("Cargo.toml").exists())
        .map(|entry| entry.file_name().into_string().expect("crates have plain names"))
        .collect()
}

/// Names of all that a crate depends on, its tests and build script included.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(crates_dir().join(name).join("Cargo.toml")).expect("a manifest can be read");
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|kind| manifest.get(*kind)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

#[test]
fn every_way_to_name_a_module_is_seen() {
    let source = "
        use crate::one::Thing;
        use crate::{two::{self, A}, three};
        use super::super::four::B;
        use super::{sibling::C, super::five::D};
        pub(crate) fn f(_: crate::six::E) -> bool { assert!(matches!(1, crate::seven::F)); super::inside() }
        mod inner {
            use super::super::still_inside;
            use super::super::super::eight::G;
        }
        #[cfg(test)]
        mod tests {
            use crate::top::H;
        }
        // crate::comment
        const TEXT: &str = \"crate::text\";
    ";
    let mut names: Vec<String> =
        used_paths(TokenStream::from_str(source).unwrap(), &["top", "below"].map(str::to_owned))
            .into_iter()
            .map(|(path, _)| path.join("::"))
            .collect();
    names.sort();
    let expected = [
        "eight::G",
        "five::D",
        "four::B",
        "one::Thing",
        "seven::F",
        "six::E",
        "three",
        "top::inside",
        "top::sibling::C",
        "top::still_inside",
        "two",
        "two::A",
    ];
    assert_eq!(names, expected);
}

#[test]
fn modules_of_tests_are_told_apart() {
    let source = "#[cfg(test)] mod a; #[cfg(test)] pub(crate) mod b; #[cfg(unix)] mod c; #[cfg(test)] fn f() {} mod d;";
    assert_eq!(test_modules(TokenStream::from_str(source).unwrap()), ["a", "b"]);
}

#[test]
fn reexports_are_traced_to_their_modules() {
    let root = "mod a; pub mod b; use a::Hidden; pub use a::{X, Y as Z}; pub use crate::b::deep::W; pub use other::V;";
    let found = reexports(TokenStream::from_str(root).unwrap(), &BTreeSet::from(["a", "b"]));
    let found: Vec<(&str, &str)> = found.iter().map(|(name, module)| (name.as_str(), module.as_str())).collect();
    assert_eq!(found, [("W", "b"), ("X", "a"), ("Z", "a")]);
}
