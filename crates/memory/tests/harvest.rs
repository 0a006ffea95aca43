//! What becomes of dirty pages: harvested, merged, acknowledged, given back; and which pages hold anything at all.

use memory::{GuestRam, Harvest, PAGE_BYTES};

fn ram_with_dirty(pages: impl IntoIterator<Item = u64>) -> GuestRam {
    let ram = GuestRam::new(1024 * PAGE_BYTES).unwrap();
    mark(&ram, pages);
    ram
}

fn mark(ram: &GuestRam, pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        ram.mark_dirty_page(page);
    }
}

fn pages(harvest: &Harvest) -> Vec<u64> {
    harvest.pages().collect()
}

#[test]
fn a_merged_harvest_holds_the_pages_of_both_once() {
    let ram = ram_with_dirty([3, 64, 700]);
    let mut first = ram.harvest();
    mark(&ram, [0, 3, 65, 1023]);
    first.merge(ram.harvest());
    assert_eq!(pages(&first), [0, 3, 64, 65, 700, 1023]);
    assert_eq!(first.len(), 6);
    assert_eq!(ram.dirty_pages_estimate(), 0, "merging gives nothing back");
    mark(&ram, [3, 4]);
    assert_eq!(ram.dirty_pages_estimate(), 2);
    first.give_back();
    assert_eq!(ram.dirty_pages_estimate(), 7);
    let all = ram.harvest();
    assert_eq!(pages(&all), [0, 3, 4, 64, 65, 700, 1023]);
    all.acknowledge();
    assert!(ram.harvest().is_empty());
}

#[test]
fn harvests_given_back_out_of_order_lose_nothing() {
    let ram = ram_with_dirty([1, 2]);
    let first = ram.harvest();
    mark(&ram, [2, 3]);
    let second = ram.harvest();
    second.acknowledge();
    first.give_back();
    assert_eq!(pages(&ram.harvest()), [1, 2]);
}

#[test]
fn only_pages_that_were_touched_are_allocated() {
    let ram = ram_with_dirty([]);
    assert_eq!(ram.allocated_pages(0), None);
    for page in [5, 6, 900] {
        assert!(ram.write_offset(page * PAGE_BYTES + 7, &[1]));
    }
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(range) = ram.allocated_pages(from) {
        assert!(range.start >= from && range.start < range.end);
        from = range.end;
        found.extend(range);
    }
    // The kernel may allocate more than was touched.
    assert!([5, 6, 900].iter().all(|page| found.contains(page)) && found.iter().all(|&page| page < ram.pages()));
    assert_eq!(ram.allocated_pages(ram.pages()), None);
    assert_eq!(ram.allocated_pages(u64::MAX), None);
}
