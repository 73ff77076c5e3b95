//! The formats whose codes are looked up in tables, as the matrix product sees them: see [`formats`](super::formats), and
//! `quant` for the plain statement of each.
//!
//! Entries of grids are gathered lane by lane, which is what takes the time, so a gathered word holds as many values as it
//! can: all eight of an entry where they need two bits (IQ1, IQ2), four of IQ3. Values are moved up so that they are positive.

use super::super::Simd;
use super::formats::{Block, Format, Scales, TILE, bits, four, half, nibbles, word};
use crate::quant::BlockType;
use crate::quant::codebook::{FP4, IQ4};
use crate::quant::i_quants::words::*;

/// Two vectors.
macro_rules! two {
    ($i:ident => $vector:expr) => {
        [
            {
                let $i = 0;
                $vector
            },
            {
                let $i = 1;
                $vector
            },
        ]
    };
}

/// 16-bit part i, as an integer.
#[inline(always)]
unsafe fn raw_half<S: Simd>(b: Block, i: usize) -> S::I {
    unsafe { S::i_load_u16(b.halves.add(TILE * i)) }
}

/// Byte i of some 16-bit parts that begin with part `first`.
#[inline(always)]
unsafe fn byte_of_halves<S: Simd>(b: Block, first: usize, i: usize) -> S::I {
    unsafe { bits::<S>(raw_half::<S>(b, first + i / 2), 8 * (i % 2), 0xff) }
}

/// Takes `64 + v` in each byte to `64 - v` where the byte's bit of `four` is set.
#[inline(always)]
unsafe fn negate<S: Simd>(v: S::I, four: S::I) -> S::I {
    unsafe {
        // 128 - t = (t ^ 127) + 1 for t of 1..128: no byte carries
        let spread = S::i_and(S::i_mul(four, S::i_splat(0x0020_4081)), S::i_splat(0x0101_0101));
        let ones = S::i_sub(S::i_shl::<7>(spread), spread);
        S::i_add(S::i_xor(v, ones), spread)
    }
}

/// Seven sign bits and the one that makes their number even.
#[inline(always)]
unsafe fn even<S: Simd>(seven: S::I) -> S::I {
    unsafe {
        let folded = S::i_xor(seven, S::i_shr::<4>(seven));
        let folded = S::i_xor(folded, S::i_shr::<2>(folded));
        let folded = S::i_xor(folded, S::i_shr::<1>(folded));
        S::i_or(seven, S::i_shl::<7>(S::i_and(folded, S::i_splat(1))))
    }
}

/// 16 columns: two entries of eight with their signs.
#[inline(always)]
unsafe fn two_entries<S: Simd>(table: &[u32], entries: [S::I; 2], signs: [S::I; 2]) -> [S::I; 4] {
    unsafe {
        let found = two!(i => S::i_gather(table.as_ptr(), entries[i]));
        four!(i => {
            let value = S::i_look_up(&IQ2_BYTES, bits::<S>(found[i / 2], i % 2 * 4, 0x0f0f_0f0f));
            negate::<S>(value, bits::<S>(signs[i / 2], i % 2 * 4, 0xf))
        })
    }
}

/// 16 columns: four entries of four, with signs of two.
#[inline(always)]
unsafe fn four_entries<S: Simd>(table: &[u32], entries: [S::I; 4], signs: [S::I; 2]) -> [S::I; 4] {
    unsafe {
        four!(i => {
            let value = S::i_gather(table.as_ptr(), entries[i]);
            negate::<S>(value, bits::<S>(signs[i / 2], i % 2 * 4, 0xf))
        })
    }
}

/// Signs of entries `first` and `first + 1` of a word that holds four times seven.
#[inline(always)]
unsafe fn sevens<S: Simd>(w: S::I, first: usize) -> [S::I; 2] {
    unsafe { two!(i => even::<S>(bits::<S>(w, 7 * (first + i), 127))) }
}

