//! QEMU's translator.

use std::path::Path;
use std::process::Command;

use super::{Disks, command_line};

/// QEMU's processor with all it has, SVM included, and without XSAVE and what needs it: QEMU 7.2 does not intercept XSETBV for a hypervisor
/// in its guest, so that this hypervisor's guest sets the hypervisor's own XCR0 (with QEMU as the hypervisor it fails in the same way).
const CPU: &str = "max,-xsave,-xsaveopt,-xsavec,-xsaves,-xgetbv1,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq,-pku,-mpx";

pub fn command(disks: &Disks, folder: &Path, control_port: u16) -> Command {
    let drive = |path: &Path| format!("file={},format=raw,if=virtio,snapshot=on", path.display());
    let mut command = Command::new("qemu-system-x86_64");
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
