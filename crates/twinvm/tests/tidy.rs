//! Files and functions stay short enough to be read in one go, no work is left for later, and no code is in documentation, where no test compiles it
//! (`doctest = false` in each crate).
//!
//! A *table* may be as long as what it lists: a `match` with short arms, a list, or a literal of a structure.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Faults that `ARCHITECTURE.md` says to stay mended.
const MENDED: usize = 19;
/// Cases that `docs/cases.md` says to be tested, with others of their kinds.
const CASES: usize = 32;
/// Most lines of a file.
const FILE_LINES_MAX: usize = 600;
/// Most lines of a function, from its signature to its closing brace, the lines of tables left out.
const FUNCTION_LINES_MAX: usize = 70;
/// Most lines of an arm of a `match` that counts as a table.
const ARM_LINES_MAX: usize = 12;
/// What is shown in documentation between fences.
const SHOWN: [&str; 4] = ["json", "sh", "text", "toml"];
/// Documentation that says nothing to whoever reads it alone.
const EMPTY_WORDS: [&str; 13] = [
    "Why.",
    "What it is.",
    "Whose it is.",
    "Why not.",
    "How.",
    "How it is.",
    "It.",
    "Which.",
    "Which one.",
    "What is wrong.",
    "What was tried.",
    "What it holds.",
    "What is.",
];
/// Macros that stand for work not done.
const UNFINISHED: [&str; 3] = ["dbg", "todo", "unimplemented"];

/// What a file's functions are found to do wrong.
#[derive(Default)]
struct Tidy {
    faults: Vec<String>,
}

impl Tidy {
    fn function(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let mut tables = Tables::default();
        tables.visit_block(body);
        let (first, last) = (signature.span().start().line, body.span().end().line);
        let lines = last - first + 1 - tables.lines;
        if lines > FUNCTION_LINES_MAX {
            self.faults.push(format!("line {first}: fn {} has {lines} lines", signature.ident));
        }
    }
}

impl<'ast> Visit<'ast> for Tidy {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if let Some(name) = call.path.get_ident().filter(|name| UNFINISHED.iter().any(|wanted| name == wanted)) {
            self.faults.push(format!("line {}: {name}!", name.span().start().line));
        }
        visit::visit_macro(self, call);
    }
}

/// Counts the lines of the tables of a function, their first and last ones left out.
#[derive(Default)]
struct Tables {
    lines: usize,
}

impl Tables {
    fn table(&mut self, whole: &impl Spanned) {
        self.lines += lines(whole).saturating_sub(2);
    }
}

impl<'ast> Visit<'ast> for Tables {
    fn visit_expr_match(&mut self, matching: &'ast syn::ExprMatch) {
        if matching.arms.iter().all(|arm| lines(arm) <= ARM_LINES_MAX) {
            self.table(matching);
        } else {
            visit::visit_expr_match(self, matching);
        }
    }

    fn visit_expr_array(&mut self, array: &'ast syn::ExprArray) {
        self.table(array);
    }

    fn visit_expr_struct(&mut self, literal: &'ast syn::ExprStruct) {
        self.table(literal);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.table(call);
    }
}

fn lines(spanned: &impl Spanned) -> usize {
    let span = spanned.span();
    span.end().line - span.start().line + 1
}

fn faults(source: &str) -> Vec<String> {
    let mut tidy = Tidy::default();
    match syn::parse_file(source) {
        Ok(file) => tidy.visit_file(&file),
        Err(error) => tidy.faults.push(error.to_string()),
    }
    let lines = source.lines().count();
    if lines > FILE_LINES_MAX {
        tidy.faults.push(format!("{lines} lines"));
    }
    tidy.faults.extend(code_in_documentation(source));
    tidy.faults.extend(empty_documentation(source));
    tidy.faults
}

