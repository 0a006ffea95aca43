//! What maintainer scripts would have left behind: users, start scripts, and the configuration of the services that are known.

use super::tree::Tree;
use super::{ImageError, ImageSpec, Init};

/// Files of the light init, for the digest of the builder's inputs.
pub(crate) const EMBEDDED: [&str; 13] = [
    INITTAB,
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
const RC: &str = include_str!("../../guest/rc");
const RC_SHUTDOWN: &str = include_str!("../../guest/rc.shutdown");
const POWER_BUTTON: &str = include_str!("../../guest/power-button");
const UDHCPC: &str = include_str!("../../guest/udhcpc");
const REDIS_CONF: &str = include_str!("../../guest/services/redis.conf");
const POSTGRESQL_CONF: &str = include_str!("../../guest/services/postgresql.conf");

/// Scripts that the light init's start and stop scripts read in.
struct Service {
    name: &'static str,
    start: &'static str,
    stop: &'static str,
}

const REDIS: Service = Service {
    name: "50-redis",
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

/// A system user that a package's maintainer script would have made, with a group of the same name and number.
struct User {
    name: &'static str,
    /// User and group number, from the range that Debian gives to such users.
    id: u32,
    home: &'static str,
    /// A file whose presence means that the user is needed.
    needed_by: &'static str,
    /// Directories that belong to the user, with their modes.
    directories: &'static [(&'static str, u32)],
}

const USERS: [User; 8] = [
    User {
        name: "redis",
        id: 101,
        home: "/var/lib/redis",
        needed_by: "usr/bin/redis-server",
        directories: &[("var/lib/redis", 0o750), ("var/log/redis", 0o750)],
    },
    User {
        name: "postgres",
        id: 102,
        home: "/var/lib/postgresql",
        needed_by: "usr/lib/postgresql",
        directories: &[
            ("var/lib/postgresql", 0o755),
            ("var/lib/postgresql/data", 0o700),
            ("var/log/postgresql", 0o755),
            ("etc/postgresql", 0o755),
        ],
    },
    User { name: "messagebus", id: 103, home: "/nonexistent", needed_by: "usr/bin/dbus-daemon", directories: &[] },
    User { name: "sshd", id: 104, home: "/run/sshd", needed_by: "usr/sbin/sshd", directories: &[] },
    User {
        name: "systemd-timesync",
        id: 997,
        home: "/",
        needed_by: "usr/lib/systemd/systemd-timesyncd",
        directories: &[],
    },
    User {
        name: "systemd-resolve",
        id: 996,
        home: "/",
        needed_by: "usr/lib/systemd/systemd-resolved",
        directories: &[],
    },
    User {
        name: "systemd-journal",
        id: 999,
        home: "/",
        needed_by: "usr/lib/systemd/systemd-journald",
        directories: &[],
    },
    User {
        name: "systemd-network",
        id: 998,
        home: "/",
        needed_by: "usr/lib/systemd/systemd-networkd",
        directories: &[],
    },
];

/// Links that `update-alternatives` would have made: name, target, each made if the target is there and the name is not.
const ALTERNATIVES: [(&str, &str); 4] = [
    ("usr/bin/awk", "mawk"),
    ("usr/bin/which", "which.debianutils"),
    ("usr/bin/pager", "more"),
    ("usr/bin/nc", "nc.openbsd"),
];

/// PAM's common stacks, as `pam-auth-update` writes them for local users.
const PAM_COMMON: [(&str, &str); 5] = [
    ("auth", "auth sufficient pam_unix.so nullok\nauth required pam_deny.so\n"),
    ("account", "account required pam_unix.so\n"),
    ("password", "password required pam_unix.so obscure yescrypt\n"),
    ("session", "session required pam_unix.so\n"),
    ("session-noninteractive", "session required pam_unix.so\n"),
];

/// Kernel command line for a guest built from `spec`.
pub(crate) fn cmdline(spec: &ImageSpec) -> String {
    let place = if spec.root_disk_bytes.is_some() { "root=/dev/vda" } else { "twinvm.initramfs" };
    // systemd's udev would call the card by its place on the bus, which differs between machines.
    let names = if spec.init == Init::Systemd { " net.ifnames=0" } else { "" };
    format!("console=ttyS0 {place}{names}")
}

/// Turns the unpacked packages into a system that boots.
pub(crate) fn configure(tree: &mut Tree, spec: &ImageSpec) -> Result<(), ImageError> {
    base(tree, spec)?;
    users(tree)?;
    services(tree, spec)?;
    match spec.init {
        Init::Light => light_init(tree)?,
        Init::Systemd => super::systemd::configure(tree)?,
    }
    for file in &spec.files {
        tree.file(file.path.trim_start_matches('/'), &file.contents, file.mode)?;
    }
    Ok(())
}

