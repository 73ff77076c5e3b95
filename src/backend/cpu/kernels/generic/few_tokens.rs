//! The product for a few tokens: decode, drafts, small batches.
//!
//! Quants go from memory straight into the dot products, without the detour over [`Unpacked`](super::formats::Unpacked)
//! that pays off for many tokens: memory is what limits a single token, and its work must hide behind the loads. The
//! sums of a tile stay in registers. The order of a sum is the one that `quantized` states.

use super::super::{Processor, Simd};
use super::formats::{Block, CHUNK, Format, GROUP, PAIR, Scales, TILE};
use super::quantized::{
    Bytes, Fetch, Groups, Product, QuantizedChunk, dot_group, interleaved_chunk, powers, start, starts,
    store_tile, unrolled,
};
use crate::quant::BlockType;

/// How far ahead of their use interleaved weights are asked for, in bytes. Half of it is not soon enough for two cores at
/// once; it is a quarter of the smallest first-level cache. Where rows are apart, it is the same place of the next tile, and only the
/// second level has room for that.
///
/// Which level is better depends on the processor too. Zen 4, whose first level holds 32 KB, reads at three quarters of the speed
/// if asked to bring weights there (measured with the hint that passes by no level). Zen 5 (48 KB) reads Q6_K for eight tokens on two cores at 37 GB/s by the second level and
/// at 43 by the first, other products by a few percent faster.
const PREFETCH: usize = 8192;

/// Nearer than that by so many bytes lines are asked for again, into the first level. A core of Granite Rapids seems
/// to have too few misses at once for all that memory gives, and so it takes more: two cores read one token's Q4_K at 34 GB/s for 27 by
/// the second level alone, Q6_K at 34 for 28, and without computing 40 for 32. (By the first level alone 12.) From 8 to 2 KB any two
/// distances that are 1 to 3 KB apart do as well. Zen 5, where the like was tried before, gained nothing.
const PREFETCH_AGAIN: usize = 2048;

/// The same where memory is asked between products ([`Single`]): on Granite Rapids Q4_K is read a
/// few percent faster so than with 1, 2 or 4 KB.
const PREFETCH_AGAIN_BETWEEN: usize = 3072;

/// Whether a kernel keeps up with memory. A processor fetches by itself only where lines are used faster than they come; but
/// some have room for more lines then than they can be asked for, so it depends on the processor too. Measured on one core
/// each, unasked and asked. Zen 4, whose memory gives a core 32 GB/s: one token Q4_K 31 and 24 GB/s, Q8_0 31 and 22, but Q3_K 14
/// and 20, AVX2's Q6_K 6 and 21; two tokens Q8_0 30 and 22, but Q4_K 24 and 29; eight tokens Q4_K 6 and 10. Zen 5, 41 GB/s: one
/// token Q4_K 21 and 39, Q6_K 23 and 34, Q8_0 42 and 41.
const fn keeps_up<S: Simd, F: Format>(tokens: usize) -> bool {
    use BlockType::*;
    let fast = match F::KIND {
        Q8_0 => tokens <= 3,
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS | MXFP4 => tokens == 1,
        _ => false,
    };
    S::LANES == TILE && fast
}

/// Whether so many tokens are better multiplied here. For each pass quants are made anew: worth it for some passes where they
/// are a mask and a shift away, not where they are put together or looked up, nor where rows must be interleaved first. Where a
/// mask and a shift take a dot product's place: on Granite Rapids, two cores, `many_tokens` is as fast with 9 tokens of Q4_K and
/// 4 to 13% faster with 12 to 24, of Q6_K 11 to 26% faster with 16 to 24.
#[inline(always)]
pub fn suits<S: Simd, F: Format>(tokens: usize, interleaved: bool, processor: Processor) -> bool {
    use BlockType::*;
    let most = match F::KIND {
        _ if !interleaved || (S::LANES == TILE && !processor.unpacks_beside_products()) => 1,
        // on Zen 5, whose dot products wait for loads here; with more passes `many_tokens` is faster by a tenth to a third
        Q4_K | Q2_K | Q6_K if S::LANES == TILE => 2,
        Q4_0 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL | MXFP4 if S::LANES == TILE => 3,
        Q4_0 | Q4_1 | Q8_0 | IQ4_NL | MXFP4 => 4,
        Q4_K | Q2_K => 3,
        _ => 1,
    };
    passes::<S, F>(tokens, processor) <= most
}

