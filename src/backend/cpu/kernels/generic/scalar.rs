//! The vector unit in plain Rust: 16 lanes as arrays. Runs everywhere, and is what the others are tested against.

use super::super::Simd;
use half::f16;

/// 16 lanes as arrays.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

const N: usize = 16;

#[inline(always)]
fn map<A: Copy, B>(a: [A; N], f: impl Fn(A) -> B) -> [B; N] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip<A: Copy, B: Copy, C>(a: [A; N], b: [B; N], f: impl Fn(A, B) -> C) -> [C; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY of every block below: the caller promises that loads and stores are in bounds.
impl Simd for Scalar {
    const LANES: usize = N;
    const REGISTERS: usize = 1;
    const SIGNED_BIAS: bool = false;
    type F = [f32; N];
    type I = [u32; N];

    #[inline(always)]
    unsafe fn f_splat(v: f32) -> Self::F {
        [v; N]
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> Self::F {
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: Self::F) {
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn f_sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> Self::F {
        let bits = unsafe { p.cast::<[u16; N]>().read_unaligned() };
        map(bits, |b| f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn f_store_f16(p: *mut u16, v: Self::F) {
        let bits = map(v, |v| f16::from_f32(v).to_bits());
        unsafe { p.cast::<[u16; N]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn f_load_i8(p: *const i8) -> Self::F {
        map(unsafe { p.cast::<[i8; N]>().read_unaligned() }, f32::from)
    }
    #[inline(always)]
    unsafe fn f_from_i(v: Self::I) -> Self::F {
        map(v, |v| v as i32 as f32)
    }
    #[inline(always)]
    unsafe fn f_to_i(v: Self::F) -> Self::I {
        map(v, |v| v.round_ties_even() as i32 as u32)
    }
    #[inline(always)]
    unsafe fn f_bits(v: Self::F) -> Self::I {
        map(v, f32::to_bits)
    }
    #[inline(always)]
    unsafe fn f_from_bits(v: Self::I) -> Self::F {
        map(v, f32::from_bits)
    }

    #[inline(always)]
    unsafe fn i_splat(v: u32) -> Self::I {
        [v; N]
    }
    #[inline(always)]
    unsafe fn i_load(p: *const u32) -> Self::I {
        unsafe { p.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u16) -> Self::I {
        map(unsafe { p.cast::<[u16; N]>().read_unaligned() }, u32::from)
    }
    #[inline(always)]
    unsafe fn i_load_transposed(rows: *const *const u8, offset: usize) -> [Self::I; 4] {
        let mut out = [[0; 16]; 4];
        for row in 0..16 {
            // SAFETY: there are LANES rows, with four words there.
            let words = unsafe { (*rows.add(row)).add(offset).cast::<[u32; 4]>().read_unaligned() };
            for (out, word) in out.iter_mut().zip(words) {
                out[row] = word;
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn i_store(p: *mut u32, v: Self::I) {
        unsafe { p.cast::<Self::I>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn i_store_u8(p: *mut u8, v: Self::I) {
        unsafe { p.cast::<[u8; N]>().write_unaligned(map(v, |v| v as u8)) }
    }
    #[inline(always)]
    unsafe fn i_and(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn i_max(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| (a as i32).max(b as i32) as u32)
    }
    #[inline(always)]
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, u32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn i_mul(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, u32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn i_shl<const B: i32>(v: Self::I) -> Self::I {
        map(v, |v| v << B)
    }
    #[inline(always)]
    unsafe fn i_shr<const B: i32>(v: Self::I) -> Self::I {
        map(v, |v| v >> B)
    }
    #[inline(always)]
    unsafe fn i_shr_by(v: Self::I, count: u32) -> Self::I {
        map(v, |v| v >> count)
    }
    #[inline(always)]
    unsafe fn i_sar<const B: i32>(v: Self::I) -> Self::I {
        map(v, |v| ((v as i32) >> B) as u32)
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I {
        index.map(|i| unsafe { *table.add(i as usize) })
    }
    #[inline(always)]
    unsafe fn i_look_up(table: &[u8; 16], index: Self::I) -> Self::I {
        index.map(|word| u32::from_le_bytes(word.to_le_bytes().map(|i| table[usize::from(i & 15)])))
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let (w, x) = (w[i].to_le_bytes(), x[i].to_le_bytes());
            (0..4).fold(acc[i], |sum, b| sum.wrapping_add((i32::from(w[b]) * i32::from(x[b] as i8)) as u32))
        })
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let (w, x) = (w[i].to_le_bytes(), x[i].to_le_bytes());
            (0..4).fold(acc[i], |sum, b| {
                sum.wrapping_add((i32::from(w[b] as i8) * i32::from(x[b] as i8)) as u32)
            })
        })
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let product = |a: u32, b: u32| i32::from(a as i16) * i32::from(b as i16);
        std::array::from_fn(|i| {
            let (a, b) = (a[i], b[i]);
            (acc[i] as i32).wrapping_add(product(a, b)).wrapping_add(product(a >> 16, b >> 16)) as u32
        })
    }

    #[inline(always)]
    unsafe fn f_max_lane(v: Self::F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
    #[inline(always)]
    unsafe fn pin(v: Self::F) -> Self::F {
        v
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_once(_: *const u8) {}
}
