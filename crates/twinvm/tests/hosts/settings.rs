//! What is changed of a VM: its ports while it runs, its disks and its kernel while it is off.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use crate::console::Console;
use crate::support::guest::free_port;
use crate::support::skipped;
use crate::world::{VM, World};

fn answers(port: u16) -> bool {
    let client = redis::Client::open(("127.0.0.1", port)).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd("PING").query::<String>(&mut connection).unwrap() == "PONG"
}

#[test]
fn row_25_ports_are_changed_while_a_vm_runs_and_stay_so_at_its_takeover() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    world.done("a", &["ft", "on", VM, "--yes"]);
    let (first, second) = (world.address().port(), free_port());
    let set = |ports: &[u16]| {
        let ports: Vec<String> = ports.iter().map(|port| format!("--forward=tcp:127.0.0.1:{port}-:6379")).collect();
        ["vm", "set", VM].map(str::to_owned).into_iter().chain(ports).collect::<Vec<String>>()
    };
    let done = |ports: &[u16]| world.json("b", &set(ports).iter().map(String::as_str).collect::<Vec<_>>());
    let changed = done(&[first, second]);
    assert!(changed["next_spec"].is_null() && changed["cards"][0]["forward"][1].is_string(), "{changed:#}");
    assert!(answers(first) && answers(second));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().port();
    let error = world.refused("b", &set(&[second, busy]).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains(&busy.to_string()) && error.contains("in use"), "{error}");
    assert!(answers(first) && answers(second), "all or none");
    privileged_ports_wait_for_the_next_start(&world, second);
    // One that is forwarded no more, and whose network end is lost: the next one does not bring it back.
    done(&[second]);
    assert!(TcpStream::connect(("127.0.0.1", first)).is_err());
    world.done("a", &["ft", "failover", VM]);
    world.wait_until_protected("a", "b");
    assert!(answers(second) && TcpStream::connect(("127.0.0.1", first)).is_err());
}

/// The daemon of root starts network ends that can open them, and then become an ordinary user's.
fn privileged_ports_wait_for_the_next_start(world: &World, other: u16) {
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let low = (600..1024).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let Some(low) = low.filter(|port| first_free.trim().parse::<u16>().unwrap() > *port) else {
        return skipped("no port below 1024 is one that only root may open");
    };
    let words = [other, low].map(|port| format!("--forward=tcp:127.0.0.1:{port}-:6379"));
    let changed = world.json("b", &["vm", "set", VM, &words[0], &words[1]]);
    let next = changed["next_spec"].as_str().unwrap();
    assert!(next.contains(&low.to_string()), "{changed:#}");
    assert!(changed["note"].as_str().unwrap().contains("at its next start"), "{changed:#}");
    assert!(answers(other) && TcpStream::connect(("127.0.0.1", low)).is_err());
}

#[test]
fn row_25_disks_and_the_kernel_are_changed_while_a_vm_is_off() {
    let world = World::of(&["a", "b"]);
    world.create("a", VM, "test-redis", false);
    let extra = world.path("a").join("files/extra.raw");
    fs::write(&extra, [&b"extra"[..], &[0; 507]].concat()).unwrap();
    let extra = format!("{},raw", extra.display());
    let set = |words: &[&str]| world.json("b", &[&["vm", "set", VM], words].concat());
    let refused = |words: &[&str]| world.refused("b", &[&["vm", "set", VM], words].concat());
    let before = set(&["--autostart", "off"]);
    assert!(refused(&["--remove-disk", "4"]).contains("the first is 0"));
    assert!(refused(&["--add-disk", "/nonesuch"]).contains("/nonesuch"));
    assert!(refused(&["--kernel", "/nonesuch"]).contains("kernel"));
    assert_eq!(world.json("a", &["vm", "show", VM])["disks"], before["disks"]);
    let spec = before["spec"].as_str().unwrap();
    let cmdline = spec.lines().find_map(|line| line.strip_prefix("cmdline = \"")?.strip_suffix('"'));
    let cmdline = format!("{} quiet", cmdline.unwrap());
    let kernel = world.vm_folder("a").join("kernel");
    let other = world.path("a").join("files/kernel");
    fs::copy(&kernel, &other).unwrap();
    let changed = set(&["--add-disk", &extra, "--kernel", other.to_str().unwrap(), "--cmdline", &cmdline]);
    assert_eq!((changed["disks"].as_array().unwrap().len(), &changed["disks"][1]["size_bytes"]), (2, &512.into()));
    world.done("a", &["vm", "start", VM]);
    world.wait_for_redis();
    assert!(refused(&["--remove-disk", "1"]).contains("when it is off"));
    let mut console = Console::connect(&world, "b");
    console.type_line("echo $(head -c 5 /dev/vdb)-$((40+2)) $(grep -c quiet /proc/cmdline)");
    console.wait_for("extra-42 1");
    world.done("a", &["vm", "stop", VM, "--force"]);
    let removed = set(&["--remove-disk", "1"]);
    assert_eq!(removed["disks"], {
        let mut disks = before["disks"].clone();
        disks[0]["allocated_bytes"] = removed["disks"][0]["allocated_bytes"].clone();
        disks
    });
    // It is kept, where a VM may be given it again.
    let note = removed["note"].as_str().unwrap();
    let kept = note.split_whitespace().find(|word| word.contains("disk1.raw")).unwrap().trim_end_matches(':');
    assert!(fs::read(kept).unwrap().starts_with(b"extra") && Path::new(kept).starts_with(world.path("a")), "{note}");
    let again = set(&["--add-disk", kept]);
    assert_eq!(again["disks"].as_array().unwrap().len(), 2);
    is_edited(&world);
}

/// The same in an editor: a third disk comes, by a path that is relative to where the user is.
fn is_edited(world: &World) {
    let disks = || world.json("a", &["vm", "show", VM])["disks"].clone();
    let before = disks();
    let edited = world.edit("b", "false");
    assert!(!edited.success && edited.stderr.contains("nothing was changed"), "{}", edited.stderr);
    assert_eq!(disks(), before);
    let third = world.path("third.toml");
    fs::write(&third, "[[disk]]\npath = \"a/files/extra.raw\"\nformat = \"raw\"\n").unwrap();
    let edited = world.edit("b", &format!("sh -c 'cat {} >> \"$0\"'", third.display()));
    assert!(edited.success, "{}", edited.stderr);
    let after = disks();
    assert_eq!((after.as_array().unwrap().len(), &after[2]["size_bytes"]), (3, &512.into()));
    assert_eq!(&after[0], &before[0]);
    let edited = world.edit("b", "sed -i s/^name.*/name=\\\"other\\\"/");
    assert!(!edited.success && edited.stderr.contains("`name` of VM redis cannot be changed"), "{}", edited.stderr);
}
