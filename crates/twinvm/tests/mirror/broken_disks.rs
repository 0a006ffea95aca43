//! Disks that fail, fill or hang under a primary. What the guest asked for is done in the end, wherever that is, and it never sees an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::disks::limit_files;
use crate::faults::{assert_survives, assert_whole, protected};
use crate::replicas::{Replica, Setup, World};
use crate::support::{HUNG, skipped};

/// No process can write beyond this to any file: an image has no room for anything new.
pub const FULL_BYTES: u64 = 1 << 16;

/// The disk's fault, as a replica tells it.
pub fn disk_fault(status: &Value) -> Option<&str> {
    let fault = status["faults"].as_array()?.iter().find(|fault| fault["part"] == "disk 0")?;
    fault["detail"].as_str().filter(|_| fault["since_unix_ms"].is_u64())
}

/// Redis writes what it holds to the guest's disk, with a flush, and says whether that worked. In a thread: it may take until the disk is mended, and
/// so may the connection, if the guest writes to its disk of its own accord before.
pub fn save(world: &World) -> thread::JoinHandle<redis::RedisResult<()>> {
    let client = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    // Not to be compressed, and never where an earlier one was.
    let value: Vec<u8> = (0..4u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    thread::spawn(move || {
        let mut connection = client.get_connection_with_timeout(HUNG)?;
        connection.set_read_timeout(Some(HUNG))?;
        let _: () = redis::cmd("SET").arg("large").arg(value).query(&mut connection)?;
        for _ in 0..2 {
            let _: () = redis::cmd("SAVE").query(&mut connection)?;
        }
        Ok(())
    })
}

/// A file system of its own for a host's disks, as long as it lives.
struct Datastore {
    folder: PathBuf,
    is_frozen: bool,
}

impl Datastore {
    /// Nothing where nothing can be mounted.
    fn mount(world: &World, host: &str, kind: &[&str]) -> Option<Self> {
        let folder = world.folder_of(host);
        fs::create_dir_all(&folder).unwrap();
        let mounted = Command::new("mount").args(kind).arg(&folder).status().is_ok_and(|status| status.success());
        if !mounted {
            skipped(&format!("this user cannot mount {kind:?}"));
        }
        mounted.then_some(Self { folder, is_frozen: false })
    }

    fn small(world: &World, host: &str) -> Option<Self> {
        Self::mount(world, host, &["-t", "tmpfs", "-o", "size=64m", "tmpfs"])
    }

    fn on_device(world: &World, host: &str) -> Option<Self> {
        let image = world.folder_of(&format!("{host}.img"));
        fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status().is_ok_and(|status| status.success());
        if !made {
            skipped("there is no mkfs.ext4");
            return None;
        }
        Self::mount(world, host, &["-o", "loop", image.to_str().unwrap()])
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    fn fill(&self) {
        let error = fs::write(self.filler(), vec![1; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// From now on whoever writes there waits.
    fn freeze(&mut self) {
        self.is_frozen = true;
        assert!(fsfreeze("-f", &self.folder));
    }

    fn thaw(&mut self) {
        self.is_frozen = false;
        assert!(fsfreeze("-u", &self.folder));
    }
}

fn fsfreeze(how: &str, folder: &Path) -> bool {
    Command::new("fsfreeze").arg(how).arg(folder).status().unwrap().success()
}

impl Drop for Datastore {
    fn drop(&mut self) {
        if self.is_frozen {
            fsfreeze("-u", &self.folder);
        }
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn protected_on(world: &mut World) -> (Replica, Replica, Client) {
    let primary = world.booted();
    let secondary = world.protect(&primary, "b");
    let client = Client::start(world.address());
    client.wait_for_progress(20);
    (primary, secondary, client)
}

#[test]
fn a_primary_whose_disk_fails_hands_over_before_the_guest_sees_it() {
    let (mut world, primary, secondary, client) = protected(Setup::redis());
    limit_files(&primary, FULL_BYTES);
    let saved = save(&world);
    secondary.wait_for_takeover();
    saved.join().unwrap().unwrap();
    client.wait_for_progress(50);
    assert_eq!(primary.wait_for_end()["end"], "lost-arbitration");
    let third = world.protect(&secondary, "c");
    assert_survives(secondary, &third, client);
}

#[test]
fn a_primary_whose_datastore_is_full_hands_over_before_the_guest_sees_it() {
    let mut world = World::new(Setup::redis());
    let Some(datastore) = Datastore::small(&world, "a") else { return };
    let (primary, secondary, client) = protected_on(&mut world);
    datastore.fill();
    let saved = save(&world);
    secondary.wait_for_takeover();
    saved.join().unwrap().unwrap();
    client.wait_for_progress(50);
    assert_whole(&client.stop());
    // It ends, though there is no room to say why.
    primary.wait_for_end();
}

#[test]
fn row_28_a_primary_whose_datastore_hangs_hands_over() {
    let mut world = World::new(Setup::redis());
    let Some(mut datastore) = Datastore::on_device(&world, "a") else { return };
    let (primary, secondary, client) = protected_on(&mut world);
    datastore.freeze();
    let saved = save(&world);
    secondary.wait_for_takeover();
    saved.join().unwrap().unwrap();
    client.wait_for_progress(50);
    assert_whole(&client.stop());
    datastore.thaw();
    primary.wait_for_end();
}

#[test]
fn an_unprotected_guest_on_a_full_datastore_stands_still_until_there_is_room() {
    let mut world = World::new(Setup::redis());
    let Some(datastore) = Datastore::small(&world, "a") else { return };
    let primary = world.booted();
    let client = Client::start(world.address());
    client.wait_for_progress(20);
    datastore.fill();
    let saved = save(&world);
    let status = primary.wait("the fault to be seen", |status| disk_fault(status).is_some());
    let detail = disk_fault(&status).unwrap();
    assert!(detail.contains("No space left on device") && detail.contains("make room on the datastore"), "{detail}");
    assert!(detail.contains("disk0.qcow2"), "{detail}");
    // What needs the guest paused says why it cannot be done.
    let refused = primary.ask(&json!({ "request": "stop", "force": false })).unwrap_err();
    assert!(refused.contains("disk 0 is broken"), "{refused}");
    // It is not to be protected by a copy of that.
    let secondary = world.start_secondary("b");
    let address = secondary.status().unwrap()["listen"].clone();
    let protect = json!({ "request": "protect", "secondary": "b", "address": address });
    assert!(primary.ask(&protect).unwrap_err().contains("disk 0 is broken"));
    drop(secondary);
    let before = client.acknowledged();
    thread::sleep(Duration::from_millis(500));
    assert!(client.acknowledged() <= before + 1, "the guest runs");
    datastore.make_room();
    saved.join().unwrap().unwrap();
    client.wait_for_progress(50);
    primary.wait("the fault to be over", |status| disk_fault(status).is_none());
    let secondary = world.protect(&primary, "b");
    assert_survives(primary, &secondary, client);
}

#[test]
fn a_guest_whose_disks_are_full_on_both_hosts_stands_still_and_loses_nothing() {
    let (mut world, mut primary, mut secondary, client) = protected(Setup::redis());
    limit_files(&primary, FULL_BYTES);
    limit_files(&secondary, FULL_BYTES);
    let saved = save(&world);
    // Which of them keeps the VM depends on who finds out first; the other one ends.
    let deadline = Instant::now() + HUNG;
    let halted = loop {
        assert!(Instant::now() < deadline, "{}\n{}", primary.log(), secondary.log());
        match (primary.has_ended(), secondary.has_ended()) {
            (true, _) => break secondary,
            (_, true) => break primary,
            _ => thread::sleep(Duration::from_millis(20)),
        }
    };
    halted.wait("the guest to stand still", |status| {
        status["role"] == "primary" && disk_fault(status).is_some() && status["protection"]["state"] == "need-secondary"
    });
    limit_files(&halted, u64::MAX);
    saved.join().unwrap().unwrap();
    client.wait_for_progress(50);
    let third = world.protect(&halted, "c");
    assert_survives(halted, &third, client);
}
