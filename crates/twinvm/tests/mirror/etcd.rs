//! The store is in etcd, and the hosts share nothing else.

use std::thread;
use std::time::Duration;

use crate::bridged::{GUEST, Switch, on_bridges};
use crate::client::Client;
use crate::faults::assert_whole;
use crate::members::{Members, Place};
use crate::replicas::{Setup, World};

/// As on three machines, each with a member of etcd: nothing is shared but the network. A host that fails takes its member with it.
#[test]
fn hosts_that_share_nothing_but_etcd_survive_the_loss_of_a_host_with_its_member() {
    on_bridges(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut switch = Switch::enter();
        let names = ["a", "b", "c"];
        let addresses: Vec<String> = (0..3).map(|number| format!("10.98.0.{}", 11 + number)).collect();
        let places: Vec<Place> = addresses
            .iter()
            .map(|address| {
                let namespace = Some(switch.connect(folder.path(), address).namespace.clone());
                Place { namespace, ip: address.clone(), ports: (2379, 2380) }
            })
            .collect();
        let mut members = Members::start_at(places, None);
        let mut world = World::on_etcd(Setup::redis(), members.address());
        world.set_guest_address(GUEST);
        for ((name, address), host) in names.iter().zip(&addresses).zip(&switch.hosts) {
            world.place(name, &host.namespace, address);
            world.set_end(name, &host.socket);
        }
        let primary = world.booted();
        let secondary = world.protect(&primary, "b");
        let client = Client::start(world.address());
        client.wait_for_progress(50);
        members.kill(0);
        switch.hosts[0].kill_end();
        primary.kill();
        secondary.wait_for_takeover();
        client.wait_for_progress(50);
        // Two of three members are left: protection is had again, and a second loss of a member is one too many for another takeover.
        let third = world.protect(&secondary, "c");
        client.wait_for_progress(50);
        members.kill(1);
        secondary.kill();
        thread::sleep(Duration::from_secs(3));
        assert_eq!(third.status().unwrap()["role"], "secondary", "it went on without a majority");
        members.restart(0);
        third.wait_for_takeover();
        client.wait_for_progress(50);
        assert_whole(&client.stop());
    });
}
