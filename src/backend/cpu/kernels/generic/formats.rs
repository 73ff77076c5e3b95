//! The block formats as the matrix product sees them: how a block of 16 rows is interleaved, and how it is
//! unpacked to one common form. Layouts are those of GGUF (ggml-common.h); `quant` is the plain statement of them.
//!
//! **Interleaved.** The blocks of 16 rows at the same columns stand together, word by word: first each 16-bit
//! part (scales) of row 0..15, then each 32-bit word of row 0..15. So word i of a block is one vector over the rows. Where
//! that would move the words from the beginning of a cache line, the scales come last. What quants would take long to be
//! made of is changed in place then ([`Format::rearrange`]).
//!
//! **Unpacked.** Quants are unsigned bytes, four columns of a row to a lane; scales and minima are f32 vectors over the
//! rows. The value is `scale * (quant - offset) + minimum`; the minima of super-blocks are a float times integers, which
//! stay integers. All unpacking is and, or, shift and multiply by lane.

use super::super::Simd;
use crate::quant::BlockType;

/// Rows of a tile: the lanes of the widest vector.
pub const TILE: usize = 16;

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

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
    /// [columns / 32][16 rows]: minima of blocks of 32; of a super-block, what the integers are times, in the first row.
    pub minima: [f32; CHUNK / PAIR * TILE],
    /// [columns / SCALE_LEN / 2][16 rows]: the integers, see [`Scales`].
    pub integer_minima: [u32; CHUNK / PAIR * TILE],
}

impl Unpacked {
    /// All zero.
    pub const ZERO: Self = Self {
        quants: [0; CHUNK / 4 * TILE],
        scales: [0.0; CHUNK / GROUP * TILE],
        minima: [0.0; CHUNK / PAIR * TILE],
        integer_minima: [0; CHUNK / PAIR * TILE],
    };
}

/// LANES rows of one interleaved block.
#[derive(Clone, Copy)]
pub struct Block {
    /// The 16-bit parts: part i of these rows at `16 * i`.
    pub halves: *const u16,
    /// The 32-bit words: word i of these rows at `16 * i`.
    pub words: *const u32,
    /// The single bytes: byte i of these rows at `16 * i`.
    pub bytes: *const u8,
}

impl Block {
    /// Rows from `part` on of the interleaved block of F that begins at `start`.
    ///
    /// # Safety
    /// There is such a block.
    #[inline(always)]
    pub unsafe fn new<F: Format>(start: *const u8, part: usize) -> Self {
        let bytes = TILE * (F::KIND.block_bytes() - F::BYTES.len());
        let (halves, words) = halves_and_words::<F>(start);
        // SAFETY: within the block.
        unsafe {
            Block {
                halves: start.add(halves).cast::<u16>().add(part),
                words: start.add(words).cast::<u32>().add(part),
                // the block's end, where a format has none
                bytes: start.wrapping_add(bytes + part),
            }
        }
    }
}

/// Where the 16-bit parts and the words of an interleaved block are that begins at `start`, in bytes from there. The 16-bit
/// parts come first; but where they would move the words from the beginning of a cache line, last: vectors that lie across two
/// lines are loaded at half the speed. Where single bytes follow, blocks begin at any place, and so do their words.
#[inline(always)]
pub(super) fn halves_and_words<F: Format>(start: *const u8) -> (usize, usize) {
    let halves = 2 * TILE * F::HALVES.len();
    if !halves.is_multiple_of(LINE) && F::BYTES.is_empty() && start.addr().is_multiple_of(LINE) {
        (TILE * F::KIND.block_bytes() - halves, 0)
    } else {
        (0, halves)
    }
}

/// Scales and minima of a block, in ascending order of columns; what a format has fewer of is left alone.
pub struct Scales<S: Simd> {
    /// One for each SCALE_LEN columns.
    pub scales: [S::F; 16],
    /// A block of 32's minimum, or what the integer minima of a super-block are times.
    pub minimum: S::F,
    /// Two 16-bit integers to a word, in the order of [`MINIMA_ORDER`].
    pub minima: [S::I; 8],
}

