//! What this host's floating-point units compute, as a number.

use crate::digest::Digest;
use crate::{sse, x87};

/// A digest of what this host's floating-point units, x87 and SSE, make of a fixed set of operands.
///
/// Guests compute with those units. Nearly all of what they give is prescribed to the last bit, or chosen by this crate where it is not
/// (see the modules `x87` and `sse`). What is left is x87's transcendental functions, which are exact only to within one unit in the
/// last place and of which vendors choose that unit differently, and whatever a processor does otherwise than its manual says. So the
/// operands are ordinary ones for the functions, and for everything else those where implementations differ if they do: zeros,
/// infinities, NaNs, denormals, encodings that no format supports, under all roundings and precisions.
///
/// Guests stay in lockstep, and a replay repeats a recording for certain, only on hosts whose signatures are equal.
pub fn float_signature() -> u64 {
    let mut digest = Digest::new();
    x87::sign(&mut digest);
    sse::sign(&mut digest);
    digest.value()
}

#[cfg(test)]
mod tests {
    use super::float_signature;

    #[test]
    fn the_signature_is_the_same_every_time() {
        assert_eq!(float_signature(), float_signature());
    }
}
