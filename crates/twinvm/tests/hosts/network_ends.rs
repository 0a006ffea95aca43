//! Network ends that die or hang while their VM runs.

use crate::processes::signal;
use crate::world::{VM, World};

/// Kills or stops the only network end of the world, and waits until the guest answers again through another one.
fn lose_the_network_end(world: &World, by: &str) {
    let end = || {
        let mut processes = world.all_processes().into_iter();
        processes.find(|(_, what)| what == "net-end").map(|(pid, _)| pid)
    };
    let lost = end().unwrap();
    signal(lost, by);
    world.wait_for_redis();
    assert_ne!(end().unwrap(), lost);
}

#[test]
fn row_26_a_network_end_that_was_killed_or_hangs_is_replaced_before_and_after_a_failover() {
    let world = World::of(&["a", "b"]);
    world.boot_redis("a");
    lose_the_network_end(&world, "KILL");
    world.done("a", &["ft", "on", VM, "--yes"]);
    world.wait_until_protected("a", "a");
    // One that is there and does nothing was taken for sound, for good.
    lose_the_network_end(&world, "STOP");
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
    lose_the_network_end(&world, "KILL");
}
