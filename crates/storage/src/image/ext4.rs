//! Makes an ext4 disk from a tree without root: `mke2fs` makes an empty file system and `debugfs` fills it in sorted order, so
//! that neither the host's directory order nor its clock shows in the bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::command::{Stream, command, run, run_checked};
use super::tree::{Attributes, Kind, Tree, staged_mode};
use super::{ImageError, Progress, Stage};

/// Identifier of every root file system and seed of its directory hashes. Fixed, so that images are reproducible; a guest's
/// disk is named by its place on the machine, not by this.
const UUID: &str = "74776e76-6d00-4000-8000-000000000001";

/// Left out: what makes the guest compute checksums of metadata (`metadata_csum`), and what old tools do not know.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize";

/// What debugfs prints for each command that makes a node.
const NODE_COMMANDS: [&str; 4] = ["debugfs: write ", "debugfs: mkdir ", "debugfs: symlink ", "debugfs: ln "];

const BLOCK_BYTES: u64 = 4096;
/// Journal of a root disk.
const JOURNAL_MIB: u64 = 16;
/// Bytes of disk per inode; mke2fs's default.
const BYTES_PER_INODE: u64 = 16384;

/// Writes `tree` into the new file `path` of `size_bytes`, with `mtime_s` as the file system's time.
pub(crate) fn write(
    path: &Path,
    size_bytes: u64,
    tree: &Tree,
    mtime_s: u32,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    let nodes = u64::try_from(tree.nodes().count()).unwrap_or(u64::MAX);
    let needed_bytes = needed_bytes(tree);
    // Small disks get as many inodes as the tree needs and some to live on.
    let inodes = (size_bytes / BYTES_PER_INODE).max(nodes.saturating_mul(2));
    let overhead_bytes = inodes * 256 + (JOURNAL_MIB << 20) + size_bytes / 64;
    let too_small = || ImageError::DiskTooSmall { needed_bytes: needed_bytes + overhead_bytes, disk_bytes: size_bytes };
    if needed_bytes + overhead_bytes > size_bytes {
        return Err(too_small());
    }
    let file = fs::File::create_new(path).map_err(ImageError::at(path))?;
    file.set_len(size_bytes).map_err(ImageError::at(path))?;
    drop(file);

    let mut mke2fs = command("mke2fs");
    mke2fs.env("E2FSPROGS_FAKE_TIME", mtime_s.to_string());
    // The host's mke2fs.conf could add features.
    mke2fs.env("MKE2FS_CONFIG", "/dev/null");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "root"]);
    mke2fs.args(["-O", FEATURES, "-U", UUID, "-N", &inodes.to_string()]);
    mke2fs.args(["-J", &format!("size={JOURNAL_MIB}")]);
    mke2fs.args(["-E", &format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0")]);
    mke2fs.arg(path);
    run_checked(mke2fs, "e2fsprogs", progress)?;

    let script_path = path.with_extension("debugfs");
    let mut capabilities = Capabilities { beside: path, files: BTreeMap::new() };
    fs::write(&script_path, script(tree, &mut capabilities)?).map_err(ImageError::at(&script_path))?;
    let mut debugfs = command("debugfs");
    debugfs.env("E2FSPROGS_FAKE_TIME", mtime_s.to_string()).env("DEBUGFS_PAGER", "cat");
    debugfs.arg("-w").arg("-f").arg(&script_path).arg(path);
    let mut done = 0;
    let mut first_error = None;
    // debugfs goes on after an error and exits with 0: anything but its greeting on standard error counts.
    let finished = run(debugfs, "e2fsprogs", progress, |progress, stream, line| {
        // Each command is printed as it is run.
        if stream == Stream::Stdout && NODE_COMMANDS.iter().any(|command| line.starts_with(command)) {
            done += 1;
            progress.update(Stage::RootDisk, done, nodes);
        } else if stream == Stream::Stderr && !line.starts_with("debugfs 1.") && !line.trim().is_empty() {
            first_error.get_or_insert_with(|| line.to_owned());
        }
    })?;
    for file in capabilities.files.values().chain([&script_path]) {
        fs::remove_file(file).map_err(ImageError::at(file))?;
    }
    match first_error {
        None if finished.status.success() => {}
        Some(line) if line.contains("Could not allocate") || line.contains("No free space") => return Err(too_small()),
        error => {
            let reason = error.unwrap_or_else(|| finished.reason());
            return Err(ImageError::Program { program: "debugfs".to_owned(), reason });
        }
    }
    let mut check = command("e2fsck");
    check.env("E2FSPROGS_FAKE_TIME", mtime_s.to_string()).args(["-f", "-n"]).arg(path);
    run_checked(check, "e2fsprogs", progress)?;
    let file = fs::File::open(path).map_err(ImageError::at(path))?;
    file.sync_all().map_err(ImageError::at(path))
}

fn needed_bytes(tree: &Tree) -> u64 {
    tree.nodes()
        .map(|(_, node)| match node.kind {
            Kind::File { size_bytes, .. } => size_bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES,
            Kind::Directory => BLOCK_BYTES,
            Kind::Symlink(_) | Kind::HardLink(_) => 0,
        })
        .sum()
}

/// Files with the values of capabilities, which debugfs reads: they are no text.
struct Capabilities<'a> {
    beside: &'a Path,
    files: BTreeMap<Vec<u8>, PathBuf>,
}

