//! Debian packages through apt with private state: no root, and nothing of the host's package state is read or changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::command::{Finished, Stream, command, run};
use super::manifest::PackageInfo;
use super::store::{json_sha256, sha256_file};
use super::{ImageError, Progress, Stage};

/// Where Debian is when the host's apt does not know a mirror.
const MIRROR_DEFAULT: &str = "http://deb.debian.org/debian";
/// The same for security updates.
const MIRROR_SECURITY_DEFAULT: &str = "http://deb.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package lists younger than this are not fetched again unless asked for.
const LISTS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Directory of what was resolved from the lists that are there.
const RESOLUTIONS: &str = "resolutions";
/// Directory that stays empty.
const NO_ARCHIVES: &str = "no-archives/partial";

/// What a kernel wants on an installed system and a guest with our initial RAM disk does not need, as if it were there.
pub(crate) const WANTED_BY_KERNELS: &str = "\
Package: linux-base
Status: install ok installed
Architecture: all
Version: 99
Maintainer: twinvm
Description: stands for the boot loader's hooks

Package: twinvm-initramfs
Status: install ok installed
Architecture: all
Version: 99
Provides: linux-initramfs-tool
Maintainer: twinvm
Description: stands for the tool that makes an initial RAM disk

";

/// What is to be installed.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Request {
    /// Names of packages, or patterns of apt's.
    pub packages: Vec<String>,
    /// Whether what packages recommend comes with them, as it does on Debian.
    pub recommends: bool,
    /// What is installed already, as in dpkg's file `status`.
    pub status: String,
}

/// A package that the resolver chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    /// What the manifest says about it.
    pub info: PackageInfo,
    /// Name of its file in the archive cache.
    pub file_name: String,
}

/// An apt of its own below a directory.
pub(crate) struct Apt {
    dir: PathBuf,
    config: PathBuf,
    suites: Vec<String>,
    sources: String,
}

impl Apt {
    /// Sets up the private state in `dir` for the suites of a release and `extra_suites`.
    pub fn open(
        dir: &Path,
        release: &str,
        extra_suites: &[String],
        progress: &mut dyn Progress,
    ) -> Result<Self, ImageError> {
        let make = |path: PathBuf| fs::create_dir_all(&path).map_err(ImageError::at(path));
        for sub in
            ["etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "archives/partial", NO_ARCHIVES, RESOLUTIONS]
        {
            make(dir.join(sub))?;
        }
        if !Path::new(KEYRING).exists() {
            return Err(ImageError::MissingProgram { program: KEYRING.to_owned(), package: "debian-archive-keyring" });
        }
        let dir = fs::canonicalize(dir).map_err(ImageError::at(dir))?;
        let mut suites = suites_of(release);
        suites.extend(extra_suites.iter().filter(|s| !suites.contains(s)).cloned().collect::<Vec<_>>());
        let sources = sources(&suites, &Mirrors::of_host(progress));
        let config_text = config(&dir, &host_acquire_options(progress));
        let apt = Self { config: dir.join("apt.conf"), dir, suites, sources };
        apt.write("apt.conf", &config_text)?;
        // Lists of other sources would be dropped by the next update: fetch when the sources change.
        let sources_path = apt.dir.join("etc/sources.list");
        if fs::read_to_string(&sources_path).ok().as_deref() != Some(&apt.sources) {
            let _ = fs::remove_file(apt.stamp());
            apt.write("etc/sources.list", &apt.sources)?;
        }
        Ok(apt)
    }

    /// Fetches the package lists unless there are fresh ones; stale ones serve when the mirror cannot be reached.
    pub fn update(&self, refresh: bool, progress: &mut dyn Progress) -> Result<(), ImageError> {
        progress.update(Stage::Update, 0, 0);
        let age = fs::metadata(self.stamp()).and_then(|m| m.modified()).map(|t| SystemTime::now().duration_since(t));
        if !refresh && matches!(age, Ok(Ok(age)) if age < LISTS_AGE_MAX) {
            return Ok(());
        }
        let mut update = self.command("apt-get");
        // Without this, apt reports a mirror it cannot reach as a warning and succeeds.
        update.args(["-o", "APT::Update::Error-Mode=any", "-o", "APT::Status-Fd=1", "-q", "update"]);
        let finished = run(update, "apt", progress, |progress, stream, line| {
            if let (Stream::Stdout, Some(percent)) = (stream, download_percent(line)) {
                progress.update(Stage::Update, percent as u64, 100);
            }
        })?;
        if finished.status.success() {
            self.forget_resolutions()?;
            return fs::write(self.stamp(), "").map_err(ImageError::at(self.stamp()));
        }
        if age.is_ok() && !refresh {
            return Ok(());
        }
        Err(self.classify(&finished, &[]))
    }

    /// Works out the closure of what is asked for, sorted by name. What was worked out from the same lists is remembered.
    pub fn resolve(&self, request: &Request, progress: &mut dyn Progress) -> Result<Vec<Package>, ImageError> {
        progress.update(Stage::Resolve, 0, 0);
        let known = self.dir.join(RESOLUTIONS).join(json_sha256(request));
        if let Some(packages) = fs::read(&known).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(packages);
        }
        let packages = self.resolve_anew(request, progress)?;
        let text = serde_json::to_vec(&packages).expect("packages have no map keys that JSON cannot hold");
        fs::write(&known, text).map_err(ImageError::at(&known))?;
        Ok(packages)
    }