fn code_in_documentation(source: &str) -> Vec<String> {
    let mut fences = Vec::new();
    for (line, number) in source.lines().map(str::trim_start).zip(1..) {
        if let Some(language) = ["/// ```", "//! ```"].iter().find_map(|fence| line.strip_prefix(fence)) {
            fences.push((number, language));
        }
    }
    // Every second one ends what the one before began.
    let begun = fences.iter().step_by(2).filter(|(_, language)| !SHOWN.contains(language));
    begun.map(|(number, _)| format!("line {number}: code in documentation")).collect()
}

/// Documentation of fields and functions that does not say what they hold or do.
fn empty_documentation(source: &str) -> Vec<String> {
    let is_empty = |line: &str| line.trim().strip_prefix("/// ").is_some_and(|text| EMPTY_WORDS.contains(&text));
    let lines = source.lines().zip(1..).filter(|(line, _)| is_empty(line));
    lines.map(|(line, number)| format!("line {number}: {} says nothing", line.trim())).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn files_and_functions_can_be_read_in_one_go() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths = Vec::new();
    for folder in ["crates", "fuzz"] {
        sources(&root.join(folder), &mut paths);
    }
    assert!(paths.len() > 500, "only {} files are looked at", paths.len());
    paths.sort();
    let found: Vec<String> = paths
        .iter()
        .flat_map(|path| {
            let name = path.strip_prefix(&root).unwrap().display();
            let faults = faults(&fs::read_to_string(path).unwrap());
            faults.into_iter().map(move |fault| format!("{name}: {fault}"))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// What becomes the program, below the folder of crates: all but tests.
fn shipped(root: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    sources(root, &mut paths);
    paths.retain(|path| {
        let path = path.strip_prefix(root).unwrap();
        let is_test = path.iter().any(|part| part == "tests" || part == "tests.rs");
        path.iter().nth(1).is_some_and(|folder| folder == "src") && !is_test
    });
    paths
}

/// With its causes, an error whose text ends in that of its cause says that twice: `error_text` says it once.
#[test]
fn row_23_no_error_is_shown_with_what_its_text_says_already() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let shown: Vec<String> = shipped(&root)
        .iter()
        .filter(|path| {
            let source = fs::read_to_string(path).unwrap();
            source.split("#[cfg(test)]").next().unwrap_or_default().contains(":#}")
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(shown.is_empty(), "use error_text: {shown:?}");
}

/// Where HTTP is spoken: both sides of the API, metrics, and commands. What is decided elsewhere is an error of its own kind, which gets its status here.
const HTTP: [&str; 4] = ["api/src/client.rs", "host/src/metrics.rs", "host/src/rest/", "twinvm/src/cli/"];

#[test]
fn http_statuses_are_where_http_is_spoken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut elsewhere = shipped(&root);
    elsewhere.retain(|path| {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        !HTTP.iter().any(|place| name.starts_with(place)) && fs::read_to_string(path).unwrap().contains("StatusCode")
    });
    assert!(elsewhere.is_empty(), "return a `HostError` of its kind: {elsewhere:?}");
}

/// These macros panic where standard output or error cannot be written: an editor that has gone, a disk that is full.
const PANICKING: [&str; 4] = ["print", "println", "eprint", "eprintln"];

/// Finds those macros in what ships.
#[derive(Default)]
struct Printing {
    lines: Vec<usize>,
}

impl<'ast> Visit<'ast> for Printing {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !module.attrs.iter().any(|attribute| quote_text(attribute) == "cfg(test)") {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if call.path.segments.last().is_some_and(|name| PANICKING.iter().any(|panicking| name.ident == panicking)) {
            self.lines.push(call.path.span().start().line);
        }
        visit::visit_macro(self, call);
    }
}

/// An attribute as it stands between its brackets, without spaces.
fn quote_text(attribute: &syn::Attribute) -> String {
    let syn::Meta::List(list) = &attribute.meta else { return String::new() };
    list.path.get_ident().map_or_else(String::new, |name| format!("{name}({})", list.tokens))
}

fn printing(source: &str) -> Vec<usize> {
    let mut printing = Printing::default();
    printing.visit_file(&syn::parse_file(source).expect("it is Rust"));
    printing.lines
}

#[test]
fn row_14_nothing_that_ships_panics_where_it_cannot_print() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let found: Vec<String> = shipped(&root)
        .iter()
        .flat_map(|path| {
            let lines = printing(&fs::read_to_string(path).unwrap());
            lines.into_iter().map(move |line| format!("{}: line {line}", path.display()))
        })
        .collect();
    assert!(found.is_empty(), "use terminal::output: {found:?}");
}

#[test]
fn prints_that_panic_are_found_outside_of_tests() {
    assert_eq!(printing("fn f() {\n    match a {\n        b => std::eprint!(\"c\"),\n    }\n}"), [3]);
    assert!(printing("fn f() { write!(a, \"b\"); }\n#[cfg(test)]\nmod tests { fn f() { println!(); } }").is_empty());
}

#[test]
fn long_functions_are_found_and_tables_are_let_be() {
    let statements = "f();\n".repeat(FUNCTION_LINES_MAX);
    assert_eq!(faults(&format!("fn long() {{\n{statements}}}")), ["line 1: fn long has 72 lines"]);
    assert_eq!(faults(&format!("impl A {{\nfn long() {{\n{statements}}}\n}}")), ["line 2: fn long has 72 lines"]);
    let arms = "1 => f(),\n".repeat(FUNCTION_LINES_MAX);
    assert!(faults(&format!("fn table() {{\nmatch a {{\n{arms}}}\n}}")).is_empty());
    let arm = format!("1 => {{\n{statements}}}\n");
    assert_eq!(faults(&format!("fn code() {{\nmatch a {{\n{arm}}}\n}}")), ["line 1: fn code has 76 lines"]);
    let list = "1,\n".repeat(FUNCTION_LINES_MAX);
    assert!(faults(&format!("fn list() {{\nlet a = [\n{list}];\n}}")).is_empty());
}

#[test]
fn unfinished_work_and_long_files_are_found() {
    assert_eq!(faults("fn f() {\n    todo!()\n}"), ["line 2: todo!"]);
    assert_eq!(faults(&"// A comment.\n".repeat(FILE_LINES_MAX + 1)), ["601 lines"]);
}

#[test]
fn code_in_documentation_is_found() {
    assert_eq!(faults("//! ```\n//! f();\n//! ```\n"), ["line 1: code in documentation"]);
    assert!(faults("/// ```text\n/// f();\n/// ```\nfn f() {}").is_empty());
    let twice = "/// ```text\n/// ```\n/// ```rust\n/// ```\nfn f() {}";
    assert_eq!(faults(twice), ["line 3: code in documentation"]);
}

#[test]
fn documentation_that_says_nothing_is_found() {
    assert_eq!(faults("struct S {\n    /// Why.\n    field: u8,\n}"), ["line 2: /// Why. says nothing"]);
    assert!(faults("struct S {\n    /// Why it failed.\n    field: u8,\n}").is_empty());
}

/// What is wrong with a table of tests in the section of a document that begins with this heading: its rows are numbered, and in the last column have
/// tests, each of which is to be there. With the text of each row.
fn table(document: &str, heading: &str, columns: usize) -> (Vec<String>, Vec<String>) {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a folder");
    let text = fs::read_to_string(crates.with_file_name(document)).expect("it can be read");
    let (_, section) = text.split_once(heading).expect("it has that section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    let is_row = |row: &Vec<&str>| row.len() == columns + 2;
    let rows = section.lines().map(|line| line.split('|').map(str::trim).collect()).filter(is_row);
    for row in rows.skip(2) {
        found.push(row.join("|"));
        let number = found.len();
        if row[1].parse() != Ok(number) {
            wrong.push(format!("{number} has no row in its place"));
        }
        let tests: Vec<&str> = row[columns].split(", ").map(|test| test.trim_matches('`')).collect();
        wrong.extend(tests.iter().filter_map(|test| missing(crates, test)).map(|why| format!("{number}: {why}")));
    }
    (found, wrong)
}

/// What is wrong with a test that a table names: it is to be there, and to be run by `make test` or, if it is ignored there, by `make soak`.
fn missing(crates: &Path, test: &str) -> Option<String> {
    let (file, name) = test.split_once("::").unwrap_or((test, ""));
    let Ok(source) = fs::read_to_string(crates.join(file)) else { return Some(format!("there is no file of {test}")) };
    if file.ends_with("mutation.rs") {
        return (!source.contains(&format!("    {name},\n"))).then(|| format!("there is no mutation {test}"));
    }
    if file.ends_with(".toml") {
        return source.trim().is_empty().then(|| format!("{test} is empty"));
    }
    match declared(&source, name) {
        Declared::Run => None,
        Declared::Ignored if is_soaked(crates, file, name) => None,
        Declared::Ignored => Some(format!("{test} is ignored, and make soak does not run it")),
        Declared::Nowhere => Some(format!("there is no test {test}")),
    }
}

/// What a source says of a test.
#[derive(Debug, PartialEq, Eq)]
enum Declared {
    Run,
    Ignored,
    Nowhere,
}

/// How a test of this name is declared: by its attributes, or in the list `TESTS` of a program that is its own harness.
fn declared(source: &str, name: &str) -> Declared {
    let Ok(tokens) = source.parse::<TokenStream>() else { return Declared::Nowhere };
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    match attributes(&tokens, name) {
        Some(found) if found.iter().any(|attribute| attribute.starts_with("ignore")) => Declared::Ignored,
        Some(found) if found.iter().any(|attribute| attribute == "test") || is_listed(&tokens, name) => Declared::Run,
        _ => Declared::Nowhere,
    }
}

/// The attributes of the function of this name, also within modules and macros; none if there is no such function.
fn attributes(tokens: &[TokenTree], name: &str) -> Option<Vec<String>> {
    let is = |token: &TokenTree, word: &str| matches!(token, TokenTree::Ident(ident) if ident == word);
    for (at, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            if let Some(found) = attributes(&inner, name) {
                return Some(found);
            }
        }
        if !is(token, "fn") || !tokens.get(at + 1).is_some_and(|token| is(token, name)) {
            continue;
        }
        let mut found = Vec::new();
        // Before it are its attributes, and what it is: public, say.
        for before in tokens[..at].iter().rev() {
            match before {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
                    found.push(group.stream().to_string())
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
                TokenTree::Punct(punct) if punct.as_char() == ';' => break,
                _ => {}
            }
        }
        return Some(found);
    }
    None
}

/// Whether the list `TESTS` has this function.
fn is_listed(tokens: &[TokenTree], name: &str) -> bool {
    let list = tokens.iter().position(|token| matches!(token, TokenTree::Ident(ident) if ident == "TESTS"));
    let list = list.and_then(|at| tokens.get(at..)).unwrap_or_default();
    let end = list.iter().position(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ';'));
    let text: TokenStream = list.iter().take(end.unwrap_or(0)).cloned().collect();
    text.to_string().split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == name)
}