/// Which minima of each four stand together in a word: what and and shift by 8 bring there from four bytes.
pub const MINIMA_ORDER: [usize; 4] = [0, 2, 1, 3];

impl<S: Simd> Scales<S> {
    /// All zero.
    ///
    /// # Safety
    /// The CPU has the ISA.
    #[inline(always)]
    pub unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        let (zero, zeros) = unsafe { (S::f_splat(0.0), [S::i_splat(0); 8]) };
        Self { scales: [zero; 16], minimum: zero, minima: zeros }
    }
}

#[inline(always)]
pub(super) unsafe fn half<S: Simd>(b: Block, i: usize) -> S::F {
    unsafe { S::f_load_f16(b.halves.add(TILE * i)) }
}

#[inline(always)]
pub(super) unsafe fn word<S: Simd>(b: Block, i: usize) -> S::I {
    unsafe { S::i_load(b.words.add(TILE * i)) }
}

/// `(v >> shift) & mask`
#[inline(always)]
pub(super) unsafe fn bits<S: Simd>(v: S::I, shift: usize, mask: u32) -> S::I {
    unsafe { S::i_and(if shift == 0 { v } else { S::i_shr_by(v, shift as u32) }, S::i_splat(mask)) }
}

/// Byte i of each lane, as f32.
#[inline(always)]
pub(super) unsafe fn byte<S: Simd>(v: S::I, i: usize) -> S::F {
    unsafe { S::f_from_i(bits::<S>(v, 8 * i, 0xff)) }
}

/// The negative of v.
#[inline(always)]
unsafe fn negative<S: Simd>(v: S::F) -> S::F {
    unsafe { S::f_from_bits(S::i_xor(S::f_bits(v), S::i_splat(0x8000_0000))) }
}

/// Four bytes as two words of [`Scales::minima`].
#[inline(always)]
unsafe fn minima<S: Simd>(four: S::I) -> [S::I; 2] {
    unsafe { [bits::<S>(four, 0, 0x00ff_00ff), bits::<S>(four, 8, 0x00ff_00ff)] }
}

/// A block format.
///
/// # Safety
/// HALVES, WORDS and BYTES cover the block exactly, and the methods stay within them.
pub unsafe trait Format: 'static {
    /// Its name and sizes.
    const KIND: BlockType;
    /// Byte offsets of the 16-bit parts in a block as it stands in the file.
    const HALVES: &'static [usize];
    /// Byte offset and number of words of the 32-bit parts.
    const WORDS: &'static [(usize, usize)];
    /// Byte offsets of single bytes.
    const BYTES: &'static [usize] = &[];
    /// Columns that share a weight scale: 16 or 32.
    const SCALE_LEN: usize;
    /// Columns after which the quants lie as before, only further on: 32, 64 or 128.
    const UNIT: usize;
    /// Whether there are minima.
    const MINIMA: bool;
    /// log2 of the offset that is taken off the quants.
    const OFFSET: Option<u32>;
    /// Bits of a quant; 8 are signed.
    const BITS: u32;

    /// Changes LANES rows of an interleaved block, word i of them at `16 * i`, to what quants are quicker made of than of the
    /// file's words.
    ///
    /// # Safety
    /// The words are there, and nobody else uses them; the CPU has the ISA.
    #[inline(always)]
    unsafe fn rearrange<S: Simd>(_words: *mut u32) {}

    /// The scales and minima of a block.
    ///
    /// # Safety
    /// The pointers of `b` are valid for 16-row strides of the block; the CPU has the ISA.
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>);

    /// The quants of group `group` of unit `unit`: vector i holds columns `4 * i .. 4 * i + 4`. Quick where the
    /// compiler knows `group`.
    ///
    /// # Safety
    /// As for [`scales`](Self::scales); unit and group exist.
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4];

    /// The quants, times 2^[`times`](Self::times): as they lie, where a product takes bytes up to 255.
    ///
    /// # Safety
    /// As for [`quants`](Self::quants).
    #[inline(always)]
    unsafe fn multiples<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        // SAFETY: the caller's promise.
        unsafe { Self::quants::<S>(b, unit, group) }
    }

    /// log2 of what [`multiples`](Self::multiples) of this pair of groups of a unit are times. Not 0 only of super-blocks without an
    /// offset; a pair's products must sum to less than 2^22.
    #[inline(always)]
    fn times(_pair: usize) -> u32 {
        0
    }
}

