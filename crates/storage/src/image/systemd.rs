//! Guests with systemd: the units and links that an installation would have made.

use super::ImageError;
use super::tree::Tree;

/// DHCP on every virtio card.
const NETWORK: &str = "[Match]\nDriver=virtio_net\n\n[Network]\nDHCP=yes\n";

/// A root shell on the serial console without a password.
const AUTOLOGIN: &str = "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM\n";

/// Says on the console that the guest is up, as the light init does, once its services are.
const READY: &str = "[Unit]\nDescription=Tell the host that the guest is ready\nAfter=multi-user.target\n\n\
                     [Service]\nType=oneshot\nRemainAfterExit=yes\nStandardOutput=tty\nTTYPath=/dev/ttyS0\n\
                     ExecStart=/bin/echo twinvm: guest ready\n\n[Install]\nWantedBy=multi-user.target\n";

/// Makes the VM's keys before anything can want them.
const KEYS: &str = "[Unit]\nDescription=Keys that this VM has of its own\nDefaultDependencies=no\nAfter=local-fs.target\n\
                    Before=sysinit.target shutdown.target\nConflicts=shutdown.target\n\
                    ConditionPathExists=!/etc/twinvm/keys-made\n\n\
                    [Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=infinity\nExecStart=/etc/twinvm/keys\n\n\
                    [Install]\nWantedBy=sysinit.target\n";

/// Writes the configuration.
pub(crate) fn configure(tree: &mut Tree) -> Result<(), ImageError> {
    tree.file("etc/systemd/network/80-virtio.network", NETWORK, 0o644)?;
    if tree.exists("usr/lib/systemd/systemd-resolved") {
        // Whether a guest has a name server of its own at that port is its matter.
        tree.file("etc/systemd/resolved.conf.d/twinvm.conf", "[Resolve]\nDNSStubListener=no\n", 0o644)?;
        tree.symlink("etc/resolv.conf", "../run/systemd/resolve/resolv.conf")?;
    }
    tree.file("etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf", AUTOLOGIN, 0o644)?;
    tree.file("etc/systemd/system/twinvm-ready.service", READY, 0o644)?;
    enable(tree, "/etc/systemd/system/twinvm-ready.service", "multi-user.target")?;
    tree.symlink("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")?;
    for unit in ["systemd-networkd.service", "systemd-networkd-wait-online.service"] {
        if tree.exists(&format!("lib/systemd/system/{unit}")) {
            enable(tree, &format!("/lib/systemd/system/{unit}"), "multi-user.target")?;
        }
    }
    tree.file("etc/systemd/system/twinvm-keys.service", KEYS, 0o644)?;
    enable(tree, "/etc/systemd/system/twinvm-keys.service", "sysinit.target")
}

fn enable(tree: &mut Tree, unit: &str, target: &str) -> Result<(), ImageError> {
    let name = unit.rsplit('/').next().unwrap_or(unit);
    tree.symlink(&format!("etc/systemd/system/{target}.wants/{name}"), unit)
}
