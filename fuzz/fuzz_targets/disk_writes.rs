//! Disk writes of a checkpoint or a first copy, from a hostile primary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinvm_fuzz::disk_writes(data);
});
