//! What somebody gets who has taken over a process: the confinement is entered in a child process, which then tries.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use super::*;

/// Names the world of the child.
const WORLD: &str = "TWINVM_TEST_SANDBOX_WORLD";

/// What a replica of VM `v` is given, in the place of a host where there is more.
fn replica(world: &Path) -> Confinement {
    Confinement {
        kind: Kind::Replica,
        readable: vec![world.join("images/base.raw"), "/dev/urandom".into(), "/proc/meminfo".into()],
        writable: vec![world.join("vms/v"), "/dev/null".into()],
        removable: Vec::new(),
    }
}

fn world() -> tempfile::TempDir {
    let world = tempfile::tempdir().unwrap();
    for folder in ["keys", "authority", "images", "vms/v", "vms/other"] {
        fs::create_dir_all(world.path().join(folder)).unwrap();
    }
    for file in [
        "cluster.db",
        "keys/host.key",
        "authority/ca.key",
        "images/base.raw",
        "images/more.raw",
        "vms/v/disk0.raw",
        "vms/other/disk0.raw",
    ] {
        fs::write(world.path().join(file), file).unwrap();
    }
    symlink(world.path().join("vms/other/disk0.raw"), world.path().join("vms/v/link")).unwrap();
    world
}

/// Runs one of the tests below, which is the child's part, in a process of its own; what it writes on standard error.
fn in_child(test: &str, world: &Path) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("sandbox::tests::{test}"), "--ignored", "--nocapture", "--test-threads=1"])
        .env(WORLD, world)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() && out.contains("1 passed"), "{status}\n{out}\n{errors}");
    errors
}

fn world_of_child() -> PathBuf {
    PathBuf::from(std::env::var_os(WORLD).expect("this is the part of a child process"))
}

fn denied<T>(what: &str, result: std::io::Result<T>) {
    match result {
        Ok(_) => panic!("{what} succeeded"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}"),
    }
}

#[test]
fn whoever_has_taken_over_a_replica_gets_nothing_that_is_not_its_own() {
    let world = world();
    let errors = in_child("as_a_hostile_replica", world.path());
    if Enforced::by_kernel().seccomp {
        let socket = format!("system call {:3} is not allowed", libc::SYS_socket);
        assert_eq!(errors.matches(&socket).count(), 1, "reported once: {errors}");
    }
    for file in ["cluster.db", "vms/other/disk0.raw", "keys/host.key", "images/base.raw"] {
        assert_eq!(fs::read_to_string(world.path().join(file)).unwrap(), file, "it was changed");
    }
}

