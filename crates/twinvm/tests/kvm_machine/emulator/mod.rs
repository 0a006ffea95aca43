//! The emulators whose processors have hardware virtualization.

mod bochs;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use storage::image::Image;

use crate::root::INIT;
use crate::support::emulated::Machine;

/// How long a boot may take before it counts as hung; in QEMU it takes some 10 s, in Bochs three minutes.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// The same for QEMU, which sometimes hangs.
const QEMU_BOOT_LIMIT: Duration = Duration::from_secs(150);

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
    /// QEMU's translator: AMD's virtualization (SVM), one processor.
    Qemu,
    /// The same with two processors, which sometimes stand still: for what has replicas, each of which needs one.
    QemuOfTwo,
    /// Bochs: Intel's virtualization (VMX), one processor, many times slower.
    Bochs,
}

impl Emulator {
    /// The virtualization that its processor has.
    pub fn virtualization(self) -> &'static str {
        match self {
            Self::Qemu | Self::QemuOfTwo => "svm",
            Self::Bochs => "vmx",
        }
    }

    /// Boots a machine. None of what it writes to its disks is kept.
    ///
    /// # Errors
    /// It does not come up; says what its console said.
    pub fn boot(self, disks: &Disks) -> Result<Machine, String> {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut machine = Machine::start(&folder, |folder, control_port| self.command(disks, folder, control_port))?;
        machine.wait_until_ready(if self == Self::Bochs { BOOT_LIMIT } else { QEMU_BOOT_LIMIT })?;
        Ok(machine)
    }

    fn command(self, disks: &Disks, folder: &Path, control_port: u16) -> Command {
        match self {
            Self::Qemu => qemu::command(disks, 1, folder, control_port),
            Self::QemuOfTwo => qemu::command(disks, 2, folder, control_port),
            Self::Bochs => bochs::command(disks, folder, control_port),
        }
    }
}

/// The kernel's command line. The time-stamp counter is not to be doubted: the emulators are too slow for the kernel's watchdog.
fn command_line(root: &str) -> String {
    format!("console=ttyS0,115200 root={root} init={INIT} mitigations=off tsc=reliable quiet")
}