    fn resolve_anew(&self, request: &Request, progress: &mut dyn Progress) -> Result<Vec<Package>, ImageError> {
        let mut resolve = self.install(request)?;
        // apt prints only what it would fetch, so it must not see what has been fetched already.
        resolve.arg("-o").arg(format!("Dir::Cache::Archives={}/", self.dir.join("no-archives").display()));
        resolve.args(["-qq", "--print-uris", "--"]).args(&request.packages);
        let mut chosen = BTreeMap::new();
        let mut unmet = Vec::new();
        let finished = run(resolve, "apt", progress, |_, stream, line| {
            if stream == Stream::Stdout {
                match parse_uri_line(line) {
                    Some(package) => drop(chosen.insert(package.info.name.clone(), package)),
                    None if line.contains(" : ") => unmet.push(line.trim().to_owned()),
                    None => {}
                }
            }
        })?;
        if !finished.status.success() {
            return Err(self.classify(&finished, &unmet));
        }
        Ok(chosen.into_values().collect())
    }

    /// What dpkg's file `status` says where `packages` are installed.
    pub fn status_of(&self, packages: &[Package], progress: &mut dyn Progress) -> Result<String, ImageError> {
        let mut show = self.command("apt-cache");
        show.arg("show").args(packages.iter().map(|p| format!("{}={}", p.info.name, p.info.version)));
        let mut status = String::new();
        let finished = run(show, "apt", progress, |_, stream, line| {
            if stream == Stream::Stdout {
                status += line;
                status.push('\n');
                if line.starts_with("Package: ") {
                    status += "Status: install ok installed\n";
                }
            }
        })?;
        if !finished.status.success() {
            return Err(self.classify(&finished, &[]));
        }
        Ok(status)
    }