impl Capabilities<'_> {
    /// The name of a file that holds this value, for debugfs.
    fn file(&mut self, value: &[u8]) -> Result<String, ImageError> {
        if !self.files.contains_key(value) {
            let path = self.beside.with_extension(format!("capability-{}", self.files.len()));
            fs::write(&path, value).map_err(ImageError::at(&path))?;
            self.files.insert(value.to_vec(), path);
        }
        host_path(self.files.get(value).map_or(self.beside, PathBuf::as_path))
    }
}

/// The name of a file of the host's, for debugfs.
fn host_path(path: &Path) -> Result<String, ImageError> {
    quoted(path.to_str().ok_or_else(|| unusable(&path.to_string_lossy()))?)
}

/// The commands that fill the file system. Names are always relative to a directory entered with `cd`: `write` takes its
/// target as a plain name.
fn script(tree: &Tree, capabilities: &mut Capabilities<'_>) -> Result<String, ImageError> {
    let mut script = String::new();
    let mut hard_links = Vec::new();
    let mut current = None;
    for (path, node) in tree.nodes() {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if current != Some(parent) {
            writeln!(script, "cd {}", quoted(&format!("/{parent}"))?).expect("writing to a string");
            current = Some(parent);
        }
        let name = quoted(name)?;
        let default_mode = match &node.kind {
            Kind::Directory => {
                writeln!(script, "mkdir {name}").expect("writing to a string");
                0o755
            }
            Kind::File { .. } => {
                let staged = host_path(&tree.staged(path))?;
                writeln!(script, "write {staged} {name}").expect("writing to a string");
                staged_mode(node.attributes.mode)
            }
            Kind::Symlink(target) => {
                writeln!(script, "symlink {name} {}", quoted(target)?).expect("writing to a string");
                0o777
            }
            Kind::HardLink(first) => {
                hard_links.push((first.as_str(), path));
                continue;
            }
        };
        set_attributes(&mut script, &name, &node.kind, &node.attributes, default_mode);
        if let Kind::File { capability: Some(value), .. } = &node.kind {
            let file = capabilities.file(value)?;
            writeln!(script, "ea_set -f {file} {name} security.capability").expect("writing to a string");
        }
    }
    hard_links.sort_unstable();
    let mut links = 1;
    for (index, (first, path)) in hard_links.iter().enumerate() {
        let first_quoted = quoted(&format!("/{first}"))?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        links += 1;
        writeln!(script, "cd {}", quoted(&format!("/{parent}"))?).expect("writing to a string");
        writeln!(script, "ln {first_quoted} {}", quoted(name)?).expect("writing to a string");
        if hard_links.get(index + 1).is_none_or(|next| next.0 != *first) {
            writeln!(script, "sif {first_quoted} links_count {links}").expect("writing to a string");
            links = 1;
        }
    }
    Ok(script)
}

fn set_attributes(script: &mut String, name: &str, kind: &Kind, attributes: &Attributes, default_mode: u32) {
    let mut set = |field: &str, value: String| {
        writeln!(script, "sif {name} {field} {value}").expect("writing to a string");
    };
    if attributes.mode != default_mode && !matches!(kind, Kind::Symlink(_)) {
        let file_type = if *kind == Kind::Directory { 0o040_000 } else { 0o100_000 };
        set("mode", format!("0{:o}", file_type | attributes.mode));
    }
    if attributes.uid != 0 {
        set("uid", attributes.uid.to_string());
    }
    if attributes.gid != 0 {
        set("gid", attributes.gid.to_string());
    }
    set("mtime", format!("@{}", attributes.mtime_s));
}

