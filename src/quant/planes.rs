//! Bit planes: how the block formats spread the bits of their codes over bytes.
//!
//! A block's codes are cut into runs of `RUN` consecutive values. Runs share bytes: byte `j` of a plane holds
//! `BITS` bits of value `j` of several runs, the earlier run in the lower bits. A code of 5 bits is a plane of 4
//! and a plane of 1, and so on. Every format but Q5_0's and Q5_1's fifth bits is made of such planes.

/// Adds (by OR) a plane of `BITS` bits to the codes, at bit `at` of each code.
pub(crate) fn unpack<const BITS: usize, const RUN: usize>(plane: &[u8], at: usize, codes: &mut [u8]) {
    let mask = (1u8 << BITS) - 1;
    let (plane, _) = plane.as_chunks::<RUN>();
    let (runs, _) = codes.as_chunks_mut::<RUN>();
    for (i, run) in runs.iter_mut().enumerate() {
        let shift = BITS * (i % (8 / BITS));
        for (code, byte) in run.iter_mut().zip(&plane[i / (8 / BITS)]) {
            *code |= (byte >> shift & mask) << at;
        }
    }
}

/// The inverse of [`unpack`]: writes bits `at..at + BITS` of the codes. `plane` must be zero before.
pub(crate) fn pack<const BITS: usize, const RUN: usize>(codes: &[u8], at: usize, plane: &mut [u8]) {
    let mask = (1u8 << BITS) - 1;
    let (plane, _) = plane.as_chunks_mut::<RUN>();
    let (runs, _) = codes.as_chunks::<RUN>();
    for (i, run) in runs.iter().enumerate() {
        let shift = BITS * (i % (8 / BITS));
        for (code, byte) in run.iter().zip(&mut plane[i / (8 / BITS)]) {
            *byte |= (code >> at & mask) << shift;
        }
    }
}
