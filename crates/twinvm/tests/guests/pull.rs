//! Images of disks that somebody else has made, from files and from a server.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use spec::DiskFormat;
use storage::disk::{Backing, DiskImage, DiskOptions, create_qcow2};
use tempfile::TempDir;

use crate::support::guest::image;
use crate::support::{images, skipped};
use crate::vm::RunningVm;

const MIB: u64 = 1 << 20;

/// A folder for everything, with a server of files in it.
struct World {
    folder: TempDir,
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (authority_key, server_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(folder.path().join("ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = server.signed_by(&server_key, &issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
        let (config, files, count) = (Arc::new(config), folder.path().to_owned(), asked.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (config, files, count) = (config.clone(), files.clone(), count.clone());
                thread::spawn(move || serve(client, config, &files, &count));
            }
        });
        Self { folder, port, asked }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("https://127.0.0.1:{}/{name}", self.port)
    }

    fn images(&self) -> PathBuf {
        self.path("images")
    }

    fn twinvm(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
        command.env("TWINVM_HOME", self.folder.path()).env("HOME", self.folder.path());
        command.args(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.twinvm(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Pulls as `name`; what is said of the image.
    fn pull(&self, name: &str, from: &str, sha256: &str, more: &[&str]) -> Value {
        let ca = self.path("ca.pem");
        let arguments = ["image", "pull", "--json", name, from, "--sha256", sha256, "--ca", ca.to_str().unwrap()];
        serde_json::from_str(&self.done(&[&arguments[..], more].concat())).unwrap()
    }

    /// A pull that is refused, says this in one line, and leaves nothing.
    #[track_caller]
    fn refused(&self, from: &str, sha256: &str, more: &[&str], expected: &str) {
        let before = self.everything();
        let output = self.twinvm(&[&["image", "pull", "bad", from, "--sha256", sha256], more].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{from} was pulled; expected: {expected}");
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert_eq!(self.everything(), before, "left behind by: {message}");
    }

    /// What there is in the folder of the images, but for locks and caches.
    fn everything(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.images()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let is_own = path.ends_with(".cache") || path.ends_with(".versions") || path.ends_with(".names");
                if entry.file_type().unwrap().is_dir() {
                    folders.push(path.clone());
                }
                if !is_own && !path.ends_with("lock") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// A raw disk with an ext4 file system with these files, and its digest.
    fn disk(&self, name: &str, files: &[(&str, &[u8])], mib: u64) -> (PathBuf, String) {
        let (content, disk) = (self.path(&format!("{name}.content")), self.path(name));
        for (file, bytes) in files {
            let path = content.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        File::create(&disk).unwrap().set_len(mib * MIB).unwrap();
        let mut mke2fs = Command::new("/sbin/mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).args([&content, &disk]);
        assert!(mke2fs.status().unwrap().success());
        let digest = sha256(&disk);
        (disk, digest)
    }
}

/// Answers one request: a file of the folder, or something that a server may do as well.
fn serve(client: TcpStream, config: Arc<ServerConfig>, folder: &Path, asked: &AtomicUsize) {
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), client);
    let mut request = String::new();
    let mut reader = BufReader::new(&mut stream);
    let mut line = String::new();
    // A client that does not trust this server says nothing.
    while let Ok(1..) = reader.read_line(&mut line) {
        if line == "\r\n" {
            break;
        }
        request.push_str(&std::mem::take(&mut line));
    }
    let Some(name) = request.split(' ').nth(1).map(|path| path.trim_start_matches('/').to_owned()) else { return };
    asked.fetch_add(1, Ordering::Relaxed);
    let (name, is_cut) = name.strip_prefix("cut-").map_or((&*name, false), |name| (name, true));
    let answer = match name.strip_prefix("moved-to-http-") {
        Some(name) => {
            format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/{name}\r\nContent-Length: 0\r\n\r\n").into()
        }
        None => match fs::read(folder.join(name)) {
            Ok(content) => {
                let sent = if is_cut { &content[..content.len() / 2] } else { &content[..] };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
                [head.as_bytes(), sent].concat()
            }
            Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        },
    };
    // Whoever has refused the file by its length has gone.
    let _ = stream.write_all(&answer).and_then(|()| stream.flush());
    if !is_cut {
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// What begins as a kernel does.
fn kernel() -> Vec<u8> {
    let mut kernel = vec![1; 4096];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

/// A qcow2 image of 8 MiB that begins with this content.
fn qcow2(path: &Path, content: &[u8], backing: Option<&Path>) {
    let backing = backing.map(|path| Backing { path: path.to_owned(), format: DiskFormat::Raw });
    create_qcow2(path, 8 * MIB, backing.as_ref()).unwrap();
    let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
    let mut disk = DiskImage::open(path, options).unwrap();
    disk.write_at(0, content).unwrap();
    disk.flush().unwrap();
}

/// A disk that boots, as far as can be seen.
fn bootable(world: &World, name: &str) -> (PathBuf, String) {
    let kernel = kernel();
    let files: [(&str, &[u8]); 4] =
        [("etc/fstab", b""), ("usr/x", b""), ("boot/vmlinuz-6.1.0-9", &kernel), ("boot/initrd.img-6.1.0-9", b"initrd")];
    world.disk(name, &files, 8)
}

#[test]
fn a_disk_is_pulled_once_from_a_server_or_a_file_and_stays_what_it_was() {
    let world = World::new();
    let (raw, raw_digest) = bootable(&world, "disk.raw");
    let image = world.path("disk.qcow2");
    qcow2(&image, &fs::read(&raw).unwrap(), None);
    let (url, digest) = (world.url("disk.qcow2"), sha256(&image));
    let pulled = world.pull("web", &url, &digest.to_uppercase(), &[]);
    assert_eq!(pulled["cached"], false);
    let root = pulled["root_disk"].as_str().unwrap();
    assert!(fs::read(root).unwrap() == fs::read(&raw).unwrap(), "the disk is another one");
    assert_eq!(fs::read(pulled["kernel"].as_str().unwrap()).unwrap(), kernel());
    assert_eq!(fs::read(pulled["initrd"].as_str().unwrap()).unwrap(), b"initrd");
    assert_eq!(pulled["manifest"]["cmdline"], "console=ttyS0 root=/dev/vda cryptomgr.notests");
    assert_eq!(pulled["manifest"]["pulled"]["from"], url);
    let asked = world.asked.load(Ordering::Relaxed);
    assert_eq!(world.pull("web", &url, &digest, &[])["cached"], true);
    assert_eq!(world.asked.load(Ordering::Relaxed), asked, "it was fetched again");
    // Another version of the same name, by files of its own.
    for (name, content) in [("k", kernel()), ("i", b"other".to_vec())] {
        fs::write(world.path(name), content).unwrap();
    }
    let (k, i) = (world.path("k"), world.path("i"));
    let own = ["--kernel", k.to_str().unwrap(), "--initrd", i.to_str().unwrap(), "--cmdline", "console=ttyS0 quiet"];
    let second = world.pull("web", raw.to_str().unwrap(), &raw_digest, &own);
    assert_eq!(fs::read(second["initrd"].as_str().unwrap()).unwrap(), b"other");
    assert_eq!(second["manifest"]["cmdline"], "console=ttyS0 quiet");
    assert!(raw.exists() && Path::new(root).exists(), "what disks may be based on is gone");
    let listed = world.done(&["image", "list"]);
    assert!(listed.contains("web") && listed.contains("pulled from"), "{listed}");
    assert!(world.done(&["image", "show", "web"]).contains(&raw_digest));
    world.done(&["image", "rm", "web"]);
    world.done(&["image", "prune"]);
    assert_eq!(world.everything(), Vec::<PathBuf>::new());
}

#[test]
fn what_cannot_be_pulled_is_refused_in_one_line_and_leaves_nothing() {
    let world = World::new();
    let (raw, digest) = bootable(&world, "disk.raw");
    let raw = raw.to_str().unwrap();
    let ca = world.path("ca.pem");
    let ca = ["--ca", ca.to_str().unwrap()];
    let wrong = "0".repeat(64);
    world.refused(raw, &wrong, &[], &format!("sha256 {digest} instead of {wrong}"));
    world.refused(&world.url("disk.raw"), &wrong, &ca, "instead of");
    world.refused(raw, "abc", &[], "64 hexadecimal digits");
    world.refused(&world.url("cut-disk.raw"), &digest, &ca, "did not come whole");
    world.refused(&world.url("none.raw"), &digest, &ca, "404");
    world.refused(&world.url("disk.raw"), &digest, &[], "certificate");
    world.refused(&world.url("moved-to-http-disk.raw"), &digest, &ca, "https");
    world.refused("http://127.0.0.1:1/disk.raw", &digest, &[], "begin with https://");
    world.refused("/nowhere/disk.raw", &digest, &[], "No such file");
    world.refused(&world.url("disk.raw"), &digest, &[&ca[..], &["--max-size", "1M"]].concat(), "--max-size");
    world.refused(raw, &digest, &["--max-size", "1M"], "--max-size");

    let image = |name: &str, backing: Option<&Path>, crypt_method: u32| {
        let path = world.path(name);
        qcow2(&path, b"content", backing);
        // Where the header says it (QEMU's qcow2.txt).
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&crypt_method.to_be_bytes(), 32).unwrap();
        (path.to_str().unwrap().to_owned(), sha256(&path))
    };
    let based = image("based.qcow2", Some(Path::new(raw)), 0);
    let big = image("big.qcow2", None, 0);
    let encrypted = image("encrypted.qcow2", None, 2);
    let file = |name: &str, content: &[u8]| {
        let path = world.path(name);
        fs::write(&path, content).unwrap();
        (path.to_str().unwrap().to_owned(), sha256(&path))
    };
    let vmdk = file("disk.vmdk", &[b"KDMV".as_slice(), &[0; 508]].concat());
    let page = file("page", &[b"<html>".as_slice(), &[b' '; 506]].concat());
    let packed = file("disk.gz", b"\x1f\x8b\x08\0");
    let odd = file("odd", &vec![7; 1000]);
    let damaged = file("damaged.qcow2", b"QFI\xfb\0\0\0\x03");
    for ((path, digest), more, expected) in [
        (based, &[][..], "backing file"),
        (encrypted, &[], "encrypt"),
        (vmdk, &[], "VMDK images are not supported"),
        (page, &[], "neither a qcow2 image nor a raw disk"),
        (packed, &[], "gunzip"),
        (odd, &["--format", "raw"], "multiple of 512"),
        (damaged, &[], "damaged.qcow2"),
        (big, &["--max-size", "4M"], "--max-size"),
    ] {
        world.refused(&path, &digest, more, expected);
    }
    let (no_kernel, digest) = world.disk("data.raw", &[("etc/fstab", b""), ("boot/vmlinuz-6.1", &kernel())], 8);
    world.refused(no_kernel.to_str().unwrap(), &digest, &[], "--kernel and --initrd");
    let (text, _) = file("text", b"no kernel");
    let own = ["--kernel", &text, "--initrd", &text];
    world.refused(no_kernel.to_str().unwrap(), &digest, &own, "no Linux kernel");
}

/// A file system that is too small for the image.
#[test]
fn a_full_disk_is_said_and_nothing_stays_on_it() {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root mounts a file system that is full");
    }
    let world = World::new();
    let content = vec![5; 4 << 20];
    let (raw, digest) = world.disk("disk.raw", &[("etc/x", &content)], 16);
    fs::create_dir(world.images()).unwrap();
    let mount = |arguments: &[&str]| {
        assert!(Command::new(arguments[0]).args(&arguments[1..]).arg(world.images()).status().unwrap().success());
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs"]);
    let before = world.everything();
    let output = world.twinvm(&["image", "pull", "full", raw.to_str().unwrap(), "--sha256", &digest]);
    let (left, message) = (world.everything(), String::from_utf8(output.stderr).unwrap());
    mount(&["umount"]);
    assert!(!output.status.success() && message.contains("no space left"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(left, before);
}

/// With a kernel that was found on the disk, and the disk.
#[test]
fn a_pulled_image_boots_from_what_is_on_its_disk() {
    let tiny = image(&images::tiny());
    let world = World::new();
    let (kernel, initrd) = (fs::read(tiny.kernel()).unwrap(), fs::read(tiny.initrd()).unwrap());
    let release = &tiny.manifest().kernel.release;
    let names = [format!("boot/vmlinuz-{release}"), format!("boot/initrd.img-{release}")];
    let files: [(&str, &[u8]); 4] =
        [("etc/fstab", b""), ("usr/greeting", b"hello from the disk\n"), (&names[0], &kernel), (&names[1], &initrd)];
    let (disk, digest) = world.disk("disk.raw", &files, 128);
    let vm = RunningVm::start_pulled("pulled", &disk, &digest);
    vm.wait_for_console("hello from the disk");
    vm.wait_for_end();
}
