//! The log of what guests write.

use std::thread;

use replication::disk::{DiskOp, DiskSyncError, DiskWrite, WRITE_BYTES_MAX, decode_writes, encode_writes};

use crate::pair::{Images, Pair, Step, perform_all};

fn write(offset: u64, data: Vec<u8>) -> DiskWrite {
    DiskWrite { disk: 0, op: DiskOp::Write { offset, data } }
}

#[test]
fn changes_are_logged_in_order_while_the_log_is_on() {
    let pair = Pair::new(Images::Qcow2);
    let backends = pair.primary.backends();
    backends[0].write_at(0, &[1; 512]).unwrap();
    assert!(pair.primary.take_log().is_empty());
    assert_eq!(pair.primary.log_bytes(), 0);

    pair.primary.start_log();
    backends[0].write_at(512, &[2; 1024]).unwrap();
    backends[0].flush().unwrap();
    backends[0].flush().unwrap();
    backends[0].discard(4096, 512).unwrap();
    backends[0].write_zeroes(8192, 512, true).unwrap();
    assert!(backends[0].write_at(u64::MAX - 511, &[3; 512]).is_err());
    assert!(pair.primary.log_bytes() >= 1024);
    assert_eq!(pair.primary.log_ops(), 4);
    let expected = [
        write(512, vec![2; 1024]),
        DiskWrite { disk: 0, op: DiskOp::Flush },
        DiskWrite { disk: 0, op: DiskOp::Discard { offset: 4096, length: 512 } },
        DiskWrite { disk: 0, op: DiskOp::WriteZeroes { offset: 8192, length: 512, may_unmap: true } },
    ];
    assert_eq!(pair.primary.take_log(), expected);
    assert_eq!((pair.primary.log_bytes(), pair.primary.log_ops()), (0, 0));

    backends[0].write_at(0, &[4; 512]).unwrap();
    pair.primary.stop_log();
    backends[0].write_at(512, &[5; 512]).unwrap();
    assert!(pair.primary.take_log().is_empty());
}

#[test]
fn long_writes_are_logged_in_parts() {
    let pair = Pair::new(Images::Raw);
    pair.primary.start_log();
    let data: Vec<u8> = (0..2 * WRITE_BYTES_MAX + 512).map(|i| (i / 3) as u8).collect();
    pair.primary.backends()[0].write_at(1024, &data).unwrap();
    assert_eq!(pair.primary.log_ops(), 3);
    pair.send_log();
    pair.assert_equal();
}

#[test]
fn the_order_of_the_log_is_that_of_the_image() {
    let pair = Pair::new(Images::Qcow2);
    pair.primary.start_log();
    thread::scope(|scope| {
        for writer in 0..4_u8 {
            let backends = pair.primary.backends();
            scope.spawn(move || {
                for round in 0..200_u64 {
                    let offset = round % 5 * 512;
                    match round % 7 {
                        0 => backends[0].discard(offset, 1024).unwrap(),
                        _ => backends[0].write_at(offset, &[writer << 6 | round as u8; 1024]).unwrap(),
                    }
                }
            });
        }
        // Taken while it grows.
        for _ in 0..50 {
            pair.send_log();
        }
    });
    pair.send_log();
    pair.assert_equal();
}

#[test]
fn a_log_that_nobody_takes_is_given_up_and_no_secondary_accepts_it() {
    let pair = Pair::new(Images::Raw);
    pair.primary.start_log();
    let backends = pair.primary.backends();
    let data = vec![1; 1 << 20];
    for _ in 0..300 {
        backends[0].write_at(0, &data).unwrap();
    }
    assert!(pair.primary.log_bytes() <= 256 << 20);
    let log = pair.primary.take_log();
    assert_eq!(log, [DiskWrite { disk: 0, op: DiskOp::Lost }]);
    assert!(matches!(pair.secondary.apply(&log), Err(DiskSyncError::Lost { disk: 0 })));
    encode_writes(&log, |piece| {
        assert!(matches!(decode_writes(piece, &pair.secondary), Err(DiskSyncError::Lost { disk: 0 })));
    });
    // Nor anything after it.
    backends[0].write_at(0, &[2; 512]).unwrap();
    assert!(pair.primary.take_log().is_empty());
    // Until it begins anew.
    pair.primary.start_log();
    perform_all(&pair.primary, &[Step::Write(512, 512, 85)]);
    assert_eq!(pair.primary.log_ops(), 1);
}
