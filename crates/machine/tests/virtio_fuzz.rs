//! A bounded, repeatable run of each fuzz target: mutated cases of well-behaved guests, and noise.
//!
//! The same targets run without bounds under cargo-fuzz; see `fuzz/README.md`.

use machine::devices::virtio::testing::{fuzz, seeds};

/// Cases for each device.
const CASES: u64 = 20_000;

/// SplitMix64: the same cases in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Changes a case in a few places, most often in one.
    fn mutate(&mut self, data: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        for _ in 0..1 << self.below(4) {
            let at = self.below(data.len());
            match self.below(6) {
                0 => data[at] = self.next() as u8,
                1 => data[at] ^= 1 << self.below(8),
                2 => data[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][self.below(6)],
                3 => drop(data.remove(at)),
                4 => data.insert(at, self.next() as u8),
                _ => {
                    // Some of another case, or more of this one.
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let until = from + self.below(other.len() - from);
                    data.splice(at..at, other[from..until].iter().copied());
                }
            }
            if data.is_empty() {
                data.push(0);
            }
        }
    }
}

fn run(target: fn(&[u8]) -> bool, seeds: &[Vec<u8>]) {
    for (number, seed) in seeds.iter().enumerate() {
        assert!(target(seed), "seed {number} is not the well-behaved guest it should be");
    }
    let mut working = 0;
    for number in 0..CASES {
        let mut random = Random(number);
        let data = if number % 8 == 0 {
            (0..random.below(300)).map(|_| random.next() as u8).collect()
        } else {
            let mut data = seeds[random.below(seeds.len())].clone();
            random.mutate(&mut data, seeds);
            data
        };
        let outcome = std::panic::catch_unwind(|| target(&data));
        working += u64::from(outcome.unwrap_or_else(|_| panic!("case {number} fails: {data:?}")));
    }
    // Cases that all break the queue at once, or never, would test little.
    assert!((CASES / 10..CASES * 9 / 10).contains(&working), "{working} of {CASES} cases leave the device working");
}

#[test]
fn block_survives_hostile_guests() {
    run(fuzz::block, &seeds::block());
}

#[test]
fn block_with_queued_requests_survives_hostile_guests() {
    run(fuzz::queued_block, &seeds::block());
}

#[test]
fn net_survives_hostile_guests() {
    run(fuzz::net, &seeds::net());
}

#[test]
fn rng_survives_hostile_guests() {
    run(fuzz::rng, &seeds::rng());
}