/// Results of a tile and a token that wait for those of the tiles beside it, so that a row of the output is written in long
/// stretches. Each row's 64 bytes at a time miss the caches one by one: on Granite Rapids eight tokens' Q4_K then takes
/// a tenth longer, Q6_K a fifth.
pub const WAITING: usize = 512;

/// Tiles whose results wait. A single token's are fewer than there is room for, 4 KB, and so leave the first cache level to weights: of
/// 1536 columns 4% faster.
const fn waiting<S: Simd, F: Format>(tokens: usize) -> usize {
    if has_own_forms::<S, F>() && tokens == 1 { 64 } else { WAITING / tokens }
}

/// Most tokens of a pass: as many as the registers hold.
const fn longest_pass<S: Simd>() -> usize {
    match (S::LANES, S::REGISTERS) {
        (16, 32) => 8,
        (8, 16) | (4, 32) => 4,
        _ => 1,
    }
}

/// Passes over each tile for so many tokens. Of 32 registers six tokens' sums leave enough for one pair's quants; seven do not
/// (steadily they do), and eight are only better than passes of four.
fn passes<S: Simd, F: Format>(tokens: usize, processor: Processor) -> usize {
    let longest = longest_pass::<S>();
    if tokens == longest || tokens == 7 && is_steady::<S, F>(processor) {
        return 1;
    }
    tokens.div_ceil(if longest == 8 { 6 } else { longest })
}

/// Computes the tiles of a product.
///
/// # Safety
/// The CPU has the ISA; the pointers of `p` are valid for the shapes that they document.
#[inline(always)]
pub unsafe fn multiply<S: Simd, F: Format>(p: &Product) {
    // Once: to set them to zero for each block is a call, with all registers written back: up to a tenth of the time, measured.
    // SAFETY: the caller's promise.
    let mut scales = unsafe { Scales::zero() };
    let (mut first, last) = p.tiles;
    while first < last {
        let end = (first + waiting::<S, F>(p.tokens.max(1))).min(last);
        for tile in first..end {
            // SAFETY: the caller's promise; of these tiles no more results wait than there is room for.
            unsafe {
                multiply_tokens::<S, F>(p, tile, p.sums.add((tile - first) * p.tokens * TILE), &mut scales)
            }
        }
        for token in 0..p.tokens {
            for tile in first..end {
                // SAFETY: the caller's promise; the results are there.
                unsafe { store_tile(p, tile, token, p.sums.add(((tile - first) * p.tokens + token) * TILE)) }
            }
        }
        first = end;
    }
}

/// How a pass over a tile goes. Which way it is does not show in the bits.
trait Form {
    /// See [`Single`].
    const SINGLE: bool = false;
    /// See [`Groups::group`].
    const SHUFFLES: bool = false;
    /// See [`Steady`].
    const STEADY: bool = false;
}

/// In loops, each dot product with its activations from memory. One token goes so where weights are not asked for: a processor's
/// look-ahead seems to follow an instruction that comes again and again, and without a loop Zen 4 decodes about half as fast. (Told that
/// nothing is asked for, the compiler seems to unroll it: three quarters of the speed.)
struct Looped;

/// Of one token, where registers suffice, which is AVX-512: all of a block's products one after
/// the other, without a loop, memory asked between them, and quants times 16 where that spares a shift. A core has room for some
/// hundred instructions behind loads that are not there yet: the fewer from one request to the next, the more requests are among them,
/// and the more evenly they come. On Granite Rapids two cores read one token's Q4_K 5 to 10% and Q6_K 5 to 14% faster so than in a loop
/// that asks at each pair's beginning.
#[cfg(not(fuzzing))] // see `has_own_forms`
struct Single;

/// In loops, half of the activations by shuffles.
struct Shuffled;

/// Of several tokens with AVX-512, where shuffles do not pay ([`Processor::spreads_by_shuffles`]): addresses by [`Simd::p_pin`],
/// and memory asked without branches, see [`Ahead`].
#[cfg(not(fuzzing))]
struct Steady;

impl Form for Looped {}

#[cfg(not(fuzzing))]
impl Form for Single {
    const SINGLE: bool = true;
}

impl Form for Shuffled {
    const SHUFFLES: bool = true;
}

