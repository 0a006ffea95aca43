//! What a VM has written to its disks survives whatever happens to its hosts.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Client, wait_for_service};
use crate::faults::assert_survives;
use crate::replicas::{Replica, Setup, World};
use crate::support::{HUNG, images};

fn postgresql() -> Setup {
    Setup { image: images::postgresql(), guest_port: 5432, ..Setup::redis() }
}

/// A client program of PostgreSQL, towards the guest.
fn client(program: &str, address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &address.port().to_string(), "-U", "postgres"]).args(arguments);
    command
}

fn sql(address: SocketAddr, statement: &str) -> Result<String, String> {
    let output = client("psql", address, &["-At", "-c", statement, "postgres"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn wait_for_postgresql(address: SocketAddr) {
    let deadline = Instant::now() + HUNG;
    while sql(address, "select 1").is_err() {
        assert!(Instant::now() < deadline, "no answer from PostgreSQL");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// pgbench under way; it ends with an error if a connection breaks.
struct Pgbench(Child);

impl Pgbench {
    fn start(address: SocketAddr, transactions: u32) -> Self {
        let child = client("pgbench", address, &["-n", "-c", "2", "-t", &transactions.to_string(), "postgres"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn finish(self) -> String {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        text
    }
}

/// What pgbench's transactions must leave: each adds the same amount to an account, a teller, a branch, and notes it.
fn assert_books_balance(address: SocketAddr, transactions: u32) {
    assert_eq!(sql(address, "select count(*) from pgbench_history").unwrap(), transactions.to_string());
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) \
                and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history) \
                and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)";
    assert_eq!(sql(address, sums).unwrap(), "t");
}

#[test]
fn postgresql_loses_no_commit_over_takeovers_and_a_restart_from_disk() {
    const TRANSACTIONS: u32 = 300;
    // Nothing happens while these are carried out.
    const LAST_TRANSACTIONS: u32 = 50;
    let mut world = World::new(postgresql());
    let mut primary = world.boot();
    wait_for_postgresql(world.address());
    let output = client("pgbench", world.address(), &["-i", "-q", "postgres"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bench = Pgbench::start(world.address(), TRANSACTIONS);
    // The last one goes to the host whose disk was there before and is out of date.
    for host in ["b", "a"] {
        let secondary = world.protect(&primary, host);
        std::thread::sleep(Duration::from_millis(700));
        primary.kill();
        secondary.wait_for_takeover();
        primary = secondary;
    }
    bench.finish();
    assert_books_balance(world.address(), 2 * TRANSACTIONS);
    // Both replicas are lost: what was committed is on the last primary's disk.
    let secondary = world.protect(&primary, "b");
    let bench = Pgbench::start(world.address(), LAST_TRANSACTIONS);
    bench.finish();
    secondary.kill();
    primary.kill();
    let primary = world.boot();
    wait_for_postgresql(world.address());
    assert_books_balance(world.address(), 2 * (TRANSACTIONS + LAST_TRANSACTIONS));
    drop(primary);
}

#[test]
fn an_acknowledged_fsync_survives_the_loss_of_both_replicas() {
    let mut world = World::new(Setup::redis_append_only());
    let primary = world.booted();
    let secondary = world.protect(&primary, "b");
    let client = Client::start(world.address());
    client.wait_for_progress(200);
    // Secondary first: otherwise it would take over.
    secondary.signal("STOP");
    primary.kill();
    secondary.kill();
    let acknowledged = client.acknowledged();
    let primary = world.boot();
    wait_for_service(world.address());
    let redis = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let mut connection = redis.get_connection().unwrap();
    let counter: u64 = redis::cmd("GET").arg("counter").query(&mut connection).unwrap();
    assert!(counter >= acknowledged, "{acknowledged} increments were acknowledged, {counter} are left");
    drop((primary, client));
}

/// After the loss of a host, whoever holds an older copy of the disks would read all of it for each of its VMs.
#[test]
fn the_next_replica_of_a_host_does_not_read_again_what_the_one_before_it_knew() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let summed_up = |secondary: &Replica| {
        let log = secondary.wait_for_log("what the disks hold is summed up");
        ["total_bytes=", "read_bytes="].map(|field| {
            let number = log.split(field).nth(1).and_then(|rest| rest.split_whitespace().next());
            number.and_then(|number| number.parse::<u64>().ok()).unwrap_or_else(|| panic!("{log}"))
        })
    };
    let first = world.protect(&primary, "b");
    first.ask(&json!({ "request": "stop", "force": true })).unwrap_or_default();
    first.wait_for_end();
    primary.wait_until_alone();
    let second = world.protect(&primary, "b");
    let [total_bytes, read_bytes] = summed_up(&second);
    // What the guest wrote while it was protected is read.
    assert!(total_bytes > 0 && read_bytes < total_bytes / 2, "{read_bytes} of {total_bytes} bytes were read");
    assert_survives(primary, &second, Client::start(world.address()));
}

/// Lets a process write no more than so many bytes to any file, as if its file system were full.
pub fn limit_files(replica: &Replica, bytes: u64) {
    // Only the soft limit: it can be raised again.
    let limit = if bytes == u64::MAX { "unlimited".to_owned() } else { bytes.to_string() };
    let done = Command::new("prlimit")
        .args(["--pid", &replica.pid().to_string(), &format!("--fsize={limit}:")])
        .status()
        .unwrap();
    assert!(done.success());
}

#[test]
fn a_full_datastore_of_the_secondary_does_not_stop_the_primary() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let secondary = world.protect(&primary, "b");
    let client = Client::start(world.address());
    client.wait_for_progress(20);
    limit_files(&secondary, 1 << 16);
    // What Redis holds goes to the guest's disk.
    let redis = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let mut connection = redis.get_connection().unwrap();
    let _: () = redis::cmd("SET").arg("large").arg("x".repeat(4 << 20)).query(&mut connection).unwrap();
    let _: () = redis::cmd("SAVE").query(&mut connection).unwrap();
    let _: () = redis::cmd("SAVE").query(&mut connection).unwrap();
    let status = primary.wait_until_alone();
    assert_eq!(status["protection"]["reason"], "hardware-failure", "{status}");
    client.wait_for_progress(50);
    let secondary = world.protect(&primary, "c");
    assert_survives(primary, &secondary, client);
}