/// Whether a line of `make soak` runs an ignored test.
fn is_soaked(crates: &Path, file: &str, name: &str) -> bool {
    let makefile = fs::read_to_string(crates.with_file_name("Makefile")).expect("it can be read");
    let (_, recipe) = makefile.split_once("\nsoak:").expect("it has that target");
    let recipe = recipe.split("\n\n").next().unwrap_or_default();
    recipe.lines().any(|line| runs(line, file, name))
}

/// Whether a command runs the ignored tests among which is this one, of a file below the folder of crates.
fn runs(command: &str, file: &str, name: &str) -> bool {
    let parts: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    let [krate, "tests", program, modules @ ..] = parts.as_slice() else { return false };
    let path: Vec<&str> =
        modules.iter().copied().filter(|part| !["main", "mod"].contains(part)).chain([name]).collect();
    let words: Vec<&str> = command.split_whitespace().collect();
    let follows = |flag: &str, value: &str| words.windows(2).any(|pair| pair == [flag, value]);
    let after = words.iter().position(|word| word == program).map_or(words.len(), |at| at + 1);
    let mut filters = words[after..].iter().filter(|word| !word.starts_with('-')).peekable();
    let is_chosen = filters.peek().is_none() || filters.any(|filter| path.join("::").contains(filter));
    follows("-p", krate) && follows("--test", program) && words.contains(&"--ignored") && is_chosen
}

