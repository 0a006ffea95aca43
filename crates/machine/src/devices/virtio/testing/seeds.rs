//! Cases of well-behaved guests, from which a fuzzer can start: each asks for everything its device can do.

use super::script::{ScriptWriter, Step};

/// For [`super::fuzz::block`].
pub fn block() -> Vec<Vec<u8>> {
    let case = |features: u64, read_only: bool| {
        let mut script = ScriptWriter::new(&[u8::from(read_only)]);
        script.push(&Step::Initialise { features });
        let header = |kind: u8, sector: u8| [kind, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0];
        let range = [4, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
        // Write a sector in three pieces, read two into three buffers.
        script.request(0, &[&header(1, 2), &[7; 200], &[8; 200], &[9; 112]], &[1]);
        script.request(0, &[&header(0, 1)], &[512, 100, 412, 1]);
        script.push(&Step::Notify { queue: 0 });
        script.push(&Step::SaveAndRestore);
        script.push(&Step::Acknowledge);
        script.request(0, &[&header(4, 0)], &[1]);
        script.request(0, &[&header(8, 0)], &[20, 1]);
        script.push(&Step::Notify { queue: 0 });
        script.request(0, &[&header(11, 0), &range], &[1]);
        script.request(0, &[&header(13, 0), &range], &[1]);
        script.push(&Step::Notify { queue: 0 });
        script.push(&Step::Input { bytes: vec![1] });
        script.request(0, &[&header(0, 1)], &[512, 1]);
        script.push(&Step::Notify { queue: 0 });
        script.data
    };
    vec![case(u64::MAX, false), case(0, false), case(u64::MAX, true), indirect_block()]
}

fn indirect_block() -> Vec<u8> {
    let mut script = ScriptWriter::new(&[0]);
    script.push(&Step::Initialise { features: u64::MAX });
    let descriptor = |address: u16, len: u32, flags: u16, next: u16| {
        let address = u64::from(address).to_le_bytes();
        [&address[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let table = [descriptor(0x8000, 16, 1, 1), descriptor(0x8100, 512, 3, 2), descriptor(0x8010, 1, 2, 0)].concat();
    script.push(&Step::WriteRam { address: 0x9000, bytes: table });
    let whole = Step::Descriptor { queue: 0, index: 0, address: 0x9000, high: 0, len: 48, flags: 4, next: 0 };
    script.push(&whole);
    script.push(&Step::MakeAvailable { queue: 0, head: 0 });
    script.push(&Step::Notify { queue: 0 });
    script.data
}

/// For [`super::fuzz::net`].
pub fn net() -> Vec<Vec<u8>> {
    let case = |features: u64| {
        let mut script = ScriptWriter::new(&[]);
        script.push(&Step::Initialise { features });
        let frame = [[0; 12], [0x52; 12]].concat();
        script.request(1, &[&frame, &[1; 100]], &[]);
        script.request(1, &[&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0], &[2; 200]], &[]);
        script.push(&Step::Notify { queue: 1 });
        script.push(&Step::Input { bytes: vec![0, 1] });
        script.request(1, &[&frame, &[3; 100]], &[]);
        script.push(&Step::Notify { queue: 1 });
        // A long frame waits for the third buffer; a second waits behind it.
        script.request(0, &[], &[256]);
        script.request(0, &[], &[256]);
        script.push(&Step::Input { bytes: vec![0x13, 250] });
        script.push(&Step::Input { bytes: vec![0x07, 200] });
        script.push(&Step::SaveAndRestore);
        script.request(0, &[], &[512]);
        script.request(0, &[], &[1500]);
        script.push(&Step::Notify { queue: 0 });
        script.push(&Step::Acknowledge);
        script.push(&Step::Input { bytes: vec![0] });
        script.push(&Step::Input { bytes: vec![1] });
        script.push(&Step::Input { bytes: vec![2] });
        script.data
    };
    vec![case(u64::MAX), case(0)]
}

/// For [`super::fuzz::rng`].
pub fn rng() -> Vec<Vec<u8>> {
    let case = |features: u64| {
        let mut script = ScriptWriter::new(&[]);
        script.push(&Step::Initialise { features });
        script.request(0, &[], &[64]);
        script.request(0, &[], &[10, 6000]);
        script.push(&Step::Notify { queue: 0 });
        script.push(&Step::SaveAndRestore);
        script.push(&Step::Acknowledge);
        script.request(0, &[], &[1]);
        script.push(&Step::Notify { queue: 0 });
        script.data
    };
    vec![case(u64::MAX), case(0)]
}
