//! The emulators whose processors have hardware virtualization.

mod bochs;
mod qemu;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use storage::image::Image;

use crate::root::INIT;

/// What a machine is made of.
pub struct Disks {
    /// Its system.
    pub root: Image,
    /// The second disk.
    pub job: PathBuf,
}

/// An emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// QEMU's translator: AMD's virtualization (SVM), two processors.
    Qemu,
    /// Bochs: Intel's virtualization (VMX), one processor, many times slower.
    Bochs,
}

impl Emulator {
    /// The virtualization that its processor has.
    pub fn virtualization(self) -> &'static str {
        match self {
            Self::Qemu => "svm",
            Self::Bochs => "vmx",
        }
    }

    /// Starts a machine that writes its console to `console` in `folder` and connects its second serial port to a TCP port of 127.0.0.1.
    pub fn start(self, disks: &Disks, folder: &Path, control_port: u16) -> Child {
        let mut command = match self {
            Self::Qemu => qemu::command(disks, folder, control_port),
            Self::Bochs => bochs::command(disks, folder, control_port),
        };
        let log = File::create(folder.join("emulator.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error} (`make setup` installs it)"))
    }
}

/// The kernel's command line. The time-stamp counter is not to be doubted: the emulators are too slow for the kernel's watchdog.
fn command_line(root: &str) -> String {
    format!("console=ttyS0,115200 root={root} init={INIT} mitigations=off tsc=reliable quiet")
}
