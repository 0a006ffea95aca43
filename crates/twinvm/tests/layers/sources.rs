//! The source files of a crate, and which module names which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::crates_dir;

/// A path in the source that leads from one top-level module into another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub file: PathBuf,
    pub line: usize,
    pub user: String,
    pub used: String,
}

/// The source files of one crate, without its tests.
pub struct Sources {
    /// File, the path of its module within the crate, tokens.
    pub files: Vec<(PathBuf, Vec<String>, TokenStream)>,
    /// What the crate's root re-exports, and from which module.
    reexports: BTreeMap<String, String>,
}

impl Sources {
    pub fn of(name: &str) -> Self {
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

    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.files
            .iter()
            .filter_map(|(_, module, _)| module.first())
            .map(String::as_str)
            .collect::<BTreeSet<_>>()
            .into_iter()
    }

    pub fn uses(&self) -> BTreeSet<Use> {
        let modules: BTreeSet<&str> = self.modules().collect();
        let mut found = BTreeSet::new();
        for (file, module, tokens) in &self.files {
            let Some(user) = module.first() else { continue };
            for (path, line) in used_paths(tokens.clone(), module) {
                let Some(name) = path.into_iter().next() else { continue };
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

/// The paths from `crate::` or `super::` in the tokens of a module, from the crate's root on, with the line.
pub fn used_paths(tokens: TokenStream, module: &[String]) -> Vec<(Vec<String>, usize)> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(ident) if ident == "crate" && is_path_separator(&tokens, at + 1) => {
                follow(&tokens[at + 3..], Vec::new(), &mut found);
            }
            // The second and later ones of a row belong to the first.
            TokenTree::Ident(ident)
                if ident == "super"
                    && is_path_separator(&tokens, at + 1)
                    && (at < 3 || !is_path_separator(&tokens, at - 2)) =>
            {
                follow(&tokens[at..], module.to_vec(), &mut found);
            }
            // The rest of a path, which has been followed.
            TokenTree::Group(_) if at >= 2 && is_path_separator(&tokens, at - 2) => {}
            TokenTree::Group(group) => {
                let is_module = group.delimiter() == Delimiter::Brace && at >= 2 && is_ident(&tokens[at - 2], "mod");
                if !is_module {
                    found.extend(used_paths(group.stream(), module));
                } else if !is_test_only(&tokens[..at - 2]) {
                    found.extend(used_paths(group.stream(), &[module, &[tokens[at - 1].to_string()]].concat()));
                }
            }
            _ => {}
        }
    }
    found
}

/// Goes on with a path that has led to a module so far.
fn follow(tokens: &[TokenTree], mut so_far: Vec<String>, found: &mut Vec<(Vec<String>, usize)>) {
    match tokens.first() {
        Some(TokenTree::Group(group)) => {
            let elements: Vec<TokenTree> = group.stream().into_iter().collect();
            for element in elements.split(|token| is_punct(token, ',')).filter(|element| !element.is_empty()) {
                follow(element, so_far.clone(), found);
            }
        }
        Some(token) if is_ident(token, "super") && is_path_separator(tokens, 1) => {
            so_far.pop();
            follow(&tokens[3..], so_far, found);
        }
        Some(TokenTree::Ident(name)) => {
            if name != "self" {
                so_far.push(name.to_string());
            }
            let goes_on = matches!(tokens.get(3), Some(TokenTree::Ident(_) | TokenTree::Group(_)));
            match goes_on && is_path_separator(tokens, 1) {
                true => follow(&tokens[3..], so_far, found),
                false => found.push((so_far, name.span().start().line)),
            }
        }
        // All that is there, or types that are given to what the path has led to.
        Some(token) => found.push((so_far, token.span().start().line)),
        None => {}
    }
}

/// Modules in files of their own that only tests have.
pub fn test_modules(tokens: TokenStream) -> Vec<String> {
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
pub fn reexports(root: TokenStream, modules: &BTreeSet<&str>) -> BTreeMap<String, String> {
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

/// The names that a module takes from its children by `use`, for itself or for others, each with the child.
pub fn imports(module: TokenStream, children: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let tokens: Vec<TokenTree> = module.into_iter().collect();
    let mut found = BTreeMap::new();
    for statement in tokens.split(|token| is_punct(token, ';')) {
        let Some(at) = statement.iter().rposition(|token| is_ident(token, "use")) else { continue };
        for path in paths(&statement[at + 1..]) {
            let names: Vec<&String> = path.iter().filter(|name| *name != "self").collect();
            if let [first, .., last] = names.as_slice()
                && children.contains(first.as_str())
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
