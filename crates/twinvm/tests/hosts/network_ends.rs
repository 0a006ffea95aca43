//! Network ends that die while their VM runs.

use crate::world::{VM, World, signal};

/// Kills the only network end of the world, and waits until the guest answers again through another one.
fn kill_the_network_end(world: &World) {
    let end = || {
        let mut processes = world.all_processes().into_iter();
        processes.find(|(_, what)| what == "net-end").map(|(pid, _)| pid)
    };
    let killed = end().unwrap();
    signal(killed, "KILL");
    world.wait_for_redis();
    assert_ne!(end().unwrap(), killed);
}

#[test]
fn a_killed_network_end_is_replaced_before_and_after_a_failover() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    kill_the_network_end(&world);
    world.done("a", &["ft", "on", VM, "--yes"]);
    world.wait_until_protected("a", "a");
    kill_the_network_end(&world);
    world.wait("a", "nothing to be broken", |status| {
        status["replicas"].as_array().is_some_and(|replicas| {
            replicas.len() == 2
                && replicas.iter().all(|replica| replica["faults"].as_array().is_some_and(Vec::is_empty))
        })
    });
    world.wait_until_protected("a", "a");
    world.done("a", &["ft", "failover", VM]);
    world.wait_until_protected("a", "b");
    world.wait_for_redis();
    kill_the_network_end(&world);
}