/// Four vectors.
macro_rules! four {
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
            {
                let $i = 2;
                $vector
            },
            {
                let $i = 3;
                $vector
            },
        ]
    };
}

pub(in super::super) use four;

/// 16 of the 32 nibbles of 16 bytes: low ones are columns 0..16, high ones 16..32.
#[inline(always)]
pub(super) unsafe fn nibbles<S: Simd>(b: Block, first: usize, group: usize) -> [S::I; 4] {
    unsafe { four!(i => bits::<S>(word::<S>(b, first + i), 4 * group, 0x0f0f_0f0f)) }
}

/// The same with bit 4 from the bits of word 0.
#[inline(always)]
unsafe fn nibbles_and_fifth_bits<S: Simd>(b: Block, group: usize) -> [S::I; 4] {
    unsafe {
        let (low, high) = (nibbles::<S>(b, 1, group), word::<S>(b, 0));
        four!(i => {
            // The multiplication puts copies at distances of 7, so that bit i also stands at 8 * i + 4.
            let four = bits::<S>(high, 16 * group + 4 * i, 0xf);
            let spread = S::i_and(S::i_mul(four, S::i_splat(0x0204_0810)), S::i_splat(0x1010_1010));
            S::i_or(low[i], spread)
        })
    }
}

/// [`BlockType::Q4_0`]
pub struct Q4_0;
unsafe impl Format for Q4_0 {
    const KIND: BlockType = BlockType::Q4_0;
    const HALVES: &'static [usize] = &[0];
    const WORDS: &'static [(usize, usize)] = &[(2, 4)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(3);
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            to.scales[0] = half::<S>(b, 0);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, _unit: usize, group: usize) -> [S::I; 4] {
        unsafe { nibbles::<S>(b, 0, group) }
    }
}

/// [`BlockType::Q4_1`]
pub struct Q4_1;
unsafe impl Format for Q4_1 {
    const KIND: BlockType = BlockType::Q4_1;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 4)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            to.scales[0] = half::<S>(b, 0);
            to.minimum = half::<S>(b, 1);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, _unit: usize, group: usize) -> [S::I; 4] {
        unsafe { nibbles::<S>(b, 0, group) }
    }
}

/// [`BlockType::Q5_0`]
pub struct Q5_0;
unsafe impl Format for Q5_0 {
    const KIND: BlockType = BlockType::Q5_0;
    const HALVES: &'static [usize] = &[0];
    const WORDS: &'static [(usize, usize)] = &[(2, 5)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(4);
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            to.scales[0] = half::<S>(b, 0);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, _unit: usize, group: usize) -> [S::I; 4] {
        unsafe { nibbles_and_fifth_bits::<S>(b, group) }
    }
}

/// [`BlockType::Q5_1`]
pub struct Q5_1;
unsafe impl Format for Q5_1 {
    const KIND: BlockType = BlockType::Q5_1;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 5)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            to.scales[0] = half::<S>(b, 0);
            to.minimum = half::<S>(b, 1);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, _unit: usize, group: usize) -> [S::I; 4] {
        unsafe { nibbles_and_fifth_bits::<S>(b, group) }
    }
}

/// [`BlockType::Q8_0`]
pub struct Q8_0;
unsafe impl Format for Q8_0 {
    const KIND: BlockType = BlockType::Q8_0;
    const HALVES: &'static [usize] = &[0];
    const WORDS: &'static [(usize, usize)] = &[(2, 8)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 32;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            to.scales[0] = half::<S>(b, 0);
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, _unit: usize, group: usize) -> [S::I; 4] {
        unsafe { four!(i => word::<S>(b, 4 * group + i)) }
    }
}