#[test]
#[ignore = "the part of a child process"]
fn as_a_hostile_replica() {
    let world = world_of_child();
    let (listener, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let _control = UnixListener::bind(world.join("vms/other/replica.sock")).unwrap();
    let mut status = File::open("/proc/thread-self/status").unwrap();
    let open_before = File::open(world.join("images/more.raw")).unwrap();
    let mut victim = Command::new("/bin/sleep");
    victim.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let victim = victim.spawn().unwrap();

    let enforced = replica(&world).enter().unwrap();
    if enforced.landlock > 0 {
        no_files_of_others(&world);
    } else {
        eprintln!("SKIPPED: this kernel has no Landlock, files are not looked at");
    }
    if enforced.seccomp {
        denied("a TCP connection", TcpStream::connect(address));
        denied("a TCP port", TcpListener::bind("127.0.0.1:0"));
        denied("a UDP socket", UdpSocket::bind("127.0.0.1:0"));
        denied("another VM's control socket", UnixStream::connect(world.join("vms/other/replica.sock")));
        denied("another end of a socket", udp.connect(address));
        denied("a program", Command::new("/bin/true").status());
        no_dangerous_calls();
    } else {
        eprintln!("SKIPPED: this kernel has no seccomp, system calls are not looked at");
    }
    if enforced.landlock >= 6 {
        let pid = rustix::process::Pid::from_child(&victim);
        let killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        assert_eq!(killed, Err(rustix::io::Errno::PERM), "a process outside was ended");
    }
    let mut text = String::new();
    status.read_to_string(&mut text).unwrap();
    assert!(text.contains("CapPrm:\t0000000000000000") && text.contains("NoNewPrivs:\t1"), "{text}");
    assert_eq!(open_before.metadata().unwrap().len(), 15);
    what_it_needs_goes_on(&world);
    drop((victim, listener));
}

fn no_files_of_others(world: &Path) {
    for file in
        ["cluster.db", "keys/host.key", "authority/ca.key", "vms/other/disk0.raw", "vms/v/link", "images/more.raw"]
    {
        denied(file, File::open(world.join(file)));
        denied(file, OpenOptions::new().write(true).open(world.join(file)));
    }
    for file in ["/etc/passwd", "/etc/shadow", "/proc/1/environ", "/root/.ssh/authorized_keys"] {
        if Path::new(file).exists() {
            denied(file, File::open(file));
        }
    }
    denied("a base image", OpenOptions::new().write(true).open(world.join("images/base.raw")));
    denied("another VM's folder", fs::read_dir(world.join("vms/other")));
    denied("a file beside", File::create(world.join("vms/new")));
    denied("removal", fs::remove_file(world.join("vms/other/disk0.raw")));
    for (from, to) in [("vms/other/disk0.raw", "vms/v/stolen"), ("vms/v/disk0.raw", "vms/other/disk0.raw")] {
        // Between folders `EXDEV` says no as well.
        let error = fs::rename(world.join(from), world.join(to)).unwrap_err();
        assert!([libc::EACCES, libc::EXDEV].contains(&error.raw_os_error().unwrap()), "{from}: {error}");
    }
}

#[allow(unsafe_code)]
fn no_dangerous_calls() {
    // SAFETY: all of these are refused, and touch no memory of this process.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_fork),
            libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, libc::getppid(), 0, 0),
            libc::syscall(libc::SYS_process_vm_readv, libc::getppid(), 0, 0, 0, 0, 0),
            libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0),
            libc::syscall(libc::SYS_bpf, 0, 0, 0),
            libc::syscall(libc::SYS_io_uring_setup, 1, 0),
            libc::syscall(libc::SYS_chmod, 0, 0),
        ]
    };
    assert_eq!(results, [-1; 8]);
    // `EFAULT` would say that a call was made.
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
}

fn what_it_needs_goes_on(world: &Path) {
    let disk = world.join("vms/v/disk0.raw");
    let mut file = OpenOptions::new().read(true).write(true).open(&disk).unwrap();
    file.write_all(b"written").unwrap();
    file.sync_all().unwrap();
    // As a restore does to the file that takes the place of another one.
    file.set_permissions(PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::fchown(&file, None, None).unwrap();
    let noted = rustix::fs::fsetxattr(&file, "user.note", b"note", rustix::fs::XattrFlags::empty());
    assert_ne!(noted, Err(rustix::io::Errno::PERM));
    fs::rename(&disk, world.join("vms/v/disk1.raw")).unwrap();
    fs::write(world.join("vms/v/ended.json"), "{}").unwrap();
    fs::remove_file(world.join("vms/v/ended.json")).unwrap();
    assert_eq!(fs::read_to_string(world.join("images/base.raw")).unwrap(), "images/base.raw");
    File::open("/dev/urandom").unwrap().read_exact(&mut [0; 16]).unwrap();
    assert_eq!(thread::spawn(|| 7).join().unwrap(), 7, "no threads");
}

#[test]
fn a_network_end_makes_connections_and_reads_no_files() {
    let world = world();
    in_child("as_a_hostile_network_end", world.path());
}

#[test]
#[ignore = "the part of a child process"]
fn as_a_hostile_network_end() {
    let world = world_of_child();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let confinement = Confinement {
        kind: Kind::UserEnd,
        readable: vec!["/etc/resolv.conf".into()],
        writable: Vec::new(),
        removable: Vec::new(),
    };
    let enforced = confinement.enter().unwrap();
    if enforced.landlock > 0 {
        for file in ["cluster.db", "keys/host.key", "vms/v/disk0.raw", "images/base.raw"] {
            denied(file, File::open(world.join(file)));
        }
        denied("a file", File::create(world.join("new")));
    } else {
        eprintln!("SKIPPED: this kernel has no Landlock, files are not looked at");
    }
    if enforced.seccomp {
        denied("a program", Command::new("/bin/true").status());
    }
    TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap();
}
