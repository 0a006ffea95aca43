//! The processor that runs the native side: whose it is, and what of x87's state it shows.
//!
//! Undefined results are the subject of [`undefined`](crate::undefined). What is here is defined, but not by both makers alike:
//!
//! | What | Intel, Skylake and later | AMD, and older Intel |
//! | --- | --- | --- |
//! | FOP | opcode of the last instruction with an unmasked exception (SDM volume 1, section 8.1.9) | of the last non-control instruction (APM volume 1, section 6.2.5) |
//! | FDP | operand of the last instruction with an unmasked exception (CPUID.7.0:EBX bit 6; SDM volume 1, section 8.1.8) | of the last instruction with a memory operand |
//! | FCS, FDS | zero (CPUID.7.0:EBX bit 13; same section) | selectors |
//! | FIP, FOP and FDP in what FXSAVE and XSAVE write | always saved | AMD: zero unless an unmasked exception is pending (APM volume 2, "FXSAVE and FXRSTOR Instructions"; APM volume 5, FXSAVE) |
//! | MXCSR_MASK | bits 0 to 15 | whatever the processor supports (SDM volume 1, section 11.6.6) |
//!
//! The software processor has what CPUID tells its guests: the first column. On other hosts these fields are compared where both columns
//! say the same: FIP in environments; all three while the exception of the last instruction is pending. After an image was restored that the
//! host may have saved itself they are not compared, since the image has selectors in it, or no pointers.
//!
//! That nothing else differs was checked on AMD's family 25, model 17: a million cases of each family of x87 and of `save_restore` and
//! `mixture` there agree. A model of this processor with the second column's FOP, FDP,
//! FCS and FDS, run in place of the native side, differed from ours in the very same cases of a million of `x87_control` as the real
//! one did, for each instruction form. A variant in which FINCSTP and FFREE leave FIP alone did not, nor one whose 16-bit FLDENV
//! keeps the upper half of FIP.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::fmt;

/// The processor that runs the native side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    maker: [u8; 12],
    family: u32,
    model: u32,
    /// Whether x87's pointers are kept as the software processor keeps them.
    pub keeps_pointers: bool,
}

/// CPUID.7.0:EBX: FDP_EXCPTN_ONLY, and deprecated FCS and FDS.
const POINTERS_AS_OURS: u32 = 1 << 6 | 1 << 13;

impl Host {
    /// The processor that this runs on.
    pub fn this() -> Self {
        let leaf = __cpuid(0);
        let mut maker = [0; 12];
        for (slot, register) in maker.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            slot.copy_from_slice(&register.to_le_bytes());
        }
        let features = if leaf.eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
        let keeps_pointers = maker == *b"GenuineIntel" && features & POINTERS_AS_OURS == POINTERS_AS_OURS;
        Self::new(maker, __cpuid(1).eax, keeps_pointers)
    }

    /// What the recorded cases of AMD's were run on.
    pub fn amd() -> Self {
        Self { maker: *b"AuthenticAMD", family: 25, model: 17, keeps_pointers: false }
    }

    /// By CPUID.1:EAX (Intel SDM volume 2, CPUID, figure 3-6; AMD APM volume 3, appendix E.3.2).
    fn new(maker: [u8; 12], signature: u32, keeps_pointers: bool) -> Self {
        let field = |shift: u32, mask: u32| signature >> shift & mask;
        let family = field(8, 15);
        let model = if matches!(family, 6 | 15) { field(4, 15) | field(16, 15) << 4 } else { field(4, 15) };
        let family = if family == 15 { family + field(20, 0xff) } else { family };
        Self { maker, family, model, keeps_pointers }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} family {}, model {}", self.maker.escape_ascii(), self.family, self.model)
    }
}

#[test]
fn family_and_model_are_the_makers_numbers() {
    let amd = Host::new(*b"AuthenticAMD", 0x00a1_0f11, false);
    assert_eq!(amd, Host::amd());
    assert_eq!(amd.to_string(), "AuthenticAMD family 25, model 17");
    assert_eq!(Host::new(*b"GenuineIntel", 0x000a_0671, true).to_string(), "GenuineIntel family 6, model 167");
}
