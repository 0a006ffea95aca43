//! The pseudo-random numbers that cases are made of, and values worth testing with.

/// xoshiro256** (Blackman and Vigna): one seed gives one sequence on every host.
pub struct Random {
    state: [u64; 4],
}

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut mixer = seed;
        let mut next = || {
            // SplitMix64, as the authors of xoshiro recommend for seeding.
            mixer = mixer.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mixer;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    pub fn next(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True in `percent` of 100 calls.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer near the edges that arithmetic has, or any.
    pub fn integer(&mut self) -> u64 {
        let random = self.next();
        match random >> 60 {
            0..4 => random,
            4 => 0,
            5 => 1,
            6 => u64::MAX,
            7 => 1 << (random & 63),
            8 => (1u64 << (random & 63)).wrapping_sub(1),
            9 => (random & 0xff) as i8 as u64,
            10 => random & 0xff,
            11 => random as u32 as i32 as u64,
            12 => random as u32 as u64,
            13 => random as u16 as i16 as u64,
            14 => [1u64 << 7, 1 << 15, 1 << 31, 1 << 63][random as usize & 3].wrapping_sub(random >> 8 & 1),
            _ => (random & 0xff).wrapping_mul(0x0101_0101_0101_0101),
        }
    }

    pub fn float32(&mut self) -> u32 {
        let random = self.next();
        let sign = (random as u32) & 1 << 31;
        let fraction = (random >> 32) as u32 & 0x7f_ffff;
        sign | match random >> 59 & 31 {
            0..10 => (127 - 8 + (random as u32 & 15)) << 23 | fraction,
            10..13 => (random as u32 >> 8 & 0xff) << 23 | fraction,
            13 => 0,
            14 => 0x3f80_0000,
            15 => fraction,
            16 => fraction & 0xf,
            17 => 1 << 23 | fraction & 0xff,
            18 => 0x7f80_0000,
            19 => 0x7fc0_0000 | fraction,
            20 => 0x7f80_0001 | fraction & 0x3f_ffff,
            21 => 0x7f7f_ffff ^ (fraction & 3),
            22 => ((random as u32 & 0xffff) as f32).to_bits(),
            23 => ((random as u32 & 0xffff) as f32 + 0.5).to_bits(),
            24 => (2f32.powi(31) + (random as i32 as f32) * 1e-3).to_bits(),
            25 => (2f32.powi(63)).to_bits().wrapping_add((random as u32 & 7).wrapping_sub(4)),
            26 => (127 - 128 / 2 + (random as u32 & 127)) << 23 | fraction,
            27 => 0x0080_0000 - (random as u32 & 3),
            28 => (1 + (random as u32 & 31)) << 23 | fraction,
            29 => (0xfe - (random as u32 & 31)) << 23 | fraction,
            30 => (127 + 23 - (random as u32 & 3)) << 23 | fraction,
            _ => (random as u32 >> 8 & 0xff) << 23 | fraction & 0x7f_0000,
        }
    }

    pub fn float64(&mut self) -> u64 {
        let random = self.next();
        let fraction = self.next() >> 12;
        let sign = random & 1 << 63;
        sign | match random >> 56 & 31 {
            0..10 => (1023 - 8 + (random & 15)) << 52 | fraction,
            10..13 => (random >> 8 & 0x7ff) << 52 | fraction,
            13 => 0,
            14 => 1023 << 52,
            15 => fraction,
            16 => fraction & 0xf,
            17 => 1 << 52 | fraction & 0xff,
            18 => 0x7ff << 52,
            19 => 0x7ff << 52 | 1 << 51 | fraction,
            20 => 0x7ff << 52 | 1 | fraction & !(1 << 51),
            21 => 0x7fef_ffff_ffff_ffff ^ (fraction & 3),
            22 => ((random & 0xffff_ffff) as f64).to_bits(),
            23 => ((random & 0xffff_ffff) as f64 + 0.5).to_bits(),
            24 => (2f64.powi(31) + (random as i8 as f64) * 0.25).to_bits(),
            25 => (2f64.powi(63)).to_bits().wrapping_add((random & 7).wrapping_sub(4)),
            26 => (1023 - 64 + (random & 127)) << 52 | fraction,
            // Around the smallest and largest single-precision numbers.
            27 => (1023 - 127 - 25 + (random & 31)) << 52 | fraction,
            28 => (1023 + 126 + (random & 3)) << 52 | fraction | (0xf_ffff_0000_0000 * (random >> 3 & 1)),
            29 => f64::from(f32::from_bits(self.float32())).to_bits() & !(1 << 63),
            30 => (1023 + 52 - (random & 3)) << 52 | fraction,
            _ => (random >> 8 & 0x7ff) << 52 | fraction & 0xf_0000_0000_0000,
        }
    }

    /// An 80-bit number: significand, sign and exponent.
    pub fn float80(&mut self) -> (u64, u16) {
        let random = self.next();
        let fraction = self.next();
        let integer_bit = 1 << 63;
        let sign = (random as u16) & 0x8000;
        let (significand, exponent) = match random >> 58 & 63 {
            0..16 => (fraction | integer_bit, 16383 - 8 + (random as u16 & 15)),
            16..20 => (fraction | integer_bit, 16383 - 70 + (random as u16 & 127)),
            20..24 => (fraction | integer_bit, random as u16 & 0x7fff),
            24..26 => (0, 0),
            26..28 => (integer_bit, 16383),
            28 => (fraction >> 1, 0),
            29 => (fraction & 0xf, 0),
            30 => (fraction | integer_bit, 1 + (random as u16 & 3)),
            31 => (integer_bit, 0x7fff),
            32 => (fraction | 3 << 62, 0x7fff),
            33 => (integer_bit | fraction >> 2 | 1, 0x7fff),
            34 => (3 << 62, 0x7fff),
            35 => (u64::MAX - (fraction & 1), 0x7ffe),
            36 => (fraction | integer_bit, 0x7ffe - (random as u16 & 3)),
            // Pseudo-denormal, unnormal, pseudo-NaN, pseudo-infinity.
            37 => (fraction | integer_bit, 0),
            38 => (fraction >> 1, 16383),
            39 => (fraction >> 1 | 1, 0x7fff),
            40 => (0, 0x7fff),
            // Whole numbers and halves.
            41..47 => {
                let whole = (random >> 16 & 0xffff) | 1;
                (whole << whole.leading_zeros(), 16383 + 63 - whole.leading_zeros() as u16 - (random as u16 & 1))
            }
            // The edges of 16, 32 and 64-bit integers.
            47..52 => {
                let edge = [15u16, 31, 63, 62, 30][random as usize % 5];
                let significand = match fraction & 3 {
                    0 => integer_bit,
                    1 => u64::MAX,
                    2 => integer_bit | 1 << (fraction >> 8 & 63),
                    _ => u64::MAX << (fraction >> 8 & 63) | integer_bit,
                };
                (significand, 16383 + edge - (fraction >> 20 & 1) as u16)
            }
            // Single and double precision's ranges.
            52..54 => (fraction | integer_bit, 16383 - 127 - 24 + (random as u16 & 31)),
            54..56 => (fraction | integer_bit, 16383 - 1023 - 53 + (random as u16 & 63)),
            56 => (fraction | integer_bit, 16383 + 126 + (random as u16 & 3)),
            57 => (fraction | integer_bit, 16383 + 1022 + (random as u16 & 3)),
            // Numbers that single or double precision holds exactly.
            58..60 => (fraction & !0xff_ffff_ffff | integer_bit, 16383 - 8 + (random as u16 & 15)),
            60..62 => (fraction & !0x7ff | integer_bit, 16383 - 8 + (random as u16 & 15)),
            _ => (integer_bit | 1 << (fraction & 63), 16383 - 70 + (random as u16 & 127)),
        };
        (significand, sign | exponent)
    }

    /// Ten bytes of packed decimal, mostly valid.
    pub fn decimal80(&mut self) -> [u8; 10] {
        let mut bytes = [0; 10];
        let digits = 1 + self.below(18);
        for digit in 0..digits {
            let nibble = self.below(10) as u8;
            bytes[digit as usize / 2] |= nibble << (digit % 2 * 4);
        }
        bytes[9] = (self.next() as u8) & 0x80;
        bytes
    }
}
