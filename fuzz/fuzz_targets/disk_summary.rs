//! The summary of its disks, from a hostile secondary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinvm_fuzz::disk_summary(data);
});
