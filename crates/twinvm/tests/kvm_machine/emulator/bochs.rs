//! Bochs, which emulates Intel's VMX exactly.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Disks, command_line};

/// Debian's build stops in its debugger at first.
const DEBUGGER_COMMANDS: &str = "c\n";

pub fn command(disks: &Disks, folder: &Path, control_port: u16) -> Command {
    let cd = boot_cd(disks, folder);
    let console = folder.join("console");
    let disk = |path: &Path, name: &str| {
        let journal = folder.join(name);
        format!("type=disk, path={}, mode=volatile, journal={}", path.display(), journal.display())
    };
    let configuration = [
        "megs: 2048".to_owned(),
        "romimage: file=/usr/share/bochs/BIOS-bochs-latest".to_owned(),
        "vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest".to_owned(),
        "cpu: model=corei7_haswell_4770, count=1, ips=200000000, reset_on_triple_fault=1, ignore_bad_msrs=1".to_owned(),
        "clock: sync=none".to_owned(),
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14".to_owned(),
        "ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15".to_owned(),
        format!("ata0-master: {}", disk(&disks.root.root_disk().unwrap(), "root")),
        format!("ata0-slave: {}", disk(&disks.job, "job")),
        format!("ata1-master: type=cdrom, path={}, status=inserted", cd.display()),
        "boot: cdrom".to_owned(),
        format!("com1: enabled=1, mode=file, dev={}", console.display()),
        format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{control_port}"),
        "display_library: term".to_owned(),
        "sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy".to_owned(),
        "speaker: enabled=0".to_owned(),
        "panic: action=report".to_owned(),
        format!("log: {}", folder.join("bochs.log").display()),
    ];
    let file = folder.join("bochsrc");
    fs::write(&file, configuration.join("\n") + "\n").unwrap();
    let commands = folder.join("debugger");
    fs::write(&commands, DEBUGGER_COMMANDS).unwrap();
    // It wants a terminal.
    let mut command = Command::new("script");
    command
        .args(["-qc", &format!("exec bochs -q -f {} -rc {}", file.display(), commands.display()), "/dev/null"])
        .env("TERM", "xterm");
    command
}

/// A CD that starts the kernel: Bochs has only a BIOS.
fn boot_cd(disks: &Disks, folder: &Path) -> std::path::PathBuf {
    let tree = folder.join("cd");
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    fs::copy(disks.root.kernel(), tree.join("boot/vmlinuz")).unwrap();
    fs::copy(disks.root.initrd(), tree.join("boot/initrd")).unwrap();
    let menu = format!(
        "serial --unit=0 --speed=115200\nterminal_output serial\nlinux /boot/vmlinuz {} nokaslr\ninitrd /boot/initrd\nboot\n",
        command_line("/dev/sda")
    );
    fs::write(tree.join("boot/grub/grub.cfg"), menu).unwrap();
    let cd = folder.join("boot.iso");
    let output = Command::new("grub-mkrescue").arg("-o").arg(&cd).arg(&tree).output().unwrap();
    assert!(output.status.success(), "grub-mkrescue: {}", String::from_utf8_lossy(&output.stderr));
    cd
}