#[test]
fn a_test_that_nobody_runs_is_told_from_one_that_is_run() {
    let source = "#[test]\nfn a() {}\n#[test]\n#[ignore = \"long\"]\nfn b() {}\nfn c() { a(); }\nmod inner { #[test] pub fn d() {} }\n\
                  proptest! { #[test] fn e(x in 0..1) {} }\nconst TESTS: &[Test] = &[(\"f\", f)];\nfn f() {}\nfn g() {}";
    for name in ["a", "d", "e", "f"] {
        assert_eq!(declared(source, name), Declared::Run, "{name}");
    }
    assert_eq!(declared(source, "b"), Declared::Ignored);
    for name in ["c", "g", "h", ""] {
        assert_eq!(declared(source, name), Declared::Nowhere, "{name}");
    }
    let command = "cargo test $(TEST_FLAGS) -p twinvm --test mirror row_31 -- --ignored --nocapture";
    assert!(runs(command, "twinvm/tests/mirror/slow_link.rs", "row_31_a_first_copy"));
    assert!(!runs(command, "twinvm/tests/mirror/slow_link.rs", "another"));
    assert!(!runs(command, "twinvm/tests/lockstep/main.rs", "row_31_a_first_copy"));
    assert!(!runs(&command.replace("--ignored ", ""), "twinvm/tests/mirror/slow_link.rs", "row_31_a_first_copy"));
    let all = "cargo test -p storage --test image_build -- --ignored";
    assert!(runs(all, "storage/tests/image_build.rs", "debian") && !runs(all, "storage/src/image.rs", "debian"));
}

