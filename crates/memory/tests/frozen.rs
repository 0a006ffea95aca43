//! Frozen pages are read as they were, whoever writes to them meanwhile, by whichever way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use memory::{FrozenPages, GuestRam, PAGE_BYTES};
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
