//! The block formats as the matrix product sees them: how a block of 16 rows is interleaved, and how it is
//! unpacked to one common form. Layouts are those of GGUF (ggml-common.h); `quant` is the plain statement of them.
//!
//! **Interleaved.** The blocks of 16 rows at the same columns stand together, word by word: first each 16-bit
//! part (scales) of row 0..15, then each 32-bit word of row 0..15. So word i of a block is one vector over the rows.
//!
//! **Unpacked.** Quants are unsigned bytes, four columns of a row to a lane; scales and minima are f32 vectors over the
//! rows. The value is `scale * (quant - offset) + minimum`. All unpacking is and, or, shift and multiply by lane.

use super::super::Simd;
use crate::quant::BlockType;

/// Rows of a tile: the lanes of the widest vector.
pub const TILE: usize = 16;

/// Columns that are unpacked at a time: a super-block, or eight blocks of 32.
pub const CHUNK: usize = 256;

/// Columns that share an activation scale.
pub const GROUP: usize = 16;

/// Columns of the smallest block, and of an inner step of the product: two groups.
pub const PAIR: usize = 2 * GROUP;

/// A chunk of a tile, unpacked.
#[repr(C, align(64))]
pub struct Unpacked {
    /// [columns / 4][16 rows]: quants of four columns.
    pub quants: [u32; CHUNK / 4 * TILE],
    /// [columns / SCALE_LEN][16 rows]
    pub scales: [f32; CHUNK / GROUP * TILE],
    /// [columns / SCALE_LEN][16 rows], for formats that have minima.
    pub minima: [f32; CHUNK / GROUP * TILE],
}

impl Unpacked {
    /// All zero.
    pub const ZERO: Self = Self {
        quants: [0; CHUNK / 4 * TILE],
        scales: [0.0; CHUNK / GROUP * TILE],
        minima: [0.0; CHUNK / GROUP * TILE],
    };
}

/// Where [`Format::unpack`] reads and writes: LANES rows of one block of a tile.
#[derive(Clone, Copy)]
pub struct Block {
    /// The 16-bit parts: part i of these rows at `16 * i`.
    pub halves: *const u16,
    /// The 32-bit words: word i of these rows at `16 * i`.
    pub words: *const u32,
    /// Four columns of these rows at `16 * (column / 4)`.
    pub quants: *mut u32,
    /// Scale i of these rows at `16 * i`.
    pub scales: *mut f32,
    /// Minimum i of these rows at `16 * i`.
    pub minima: *mut f32,
}

#[inline(always)]
unsafe fn half<S: Simd>(b: Block, i: usize) -> S::F {
    unsafe { S::f_load_f16(b.halves.add(TILE * i)) }
}

#[inline(always)]
unsafe fn word<S: Simd>(b: Block, i: usize) -> S::I {
    unsafe { S::i_load(b.words.add(TILE * i)) }
}

#[inline(always)]
unsafe fn set_quants<S: Simd>(b: Block, i: usize, v: S::I) {
    unsafe { S::i_store(b.quants.add(TILE * i), v) }
}

#[inline(always)]
unsafe fn set_scale<S: Simd>(b: Block, i: usize, v: S::F) {
    unsafe { S::f_store(b.scales.add(TILE * i), v) }
}

#[inline(always)]
unsafe fn set_minimum<S: Simd>(b: Block, i: usize, v: S::F) {
    unsafe { S::f_store(b.minima.add(TILE * i), v) }
}

/// `(v >> shift) & mask`
#[inline(always)]
unsafe fn bits<S: Simd>(v: S::I, shift: u32, mask: u32) -> S::I {
    unsafe { S::i_and(S::i_shr_by(v, shift), S::i_splat(mask)) }
}

/// Byte i of each lane, as f32.
#[inline(always)]
unsafe fn byte<S: Simd>(v: S::I, i: usize) -> S::F {
    unsafe { S::f_from_i(bits::<S>(v, 8 * i as u32, 0xff)) }
}

/// The negative of v.
#[inline(always)]
unsafe fn negative<S: Simd>(v: S::F) -> S::F {
    unsafe { S::f_from_bits(S::i_xor(S::f_bits(v), S::i_splat(0x8000_0000))) }
}

