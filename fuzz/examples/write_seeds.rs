//! Writes the cases of well-behaved guests and peers to `corpus/`, for the fuzzer to start from.

use std::path::Path;
use std::{fs, io};

use machine::devices::virtio::testing::seeds;

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let guests = [
        ("virtio_block", seeds::block()),
        ("virtio_queued_block", seeds::block()),
        ("virtio_net", seeds::net()),
        ("virtio_rng", seeds::rng()),
    ];
    for (target, cases) in guests.into_iter().chain(twinvm_fuzz::seeds()) {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        for (number, case) in cases.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), case)?;
        }
    }
    Ok(())
}
