//! Page records of a checkpoint, from a hostile primary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinvm_fuzz::page_records(data);
});
