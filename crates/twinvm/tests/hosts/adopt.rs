//! VMs in the foreground that are given a host.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use crate::support::HUNG;
use crate::world::{VM, World, state};

fn ask<T: redis::FromRedisValue>(world: &World, command: &redis::Cmd) -> T {
    let client = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let mut connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(HUNG)).unwrap();
    command.query(&mut connection).unwrap()
}

#[test]
fn row_22_a_vm_in_the_foreground_is_adopted_with_what_is_on_its_disks_and_can_be_protected() {
    // Only host `a` takes files from where the VM's are.
    let allowed = format!("vm_folders = [{:?}]", std::env::temp_dir());
    let world = World::with_settings(&["a", "b"], |host, text| match host {
        "a" => text.replace("vm_folders = []", &allowed),
        _ => text,
    });
    let spec = world.spec(VM, "test-redis", false, world.address().port());
    let error = world.refused("a", &["vm", "adopt", VM]);
    assert!(error.contains("no VM named redis runs in the foreground") && error.contains("vm create"), "{error}");
    // A name that is taken is found out before the guest is disturbed.
    world.done("b", &["vm", "create", spec.to_str().unwrap()]);
    let mut foreground = world.spawn_with("a", &["run", "redis.toml", "--json"], Stdio::null());
    world.wait_for_redis();
    let error = world.refused("a", &["vm", "adopt", VM]);
    assert!(error.contains("twinvm vm rename redis"), "{error}");
    assert!(foreground.try_wait().unwrap().is_none());
    world.done("b", &["vm", "rm", VM, "--yes"]);
    // So is a host that could not have its disk.
    let error = world.refused("b", &["vm", "adopt", VM]);
    assert!(error.contains("the VM goes on as it is") && error.contains("vm_folders"), "{error}");
    assert!(foreground.try_wait().unwrap().is_none());
    // So is that there is no host which could take it.
    assert!(world.refused("nowhere", &["vm", "adopt", VM]).contains("twinvm host init"));

    let () = ask(&world, redis::cmd("SET").arg("greeting").arg("hello"));
    let () = ask(&world, &redis::cmd("SAVE"));
    assert!(world.run("a", &["vm", "show", VM]).stdout.contains("twinvm vm adopt redis"));
    let adopted = world.json("a", &["vm", "adopt", VM]);
    assert_eq!((adopted["running"].as_bool(), adopted["host"].as_str()), (Some(true), Some("a")));
    let deadline = Instant::now() + HUNG;
    while foreground.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the VM in the foreground goes on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    world.wait_for_redis();
    assert_eq!(ask::<String>(&world, redis::cmd("GET").arg("greeting")), "hello");
    let disk = world.vm_folder("a").join("disk0.qcow2");
    assert_eq!(adopted["disks"][0]["path"].as_str(), disk.to_str());
    assert!(fs::exists(world.path("redis.qcow2")).unwrap(), "the files that it ran from stay");
    let on = world.json("a", &["ft", "on", VM, "--yes"]);
    assert_eq!(state(&on), "protected");
}