/// A block format.
///
/// # Safety
/// HALVES and WORDS cover the block exactly, and `unpack` stays within them and within the block's part of
/// [`Unpacked`].
pub unsafe trait Format: 'static {
    /// Its name and sizes.
    const KIND: BlockType;
    /// Byte offsets of the 16-bit parts in a block as it stands in the file.
    const HALVES: &'static [usize];
    /// Byte offset and number of words of the 32-bit parts.
    const WORDS: &'static [(usize, usize)];
    /// Columns that share a weight scale: 16 or 32.
    const SCALE_LEN: usize;
    /// Whether there are minima.
    const MINIMA: bool;
    /// log2 of the offset that is taken off the quants.
    const OFFSET: Option<u32>;
    /// Bits of a quant; 8 are signed.
    const BITS: u32;

    /// Unpacks one block of LANES rows.
    ///
    /// # Safety
    /// The pointers of `b` are valid for 16-row strides of the block; the CPU has the ISA.
    unsafe fn unpack<S: Simd>(b: Block);
}

/// The nibbles of 16 bytes: low ones are columns 0..16, high ones 16..32; bit 4 from the words' `high` bits.
#[inline(always)]
unsafe fn nibbles<S: Simd>(b: Block, first: usize, high: Option<S::I>) {
    unsafe {
        for i in 0..4 {
            let w = word::<S>(b, first + i);
            let mut low = bits::<S>(w, 0, 0x0f0f_0f0f);
            let mut up = bits::<S>(w, 4, 0x0f0f_0f0f);
            if let Some(high) = high {
                low = S::i_or(low, fifth_bits::<S>(high, 4 * i as u32));
                up = S::i_or(up, fifth_bits::<S>(high, 16 + 4 * i as u32));
            }
            set_quants::<S>(b, i, low);
            set_quants::<S>(b, 4 + i, up);
        }
    }
}

/// Four bits, from `shift` on, to bit 4 of the four bytes.
#[inline(always)]
unsafe fn fifth_bits<S: Simd>(v: S::I, shift: u32) -> S::I {
    // The multiplication puts copies at distances of 7, so that bit i also stands at 8 * i + 4.
    unsafe { S::i_and(S::i_mul(bits::<S>(v, shift, 0xf), S::i_splat(0x0204_0810)), S::i_splat(0x1010_1010)) }
}

/// [`BlockType::Q4_0`]
pub struct Q4_0;
unsafe impl Format for Q4_0 {
    const KIND: BlockType = BlockType::Q4_0;
    const HALVES: &'static [usize] = &[0];
    const WORDS: &'static [(usize, usize)] = &[(2, 4)];
    const SCALE_LEN: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(3);
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            set_scale::<S>(b, 0, half::<S>(b, 0));
            nibbles::<S>(b, 0, None);
        }
    }
}

/// [`BlockType::Q4_1`]
pub struct Q4_1;
unsafe impl Format for Q4_1 {
    const KIND: BlockType = BlockType::Q4_1;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 4)];
    const SCALE_LEN: usize = 32;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            set_scale::<S>(b, 0, half::<S>(b, 0));
            set_minimum::<S>(b, 0, half::<S>(b, 1));
            nibbles::<S>(b, 0, None);
        }
    }
}

/// [`BlockType::Q5_0`]
pub struct Q5_0;
unsafe impl Format for Q5_0 {
    const KIND: BlockType = BlockType::Q5_0;
    const HALVES: &'static [usize] = &[0];
    const WORDS: &'static [(usize, usize)] = &[(2, 5)];
    const SCALE_LEN: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(4);
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            set_scale::<S>(b, 0, half::<S>(b, 0));
            nibbles::<S>(b, 1, Some(word::<S>(b, 0)));
        }
    }
}

/// [`BlockType::Q5_1`]
pub struct Q5_1;
unsafe impl Format for Q5_1 {
    const KIND: BlockType = BlockType::Q5_1;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 5)];
    const SCALE_LEN: usize = 32;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            set_scale::<S>(b, 0, half::<S>(b, 0));
            set_minimum::<S>(b, 0, half::<S>(b, 1));
            nibbles::<S>(b, 1, Some(word::<S>(b, 0)));
        }
    }
}

/// [`BlockType::Q8_0`]
pub struct Q8_0;
unsafe impl Format for Q8_0 {
    const KIND: BlockType = BlockType::Q8_0;
    const HALVES: &'static [usize] = &[0];
    const WORDS: &'static [(usize, usize)] = &[(2, 8)];
    const SCALE_LEN: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            set_scale::<S>(b, 0, half::<S>(b, 0));
            for i in 0..8 {
                set_quants::<S>(b, i, word::<S>(b, i));
            }
        }
    }
}

