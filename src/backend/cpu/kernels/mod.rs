//! Kernels. Each algorithm stands once, in [`generic`], over the small [`Simd`] trait; the ISA folders hold the
//! trait's instances; `entry_points!` compiles an algorithm for each of them, and [`Isa`] picks one at start.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod generic;
mod isa;
mod matrix;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use generic::formats::{CHUNK, TILE};
pub use generic::many_tokens::PASS;
pub use generic::quantized::Fetch;
pub use generic::{attention, elementwise, math};
pub use isa::{Isa, Processor};
pub use matrix::{ActivationKind, Activations, Input, Layout, Output, Scratch, WeightMatrix};

/// A vector unit as the algorithms see it: vectors of [`LANES`](Simd::LANES) lanes of 32 bits. Algorithms work on 16
/// virtual lanes, as 16 / LANES vectors, so that every ISA computes the same sums in the same order.
///
/// Every method is `#[inline(always)]`: it takes on the target features of the entry point that it is inlined into.
///
/// # Safety
/// The CPU must have the ISA; loads and stores touch exactly LANES elements (no alignment needed).
#[allow(missing_docs, clippy::missing_safety_doc)]
pub trait Simd: Copy + 'static {
    /// 32-bit lanes of a vector: 16 (AVX-512, and scalar as an array), 8 (AVX2) or 4 (NEON).
    const LANES: usize;
    /// Vectors that a kernel may keep in registers at once.
    const REGISTERS: usize;
    /// Whether [`dot_signed`](Simd::dot_signed) adds 128 * (sum of x) to the result, so that its accumulator
    /// must start at -128 * (sum of x).
    const SIGNED_BIAS: bool;
    /// LANES f32.
    type F: Copy;
    /// LANES 32-bit integers; also seen as LANES groups of four bytes.
    type I: Copy;

    unsafe fn f_splat(v: f32) -> Self::F;
    unsafe fn f_load(p: *const f32) -> Self::F;
    unsafe fn f_store(p: *mut f32, v: Self::F);
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn f_sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`, lane by lane (so b where one is NaN).
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * *b + c`, rounded once: [`f_fma`](Simd::f_fma) with a factor from memory that costs no instruction of its own.
    #[inline(always)]
    unsafe fn f_fma_by(a: Self::F, b: *const f32, c: Self::F) -> Self::F {
        unsafe { Self::f_fma(a, Self::f_splat(*b), c) }
    }
    /// LANES halves to f32.
    unsafe fn f_load_f16(p: *const u16) -> Self::F;
    /// To halves, to nearest even.
    unsafe fn f_store_f16(p: *mut u16, v: Self::F);
    /// LANES int8 to f32.
    unsafe fn f_load_i8(p: *const i8) -> Self::F;
    /// i32 to f32, to nearest even.
    unsafe fn f_from_i(v: Self::I) -> Self::F;
    /// To i32, to nearest even; the value must be in range.
    unsafe fn f_to_i(v: Self::F) -> Self::I;
    /// The bits, unchanged.
    unsafe fn f_bits(v: Self::F) -> Self::I;
    /// The bits, unchanged.
    unsafe fn f_from_bits(v: Self::I) -> Self::F;

    unsafe fn i_splat(v: u32) -> Self::I;
    /// Four vectors, of which each has one of the words at p in all lanes: with fewer loads than words, where that is faster.
    #[inline(always)]
    unsafe fn i_splat_four(p: *const u32) -> [Self::I; 4] {
        unsafe { generic::formats::four!(i => Self::i_splat(*p.add(i))) }
    }
    unsafe fn i_load(p: *const u32) -> Self::I;
    /// LANES 16-bit values, zero-extended.
    unsafe fn i_load_u16(p: *const u16) -> Self::I;
    /// Four words each of LANES rows, which begin `offset` bytes behind `rows[0..LANES]`: vector i has word i of the rows.
    unsafe fn i_load_transposed(rows: *const *const u8, offset: usize) -> [Self::I; 4];
    unsafe fn i_store(p: *mut u32, v: Self::I);
    /// The low byte of each lane: LANES bytes.
    unsafe fn i_store_u8(p: *mut u8, v: Self::I);
    unsafe fn i_and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I;
    /// Of signed words.
    unsafe fn i_max(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I;
    /// Low 32 bits of the product.
    unsafe fn i_mul(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_shl<const N: i32>(v: Self::I) -> Self::I;
    /// Logical.
    unsafe fn i_shr<const N: i32>(v: Self::I) -> Self::I;
    /// Logical, by a count that the compiler may or may not know.
    unsafe fn i_shr_by(v: Self::I, count: u32) -> Self::I;
    /// Arithmetic: keeps the sign.
    unsafe fn i_sar<const N: i32>(v: Self::I) -> Self::I;
    /// Lane by lane the word of the table at this index.
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I;
    /// Byte by byte the byte of a table of 16 at this index (0..16).
    unsafe fn i_look_up(table: &[u8; 16], index: Self::I) -> Self::I;
    /// Lane by lane: acc + the sum of four products of w's bytes (unsigned, at most 127, but 255 by AVX-512) and x's (signed,
    /// -127..=127).
    unsafe fn dot(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// The same for signed w (-128..=127); see [`SIGNED_BIAS`](Simd::SIGNED_BIAS).
    unsafe fn dot_signed(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// Lane by lane: acc + the sum of two products of a's and b's 16-bit halves, signed.
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Four [`dot`](Simd::dot)s, where w's bytes have at most `BITS` bits: a chance to add up in 16 bits first.
    #[inline(always)]
    unsafe fn dot4<const BITS: u32>(acc: Self::I, w: [Self::I; 4], x: [Self::I; 4]) -> Self::I {
        unsafe {
            Self::dot(Self::dot(Self::dot(Self::dot(acc, w[0], x[0]), w[1], x[1]), w[2], x[2]), w[3], x[3])
        }
    }

    /// The greatest lane, of none that is NaN.
    unsafe fn f_max_lane(v: Self::F) -> f32;

    /// v, computed here and now: keeps the compiler from interleaving work that together needs too many registers.
    unsafe fn pin(v: Self::F) -> Self::F;
    /// v, computed between what is asked of memory before and what is asked of it behind. Loads need not stay in their place.
    #[inline(always)]
    unsafe fn i_pin(v: Self::I) -> Self::I {
        v
    }
    /// p. Where it matters, the compiler knows no more of it: so places behind it are a register and a number, not two registers and
    /// a number. If two registers name its operand in memory, an instruction is two operations for Intel's cores: a loop of nothing but
    /// dot products and what adds them up takes a third longer so (Granite Rapids).
    #[inline(always)]
    fn p_pin<T>(p: *const T) -> *const T {
        p
    }
    /// Asks for the cache line at p; p need not be valid.
    unsafe fn prefetch(p: *const u8);
    /// The same for the second cache level: for what is read only after the first level's worth of other data.
    unsafe fn prefetch_far(p: *const u8);
    /// The same into the first level alone: for what is read once.
    unsafe fn prefetch_once(p: *const u8);
}

/// Compiles a generic algorithm for every ISA: makes `unsafe fn NAME(isa, arguments…)` that runs
/// `GENERIC::<S>(arguments…)` with the [`Simd`] instance of `isa`, inside a function that has its target features.
///
/// `entry_points! { pub fn scale(x: *mut f32, n: usize) = generic::scale; }`; one more type parameter may follow
/// the name, `fn multiply<F: Format>(…)`, and is handed on as the second.
///
/// The generic function and everything it calls must be `#[inline(always)]`: what is not inlined is compiled
/// without the features (correct, but slow). Closures are not inlined for sure; avoid them there.
macro_rules! entry_points {
    ($(
        $(#[$attr:meta])*
        $vis:vis fn $name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
            = $generic:path;
    )*) => {$(
        $(#[$attr])*
        ///
        /// # Safety
        /// The CPU has `isa`; the pointers are valid for what the algorithm touches.
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name $(<$g: $bound>)? (isa: $crate::backend::cpu::kernels::Isa, $($arg: $ty),*) $(-> $ret)? {
            use $crate::backend::cpu::kernels::{Isa, generic::scalar::Scalar};
            use $generic as algorithm;
            #[cfg(target_arch = "x86_64")]
            use $crate::backend::cpu::kernels::x86_64::{avx2::Avx2, avx512::Avx512};
            #[cfg(target_arch = "aarch64")]
            use $crate::backend::cpu::kernels::aarch64::neon::Neon;

            macro_rules! instance {
                ($instance:ident, $simd:ty, $features:literal) => {
                    #[target_feature(enable = $features)]
                    #[allow(unused_unsafe)] // some algorithms are safe
                    unsafe fn $instance $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                        // SAFETY: the caller's promise.
                        unsafe { algorithm::<$simd $(, $g)?>($($arg),*) }
                    }
                };
            }
            #[cfg(target_arch = "x86_64")]
            instance!(avx512, Avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
            #[cfg(target_arch = "x86_64")]
            instance!(avxvnni, Avx2<true>, "avx2,fma,f16c,avxvnni");
            #[cfg(target_arch = "x86_64")]
            instance!(avx2, Avx2<false>, "avx2,fma,f16c");
            #[cfg(target_arch = "aarch64")]
            instance!(neon, Neon, "neon,dotprod,fp16");

            debug_assert!(isa.is_available());
            // SAFETY: the caller's promise.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => avx512 $(::<$g>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Isa::AvxVnni => avxvnni $(::<$g>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => avx2 $(::<$g>)? ($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon => neon $(::<$g>)? ($($arg),*),
                    _ => algorithm::<Scalar $(, $g)?>($($arg),*),
                }
            }
        }
    )*};
}
pub(crate) use entry_points;
