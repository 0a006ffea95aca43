//! virtio-rng under a hostile guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    machine::devices::virtio::testing::fuzz::rng(data);
});
