//! All tracked writers against a plain oracle: a byte vector and a set of dirty pages.

use std::collections::BTreeSet;

use memory::{GuestRam, PAGE_BYTES};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 40;

#[derive(Clone, Debug)]
enum Step {
    Vcpu { offset: u64, value: u64 },
    Dma { offset: u64, bytes: Vec<u8> },
    Apply { offset: u64, bytes: Vec<u8> },
    Kernel { first_page: u64, words: Vec<u64> },
    HarvestAndAcknowledge,
    HarvestAndDrop,
}

fn step() -> impl Strategy<Value = Step> {
    let offset = 0..PAGES * PAGE_BYTES + 64;
    let bytes = prop::collection::vec(any::<u8>(), 0..9000);
    prop_oneof![
        (offset.clone(), any::<u64>()).prop_map(|(offset, value)| Step::Vcpu { offset, value }),
        (offset.clone(), bytes.clone()).prop_map(|(offset, bytes)| Step::Dma { offset, bytes }),
        (offset, bytes).prop_map(|(offset, bytes)| Step::Apply { offset, bytes }),
        (0..PAGES, prop::collection::vec(any::<u64>(), 0..2))
            .prop_map(|(first_page, words)| Step::Kernel { first_page, words }),
        Just(Step::HarvestAndAcknowledge),
        Just(Step::HarvestAndDrop),
    ]
}

#[derive(Default)]
struct Oracle {
    bytes: Vec<u8>,
    dirty: BTreeSet<u64>,
}

impl Oracle {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        for at in offset..offset + bytes.len() as u64 {
            self.dirty.insert(at / PAGE_BYTES);
        }
    }

    fn fits(&self, offset: u64, len: usize) -> bool {
        offset as usize + len <= self.bytes.len()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn ram_and_dirty_pages_match_the_oracle(steps in prop::collection::vec(step(), 1..60)) {
        let ram = GuestRam::new(PAGES * PAGE_BYTES).unwrap();
        let mut oracle = Oracle { bytes: vec![0; (PAGES * PAGE_BYTES) as usize], ..Oracle::default() };
        for step in steps {
            match step {
                Step::Vcpu { offset, value } => {
                    let fits = oracle.fits(offset, 8);
                    if fits {
                        ram.mark_dirty_page(offset / PAGE_BYTES);
                        ram.mark_dirty_page((offset + 7) / PAGE_BYTES);
                        oracle.write(offset, &value.to_le_bytes());
                    }
                    prop_assert_eq!(ram.store_premarked(offset, value), fits);
                    prop_assert_eq!(ram.load::<u64>(offset), fits.then_some(value));
                }
                Step::Dma { offset, bytes } => {
                    let fits = oracle.fits(offset, bytes.len());
                    if fits {
                        prop_assert!(ram.dma().write_slice(&bytes, GuestAddress(offset)).is_ok() || bytes.is_empty());
                        oracle.write(offset, &bytes);
                    }
                }
                Step::Apply { offset, bytes } => {
                    let fits = oracle.fits(offset, bytes.len());
                    prop_assert_eq!(ram.write_offset(offset, &bytes), fits);
                    if fits {
                        oracle.write(offset, &bytes);
                    }
                }
                Step::Kernel { first_page, words } => {
                    ram.merge_dirty_words(first_page, &words);
                    for (index, word) in words.iter().enumerate() {
                        for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                            let page = first_page + index as u64 * 64 + bit;
                            if page < PAGES {
                                oracle.dirty.insert(page);
                            }
                        }
                    }
                }
                Step::HarvestAndAcknowledge => {
                    let harvest = ram.harvest();
                    prop_assert_eq!(harvest.len(), oracle.dirty.len() as u64);
                    prop_assert!(harvest.pages().eq(oracle.dirty.iter().copied()));
                    harvest.acknowledge();
                    oracle.dirty.clear();
                }
                Step::HarvestAndDrop => {
                    let harvest = ram.harvest();
                    prop_assert!(harvest.pages().eq(oracle.dirty.iter().copied()));
                    prop_assert!((0..PAGES).all(|page| !ram.is_dirty(page)));
                }
            }
            prop_assert!((0..PAGES).all(|page| ram.is_dirty(page) == oracle.dirty.contains(&page)));
        }
        let mut bytes = vec![0; oracle.bytes.len()];
        prop_assert!(ram.read_offset(0, &mut bytes));
        prop_assert_eq!(bytes, oracle.bytes);
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for size in [0, 1, 4095, 4097, GuestRam::SIZE_BYTES_MAX + PAGE_BYTES, u64::MAX] {
        assert!(GuestRam::new(size).is_err(), "{size}");
    }
}

#[test]
fn a_view_outlives_the_ram_it_came_from() {
    let ram = GuestRam::new(16 * PAGE_BYTES).unwrap();
    let view = ram.dma().clone();
    drop(ram);
    view.write_slice(&[1, 2, 3], GuestAddress(4096)).unwrap();
    let mut back = [0; 3];
    view.read_slice(&mut back, GuestAddress(4096)).unwrap();
    assert_eq!(back, [1, 2, 3]);
}

#[test]
fn addresses_above_the_device_hole_reach_high_ram() {
    let ram = GuestRam::new(memory::LOW_END + 16 * PAGE_BYTES).unwrap();
    ram.write_bytes(memory::HIGH_START + 5, b"high").unwrap();
    assert_eq!(ram.load::<u32>(memory::LOW_END + 5), Some(u32::from_le_bytes(*b"high")));
    assert!(ram.is_dirty((memory::LOW_END + 5) / PAGE_BYTES));
    assert!(ram.write_bytes(memory::LOW_END - 2, b"edge").is_err());
}
