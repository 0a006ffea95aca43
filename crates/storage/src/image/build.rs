//! One build, from a spec to the files of an image.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use super::apt::{Apt, Package, Request, WANTED_BY_KERNELS};
use super::command::{command, run_checked, spawn_error};
use super::install::{self, Installer};
use super::manifest::{BuiltFile, KernelInfo, Manifest, PackageInfo};
use super::store::{Image, json_sha256, sha256_file};
use super::tree::Tree;
use super::{ImageError, ImageSpec, Init, Progress, Stage, capabilities, ext4, guest, initrd};

/// Counted up when the builder makes other images of the same inputs.
const REVISION: u32 = 4;

/// Time of everything that does not come from a package: Debian 12's release, 2023-06-10.
const BUILD_TIME_S: u32 = 1_686_355_200;

/// Packages of every root disk: what every Debian system has, what makes a shell comfortable, and what our init runs.
const BASE_PACKAGES: [&str; 10] =
    ["?essential", "busybox-static", "iproute2", "kmod", "libc-bin", "login", "mount", "netbase", "passwd", "procps"];
/// Packages of an image that is only an initial RAM disk: busybox, and what makes the module list.
const INITRD_PACKAGES: [&str; 2] = ["busybox-static", "kmod"];
/// What systemd wants beside itself: devices, a bus for its tools, and names of the network.
const SYSTEMD_PACKAGES: [&str; 5] = ["dbus", "systemd", "systemd-resolved", "systemd-sysv", "udev"];
/// Says that /usr is merged. Without it, dependencies bring the tool that merges it, and Perl with that.
const USR_MERGED_PACKAGE: &str = "usr-is-merged";
/// What packages with a kernel are called.
const KERNEL_PREFIX: &str = "linux-image-";

/// Where Debian's libraries and loader for amd64 are.
const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";

/// A request of apt's, and what it comes to.
struct Layer {
    request: Request,
    packages: Vec<Package>,
}

/// A build whose inputs are known.
pub(crate) struct Builder {
    spec: ImageSpec,
    apt: Apt,
    /// The base system; all of an image that is only an initial RAM disk.
    base: Layer,
    /// What was asked for beside it.
    further: Option<Layer>,
    kernel: Option<Layer>,
}

impl Builder {
    /// Works out what the image needs.
    pub fn resolve(
        spec: &ImageSpec,
        cache: &Path,
        refresh: bool,
        progress: &mut dyn Progress,
    ) -> Result<Self, ImageError> {
        let release = spec.suite.name();
        let apt = Apt::open(&cache.join(format!("apt-{release}")), release, &spec.extra_suites(), progress)?;
        apt.update(refresh, progress)?;
        let mut packages: Vec<String> = vec![USR_MERGED_PACKAGE.to_owned()];
        if spec.root_disk_bytes.is_none() {
            packages.extend(INITRD_PACKAGES.map(str::to_owned));
            packages.push(spec.kernel.clone());
            let status = WANTED_BY_KERNELS.to_owned();
            let base = Layer::resolve(&apt, Request { packages, status, recommends: false }, progress)?;
            return Ok(Self { spec: spec.clone(), apt, base, further: None, kernel: None });
        }
        packages.extend(BASE_PACKAGES.map(str::to_owned));
        if spec.init == Init::Systemd {
            packages.extend(SYSTEMD_PACKAGES.map(str::to_owned));
        }
        let base = Layer::resolve(&apt, Request { packages, ..Request::default() }, progress)?;
        let status = apt.status_of(&base.packages, progress)?;
        let request = Request { packages: spec.packages.clone(), recommends: spec.recommends, status: status.clone() };
        let further = (!spec.packages.is_empty()).then(|| Layer::resolve(&apt, request, progress)).transpose()?;
        let request =
            Request { packages: vec![spec.kernel.clone()], recommends: false, status: status + WANTED_BY_KERNELS };
        let kernel = Some(Layer::resolve(&apt, request, progress)?);
        Ok(Self { spec: spec.clone(), apt, base, further, kernel })
    }

    /// Everything that is in the image, by name.
    fn packages(&self) -> Vec<PackageInfo> {
        let layers = [Some(&self.base), self.further.as_ref(), self.kernel.as_ref()];
        let mut infos: Vec<_> =
            layers.into_iter().flatten().flat_map(|layer| &layer.packages).map(|p| p.info.clone()).collect();
        infos.sort();
        infos.dedup();
        infos
    }

    /// Digest over everything that determines the image.
    pub fn inputs_sha256(&self) -> String {
        let scripts = (initrd::INIT, guest::EMBEDDED, install::CHROOT, install::PACKAGES);
        let inputs = (REVISION, BUILD_TIME_S, scripts, &self.spec, self.packages());
        json_sha256(&inputs)
    }