/// [`BlockType::Q2_K`]: 16 scales and minima of 4 bits, 2-bit quants of which a byte holds columns 32 apart.
pub struct Q2K;
unsafe impl Format for Q2K {
    const KIND: BlockType = BlockType::Q2_K;
    const HALVES: &'static [usize] = &[80, 82];
    const WORDS: &'static [(usize, usize)] = &[(0, 20)];
    const SCALE_LEN: usize = 16;
    const UNIT: usize = 128;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 2;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            let scale = half::<S>(b, 0);
            to.minimum = negative::<S>(half::<S>(b, 1));
            for i in 0..4 {
                let both = word::<S>(b, i);
                let (low, high) = (bits::<S>(both, 0, 0x0f0f_0f0f), bits::<S>(both, 4, 0x0f0f_0f0f));
                for j in 0..4 {
                    to.scales[4 * i + j] = S::f_mul(scale, byte::<S>(low, j));
                }
                [to.minima[2 * i], to.minima[2 * i + 1]] = minima::<S>(high);
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        let first = 4 + 8 * unit + 4 * (group % 2);
        unsafe { four!(i => bits::<S>(word::<S>(b, first + i), group / 2 * 2, 0x0303_0303)) }
    }
}

/// [`BlockType::Q3_K`]: 16 scales of 6 bits less 32, 2-bit quants as in Q2_K and their third bits in 32 bytes.
pub struct Q3K;
unsafe impl Format for Q3K {
    const KIND: BlockType = BlockType::Q3_K;
    const HALVES: &'static [usize] = &[108];
    const WORDS: &'static [(usize, usize)] = &[(0, 27)];
    const SCALE_LEN: usize = 16;
    const UNIT: usize = 128;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(2);
    const BITS: u32 = 3;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            let (scale, words) = (half::<S>(b, 0), [word::<S>(b, 0), word::<S>(b, 1), word::<S>(b, 2)]);
            for i in 0..3 {
                let w = words[i];
                let signed = [S::i_shl::<24>(w), S::i_shl::<18>(w), S::i_shl::<12>(w), S::i_shl::<6>(w), w];
                for j in 0..5 {
                    to.scales[5 * i + j] = S::f_mul(scale, S::f_from_i(S::i_sar::<26>(signed[j])));
                }
            }
            let low = S::i_or(S::i_shl::<2>(bits::<S>(words[1], 0, 3)), bits::<S>(words[2], 0, 3));
            let last = S::i_or(S::i_shl::<30>(words[0]), S::i_shl::<26>(low));
            to.scales[15] = S::f_mul(scale, S::f_from_i(S::i_sar::<26>(last)));
        }
    }
    /// The scales then come first, signed: five in the upper bits of each of three words, of the last the top, the middle and the low two
    /// bits below them. A unit has twelve words, of which each three take eight quants: two each as they are, the second
    /// above the first; of the other two, the low bits are above those in the first word and the last, both top bits in the second.
    #[inline(always)]
    unsafe fn rearrange<S: Simd>(words: *mut u32) {
        unsafe {
            let mut thirds = [S::i_splat(0); 8];
            for i in 0..8 {
                thirds[i] = S::i_load(words.add(TILE * i));
            }
            let scales = Self::signed_scales::<S>(words.add(TILE * 24));
            for unit in 0..2 {
                let mut low = [S::i_splat(0); 8];
                for i in 0..8 {
                    low[i] = S::i_load(words.add(TILE * (8 + 8 * unit + i)));
                }
                // all that is written to was read before
                let to = words.add(TILE * (3 + 12 * unit));
                for i in 0..4 {
                    let mut quants = [S::i_splat(0); 8];
                    for group in 0..8 {
                        let (from, j) = (4 * (group % 2) + i, group / 2);
                        let third = bits::<S>(thirds[from], 4 * unit + j, 0x0101_0101);
                        quants[group] =
                            S::i_or(bits::<S>(low[from], 2 * j, 0x0303_0303), S::i_shl::<2>(third));
                    }
                    let [a, b] = [quants[6], quants[7]];
                    let above = [a, S::i_or(bits::<S>(a, 2, 0x0101_0101), bits::<S>(b, 1, 0x0202_0202)), b];
                    for third in 0..3 {
                        let two = S::i_or(quants[third], S::i_shl::<3>(quants[3 + third]));
                        let above = S::i_shl::<6>(bits::<S>(above[third], 0, 0x0303_0303));
                        S::i_store(to.add(TILE * (4 * third + i)), S::i_or(two, above));
                    }
                }
            }
            for i in 0..3 {
                S::i_store(words.add(TILE * i), scales[i]);
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        let first = 3 + 12 * unit;
        unsafe {
            if group < 6 {
                let first = first + 4 * (group % 3);
                return four!(i => bits::<S>(word::<S>(b, first + i), 3 * (group / 3), 0x0707_0707));
            }
            four!(i => {
                let low = bits::<S>(word::<S>(b, first + 8 * (group - 6) + i), 6, 0x0303_0303);
                let high = bits::<S>(word::<S>(b, first + 4 + i), 4 + (group - 6), 0x0404_0404);
                S::i_or(low, high)
            })
        }
    }
}

impl Q3K {
    /// The three words of scales, from the file's: twelve bytes of which the first eight have a nibble each of scale i and i + 8, the
    /// others two bits each of scales i, i + 4, i + 8 and i + 12 above these.
    #[inline(always)]
    unsafe fn signed_scales<S: Simd>(words: *const u32) -> [S::I; 3] {
        unsafe {
            let (nibbles, high) =
                ([S::i_load(words), S::i_load(words.add(TILE))], S::i_load(words.add(2 * TILE)));
            let mut to = [S::i_splat(0); 3];
            for i in 0..16 {
                let nibble = bits::<S>(nibbles[i / 4 % 2], 8 * (i % 4) + i / 8 * 4, 0xf);
                let top = bits::<S>(high, 8 * (i % 4) + i / 4 * 2, 3);
                // 32 less: the sign's bit the other way round
                let signed = S::i_xor(S::i_or(nibble, S::i_shl::<4>(top)), S::i_splat(32));
                let top = S::i_shl::<26>(signed);
                if i < 15 {
                    to[i / 5] = S::i_or(to[i / 5], S::i_shr_by(top, 24 - 6 * (i % 5) as u32));
                    continue;
                }
                for (j, word) in to.iter_mut().enumerate() {
                    *word = S::i_or(*word, bits::<S>(signed, 4 - 2 * j, 3));
                }
            }
            to
        }
    }
}

/// The 8 scales and minima of 6 bits that Q4_K and Q5_K pack into words 0..3.
#[inline(always)]
unsafe fn scales_and_minima<S: Simd>(b: Block, to: &mut Scales<S>) {
    unsafe {
        let scale = half::<S>(b, 0);
        to.minimum = negative::<S>(half::<S>(b, 1));
        let (w0, w1, w2) = (word::<S>(b, 0), word::<S>(b, 1), word::<S>(b, 2));
        let top0 = bits::<S>(w0, 2, 0x3030_3030);
        let top1 = bits::<S>(w1, 2, 0x3030_3030);
        let scales = [bits::<S>(w0, 0, 0x3f3f_3f3f), S::i_or(bits::<S>(w2, 0, 0x0f0f_0f0f), top0)];
        for i in 0..8 {
            to.scales[i] = S::f_mul(scale, byte::<S>(scales[i / 4], i % 4));
        }
        [to.minima[0], to.minima[1]] = minima::<S>(bits::<S>(w1, 0, 0x3f3f_3f3f));
        [to.minima[2], to.minima[3]] = minima::<S>(S::i_or(bits::<S>(w2, 4, 0x0f0f_0f0f), top1));
    }
}

/// [`BlockType::Q4_K`]
pub struct Q4K;
unsafe impl Format for Q4K {
    const KIND: BlockType = BlockType::Q4_K;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 35)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 64;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe { scales_and_minima::<S>(b, to) }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        unsafe { nibbles::<S>(b, 3 + 8 * unit + 4 * (group % 2), group / 2) }
    }
    #[inline(always)]
    unsafe fn multiples<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        let (first, mask) = (3 + 8 * unit + 4 * (group % 2), 0x0f0f_0f0f << (4 * (group / 2)));
        unsafe { four!(i => S::i_and(word::<S>(b, first + i), S::i_splat(mask))) }
    }
    #[inline(always)]
    fn times(pair: usize) -> u32 {
        // sums to at most 32 * 240 * 127
        4 * pair as u32
    }
}

