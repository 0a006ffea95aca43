//! Network ends that die or hang while their VM runs.

use std::time::{Duration, Instant};

use crate::console::Console;
use crate::processes::signal;
use crate::support::place;
use crate::world::{VM, World};

/// How long a guest may be without its network after its network end was killed, where nothing else keeps the machine busy.
const WITHOUT_NETWORK_MAX: Duration = Duration::from_secs(1);
/// The machine may be busy once, but not always.
const TRIES: usize = 6;

/// Kills or stops the only network end of the world, and waits until the guest answers again through another one; how long that took.
fn lose_the_network_end(world: &World, by: &str) -> Duration {
    let end = || {
        let mut processes = world.all_processes().into_iter();
        processes.find(|(_, what)| what == "net-end").map(|(pid, _)| pid)
    };
    let lost = end().unwrap();
    let since = Instant::now();
    signal(lost, by);
    world.wait_for_redis();
    assert_ne!(end().unwrap(), lost);
    since.elapsed()
}

#[test]
fn a_guest_has_its_network_back_within_a_second_and_also_after_it_was_rebooted() {
    let world = World::of(&["a"]);
    world.boot_redis("a");
    let times: Vec<Duration> = (0..TRIES).map(|_| lose_the_network_end(&world, "KILL")).collect();
    let fastest = times.iter().min().unwrap();
    assert!(*fastest < WITHOUT_NETWORK_MAX * place::slowness(), "{times:?}");
    // The guest resets itself: the replica's process stays, and the card is another one.
    let replicas = world.replicas("a");
    let mut console = Console::connect(&world, "a");
    console.type_line("reboot -f");
    console.wait_for("Linux version");
    world.wait_for_redis();
    assert_eq!(world.replicas("a"), replicas);
    lose_the_network_end(&world, "KILL");
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
