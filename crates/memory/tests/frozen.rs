//! Frozen pages are read as they were, whoever writes to them meanwhile, by whichever way.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use memory::{FrozenMemory, FrozenPages, GuestRam, PAGE_BYTES, PageStore, announce_write};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 512;

fn filled(ram: &GuestRam, value: u8) {
    for page in 0..PAGES {
        assert!(ram.write_offset(page * PAGE_BYTES, &[value; PAGE_BYTES as usize]));
    }
}

fn contents(frozen: &mut FrozenPages) -> Vec<(u64, [u8; PAGE_BYTES as usize])> {
    let mut content = [0xee; PAGE_BYTES as usize];
    std::iter::from_fn(|| frozen.copy_next(&mut content).map(|page| (page, content))).collect()
}

#[test]
fn every_way_to_write_leaves_the_frozen_content_alone() {
    let ways: [fn(&GuestRam); 5] = [
        |ram| {
            ram.mark_dirty_page(7);
            assert!(ram.store_premarked(7 * PAGE_BYTES + 8, 1_u64));
        },
        |ram| assert!(ram.write_offset(7 * PAGE_BYTES - 2, &[9; 4])),
        |ram| ram.write_bytes(6 * PAGE_BYTES, &[9; 3 * PAGE_BYTES as usize]).unwrap(),
        |ram| ram.dma().write_obj(9_u64, GuestAddress(7 * PAGE_BYTES)).unwrap(),
        |ram| ram.dma().write_slice(&[9; 100], GuestAddress(7 * PAGE_BYTES - 50)).unwrap(),
    ];
    for (number, write) in ways.into_iter().enumerate() {
        let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
        filled(&ram, 5);
        let mut frozen = ram.freeze([3, 6, 7, 8, PAGES + 5].into_iter()).unwrap();
        write(&ram);
        let seen = contents(&mut frozen);
        assert_eq!(seen.iter().map(|(page, _)| *page).collect::<Vec<_>>(), [3, 6, 7, 8]);
        assert!(seen.iter().all(|(_, content)| *content == [5; PAGE_BYTES as usize]), "way {number}");
        drop(frozen);
        // The write itself is there, and is what the next one sees.
        let mut frozen = ram.freeze([7].into_iter()).unwrap();
        assert!(contents(&mut frozen).iter().all(|(_, content)| *content != [5; PAGE_BYTES as usize]), "way {number}");
    }
}

#[test]
fn what_is_not_read_thaws_and_only_one_can_freeze() {
    let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
    let frozen = ram.freeze(0..PAGES).unwrap();
    assert!(ram.freeze(0..1).is_none());
    filled(&ram, 1);
    drop(frozen);
    filled(&ram, 2);
    let mut frozen = ram.freeze(10..12).unwrap();
    assert!(contents(&mut frozen).iter().all(|(_, content)| *content == [2; PAGE_BYTES as usize]));
    assert_eq!(frozen.copy_next(&mut [0; PAGE_BYTES as usize]), None);
}

#[test]
fn a_vcpu_that_runs_meanwhile_is_never_seen() {
    let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
    for round in 1..50_u64 {
        // The vCPU stands still here.
        for page in 0..PAGES {
            ram.mark_dirty_page(page);
            for word in 0..512 {
                assert!(ram.store_premarked(page * PAGE_BYTES + word * 8, round));
            }
        }
        let mut frozen = ram.freeze(0..PAGES).unwrap();
        let begun = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                begun.store(true, Ordering::Release);
                for page in (0..PAGES).rev() {
                    ram.mark_dirty_page(page);
                    for word in 0..512 {
                        assert!(ram.store_premarked(page * PAGE_BYTES + word * 8, u64::MAX));
                    }
                }
            });
            while !begun.load(Ordering::Acquire) {
                thread::yield_now();
            }
            for (page, content) in contents(&mut frozen) {
                let words = content.as_chunks::<8>().0;
                assert!(words.iter().all(|word| u64::from_le_bytes(*word) == round), "page {page} in round {round}");
            }
        });
    }
}

/// Keeps pages, so many at most.
struct Kept(Mutex<HashMap<u64, [u8; PAGE_BYTES as usize]>>, usize);

impl PageStore for Kept {
    fn put(&self, page: u64, content: &[u8; PAGE_BYTES as usize]) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        if kept.len() == self.1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        assert!(kept.insert(page, *content).is_none(), "page {page} is kept twice");
        Ok(())
    }

    fn get(&self, page: u64, content: &mut [u8; PAGE_BYTES as usize]) -> io::Result<()> {
        *content = self.0.lock().unwrap()[&page];
        Ok(())
    }
}

