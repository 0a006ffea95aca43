//! The machine's second disk: what is tested, and with which guests.

use std::collections::BTreeMap;
use std::fs;
use std::iter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use storage::image::Image;
use tempfile::TempDir;

use crate::support::emulated::SHELL;
use crate::support::emulated::disk::{copy_image, copy_program, make};
use crate::support::guest::images_dir;

/// Size of the disk in bytes; what is not used takes no space.
const SIZE_BYTES: u64 = 16 << 30;

/// An ext4 disk with these `programs` in `bin/`, without what only debuggers read, and these guests' `images`.
pub fn disk(programs: &BTreeMap<&str, &Path>, images: &[Image], folder: &Path) -> PathBuf {
    let tree = TempDir::new_in(folder).unwrap();
    let bin = tree.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let twinvm = env!("CARGO_BIN_EXE_twinvm");
    for (name, program) in programs.iter().chain([(&"twinvm", &Path::new(twinvm))]) {
        copy_program(program, &bin.join(name));
    }
    fs::copy(pgbench(), bin.join("pgbench")).unwrap();
    fs::write(tree.path().join("twinvm-path"), format!("{twinvm}\n")).unwrap();
    let agent = tree.path().join("agent");
    fs::write(&agent, include_bytes!("agent")).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(tree.path().join("shell"), SHELL).unwrap();
    let copies = tree.path().join("images");
    fs::create_dir(&copies).unwrap();
    for image in images {
        copy_image(image, &copies);
    }
    let disk = folder.join("job.img");
    make(tree.path(), &disk, SIZE_BYTES);
    disk
}

/// The program itself: what is on the path may be Debian's script that looks for it.
fn pgbench() -> PathBuf {
    let unpacked = images_dir().parent().unwrap().join("tools/pgbench");
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let installed = versions.map(|version| version.path().join("bin/pgbench"));
    iter::once(unpacked).chain(installed).find(|path| path.exists()).expect("`make setup` brings pgbench")
}