/// `d * (s + offset) * unit`
#[inline(always)]
unsafe fn scaled<S: Simd>(d: S::F, s: S::I, offset: f32, unit: f32) -> S::F {
    unsafe { S::f_mul(S::f_mul(d, S::f_add(S::f_from_i(s), S::f_splat(offset))), S::f_splat(unit)) }
}

/// Scales of 4 bits, `count` of them, in bytes of 16-bit parts from `first` on.
#[inline(always)]
unsafe fn nibble_scales<S: Simd>(
    b: Block,
    first: usize,
    count: usize,
    (offset, unit): (f32, f32),
    to: &mut Scales<S>,
) {
    unsafe {
        let d = half::<S>(b, 0);
        for i in 0..count {
            let s = bits::<S>(raw_half::<S>(b, first + i / 4), 4 * (i % 4), 0xf);
            to.scales[i] = scaled::<S>(d, s, offset, unit);
        }
    }
}

/// What all formats of grids have in common.
macro_rules! grid_format {
    ($(#[$doc:meta])* $name:ident, $kind:ident, $halves:expr, $words:expr, $scale_len:literal, $offset:literal, $bits:literal,
     |$b:ident, $to:ident| $scales:expr, |$unit:ident, $group:ident| $quants:expr) => {
        $(#[$doc])*
        pub struct $name;
        unsafe impl Format for $name {
            const KIND: BlockType = BlockType::$kind;
            const HALVES: &'static [usize] = &$halves;
            const WORDS: &'static [(usize, usize)] = &$words;
            const SCALE_LEN: usize = $scale_len;
            const UNIT: usize = 32;
            const MINIMA: bool = false;
            const OFFSET: Option<u32> = Some($offset);
            const BITS: u32 = $bits;
            #[inline(always)]
            unsafe fn scales<S: Simd>($b: Block, $to: &mut Scales<S>) {
                unsafe { $scales }
            }
            #[inline(always)]
            unsafe fn quants<S: Simd>($b: Block, $unit: usize, $group: usize) -> [S::I; 4] {
                unsafe { $quants }
            }
        }
    };
}

grid_format!(
    /// [`BlockType::IQ2_XXS`]: a unit is a word of four entries, and one of their signs and the scale.
    Iq2Xxs, IQ2_XXS, [0], [(2, 16)], 32, 6, 7,
    |b, to| {
        let d = half::<S>(b, 0);
        for i in 0..8 {
            to.scales[i] = scaled::<S>(d, S::i_shr::<28>(word::<S>(b, 2 * i + 1)), 0.5, 0.25);
        }
    },
    |unit, group| {
        let (w, signs) = (word::<S>(b, 2 * unit), word::<S>(b, 2 * unit + 1));
        let entries = two!(i => bits::<S>(w, 16 * group + 8 * i, 0xff));
        two_entries::<S>(&IQ2_XXS_WORDS, entries, sevens::<S>(signs, 2 * group))
    }
);

grid_format!(
    /// [`BlockType::IQ2_XS`]: a word is two entries of nine bits, each with seven of signs.
    Iq2Xs, IQ2_XS, [0, 66, 68, 70, 72], [(2, 16)], 16, 6, 7,
    |b, to| nibble_scales::<S>(b, 1, 16, (0.5, 0.25), to),
    |unit, group| {
        let w = word::<S>(b, 2 * unit + group);
        let signs = [even::<S>(bits::<S>(w, 9, 127)), even::<S>(S::i_shr::<25>(w))];
        two_entries::<S>(&IQ2_XS_WORDS, [bits::<S>(w, 0, 511), bits::<S>(w, 16, 511)], signs)
    }
);

grid_format!(
    /// [`BlockType::IQ2_S`]: low bytes of four entries in a word, their signs in another.
    Iq2S, IQ2_S, [0, 66, 68, 70, 72, 74, 76, 78, 80], [(2, 16)], 16, 6, 7,
    |b, to| nibble_scales::<S>(b, 5, 16, (0.5, 0.25), to),
    |unit, group| {
        let (low, signs) = (word::<S>(b, unit), word::<S>(b, 8 + unit));
        let high = byte_of_halves::<S>(b, 1, unit);
        let entries = two!(i => {
            let l = 2 * group + i;
            S::i_or(bits::<S>(low, 8 * l, 0xff), S::i_shl::<8>(bits::<S>(high, 2 * l, 3)))
        });
        let signs = two!(i => bits::<S>(signs, 16 * group + 8 * i, 0xff));
        two_entries::<S>(&IQ2_S_WORDS, entries, signs)
    }
);

grid_format!(
    /// [`BlockType::IQ3_XXS`]: a unit is two words of four entries; words of signs and scales follow.
    Iq3Xxs, IQ3_XXS, [0], [(2, 24)], 32, 6, 7,
    |b, to| {
        let d = half::<S>(b, 0);
        for i in 0..8 {
            to.scales[i] = scaled::<S>(d, S::i_shr::<28>(word::<S>(b, 16 + i)), 0.5, 0.5);
        }
    },
    |unit, group| {
        let (w, signs) = (word::<S>(b, 2 * unit + group), word::<S>(b, 16 + unit));
        let entries = four!(i => bits::<S>(w, 8 * i, 0xff));
        four_entries::<S>(&IQ3_XXS_WORDS, entries, sevens::<S>(signs, 2 * group))
    }
);

grid_format!(
    /// [`BlockType::IQ3_S`]: as IQ3_XXS with a ninth bit of each entry, and eight bits of signs.
    Iq3S, IQ3_S, [0, 66, 68, 70, 72, 106, 108], [(2, 16), (74, 8)], 32, 6, 7,
    |b, to| nibble_scales::<S>(b, 5, 8, (0.5, 2.0), to),
    |unit, group| {
        let (low, signs) = (word::<S>(b, 2 * unit + group), word::<S>(b, 16 + unit));
        let high = byte_of_halves::<S>(b, 1, unit);
        let entries = four!(i => {
            let ninth = S::i_shl::<8>(bits::<S>(high, 4 * group + i, 1));
            S::i_or(bits::<S>(low, 8 * i, 0xff), ninth)
        });
        let signs = two!(i => bits::<S>(signs, 16 * group + 8 * i, 0xff));
        four_entries::<S>(&IQ3_S_WORDS, entries, signs)
    }
);

/// 16 columns of IQ1: 16 plus 8 times the value, less 1 where `minus` is 1, else 1 more. The scale is an eighth.
#[inline(always)]
unsafe fn iq1<S: Simd>(entries: [S::I; 2], minus: [S::I; 2]) -> [S::I; 4] {
    unsafe {
        let found = two!(i => S::i_gather(IQ1_WORDS.as_ptr(), entries[i]));
        // the table has 8 too little
        let shift = two!(i => {
            let both = S::i_and(S::i_sub(S::i_splat(0), minus[i]), S::i_splat(0x0202_0202));
            S::i_sub(S::i_splat(0x0909_0909), both)
        });
        four!(i => S::i_add(bits::<S>(found[i / 2], i % 2 * 2, 0x1818_1818), shift[i / 2]))
    }
}

grid_format!(
    /// [`BlockType::IQ1_S`]: a word is low bytes of four entries; a 16-bit part has their high bits, scale and sign.
    Iq1S, IQ1_S, [0, 34, 36, 38, 40, 42, 44, 46, 48], [(2, 8)], 32, 4, 5,
    |b, to| {
        let d = half::<S>(b, 0);
        for i in 0..8 {
            to.scales[i] = scaled::<S>(d, bits::<S>(raw_half::<S>(b, 1 + i), 12, 7), 0.5, 0.25);
        }
    },
    |unit, group| {
        let (low, high) = (word::<S>(b, unit), raw_half::<S>(b, 1 + unit));
        let entries = two!(i => {
            let l = 2 * group + i;
            S::i_or(bits::<S>(low, 8 * l, 0xff), S::i_shl::<8>(bits::<S>(high, 3 * l, 7)))
        });
        iq1::<S>(entries, [S::i_shr::<15>(high); 2])
    }
);

grid_format!(
    /// [`BlockType::IQ1_M`]: high bits and sign of an entry are a nibble; the block's factor stands in four parts.
    Iq1M, IQ1_M, [48, 50, 52, 54], [(0, 8), (32, 4)], 16, 4, 5,
    |b, to| {
        let mut d = S::i_splat(0);
        for i in 0..4 {
            d = S::i_or(d, S::i_shr_by(S::i_and(raw_half::<S>(b, i), S::i_splat(0xf000)), 12 - 4 * i as u32));
        }
        let (mut words, mut halves) = ([0u32; TILE], [0u16; TILE]);
        S::i_store(words.as_mut_ptr(), d);
        for i in 0..S::LANES {
            halves[i] = words[i] as u16;
        }
        let d = S::f_load_f16(halves.as_ptr());
        for i in 0..16 {
            to.scales[i] = scaled::<S>(d, bits::<S>(raw_half::<S>(b, i / 4), 3 * (i % 4), 7), 0.5, 0.25);
        }
    },
    |unit, group| {
        let low = word::<S>(b, unit);
        let at = 2 * unit + group;
        let high = bits::<S>(word::<S>(b, 8 + at / 4), 8 * (at % 4), 0xff);
        let entries = two!(i => {
            let low = bits::<S>(low, 8 * (2 * group + i), 0xff);
            S::i_or(low, S::i_shl::<8>(bits::<S>(high, 4 * i, 7)))
        });
        iq1::<S>(entries, two!(i => bits::<S>(high, 4 * i + 3, 1)))
    }
);

const fn as_bytes(table: [i8; 16], offset: i8) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = (table[i] + offset) as u8;
        i += 1;
    }
    bytes
}

