//! Hosts whose folder is on a file system that fills: with disks of VMs, logs of replicas, daemons and consoles, and sockets all in one place.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::client::Client;
use crate::console::Console;
use crate::support::{HUNG, skipped};
use crate::world::{VM, World, state};

/// Bytes of a file system of a host's own.
const SMALL_BYTES: usize = 64 << 20;

/// A small file system under a host's folder.
struct Small(PathBuf);

impl Small {
    /// Nothing where nothing can be mounted.
    fn mount(world: &mut World, host: &str) -> Option<Self> {
        let folder = world.path(host);
        fs::create_dir(&folder).unwrap();
        let size = format!("size={SMALL_BYTES},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).status();
        let is_mounted = mounted.is_ok_and(|status| status.success());
        if !is_mounted {
            fs::remove_dir(&folder).unwrap();
            skipped("this user cannot mount file systems");
            return None;
        }
        world.owns_mount(host);
        Some(Self(folder))
    }

    fn fill(&self) {
        let error = fs::write(self.0.join("filler"), vec![1; SMALL_BYTES]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

/// Redis writes a few MiB that were never there before to the guest's disk, and says when they are there.
fn save(world: &World) -> thread::JoinHandle<redis::RedisResult<()>> {
    let client = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let value: Vec<u8> = (0..4u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    thread::spawn(move || {
        let mut connection = client.get_connection_with_timeout(HUNG)?;
        connection.set_read_timeout(Some(HUNG))?;
        let () = redis::cmd("SET").arg("large").arg(value).query(&mut connection)?;
        redis::cmd("SAVE").query(&mut connection)
    })
}

/// A line that cannot be logged took the thread with it that wanted to say that the disk is full.
#[test]
fn row_14_a_file_system_that_fills_under_a_host_ends_no_process_and_hides_nothing() {
    let mut world = World::empty();
    let Some(small) = Small::mount(&mut world, "a") else { return };
    let world = world.with_hosts_of(&["a"]);
    world.boot_redis("a");
    let mut console = Console::connect(&world, "a");
    let processes = world.all_processes();
    small.fill();
    let saved = save(&world);
    world.wait("a", "the fault to be seen", |status| status.to_string().contains("No space left on device"));
    // Whatever needs no room goes on: commands, and who watches the console.
    assert_eq!(world.json("a", &["vm", "list"])[0]["running"], true);
    assert!(world.done("a", &["vm", "show", VM]).contains("No space left on device"));
    assert!(world.done("a", &["host", "list"]).contains('a'));
    assert!(world.done("a", &["vm", "console", VM]).contains("shell-42"));
    small.make_room();
    saved.join().unwrap().unwrap();
    console.type_line("echo room-$((40+2))");
    console.wait_for("room-42");
    assert_eq!(world.all_processes(), processes, "a process has ended");
}

#[test]
fn row_14_a_secondary_whose_file_system_fills_is_given_up_or_waits_in_either_mode() {
    for mode in ["mirror", "lockstep"] {
        let mut world = World::empty();
        let Some(small) = Small::mount(&mut world, "b") else { return };
        let world = world.with_hosts_of(&["a", "b"]);
        world.boot_redis("a");
        world.done("a", &["ft", "on", VM, "--yes", "--mode", mode]);
        let client = Client::start(world.address());
        client.wait_for_progress(20);
        small.fill();
        save(&world).join().unwrap().unwrap();
        client.wait_for_progress(50);
        world.wait("a", "the loss to be seen", |status| state(status) != "protected");
        assert!(world.done("b", &["vm", "list"]).contains(VM), "{mode}: its daemon is there");
        small.make_room();
        world.wait_until_protected("b", "a");
        client.wait_for_progress(50);
        assert_eq!(client.stop().error, None, "{mode}");
    }
}
