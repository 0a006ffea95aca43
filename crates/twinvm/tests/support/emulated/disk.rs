//! Disks with what a machine is given beside its system.

use std::path::Path;
use std::process::Command;

use storage::image::Image;

/// Makes an ext4 disk of `size_bytes` that holds `tree`; what is not used takes no space.
pub fn make(tree: &Path, disk: &Path, size_bytes: u64) {
    let size = format!("{}k", size_bytes >> 10);
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0", "-d"]).arg(tree).arg(disk).arg(size));
}

/// Copies a program without what only debuggers read.
pub fn copy_program(program: &Path, to: &Path) {
    run(Command::new("strip").args(["--strip-debug", "-o"]).arg(to).arg(program));
}

/// Copies an image into the folder of an image store.
pub fn copy_image(image: &Image, images: &Path) {
    let copy = images.join(&image.manifest().spec.name);
    run(Command::new("cp").args(["-r", "--sparse=always", "-T"]).arg(image.dir()).arg(copy));
}

/// Runs what prepares a machine.
///
/// # Panics
/// It fails.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
