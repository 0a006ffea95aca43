//! The test binaries of this workspace, by what cargo says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The profile that this test was compiled with: benchmarks are not measured with the checks of tests.
const PROFILE: &str = if cfg!(debug_assertions) { "checked" } else { "release" };

/// Binaries by package and target.
pub struct Binaries(BTreeMap<(String, String), PathBuf>);

impl Binaries {
    /// Asks cargo for the libraries' tests and the test targets of these names; it has compiled them by now if all of the workspace is tested.
    pub fn find(targets: &BTreeSet<&str>) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // What cargo has told this test about its package: build scripts that look at it (ring's does) would be taken for out of date.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        let output = command
            .args([
                "test",
                "--profile",
                PROFILE,
                "--locked",
                "--workspace",
                "--no-run",
                "--message-format=json",
                "--lib",
            ])
            .args(targets.iter().flat_map(|target| ["--test", target]))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "cargo does not compile the tests");
        let text = String::from_utf8(output.stdout).unwrap();
        Self(text.lines().filter_map(|line| binary(&serde_json::from_str(line).unwrap())).collect())
    }

    /// The binary of a package's test target.
    pub fn path(&self, package: &str, target: &str) -> &Path {
        self.0.get(&(package.to_owned(), target.to_owned())).unwrap_or_else(|| panic!("no test {target} in {package}"))
    }

    /// The tests in a binary; with `--ignored` those that it does not run unless asked to.
    pub fn tests(&self, package: &str, target: &str, option: Option<&str>) -> Vec<String> {
        let mut command = Command::new(self.path(package, target));
        let output = command.args(["--list", "--format=terse"]).args(option).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
    }
}

/// The binary that a message of cargo's names: <https://doc.rust-lang.org/cargo/reference/external-tools.html#artifact-messages>.
fn binary(message: &Value) -> Option<((String, String), PathBuf)> {
    let executable = message["executable"].as_str()?;
    if message["target"]["kind"][0] != "test" && message["profile"]["test"] != true {
        return None;
    }
    let package = Path::new(message["manifest_path"].as_str()?).parent()?.file_name()?.to_str()?;
    Some(((package.to_owned(), message["target"]["name"].as_str()?.to_owned()), executable.into()))
}