/// A fault whose test was renamed or deleted, or is not run, is one that may come back unnoticed.
#[test]
fn every_fault_that_was_mended_has_tests_that_are_there() {
    let (found, wrong) = table("ARCHITECTURE.md", "## Faults that stay mended", 3);
    assert_eq!(found.len(), MENDED);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The same of what administrators met. Each is a kind: other members of it are named, and a test has its number.
#[test]
fn every_case_that_administrators_met_has_tests_that_are_there() {
    let (found, mut wrong) = table("docs/cases.md", "# What administrators met", 4);
    assert_eq!(found.len(), CASES);
    for (number, row) in (1..).zip(&found) {
        let has_number = row
            .split(['`', '_', ':'])
            .collect::<Vec<_>>()
            .windows(2)
            .any(|words| words[0] == "row" && words[1] == number.to_string());
        // Some tests are of several rows.
        let is_shared = row.contains("row_19_20_21_and_25") && [19, 20, 21, 25].contains(&number);
        if !has_number && !is_shared {
            wrong.push(format!("{number}: no test has its number"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Operators who install the package skip the step in which others write the service themselves.
#[test]
fn the_service_of_the_package_is_that_of_the_operators_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let packaged = read("packaging/debian/twinvm.service");
    let page = read("docs/operators.md");
    let (_, written) = page.split_once("```ini\n[Unit]\nDescription=twinvm host\n").unwrap();
    let (written, _) = written.split_once("```").unwrap();
    for line in written.lines() {
        assert!(packaged.lines().any(|other| other == line), "{line}");
    }
}