#[cfg(not(fuzzing))]
impl Form for Steady {
    const STEADY: bool = true;
}

/// Whether passes of several tokens are [`Steady`].
fn is_steady<S: Simd, F: Format>(processor: Processor) -> bool {
    has_own_forms::<S, F>() && !processor.spreads_by_shuffles()
}

/// Whether registers suffice for the forms that are AVX-512's own, and they are worth being compiled: not for quants that take long to
/// make, from grids. (TQ1_0, by powers of three, decodes a tenth faster with them.) Nor where inputs are fuzzed: sanitizers make so much
/// of them that to compile them takes longer than to fuzz.
const fn has_own_forms<S: Simd, F: Format>() -> bool {
    use BlockType::*;
    let is_slow = matches!(F::KIND, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S);
    longest_pass::<S>() == 8 && !is_slow && !cfg!(fuzzing)
}

/// One tile times all tokens; the results go to `to`: [tokens, 16].
#[inline(always)]
unsafe fn multiply_tokens<S: Simd, F: Format>(
    p: &Product,
    tile: usize,
    to: *mut f32,
    scales: &mut Scales<S>,
) {
    let fetch = fetch::<S, F>(p);
    #[cfg(not(fuzzing))]
    if has_own_forms::<S, F>() && p.tokens == 1 && fetch != Fetch::Unasked {
        // Each way for itself: to choose between products would cost more than to ask.
        macro_rules! multiply {
            ($($way:ident),*) => {
                match fetch {
                    // SAFETY: the caller's promise.
                    $(Fetch::$way => unsafe {
                        return multiply_tile::<S, F, 1, Single>(p, (tile, 0), Fetch::$way, to, scales)
                    },)*
                    Fetch::Unasked => {}
                }
            };
        }
        multiply!(ToSecond, Twice, ToFirst);
    }
    // others are asked for, and so do not come here
    let loops_one = !has_own_forms::<S, F>() || keeps_up::<S, F>(1);
    let mut token = 0;
    while token < p.tokens {
        // Of about one length: a pass of one token at the end would cost as much as one of three.
        let left = p.tokens - token;
        let tokens = left.div_ceil(passes::<S, F>(left, p.processor));
        let fetch = if token == 0 { fetch } else { Fetch::Unasked };
        macro_rules! multiply {
            ($($tokens:literal: $form:ident $(if $when:expr)?),*) => {
                match tokens {
                    // SAFETY: the caller's promise.
                    $($tokens if $tokens <= longest_pass::<S>() $(&& $when)? => unsafe {
                        let to = to.add(token * TILE);
                        multiply_tile::<S, F, $tokens, $form>(p, (tile, token), fetch, to, scales)
                    },)*
                    _ => unreachable!("a pass of {tokens} tokens"),
                }
            };
        }
        #[cfg(not(fuzzing))]
        if is_steady::<S, F>(p.processor) {
            multiply!(1: Looped if loops_one, 2: Steady, 3: Steady, 4: Steady, 5: Steady, 6: Steady, 7: Steady, 8: Steady);
            token += tokens;
            continue;
        }
        let shuffles = p.processor.spreads_by_shuffles();
        multiply!(
            1: Looped if loops_one, 2: Looped, 3: Shuffled, 4: Shuffled, 5: Shuffled, 6: Shuffled, 8: Shuffled if shuffles, 8: Looped
        );
        token += tokens;
    }
}

/// How a product's first pass asks for weights.
#[inline(always)]
fn fetch<S: Simd, F: Format>(p: &Product) -> Fetch {
    match (p.weights, p.fetch) {
        (Bytes::AsInFile(_), _) => Fetch::ToSecond,
        (_, Fetch::Unasked) if !keeps_up::<S, F>(p.tokens) => Fetch::ToSecond,
        (_, fetch) => fetch,
    }
}

