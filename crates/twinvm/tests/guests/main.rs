//! Real services in Debian guests, started and used as a user does: the `twinvm` program outside, real clients.

mod debian;
mod determinism;
mod pull;
mod replay;
mod soak;
#[path = "../support/mod.rs"]
mod support;
mod vm;

use std::process::Command;
use std::time::{Duration, Instant};

use spec::EngineKind;
use support::guest::image;
use support::{images, place};
use vm::RunningVm;

/// Runs a client program to its end and returns its output; it must succeed.
fn client(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
fn postgresql_serves_pgbench() {
    image(&images::postgresql());
    let vm = RunningVm::start("postgresql", "test-postgresql", "512M", 1, &[5432]);
    let port = vm.port(5432).to_string();
    let at = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    let with = |more: &[&'static str]| -> Vec<String> { at.iter().chain(more).map(|&word| word.to_owned()).collect() };
    let run = |program: &str, more: &[&'static str]| {
        let arguments = with(more);
        client(program, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    vm.wait_until("PostgreSQL answers", || {
        let arguments = with(&["-c", "select 1"]);
        succeeds("psql", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    });
    run("pgbench", &["-i", "-s", "1", "postgres"]);
    let report = run("pgbench", &["-c", "2", "-t", "25", "postgres"]);
    assert!(report.contains("number of transactions actually processed: 50/50"), "{report}");
    // Each transaction adds one row; what pgbench was told is committed is there.
    let count = run("psql", &["-tAc", "select count(*) from pgbench_history", "postgres"]);
    assert_eq!(count.trim(), "50");
    vm.shut_down();
}

#[test]
fn nginx_serves_curl() {
    image(&images::nginx());
    let vm = RunningVm::start("nginx", "test-nginx", "256M", 1, &[80]);
    let url = format!("http://127.0.0.1:{}/", vm.port(80));
    vm.wait_until("nginx answers", || succeeds("curl", &["-sf", "-m", "5", &url]));
    let page = client("curl", &["-sf", &url]);
    assert!(page.contains("Welcome to nginx"), "{page}");
    vm.shut_down();
}

#[test]
fn redis_runs_under_systemd_on_two_vcpus() {
    image(&images::systemd());
    let vm = RunningVm::start("systemd", "test-systemd", "512M", 2, &[6379]);
    let port = vm.port(6379).to_string();
    vm.wait_until("Redis answers", || succeeds("redis-cli", &["-e", "-p", &port, "ping"]));
    assert_eq!(client("redis-cli", &["-p", &port, "incr", "counter"]).trim(), "1");
}

#[test]
fn debians_6_12_kernel_boots_on_four_vcpus() {
    image(&images::kernel_6_12());
    let command = "uname -r; echo $(nproc) processors";
    let vm = RunningVm::start_diskless("kernel-6-12", "test-kernel-6-12", "256M", 4, command);
    vm.wait_for_console("twinvm: exit status 0");
    let console = vm.console();
    assert!(console.contains("6.12.") && console.contains("4 processors"), "{console}");
    vm.wait_for_end();
}

#[test]
fn a_guest_that_resets_starts_again_and_one_that_panics_is_reported() {
    image(&images::tiny());
    // Each time it has its disk and its network again.
    let vm = RunningVm::start_with_parts("reset", "test-tiny", "128M", 1, "reboot -f");
    vm.wait_until("the guest has reset twice", || vm.events("reset") >= 2);
    assert_eq!(vm.events("triple-fault"), 0);
    drop(vm);
    let by_fault = "echo triple > /sys/kernel/reboot/type; reboot -f";
    let vm = RunningVm::start_diskless("triple", "test-tiny", "128M", 1, by_fault);
    vm.wait_until("the guest has reset twice by a triple fault", || vm.events("triple-fault") >= 2);
    assert!(vm.events("reset") >= 1);
    drop(vm);
    let vm = RunningVm::start_diskless("panic", "test-tiny", "128M", 1, "echo c > /proc/sysrq-trigger");
    vm.wait_until("the guest has panicked", || vm.events("panicked") == 1);
}

#[test]
fn a_restored_vm_goes_on_where_it_was_and_its_disk_with_it() {
    image(&images::redis());
    let vm = RunningVm::start("redis", "test-redis", "256M", 2, &[6379]);
    let redis = |vm: &RunningVm, words: &[&str]| {
        let port = vm.port(6379).to_string();
        let mut arguments = vec!["-p", &port];
        arguments.extend(words);
        client("redis-cli", &arguments).trim().to_owned()
    };
    let port = vm.port(6379).to_string();
    vm.wait_until("Redis answers", || succeeds("redis-cli", &["-e", "-p", &port, "ping"]));
    assert_eq!(redis(&vm, &["set", "key", "before"]), "OK");
    vm.assert_confined(false);
    let file = vm.folder().join("redis.snap");
    vm.twinvm(&["vm", "snapshot", vm.name(), file.to_str().unwrap()]);
    // Debian's 6.1 kernel for clouds has no driver for the generation ID, and nobody else would say so.
    vm.wait_until("the warning", || vm.events("generation-not-heeded") == 1);
    assert_eq!(redis(&vm, &["set", "key", "after"]), "OK");
    assert_eq!(redis(&vm, &["save"]), "OK");
    let vm = vm.kill_and_restore(&file, place::engine());
    vm.wait_until("the warning", || vm.events("generation-not-heeded") == 1);
    vm.wait_until("Redis answers", || succeeds("redis-cli", &["-e", "-p", &port, "ping"]));
    assert_eq!(redis(&vm, &["get", "key"]), "before");
    vm.assert_confined(true);
    assert_eq!(redis(&vm, &["save"]), "OK");
    vm.shut_down();
}

/// The guest's clock, by Redis.
fn guest_time(port: &str) -> Duration {
    let text = client("redis-cli", &["-p", port, "time"]);
    let mut numbers = text.lines().map(|line| line.trim().parse().unwrap());
    Duration::from_secs(numbers.next().unwrap()) + Duration::from_micros(numbers.next().unwrap())
}

#[test]
#[ignore = "needs a KVM with hardware below it (see ../kvm_machine)"]
fn a_snapshot_continues_on_the_other_engine_and_back_with_its_clock_right() {
    const WATCHED: Duration = Duration::from_secs(10);
    image(&images::redis());
    let mut vm = RunningVm::start("moving", "test-redis", "256M", 1, &[6379]);
    let port = vm.port(6379).to_string();
    let answers = || succeeds("redis-cli", &["-e", "-p", &port, "ping"]);
    vm.wait_until("Redis answers", answers);
    let mut before = guest_time(&port);
    for (engine, count) in [(EngineKind::Soft, "1"), (EngineKind::Kvm, "2")] {
        let file = vm.folder().join(format!("to-{engine}.snap"));
        vm.twinvm(&["vm", "snapshot", vm.name(), file.to_str().unwrap()]);
        vm = vm.kill_and_restore(&file, engine);
        vm.wait_until("Redis answers", answers);
        assert_eq!(client("redis-cli", &["-p", &port, "incr", "counter"]).trim(), count);
        let (first, start) = (guest_time(&port), Instant::now());
        assert!(first > before, "on {engine} the clock went back from {before:?} to {first:?}");
        std::thread::sleep(WATCHED);
        before = guest_time(&port);
        let (inside, outside) = ((before - first).as_secs_f64(), start.elapsed().as_secs_f64());
        assert!((inside / outside - 1.0).abs() < 0.2, "on {engine}: {inside} s in the guest, {outside} s outside");
    }
}

/// What a guest says of itself once a second: its time, its real-time clock's, a random number, and how often its kernel has said that it
/// is another VM, or that it hangs.
struct Said {
    time: i64,
    clock: i64,
    random: String,
    forks: u32,
    hangs: u32,
}

fn said(vm: &RunningVm, at: usize) -> (Said, i64) {
    let line = || vm.console().split("says ").skip(1).nth(at).filter(|line| line.contains(" end")).map(str::to_owned);
    vm.wait_until("the guest has said more", || line().is_some());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let line = line().unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<i64>().unwrap_or_else(|_| panic!("{line}"));
    let said = Said {
        time: number(0),
        clock: number(1),
        random: words[2].to_owned(),
        forks: number(3) as u32,
        hangs: number(4) as u32,
    };
    (said, now)
}

/// Rows 1 and 7 of the snapshots' cases, with a kernel that has the driver for the generation ID: Debian's 6.1 for clouds has not.
#[test]
fn row_1_and_row_7_a_restored_guest_has_the_hosts_time_and_other_random_numbers() {
    const AWAY: Duration = Duration::from_secs(4);
    image(&images::kernel_6_12());
    // The patterns do not match themselves, which are in the kernel's command line.
    let command = "while sleep 1; do echo says $(date +%s) $(cat /sys/class/rtc/rtc0/since_epoch) \
                   $(cat /proc/sys/kernel/random/uuid) $(dmesg | grep -c machine.for[k]) \
                   $(dmesg | grep -c -e stal[l] -e locku[p]) end; done";
    let vm = RunningVm::start_diskless("again", "test-kernel-6-12", "256M", 1, command);
    let (first, _) = said(&vm, 1);
    assert_eq!((first.forks, first.hangs), (0, 0));
    let file = vm.folder().join("again.snap");
    vm.twinvm(&["vm", "snapshot", vm.name(), file.to_str().unwrap()]);
    let (mut vm, mut randoms) = (vm, vec![first.random]);
    for _ in 0..2 {
        // The snapshot is that much behind by then.
        std::thread::sleep(AWAY);
        vm = vm.kill_and_restore(&file, place::engine());
        // The first time may have been asked for before the snapshot, and said after it.
        let (said, now) = said(&vm, 1);
        assert!((now - said.time).abs() <= 2 && (now - said.clock).abs() <= 2, "{} {} {now}", said.time, said.clock);
        assert_eq!((said.forks, said.hangs, vm.events("generation-not-heeded")), (1, 0, 0), "{}", vm.console());
        randoms.push(said.random);
    }
    randoms.sort();
    randoms.dedup();
    assert_eq!(randoms.len(), 3, "random numbers that came before: {randoms:?}");
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_disk_keeps_its_content() {
    image(&images::redis());
    let vm = RunningVm::start("damaged", "test-redis", "128M", 1, &[]);
    vm.wait_for_console("Run /init");
    let file = vm.folder().join("damaged.snap");
    vm.twinvm(&["vm", "snapshot", vm.name(), file.to_str().unwrap()]);
    let (folder, disk) = vm.kill();
    let before = std::fs::read(&disk).unwrap();
    let good = std::fs::read(&file).unwrap();
    for (at, what) in [(5, "magic"), (200, "head"), (good.len() / 2, "middle"), (good.len() - 20, "end")] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&file, bytes).unwrap();
        let message = vm::refused(folder.path(), &["vm", "restore", "--json", file.to_str().unwrap()]);
        assert!(message.contains("snapshot"), "{what}: {message}");
        assert_eq!(message.trim().lines().count(), 1, "{what}: {message}");
        assert!(std::fs::read(&disk).unwrap() == before, "{what}");
    }
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    let message = vm::refused(folder.path(), &["vm", "restore", "--json", file.to_str().unwrap()]);
    assert!(message.contains("cut short"), "{message}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("restoring")), "{left:?}");
}

#[test]
fn row_16_a_guest_whose_console_nobody_reads_goes_on_to_its_end() {
    image(&images::tiny());
    // More than a pipe holds.
    let command = "i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done";
    let held = vm::run_unread("unread", "test-tiny", command);
    assert!(held.contains("line-0\r\n") && !held.contains("line-19999"), "{} bytes", held.len());
    assert!(held.len() > 60_000, "{} bytes", held.len());
}

/// The pipe is longer than what the guest's console holds, and the guest is late to read it.
#[test]
fn row_17_all_that_is_piped_into_a_vm_in_the_foreground_arrives() {
    const BYTES: usize = 405_715;
    image(&images::tiny());
    let command = format!("stty raw -echo; echo ready; sleep 2; head -c {BYTES} | md5sum");
    let bytes = (0..BYTES).map(|number| (number % 251) as u8).collect();
    let seen = vm::run_piped("piped", "test-tiny", &command, bytes);
    assert!(seen.contains("0a3bc62f61f17b14e68b7193d410bc20"), "{seen}");
}
