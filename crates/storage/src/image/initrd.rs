//! The initial RAM disk: an uncompressed cpio archive ("newc", Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::Command;

use super::ImageError;
use super::command::spawn_error;
use super::tree::Tree;

/// `/init`.
pub(crate) const INIT: &str = include_str!("../../guest/init");

/// Modules that a guest of ours may need before its root disk is there. A kernel that has one built in is fine too.
const MODULES: [&str; 10] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "pvpanic_mmio",
    "button",
    "evdev",
    // ext4 asks for the sums by another name than their module's.
    "crc32c_generic",
    "ext4",
];

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes the initial RAM disk for kernel `release`, whose modules and busybox are in `tree`; it also loads the modules `further`.
pub(crate) fn write(
    path: &Path,
    tree: &Tree,
    release: &str,
    further: &[String],
    mtime_s: u32,
) -> Result<(), ImageError> {
    let file = fs::File::create(path).map_err(ImageError::at(path))?;
    let mut cpio = Cpio { out: BufWriter::new(file), next_inode: 1, offset: 0, mtime_s };
    write_entries(&mut cpio, tree, release, further)?.map_err(ImageError::at(path))
}

fn write_entries<W: Write>(
    cpio: &mut Cpio<W>,
    tree: &Tree,
    release: &str,
    further: &[String],
) -> Result<io::Result<()>, ImageError> {
    let modules = modules_with_dependencies(tree, release, further)?;
    let module_dir = format!("lib/modules/{release}");
    let mut contents = Vec::new();
    let mut dependency_lines = String::new();
    for module in &modules {
        let name = plain_file_name(&module.path);
        contents.push((format!("{module_dir}/{name}"), decompress_module(tree, &module_dir, &module.path)?));
        let needs: Vec<&str> = module.needs.iter().map(|n| plain_file_name(n)).collect();
        dependency_lines += format!("{name}: {}", needs.join(" ")).trim_end();
        dependency_lines.push('\n');
    }
    let busybox = tree.read("bin/busybox")?;
    Ok((|| {
        for dir in ["bin", "dev", "etc", "lib", "lib/modules", &module_dir, "proc", "root", "run", "sbin", "sys", "tmp"]
        {
            cpio.entry(dir, S_IFDIR | 0o755, 0, &[])?;
        }
        // The kernel opens it for init before anything is mounted.
        cpio.entry("dev/console", S_IFCHR | 0o600, 5 << 8 | 1, &[])?;
        cpio.entry("init", S_IFREG | 0o755, 0, INIT.as_bytes())?;
        cpio.entry("bin/busybox", S_IFREG | 0o755, 0, &busybox)?;
        cpio.entry("bin/sh", S_IFLNK | 0o777, 0, b"busybox")?;
        // Those that a shell would not find as its own applets.
        for program in ["poweroff", "reboot", "halt", "modprobe", "udhcpc"] {
            cpio.entry(&format!("sbin/{program}"), S_IFLNK | 0o777, 0, b"../bin/busybox")?;
        }
        for (path, content) in &contents {
            cpio.entry(path, S_IFREG | 0o644, 0, content)?;
        }
        cpio.entry(&format!("{module_dir}/modules.dep"), S_IFREG | 0o644, 0, dependency_lines.as_bytes())?;
        if !further.is_empty() {
            cpio.entry("etc/modules", S_IFREG | 0o644, 0, format!("{}\n", further.join(" ")).as_bytes())?;
        }
        cpio.finish()
    })())
}

struct Module {
    /// Path below the modules directory.
    path: String,
    /// What must be loaded first, the first last, as `modules.dep` has it.
    needs: Vec<String>,
}

/// [`MODULES`], those named and what all of them depend on, in a fixed order, from depmod's `modules.dep`.
fn modules_with_dependencies(tree: &Tree, release: &str, further: &[String]) -> Result<Vec<Module>, ImageError> {
    let text = tree.read(&format!("lib/modules/{release}/modules.dep"))?;
    let text = String::from_utf8_lossy(&text);
    let all: Vec<Module> = text
        .lines()
        .filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            Some(Module { path: path.to_owned(), needs: needs.split_whitespace().map(str::to_owned).collect() })
        })
        .collect();
    let wanted: BTreeSet<String> = all
        .iter()
        .filter(|m| {
            let name = module_name(&m.path);
            MODULES.contains(&name.as_str()) || further.contains(&name)
        })
        .flat_map(|m| m.needs.iter().chain([&m.path]).cloned())
        .collect();
    Ok(all.into_iter().filter(|m| wanted.contains(&m.path)).collect())
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the file of `virtio_rng`.
fn module_name(path: &str) -> String {
    let file = plain_file_name(path);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

/// The file name of a module once it is decompressed.
fn plain_file_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko.").map_or(file, |(stem, _)| file.get(..stem.len() + 3).unwrap_or(file))
}

/// The module at `path`, decompressed: the guest should not have to.
fn decompress_module(tree: &Tree, module_dir: &str, path: &str) -> Result<Vec<u8>, ImageError> {
    let guest_path = format!("{module_dir}/{path}");
    let (program, package) = match path.rsplit('.').next() {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return tree.read(&guest_path),
    };
    let staged = tree.staged(&format!("usr/{guest_path}"));
    let output =
        Command::new(program).arg("-dc").arg(&staged).output().map_err(|e| spawn_error(e, program, package))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ImageError::Program { program: program.to_owned(), reason });
    }
    Ok(output.stdout)
}

/// Writes a newc archive.
struct Cpio<W> {
    out: W,
    next_inode: u32,
    offset: usize,
    mtime_s: u32,
}

impl<W: Write> Cpio<W> {
    /// One entry, owned by root; `device` is major << 8 | minor.
    fn entry(&mut self, path: &str, mode: u32, device: u32, content: &[u8]) -> io::Result<()> {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.raw_entry(path, inode, mode, device, content)
    }

    fn raw_entry(&mut self, path: &str, inode: u32, mode: u32, device: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        let fields = [
            inode,
            mode,
            0,
            0,
            links,
            self.mtime_s,
            size,
            0,
            0,
            device >> 8,
            device & 0xff,
            u32::try_from(path.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?,
            0,
        ];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.put(format!("070701{header}{path}\0").as_bytes())?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.raw_entry("TRAILER!!!", 0, 0, 0, &[])?;
        self.out.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = self.offset.next_multiple_of(4) - self.offset;
        self.put(&[0; 4][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_files_have_names() {
        assert_eq!(module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz"), "virtio_rng");
        assert_eq!(module_name("kernel/drivers/virtio/virtio.ko"), "virtio");
        assert_eq!(plain_file_name("kernel/a/b.ko.zst"), "b.ko");
    }

    #[test]
    fn entries_are_aligned_and_headers_are_110_bytes() {
        let mut cpio = Cpio { out: Vec::new(), next_inode: 1, offset: 0, mtime_s: 0x1234 };
        cpio.entry("init", S_IFREG | 0o755, 0, b"hello").unwrap();
        cpio.finish().unwrap();
        let text = String::from_utf8(cpio.out).unwrap();
        assert_eq!(text.get(..6), Some("070701"));
        assert_eq!(text.get(6 + 8..6 + 16), Some("000081ed"));
        assert_eq!(text.get(6 + 48..6 + 56), Some("00000005"));
        assert_eq!(text.get(110..116), Some("init\0\0"));
        assert_eq!(text.get(116..124), Some("hello\0\0\0"));
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"));
        assert_eq!(text.len() % 4, 0);
    }
}