    /// Downloads what a request (which [`Self::resolve`] answered with `chosen`) needs, and verifies every file.
    /// Returns the directory that holds them.
    pub fn download(
        &self,
        request: &Request,
        chosen: &[Package],
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, ImageError> {
        let archives = self.archives();
        let total: u64 = chosen.iter().map(|p| p.info.size_bytes).sum();
        progress.update(Stage::Download, 0, total);
        // A damaged file of the right size would be taken by apt for the real one.
        let mut missing = false;
        for package in chosen {
            let path = archives.join(&package.file_name);
            let is_there = path.exists();
            if is_there && sha256_file(&path, &mut |_| {})? != package.info.sha256 {
                fs::remove_file(&path).map_err(ImageError::at(&path))?;
            }
            missing |= !path.exists();
        }
        if !missing {
            progress.update(Stage::Download, total, total);
            return Ok(archives);
        }
        let mut download = self.install(request)?;
        download.args(["-q", "-o", "APT::Status-Fd=1", "--download-only", "--"]).args(&request.packages);
        let finished = run(download, "apt", progress, |progress, stream, line| {
            if let (Stream::Stdout, Some(percent)) = (stream, download_percent(line)) {
                progress.update(Stage::Download, (total as f64 * percent / 100.0) as u64, total);
            }
        })?;
        if !finished.status.success() {
            return Err(self.classify(&finished, &[]));
        }
        for package in chosen {
            let path = archives.join(&package.file_name);
            let found = sha256_file(&path, &mut |_| {})?;
            if found != package.info.sha256 {
                return Err(ImageError::DigestMismatch { path, expected: package.info.sha256.clone(), found });
            }
        }
        progress.update(Stage::Download, total, total);
        Ok(archives)
    }

    /// The folder of what was downloaded.
    pub fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    /// The folder of the package lists.
    pub fn lists(&self) -> PathBuf {
        self.dir.join("state/lists")
    }

    /// The sources of the package lists.
    pub fn sources(&self) -> &str {
        &self.sources
    }

    /// apt-get as it answers a request, up to its further options.
    fn install(&self, request: &Request) -> Result<Command, ImageError> {
        self.write("status", &request.status)?;
        let mut install = self.command("apt-get");
        install.args([
            "-y",
            "--no-remove",
            "-o",
            &format!("APT::Install-Recommends={}", request.recommends),
            "install",
        ]);
        Ok(install)
    }

    fn forget_resolutions(&self) -> Result<(), ImageError> {
        let dir = self.dir.join(RESOLUTIONS);
        for entry in fs::read_dir(&dir).map_err(ImageError::at(&dir))? {
            let path = entry.map_err(ImageError::at(&dir))?.path();
            fs::remove_file(&path).map_err(ImageError::at(&path))?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        command.env("APT_CONFIG", &self.config).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ImageError> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(ImageError::at(&path))
    }

    /// File whose modification time is that of the last complete update.
    fn stamp(&self) -> PathBuf {
        self.dir.join("updated")
    }

    /// Turns apt's messages into the error that they mean.
    fn classify(&self, finished: &Finished, unmet: &[String]) -> ImageError {
        let reason = finished.reason();
        let quoted = |line: &str| line.split('\'').nth(1).map(str::to_owned);
        let unknown = |package: String| ImageError::UnknownPackage { package, suites: self.suites.join(", ") };
        for line in &finished.stderr {
            if let Some(package) = line.strip_prefix("E: Unable to locate package ") {
                return unknown(package.trim().to_owned());
            }
            if line.contains("has no installation candidate")
                || line.contains("was not found") && line.starts_with("E: ")
            {
                // "E: Release 'suite' for 'package' was not found"
                let package = line.split('\'').nth(3).map(str::to_owned).filter(|_| line.contains("Release '"));
                if let Some(package) = package.or_else(|| quoted(line)) {
                    return unknown(package);
                }
            }
            if line.contains("No space left on device") || line.contains("You don't have enough free space") {
                return ImageError::HostDiskFull { path: self.dir.clone() };
            }
        }
        if !unmet.is_empty() {
            return ImageError::Unsatisfiable { reason: unmet.join("; ") };
        }
        let fetch =
            ["Failed to fetch", "Unable to fetch", "Could not resolve", "Could not connect", "Some index files failed"];
        if let Some(line) = finished.stderr.iter().find(|l| fetch.iter().any(|f| l.contains(f))) {
            return ImageError::Fetch { reason: line.trim_start_matches("E: ").trim().to_owned() };
        }
        ImageError::Program { program: "apt-get".to_owned(), reason }
    }
}

/// Debian mirrors by kind of suite.
struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    /// Those that the host's apt uses, for whichever release of Debian, else the defaults.
    fn of_host(progress: &mut dyn Progress) -> Self {
        let mut mirrors = Self { main: MIRROR_DEFAULT.to_owned(), security: MIRROR_SECURITY_DEFAULT.to_owned() };
        let mut targets = command("apt-get");
        let format = "$(ORIGIN) $(RELEASE) $(COMPONENT) $(SITE)";
        targets.args(["indextargets", "--format", format, "Created-By: Packages"]);
        // A host without a usable apt of its own still has the defaults.
        let _ = run(targets, "apt", progress, |_, _, line| {
            if let ["Debian", suite, "main", site] = line.split_whitespace().collect::<Vec<_>>()[..] {
                if suite.ends_with("-security") {
                    mirrors.security = site.to_owned();
                } else if !suite.contains('-') {
                    mirrors.main = site.to_owned();
                }
            }
        });
        mirrors
    }
}

/// The host's proxies and the like, as lines of apt configuration.
fn host_acquire_options(progress: &mut dyn Progress) -> Vec<String> {
    let mut options = Vec::new();
    let mut dump = command("apt-config");
    dump.arg("dump");
    let _ = run(dump, "apt", progress, |_, stream, line| {
        let wanted = ["Acquire::http::", "Acquire::https::", "Acquire::ftp::", "Acquire::Retries"];
        if stream == Stream::Stdout && wanted.iter().any(|w| line.starts_with(w)) {
            options.push(line.to_owned());
        }
    });
    options
}

fn sources(suites: &[String], mirrors: &Mirrors) -> String {
    suites
        .iter()
        .map(|suite| {
            let mirror = if suite.ends_with("-security") { &mirrors.security } else { &mirrors.main };
            format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")
        })
        .collect()
}

/// The sources that a guest's own apt has: Debian's mirrors, which do not depend on the host.
pub(crate) fn sources_of_guests(release: &str) -> String {
    let mirrors = Mirrors { main: MIRROR_DEFAULT.to_owned(), security: MIRROR_SECURITY_DEFAULT.to_owned() };
    sources(&suites_of(release), &mirrors)
}

/// The suites of a release that are always used.
fn suites_of(release: &str) -> Vec<String> {
    vec![release.to_owned(), format!("{release}-updates"), format!("{release}-security")]
}

fn config(dir: &Path, host_options: &[String]) -> String {
    let dir = dir.display();
    let own = format!(
        r#"Dir::Etc "{dir}/etc/";
Dir::Etc::Parts "apt.conf.d";
Dir::Etc::SourceList "sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "/dev/null";
Dir::State "{dir}/state/";
Dir::State::Status "{dir}/status";
Dir::Cache "{dir}/";
Dir::Cache::Archives "archives/";
Dir::Log "{dir}/log";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
"#
    );
    // The host's come first: ours win.
    host_options.iter().map(|option| format!("{option}\n")).chain([own]).collect()
}

/// The percentage in `dlstatus:FILE:PERCENT:MESSAGE`.
fn download_percent(line: &str) -> Option<f64> {
    let percent: f64 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}

/// Reads `'URI' NAME_VERSION_ARCHITECTURE.deb SIZE SHA256:DIGEST`.
fn parse_uri_line(line: &str) -> Option<Package> {
    let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
    let [file_name, size, digest] = rest.split(' ').collect::<Vec<_>>()[..] else { return None };
    let parts: Vec<_> = file_name.strip_suffix(".deb")?.split('_').collect();
    let [name, version, architecture] = parts[..] else { return None };
    let sha256 = digest.strip_prefix("SHA256:")?;
    if sha256.len() != 64 || file_name.contains('/') {
        return None;
    }
    let info = PackageInfo {
        name: name.to_owned(),
        version: version.replace("%3a", ":"),
        architecture: architecture.to_owned(),
        size_bytes: size.parse().ok()?,
        sha256: sha256.to_owned(),
    };
    Some(Package { info, file_name: file_name.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn uri_lines_are_read() {
        let digest = "ba4f88f73dbc3ae9055f3c20f4523bfdbaf1ad13ff95e258924f77d20b4fbedf";
        let line = format!(
            "'http://m/pool/a/attr/libattr1_2.5.1-4_amd64.deb' libattr1_1%3a2.5.1-4_amd64.deb 22020 SHA256:{digest}"
        );
        let package = parse_uri_line(&line).unwrap();
        assert_eq!(package.file_name, "libattr1_1%3a2.5.1-4_amd64.deb");
        assert_eq!((package.info.name.as_str(), package.info.version.as_str()), ("libattr1", "1:2.5.1-4"));
        assert_eq!((package.info.size_bytes, package.info.sha256.as_str()), (22020, digest));
        for bad in ["", "'x' a_1_all.deb 1 MD5Sum:00", "'x' a_1.deb 1 SHA256:00", "Reading package lists..."] {
            assert_eq!(parse_uri_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn percentages_are_read() {
        assert_eq!(download_percent("dlstatus:83:94.8536:Retrieving file 83 of 84"), Some(94.8536));
        assert_eq!(download_percent("dlstatus:83"), None);
        assert_eq!(download_percent("dlstatus:1:nan:x"), None);
    }

    #[test]
    fn messages_of_apt_become_typed_errors() {
        let apt =
            Apt { dir: "/x".into(), config: "/x".into(), suites: vec!["bookworm".into()], sources: String::new() };
        let failed = |lines: &[&str]| Finished {
            status: ExitStatus::from_raw(100 << 8),
            stderr: lines.iter().map(|l| (*l).to_owned()).collect(),
        };
        let text = |lines: &[&str]| apt.classify(&failed(lines), &[]).to_string();
        assert_eq!(text(&["E: Unable to locate package zzz"]), "no package named \"zzz\" in Debian bookworm");
        assert_eq!(
            text(&["E: Release 'bookworm-foo' for 'curl' was not found"]),
            "no package named \"curl\" in Debian bookworm"
        );
        assert!(
            text(&["E: Failed to fetch http://m/x  Could not resolve 'm'", "E: Some index files failed to download."])
                .starts_with("cannot fetch from the Debian mirror: Failed to fetch http://m/x")
        );
        assert!(matches!(
            apt.classify(
                &failed(&["E: Unable to correct problems, you have held broken packages."]),
                &["a : Depends: b".into()]
            ),
            ImageError::Unsatisfiable { .. }
        ));
    }
}
