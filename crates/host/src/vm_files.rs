//! [`VmFiles`]: which files of this host a VM may be given.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use storage::disk::{DiskImage, DiskOptions};

use super::config::HostConfig;
use super::datastores::Datastores;
use super::folder::HostFolder;

/// Longest chain of disk images, each based on the next.
const CHAIN_LENGTH_MAX: usize = 32;

/// Opens files that a VM spec names: kernels, initial RAM disks, disks. Only those below the image store, `files` in the host's folder, and the
/// folders that the host's administrator allows; never a key of this host, whatever is allowed and by whatever name.
#[derive(Clone, Debug)]
pub struct VmFiles {
    host: String,
    config: PathBuf,
    folder: PathBuf,
    allowed: Vec<PathBuf>,
    secrets: Vec<PathBuf>,
    /// The datastores that the host reaches.
    pub datastores: Datastores,
}

impl VmFiles {
    /// Those of a host.
    pub fn of(folder: &HostFolder, config: &HostConfig) -> Self {
        let own = [config.images.clone(), folder.files()];
        Self {
            host: config.name.clone(),
            config: folder.config(),
            folder: folder.path().to_owned(),
            allowed: own.into_iter().chain(config.vm_folders.iter().cloned()).collect(),
            secrets: [folder.keys(), folder.authority(), folder.operator(), folder.backup()]
                .into_iter()
                .chain(config.store.files())
                .chain(config.store_keys.as_ref().map(|keys| keys.key.clone()))
                .collect(),
            datastores: Datastores::default(),
        }
    }

