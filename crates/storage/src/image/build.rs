//! One build, from a spec to the files of an image.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::apt::{Apt, Package};
use super::command::{command, run_checked, spawn_error};
use super::manifest::{BuiltFile, KernelInfo, Manifest};
use super::store::{Image, hex, sha256_file};
use super::tree::Tree;
use super::{ImageError, ImageSpec, Init, Progress, Stage, ext4, guest, initrd};

/// Counted up when the builder makes other images of the same inputs.
const REVISION: u32 = 1;

/// Time of everything that does not come from a package: Debian 12's release, 2023-06-10.
const BUILD_TIME_S: u32 = 1_686_355_200;

/// Packages of every root disk: what makes a shell comfortable, and what the builder runs.
const BASE_PACKAGES: [&str; 24] = [
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "debianutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "kmod",
    "libc-bin",
    "login",
    "mawk",
    "mount",
    "ncurses-base",
    "netbase",
    "passwd",
    "procps",
    "sed",
    "tar",
    "util-linux",
];
/// Packages of an image that is only an initial RAM disk: busybox, and what makes the module list.
const INITRD_PACKAGES: [&str; 2] = ["busybox-static", "kmod"];
/// What systemd wants beside itself: devices, and a bus for its tools.
const SYSTEMD_PACKAGES: [&str; 4] = ["dbus", "systemd", "systemd-sysv", "udev"];
/// Says that /usr is merged. Without it, dependencies bring the tool that merges it, and Perl with that.
const USR_MERGED_PACKAGE: &str = "usr-is-merged";

/// Where Debian's libraries and loader for amd64 are.
const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";

/// A build whose inputs are known.
pub(crate) struct Builder {
    spec: ImageSpec,
    apt: Apt,
    requested: Vec<String>,
    packages: Vec<Package>,
}

impl Builder {
    /// Works out what the image needs.
    pub fn resolve(
        spec: &ImageSpec,
        apt_dir: &Path,
        refresh: bool,
        progress: &mut dyn Progress,
    ) -> Result<Self, ImageError> {
        let apt = Apt::open(apt_dir, &spec.extra_suites(), progress)?;
        apt.update(refresh, progress)?;
        let mut requested: Vec<String> = vec![USR_MERGED_PACKAGE.to_owned()];
        let base = if spec.root_disk_bytes.is_some() { &BASE_PACKAGES[..] } else { &INITRD_PACKAGES[..] };
        requested.extend(base.iter().map(|&p| p.to_owned()));
        if spec.init == Init::Systemd {
            requested.extend(SYSTEMD_PACKAGES.map(str::to_owned));
        }
        requested.extend(spec.packages.iter().chain([&spec.kernel]).cloned());
        let packages = apt.resolve(&requested, progress)?;
        Ok(Self { spec: spec.clone(), apt, requested, packages })
    }

    /// Digest over everything that determines the image.
    pub fn inputs_sha256(&self) -> String {
        let infos: Vec<_> = self.packages.iter().map(|p| &p.info).collect();
        let inputs = (REVISION, BUILD_TIME_S, initrd::INIT, guest::EMBEDDED, &self.spec, infos);
        let text = serde_json::to_vec(&inputs).expect("the inputs have no map keys that JSON cannot hold");
        hex(&Sha256::digest(text))
    }

    /// Builds into the existing directory `output`, with the new directory `staging` for what comes between.
    pub fn build(&self, staging: &Path, output: &Path, progress: &mut dyn Progress) -> Result<(), ImageError> {
        let archives = self.apt.download(&self.requested, &self.packages, progress)?;
        let mut tree = Tree::create(staging, BUILD_TIME_S)?;
        let total = self.packages.len() as u64;
        for (package, done) in self.packages.iter().zip(0..) {
            progress.update(Stage::Unpack, done, total);
            if progress.is_cancelled() {
                return Err(ImageError::Cancelled);
            }
            unpack(&mut tree, &archives.join(&package.file_name))?;
        }

        progress.update(Stage::Configure, 0, 0);
        let kernel = self.take_kernel(&mut tree, output)?;
        depmod(&mut tree, &kernel.release, progress)?;

        progress.update(Stage::Initrd, 0, 0);
        initrd::write(&output.join(Image::INITRD), &tree, &kernel.release, &self.spec.modules, BUILD_TIME_S)?;

        let mut names = vec![Image::KERNEL, Image::INITRD];
        if let Some(size_bytes) = self.spec.root_disk_bytes {
            progress.update(Stage::Configure, 0, 0);
            guest::configure(&mut tree, &self.spec)?;
            ldconfig(&mut tree, progress)?;
            progress.update(Stage::RootDisk, 0, 0);
            ext4::write(&output.join(Image::ROOT_DISK), size_bytes, &tree, BUILD_TIME_S, progress)?;
            names.push(Image::ROOT_DISK);
        }
        let files = digest_files(output, &names, progress)?;
        let packages = self.packages.iter().map(|p| p.info.clone()).collect();
        let cmdline = guest::cmdline(&self.spec);
        Manifest::new(self.spec.clone(), self.inputs_sha256(), kernel, cmdline, packages, files).store(output)
    }

