//! Real builds: they need a Debian mirror, so they run only when asked for
//! (`cargo test --profile checked -p storage --test image_build -- --ignored`). The boots need `qemu-system-x86_64`.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use storage::image::{BuildOptions, Image, ImageError, ImageSpec, ImageStore, NoProgress, Progress, Stage};

/// Where the images of these tests are built. It is kept, so that packages are fetched once.
fn store() -> ImageStore {
    ImageStore::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("images"))
}

fn build(spec: &ImageSpec) -> Image {
    store().build(spec, BuildOptions::default(), &mut NoProgress).unwrap().image
}

fn with_packages(name: &str, packages: &[&str]) -> ImageSpec {
    ImageSpec { packages: packages.iter().map(|&p| p.to_owned()).collect(), ..ImageSpec::new(name) }
}

/// Names in the images directory except those of the cache and of images.
fn names(store: &ImageStore) -> Vec<String> {
    let entries = fs::read_dir(store.dir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| ![".cache", ".versions", ".names"].contains(&name.as_str())).collect()
}

struct CancelAt(Stage, bool);

impl Progress for CancelAt {
    fn update(&mut self, stage: Stage, _done: u64, _total: u64) {
        self.1 |= stage == self.0;
    }

    fn is_cancelled(&self) -> bool {
        self.1
    }
}

#[test]
#[ignore = "needs a Debian mirror"]
fn builds_are_reproducible_and_cached() {
    let spec = with_packages("reproducible", &["redis-server"]);
    let first = store().build(&spec, BuildOptions::default(), &mut NoProgress).unwrap().image;
    let again = store().build(&spec, BuildOptions::default(), &mut NoProgress).unwrap();
    assert!(again.cached);
    let force = BuildOptions { force: true, ..BuildOptions::default() };
    let rebuilt = store().build(&spec, force, &mut NoProgress).unwrap();
    assert!(!rebuilt.cached);
    assert_eq!(first.manifest(), rebuilt.image.manifest());
    store().remove("reproducible").unwrap();
}

#[test]
#[ignore = "needs a Debian mirror"]
fn a_cancelled_build_leaves_nothing() {
    let own = ImageStore::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("cancelled"));
    for stage in [Stage::Install, Stage::Unpack, Stage::Initrd, Stage::RootDisk, Stage::Digest] {
        let result = own.build(&ImageSpec::new("half"), BuildOptions::default(), &mut CancelAt(stage, false));
        assert!(matches!(result, Err(ImageError::Cancelled)), "{stage:?}");
        assert!(names(&own).is_empty(), "{stage:?}: {:?}", names(&own));
    }
    fs::create_dir(own.dir().join(".build-killed")).unwrap();
    let tiny = ImageSpec { root_disk_bytes: None, ..ImageSpec::new("tiny") };
    own.build(&tiny, BuildOptions::default(), &mut NoProgress).unwrap();
    assert!(names(&own).is_empty(), "what a killed build left is gone");
    own.get("tiny").unwrap();
    fs::remove_dir_all(own.dir()).unwrap();
}

#[test]
#[ignore = "needs a Debian mirror"]
fn what_cannot_be_built_is_said_in_one_line() {
    let text = |spec: &ImageSpec| {
        let error = store().build(spec, BuildOptions::default(), &mut NoProgress).unwrap_err();
        assert!(!names(&store()).contains(&spec.name));
        error.to_string()
    };
    let unknown = text(&with_packages("unknown", &["no-such-package"]));
    assert!(unknown.starts_with("no package named \"no-such-package\" in Debian bookworm"), "{unknown}");
    let suite = text(&with_packages("suite", &["redis-server/bookworm-backports"]));
    assert!(suite.contains("redis-server"), "{suite}");
    let small = ImageSpec { root_disk_bytes: Some(64 << 20), ..with_packages("small", &["postgresql"]) };
    assert!(text(&small).ends_with("use a bigger disk"), "{}", text(&small));
    let kernel = ImageSpec { kernel: "busybox-static".to_owned(), ..ImageSpec::new("kernel") };
    assert!(text(&kernel).contains("0 kernels instead of one"));
}

/// A guest in QEMU; it ends with this.
struct Guest {
    child: Child,
    port: u16,
    disk: Option<PathBuf>,
}