/// A tile times T tokens from `token` on; the results go to `sums`: [T, 16].
#[inline(always)]
unsafe fn multiply_tile<S: Simd, F: Format, const T: usize, A: Form>(
    p: &Product,
    (tile, token): (usize, usize),
    fetch: Fetch,
    sums: *mut f32,
    scales: &mut Scales<S>,
) {
    unsafe {
        if S::LANES == TILE {
            let mut in_registers = [S::f_splat(0.0); T];
            for chunk in 0..p.columns.div_ceil(CHUNK) {
                let chunk = Chunk::new::<F, A>(p, tile, token, chunk, fetch);
                multiply_chunk::<S, F, T, A>(&chunk, 0, scales, &mut in_registers);
            }
            for t in 0..T {
                S::f_store(sums.add(t * TILE), in_registers[t]);
            }
        } else {
            std::ptr::write_bytes(sums, 0, T * TILE);
            for chunk in 0..p.columns.div_ceil(CHUNK) {
                let chunk = Chunk::new::<F, A>(p, tile, token, chunk, fetch);
                for part in (0..TILE).step_by(S::LANES) {
                    let mut of_part = [S::f_splat(0.0); T];
                    for t in 0..T {
                        of_part[t] = S::f_load(sums.add(t * TILE + part));
                    }
                    multiply_chunk::<S, F, T, A>(&chunk, part, scales, &mut of_part);
                    for t in 0..T {
                        S::f_store(sums.add(t * TILE + part), of_part[t]);
                    }
                }
            }
        }
    }
}

/// 256 columns of a tile, or what is left of them.
struct Chunk {
    /// The interleaved blocks.
    blocks: *const u8,
    columns: usize,
    /// The first token's activations; those of the next token follow.
    x: *const QuantizedChunk,
    /// What to ask memory for meanwhile.
    ahead: Ahead,
}

/// Lines to ask memory for.
///
/// [`Steady`]: all are asked for both ways, without a branch, spread evenly over the tokens. What a product is not to ask for stands where its
/// blocks do, which are read anyway.
#[derive(Clone, Copy)]
struct Ahead {
    /// The first of those that are asked for.
    next: *const u8,
    /// The first of those that are asked for again, if steadily.
    again: *const u8,
    lines: usize,
    fetch: Fetch,
}

impl Chunk {
    #[inline(always)]
    unsafe fn new<F: Format, A: Form>(
        p: &Product,
        tile: usize,
        token: usize,
        chunk: usize,
        fetch: Fetch,
    ) -> Self {
        let columns = (p.columns - chunk * CHUNK).min(CHUNK);
        unsafe {
            let blocks = interleaved_chunk::<F>(p, tile, chunk, columns);
            let tile_bytes = TILE * F::KIND.row_bytes(p.columns);
            let offset = tile * tile_bytes + chunk * TILE * F::KIND.row_bytes(CHUNK);
            let mut next = match p.weights {
                Bytes::Interleaved(bytes) => bytes.wrapping_add(offset + PREFETCH),
                Bytes::AsInFile(bytes) => bytes.wrapping_add(offset + tile_bytes),
            };
            let to_first = matches!(fetch, Fetch::Twice | Fetch::ToFirst);
            let again = if to_first { next.wrapping_sub(PREFETCH_AGAIN) } else { blocks };
            if A::STEADY && !matches!(fetch, Fetch::Twice | Fetch::ToSecond) {
                next = blocks;
            }
            let lines = (TILE * F::KIND.row_bytes(CHUNK)).div_ceil(64);
            let x = p.x.add(chunk * p.tokens + token);
            Chunk { blocks, columns, x, ahead: Ahead { next, again, lines, fetch } }
        }
    }
}

/// Adds the products of a chunk to the sums of LANES rows from `part` on.
#[inline(always)]
unsafe fn multiply_chunk<S: Simd, F: Format, const T: usize, A: Form>(
    chunk: &Chunk,
    part: usize,
    scales: &mut Scales<S>,
    sums: &mut [S::F; T],
) {
    unsafe {
        let (block_len, block_bytes) = (F::KIND.block_len(), F::KIND.block_bytes());
        let starts = starts::<S, F, T>(chunk.x);
        let mut of_chunk = [S::f_splat(0.0); T];
        let into = if powers::<F>() { &mut of_chunk } else { &mut *sums };
        for block in 0..chunk.columns / block_len {
            let b = Block::new::<F>(chunk.blocks.add(block * block_bytes * TILE), part);
            #[cfg(not(fuzzing))]
            if A::SINGLE {
                // its own, which stays in registers
                let scales = &mut Scales::zero();
                begin_block::<S, F, T>(b, scales, chunk.x, into);
                unrolled!(block_len / F::UNIT, unit => {
                    multiply_unit::<S, F, T, A>(chunk, b, part, (block, unit), scales, &starts, into);
                });
                continue;
            }
            begin_block::<S, F, T>(b, scales, chunk.x, into);
            for unit in 0..block_len / F::UNIT {
                multiply_unit::<S, F, T, A>(chunk, b, part, (block, unit), scales, &starts, into);
            }
        }
        if powers::<F>() {
            for t in 0..T {
                sums[t] = S::f_fma(S::f_splat((*chunk.x.add(t)).scale), of_chunk[t], sums[t]);
            }
        }
    }
}

