use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{KEYS, UDHCPC};
use crate::image::initrd::INIT;

/// Programs of packages, as far as the script has them do something.
const PROGRAMS: [(&str, &str); 6] = [
    ("rndc-confgen", "echo \"secret $RANDOM$RANDOM$RANDOM$RANDOM\" > \"$ROOT/etc/bind/rndc.key\""),
    ("dropbearkey", "head -c 32 /dev/urandom > \"$4\""),
    ("nvme", "echo \"nqn.2014-08.org.nvmexpress:uuid:$(cat /proc/sys/kernel/random/uuid)\""),
    (
        "postconf",
        "if [ \"$1\" = -h ]; then sed -n 's/^myhostname=//p' \"$ROOT/etc/postfix/main.cf\"; \
         else shift; printf '%s\\n' \"$@\" > \"$ROOT/etc/postfix/main.cf\"; fi",
    ),
    // Who runs the tests need not be root.
    ("chown", ":"),
    ("sync", "[ -e \"$ROOT/etc/twinvm/keys-made\" ]; echo \"$?\" >> \"$ROOT/synced\""),
];
/// What each VM has of its own, with the mode that its server wants.
const OWN: [(&str, u32); 5] = [
    ("etc/bind/rndc.key", 0o640),
    ("var/lib/rabbitmq/.erlang.cookie", 0o400),
    ("etc/dropbear/dropbear_ed25519_host_key", 0o600),
    ("etc/nvme/hostid", 0o644),
    ("etc/nvme/hostnqn", 0o644),
];

/// The files of a guest.
struct Guest(TempDir);

impl Guest {
    /// As they are in an image.
    fn new() -> Self {
        let guest = Self(tempfile::tempdir().unwrap());
        for (name, script) in PROGRAMS {
            guest.write(&format!("programs/{name}"), &format!("#!/bin/bash\n{script}\n"), 0o755);
        }
        for name in ["usr/bin/dropbearkey", "usr/sbin/nvme"] {
            guest.write(name, "", 0o755);
        }
        fs::create_dir_all(guest.path("etc/twinvm")).unwrap();
        fs::create_dir_all(guest.path("var/lib/rabbitmq")).unwrap();
        fs::create_dir_all(guest.path("etc/nvme")).unwrap();
        guest.write("etc/dropbear/dropbear_rsa_host_key", "of the image", 0o600);
        guest.write("etc/bind/named.conf", "", 0o644);
        guest.write("etc/mailname", "localhost\n", 0o644);
        guest.write("etc/postfix/main.cf", "myhostname=localhost.UNKNOWN\n", 0o644);
        guest.write("etc/exim4/update-exim4.conf.conf", "dc_other_hostnames='localhost'\nx='y'\n", 0o644);
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // It may be one that only root can write to.
        let _ = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A boot of a VM with this name, the first one or a later one.
    fn boot(&self, name: &str) {
        self.write("etc/hostname", &format!("{name}\n"), 0o644);
        let root = self.0.path().to_str().unwrap();
        let script = ["/etc/", "/usr/sbin/", "/usr/bin/", "/var/lib/"]
            .iter()
            .fold(KEYS.to_owned(), |script, place| script.replace(place, &format!("{root}{place}")));
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).env("ROOT", root).env("PATH", format!("{root}/programs:/usr/bin:/bin"));
        assert!(shell.stdin(Stdio::null()).status().unwrap().success());
        assert!(self.path("etc/twinvm/keys-made").exists());
    }

    /// What the initial RAM disk does in a VM whose disk is that of another.
    fn becomes_a_clone(&self) {
        fs::remove_file(self.path("etc/twinvm/keys-made")).unwrap();
    }

    fn own(&self) -> [Vec<u8>; OWN.len()] {
        OWN.map(|(name, mode)| {
            let found = fs::metadata(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{name}");
            assert!(found.len() > 10, "{name}");
            fs::read(self.path(name)).unwrap()
        })
    }
}

#[track_caller]
fn all_differ(first: &[Vec<u8>], second: &[Vec<u8>]) {
    for ((first, second), (name, _)) in first.iter().zip(second).zip(OWN) {
        assert!(first != second, "{name} is that of another VM");
    }
}

#[test]
fn row_13_secrets_that_packages_make_are_the_vms_own_and_stay() {
    let (first, second) = (Guest::new(), Guest::new());
    first.boot("first");
    second.boot("second");
    let known = first.own();
    all_differ(&known, &second.own());
    assert!(!first.path("etc/dropbear/dropbear_rsa_host_key").exists(), "the image's key is still there");
    first.boot("first");
    assert_eq!(first.own(), known);
    first.becomes_a_clone();
    first.boot("clone");
    all_differ(&first.own(), &known);
}

#[test]
fn row_13_what_an_administrator_has_put_there_stays_in_a_clone() {
    let guest = Guest::new();
    guest.boot("original");
    let before = guest.own();
    guest.write("var/lib/rabbitmq/.erlang.cookie", "the cookie of all members of a cluster", 0o400);
    guest.write("etc/mailname", "mail.example.org\n", 0o644);
    guest.becomes_a_clone();
    guest.boot("clone");
    assert_eq!(guest.read("var/lib/rabbitmq/.erlang.cookie"), "the cookie of all members of a cluster");
    assert_eq!(guest.read("etc/mailname"), "mail.example.org\n");
    assert_ne!(guest.own()[0], before[0]);
}

#[test]
fn row_13_mail_servers_have_the_name_of_their_vm_and_a_clone_its_own() {
    let guest = Guest::new();
    for name in ["first", "clone"] {
        guest.boot(name);
        assert_eq!(guest.read("etc/mailname"), format!("{name}\n"));
        assert_eq!(guest.read("etc/exim4/update-exim4.conf.conf"), format!("dc_other_hostnames='{name}'\nx='y'\n"));
        let postfix = guest.read("etc/postfix/main.cf");
        assert!(postfix.starts_with(&format!("myhostname={name}\nmydestination=$myhostname, ")), "{postfix}");
        guest.becomes_a_clone();
    }
}

/// A power failure right after the first boot left files of NULs that counted as made.
#[test]
fn row_15_keys_count_as_made_once_they_are_on_the_disk() {
    let guest = Guest::new();
    guest.boot("first");
    // Once before they count, and once for that.
    assert_eq!(guest.read("synced"), "1\n0\n");
}

/// What the initial RAM disk does once the root disk is there, which is in `/root` then.
fn identify(guest: &Guest, id: &str, name: &str) {
    let (_, function) = INIT.split_once("identify() {").unwrap();
    let (body, _) = function.split_once("\n}\n").unwrap();
    let root = guest.0.path().to_str().unwrap();
    let body = body.replace("/root/", &format!("{root}/")).replace("busybox ", "");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("id=$1 hostname=$2\n{body}"), "init", id, name]).env("ROOT", root);
    assert!(shell.env("PATH", format!("{root}/programs:/usr/bin:/bin")).status().unwrap().success());
}

