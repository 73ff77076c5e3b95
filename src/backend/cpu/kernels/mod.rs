//! Kernels. Each algorithm stands once, in [`generic`], over the small [`Simd`] trait; the ISA folders hold the
//! trait's instances and thin `#[target_feature]` entry points; one dispatcher picks at start.

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
    /// LANES halves to f32.
    unsafe fn f_load_f16(p: *const u16) -> Self::F;
    /// To halves, to nearest even.
    unsafe fn f_store_f16(p: *mut u16, v: Self::F);
    /// i32 to f32, to nearest even.
    unsafe fn f_from_i(v: Self::I) -> Self::F;
    /// To i32, to nearest even; the value must be in range.
    unsafe fn f_to_i(v: Self::F) -> Self::I;
    /// The bits, unchanged.
    unsafe fn f_bits(v: Self::F) -> Self::I;
    /// The bits, unchanged.
    unsafe fn f_from_bits(v: Self::I) -> Self::F;

    unsafe fn i_splat(v: u32) -> Self::I;
    unsafe fn i_load(p: *const u32) -> Self::I;
    unsafe fn i_store(p: *mut u32, v: Self::I);
    unsafe fn i_and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I;
    /// Low 32 bits of the product.
    unsafe fn i_mul(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_shl<const N: u32>(v: Self::I) -> Self::I;
    /// Logical.
    unsafe fn i_shr<const N: u32>(v: Self::I) -> Self::I;
    /// Lane by lane: acc + the sum of four products of w's bytes (unsigned, at most 127) and x's (signed, -127..=127).
    unsafe fn dot(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;

    /// Asks for the cache line at p; p need not be valid.
    unsafe fn prefetch(p: *const u8);
}