/// [`BlockType::Q2_K`]: 16 scales and minima of 4 bits, 2-bit quants of which a byte holds columns 32 apart.
pub struct Q2K;
unsafe impl Format for Q2K {
    const KIND: BlockType = BlockType::Q2_K;
    const HALVES: &'static [usize] = &[80, 82];
    const WORDS: &'static [(usize, usize)] = &[(0, 20)];
    const SCALE_LEN: usize = 16;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 2;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            let (scale, minimum) = (half::<S>(b, 0), negative::<S>(half::<S>(b, 1)));
            for i in 0..4 {
                let both = word::<S>(b, i);
                let (low, high) = (bits::<S>(both, 0, 0x0f0f_0f0f), bits::<S>(both, 4, 0x0f0f_0f0f));
                for j in 0..4 {
                    set_scale::<S>(b, 4 * i + j, S::f_mul(scale, byte::<S>(low, j)));
                    set_minimum::<S>(b, 4 * i + j, S::f_mul(minimum, byte::<S>(high, j)));
                }
            }
            for n in 0..2 {
                for i in 0..8 {
                    let w = word::<S>(b, 4 + 8 * n + i);
                    for j in 0..4 {
                        set_quants::<S>(b, 32 * n + 8 * j + i, bits::<S>(w, 2 * j as u32, 0x0303_0303));
                    }
                }
            }
        }
    }
}

/// [`BlockType::Q3_K`]: 16 scales of 6 bits less 32, 2-bit quants as in Q2_K and their third bits in 32 bytes.
pub struct Q3K;
unsafe impl Format for Q3K {
    const KIND: BlockType = BlockType::Q3_K;
    const HALVES: &'static [usize] = &[108];
    const WORDS: &'static [(usize, usize)] = &[(0, 27)];
    const SCALE_LEN: usize = 16;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(2);
    const BITS: u32 = 3;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            let (scale, offset) = (half::<S>(b, 0), S::f_splat(32.0));
            for i in 0..4 {
                // Scales 4i..4i+4: a nibble of words 24 and 25, and two bits of word 26.
                let nibble = bits::<S>(word::<S>(b, 24 + i % 2), 4 * (i as u32 / 2), 0x0f0f_0f0f);
                let high = S::i_shl::<4>(bits::<S>(word::<S>(b, 26), 2 * i as u32, 0x0303_0303));
                let six = S::i_or(nibble, high);
                for j in 0..4 {
                    set_scale::<S>(b, 4 * i + j, S::f_mul(scale, S::f_sub(byte::<S>(six, j), offset)));
                }
            }
            for n in 0..2 {
                for i in 0..8 {
                    let (w, high) = (word::<S>(b, 8 + 8 * n + i), word::<S>(b, i));
                    for j in 0..4 {
                        let third = S::i_shl::<2>(bits::<S>(high, (4 * n + j) as u32, 0x0101_0101));
                        let low = bits::<S>(w, 2 * j as u32, 0x0303_0303);
                        set_quants::<S>(b, 32 * n + 8 * j + i, S::i_or(low, third));
                    }
                }
            }
        }
    }
}

/// The 8 scales and minima of 6 bits that Q4_K and Q5_K pack into words 0..3.
#[inline(always)]
unsafe fn scales_and_minima<S: Simd>(b: Block) {
    unsafe {
        let (scale, minimum) = (half::<S>(b, 0), negative::<S>(half::<S>(b, 1)));
        let (w0, w1, w2) = (word::<S>(b, 0), word::<S>(b, 1), word::<S>(b, 2));
        let top0 = S::i_and(S::i_shr::<2>(w0), S::i_splat(0x3030_3030));
        let top1 = S::i_and(S::i_shr::<2>(w1), S::i_splat(0x3030_3030));
        let scales = [bits::<S>(w0, 0, 0x3f3f_3f3f), S::i_or(bits::<S>(w2, 0, 0x0f0f_0f0f), top0)];
        let minima = [bits::<S>(w1, 0, 0x3f3f_3f3f), S::i_or(bits::<S>(w2, 4, 0x0f0f_0f0f), top1)];
        for i in 0..8 {
            set_scale::<S>(b, i, S::f_mul(scale, byte::<S>(scales[i / 4], i % 4)));
            set_minimum::<S>(b, i, S::f_mul(minimum, byte::<S>(minima[i / 4], i % 4)));
        }
    }
}