impl Guest {
    fn boot(image: &Image, guest_port: u16, more_cmdline: &str) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let disk = image.root_disk().map(|disk| {
            let copy = image.dir().with_extension("booted");
            fs::copy(disk, &copy).unwrap();
            copy
        });
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nographic", "-no-reboot"]);
        qemu.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.initrd());
        qemu.args(["-append", &format!("{} quiet {more_cmdline}", image.manifest().cmdline)]);
        if let Some(disk) = &disk {
            qemu.args(["-drive", &format!("file={},if=virtio,format=raw", disk.display())]);
        }
        qemu.args(["-netdev", &format!("user,id=n,hostfwd=tcp:127.0.0.1:{port}-:{guest_port}")]);
        qemu.args(["-device", "virtio-net-pci,netdev=n"]);
        let child = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self { child, port, disk }
    }

    /// Asks until the answer holds `expected`.
    fn answers(&self, request: &[u8], expected: &str) {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(240) {
            if let Ok(mut connection) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
                connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut answer = vec![0; 4096];
                if connection.write_all(request).is_ok()
                    && let Ok(length) = connection.read(&mut answer)
                    && String::from_utf8_lossy(&answer[..length]).contains(expected)
                {
                    return;
                }
            }
            thread::sleep(Duration::from_millis(500));
        }
        panic!("no answer with {expected:?}");
    }

    /// Gives a command to the root shell on the console once that is there, and returns what the guest printed until it
    /// powered off.
    fn console_to_end(&mut self, command: &str) -> String {
        let mut output = Vec::new();
        let console = self.child.stdout.as_mut().unwrap();
        let mut buffer = [0; 4096];
        let mut command = Some(command);
        loop {
            let length = console.read(&mut buffer).unwrap();
            output.extend_from_slice(&buffer[..length]);
            let text = String::from_utf8_lossy(&output);
            if length == 0 {
                assert!(self.child.wait().unwrap().success());
                return text.into_owned();
            }
            // Input given earlier would be lost: a login program empties the line first.
            if text.contains("root@")
                && let Some(command) = command.take()
            {
                writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(disk) = &self.disk {
            let _ = fs::remove_file(disk);
        }
    }
}

#[test]
#[ignore = "needs a Debian mirror and QEMU"]
fn redis_answers_and_the_guest_powers_off_cleanly() {
    let mut guest = Guest::boot(&build(&with_packages("redis", &["redis-server"])), 6379, "");
    guest.answers(b"PING\r\n", "+PONG");
    guest.answers(b"SET key value\r\n", "+OK");
    let disk = guest.disk.clone().unwrap();
    let output = guest.console_to_end("cat /etc/hostname; poweroff");
    assert!(output.contains("twinvm: guest ready") && output.contains("Power down"), "{output}");
    let check = Command::new("/usr/sbin/e2fsck").args(["-n"]).arg(&disk).output().unwrap();
    let verdict = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && verdict.contains("clean"), "{verdict}");
}

#[test]
#[ignore = "needs a Debian mirror and QEMU"]
fn postgresql_answers() {
    let guest = Guest::boot(&build(&with_packages("postgres", &["postgresql"])), 5432, "");
    // A startup message of protocol 3.0 for user postgres is answered with AuthenticationOk and the server's parameters.
    let parameters = b"user\0postgres\0\0";
    let mut startup = u32::try_from(8 + parameters.len()).unwrap().to_be_bytes().to_vec();
    startup.extend([0, 3, 0, 0]);
    startup.extend(parameters);
    guest.answers(&startup, "server_version");
}

#[test]
#[ignore = "needs a Debian mirror and QEMU"]
fn nginx_answers() {
    let guest = Guest::boot(&build(&with_packages("nginx", &["nginx"])), 80, "");
    guest.answers(b"GET / HTTP/1.0\r\n\r\n", "Welcome to nginx!");
}

#[test]
#[ignore = "needs a Debian mirror and QEMU"]
fn systemd_brings_the_same_service_up() {
    let spec = ImageSpec { init: storage::image::Init::Systemd, ..with_packages("systemd", &["redis-server"]) };
    let mut guest = Guest::boot(&build(&spec), 6379, "");
    guest.answers(b"PING\r\n", "+PONG");
    let output = guest.console_to_end("systemctl --failed --no-legend | wc -l | sed 's/^/failed units: /'; poweroff");
    assert!(output.contains("failed units: 0"), "{output}");
}

#[test]
#[ignore = "needs a Debian mirror and QEMU"]
fn kernels_of_both_series_run_a_command_in_the_initial_ram_disk() {
    for (kernel, release) in [("linux-image-cloud-amd64", "6.1."), ("linux-image-6.12-cloud-amd64", "6.12.")] {
        let name = format!("tiny-{}", release.trim_end_matches('.'));
        let spec = ImageSpec { kernel: kernel.to_owned(), root_disk_bytes: None, ..ImageSpec::new(name) };
        let image = build(&spec);
        assert!(image.manifest().kernel.release.starts_with(release));
        let output = Guest::boot(&image, 1, "twinvm.run=\"uname -r; lsmod\"").console_to_end("");
        assert!(output.contains(&image.manifest().kernel.release), "{output}");
        assert!(output.contains("virtio_net") && output.contains("twinvm: exit status 0"), "{output}");
    }
}
