//! The files of a guest before they become a disk.
//!
//! Content is staged in a directory of the host; owners, modes and times are kept in memory, because an ordinary user cannot
//! give files away. Paths are guest paths without a leading slash, and symbolic links among the directories of a path are
//! followed *within the guest*, so nothing is ever written outside the staging directory, whatever a package holds.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::ImageError;

/// Most symbolic links followed for one path, as in Linux.
const SYMLINKS_MAX: usize = 40;
/// Longest path stored.
const PATH_LEN_MAX: usize = 4096;

/// What a node of the tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file; its content is in the staging directory.
    File {
        /// Size in bytes.
        size_bytes: u64,
        /// Its capabilities, as the kernel keeps them in `security.capability`.
        capability: Option<Vec<u8>>,
    },
    /// A symbolic link and its target.
    Symlink(String),
    /// A further name of the regular file at that path.
    HardLink(String),
}

/// Owner, permissions and time of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, including set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime_s: u32,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// A file, a folder, a link or a device, with what it holds.
    pub kind: Kind,
    /// Its owner, mode and time of change.
    pub attributes: Attributes,
}

/// A tree of guest files.
pub struct Tree {
    staging: PathBuf,
    nodes: BTreeMap<String, Node>,
    /// Time given to what the builder itself writes.
    mtime_s: u32,
}

