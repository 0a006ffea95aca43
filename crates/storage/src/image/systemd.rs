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

/// Runs the start script that the light init would run: Debian's own units expect what maintainer scripts set up.
fn service_unit(script: &str) -> String {
    format!(
        "[Unit]\nDescription=twinvm service {script}\nAfter=network-online.target\nWants=network-online.target\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nKillMode=control-group\nTimeoutStartSec=900\n\
         ExecStart=/bin/busybox sh /etc/twinvm/services.d/{script}\nExecStop=/bin/busybox sh /etc/twinvm/stop.d/{script}\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

/// Writes the configuration.
pub(crate) fn configure(tree: &mut Tree) -> Result<(), ImageError> {
    tree.file("etc/systemd/network/80-virtio.network", NETWORK, 0o644)?;
    tree.file("etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf", AUTOLOGIN, 0o644)?;
    tree.file("etc/systemd/system/twinvm-ready.service", READY, 0o644)?;
    enable(tree, "/etc/systemd/system/twinvm-ready.service", "multi-user.target")?;
    tree.symlink("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")?;
    for unit in ["systemd-networkd.service", "systemd-networkd-wait-online.service"] {
        if tree.exists(&format!("lib/systemd/system/{unit}")) {
            enable(tree, &format!("/lib/systemd/system/{unit}"), "multi-user.target")?;
        }
    }
    for script in tree.list("etc/twinvm/services.d") {
        let unit = format!("twinvm-{script}.service");
        tree.file(&format!("etc/systemd/system/{unit}"), service_unit(&script), 0o644)?;
        enable(tree, &format!("/etc/systemd/system/{unit}"), "multi-user.target")?;
    }
    // A machine id that is there keeps systemd from taking every boot of a fresh image for the first one, in which it would
    // enable whatever units the packages bring.
    tree.file("etc/machine-id", "74776e766d0040008000000000000001\n", 0o444)
}

fn enable(tree: &mut Tree, unit: &str, target: &str) -> Result<(), ImageError> {
    let name = unit.rsplit('/').next().unwrap_or(unit);
    tree.symlink(&format!("etc/systemd/system/{target}.wants/{name}"), unit)
}