fn freeze_all(ram: &GuestRam, pages_max: usize) -> FrozenMemory {
    ram.freeze_all(Box::new(Kept(Mutex::default(), pages_max))).unwrap()
}

/// All that is read; what is left out is zero.
fn all(frozen: &mut FrozenMemory) -> Vec<u8> {
    let mut found = vec![0; (PAGES * PAGE_BYTES) as usize];
    let (mut content, mut last) = ([0xee; PAGE_BYTES as usize], None);
    while let Some(page) = frozen.copy_next(&mut content).unwrap() {
        assert!(last < Some(page));
        last = Some(page);
        found[(page * PAGE_BYTES) as usize..][..content.len()].copy_from_slice(&content);
    }
    found
}

fn whole(ram: &GuestRam) -> Vec<u8> {
    let mut found = vec![0; (PAGES * PAGE_BYTES) as usize];
    assert!(ram.read_offset(0, &mut found));
    found
}

/// A sequence that looks like none.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// Writes somewhere, by some way.
fn write_somewhere(ram: &GuestRam, random: &mut impl FnMut(u64) -> u64) {
    let (offset, byte) = (random(PAGES * PAGE_BYTES - 9000), random(255) as u8 + 1);
    match random(4) {
        0 => {
            ram.mark_dirty_page(offset / PAGE_BYTES);
            assert!(ram.store_premarked(offset / PAGE_BYTES * PAGE_BYTES, u64::from(byte)));
        }
        1 => assert!(ram.write_offset(offset, &vec![byte; random(9000) as usize])),
        2 => ram.write_bytes(offset, &[byte; 5000]).unwrap(),
        _ => {
            announce_write(ram.dma(), GuestAddress(offset), 5000);
            ram.dma().write_slice(&[byte; 5000], GuestAddress(offset)).unwrap();
        }
    }
}

#[test]
fn all_of_memory_is_read_as_it_was_beside_pages_that_are_frozen_for_another() {
    for seed in 0..200 {
        let (ram, mut random) = (GuestRam::new(PAGES * PAGE_BYTES).unwrap(), random(seed));
        for _ in 0..random(100) {
            write_somewhere(&ram, &mut random);
        }
        let expected = whole(&ram);
        let mut frozen = freeze_all(&ram, usize::MAX);
        assert!(ram.freeze_all(Box::new(Kept(Mutex::default(), 0))).is_none());
        for _ in 0..random(50) {
            write_somewhere(&ram, &mut random);
        }
        // A checkpoint in the middle, and then another one.
        for _ in 0..2 {
            let at_checkpoint = whole(&ram);
            let mut pages = ram.freeze((0..PAGES).filter(|page| page % 3 == 0)).unwrap();
            for _ in 0..random(50) {
                write_somewhere(&ram, &mut random);
            }
            for (page, content) in contents(&mut pages) {
                assert!(content[..] == at_checkpoint[(page * PAGE_BYTES) as usize..][..content.len()], "seed {seed}");
            }
        }
        assert!(all(&mut frozen) == expected, "seed {seed}");
        drop(frozen);
        let expected = whole(&ram);
        assert!(all(&mut freeze_all(&ram, 0)) == expected);
    }
}

#[test]
fn a_store_that_is_full_and_a_write_that_nobody_announced_fail_the_reader_alone() {
    let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
    filled(&ram, 5);
    let mut frozen = freeze_all(&ram, 3);
    filled(&ram, 6);
    assert_eq!(frozen.copy_next(&mut [0; PAGE_BYTES as usize]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    drop(frozen);
    assert!(whole(&ram).iter().all(|&byte| byte == 6));
    let mut frozen = freeze_all(&ram, 3);
    ram.dma().write_slice(&[7; 100], GuestAddress(5 * PAGE_BYTES)).unwrap();
    let error = frozen.copy_next(&mut [0; PAGE_BYTES as usize]).unwrap_err();
    assert!(error.to_string().contains("nobody had said so"), "{error}");
}

#[test]
fn a_vcpu_that_runs_while_all_of_memory_is_read_is_never_seen() {
    let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
    for round in 1..50_u8 {
        filled(&ram, round);
        let mut frozen = freeze_all(&ram, usize::MAX);
        thread::scope(|scope| {
            scope.spawn(|| {
                for page in (0..PAGES).rev() {
                    ram.mark_dirty_page(page);
                    for word in 0..512 {
                        assert!(ram.store_premarked(page * PAGE_BYTES + word * 8, u64::MAX));
                    }
                }
            });
            assert!(all(&mut frozen).iter().all(|&byte| byte == round), "round {round}");
        });
    }
}