    /// Opens a file to be read; also its path without symbolic links.
    pub fn open(&self, path: &Path) -> Result<(File, PathBuf)> {
        let real = fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
        let place = self.place_of(&real).with_context(|| self.outside(path))?;
        let folder = openat(CWD, &place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("cannot open {}", place.display()))?;
        let below = real.strip_prefix(&place).unwrap_or(&real);
        // What was a plain path a moment ago must not lead elsewhere now. Whoever opens a pipe would wait for its other end.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat2(&folder, below, flags, Mode::empty(), resolve);
        let file = File::from(file.with_context(|| format!("cannot read {}", path.display()))?);
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("{} is neither a file nor a block device", path.display());
        }
        // By whatever name: a hard link, or a folder that is mounted in two places.
        if self.is_secret(&file)? {
            bail!("{} holds what only host {} itself may read: no VM can be given it", path.display(), self.host);
        }
        Ok((file, real))
    }

    /// A folder in which VMs of this host may have files, as a datastore is; its path without symbolic links.
    pub fn folder(&self, path: &Path) -> Result<PathBuf> {
        let real = fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
        if !real.is_dir() {
            bail!("{} is no folder", path.display());
        }
        self.place_of(&real).with_context(|| self.outside(path))?;
        Ok(real)
    }

    /// Checks those that a disk image is based on.
    pub fn check_backing(&self, image: &DiskImage) -> Result<()> {
        let mut next = image.backing().cloned();
        for _ in 0..CHAIN_LENGTH_MAX {
            let Some(backing) = next else { return Ok(()) };
            let (_, path) = self.open(&backing.path).context("what the disk is based on")?;
            let options = DiskOptions { format: Some(backing.format), read_only: true, direct: false };
            next = DiskImage::open(&path, options)?.backing().cloned();
        }
        bail!("it is based on more than {CHAIN_LENGTH_MAX} others");
    }

    /// The allowed folder that a path without symbolic links is in.
    fn place_of(&self, real: &Path) -> Option<PathBuf> {
        let places = self.allowed.iter().filter_map(|place| fs::canonicalize(place).ok());
        let places: Vec<PathBuf> = places.filter(|place| real.starts_with(place)).collect();
        // A folder that is allowed may hold the host's own, with disks of other VMs. A place within that counts by itself.
        let own = fs::canonicalize(&self.folder).ok().filter(|own| real.starts_with(own));
        places.into_iter().find(|place| own.as_ref().is_none_or(|own| place.starts_with(own) && place != own))
    }

    fn outside(&self, path: &Path) -> String {
        let allowed: Vec<String> = self.allowed.iter().map(|place| place.display().to_string()).collect();
        format!(
            "{} is in no folder from which host {} takes files for VMs ({}): move it there, or have the host's administrator add its folder \
             to vm_folders in {} and start the daemon again",
            path.display(),
            self.host,
            allowed.join(", "),
            self.config.display()
        )
    }

    /// Whether this is a file that is kept secret, or in a folder that is.
    fn is_secret(&self, file: &File) -> Result<bool> {
        let found = file.metadata()?;
        let is_it = |path: &Path| {
            fs::metadata(path).is_ok_and(|secret| (secret.dev(), secret.ino()) == (found.dev(), found.ino()))
        };
        Ok(self.secrets.iter().any(|secret| {
            let entries = fs::read_dir(secret).into_iter().flatten().flatten();
            is_it(secret) || entries.into_iter().any(|entry| is_it(&entry.path()))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use cluster::store::{EtcdKeys, StoreLocation};
    use spec::DiskFormat;
    use storage::disk::{Backing, create_qcow2};

    use super::*;

    struct Place {
        root: tempfile::TempDir,
        files: VmFiles,
    }

    /// A host in `host`, which allows all of the folder that it is in.
    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let folder = HostFolder::find(Some(&root.path().join("host"))).unwrap();
        let own = [folder.keys(), folder.authority(), folder.backup(), folder.files(), folder.vm("other")];
        own.into_iter().chain([root.path().join("images")]).for_each(|path| fs::create_dir_all(path).unwrap());
        let (authority, repository) = (folder.authority().join("ca.key"), folder.backup().join("nas.json"));
        for path in [authority, repository, folder.operator(), folder.vm("other").join("disk0.raw")] {
            fs::write(path, [7; 4096]).unwrap();
        }
        let mut config: HostConfig =
            toml::from_str("name = \"a\"\nlisten = \"127.0.0.1:1\"\nmetrics = \"\"\nstore = \"/s\"\nimages = \"/i\"\n")
                .unwrap();
        let (store, vms) = (root.path().join("cluster.db"), root.path().join("cluster.db.vms"));
        fs::create_dir(&vms).unwrap();
        let key = root.path().join("etcd.key");
        for file in [&store, &vms.join("1"), &key] {
            fs::write(file, [7; 4096]).unwrap();
        }
        config.store = StoreLocation::File(store);
        config.store_keys =
            Some(EtcdKeys { ca: root.path().join("ca.pem"), cert: root.path().join("a.pem"), key, user: None });
        config.images = root.path().join("images");
        config.vm_folders = vec![root.path().to_owned()];
        Place { files: VmFiles::of(&folder, &config), root }
    }

    fn error(place: &Place, name: &str) -> String {
        format!("{:#}", place.files.open(&place.root.path().join(name)).expect_err(name))
    }

    #[test]
    fn a_vm_gets_what_is_in_an_allowed_folder_and_nothing_else() {
        let place = place();
        for name in ["images/k", "host/files/k", "k"] {
            fs::write(place.root.path().join(name), b"kernel").unwrap();
            place.files.open(&place.root.path().join(name)).unwrap();
        }
        let outside = place.files.open(Path::new("/etc/hostname")).unwrap_err().to_string();
        assert!(outside.contains("vm_folders in") && outside.contains("host.toml"), "{outside}");
        symlink("/etc/hostname", place.root.path().join("link")).unwrap();
        assert!(error(&place, "link").contains("vm_folders"));
        assert!(error(&place, "missing").contains("cannot find"));
        fs::create_dir(place.root.path().join("images/folder")).unwrap();
        assert!(error(&place, "images/folder").contains("neither a file"));
        rustix::fs::mknodat(
            CWD,
            place.root.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(error(&place, "pipe").contains("neither a file"));
    }

    /// The authority's key was read as a kernel.
    #[test]
    fn no_name_makes_a_key_a_file_of_a_vm() {
        let place = place();
        let root = place.root.path();
        for name in ["host/authority/ca.key", "host/backup/nas.json", "host/operator.pem", "host/vms/other/disk0.raw"] {
            assert!(error(&place, name).contains("vm_folders"), "{name}");
            symlink(root.join(name), root.join("link")).unwrap();
            assert!(error(&place, "link").contains("vm_folders"), "{name}");
            fs::remove_file(root.join("link")).unwrap();
        }
        fs::hard_link(root.join("host/authority/ca.key"), root.join("images/vmlinuz")).unwrap();
        assert!(error(&place, "images/vmlinuz").contains("only host a itself"));
        fs::hard_link(root.join("host/backup/nas.json"), root.join("images/initrd")).unwrap();
        assert!(error(&place, "images/initrd").contains("only host a itself"));
        assert!(error(&place, "cluster.db").contains("only host a itself"));
        assert!(error(&place, "cluster.db.vms/1").contains("only host a itself"));
        assert!(error(&place, "etcd.key").contains("only host a itself"));
    }

    #[test]
    fn a_disk_is_not_based_on_a_key_either() {
        let place = place();
        let root = place.root.path();
        let based_on = |backing: PathBuf, name: &str| {
            let disk = root.join(name);
            create_qcow2(&disk, 4096, Some(&Backing { path: backing, format: DiskFormat::Raw })).unwrap();
            DiskImage::open(&disk, DiskOptions { format: Some(DiskFormat::Qcow2), read_only: true, direct: false })
                .unwrap()
        };
        fs::write(root.join("base.raw"), [7; 4096]).unwrap();
        place.files.check_backing(&based_on(root.join("base.raw"), "good.qcow2")).unwrap();
        let bad = based_on(root.join("host/authority/ca.key"), "bad.qcow2");
        let error = format!("{:#}", place.files.check_backing(&bad).unwrap_err());
        assert!(error.contains("based on") && error.contains("vm_folders"), "{error}");
    }
}
