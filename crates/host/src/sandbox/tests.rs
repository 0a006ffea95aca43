//! What somebody gets who has taken over a process: the confinement is entered in a child process, which then tries.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, getegid, geteuid, kill_process, pidfd_open, pidfd_send_signal};

use super::*;

/// Names the world of the child.
const WORLD: &str = "TWINVM_TEST_SANDBOX_WORLD";

/// As whom the processes of VM `v` run if root confines them, and those of the other VM.
const USER: u32 = 2_100_300_000;
/// Somebody who is not root.
const ORDINARY: u32 = 2_100_300_002;
const OTHER_USER: u32 = 2_100_300_001;

/// Who confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// Root, which becomes the VM's user.
    Root,
    /// A user without a name and without rights.
    User,
}

/// Both, or the one whom this process is.
fn everybody() -> Vec<As> {
    if geteuid().is_root() { vec![As::Root, As::User] } else { vec![As::User] }
}

fn user() -> Option<u32> {
    geteuid().is_root().then_some(USER)
}

/// What a replica of VM `v` is given, in the place of a host where there is more.
fn replica(world: &Path) -> Confinement {
    Confinement {
        kind: Kind::Replica,
        user: user(),
        readable: vec![world.join("images/base.raw"), "/dev/urandom".into(), "/proc/meminfo".into()],
        writable: vec![world.join("vms/v"), "/dev/null".into()],
    }
}

fn world(who: As) -> tempfile::TempDir {
    let world = tempfile::tempdir().unwrap();
    for folder in ["keys", "authority", "images", "run", "vms/v", "vms/other"] {
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
    let vms = match (geteuid().is_root(), who) {
        (true, As::Root) => vec![("vms/v", USER), ("vms/other", OTHER_USER)],
        // All of it is that user's.
        (true, As::User) => vec![("", ORDINARY)],
        (false, _) => Vec::new(),
    };
    for (folder, user) in vms {
        let given =
            Command::new("chown").args(["-hR", &format!("{user}:{user}")]).arg(world.path().join(folder)).status();
        assert!(given.unwrap().success());
    }
    // Nobody else may pass, as in a home folder.
    fs::set_permissions(world.path(), PermissionsExt::from_mode(0o700)).unwrap();
    world
}

/// Runs one of the tests below, which is the child's part, in a process of its own; what it writes on standard error.
fn in_child(test: &str, who: As, world: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if geteuid().is_root() && who == As::User {
        command.uid(ORDINARY).gid(ORDINARY).current_dir(world);
    }
    let mut child = command
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
    errors.lines().filter_map(|line| line.strip_prefix("not tested: ")).for_each(crate::skipped);
    errors
}

/// Does something in a process with one thread, as those are that confine themselves: whatever runs tests has more.
#[allow(unsafe_code)]
fn alone(act: impl FnOnce() + std::panic::UnwindSafe) {
    // SAFETY: the other thread only waits for this one, and holds no lock meanwhile.
    match unsafe { libc::fork() } {
        0 => {
            let code = i32::from(std::panic::catch_unwind(act).is_err());
            // SAFETY: nothing of this process is to be cleaned up but by its parent.
            unsafe { libc::_exit(code) }
        }
        child => {
            let pid = rustix::process::Pid::from_raw(child).expect("no further process can be made");
            let (_, status) =
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(0), "see above");
        }
    }
}

