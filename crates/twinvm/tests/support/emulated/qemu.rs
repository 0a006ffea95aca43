//! QEMU, which needs nothing but its binary.

use std::path::Path;
use std::process::Command;

use storage::image::Image;

use super::CONSOLE;
use crate::support::guest::images_dir;

/// A machine without a display that boots `system` with these words on its kernel's command line, and runs them by its translator. It is
/// powered off where it would boot again.
pub fn machine(system: &Image, command_line: &str, folder: &Path, control_port: u16) -> Command {
    let mut command = program();
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(system.kernel())
        .arg("-initrd")
        .arg(system.initrd())
        .args(["-append", command_line])
        .args(["-serial", &format!("file:{}", folder.join(CONSOLE).display())])
        .args(["-chardev", &format!("socket,id=control,host=127.0.0.1,port={control_port}")])
        .args(["-serial", "chardev:control"]);
    command
}

/// The recent QEMU that `scripts/setup` has unpacked, or else the installed one, which is recent then.
pub fn program() -> Command {
    let unpacked = images_dir().parent().unwrap().join("tools/qemu/usr");
    let path = unpacked.join("bin/qemu-system-x86_64");
    if !path.exists() {
        return Command::new("qemu-system-x86_64");
    }
    let mut command = Command::new(path);
    // It looks for its firmware where it would be installed.
    for firmware in ["share/qemu", "share/seabios"] {
        command.arg("-L").arg(unpacked.join(firmware));
    }
    command
}