static IQ4_BYTES: [u8; 16] = as_bytes(IQ4, 0);
static FP4_BYTES: [u8; 16] = as_bytes(FP4, 16);

/// 16 of the 32 values of 16 bytes of codes.
#[inline(always)]
unsafe fn look_up<S: Simd>(table: &[u8; 16], b: Block, first: usize, group: usize) -> [S::I; 4] {
    unsafe {
        let codes = nibbles::<S>(b, first, group);
        four!(i => S::i_look_up(table, codes[i]))
    }
}

/// [`BlockType::IQ4_NL`]: values are signed bytes.
pub struct Iq4Nl;
unsafe impl Format for Iq4Nl {
    const KIND: BlockType = BlockType::IQ4_NL;
    const HALVES: &'static [usize] = &[0];
    const WORDS: &'static [(usize, usize)] = &[(2, 4)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe { to.scales[0] = half::<S>(b, 0) }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, _unit: usize, group: usize) -> [S::I; 4] {
        unsafe { look_up::<S>(&IQ4_BYTES, b, 0, group) }
    }
}

/// [`BlockType::IQ4_XS`]: scales of 6 bits less 32.
pub struct Iq4Xs;
unsafe impl Format for Iq4Xs {
    const KIND: BlockType = BlockType::IQ4_XS;
    const HALVES: &'static [usize] = &[0, 2, 4, 6];
    const WORDS: &'static [(usize, usize)] = &[(8, 32)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            let (d, high) = (half::<S>(b, 0), raw_half::<S>(b, 1));
            for i in 0..8 {
                let low = bits::<S>(raw_half::<S>(b, 2 + i / 4), 4 * (i % 4), 0xf);
                let s = S::i_or(low, S::i_shl::<4>(bits::<S>(high, 2 * i, 3)));
                to.scales[i] = S::f_mul(d, S::f_sub(S::f_from_i(s), S::f_splat(32.0)));
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        unsafe { look_up::<S>(&IQ4_BYTES, b, 4 * unit, group) }
    }
}