/// Whether this user may have namespaces, by another program.
fn may_have_namespaces() -> bool {
    let mut command = Command::new("unshare");
    command.args(if geteuid().is_root() { &["--mount", "true"][..] } else { &["--user", "--mount", "true"] });
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
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

/// What lies out of reach cannot be seen, or is refused.
fn out_of_reach<T>(what: &str, result: std::io::Result<T>) {
    match result {
        Ok(_) => panic!("{what} succeeded"),
        Err(error) => {
            let kinds = [ErrorKind::PermissionDenied, ErrorKind::NotFound, ErrorKind::ReadOnlyFilesystem];
            assert!(kinds.contains(&error.kind()), "{what}: {error}");
        }
    }
}

#[test]
fn whoever_has_taken_over_a_replica_gets_nothing_that_is_not_its_own() {
    for who in everybody() {
        let world = world(who);
        let errors = in_child("as_a_hostile_replica", who, world.path());
        if seccomp::is_offered() {
            let socket = format!("system call {:3} is not allowed", libc::SYS_socket);
            assert_eq!(errors.matches(&socket).count(), 1, "reported once: {errors}");
        }
        for file in ["cluster.db", "vms/other/disk0.raw", "keys/host.key", "images/base.raw"] {
            assert_eq!(fs::read_to_string(world.path().join(file)).unwrap(), file, "it was changed");
        }
    }
}

/// What of the confinement is missing on a machine must not go unnoticed where this is developed.
#[test]
fn what_is_enforced_is_said() {
    for who in everybody() {
        let world = world(who);
        in_child("as_one_that_says_what_is_enforced", who, world.path());
    }
}

#[test]
#[ignore = "the part of a child process"]
fn as_one_that_says_what_is_enforced() {
    alone(as_one_that_says_what_is_enforced_alone);
}

fn as_one_that_says_what_is_enforced_alone() {
    let (user, is_offered) = (user(), may_have_namespaces());
    let enforced = Confinement::of_nothing(user).enter().unwrap();
    assert_eq!(enforced.user, user);
    assert!(!enforced.reads_for_others);
    assert_eq!(enforced.no_private_root.is_none(), is_offered, "{enforced}");
    if is_offered {
        // Landlock does not look at this.
        assert_eq!(rustix::fs::access("/tmp", rustix::fs::Access::EXISTS), Err(rustix::io::Errno::NOENT));
    } else {
        eprintln!("not tested: this user may have no namespaces");
    }
    assert_eq!(enforced.is_full(), !format!("{enforced}").contains("no "), "{enforced}");
}

#[test]
#[ignore = "the part of a child process"]
fn as_a_hostile_replica() {
    alone(as_a_hostile_replica_alone);
}

fn as_a_hostile_replica_alone() {
    let world = world_of_child();
    let (listener, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let _control = UnixListener::bind(world.join("vms/other/replica.sock")).unwrap();
    let mut status = File::open("/proc/thread-self/status").unwrap();
    let open_before = File::open(world.join("images/more.raw")).unwrap();
    let mut victim = Command::new("/bin/sleep");
    victim.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let victim = victim.spawn().unwrap();

    let mut owned = Command::new("/bin/sleep");
    owned.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if geteuid().is_root() {
        owned.uid(USER).gid(USER);
    }
    let owned = owned.spawn().unwrap();
    let (daemon, own) = (rustix::process::getppid().unwrap(), geteuid());

    let enforced = replica(&world).enter().unwrap();
    let has_changed = geteuid() != own && rustix::process::getuid() == geteuid() && getegid().as_raw() == USER;
    assert_eq!(has_changed, own.is_root(), "who it is");
    if enforced.landlock > 0 {
        no_files_of_others(&world);
    } else {
        eprintln!("not tested: this kernel has no Landlock, files are not looked at");
    }
    if enforced.seccomp {
        denied("a TCP connection", TcpStream::connect(address));
        denied("a TCP port", TcpListener::bind("127.0.0.1:0"));
        denied("a UDP socket", UdpSocket::bind("127.0.0.1:0"));
        out_of_reach("another VM's control socket", UnixStream::connect(world.join("vms/other/replica.sock")));
        denied("another end of a socket", udp.connect(address));
        denied("a program", Command::new("/bin/true").status());
        no_dangerous_calls();
    } else {
        eprintln!("not tested: this kernel has no seccomp, system calls are not looked at");
    }
    if enforced.seccomp || enforced.landlock >= 6 {
        // Another VM's, one of the same user, and the daemon; and all there are.
        let others = [&victim, &owned].map(rustix::process::Pid::from_child);
        for pid in others.into_iter().chain([daemon]) {
            let killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            assert_eq!(killed, Err(rustix::io::Errno::PERM), "a process outside was ended");
        }
        signal_many();
    }
    let mut text = String::new();
    status.read_to_string(&mut text).unwrap();
    let capabilities = if enforced.reads_for_others { "0000000000000004" } else { "0000000000000000" };
    assert!(text.contains(&format!("CapPrm:\t{capabilities}")) && text.contains("NoNewPrivs:\t1"), "{text}");
    assert_eq!(open_before.metadata().unwrap().len(), 15);
    what_it_needs_goes_on(&world);
    drop((victim, owned, listener));
}

/// Signals to a group, to everybody, and to a thread of another process.
#[allow(unsafe_code)]
fn signal_many() {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    // SAFETY: all of these are refused, and touch no memory of this process.
    let results = unsafe {
        [
            libc::kill(-1, libc::SIGURG),
            libc::kill(0, libc::SIGURG),
            libc::syscall(libc::SYS_tgkill, parent, parent, libc::SIGURG) as i32,
        ]
    };
    assert_eq!(results, [-1; 3]);
}

fn no_files_of_others(world: &Path) {
    for file in
        ["cluster.db", "keys/host.key", "authority/ca.key", "vms/other/disk0.raw", "vms/v/link", "images/more.raw"]
    {
        out_of_reach(file, File::open(world.join(file)));
        out_of_reach(file, OpenOptions::new().write(true).open(world.join(file)));
    }
    for file in ["/etc/passwd", "/etc/shadow", "/proc/1/environ", "/root/.ssh/authorized_keys"] {
        if Path::new(file).exists() {
            out_of_reach(file, File::open(file));
        }
    }
    out_of_reach("a base image", OpenOptions::new().write(true).open(world.join("images/base.raw")));
    out_of_reach("another VM's folder", fs::read_dir(world.join("vms/other")));
    out_of_reach("a file beside", File::create(world.join("vms/new")));
    out_of_reach("removal", fs::remove_file(world.join("vms/other/disk0.raw")));
    for (from, to) in [("vms/other/disk0.raw", "vms/v/stolen"), ("vms/v/disk0.raw", "vms/other/disk0.raw")] {
        // Between folders `EXDEV` says no as well.
        let error = fs::rename(world.join(from), world.join(to)).unwrap_err();
        assert!([libc::EACCES, libc::EXDEV, libc::ENOENT].contains(&error.raw_os_error().unwrap()), "{from}: {error}");
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
    for who in everybody() {
        let world = world(who);
        in_child("as_a_hostile_network_end", who, world.path());
    }
}

#[test]
#[ignore = "the part of a child process"]
fn as_a_hostile_network_end() {
    alone(as_a_hostile_network_end_alone);
}

fn as_a_hostile_network_end_alone() {
    let world = world_of_child();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _control = UnixListener::bind(world.join("vms/other/replica.sock")).unwrap();
    let daemon = rustix::process::getppid().unwrap();
    let confinement = Confinement {
        kind: Kind::UserEnd,
        user: user(),
        readable: vec!["/etc/resolv.conf".into()],
        writable: Vec::new(),
    };
    let enforced = confinement.enter().unwrap();
    if enforced.landlock > 0 {
        for file in ["cluster.db", "keys/host.key", "vms/v/disk0.raw", "images/base.raw"] {
            out_of_reach(file, File::open(world.join(file)));
        }
        out_of_reach("a file", File::create(world.join("new")));
    } else {
        eprintln!("not tested: this kernel has no Landlock, files are not looked at");
    }
    if enforced.seccomp {
        denied("a program", Command::new("/bin/true").status());
        let killed = rustix::process::kill_process(daemon, rustix::process::Signal::KILL);
        assert_eq!(killed, Err(rustix::io::Errno::PERM), "the daemon was ended");
        signal_many();
        no_dangerous_calls();
    }
    if enforced.no_private_root.is_none() {
        out_of_reach("a replica's control socket", UnixStream::connect(world.join("vms/other/replica.sock")));
    } else {
        eprintln!("not tested: this process may have no file system of its own, sockets are not looked at");
    }
    TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap();
}

#[test]
fn the_broker_of_a_vm_in_the_foreground_has_its_network_ends_and_nothing_else() {
    for who in everybody() {
        let world = world(who);
        in_child("as_a_hostile_run_broker", who, world.path());
    }
}

#[test]
#[ignore = "the part of a child process"]
fn as_a_hostile_run_broker() {
    alone(as_a_hostile_run_broker_alone);
}

fn as_a_hostile_run_broker_alone() {
    let world = world_of_child();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _end = UnixListener::bind(world.join("run/end.sock")).unwrap();
    let _control = UnixListener::bind(world.join("vms/other/replica.sock")).unwrap();
    let [mut own, other] = [(); 2].map(|()| {
        let mut sleep = Command::new("/bin/sleep");
        sleep.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    let pids = [&own, &other].map(Pid::from_child);
    let handle = pidfd_open(pids[0], PidfdFlags::empty()).unwrap();
    let writable = vec![world.join("run")];
    let confinement = Confinement { kind: Kind::RunBroker, user: None, readable: Vec::new(), writable };
    let enforced = confinement.enter().unwrap();
    if enforced.landlock > 0 {
        for file in ["cluster.db", "keys/host.key", "vms/v/disk0.raw", "images/base.raw", "run/new"] {
            out_of_reach(file, File::open(world.join(file)));
            out_of_reach(file, File::create(world.join(file)));
        }
    } else {
        eprintln!("not tested: this kernel has no Landlock, files are not looked at");
    }
    if enforced.seccomp {
        denied("a TCP connection", TcpStream::connect(listener.local_addr().unwrap()));
        // Whoever has one of these connects it without asking Landlock.
        let datagrams = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
        denied("a UDP socket", datagrams.map_err(std::io::Error::from));
        denied("a program", Command::new("/bin/true").status());
        for pid in pids {
            assert_eq!(
                kill_process(pid, Signal::KILL),
                Err(rustix::io::Errno::PERM),
                "a process was ended by its number"
            );
            assert!(pidfd_open(pid, PidfdFlags::empty()).is_err(), "a handle of a process was made");
        }
        signal_many();
        no_dangerous_calls();
    }
    if enforced.no_private_root.is_none() {
        out_of_reach("a replica's control socket", UnixStream::connect(world.join("vms/other/replica.sock")));
    } else {
        eprintln!("not tested: this process may have no file system of its own, sockets are not looked at");
    }
    UnixStream::connect(world.join("run/end.sock")).unwrap();
    pidfd_send_signal(&handle, Signal::KILL).unwrap();
    own.wait().unwrap();
    fs::remove_file(world.join("run/end.sock")).unwrap();
    drop((listener, other));
}

/// A machine without one of the three is refused where that is wanted, whatever version the one is.
#[test]
fn a_machine_that_confines_nobody_is_refused_where_that_is_wanted() {
    let all = Enforced { landlock: 1, seccomp: true, no_private_root: None, user: None, reads_for_others: false };
    all.require().unwrap();
    let no_private_root = Some("Operation not permitted".to_owned());
    for (missing, expected) in [
        (Enforced { landlock: 0, ..all.clone() }, "no Landlock in this kernel"),
        (Enforced { seccomp: false, ..all.clone() }, "no seccomp in this kernel"),
        (Enforced { no_private_root, ..all }, "no file system of its own (Operation not permitted)"),
    ] {
        let refused = missing.require().unwrap_err().to_string();
        assert!(refused.contains(expected) && refused.contains("require_sandbox"), "{refused}");
    }
}