/// Quotes for debugfs's reader, in which `""` inside quotes is a quote.
fn quoted(text: &str) -> Result<String, ImageError> {
    if text.chars().any(char::is_control) {
        return Err(unusable(text));
    }
    Ok(format!("\"{}\"", text.replace('"', "\"\"")))
}

fn unusable(path: &str) -> ImageError {
    ImageError::Program { program: "debugfs".to_owned(), reason: format!("the path {path:?} cannot be written to it") }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::image::NoProgress;
    use crate::image::capabilities::tests::{OVERRIDE_AND_OWNER, RAW};

    const TIME_S: u32 = 1_700_000_000;

    fn sample(dir: &Path) -> Tree {
        let mut tree = Tree::create(&dir.join("root"), TIME_S).unwrap();
        tree.file("usr/bin/su", "x".repeat(10_000), 0o4755).unwrap();
        tree.file("etc/a name with \"quotes\" and 'spaces'", "odd", 0o600).unwrap();
        tree.file("var/lib/service/data", "", 0o640).unwrap();
        let mut service = tar::Header::new_gnu();
        service.set_entry_type(tar::EntryType::Directory);
        service.set_mode(0o750);
        service.set_uid(101);
        service.set_gid(102);
        service.set_mtime(TIME_S.into());
        service.set_size(0);
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_data(&mut service, "var/lib/service", &[][..]).unwrap();
        tree.unpack("service.deb", &archive.into_inner().unwrap()[..], |_| true).unwrap();
        tree.symlink("etc/link", "../usr/bin/su").unwrap();
        for (name, value) in [("ping", RAW), ("mtr", RAW), ("odd \"one\"", OVERRIDE_AND_OWNER)] {
            tree.file(&format!("usr/bin/{name}"), name, 0o755).unwrap();
            tree.set_capability(format!("usr/bin/{name}").as_bytes(), value.to_vec());
        }
        tree.directory("tmp", 0o1777).unwrap();
        for index in 0..300 {
            tree.file(&format!("usr/share/many/file{index}"), format!("{index}"), 0o644).unwrap();
        }
        tree
    }

    fn debugfs(image: &Path, request: &str) -> String {
        let output = Command::new("/usr/sbin/debugfs").arg("-R").arg(request).arg(image).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn owners_modes_and_odd_names_reach_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        write(&image, 64 << 20, &sample(dir.path()), TIME_S, &mut NoProgress).unwrap();
        let su = debugfs(&image, "stat /bin/su");
        assert!(su.contains("Mode:  04755") && su.contains("Size: 10000"), "{su}");
        let service = debugfs(&image, "stat /var/lib/service");
        assert!(service.contains("User:   101   Group:   102"), "{service}");
        assert!(debugfs(&image, "stat /tmp").contains("Mode:  01777"));
        assert!(debugfs(&image, "stat /etc/link").contains("Fast link dest: \"../usr/bin/su\""));
        assert_eq!(debugfs(&image, "cat \"/etc/a name with \"\"quotes\"\" and 'spaces'\""), "odd");
        assert_eq!(debugfs(&image, "cat /usr/share/many/file299"), "299");
    }

    /// `ping` and `mtr` of an ordinary user had no right to their sockets.
    #[test]
    fn capabilities_of_programs_reach_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        write(&image, 64 << 20, &sample(dir.path()), TIME_S, &mut NoProgress).unwrap();
        let listed = |path: &str| debugfs(&image, &format!("ea_list {path}"));
        for path in ["/bin/ping", "/usr/bin/mtr"] {
            assert!(listed(path).contains("security.capability (20) = 01 00 00 02 00 20 00 "), "{}", listed(path));
        }
        let odd = listed("\"/bin/odd \"\"one\"\"\"");
        assert!(odd.contains("security.capability (20) = 01 00 00 02 0a 00 00 "), "{odd}");
        assert!(!listed("/bin/su").contains("capability"));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let disks = [0, 1].map(|_| {
            let dir = tempfile::tempdir().unwrap();
            let image = dir.path().join("disk");
            write(&image, 64 << 20, &sample(dir.path()), TIME_S, &mut NoProgress).unwrap();
            fs::read(image).unwrap()
        });
        assert!(disks[0] == disks[1]);
    }

    #[test]
    fn a_tree_too_big_for_the_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = sample(dir.path());
        tree.file("big", vec![1; 60 << 20], 0o644).unwrap();
        let result = write(&dir.path().join("disk"), 64 << 20, &tree, TIME_S, &mut NoProgress);
        assert!(matches!(result, Err(ImageError::DiskTooSmall { .. })));
    }
}
