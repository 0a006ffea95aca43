//! Segments of the event log, from a hostile primary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinvm_fuzz::log_segments(data);
});