/// A block's scales, and of a super-block the sums that it begins with.
#[inline(always)]
unsafe fn begin_block<S: Simd, F: Format, const T: usize>(
    b: Block,
    scales: &mut Scales<S>,
    x: *const QuantizedChunk,
    sums: &mut [S::F; T],
) {
    unsafe {
        F::scales::<S>(b, scales);
        if F::MINIMA && powers::<F>() {
            *sums = multiply_minima::<S, F, T>(scales, x);
        }
    }
}

/// Adds the products of a block's unit to the sums.
#[inline(always)]
unsafe fn multiply_unit<S: Simd, F: Format, const T: usize, A: Form>(
    chunk: &Chunk,
    b: Block,
    part: usize,
    (block, unit): (usize, usize),
    scales: &Scales<S>,
    starts: &[[u32; CHUNK / GROUP]; T],
    sums: &mut [S::F; T],
) {
    unsafe {
        let pairs = F::UNIT / PAIR;
        let unit_of_chunk = block * (F::KIND.block_len() / F::UNIT) + unit;
        let of_unit = chunk.ahead.share(unit_of_chunk, CHUNK / F::UNIT, false);
        macro_rules! multiply {
            ($pair:expr, $quants:expr) => {{
                let pair_of_block = unit * pairs + $pair;
                let at = unit_of_chunk * pairs + $pair;
                let mut ahead = if A::STEADY {
                    of_unit.share($pair, pairs, true)
                } else {
                    chunk.ahead.share(at, CHUNK / PAIR, A::SINGLE && powers::<F>())
                };
                ahead.fetch = if part > 0 { Fetch::Unasked } else { ahead.fetch };
                let pair = (pair_of_block, at);
                multiply_pair::<S, F, T, A>($quants, scales, pair, chunk.x, starts, sums, ahead);
            }};
        }
        if A::SINGLE && F::UNIT == 2 * PAIR {
            // all before memory is asked: the compiler would load words again that it has in registers
            let two = [pair_of_quants::<S, F, A>(b, unit, 0), pair_of_quants::<S, F, A>(b, unit, 1)];
            multiply!(0, two[0]);
            multiply!(1, two[1]);
        } else {
            unrolled!(F::UNIT / PAIR, pair => multiply!(pair, pair_of_quants::<S, F, A>(b, unit, pair)));
        }
    }
}

/// The quants of two groups: for a single token as [`Format::multiples`].
#[inline(always)]
unsafe fn pair_of_quants<S: Simd, F: Format, A: Form>(b: Block, unit: usize, pair: usize) -> [[S::I; 4]; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        if A::SINGLE {
            [F::multiples::<S>(b, unit, 2 * pair), F::multiples::<S>(b, unit, 2 * pair + 1)]
        } else {
            [F::quants::<S>(b, unit, 2 * pair), F::quants::<S>(b, unit, 2 * pair + 1)]
        }
    }
}

/// The products of a super-block's minima, which its sums begin with.
#[inline(always)]
unsafe fn multiply_minima<S: Simd, F: Format, const T: usize>(
    scales: &Scales<S>,
    x: *const QuantizedChunk,
) -> [S::F; T] {
    unsafe {
        let mut of_chunk = [S::f_splat(0.0); T];
        for t in 0..T {
            let x = &*x.add(t);
            let mut integers = x.minima_start::<S>();
            for i in 0..CHUNK / F::SCALE_LEN / 2 {
                integers = S::dot_pairs(integers, scales.minima[i], x.integer_sums::<S, F>(i));
            }
            of_chunk[t] = x.times_minimum::<S>(scales.minimum, integers);
        }
        of_chunk
    }
}

