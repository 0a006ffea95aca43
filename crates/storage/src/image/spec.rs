//! What to build.

use serde::{Deserialize, Serialize};

use super::ImageError;

/// Kernel package used when none is named: Debian's kernel for virtual machines.
pub const KERNEL_DEFAULT: &str = "linux-image-cloud-amd64";

/// Size of the root disk when none is named. The file is sparse: it takes what its content takes.
pub const ROOT_DISK_BYTES_DEFAULT: u64 = 2 << 30;

/// A release of Debian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Debian 12.
    #[default]
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// Its code name, by which the mirrors have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The suite with this code name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }
}

/// What runs as process 1 on the root disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// busybox init and a short start script: ready in a fraction of the instructions that systemd takes.
    #[default]
    Light,
    /// systemd, as on an installed Debian system.
    Systemd,
}

/// A file put on the root disk beside those of the packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraFile {
    /// Absolute path in the guest; missing directories are made.
    pub path: String,
    /// Content.
    pub contents: Vec<u8>,
    /// Permission bits, such as `0o755`.
    pub mode: u32,
}

/// Describes a guest image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Name of the image and of its directory: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// The release of Debian that it is made of.
    #[serde(default)]
    pub suite: Suite,
    /// Debian packages beside the base system; `NAME/SUITE` takes one from another suite, such as `bookworm-backports`.
    pub packages: Vec<String>,
    /// Whether what these packages recommend is installed too, as it is on Debian.
    #[serde(default)]
    pub recommends: bool,
    /// Kernel package, or a metapackage that depends on it; `NAME/SUITE` as above.
    pub kernel: String,
    /// Size of the root disk in bytes; `None` makes an image that lives in its initial RAM disk.
    pub root_disk_bytes: Option<u64>,
    /// The guest's host name.
    pub hostname: String,
    /// What runs as process 1.
    pub init: Init,
    /// Whether Redis, if installed, writes every change to its append-only file before it answers.
    pub redis_append_only: bool,
    /// Kernel modules that the initial RAM disk loads beside those of twinvm's own devices: what another hypervisor's disk needs.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Further files.
    pub files: Vec<ExtraFile>,
}

impl ImageSpec {
    /// A spec with the defaults: light init, a 2 GiB root disk, Debian's cloud kernel, no packages beside the base system.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            hostname: hostname_from(&name),
            name,
            suite: Suite::default(),
            packages: Vec::new(),
            recommends: true,
            kernel: KERNEL_DEFAULT.to_owned(),
            root_disk_bytes: Some(ROOT_DISK_BYTES_DEFAULT),
            init: Init::default(),
            redis_append_only: false,
            modules: Vec::new(),
            files: Vec::new(),
        }
    }

    /// What is said of an image that was not built here: nothing of how it is made.
    pub(super) fn pulled(name: &str) -> Self {
        Self { kernel: String::new(), recommends: false, ..Self::new(name) }
    }

    /// Checks everything that can be checked without the package lists.
    ///
    /// # Errors
    /// [`ImageError::InvalidSpec`] with the first thing that is wrong.
    pub fn validate(&self) -> Result<(), ImageError> {
        let invalid = |reason: String| ImageError::InvalidSpec { name: self.name.clone(), reason };
        validate_name(&self.name)?;
        if self.hostname.is_empty()
            || self.hostname.len() > 63
            || self.hostname.starts_with('-')
            || !self.hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(invalid(format!("{:?} is not a host name", self.hostname)));
        }
        for package in self.packages.iter().chain([&self.kernel]) {
            if !is_package(package) {
                return Err(invalid(format!("{package:?} is not a package name")));
            }
        }
        if let Some(bytes) = self.root_disk_bytes {
            if bytes % 4096 != 0 {
                return Err(invalid(format!("a root disk of {bytes} bytes is not a whole number of 4096-byte blocks")));
            }
            if !(64 << 20..=16 << 40).contains(&bytes) {
                return Err(invalid(format!("a root disk of {bytes} bytes is not between 64 MiB and 16 TiB")));
            }
        } else if !self.packages.is_empty() || !self.files.is_empty() || self.init != Init::Light {
            return Err(invalid("an image without a root disk has no packages, files or systemd".to_owned()));
        }
        for module in &self.modules {
            if module.is_empty() || !module.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
                return Err(invalid(format!("{module:?} is not a kernel module's name")));
            }
        }
        for file in &self.files {
            if !file.path.starts_with('/') || file.path.ends_with('/') || file.path.split('/').any(|part| part == "..")
            {
                return Err(invalid(format!("{:?} is not an absolute path of a file", file.path)));
            }
            if file.mode & !0o7777 != 0 {
                return Err(invalid(format!("{:o} are not permission bits", file.mode)));
            }
        }
        Ok(())
    }

    /// Suites named by packages, beside those that are always used.
    pub(crate) fn extra_suites(&self) -> Vec<String> {
        let mut suites: Vec<String> =
            self.packages.iter().chain([&self.kernel]).filter_map(|p| Some(p.split_once('/')?.1.to_owned())).collect();
        suites.sort();
        suites.dedup();
        suites
    }
}

