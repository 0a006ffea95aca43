//! What is ours in a guest: the light init, what tells its VM from others, and settings of a few services by which they serve the guest's network.

use super::tree::Tree;
use super::{ImageError, ImageSpec, Init, apt};

/// The files, for the digest of the builder's inputs.
pub(crate) const EMBEDDED: [&str; 14] = [
    INITTAB,
    KEYS,
    RC,
    RC_SHUTDOWN,
    POWER_BUTTON,
    UDHCPC,
    REDIS.start,
    REDIS.stop,
    REDIS_CONF,
    POSTGRESQL.start,
    POSTGRESQL.stop,
    POSTGRESQL_CONF,
    NGINX.start,
    NGINX.stop,
];

const INITTAB: &str = include_str!("../../guest/inittab");
/// Makes the keys that each VM has of its own.
const KEYS: &str = include_str!("../../guest/keys");
const RC: &str = include_str!("../../guest/rc");
const RC_SHUTDOWN: &str = include_str!("../../guest/rc.shutdown");
const POWER_BUTTON: &str = include_str!("../../guest/power-button");
const UDHCPC: &str = include_str!("../../guest/udhcpc");
const REDIS_CONF: &str = include_str!("../../guest/services/redis.conf");
const POSTGRESQL_CONF: &str = include_str!("../../guest/services/postgresql.conf");

/// Scripts that the light init's start and stop scripts read in, in place of Debian's, which take many times as long. They are called like these.
struct Service {
    name: &'static str,
    start: &'static str,
    stop: &'static str,
}

const REDIS: Service = Service {
    name: "50-redis-server",
    start: include_str!("../../guest/services/redis"),
    stop: include_str!("../../guest/services/redis.stop"),
};
const POSTGRESQL: Service = Service {
    name: "50-postgresql",
    start: include_str!("../../guest/services/postgresql"),
    stop: include_str!("../../guest/services/postgresql.stop"),
};
const NGINX: Service = Service {
    name: "50-nginx",
    start: include_str!("../../guest/services/nginx"),
    stop: include_str!("../../guest/services/nginx.stop"),
};

/// Those services, by what is there if they are.
const SERVICES: [(&str, Service); 3] =
    [("etc/redis/redis.conf", REDIS), ("usr/lib/postgresql", POSTGRESQL), ("usr/sbin/nginx", NGINX)];

/// systemd's resolver.
const RESOLVER: &str = "usr/lib/systemd/systemd-resolved";

/// Kernel command line for a guest built from `spec`.
pub(crate) fn cmdline(spec: &ImageSpec) -> String {
    let place = if spec.root_disk_bytes.is_some() { "root=/dev/vda" } else { "twinvm.initramfs" };
    // systemd's udev would call the card by its place on the bus, which differs between machines.
    let names = if spec.init == Init::Systemd { " net.ifnames=0" } else { "" };
    // The kernel would test its ciphers at each boot, which takes a software processor a third of the boot; so does Kata Containers.
    format!("console=ttyS0 {place} cryptomgr.notests{names}")
}

/// Turns the installed packages into a system that boots.
pub(crate) fn configure(tree: &mut Tree, spec: &ImageSpec) -> Result<(), ImageError> {
    base(tree, spec)?;
    settings(tree, spec)?;
    tree.file("etc/twinvm/keys", KEYS, 0o755)?;
    match spec.init {
        Init::Light => light_init(tree)?,
        Init::Systemd => super::systemd::configure(tree)?,
    }
    for file in &spec.files {
        tree.file(file.path.trim_start_matches('/'), &file.contents, file.mode)?;
    }
    Ok(())
}

/// What Debian's installer would have done.
fn base(tree: &mut Tree, spec: &ImageSpec) -> Result<(), ImageError> {
    let host = &spec.hostname;
    tree.file("etc/hostname", format!("{host}\n"), 0o644)?;
    tree.file("etc/hosts", format!("127.0.0.1 localhost\n127.0.1.1 {host}\n::1 localhost\n"), 0o644)?;
    tree.file("etc/fstab", "/dev/vda / ext4 defaults,noatime 0 1\n", 0o644)?;
    if !tree.exists("etc/mtab") {
        tree.symlink("etc/mtab", "../proc/self/mounts")?;
    }
    // systemd's resolver has put a link there, which leads somewhere once it runs.
    if spec.init == Init::Light || !tree.exists(RESOLVER) {
        tree.file("etc/resolv.conf", "", 0o644)?;
    }
    tree.file("etc/apt/sources.list", apt::sources_of_guests(spec.suite.name()), 0o644)
}

/// Settings by which services that twinvm knows serve the guest's network, in the places that Debian's own configuration has for them.
fn settings(tree: &mut Tree, spec: &ImageSpec) -> Result<(), ImageError> {
    if tree.exists("etc/redis/redis.conf") {
        let append_only = if spec.redis_append_only { "appendonly yes\nappendfsync always\n" } else { "" };
        tree.file("etc/redis/twinvm.conf", format!("{REDIS_CONF}{append_only}"), 0o644)?;
        tree.append("etc/redis/redis.conf", "\ninclude /etc/redis/twinvm.conf\n")?;
    }
    for version in tree.list("etc/postgresql") {
        let cluster = format!("etc/postgresql/{version}/main");
        if tree.exists(&format!("{cluster}/pg_hba.conf")) {
            tree.file(&format!("{cluster}/conf.d/twinvm.conf"), POSTGRESQL_CONF, 0o644)?;
            // The guest's network is the trust boundary: there is no password.
            tree.append(&format!("{cluster}/pg_hba.conf"), "host all all 0.0.0.0/0 trust\n")?;
        }
    }
    Ok(())
}

fn service(tree: &mut Tree, service: &Service) -> Result<(), ImageError> {
    tree.file(&format!("etc/twinvm/services.d/{}", service.name), service.start, 0o755)?;
    tree.file(&format!("etc/twinvm/stop.d/{}", service.name), service.stop, 0o755)
}

fn light_init(tree: &mut Tree) -> Result<(), ImageError> {
    for name in ["init", "poweroff", "reboot", "halt"] {
        tree.symlink(&format!("usr/sbin/{name}"), "../bin/busybox")?;
    }
    tree.file("etc/inittab", INITTAB, 0o644)?;
    tree.directory("etc/twinvm/services.d", 0o755)?;
    tree.directory("etc/twinvm/stop.d", 0o755)?;
    for (program, ours) in SERVICES {
        if tree.exists(program) {
            service(tree, &ours)?;
        }
    }
    // busybox acpid's name for "the power button was pressed".
    tree.file("etc/twinvm/acpi/PWRF/00000080", POWER_BUTTON, 0o755)?;
    for (name, script) in [("rc", RC), ("rc.shutdown", RC_SHUTDOWN), ("udhcpc", UDHCPC)] {
        tree.file(&format!("etc/twinvm/{name}"), script, 0o755)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