/// Adds the products of two groups of columns to the sums: pair `pair` of the block, pair `at` of the chunk. Meanwhile what is
/// `ahead` is asked for.
#[inline(always)]
unsafe fn multiply_pair<S: Simd, F: Format, const T: usize, A: Form>(
    quants: [[S::I; 4]; 2],
    scales: &Scales<S>,
    pair: (usize, usize),
    x: *const QuantizedChunk,
    starts: &[[u32; CHUNK / GROUP]; T],
    sums: &mut [S::F; T],
    ahead: Ahead,
) {
    unsafe {
        let mut groups = Groups::new(x, 2 * pair.1);
        if A::STEADY {
            groups = groups.pin::<S>();
        }
        macro_rules! add {
            ($t:expr) => {
                add_token::<S, F, T, A>(quants, scales, pair, x, groups, starts, sums, $t, ahead)
            };
        }
        if A::STEADY {
            unrolled!(T, t => {
                ahead.ask_steadily::<S>(t, T);
                add!(t);
            });
        } else if T < 8 {
            if !A::SINGLE {
                ahead.ask::<S>(0, 1);
            }
            for t in 0..T {
                add!(t);
            }
        } else {
            // Between the tokens: all at once would hold up the loads, a fifth of the speed, measured with Q6_K. The compiler would
            // not unroll so long a loop; shorter ones it does, and in less time.
            unrolled!(8, t => {
                ahead.ask::<S>(t, 8);
                add!(t);
            });
        }
    }
}

impl Ahead {
    /// The `part`th of so many parts. `exact`: each line is in one of them; where `part` is only known at run time, that costs more
    /// than it saves.
    #[inline(always)]
    fn share(self, part: usize, parts: usize, exact: bool) -> Self {
        let first = part * self.lines / parts;
        let lines = if exact { (part + 1) * self.lines / parts - first } else { self.lines.div_ceil(parts) };
        let [next, again] = [self.next, self.again].map(|line| line.wrapping_add(first * 64));
        Ahead { next, again, lines, fetch: self.fetch }
    }

    /// Asks for every `step`th line from the `first` on.
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, first: usize, step: usize) {
        if self.fetch == Fetch::Unasked {
            return;
        }
        let mut line = first;
        while line < self.lines {
            // SAFETY: the caller's promise.
            unsafe { self.ask_line::<S>(line, PREFETCH_AGAIN) }
            line += step;
        }
    }

    /// Asks for a line; for the second time so many bytes nearer.
    #[inline(always)]
    unsafe fn ask_line<S: Simd>(self, line: usize, nearer: usize) {
        let at = self.next.wrapping_add(line * 64);
        // SAFETY: it need not be anybody's memory.
        unsafe {
            match self.fetch {
                Fetch::ToFirst => S::prefetch_once(at),
                Fetch::Twice => {
                    S::prefetch_far(at);
                    S::prefetch(at.wrapping_sub(nearer));
                }
                Fetch::ToSecond => S::prefetch_far(at),
                Fetch::Unasked => {}
            }
        }
    }

    /// Asks for the `part`th of so many parts of the lines, in both ways.
    #[inline(always)]
    unsafe fn ask_steadily<S: Simd>(self, part: usize, parts: usize) {
        let Ahead { next, again, lines, .. } = self.share(part, parts, true);
        // SAFETY: it need not be anybody's memory.
        unsafe {
            for line in 0..lines {
                S::prefetch_far(next.wrapping_add(line * 64));
                S::prefetch(again.wrapping_add(line * 64));
            }
        }
    }

    /// Asks for the lines whose place is behind dot product `product` of the pair's 8, of which `dot` is the sum.
    #[inline(always)]
    unsafe fn ask_between<S: Simd>(self, product: usize, dot: S::I) -> S::I {
        let (first, end) = (product * self.lines / 8, (product + 1) * self.lines / 8);
        if first == end || self.fetch == Fetch::Unasked {
            return dot;
        }
        // SAFETY: the caller's promise.
        unsafe {
            unrolled!(2, i => if first + i < end { self.ask_line::<S>(first + i, PREFETCH_AGAIN_BETWEEN) });
            // in their place: the compiler would put all of them together, in front of the products or behind
            S::i_pin(dot)
        }
    }
}