/// What base-files, base-passwd, PAM and the installer would have done.
fn base(tree: &mut Tree, spec: &ImageSpec) -> Result<(), ImageError> {
    for dir in ["dev", "proc", "sys", "run", "mnt", "media", "opt", "srv", "usr/local/bin", "usr/local/sbin"] {
        tree.directory(dir, 0o755)?;
    }
    for (path, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        tree.remove(path)?;
        tree.symlink(path, target)?;
    }
    tree.symlink("etc/mtab", "../proc/self/mounts")?;
    for (path, target) in ALTERNATIVES {
        let (dir, _) = path.rsplit_once('/').unwrap_or(("", path));
        if !tree.exists(path) && tree.exists(&format!("{dir}/{target}")) {
            tree.symlink(path, target)?;
        }
    }
    let host = &spec.hostname;
    tree.file("etc/hostname", format!("{host}\n"), 0o644)?;
    tree.file("etc/hosts", format!("127.0.0.1 localhost\n127.0.1.1 {host}\n::1 localhost\n"), 0o644)?;
    tree.file("etc/fstab", "/dev/vda / ext4 defaults,noatime 0 1\n", 0o644)?;
    tree.file("etc/resolv.conf", "", 0o644)?;
    tree.file("etc/machine-id", "", 0o444)?;
    for (from, to) in [
        ("usr/share/base-files/profile", "etc/profile"),
        ("usr/share/base-files/motd", "etc/motd"),
        ("usr/share/base-files/dot.profile", "root/.profile"),
        ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
        ("usr/share/base-files/nsswitch.conf", "etc/nsswitch.conf"),
        ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
    ] {
        if tree.exists(from) && !tree.exists(to) {
            let contents = tree.read(from)?;
            tree.file(to, contents, 0o644)?;
        }
    }
    for (name, rules) in PAM_COMMON {
        tree.file(&format!("etc/pam.d/common-{name}"), rules, 0o644)?;
    }
    certificates(tree)
}

/// The certificate bundle that `update-ca-certificates` would have made.
fn certificates(tree: &mut Tree) -> Result<(), ImageError> {
    let dir = "usr/share/ca-certificates/mozilla";
    let mut bundle = Vec::new();
    for name in tree.list(dir) {
        bundle.extend(tree.read(&format!("{dir}/{name}"))?);
    }
    if bundle.is_empty() {
        return Ok(());
    }
    tree.file("etc/ssl/certs/ca-certificates.crt", bundle, 0o644)
}

/// `/etc/passwd` and its companions. Root has an empty password: the console is the only way in unless the image's owner adds
/// another.
fn users(tree: &mut Tree) -> Result<(), ImageError> {
    let text = |tree: &Tree, path: &str| Ok(String::from_utf8_lossy(&tree.read(path)?).into_owned());
    // In the masters, "*" stands for a password that is then moved to the shadow file.
    let mut passwd: String = text(tree, "usr/share/base-passwd/passwd.master")?.replace(":*:", ":x:");
    let mut group: String = text(tree, "usr/share/base-passwd/group.master")?.replace(":*:", ":x:");
    for user in USERS.iter().filter(|u| tree.exists(u.needed_by)).collect::<Vec<_>>() {
        let User { name, id, home, directories, .. } = user;
        let shell = if *name == "postgres" { "/bin/bash" } else { "/usr/sbin/nologin" };
        passwd += &format!("{name}:x:{id}:{id}::{home}:{shell}\n");
        group += &format!("{name}:x:{id}:\n");
        for (path, mode) in *directories {
            tree.directory(path, *mode)?;
            tree.chown(path, *id, *id);
        }
    }
    if tree.exists("usr/lib/systemd/systemd") {
        for (name, id) in [("kvm", 105), ("render", 106), ("input", 107), ("sgx", 108), ("crontab", 109)] {
            group += &format!("{name}:x:{id}:\n");
        }
    }
    let shadow: String = passwd
        .lines()
        .filter_map(|line| line.split(':').next())
        .map(|name| {
            if name == "root" {
                "root::19518:0:99999:7:::\n".to_owned()
            } else {
                format!("{name}:*:19518:0:99999:7:::\n")
            }
        })
        .collect();
    tree.file("etc/passwd", passwd, 0o644)?;
    tree.file("etc/group", group, 0o644)?;
    tree.file("etc/shadow", shadow, 0o640)?;
    tree.chown("etc/shadow", 0, 42);
    Ok(())
}

/// Configuration and start scripts of the services that are known and there.
fn services(tree: &mut Tree, spec: &ImageSpec) -> Result<(), ImageError> {
    if tree.exists("usr/bin/redis-server") {
        let append_only = if spec.redis_append_only { "appendonly yes\nappendfsync always\n" } else { "" };
        tree.file("etc/redis/twinvm.conf", format!("{REDIS_CONF}{append_only}"), 0o644)?;
        service(tree, &REDIS)?;
    }
    if tree.exists("usr/lib/postgresql") {
        tree.file("etc/postgresql/twinvm.conf", POSTGRESQL_CONF, 0o644)?;
        service(tree, &POSTGRESQL)?;
    }
    if tree.exists("usr/sbin/nginx") {
        if tree.exists("etc/nginx/sites-available/default") && !tree.exists("etc/nginx/sites-enabled/default") {
            tree.symlink("etc/nginx/sites-enabled/default", "../sites-available/default")?;
        }
        if !tree.exists("var/www/html") {
            tree.directory("var/www/html", 0o755)?;
            if tree.exists("usr/share/nginx/html/index.html") {
                let page = tree.read("usr/share/nginx/html/index.html")?;
                tree.file("var/www/html/index.nginx-debian.html", page, 0o644)?;
            }
        }
        service(tree, &NGINX)?;
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
    // busybox acpid's name for "the power button was pressed".
    tree.file("etc/twinvm/acpi/PWRF/00000080", POWER_BUTTON, 0o755)?;
    for (name, script) in [("rc", RC), ("rc.shutdown", RC_SHUTDOWN), ("udhcpc", UDHCPC)] {
        tree.file(&format!("etc/twinvm/{name}"), script, 0o755)?;
    }
    Ok(())
}