/// [`BlockType::Q5_K`]: as Q4_K, with the fifth bits in 32 bytes.
pub struct Q5K;
unsafe impl Format for Q5K {
    const KIND: BlockType = BlockType::Q5_K;
    const HALVES: &'static [usize] = &[0, 2];
    const WORDS: &'static [(usize, usize)] = &[(4, 43)];
    const SCALE_LEN: usize = 32;
    const UNIT: usize = 64;
    const MINIMA: bool = true;
    const OFFSET: Option<u32> = None;
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe { scales_and_minima::<S>(b, to) }
    }
    /// A unit then has ten words: eight with the quants of 32 columns as they are, and above these the top three bits of the quants 32
    /// columns further on; two with the low two bits of those. Words are read in their order: one core of Zen 4 so reads at 90% of what
    /// memory gives, for 77% before; with the last two of all units in front, where the fifth bits were, at 64 to 73%.
    #[inline(always)]
    unsafe fn rearrange<S: Simd>(words: *mut u32) {
        unsafe {
            let mut fifths = [S::i_splat(0); 8];
            for i in 0..8 {
                fifths[i] = S::i_load(words.add(TILE * (3 + i)));
            }
            for unit in 0..4 {
                // what is written there was read before
                let to = words.add(TILE * (3 + 10 * unit));
                let mut low_bits = [S::i_splat(0); 2];
                for i in 0..8 {
                    let nibbles = S::i_load(words.add(TILE * (11 + 8 * unit + i)));
                    let fifth = S::i_shr_by(fifths[i], 2 * unit as u32);
                    let first = S::i_or(
                        bits::<S>(nibbles, 0, 0x0f0f_0f0f),
                        S::i_shl::<4>(bits::<S>(fifth, 0, 0x0101_0101)),
                    );
                    let second = S::i_or(
                        bits::<S>(nibbles, 1, 0x6060_6060),
                        S::i_shl::<6>(bits::<S>(fifth, 0, 0x0202_0202)),
                    );
                    S::i_store(to.add(TILE * i), S::i_or(first, second));
                    let low = S::i_shr_by(
                        S::i_shl::<2>(bits::<S>(nibbles, 0, 0x3030_3030)),
                        6 - 2 * (i % 4) as u32,
                    );
                    low_bits[i / 4] = S::i_or(low_bits[i / 4], low);
                }
                S::i_store(to.add(TILE * 8), low_bits[0]);
                S::i_store(to.add(TILE * 9), low_bits[1]);
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        unsafe {
            let multiples = Self::multiples::<S>(b, unit, group);
            if group < 2 { multiples } else { four!(i => S::i_shr_by(multiples[i], 3)) }
        }
    }
    #[inline(always)]
    unsafe fn multiples<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        let first = 3 + 10 * unit + 4 * (group % 2);
        unsafe {
            if group < 2 {
                return four!(i => bits::<S>(word::<S>(b, first + i), 0, 0x1f1f_1f1f));
            }
            let low = word::<S>(b, 3 + 10 * unit + 8 + group % 2);
            let low = [S::i_shl::<3>(low), S::i_shl::<1>(low), S::i_shr_by(low, 1), S::i_shr_by(low, 3)];
            four!(i => S::i_or(bits::<S>(word::<S>(b, first + i), 0, 0xe0e0_e0e0), bits::<S>(low[i], 0, 0x1818_1818)))
        }
    }
    #[inline(always)]
    fn times(pair: usize) -> u32 {
        // sums to at most 32 * 248 * 127
        3 * pair as u32
    }
}

