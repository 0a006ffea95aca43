//! Bulk copies and fills within RAM.

use memory::GuestRam;

#[test]
fn copies_with_overlap_keep_the_source_as_it_was() {
    let ram = GuestRam::new(4096).unwrap();
    assert!(ram.write_offset(0, b"abcdef"));
    assert!(ram.copy_premarked(0, 2, 6));
    assert_eq!(ram.load::<u64>(0), Some(u64::from_le_bytes(*b"ababcdef")));
}

#[test]
fn fills_write_each_scalar_at_any_alignment() {
    let ram = GuestRam::new(4096).unwrap();
    assert!(ram.fill_premarked(3, 0x1122_u16, 2));
    assert_eq!(ram.load::<u64>(0), Some(0x0011_2211_2200_0000));
}

#[test]
fn bulk_accesses_out_of_bounds_are_refused() {
    let ram = GuestRam::new(4096).unwrap();
    assert!(!ram.copy_premarked(0, 4090, 7));
    assert!(!ram.copy_premarked(4090, 0, 7));
    assert!(!ram.fill_premarked(4090, 0u64, 1));
    assert!(!ram.fill_premarked(0, 0u64, u64::MAX));
    assert!(ram.copy_premarked(0, 4096, 0));
}