/// [`BlockType::Q4_K`]
pub struct Q4K;
unsafe impl Format for Q4K {
    const KIND: BlockType = BlockType::Q4_K;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 35)];
    const SCALE_LEN: usize = 32;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            scales_and_minima::<S>(b);
            for c in 0..4 {
                for i in 0..8 {
                    let w = word::<S>(b, 3 + 8 * c + i);
                    set_quants::<S>(b, 16 * c + i, bits::<S>(w, 0, 0x0f0f_0f0f));
                    set_quants::<S>(b, 16 * c + 8 + i, bits::<S>(w, 4, 0x0f0f_0f0f));
                }
            }
        }
    }
}

/// [`BlockType::Q5_K`]: as Q4_K, with the fifth bits in 32 bytes.
pub struct Q5K;
unsafe impl Format for Q5K {
    const KIND: BlockType = BlockType::Q5_K;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 43)];
    const SCALE_LEN: usize = 32;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            scales_and_minima::<S>(b);
            for c in 0..4 {
                for i in 0..8 {
                    let (w, high) = (word::<S>(b, 11 + 8 * c + i), word::<S>(b, 3 + i));
                    let first = S::i_shl::<4>(bits::<S>(high, 2 * c as u32, 0x0101_0101));
                    let second = S::i_shl::<4>(bits::<S>(high, 2 * c as u32 + 1, 0x0101_0101));
                    set_quants::<S>(b, 16 * c + i, S::i_or(bits::<S>(w, 0, 0x0f0f_0f0f), first));
                    set_quants::<S>(b, 16 * c + 8 + i, S::i_or(bits::<S>(w, 4, 0x0f0f_0f0f), second));
                }
            }
        }
    }
}

/// [`BlockType::Q6_K`]: 16 signed scales of 8 bits, low nibbles in 128 bytes, two high bits each in 64.
pub struct Q6K;
unsafe impl Format for Q6K {
    const KIND: BlockType = BlockType::Q6_K;
    const HALVES: &'static [usize] = &[208];
    const WORDS: &'static [(usize, usize)] = &[(0, 52)];
    const SCALE_LEN: usize = 16;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(5);
    const BITS: u32 = 6;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(b: Block) {
        unsafe {
            let scale = half::<S>(b, 0);
            for i in 0..4 {
                let w = word::<S>(b, 48 + i);
                let signed = [S::i_shl::<24>(w), S::i_shl::<16>(w), S::i_shl::<8>(w), w];
                for j in 0..4 {
                    set_scale::<S>(b, 4 * i + j, S::f_mul(scale, S::f_from_i(S::i_sar::<24>(signed[j]))));
                }
            }
            for n in 0..2 {
                for i in 0..8 {
                    let (w0, w1) = (word::<S>(b, 16 * n + i), word::<S>(b, 16 * n + 8 + i));
                    let high = word::<S>(b, 32 + 8 * n + i);
                    let quants = [
                        (bits::<S>(w0, 0, 0x0f0f_0f0f), S::i_shl::<4>(high)),
                        (bits::<S>(w1, 0, 0x0f0f_0f0f), S::i_shl::<2>(high)),
                        (bits::<S>(w0, 4, 0x0f0f_0f0f), high),
                        (bits::<S>(w1, 4, 0x0f0f_0f0f), S::i_shr::<2>(high)),
                    ];
                    for j in 0..4 {
                        let (low, high) = quants[j];
                        let high = S::i_and(high, S::i_splat(0x3030_3030));
                        set_quants::<S>(b, 32 * n + 8 * j + i, S::i_or(low, high));
                    }
                }
            }
        }
    }
}

/// Runs `$body` with `$f` as the [`Format`] of `$kind`; `$else` for kinds that are not quantized.
macro_rules! with_format {
    ($kind:expr, $f:ident => $body:expr, $else:expr) => {{
        use $crate::backend::cpu::kernels::generic::formats as of;
        use $crate::quant::BlockType;
        macro_rules! run {
            ($format:ty) => {{
                type $f = $format;
                $body
            }};
        }
        match $kind {
            BlockType::Q4_0 => run!(of::Q4_0),
            BlockType::Q4_1 => run!(of::Q4_1),
            BlockType::Q5_0 => run!(of::Q5_0),
            BlockType::Q5_1 => run!(of::Q5_1),
            BlockType::Q8_0 => run!(of::Q8_0),
            BlockType::Q2_K => run!(of::Q2K),
            BlockType::Q3_K => run!(of::Q3K),
            BlockType::Q4_K => run!(of::Q4K),
            BlockType::Q5_K => run!(of::Q5K),
            BlockType::Q6_K => run!(of::Q6K),
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => $else,
        }
    }};
}
pub(crate) use with_format;