/// [`BlockType::MXFP4`]: values are moved up by 16; the scale is a power of two, in a byte.
pub struct Mxfp4;
unsafe impl Format for Mxfp4 {
    const KIND: BlockType = BlockType::MXFP4;
    const HALVES: &'static [usize] = &[];
    const WORDS: &'static [(usize, usize)] = &[(1, 4)];
    const BYTES: &'static [usize] = &[0];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(4);
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            // 2^(e - 128), as the bits of an f32; 0 for the two that would be subnormal
            let e = S::i_and(S::f_to_i(S::f_load_i8(b.bytes.cast())), S::i_splat(0xff));
            let e = S::f_to_i(S::f_max(S::f_from_i(e), S::f_splat(1.0)));
            to.scales[0] = S::f_from_bits(S::i_shl::<23>(S::i_sub(e, S::i_splat(1))));
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, _unit: usize, group: usize) -> [S::I; 4] {
        unsafe { look_up::<S>(&FP4_BYTES, b, 0, group) }
    }
}

/// [`BlockType::TQ2_0`]: 2-bit codes of which a byte holds columns 32 apart; one scale.
pub struct Tq2;
unsafe impl Format for Tq2 {
    const KIND: BlockType = BlockType::TQ2_0;
    const HALVES: &'static [usize] = &[64];
    const WORDS: &'static [(usize, usize)] = &[(0, 16)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 128;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(0);
    const BITS: u32 = 2;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            for i in 0..8 {
                to.scales[i] = half::<S>(b, 0);
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        let first = 8 * unit + 4 * (group % 2);
        unsafe { four!(i => bits::<S>(word::<S>(b, first + i), group / 2 * 2, 0x0303_0303)) }
    }
}