    /// Builds into the existing directory `output`, with the existing directory `staging` for what comes between. Base systems are kept in `cache`.
    pub fn build(
        &self,
        cache: &Path,
        staging: &Path,
        output: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let mut tree = Tree::create(&staging.join("root"), BUILD_TIME_S)?;
        let archives = self.base.download(&self.apt, progress)?;
        for layer in [&self.further, &self.kernel].into_iter().flatten() {
            layer.download(&self.apt, progress)?;
        }
        if self.spec.root_disk_bytes.is_some() {
            self.install(cache, staging, &mut tree, progress)?;
        }
        let unpacked = self.kernel.as_ref().unwrap_or(&self.base);
        let total = unpacked.packages.len() as u64;
        for (package, done) in unpacked.packages.iter().zip(0..) {
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
            progress.update(Stage::RootDisk, 0, 0);
            ext4::write(&output.join(Image::ROOT_DISK), size_bytes, &tree, BUILD_TIME_S, progress)?;
            names.push(Image::ROOT_DISK);
        }
        let files = digest_files(output, &names, progress)?;
        let cmdline = guest::cmdline(&self.spec);
        Manifest::new(self.spec.clone(), self.inputs_sha256(), kernel, cmdline, self.packages(), files).store(output)
    }

    /// Installs the packages and takes the result into the tree.
    fn install(
        &self,
        cache: &Path,
        staging: &Path,
        tree: &mut Tree,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let archives = self.apt.archives();
        let installer = Installer {
            archives: &archives,
            lists: self.apt.lists(),
            sources: self.apt.sources(),
            work: staging.join("install"),
            mtime_s: BUILD_TIME_S,
        };
        let mut system = self.base_system(cache, staging, &installer, progress)?;
        if let Some(further) = self.further.as_ref().filter(|layer| !layer.packages.is_empty()) {
            let output = staging.join("system.tar");
            installer.install(Some(&system), &further.packages, &output, progress)?;
            system = output;
        }
        progress.update(Stage::Unpack, 0, 0);
        let open = || fs::File::open(&system).map(io::BufReader::new).map_err(ImageError::at(&system));
        tree.unpack("the new system", open()?, |_| true)?;
        for (path, capability) in capabilities::read(open()?).map_err(ImageError::at(&system))? {
            tree.set_capability(&path, capability);
        }
        Ok(())
    }

    /// The archive of the base system: the one that an image before was made of, if it is of the same packages.
    fn base_system(
        &self,
        cache: &Path,
        staging: &Path,
        installer: &Installer,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, ImageError> {
        let infos: Vec<_> = self.base.packages.iter().map(|p| &p.info).collect();
        let inputs = (REVISION, BUILD_TIME_S, install::CHROOT, install::PACKAGES, infos);
        let kind = format!("base-{}-{:?}-", self.spec.suite.name(), self.spec.init).to_lowercase();
        let name = format!("{kind}{}.tar", json_sha256(&inputs));
        let path = cache.join(&name);
        if path.exists() {
            return Ok(path);
        }
        let made = staging.join("base.tar");
        installer.install(None, &self.base.packages, &made, progress)?;
        for entry in fs::read_dir(cache).map_err(ImageError::at(cache))? {
            let entry = entry.map_err(ImageError::at(cache))?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&kind)) {
                fs::remove_file(entry.path()).map_err(ImageError::at(entry.path()))?;
            }
        }
        // After a power failure half of it must not be taken for all.
        fs::File::open(&made).and_then(|file| file.sync_all()).map_err(ImageError::at(&made))?;
        fs::rename(&made, &path).map_err(ImageError::at(&path))?;
        Ok(path)
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
        let name = format!("{KERNEL_PREFIX}{release}");
        let info = self.packages().into_iter().find(|i| i.name.trim_end_matches("-unsigned") == name);
        let info = info.ok_or_else(|| invalid(format!("no package is called {name}")))?;
        Ok(KernelInfo { package: info.name, version: info.version, release })
    }
}

impl Layer {
    fn resolve(apt: &Apt, request: Request, progress: &mut dyn Progress) -> Result<Self, ImageError> {
        let packages = apt.resolve(&request, progress)?;
        Ok(Self { request, packages })
    }

    /// Downloads the packages; returns the folder that holds them.
    fn download(&self, apt: &Apt, progress: &mut dyn Progress) -> Result<PathBuf, ImageError> {
        apt.download(&self.request, &self.packages, progress)
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

fn run_guest_program(command: Command, progress: &mut dyn Progress) -> Result<(), ImageError> {
    run_checked(command, "libc6 (for amd64)", progress)
}

pub(super) fn digest_files(
    dir: &Path,
    names: &[&str],
    progress: &mut dyn Progress,
) -> Result<Vec<BuiltFile>, ImageError> {
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
