//! QEMU's translator.

use std::path::Path;
use std::process::Command;

use super::{Disks, command_line};
use crate::support::guest::images_dir;

/// QEMU's processor with all that it can emulate, SVM and XSAVE included.
const CPU: &str = "max";

pub fn command(disks: &Disks, folder: &Path, control_port: u16) -> Command {
    let drive = |path: &Path| format!("file={},format=raw,if=virtio,snapshot=on", path.display());
    let mut command = program();
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", "4096"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(disks.root.kernel())
        .arg("-initrd")
        .arg(disks.root.initrd())
        .args(["-append", &command_line("/dev/vda")])
        .args(["-drive", &drive(&disks.root.root_disk().unwrap()), "-drive", &drive(&disks.job)])
        .args(["-serial", &format!("file:{}", folder.join("console").display())])
        .args(["-chardev", &format!("socket,id=control,host=127.0.0.1,port={control_port}")])
        .args(["-serial", "chardev:control"]);
    command
}

/// The recent QEMU that `scripts/setup` has unpacked, or else the installed one, which is recent then.
fn program() -> Command {
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