/// [`BlockType::TQ1_0`]: five digits to base 3 in a byte, of columns 32 apart, then 16 apart; four of columns 4 apart.
pub struct Tq1;
unsafe impl Format for Tq1 {
    const KIND: BlockType = BlockType::TQ1_0;
    const HALVES: &'static [usize] = &[52, 48, 50];
    const WORDS: &'static [(usize, usize)] = &[(0, 12)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(0);
    const BITS: u32 = 2;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            for i in 0..8 {
                to.scales[i] = half::<S>(b, 0);
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        unsafe {
            match (unit, 2 * unit + group) {
                (0..5, _) => four!(i => digits::<S>(word::<S>(b, 4 * group + i), unit)),
                (_, at @ 10..15) => four!(i => digits::<S>(word::<S>(b, 8 + i), at - 10)),
                _ => {
                    let last = S::i_or(raw_half::<S>(b, 1), S::i_shl::<16>(raw_half::<S>(b, 2)));
                    four!(i => digits::<S>(last, i))
                }
            }
        }
    }
}

/// Digit n of each byte: the byte times 3^n, of which what is above 256 is dropped, is a fraction of 256.
#[inline(always)]
unsafe fn digits<S: Simd>(v: S::I, n: usize) -> S::I {
    const POWERS: [u32; 5] = [1, 3, 9, 27, 81];
    unsafe {
        let every_other = S::i_splat(0x00ff_00ff);
        let low = digit::<S>(S::i_and(v, every_other), POWERS[n]);
        let high = digit::<S>(S::i_and(S::i_shr::<8>(v), every_other), POWERS[n]);
        S::i_or(low, S::i_shl::<8>(high))
    }
}

/// The same of two bytes, 16 bits apart.
#[inline(always)]
unsafe fn digit<S: Simd>(two: S::I, power: u32) -> S::I {
    unsafe {
        let every_other = S::i_splat(0x00ff_00ff);
        let fraction = S::i_and(S::i_mul(two, S::i_splat(power)), every_other);
        S::i_and(S::i_shr::<8>(S::i_mul(fraction, S::i_splat(3))), every_other)
    }
}
