//! What only lockstep knows: the secondary executes, lags, and may turn out not to be the same.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::faults::{assert_survives, assert_whole, protected};
use crate::replicas::{Replica, Setup, ask_in};

/// Bytes of a process that are searched at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Waits until the secondary has compared more digests.
fn wait_for_digests(primary: &Replica, more: u64) -> Value {
    let digests = |status: &Value| status["figures"]["lockstep"]["digests"].as_u64().unwrap_or(0);
    let from = digests(&primary.status().unwrap());
    primary.wait("digests to be compared", |status| digests(status) >= from + more)
}

/// Changes every occurrence of `from` in the memory of the guest that a replica holds; returns how many there are.
fn corrupt_memory(replica: &Replica, from: &[u8], to: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{}/maps", replica.pid())).unwrap();
    let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", replica.pid())).unwrap();
    let mut found = 0;
    for map in maps.lines().filter(|map| map.contains("/memfd:")) {
        let (start, end) = map.split_whitespace().next().unwrap().split_once('-').unwrap();
        let mut at = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mut chunk = vec![0; CHUNK_BYTES];
        while at < end {
            let len = CHUNK_BYTES.min((end - at) as usize);
            if memory.read_exact_at(&mut chunk[..len], at).is_ok() {
                for index in chunk[..len].windows(from.len()).enumerate().filter(|(_, w)| *w == from).map(|(i, _)| i) {
                    memory.write_all_at(to, at + index as u64).unwrap();
                    found += 1;
                }
            }
            at += len as u64;
        }
    }
    found
}

#[test]
fn a_secondary_whose_memory_differs_is_found_out_and_replaced() {
    let (mut world, primary, secondary, client) = protected(Setup::redis());
    let redis = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let mut connection = redis.get_connection().unwrap();
    let _: () =
        redis::cmd("SET").arg("marker").arg("what-nobody-else-writes-0123456789").query(&mut connection).unwrap();
    wait_for_digests(&primary, 2);
    assert!(corrupt_memory(&secondary, b"what-nobody-else-writes", b"what-nobody-else-WRITES") > 0);
    // The page is part of a digest once it has been touched.
    let _: () = redis::cmd("SETRANGE").arg("marker").arg(33).arg("x").query(&mut connection).unwrap();
    let status = primary.wait_until_alone();
    assert_eq!(status["protection"]["reason"], "divergence", "{status}");
    assert_ne!(secondary.wait_for_end()["end"], "failed");
    let evidence = |folder: &std::path::Path, replica: &str| {
        let is_evidence = |name: &str| name.starts_with("divergence-") && name.ends_with(&format!("-{replica}.json"));
        let mut names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let path = names.find(|path| is_evidence(path.file_name().unwrap().to_str().unwrap())).expect("evidence");
        serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let here = evidence(&primary.folder, "primary");
    let there = evidence(&primary.folder.with_file_name("b"), "secondary");
    assert_eq!(here["instructions"], there["instructions"]);
    assert_eq!(here["digest"], there["digest_of_the_other"]);
    assert_eq!(here["state"], there["state"], "only memory was changed");
    let pages = |evidence: &Value| evidence["pages"].as_array().unwrap().clone();
    let differ = pages(&here).iter().zip(&pages(&there)).filter(|(a, b)| a != b).count();
    assert!((1..10).contains(&differ), "{differ} pages differ");
    client.wait_for_progress(50);
    let secondary = world.protect(&primary, "c");
    client.wait_for_progress(50);
    assert_survives(primary, &secondary, client);
}

#[test]
fn the_mode_changes_under_load_without_losing_protection() {
    let (_world, primary, secondary, client) = protected(Setup::redis());
    let (stop, watched) = (Arc::<AtomicBool>::default(), primary.folder.clone());
    let watcher = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut looks = 0;
            while !stop.load(Ordering::Acquire) {
                let status = ask_in(&watched, &json!({ "request": "status" })).unwrap();
                assert_eq!(status["protection"]["state"], "protected", "{status}");
                looks += 1;
            }
            looks
        }
    });
    for round in 0..10 {
        let mode = if round % 2 == 0 { "mirror" } else { "lockstep" };
        primary.ask(&json!({ "request": "set-mode", "mode": mode })).unwrap();
        primary.wait("the mode to change", |status| status["figures"]["lockstep"].is_null() == (mode == "mirror"));
        client.wait_for_progress(20 + round * 7);
    }
    wait_for_digests(&primary, 3);
    primary.ask(&json!({ "request": "set-mode", "mode": "mirror" })).unwrap();
    client.wait_for_progress(100);
    stop.store(true, Ordering::Release);
    assert!(watcher.join().unwrap() > 10);
    assert_survives(primary, &secondary, client);
}

#[test]
fn a_primary_lost_while_its_mode_changes_costs_nothing() {
    let (mut world, mut primary, mut secondary, client) = protected(Setup::redis());
    for (round, host) in ["a", "b", "a", "b", "a", "b"].into_iter().enumerate() {
        let mode = if round % 2 == 0 { "mirror" } else { "lockstep" };
        primary.ask(&json!({ "request": "set-mode", "mode": mode })).unwrap();
        std::thread::sleep(Duration::from_micros(round as u64 * 1500));
        primary.kill();
        secondary.wait_for_takeover();
        client.wait_for_progress(20);
        primary = secondary;
        primary.ask(&json!({ "request": "set-mode", "mode": mode })).unwrap();
        secondary = world.protect(&primary, host);
        client.wait_for_progress(20);
    }
    assert_whole(&client.stop());
}

#[test]
fn a_slow_secondary_slows_the_guest_down_and_takes_over_from_where_it_should() {
    let (world, primary, secondary, client) = protected(Setup::redis());
    let (stop, pid) = (Arc::<AtomicBool>::default(), secondary.pid());
    let brake = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let signal = |name: &str| {
                assert!(std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
            };
            while !stop.load(Ordering::Acquire) {
                signal("-STOP");
                std::thread::sleep(Duration::from_millis(250));
                signal("-CONT");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let address = world.address();
    let load = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut connection = redis::Client::open(("127.0.0.1", address.port())).unwrap().get_connection().unwrap();
            while !stop.load(Ordering::Acquire) {
                let busy = "local x = 0 for i = 1, 300000 do x = x + i % 7 end return x";
                let _: u64 = redis::cmd("EVAL").arg(busy).arg(0).query(&mut connection).unwrap();
            }
        }
    });
    let mut lag_ms_max: f64 = 0.0;
    for _ in 0..100 {
        let status = primary.status().unwrap();
        lag_ms_max = lag_ms_max.max(status["figures"]["lockstep"]["lag_ms"].as_f64().unwrap_or(0.0));
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = primary.status().unwrap();
    assert!(status["figures"]["throttled"].as_u64().unwrap() > 0, "{status}");
    assert!(lag_ms_max > 100.0 && lag_ms_max < 1500.0, "{lag_ms_max}");
    stop.store(true, Ordering::Release);
    brake.join().unwrap();
    load.join().unwrap();
    assert_survives(primary, &secondary, client);
}