#[test]
fn row_15_who_a_machine_is_counts_once_it_is_on_the_disk() {
    let guest = Guest::new();
    guest.write(
        "programs/sync",
        "#!/bin/sh\nfor name in machine-id twinvm/identity.new twinvm/identity; do [ -s \"$ROOT/etc/$name\" ] && echo $name; done >> \"$ROOT/synced\"\n\
         echo >> \"$ROOT/synced\"\n",
        0o755,
    );
    guest.write("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 image\n", 0o644);
    let ids = ["5d0c9f3e1b7a4c6d8e2f0a1b3c5d7e9f", "00f3a0b15c2d4e6f8a9b0c1d2e3f4a5b"];
    identify(&guest, ids[0], "first");
    assert_eq!(
        guest.read("synced"),
        "machine-id\n\nmachine-id\ntwinvm/identity.new\n\nmachine-id\ntwinvm/identity\n\n"
    );
    let who = || ["etc/machine-id", "etc/hostname", "etc/hosts"].map(|name| guest.read(name));
    let known = who();
    assert_eq!(
        known,
        [format!("{}\n", ids[0]), "first\n".to_owned(), "127.0.0.1 localhost\n127.0.1.1 first\n".to_owned()]
    );
    guest.write("etc/hostname", "changed\n", 0o644);
    identify(&guest, ids[0], "renamed");
    assert_eq!(guest.read("etc/hostname"), "changed\n", "what was changed in the guest stays");
    // The disk is a copy of that one by now.
    guest.boot("first");
    identify(&guest, ids[1], "copy");
    assert_eq!(guest.read("etc/machine-id"), format!("{}\n", ids[1]));
    assert!(!guest.path("etc/twinvm/keys-made").exists(), "it has the keys of the other one");
}

#[test]
fn nothing_is_made_for_packages_that_are_not_there() {
    let guest = Guest(tempfile::tempdir().unwrap());
    fs::create_dir_all(guest.path("etc/twinvm")).unwrap();
    guest.boot("bare");
    let names = |folder: &Path| -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&guest.path("etc")), ["hostname", "twinvm"]);
    assert_eq!(names(&guest.path("etc/twinvm")), ["keys-made", "named"]);
}

/// What `/etc/resolv.conf` is after a lease with these name servers.
fn resolv_conf(folder: &Path, dns: &str) -> String {
    let script = UDHCPC.replace("/etc/", &format!("{}/etc/", folder.display()));
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "udhcpc", "name-servers"]).env("dns", dns).stdin(Stdio::null());
    assert!(shell.status().unwrap().success());
    fs::read_to_string(folder.join("etc/resolv.conf")).unwrap_or_else(|error| error.kind().to_string())
}

/// A lease wrote over the file of an administrator, and through a link into what was another program's.
#[test]
fn name_servers_that_somebody_else_has_put_there_stay() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("etc/resolv.conf");
    fs::create_dir(folder.path().join("etc")).unwrap();
    for before in [None, Some("")] {
        before.iter().for_each(|text| fs::write(&file, text).unwrap());
        assert!(resolv_conf(folder.path(), "10.0.2.3").ends_with("\nnameserver 10.0.2.3\n"), "{before:?}");
        fs::remove_file(&file).unwrap();
    }
    resolv_conf(folder.path(), "10.0.2.3");
    // What is its own it writes anew, and leaves alone if it is told of none.
    let two = resolv_conf(folder.path(), "10.0.2.4 10.0.2.5");
    assert!(two.ends_with("\nnameserver 10.0.2.4\nnameserver 10.0.2.5\n") && two.lines().count() == 3, "{two}");
    assert_eq!(resolv_conf(folder.path(), ""), two);
    fs::write(&file, "nameserver 192.0.2.1\noptions edns0\n").unwrap();
    assert_eq!(resolv_conf(folder.path(), "10.0.2.3"), "nameserver 192.0.2.1\noptions edns0\n");
    fs::remove_file(&file).unwrap();
    let stub = folder.path().join("stub-resolv.conf");
    std::os::unix::fs::symlink(&stub, &file).unwrap();
    assert_eq!(resolv_conf(folder.path(), "10.0.2.3"), "entity not found", "it leads nowhere before its program runs");
    fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
    assert_eq!(resolv_conf(folder.path(), "10.0.2.3"), "nameserver 127.0.0.53\n");
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
}
