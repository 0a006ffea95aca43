//! virtio-blk with queued requests under a hostile guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    machine::devices::virtio::testing::fuzz::queued_block(data);
});
