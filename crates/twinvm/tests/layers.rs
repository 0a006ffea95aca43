//! Crates depend only on crates of floors below, and modules only on modules of layers below.
//!
//! [`HOUSE`] is the map of the code as well as the rule: a crate or module that is not in it fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

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
                "disk_watch",
                "epochs",
                "farewell",
                "heartbeats",
                "patience",
                "segments",
                "silence",
                "slow_link",
                "uplink",
            ],
            &["claim", "first_copy"],
            &["admission", "arbiter"],
            &["command", "event"],
            &["status"],
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
            &[
                "controller",
                "daemons",
                "first_copy",
                "guest",
                "identity",
                "input",
                "lockstep",
                "operator",
                "others",
                "output",
                "power",
                "primary",
                "secondary",
                "strangers",
                "world",
            ],
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

/// A path in the source that leads from one top-level module into another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    file: PathBuf,
    line: usize,
    user: String,
    used: String,
}

/// The source files of one crate, without its tests.
struct Sources {
    /// File, the path of its module within the crate, tokens.
    files: Vec<(PathBuf, Vec<String>, TokenStream)>,
    /// What the crate's root re-exports, and from which module.
    reexports: BTreeMap<String, String>,
}

impl Sources {
    fn of(name: &str) -> Self {
        let mut sources = Self { files: Vec::new(), reexports: BTreeMap::new() };
        sources.add_folder(&crates_dir().join(name).join("src"), &[]);
        let tests: BTreeSet<Vec<String>> = sources
            .files
            .iter()
            .flat_map(|(_, module, tokens)| {
                test_modules(tokens.clone()).into_iter().map(|name| [module.as_slice(), &[name]].concat())
            })
            .collect();
        sources.files.retain(|(_, module, _)| (1..=module.len()).all(|depth| !tests.contains(&module[..depth])));
        let root = sources.files.iter().find(|(_, module, _)| module.is_empty()).expect("a crate has a root");
        let modules: BTreeSet<&str> = sources.modules().collect();
        sources.reexports = reexports(root.2.clone(), &modules);
        sources
    }

    fn add_folder(&mut self, folder: &Path, module: &[String]) {
        for entry in fs::read_dir(folder).expect("a source folder can be read") {
            let path = entry.expect("its entries can be read").path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("sources have plain names").to_owned();
            let mut inner = module.to_vec();
            if path.is_dir() {
                inner.push(stem);
                self.add_folder(&path, &inner);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                if !["lib", "main", "mod"].contains(&stem.as_str()) {
                    inner.push(stem);
                }
                let text = fs::read_to_string(&path).expect("a source file can be read");
                let tokens = TokenStream::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                self.files.push((path, inner, tokens));
            }
        }
    }

    fn modules(&self) -> impl Iterator<Item = &str> {
        self.files
            .iter()
            .filter_map(|(_, module, _)| module.first())
            .map(String::as_str)
            .collect::<BTreeSet<_>>()
            .into_iter()
    }

    fn uses(&self) -> BTreeSet<Use> {
        let modules: BTreeSet<&str> = self.modules().collect();
        let mut found = BTreeSet::new();
        for (file, module, tokens) in &self.files {
            let Some(user) = module.first() else { continue };
            for (name, line) in root_names(tokens.clone(), module.len()) {
                let used = self.reexports.get(&name).map_or(name.as_str(), String::as_str);
                assert!(modules.contains(used), "{}:{line}: cannot tell which module {name} is from", file.display());
                if used != user {
                    found.insert(Use { file: file.clone(), line, user: user.clone(), used: used.to_owned() });
                }
            }
        }
        found
    }
}