/// [`BlockType::Q6_K`]: 16 signed scales of 8 bits, low nibbles in 128 bytes, two high bits each in 64.
pub struct Q6K;
unsafe impl Format for Q6K {
    const KIND: BlockType = BlockType::Q6_K;
    const HALVES: &'static [usize] = &[208];
    // For each half of the columns: low nibbles of the first 32 and the second, the high bits.
    const WORDS: &'static [(usize, usize)] = &[(192, 4), (0, 16), (128, 8), (64, 16), (160, 8)];
    const SCALE_LEN: usize = 16;
    const UNIT: usize = 128;
    const MINIMA: bool = false;
    const OFFSET: Option<u32> = Some(5);
    const BITS: u32 = 6;
    #[inline(always)]
    unsafe fn scales<S: Simd>(b: Block, to: &mut Scales<S>) {
        unsafe {
            let scale = half::<S>(b, 0);
            for i in 0..4 {
                let w = word::<S>(b, i);
                let signed = [S::i_shl::<24>(w), S::i_shl::<16>(w), S::i_shl::<8>(w), w];
                for j in 0..4 {
                    to.scales[4 * i + j] = S::f_mul(scale, S::f_from_i(S::i_sar::<24>(signed[j])));
                }
            }
        }
    }
    /// Of each four quants in a half, 32 columns apart, three then lie as they are in three words; the two bits above them are those of
    /// the fourth. So four take 9 instructions where they took 13, and words are read in their order.
    #[inline(always)]
    unsafe fn rearrange<S: Simd>(words: *mut u32) {
        for word in (4..12).chain(28..36) {
            unsafe {
                let first = words.add(TILE * word);
                let (second, third) = (first.add(TILE * 8), first.add(TILE * 16));
                let (a, b, high) = (S::i_load(first), S::i_load(second), S::i_load(third));
                let of_first = S::i_or(bits::<S>(a, 0, 0x0f0f_0f0f), bits::<S>(high, 0, 0xc0c0_c0c0));
                let of_second = bits::<S>(b, 0, 0xcfcf_cfcf);
                let of_third = S::i_or(bits::<S>(a, 4, 0x0f0f_0f0f), bits::<S>(high, 0, 0x3030_3030));
                S::i_store(first, S::i_or(of_first, S::i_shl::<4>(bits::<S>(high, 0, 0x0303_0303))));
                S::i_store(second, S::i_or(of_second, S::i_shl::<2>(bits::<S>(high, 0, 0x0c0c_0c0c))));
                S::i_store(third, S::i_or(of_third, S::i_shl::<2>(bits::<S>(b, 0, 0x3030_3030))));
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(b: Block, unit: usize, group: usize) -> [S::I; 4] {
        let (quant, first) = (group / 2, 4 + 24 * unit + 4 * (group % 2));
        unsafe {
            if quant < 3 {
                return four!(i => bits::<S>(word::<S>(b, first + 8 * quant + i), 0, 0x3f3f_3f3f));
            }
            four!(i => {
                let top = bits::<S>(word::<S>(b, first + i), 2, 0x3030_3030);
                let middle = bits::<S>(word::<S>(b, first + 8 + i), 4, 0x0c0c_0c0c);
                let low = bits::<S>(word::<S>(b, first + 16 + i), 6, 0x0303_0303);
                S::i_or(S::i_or(top, middle), low)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::with_format;
    use super::*;

    #[test]
    fn the_words_of_a_block_begin_at_a_cache_line_wherever_it_begins() {
        for kind in BlockType::ALL {
            with_format!(kind, F => for begin in [0, 32].into_iter().filter(|_| F::BYTES.is_empty()) {
                let block = TILE * F::KIND.block_bytes();
                let (halves, words) = halves_and_words::<F>(std::ptr::without_provenance(begin));
                let length = 2 * TILE * F::HALVES.len();
                assert!(halves == 0 && words == length || words == 0 && halves + length == block, "{kind}: all of it");
                if !length.is_multiple_of(LINE) || begin == 0 {
                    assert!((begin + words).is_multiple_of(LINE), "{kind} at {begin}");
                }
            }, continue);
        }
    }
}
