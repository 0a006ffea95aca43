//! Flushes that are put off.

use replication::disk::{DeferredFlushes, DiskOp, DiskSet, DiskWrite};
use spec::DiskFormat;
use storage::disk::{DiskImage, DiskOptions, create_qcow2, create_raw};

const DISK_BYTES: u64 = 8 << 20;
const PIECE_BYTES: u64 = 64 << 10;

#[test]
fn what_a_guest_wrote_while_its_flushes_were_put_off_is_in_the_image() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        match format {
            DiskFormat::Raw => create_raw(&path, DISK_BYTES).unwrap(),
            DiskFormat::Qcow2 => create_qcow2(&path, DISK_BYTES, None).unwrap(),
        }
        let open = || DiskImage::open(&path, DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap();
        let disks = DiskSet::new(vec![open()]);
        disks.start_log();
        let guest = disks.backends().remove(0);
        for (piece, byte) in (0..DISK_BYTES / PIECE_BYTES).zip(1..) {
            // In turns: put off, settled in the midst of things, abandoned, and as usual.
            let deferred = (piece % 4 < 3).then(|| DeferredFlushes::start(&disks).unwrap());
            guest.write_at(piece * PIECE_BYTES, &vec![byte; PIECE_BYTES as usize]).unwrap();
            guest.flush().unwrap();
            if let Some(deferred) = deferred.filter(|_| piece % 4 < 2) {
                assert!(deferred.error().is_none());
                deferred.settle().unwrap();
            }
        }
        // They are in the log all the same.
        let flush = DiskWrite { disk: 0, op: DiskOp::Flush };
        let flushes = disks.take_log().into_iter().filter(|write| *write == flush).count();
        assert_eq!(flushes as u64, DISK_BYTES / PIECE_BYTES);
        drop((guest, disks));

        // Nobody has the image open any more.
        let mut image = open();
        let mut found = vec![0; PIECE_BYTES as usize];
        for (piece, byte) in (0..DISK_BYTES / PIECE_BYTES).zip(1..) {
            image.read_at(piece * PIECE_BYTES, &mut found).unwrap();
            assert!(found.iter().all(|&found| found == byte), "{format:?}: piece {piece}");
        }
    }
}
