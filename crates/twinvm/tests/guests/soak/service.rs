//! The guest: Debian with Redis, PostgreSQL and a C compiler.

use std::path::PathBuf;
use std::process::Command;

use machine::engine::RunEnd;
use machine::events::GuestEvent;
use machine::vm::Vm;
use storage::image::{ExtraFile, ImageSpec};

use crate::support::guest::{Guest, Network, image};
use crate::support::{self, HUNG};

pub const REDIS: u16 = 6379;
pub const POSTGRESQL: u16 = 5432;

/// So little that the kernel has to reclaim pages, for which it looks at accessed bits without flushing translations.
const MEMORY_BYTES: u64 = 128 << 20;

/// A program with loops, tables, calls and floating point, which depends on a number given at its compilation.
const WORK_C: &str = include_str!("guest/work.c");
/// Compiles it, runs it and says what it says.
const COMPILE: &str = include_str!("guest/compile");

/// What PostgreSQL reserves by itself is more than all of this guest's memory.
const POSTGRESQL_CONF: (&str, &str) = ("/etc/postgresql/15/main/conf.d/soak.conf", "shared_buffers = 16MB\n");

/// The result of `work.c`.
pub fn work(seed: u64) -> String {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut table = [0u64; 512];
    for cell in &mut table {
        *cell = next();
    }
    table.sort_unstable();
    let (mut sum, mut quotient) = (0u64, 1.0f64);
    for (index, &cell) in (1u64..).zip(&table) {
        sum = sum.wrapping_mul(31).wrapping_add(cell);
        quotient = quotient / 3.0 + cell as f64 / index as f64;
    }
    format!("{sum} {}", quotient.to_bits())
}

/// The image, and a disk on which the services have been started once.
pub struct Service {
    disk: PathBuf,
    /// The guest in whose folder it is.
    _first: Guest,
}

impl Service {
    /// Builds the image, starts the guest once so that its databases are there, and shuts it down.
    pub fn prepare() -> Self {
        let first = guest(1);
        let network = Network::user(&[REDIS, POSTGRESQL]);
        let disk = first.disk("first.qcow2");
        let mut vm = first.boot(&disk, network.link());
        support::run_until(&mut vm, || is_ready(&network));
        support::run_while(&mut vm, || psql_client(&network, "pgbench", &["-i", "-q", "-s", "1", "postgres"]));
        vm.control().press_power_button();
        assert_eq!(vm.run(None).unwrap(), RunEnd::Guest(GuestEvent::PowerOff), "{}", first.console());
        vm.platform().flush_disks().unwrap();
        Self { disk, _first: first }
    }

    /// A guest that is up, its disk's file, and its network.
    pub fn start(&self, cpus: u32) -> (Guest, PathBuf, Network) {
        let guest = guest(cpus);
        let disk = guest.folder().join("recorded.qcow2");
        std::fs::copy(&self.disk, &disk).unwrap();
        (guest, disk, Network::user(&[REDIS, POSTGRESQL]))
    }
}

fn guest(cpus: u32) -> Guest {
    let file = |path: &str, text: &str, mode| ExtraFile { path: path.into(), contents: text.into(), mode };
    let image = image(&ImageSpec {
        recommends: false,
        packages: ["redis-server", "postgresql", "gcc", "libc6-dev"].map(String::from).to_vec(),
        files: vec![
            file("/usr/local/share/soak/work.c", WORK_C, 0o644),
            file("/usr/local/bin/compile", COMPILE, 0o755),
            file(POSTGRESQL_CONF.0, POSTGRESQL_CONF.1, 0o644),
        ],
        ..ImageSpec::new("test-soak")
    });
    Guest::of(image, cpus, MEMORY_BYTES)
}

/// Runs the guest until both services answer.
pub fn bring_up(vm: &mut Vm, network: &Network) {
    support::run_until(vm, || is_ready(network));
}

fn is_ready(network: &Network) -> bool {
    let port = network.port(POSTGRESQL).to_string();
    network.redis(REDIS).is_ok()
        && Command::new("psql")
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-c", "select 1"])
            .output()
            .is_ok_and(|output| output.status.success())
}

/// Runs a client of PostgreSQL to its end and returns what it says; it must succeed.
pub fn psql_client(network: &Network, program: &str, arguments: &[&str]) -> String {
    let port = network.port(POSTGRESQL).to_string();
    // So that a guest that has ended does not leave a client that waits for it for ever.
    let output = Command::new("timeout")
        .args([&HUNG.as_secs().to_string(), program])
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
