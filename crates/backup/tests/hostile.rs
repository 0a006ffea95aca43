//! Repositories whose keeper has changed what is in them.

#[allow(dead_code, reason = "the tests of repositories use the rest")]
mod support;

use std::fs;

use backup::{Backup, CHUNK_BYTES};
use proptest::prelude::*;

use support::{Place, files, noise, of, read};

/// A change of a file.
#[derive(Clone, Debug)]
enum Change {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Replace(Vec<u8>),
    /// By another file of the repository, under this one's name.
    Swap(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), 1..=255u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        // Beginnings and ends have lengths in them.
        (0..40usize, 1..=255u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (0..40usize, 1..=255u8).prop_map(|(at, bits)| Change::Flip(usize::MAX - at, bits)),
        any::<usize>().prop_map(Change::Cut),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, what)| Change::Insert(at, what)),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(Change::Replace),
        any::<usize>().prop_map(Change::Swap),
    ]
}

fn changed(content: &[u8], change: &Change, others: &[Vec<u8>]) -> Vec<u8> {
    let mut content = content.to_vec();
    let length = content.len();
    match change {
        Change::Flip(at, bits) if *at > usize::MAX / 2 => content[length - 1 - (usize::MAX - at) % length] ^= bits,
        Change::Flip(at, bits) => content[at % length] ^= bits,
        Change::Cut(at) => content.truncate(at % length),
        Change::Insert(at, what) => drop(content.splice(at % length..at % length, what.clone())),
        Change::Replace(what) => content.clone_from(what),
        Change::Swap(with) => content.clone_from(&others[with % others.len()]),
    }
    content
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_changed_is_never_taken_for_what_was_written(which in any::<usize>(), change in change()) {
        let place = Place::new();
        let repository = place.open();
        let disks: Vec<Vec<u8>> = (0..2).map(|n| noise(n, CHUNK_BYTES + 1000)).collect();
        let points: Vec<_> = disks.iter().map(|disk| {
            let mut backup = Backup::begin(&repository, of("shop", 1)).unwrap();
            backup.begin_volume("disk0", disk.len() as u64).unwrap();
            backup.data(0, disk).unwrap();
            backup.commit().unwrap()
        }).collect();
        let all: Vec<_> = ["packs", "points"].iter().flat_map(|folder| files(&place.folder().join(folder))).collect();
        let contents: Vec<Vec<u8>> = all.iter().map(|path| fs::read(path).unwrap()).collect();
        let which = which % all.len();
        let bad = changed(&contents[which], &change, &contents);
        fs::write(&all[which], &bad).unwrap();
        let found = place.open().verify(|_| ()).unwrap();
        prop_assert_eq!(found.is_good(), bad == contents[which], "{:?}", found);
        let listed = place.open().points().unwrap();
        for (point, disk) in points.iter().zip(&disks) {
            prop_assert!(listed.points.contains(point) || listed.unreadable.iter().any(|(id, _)| *id == point.id));
            if let Ok(content) = read(&repository, point, "disk0") {
                prop_assert!(content == *disk);
            }
        }
        // Nothing is removed that was whole, and nothing panics.
        let _ = repository.prune(backup::When::Later, std::time::SystemTime::now());
        let _ = Backup::begin(&repository, of("shop", 2)).unwrap().commit();
    }
}
