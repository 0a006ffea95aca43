//! QEMU's translator.

use std::path::Path;
use std::process::Command;

use super::{Disks, command_line};
use crate::support::emulated::qemu;

/// QEMU's processor with all that it can emulate, SVM and XSAVE included.
const CPU: &str = "max";

pub fn command(disks: &Disks, processors: u8, folder: &Path, control_port: u16) -> Command {
    let drive = |path: &Path| format!("file={},format=raw,if=virtio,snapshot=on", path.display());
    let mut command = qemu::machine(&disks.root, &command_line("/dev/vda"), folder, control_port);
    command.args(["-cpu", CPU, "-smp", &processors.to_string(), "-m", "4096"]).args([
        "-drive",
        &drive(&disks.root.root_disk().unwrap()),
        "-drive",
        &drive(&disks.job),
    ]);
    command
}