impl Tree {
    /// An empty tree staged in the new directory `staging`. `/usr` is merged: `/bin`, `/sbin`, `/lib*` are links into it.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the directory exists or cannot be made.
    pub fn create(staging: &Path, mtime_s: u32) -> Result<Self, ImageError> {
        fs::create_dir(staging).map_err(ImageError::at(staging))?;
        let mut tree = Self { staging: staging.to_path_buf(), nodes: BTreeMap::new(), mtime_s };
        tree.directory("usr", 0o755)?;
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            tree.directory(&format!("usr/{name}"), 0o755)?;
            tree.symlink(name, &format!("usr/{name}"))?;
        }
        Ok(tree)
    }

    /// Where the content is.
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Where the content of the guest path `path` is.
    pub fn staged(&self, path: &str) -> PathBuf {
        self.staging.join(path)
    }

    /// All nodes, parents before children.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The node at `path`, links among its directories followed.
    #[cfg(test)]
    fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.resolve(path, false)?)
    }

    /// Whether `path` exists, links followed to their end.
    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path, true).is_some_and(|p| p.is_empty() || self.nodes.contains_key(&p))
    }

    /// Names in the directory `path`, sorted.
    pub fn list(&self, path: &str) -> Vec<String> {
        let Some(resolved) = self.resolve(path, true) else { return Vec::new() };
        let prefix = if resolved.is_empty() { resolved } else { resolved + "/" };
        self.nodes
            .range(prefix.clone()..)
            .take_while(|(p, _)| p.starts_with(&prefix))
            .filter_map(|(p, _)| p.get(prefix.len()..).filter(|name| !name.contains('/')).map(str::to_owned))
            .collect()
    }

    /// The content of the regular file at `path`.
    ///
    /// # Errors
    /// [`ImageError::Io`] if there is none.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        let resolved = self.resolve(path, true).unwrap_or_else(|| path.to_owned());
        let staged = self.staged(&resolved);
        match self.nodes.get(&resolved) {
            Some(Node { kind: Kind::File { .. } | Kind::HardLink(_), .. }) => {
                fs::read(&staged).map_err(ImageError::at(&staged))
            }
            _ => Err(ImageError::io(staged, io::ErrorKind::NotFound.into())),
        }
    }

    /// Makes the directory `path` and its parents, or changes the mode of an existing one.
    ///
    /// # Errors
    /// [`ImageError::Io`], also when something else than a directory is in the way.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), ImageError> {
        let attributes = self.own(mode);
        self.put_directory(path, attributes)
    }

    /// Writes a regular file owned by root, replacing what is there.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn file(&mut self, path: &str, contents: impl AsRef<[u8]>, mode: u32) -> Result<(), ImageError> {
        let attributes = self.own(mode);
        self.put_file(path, &mut contents.as_ref(), attributes)
    }

    /// Adds text to the regular file at `path`, whose owner and mode stay.
    ///
    /// # Errors
    /// [`ImageError::Io`], also if it is not there.
    pub fn append(&mut self, path: &str, text: &str) -> Result<(), ImageError> {
        let mut contents = self.read(path)?;
        contents.extend_from_slice(text.as_bytes());
        let resolved = self.resolve(path, true).unwrap_or_else(|| path.to_owned());
        let attributes = match self.nodes.get(&resolved) {
            Some(node) => Attributes { mtime_s: self.mtime_s, ..node.attributes },
            None => self.own(0o644),
        };
        self.put_file(&resolved, &mut contents.as_slice(), attributes)
    }

    /// Makes a symbolic link owned by root, replacing a file or link that is there.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), ImageError> {
        let attributes = self.own(0o777);
        self.put_symlink(path, target, attributes)
    }

    /// Removes the file or link at `path`, or the whole directory.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn remove(&mut self, path: &str) -> Result<(), ImageError> {
        let Some(resolved) = self.resolve(path, false).filter(|p| !p.is_empty()) else { return Ok(()) };
        let Some(node) = self.nodes.remove(&resolved) else { return Ok(()) };
        let staged = self.staged(&resolved);
        if node.kind == Kind::Directory {
            let prefix = format!("{resolved}/");
            self.nodes.retain(|p, _| !p.starts_with(&prefix));
            fs::remove_dir_all(&staged).map_err(ImageError::at(&staged))
        } else {
            fs::remove_file(&staged).map_err(ImageError::at(&staged))
        }
    }

    /// Takes in a file that a program has written into the staging directory.
    ///
    /// # Errors
    /// [`ImageError::Io`] if it is not there.
    pub fn adopt(&mut self, path: &str, mode: u32) -> Result<(), ImageError> {
        let resolved = self.resolve(path, true).unwrap_or_else(|| path.to_owned());
        let staged = self.staged(&resolved);
        let size_bytes = fs::symlink_metadata(&staged).map_err(ImageError::at(&staged))?.len();
        let attributes = self.own(mode);
        self.nodes.insert(resolved, Node { kind: Kind::File { size_bytes, capability: None }, attributes });
        Ok(())
    }

    /// Gives the regular file at `path` capabilities, whatever name of it that is. Nothing else has any.
    pub fn set_capability(&mut self, path: &[u8], bytes: Vec<u8>) {
        let Some(mut resolved) = guest_path(path).ok().and_then(|path| self.resolve(&path, false)) else { return };
        if let Some(Node { kind: Kind::HardLink(first), .. }) = self.nodes.get(&resolved) {
            resolved = first.clone();
        }
        if let Some(Node { kind: Kind::File { capability, .. }, .. }) = self.nodes.get_mut(&resolved) {
            *capability = Some(bytes);
        }
    }

    /// Unpacks a tar archive, leaving out the paths that `wanted` refuses.
    ///
    /// # Errors
    /// [`ImageError::BadPackage`] for what a package must not hold, [`ImageError::Io`].
    pub fn unpack(
        &mut self,
        package: &str,
        archive: impl Read,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), ImageError> {
        let bad = |reason: String| ImageError::BadPackage { package: package.to_owned(), reason };
        let unreadable = |e: io::Error| bad(format!("cannot be read: {e}"));
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let path = guest_path(&entry.path_bytes()).map_err(&bad)?;
            if path.is_empty() || !wanted(&path) {
                continue;
            }
            let header = entry.header();
            let id =
                |id: io::Result<u64>| u32::try_from(id.map_err(unreadable)?).map_err(|_| bad(format!("{path}: owner")));
            let attributes = Attributes {
                mode: header.mode().map_err(unreadable)? & 0o7777,
                uid: id(header.uid())?,
                gid: id(header.gid())?,
                mtime_s: u32::try_from(header.mtime().map_err(unreadable)?).unwrap_or(self.mtime_s),
            };
            let link = || -> Result<Vec<u8>, ImageError> {
                let link = entry.link_name_bytes().ok_or_else(|| bad(format!("{path}: a link without a target")))?;
                Ok(link.into_owned())
            };
            match header.entry_type() {
                tar::EntryType::Directory => self.put_directory(&path, attributes)?,
                tar::EntryType::Regular | tar::EntryType::Continuous => self.put_file(&path, &mut entry, attributes)?,
                tar::EntryType::Symlink => {
                    let target = String::from_utf8(link()?).map_err(|_| bad(format!("{path}: target is not UTF-8")))?;
                    self.put_symlink(&path, &target, attributes)?;
                }
                tar::EntryType::Link => {
                    let target = guest_path(&link()?).map_err(&bad)?;
                    self.put_hard_link(&path, &target, attributes).map_err(|e| bad(e.to_string()))?;
                }
                other => return Err(bad(format!("{path}: entries of type {other:?} are not supported"))),
            }
        }
        Ok(())
    }

    fn own(&self, mode: u32) -> Attributes {
        Attributes { mode, uid: 0, gid: 0, mtime_s: self.mtime_s }
    }

    fn put_directory(&mut self, path: &str, attributes: Attributes) -> Result<(), ImageError> {
        // A directory in a package does not replace a link to a directory: that is how merged /usr works.
        let resolved = self.place(path, true)?;
        if resolved.is_empty() {
            return Ok(());
        }
        let staged = self.staged(&resolved);
        match self.nodes.get_mut(&resolved) {
            Some(node) if node.kind == Kind::Directory => node.attributes = attributes,
            Some(_) => return Err(ImageError::io(staged, io::ErrorKind::AlreadyExists.into())),
            None => {
                fs::create_dir(&staged).map_err(ImageError::at(&staged))?;
                self.nodes.insert(resolved, Node { kind: Kind::Directory, attributes });
            }
        }
        Ok(())
    }

    fn put_file(&mut self, path: &str, contents: &mut dyn Read, attributes: Attributes) -> Result<(), ImageError> {
        let resolved = self.vacate(path)?;
        let staged = self.staged(&resolved);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(staged_mode(attributes.mode))
            .open(&staged)
            .map_err(ImageError::at(&staged))?;
        let size_bytes = io::copy(contents, &mut file).map_err(ImageError::at(&staged))?;
        self.nodes.insert(resolved, Node { kind: Kind::File { size_bytes, capability: None }, attributes });
        Ok(())
    }

    fn put_symlink(&mut self, path: &str, target: &str, attributes: Attributes) -> Result<(), ImageError> {
        let resolved = self.vacate(path)?;
        let staged = self.staged(&resolved);
        symlink(target, &staged).map_err(ImageError::at(&staged))?;
        self.nodes.insert(resolved, Node { kind: Kind::Symlink(target.to_owned()), attributes });
        Ok(())
    }

    fn put_hard_link(&mut self, path: &str, target: &str, attributes: Attributes) -> Result<(), ImageError> {
        let missing = || ImageError::io(self.staged(target), io::ErrorKind::NotFound.into());
        let first = self.resolve(target, false).ok_or_else(missing)?;
        let first = match self.nodes.get(&first) {
            Some(Node { kind: Kind::File { .. }, .. }) => first,
            Some(Node { kind: Kind::HardLink(first), .. }) => first.clone(),
            _ => return Err(missing()),
        };
        let resolved = self.vacate(path)?;
        let staged = self.staged(&resolved);
        fs::hard_link(self.staged(&first), &staged).map_err(ImageError::at(&staged))?;
        self.nodes.insert(resolved, Node { kind: Kind::HardLink(first), attributes });
        Ok(())
    }

    /// Makes `path` free for a new file or link and returns where it is.
    fn vacate(&mut self, path: &str) -> Result<String, ImageError> {
        let resolved = self.place(path, false)?;
        let staged = self.staged(&resolved);
        match self.nodes.get(&resolved).map(|n| &n.kind) {
            None => {}
            Some(Kind::Directory) => return Err(ImageError::io(staged, io::ErrorKind::IsADirectory.into())),
            Some(kind) => {
                if matches!(kind, Kind::File { .. }) {
                    self.promote_hard_link(&resolved);
                }
                fs::remove_file(&staged).map_err(ImageError::at(&staged))?;
                self.nodes.remove(&resolved);
            }
        }
        Ok(resolved)
    }

    /// Before the file at `path` goes, lets another of its names hold the content.
    fn promote_hard_link(&mut self, path: &str) {
        let Some(kind) = self.nodes.get(path).map(|n| n.kind.clone()) else { return };
        let mut names =
            self.nodes.iter_mut().filter(|(_, n)| matches!(&n.kind, Kind::HardLink(first) if first == path));
        let Some((new_first, node)) = names.next() else { return };
        let new_first = new_first.clone();
        node.kind = kind;
        for (_, node) in names {
            node.kind = Kind::HardLink(new_first.clone());
        }
    }

    /// Resolves `path` and makes the directories that it needs.
    fn place(&mut self, path: &str, follow_last: bool) -> Result<String, ImageError> {
        let looping = || ImageError::io(self.staged(path), io::ErrorKind::InvalidInput.into());
        let resolved = self.resolve(path, follow_last).ok_or_else(looping)?;
        let parents: Vec<usize> = resolved.match_indices('/').map(|(at, _)| at).collect();
        for end in parents {
            let Some(parent) = resolved.get(..end) else { continue };
            if !self.nodes.contains_key(parent) {
                let attributes = self.own(0o755);
                let staged = self.staged(parent);
                fs::create_dir(&staged).map_err(ImageError::at(&staged))?;
                self.nodes.insert(parent.to_owned(), Node { kind: Kind::Directory, attributes });
            }
        }
        Ok(resolved)
    }

    /// The path that `path` means once links among its directories (and, if `follow_last`, its last part) are followed.
    /// `None` when there are too many.
    fn resolve(&self, path: &str, follow_last: bool) -> Option<String> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done = String::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.truncate(done.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let candidate = if done.is_empty() { part } else { format!("{done}/{part}") };
            if candidate.len() > PATH_LEN_MAX {
                return None;
            }
            match self.nodes.get(&candidate).map(|n| &n.kind) {
                Some(Kind::Symlink(target)) if follow_last || todo.iter().any(|p| !p.is_empty() && p != ".") => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        return None;
                    }
                    if target.starts_with('/') {
                        done.clear();
                    }
                    todo.extend(target.split('/').rev().map(str::to_owned));
                }
                _ => done = candidate,
            }
        }
        Some(done)
    }
}

