//! Output and inbound frames, from a hostile primary.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinvm_fuzz::frames(data);
});