    /// Moves the kernel from the tree to `output`.
    fn take_kernel(&self, tree: &mut Tree, output: &Path) -> Result<KernelInfo, ImageError> {
        let invalid = |reason: String| ImageError::InvalidSpec { name: self.spec.name.clone(), reason };
        let kernels: Vec<_> = tree.list("boot").into_iter().filter(|name| name.starts_with("vmlinuz-")).collect();
        let [file] = &kernels[..] else {
            return Err(invalid(format!("the packages bring {} kernels instead of one: {kernels:?}", kernels.len())));
        };
        let release = file.trim_start_matches("vmlinuz-").to_owned();
        let guest_path = format!("boot/{file}");
        let path = output.join(Image::KERNEL);
        fs::write(&path, tree.read(&guest_path)?).map_err(ImageError::at(&path))?;
        tree.remove(&guest_path)?;
        let name = format!("linux-image-{release}");
        let info = self.packages.iter().map(|p| &p.info).find(|i| i.name.trim_end_matches("-unsigned") == name);
        let info = info.ok_or_else(|| invalid(format!("no package is called {name}")))?;
        Ok(KernelInfo { package: info.name.clone(), version: info.version.clone(), release })
    }
}

/// Unpacks a `.deb` into the tree, without manuals, documentation (licences stay), translations and kernel symbols.
fn unpack(tree: &mut Tree, deb: &Path) -> Result<(), ImageError> {
    let name = deb.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut child = command("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| spawn_error(e, "dpkg-deb", "dpkg"))?;
    let result = match child.stdout.take() {
        Some(pipe) => tree.unpack(&name, pipe, is_wanted),
        None => Ok(()),
    };
    // The pipe is closed by now, so a child that still wanted to write ends.
    let status = child.wait().map_err(ImageError::at(deb))?;
    result?;
    if !status.success() {
        return Err(ImageError::BadPackage { package: name, reason: format!("dpkg-deb: {status}") });
    }
    Ok(())
}

fn is_wanted(path: &str) -> bool {
    let dropped = [
        "usr/share/man/",
        "usr/share/info/",
        "usr/share/lintian/",
        "usr/share/locale/",
        "boot/System.map-",
        "boot/config-",
    ];
    let doc = path.starts_with("usr/share/doc/") && !path.ends_with("/copyright");
    !doc && !dropped.iter().any(|prefix| path.starts_with(prefix))
}

/// Makes the module lists with the guest's own depmod, run by the guest's own loader.
fn depmod(tree: &mut Tree, release: &str, progress: &mut dyn Progress) -> Result<(), ImageError> {
    let mut depmod = command(tree.staged(&format!("{LIBRARY_DIR}/ld-linux-x86-64.so.2")));
    depmod.args(["--argv0", "depmod", "--library-path"]).arg(tree.staged(LIBRARY_DIR)).arg(tree.staged("usr/bin/kmod"));
    depmod.arg("-b").arg(tree.staging()).arg(release);
    run_guest_program(depmod, progress)?;
    let dir = format!("usr/lib/modules/{release}");
    let staged = tree.staged(&dir);
    for entry in fs::read_dir(&staged).map_err(ImageError::at(&staged))? {
        let entry = entry.map_err(ImageError::at(&staged))?;
        if let Some(name) = entry.file_name().to_str().filter(|name| name.starts_with("modules.")) {
            tree.adopt(&format!("{dir}/{name}"), 0o644)?;
        }
    }
    Ok(())
}

/// Makes the loader's cache with the guest's own ldconfig.
fn ldconfig(tree: &mut Tree, progress: &mut dyn Progress) -> Result<(), ImageError> {
    tree.directory("var/cache/ldconfig", 0o700)?;
    let mut ldconfig = command(tree.staged("usr/sbin/ldconfig"));
    ldconfig.arg("-X").arg("-r").arg(tree.staging());
    run_guest_program(ldconfig, progress)?;
    tree.adopt("etc/ld.so.cache", 0o644)?;
    // It holds inode numbers of this host.
    let auxiliary = tree.staged("var/cache/ldconfig/aux-cache");
    if auxiliary.exists() {
        fs::remove_file(&auxiliary).map_err(ImageError::at(&auxiliary))?;
    }
    Ok(())
}

fn run_guest_program(command: Command, progress: &mut dyn Progress) -> Result<(), ImageError> {
    run_checked(command, "libc6 (for amd64)", progress)
}

fn digest_files(dir: &Path, names: &[&str], progress: &mut dyn Progress) -> Result<Vec<BuiltFile>, ImageError> {
    let mut files = Vec::new();
    let sizes: Result<Vec<u64>, ImageError> = names
        .iter()
        .map(|name| {
            let path = dir.join(name);
            Ok(fs::metadata(&path).map_err(ImageError::at(&path))?.len())
        })
        .collect();
    let sizes = sizes?;
    let total = sizes.iter().sum();
    let mut done = 0;
    for (name, size_bytes) in names.iter().zip(sizes) {
        let sha256 = sha256_file(&dir.join(name), &mut |bytes| {
            done += bytes;
            progress.update(Stage::Digest, done, total);
        })?;
        files.push(BuiltFile { name: (*name).to_owned(), size_bytes, sha256 });
    }
    Ok(files)
}