/// Adds those products to the sums of token t; a single one's also ask for what is `ahead`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn add_token<S: Simd, F: Format, const T: usize, A: Form>(
    quants: [[S::I; 4]; 2],
    scales: &Scales<S>,
    (pair, at): (usize, usize),
    x: *const QuantizedChunk,
    groups: Groups,
    starts: &[[u32; CHUNK / GROUP]; T],
    sums: &mut [S::F; T],
    t: usize,
    ahead: Ahead,
) {
    let parts = PAIR / F::SCALE_LEN;
    unsafe {
        let groups = groups.of_token(t);
        let times = if A::SINGLE { F::times(pair % (F::UNIT / PAIR)) } else { 0 };
        for part in 0..parts {
            let scale = scales.scales[parts * pair + part];
            let (mut dot, mut scaled) = (S::i_splat(0), S::f_splat(0.0));
            for i in 2 / parts * part..2 / parts * (part + 1) {
                let first = i == 0 || parts == 2;
                if first || !powers::<F>() {
                    dot = match times {
                        0 => S::i_splat(start::<S, F>(groups.of_group(i), &starts[t], 2 * at + i)),
                        _ => S::f_bits(groups.zero::<S>(i, times)),
                    };
                }
                dot = if A::SINGLE {
                    dot_group_and_ask::<S, F>(dot, quants[i], groups, i, ahead)
                } else {
                    dot_group::<S, F>(dot, quants[i], groups.group::<S>(i, A::SHUFFLES))
                };
                if !powers::<F>() {
                    let (x_scale, dot) = (S::f_splat(groups.of_group(i)), S::f_from_i(dot));
                    scaled = if first { S::f_mul(x_scale, dot) } else { S::f_fma(x_scale, dot, scaled) };
                }
            }
            if powers::<F>() {
                scaled = groups.times_power::<S>(dot, 0, times);
            }
            sums[t] = S::f_fma(scale, scaled, sums[t]);
        }
        if F::MINIMA && !powers::<F>() {
            sums[t] = S::f_fma(scales.minimum, S::f_splat((*x.add(t)).pair_sums[at]), sums[t]);
        }
        // tokens interleaved need more registers than there are: two thirds of the speed, measured with four of Q6_K
        if T > 1 {
            sums[t] = S::pin(sums[t]);
        }
    }
}

/// [`dot_group`], and between its products memory is asked for what is `ahead`.
#[inline(always)]
unsafe fn dot_group_and_ask<S: Simd, F: Format>(
    mut dot: S::I,
    w: [S::I; 4],
    x: Groups,
    group: usize,
    ahead: Ahead,
) -> S::I {
    unsafe {
        unrolled!(4, i => {
            // here and not before, so that it is the product's own operand
            let x = x.four::<S>(4 * group + i);
            dot = if F::BITS < 8 { S::dot(dot, w[i], x) } else { S::dot_signed(dot, w[i], x) };
            dot = ahead.ask_between::<S>(4 * group + i, dot);
        });
        dot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::kernels::generic::with_format;

    /// Those lines that the shares of units, of their pairs, and of their tokens have.
    fn asked_for<F: Format>(tokens: usize) -> Vec<usize> {
        let lines = (TILE * F::KIND.row_bytes(CHUNK)).div_ceil(64);
        let chunk = Ahead { next: std::ptr::null(), again: std::ptr::null(), lines, fetch: Fetch::Twice };
        let (units, pairs) = (CHUNK / F::UNIT, F::UNIT / PAIR);
        let units = (0..units).map(|unit| chunk.share(unit, units, false));
        let pairs = units.flat_map(|unit| (0..pairs).map(move |pair| unit.share(pair, pairs, true)));
        let tokens = pairs.flat_map(|pair| (0..tokens).map(move |token| pair.share(token, tokens, true)));
        tokens.flat_map(|share| share.next.addr() / 64..share.next.addr() / 64 + share.lines).collect()
    }

    #[test]
    fn each_line_of_a_chunk_is_asked_for_and_few_are_twice() {
        for kind in BlockType::ALL {
            for tokens in 2..=8 {
                let mut lines = with_format!(kind, F => asked_for::<F>(tokens), continue);
                let n = lines.len();
                lines.sort_unstable();
                lines.dedup();
                let of_chunk = (TILE * kind.row_bytes(CHUNK)).div_ceil(64);
                assert!((0..of_chunk).all(|line| lines.contains(&line)), "{kind}, {tokens} tokens");
                assert!(n < of_chunk + 8, "{kind}, {tokens} tokens: {n} requests for {of_chunk} lines");
            }
        }
    }
}