/// Mode of a staged file: executable where the guest's is, so that programs can be run from the tree, and always readable to us.
pub(crate) fn staged_mode(mode: u32) -> u32 {
    mode & 0o755 | 0o600
}

/// A package's path as a guest path: relative, without `.` and `..`, UTF-8, without control characters.
fn guest_path(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a path is not UTF-8".to_owned())?;
    if text.len() > PATH_LEN_MAX || text.chars().any(char::is_control) {
        return Err(format!("{text:?} is not a usable path"));
    }
    let parts: Vec<_> = text.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("{text:?} leaves the package"));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, path, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(9);
            // Written raw: the safe setter refuses the paths that these tests are about.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            if kind.is_file() {
                header.set_size(data.len() as u64);
            } else {
                header.set_size(0);
                header.as_gnu_mut().unwrap().linkname[..data.len()].copy_from_slice(data.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if kind.is_file() { data.as_bytes() } else { &[] }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::create(&dir.path().join("root"), 1).unwrap();
        (dir, tree)
    }

    #[test]
    fn packages_unpack_through_merged_usr() {
        use tar::EntryType as T;
        let (_dir, mut tree) = tree();
        let tar = archive(&[
            (T::Directory, "./bin/", ""),
            (T::Regular, "./bin/dash", "#!"),
            (T::Symlink, "./bin/sh", "dash"),
        ]);
        tree.unpack("dash.deb", &tar[..], |_| true).unwrap();
        let node = tree.get("usr/bin/dash").unwrap();
        assert_eq!(node.kind, Kind::File { size_bytes: 2, capability: None });
        assert_eq!(node.attributes, Attributes { mode: 0o4755, uid: 7, gid: 8, mtime_s: 9 });
        assert_eq!(tree.read("bin/sh").unwrap(), b"#!");
        assert_eq!(tree.get("bin").unwrap().kind, Kind::Symlink("usr/bin".into()));
        assert_eq!(tree.list("/bin"), ["dash", "sh"]);
    }

    #[test]
    fn nothing_leaves_the_staging_directory() {
        use tar::EntryType as T;
        let (dir, mut tree) = tree();
        let escape = archive(&[(T::Regular, "../evil", "x")]);
        assert!(matches!(tree.unpack("evil.deb", &escape[..], |_| true), Err(ImageError::BadPackage { .. })));
        let absolute = archive(&[(T::Symlink, "out", "/../../../tmp"), (T::Regular, "out/file", "x")]);
        tree.unpack("evil.deb", &absolute[..], |_| true).unwrap();
        assert!(tree.get("tmp/file").is_some());
        assert!(dir.path().join("root/tmp/file").is_file());
        let looping = archive(&[(T::Symlink, "a", "b"), (T::Symlink, "b", "a"), (T::Regular, "a/x", "x")]);
        assert!(tree.unpack("evil.deb", &looping[..], |_| true).is_err());
        let device = archive(&[(T::Block, "disk", "")]);
        assert!(matches!(tree.unpack("evil.deb", &device[..], |_| true), Err(ImageError::BadPackage { .. })));
    }

    #[test]
    fn truncated_archives_are_errors() {
        let (_dir, mut tree) = tree();
        let tar = archive(&[(tar::EntryType::Regular, "file", &"x".repeat(5000))]);
        assert!(tree.unpack("short.deb", &tar[..1000], |_| true).is_err());
    }

    #[test]
    fn hard_links_survive_replacement_of_the_first_name() {
        use tar::EntryType as T;
        let (_dir, mut tree) = tree();
        let tar =
            archive(&[(T::Regular, "a", "one"), (T::Link, "b", "a"), (T::Link, "c", "b"), (T::Regular, "a", "two")]);
        tree.unpack("links.deb", &tar[..], |_| true).unwrap();
        assert_eq!(tree.get("b").unwrap().kind, Kind::File { size_bytes: 3, capability: None });
        assert_eq!(tree.get("c").unwrap().kind, Kind::HardLink("b".into()));
        assert_eq!((tree.read("a").unwrap(), tree.read("c").unwrap()), (b"two".to_vec(), b"one".to_vec()));
    }

    #[test]
    fn capabilities_are_those_of_the_file_and_go_when_it_is_written_anew() {
        use tar::EntryType as T;
        let (_dir, mut tree) = tree();
        let tar = archive(&[
            (T::Regular, "usr/bin/ping", "one"),
            (T::Link, "usr/bin/ping6", "usr/bin/ping"),
            (T::Symlink, "usr/bin/p", "ping"),
        ]);
        tree.unpack("ping.deb", &tar[..], |_| true).unwrap();
        let capability = |tree: &Tree| match &tree.get("usr/bin/ping").unwrap().kind {
            Kind::File { capability, .. } => capability.clone(),
            other => panic!("{other:?}"),
        };
        for path in [&b"./usr/bin/p"[..], b"./usr/bin", b"./usr/bin/missing", b"../usr/bin/ping", b"\xff"] {
            tree.set_capability(path, vec![9]);
            assert_eq!(capability(&tree), None);
        }
        // By any of its names, also through links among the directories.
        for (path, value) in [(&b"./bin/ping"[..], 7), (b"usr/bin/ping6", 8)] {
            tree.set_capability(path, vec![value]);
            assert_eq!(capability(&tree), Some(vec![value]));
        }
        tree.append("usr/bin/ping", "two").unwrap();
        assert_eq!(capability(&tree), None, "another content has the rights of the one before");
    }

    #[test]
    fn removal_takes_whole_directories() {
        let (_dir, mut tree) = tree();
        tree.file("var/cache/x/y", "1", 0o600).unwrap();
        tree.file("var/cachet", "1", 0o600).unwrap();
        tree.remove("var/cache").unwrap();
        assert!(!tree.exists("var/cache/x/y") && tree.exists("var/cachet"));
        assert!(!tree.staged("var/cache").exists());
    }
}
