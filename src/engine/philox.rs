//! Random numbers by counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
//!
//! A draw is a function of (seed, sequence, index) and nothing else, so neither batches nor speculation change it.

/// Ten rounds of Philox4x32.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// A number in [0, 1) with 53 random bits: the draw for token `index` of sequence `sequence`.
///
/// The key is the seed (low word first), the counter (index low, index high, sequence low, sequence high);
/// the first two output words, the first one high, shifted right by 11, times 2^-53.
pub fn uniform(seed: u64, sequence: u64, index: u64) -> f64 {
    let counter = [index as u32, (index >> 32) as u32, sequence as u32, (sequence >> 32) as u32];
    let [high, low, ..] = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the authors' Random123 library (kat_vectors).
    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn draws_are_spread_over_the_unit_interval() {
        let (seeds, draws) = (20, 10_000);
        let all = (0..seeds).flat_map(|seed| (0..draws).map(move |i| uniform(seed, 0, i)));
        let mean = all.clone().sum::<f64>() / (seeds * draws) as f64;
        assert!((mean - 0.5).abs() < 0.003, "{mean}"); // a standard deviation is 0.00065
        assert!(all.clone().all(|u| (0.0..1.0).contains(&u)));
    }

    #[test]
    fn seed_sequence_and_index_each_change_the_draw() {
        let base = uniform(1, 2, 3);
        assert_ne!(base, uniform(2, 2, 3));
        assert_ne!(base, uniform(1, 3, 3));
        assert_ne!(base, uniform(1, 2, 4));
        assert_eq!(base, uniform(1, 2, 3));
    }
}