/// What paths from `crate::`, or from enough `super::`, name first, with the line. `depth` is that of the module whose tokens
/// these are: 1 for a top-level module.
fn root_names(tokens: TokenStream, depth: usize) -> Vec<(String, usize)> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(ident) if ident == "crate" && is_path_separator(&tokens, at + 1) => {
                names_at(&tokens[at + 3..], 0, &mut found);
            }
            // The second and later ones of a row belong to the first.
            TokenTree::Ident(ident)
                if ident == "super"
                    && is_path_separator(&tokens, at + 1)
                    && (at < 3 || !is_path_separator(&tokens, at - 2)) =>
            {
                names_at(&tokens[at..], depth, &mut found);
            }
            TokenTree::Group(group) => {
                let is_module = group.delimiter() == Delimiter::Brace && at >= 2 && is_ident(&tokens[at - 2], "mod");
                if !(is_module && is_test_only(&tokens[..at - 2])) {
                    found.extend(root_names(group.stream(), depth + usize::from(is_module)));
                }
            }
            _ => {}
        }
    }
    found
}

/// Continues a path that stands `depth` modules below the crate's root.
fn names_at(tokens: &[TokenTree], depth: usize, found: &mut Vec<(String, usize)>) {
    match tokens.first() {
        Some(TokenTree::Group(group)) => {
            let elements: Vec<TokenTree> = group.stream().into_iter().collect();
            for element in elements.split(|token| is_punct(token, ',')) {
                names_at(element, depth, found);
            }
        }
        Some(token) if depth == 0 => found.push((token.to_string(), token.span().start().line)),
        Some(token) if is_ident(token, "super") && is_path_separator(tokens, 1) => {
            names_at(&tokens[3..], depth - 1, found);
        }
        _ => {}
    }
}

/// Modules in files of their own that only tests have.
fn test_modules(tokens: TokenStream) -> Vec<String> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    (2..tokens.len())
        .filter(|&at| is_punct(&tokens[at], ';') && is_ident(&tokens[at - 2], "mod") && is_test_only(&tokens[..at - 2]))
        .map(|at| tokens[at - 1].to_string())
        .collect()
}

/// Whether the tokens before a `mod` end in `#[cfg(test)]`, with or without a visibility after it.
fn is_test_only(before: &[TokenTree]) -> bool {
    let at = before.iter().rposition(|token| is_punct(token, '#')).unwrap_or(before.len());
    match before.get(at + 1..) {
        Some([TokenTree::Group(attribute), visibility @ ..]) => {
            attribute.stream().to_string().replace(' ', "") == "cfg(test)"
                && visibility.iter().all(|token| is_ident(token, "pub") || matches!(token, TokenTree::Group(_)))
        }
        _ => false,
    }
}

/// The names that a root re-exports by `pub use`, each with the top-level module it comes from.
fn reexports(root: TokenStream, modules: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let tokens: Vec<TokenTree> = root.into_iter().collect();
    let mut found = BTreeMap::new();
    for statement in tokens.split(|token| is_punct(token, ';')) {
        let Some(at) = statement.windows(2).position(|pair| is_ident(&pair[0], "pub") && is_ident(&pair[1], "use"))
        else {
            continue;
        };
        for path in paths(&statement[at + 2..]) {
            let names = path.iter().filter(|name| *name != "crate" && *name != "self").collect::<Vec<_>>();
            if let [first, .., last] = names.as_slice()
                && modules.contains(first.as_str())
            {
                found.insert((*last).clone(), (*first).clone());
            }
        }
    }
    found
}

/// The paths of a use tree; a renamed one ends in its new name.
fn paths(tree: &[TokenTree]) -> Vec<Vec<String>> {
    match tree {
        [] => Vec::new(),
        [TokenTree::Group(group)] => {
            let elements: Vec<TokenTree> = group.stream().into_iter().collect();
            elements.split(|token| is_punct(token, ',')).flat_map(paths).collect()
        }
        [first, ..] if is_path_separator(tree, 1) => {
            let first = first.to_string();
            paths(&tree[3..]).into_iter().map(|rest| [vec![first.clone()], rest].concat()).collect()
        }
        [.., last] => vec![vec![last.to_string()]],
    }
}

fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    tokens.get(at).is_some_and(|token| is_punct(token, ':'))
        && tokens.get(at + 1).is_some_and(|token| is_punct(token, ':'))
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn is_ident(token: &TokenTree, wanted: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == wanted)
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
        root_names(TokenStream::from_str(source).unwrap(), 2).into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["eight", "five", "four", "one", "seven", "six", "three", "two"]);
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