/// A host name that says the image's name as well as RFC 1123 lets it.
fn hostname_from(name: &str) -> String {
    let mapped: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let trimmed = mapped.trim_matches('-');
    if trimmed.is_empty() { "guest".to_owned() } else { trimmed.to_owned() }
}

/// Whether `name` can be an image's name: it becomes a directory's.
pub(crate) fn validate_name(name: &str) -> Result<(), ImageError> {
    let good = !name.is_empty()
        && name.len() <= 100
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if good {
        return Ok(());
    }
    Err(ImageError::InvalidSpec {
        name: name.to_owned(),
        reason: "a name is made of letters, digits, '-', '_' and '.', and starts with a letter or digit".to_owned(),
    })
}

/// Debian Policy 5.6.1 with an optional `/SUITE`; also keeps options and shell characters away from apt.
fn is_package(package: &str) -> bool {
    let (name, suite) = package.split_once('/').unwrap_or((package, "bookworm"));
    let plain = |s: &str, extra: &[u8]| {
        s.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.contains(&b))
    };
    // apt takes a trailing '+' or '-' for "install" or "remove" when no package has that name.
    name.len() >= 2 && plain(name, b"+-.") && !name.ends_with('-') && plain(suite, b"-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_spec_is_valid() {
        ImageSpec::new("redis").validate().unwrap();
    }

    /// Image names may hold dots and underscores, host names may not.
    #[test]
    fn every_image_name_gives_a_valid_host_name() {
        for (name, hostname) in
            [("tiny-6.1", "tiny-6-1"), ("my_db", "my-db"), ("a.", "a"), (&"x".repeat(100), &"x".repeat(63))]
        {
            let spec = ImageSpec::new(name);
            assert_eq!(spec.hostname, hostname);
            spec.validate().unwrap();
        }
    }

    #[test]
    fn bad_specs_are_refused() {
        let good = ImageSpec { packages: vec!["redis-server".into(), "g++".into()], ..ImageSpec::new("redis") };
        good.validate().unwrap();
        for name in ["", ".", "..", ".cache", "a/b", "-a", "a b", "é"] {
            assert!(ImageSpec { name: name.into(), ..good.clone() }.validate().is_err(), "{name}");
        }
        for package in ["", "-o=x", "redis server", "Redis", "redis-", "$(id)", "a/../b"] {
            assert!(ImageSpec { packages: vec![package.into()], ..good.clone() }.validate().is_err(), "{package}");
        }
        for bytes in [0, 4096, (64 << 20) + 1, u64::MAX] {
            assert!(ImageSpec { root_disk_bytes: Some(bytes), ..good.clone() }.validate().is_err(), "{bytes}");
        }
        assert!(ImageSpec { root_disk_bytes: None, ..good.clone() }.validate().is_err());
        for module in ["", "sd-mod", "sd_mod.ko", "a b", "../x"] {
            assert!(ImageSpec { modules: vec![module.into()], ..good.clone() }.validate().is_err(), "{module}");
        }
        for path in ["etc/x", "/etc/", "/../etc/x"] {
            let file = ExtraFile { path: path.into(), contents: vec![], mode: 0o644 };
            assert!(ImageSpec { files: vec![file], ..good.clone() }.validate().is_err(), "{path}");
        }
    }

    #[test]
    fn suites_come_from_packages_and_kernel() {
        let spec = ImageSpec {
            packages: vec!["curl/bookworm-backports".into(), "nginx".into()],
            kernel: "linux-image-cloud-amd64/bookworm-backports".into(),
            ..ImageSpec::new("x")
        };
        spec.validate().unwrap();
        assert_eq!(spec.extra_suites(), ["bookworm-backports"]);
    }
}
