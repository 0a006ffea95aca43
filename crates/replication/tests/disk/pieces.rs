//! What comes from the peer is not trusted.

use proptest::prelude::*;
use replication::disk::{
    BLOCK_BYTES, DiskCopy, DiskOp, DiskSet, DiskSyncError, DiskWrite, PIECE_BYTES_MAX, SUMMARY_PIECE_BYTES_MAX,
    SummaryReader, SummaryWriter, WRITE_BYTES_MAX, decode_writes, encode_writes,
};
use spec::DiskFormat;
use storage::disk::create_raw;

use crate::pair::{Images, Pair, SIZE, Step, copy_all, open, open_read_only, perform_all, steps, whole};

fn op() -> impl Strategy<Value = DiskOp> {
    let range = (0..SIZE, 1..200_000_u64).prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
    let data = prop_oneof![
        (1..5000_usize, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        prop::collection::vec(any::<u8>(), 1..3000),
        any::<u8>().prop_map(|byte| (0..WRITE_BYTES_MAX).map(|i| (i / 100) as u8 ^ byte).collect()),
    ];
    prop_oneof![
        (0..SIZE - WRITE_BYTES_MAX as u64, data).prop_map(|(offset, data)| DiskOp::Write { offset, data }),
        range.clone().prop_map(|(offset, length)| DiskOp::Discard { offset, length }),
        (range, any::<bool>()).prop_map(|((offset, length), may_unmap)| DiskOp::WriteZeroes {
            offset,
            length,
            may_unmap
        }),
        Just(DiskOp::Flush),
    ]
}

fn writes() -> impl Strategy<Value = Vec<DiskWrite>> {
    prop::collection::vec(op().prop_map(|op| DiskWrite { disk: 0, op }), 0..20)
}

fn memory_bytes(writes: &[DiskWrite]) -> u64 {
    writes.iter().map(DiskWrite::memory_bytes).sum()
}

/// The pieces of a summary of this pair.
fn summary_pieces(pair: &Pair) -> Vec<Vec<u8>> {
    let mut writer = SummaryWriter::new(&pair.secondary, &pair.primary.describe().unwrap()).unwrap();
    let mut pieces = Vec::new();
    loop {
        let mut piece = Vec::new();
        let more = writer.next_piece(&mut piece).unwrap();
        pieces.push(piece);
        if !more {
            return pieces;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_survive_encoding(writes in writes()) {
        let pair = Pair::new(Images::Raw);
        let mut decoded = Vec::new();
        encode_writes(&writes, |piece| {
            assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES_MAX);
            decoded.extend(decode_writes(piece, &pair.secondary).unwrap());
        });
        prop_assert_eq!(decoded, writes);
    }

    /// A peer need not keep to sectors; and what a change leaves behind must not depend on how the image is stored.
    #[test]
    fn whatever_fits_a_disk_leaves_the_same_on_each_kind_of_image(writes in writes()) {
        let mut expected = vec![0_u8; SIZE as usize];
        for write in &writes {
            let (offset, content) = match &write.op {
                DiskOp::Write { offset, data } => (*offset, data.clone()),
                DiskOp::Discard { offset, length } | DiskOp::WriteZeroes { offset, length, .. } => {
                    (*offset, vec![0; *length as usize])
                }
                _ => continue,
            };
            expected[offset as usize..][..content.len()].copy_from_slice(&content);
        }
        let pair = Pair::new(Images::RawToQcow2);
        for disks in [&pair.primary, &pair.secondary] {
            encode_writes(&writes, |piece| disks.apply_block_piece(piece).unwrap());
            prop_assert!(whole(&*disks.backends()[0]) == expected);
        }
    }

    /// Spans of whatever length and in whatever pieces. What a summary says of zeros is true here; its digests fit nothing.
    #[test]
    fn a_summary_of_whatever_shape_leads_to_equal_disks(
        images in prop_oneof![
            Just(Images::Raw),
            Just(Images::Qcow2),
            Just(Images::Overlays),
            Just(Images::OverlaysOfDifferentBases),
        ],
        steps in steps(),
        spans in prop::collection::vec((0..4_u64, 1..6_u64, any::<bool>(), any::<bool>()), 0..12),
    ) {
        let pair = Pair::new(images);
        perform_all(&pair.primary, &steps);
        let shows_zeros = matches!(images, Images::Raw | Images::Qcow2);
        let (mut piece, mut next) = (descriptions(&summary_pieces(&pair)[0]).to_vec(), 0);
        let mut reader = SummaryReader::new(&pair.primary).unwrap();
        for (gap, count, is_zeros, ends_piece) in spans {
            let first = next + gap;
            next = first + count;
            if next > SIZE.div_ceil(BLOCK_BYTES) {
                break;
            }
            if is_zeros && shows_zeros {
                piece.extend(record(2, 0, &[first.to_le_bytes(), count.to_le_bytes()].concat()));
            } else {
                let digests = vec![0xa5; count as usize * 32];
                let head = [&first.to_le_bytes()[..], &(count as u32).to_le_bytes()].concat();
                piece.extend(record(1, 0, &[head, digests].concat()));
            }
            if ends_piece {
                prop_assert!(reader.push(&piece).unwrap().is_none());
                piece.clear();
            }
        }
        piece.push(3);
        let summary = reader.push(&piece).unwrap().unwrap();
        let mut copy = DiskCopy::new(&pair.primary, summary).unwrap();
        copy_all(&mut copy, &pair.secondary);
        pair.assert_equal();
    }

    #[test]
    fn garbage_is_an_error_and_takes_no_memory(
        writes in writes(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let pair = Pair::new(Images::Raw);
        encode_writes(&writes, |piece| {
            let mut piece = piece.to_vec();
            for (at, byte) in &damage {
                let at = at.index(piece.len());
                piece[at] = *byte;
            }
            piece.truncate(cut.index(piece.len() + 1));
            if let Ok(decoded) = decode_writes(&piece, &pair.secondary) {
                // Of each record's 5 bytes a change; data is bounded for the piece as a whole.
                let records_max = piece.len() / 5 * size_of::<DiskWrite>() * 2;
                assert!(memory_bytes(&decoded) <= (records_max + WRITE_BYTES_MAX) as u64);
                // And what passes fits the disk.
                pair.secondary.apply(&decoded).unwrap();
            }
        });
    }

    #[test]
    fn garbage_in_a_summary_is_an_error(
        piece in prop::collection::vec(any::<u8>(), 0..300),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let pair = Pair::new(Images::Raw);
        perform_all(&pair.secondary, &[Step::Write(65536 * 3, 300_000, 85)]);
        _ = SummaryReader::new(&pair.primary).unwrap().push(&piece);
        let mut reader = SummaryReader::new(&pair.primary).unwrap();
        for mut piece in summary_pieces(&pair) {
            for (at, byte) in &damage {
                let at = at.index(piece.len());
                piece[at] = *byte;
            }
            _ = reader.push(&piece);
        }
    }
}

/// The record that a summary begins with.
fn descriptions(first_piece: &[u8]) -> &[u8] {
    let length = u32::from_le_bytes(first_piece[1..5].try_into().unwrap());
    &first_piece[..5 + length as usize]
}

fn record(kind: u8, disk: u32, rest: &[u8]) -> Vec<u8> {
    [&[kind][..], &disk.to_le_bytes(), rest].concat()
}

#[test]
fn changes_that_do_not_fit_the_disks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["writable", "read-only"] {
        create_raw(&dir.path().join(name), SIZE).unwrap();
    }
    let disks = DiskSet::new(vec![
        open(&dir.path().join("writable"), DiskFormat::Raw),
        open_read_only(&dir.path().join("read-only"), DiskFormat::Raw),
    ]);
    let range = |offset: u64, length: u64| [offset.to_le_bytes(), length.to_le_bytes()].concat();
    let data = |offset: u64, length: u32| [&offset.to_le_bytes()[..], &length.to_le_bytes()].concat();
    assert!(decode_writes(&record(3, 0, &range(SIZE - 1, 1)), &disks).is_ok());
    for (why, piece) in [
        ("no such disk", record(0, 2, &[])),
        ("a read-only disk", record(3, 1, &range(0, 512))),
        ("a flush of a read-only disk", record(0, 1, &[])),
        ("beyond the end", record(3, 0, &range(SIZE - 1, 2))),
        ("an overflow", record(4, 0, &range(u64::MAX, 2))),
        ("nothing", record(5, 0, &range(0, 0))),
        ("data beyond the end", [record(1, 0, &data(SIZE, 1)), vec![7]].concat()),
        ("no data", record(1, 0, &data(0, 0))),
        ("data cut short", [record(1, 0, &data(0, 100)), vec![7; 99]].concat()),
        ("too much data", record(1, 0, &data(0, u32::MAX))),
        ("an LZ4 block of nothing", record(2, 0, &[data(0, 512), vec![0; 4]].concat())),
        ("an LZ4 block that is too long", record(2, 0, &[data(0, 512), vec![0xff; 4]].concat())),
        ("an unknown kind", record(9, 0, &[])),
        ("a piece that is too long", record(0, 0, &[]).repeat(PIECE_BYTES_MAX)),
    ] {
        let result = decode_writes(&piece, &disks);
        assert!(
            matches!(result, Err(DiskSyncError::Malformed(_) | DiskSyncError::Refused { .. })),
            "{why}: {result:?}"
        );
        assert!(disks.apply_block_piece(&piece).is_err(), "{why}");
    }
    // Each of these would be fine alone: together they would make the receiver allocate many times their length.
    let mut block = vec![0; lz4_flex::block::get_maximum_output_size(WRITE_BYTES_MAX)];
    let length = lz4_flex::block::compress_into(&[0; WRITE_BYTES_MAX], &mut block).unwrap();
    block.truncate(length);
    let bomb = record(2, 0, &[&data(0, WRITE_BYTES_MAX as u32)[..], &(length as u32).to_le_bytes(), &block].concat());
    assert!(decode_writes(&bomb, &disks).is_ok());
    assert!(matches!(decode_writes(&bomb.repeat(2), &disks), Err(DiskSyncError::Malformed(_))));
}

#[test]
fn summaries_that_do_not_fit_the_disks_are_refused() {
    let pair = Pair::new(Images::Raw);
    let pieces = summary_pieces(&pair);
    let [whole] = &pieces[..] else { panic!("more than a piece for an empty disk") };
    let descriptions = descriptions(whole);
    let span = |kind: u8, disk: u32, first: u64, count: u64| {
        record(kind, disk, &[first.to_le_bytes(), count.to_le_bytes()].concat())
    };
    let blocks = SIZE.div_ceil(65536);
    let push = |piece: &[u8]| SummaryReader::new(&pair.primary).unwrap().push(piece);
    assert!(matches!(push(whole), Ok(Some(_))));
    let mut over = SummaryReader::new(&pair.primary).unwrap();
    assert!(matches!(over.push(whole), Ok(Some(_))));
    assert!(matches!(over.push(whole), Err(DiskSyncError::Malformed(_))));
    assert!(matches!(push(&[descriptions, &span(2, 0, 0, blocks), &[3]].concat()), Ok(Some(_))));
    for (why, piece) in [
        ("no descriptions", vec![3]),
        ("descriptions twice", [descriptions, descriptions].concat()),
        ("no such disk", [descriptions, &span(2, 1, 0, 1)].concat()),
        ("beyond the end", [descriptions, &span(2, 0, 1, blocks)].concat()),
        ("an overflow", [descriptions, &span(2, 0, 1, u64::MAX)].concat()),
        ("no blocks", [descriptions, &span(2, 0, 1, 0)].concat()),
        ("out of order", [descriptions, &span(2, 0, 5, 1), &span(2, 0, 5, 1)].concat()),
        ("digests cut short", [descriptions, &record(1, 0, &[0; 40])[..]].concat()),
        ("digests without end", [descriptions, &record(1, 0, &[0xff; 12])[..]].concat()),
        ("something after the end", [&whole[..], &[3]].concat()),
        ("an unknown kind", [descriptions, &span(7, 0, 0, 1)].concat()),
        ("more descriptions than there are bytes", vec![0, 0xff, 0xff, 0xff, 0xff]),
        ("more disks than there are bytes", [&[0, 5, 0, 0, 0][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat()),
        ("a piece that is too long", [descriptions, &vec![3; SUMMARY_PIECE_BYTES_MAX]].concat()),
        // Endless, if it were accepted.
        ("a piece of nothing", Vec::new()),
    ] {
        let mut reader = SummaryReader::new(&pair.primary).unwrap();
        assert!(reader.push(&piece).is_err(), "{why}");
        // What has failed does not begin anew.
        assert!(reader.push(whole).is_err(), "{why}");
    }
}
