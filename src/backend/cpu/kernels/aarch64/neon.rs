//! NEON with the dot product: 4 lanes.

use super::super::Simd;
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON, `dotprod` and `fp16`.
#[derive(Clone, Copy, Debug)]
pub struct Neon;

// SAFETY of every block below: the caller promises the ISA, and that loads and stores are in bounds.
impl Simd for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const SIGNED_BIAS: bool = false;
    type F = float32x4_t;
    type I = uint32x4_t;

    #[inline(always)]
    unsafe fn f_splat(v: f32) -> Self::F {
        unsafe { vdupq_n_f32(v) }
    }
    #[inline(always)]
    unsafe fn f_load(p: *const f32) -> Self::F {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn f_store(p: *mut f32, v: Self::F) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn f_sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn f_div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn f_max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn f_min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn f_load_f16(p: *const u16) -> Self::F {
        let out: float32x4_t;
        // SAFETY: reads a register only; every NEON unit converts halves. (The f16 vector types are not stable.)
        unsafe {
            asm!("fcvtl {out:v}.4s, {v:v}.4h", out = lateout(vreg) out, v = in(vreg) vld1_u16(p),
                options(pure, nomem, nostack, preserves_flags));
        }
        out
    }
    #[inline(always)]
    unsafe fn f_store_f16(p: *mut u16, v: Self::F) {
        let out: uint16x4_t;
        // SAFETY: as above.
        unsafe {
            asm!("fcvtn {out:v}.4h, {v:v}.4s", out = lateout(vreg) out, v = in(vreg) v,
                options(pure, nomem, nostack, preserves_flags));
            vst1_u16(p, out);
        }
    }
    #[inline(always)]
    unsafe fn f_load_i8(p: *const i8) -> Self::F {
        unsafe {
            let bytes = vreinterpret_s8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn f_from_i(v: Self::I) -> Self::F {
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(v)) }
    }
    #[inline(always)]
    unsafe fn f_to_i(v: Self::F) -> Self::I {
        unsafe { vreinterpretq_u32_s32(vcvtnq_s32_f32(v)) }
    }
    #[inline(always)]
    unsafe fn f_bits(v: Self::F) -> Self::I {
        unsafe { vreinterpretq_u32_f32(v) }
    }
    #[inline(always)]
    unsafe fn f_from_bits(v: Self::I) -> Self::F {
        unsafe { vreinterpretq_f32_u32(v) }
    }

    #[inline(always)]
    unsafe fn i_splat(v: u32) -> Self::I {
        unsafe { vdupq_n_u32(v) }
    }
    #[inline(always)]
    unsafe fn i_load(p: *const u32) -> Self::I {
        unsafe { vld1q_u32(p) }
    }
    #[inline(always)]
    unsafe fn i_load_u16(p: *const u16) -> Self::I {
        unsafe { vmovl_u16(vld1_u16(p)) }
    }
    #[inline(always)]
    unsafe fn i_load_transposed(rows: *const *const u8, offset: usize) -> [Self::I; 4] {
        unsafe {
            let mut v = [vdupq_n_u32(0); 4];
            for (row, v) in v.iter_mut().enumerate() {
                *v = vreinterpretq_u32_u8(vld1q_u8((*rows.add(row)).add(offset)));
            }
            let (a, b) = (vtrn1q_u32(v[0], v[1]), vtrn1q_u32(v[2], v[3])); // words 0 and 2 of two rows each
            let (c, d) = (vtrn2q_u32(v[0], v[1]), vtrn2q_u32(v[2], v[3])); // words 1 and 3
            let (a, b) = (vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b));
            let (c, d) = (vreinterpretq_u64_u32(c), vreinterpretq_u64_u32(d));
            [
                vreinterpretq_u32_u64(vtrn1q_u64(a, b)),
                vreinterpretq_u32_u64(vtrn1q_u64(c, d)),
                vreinterpretq_u32_u64(vtrn2q_u64(a, b)),
                vreinterpretq_u32_u64(vtrn2q_u64(c, d)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn i_store(p: *mut u32, v: Self::I) {
        unsafe { vst1q_u32(p, v) }
    }
    #[inline(always)]
    unsafe fn i_store_u8(p: *mut u8, v: Self::I) {
        unsafe {
            let halves = vmovn_u32(v);
            let bytes = vmovn_u16(vcombine_u16(halves, halves));
            p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)));
        }
    }
    #[inline(always)]
    unsafe fn i_and(a: Self::I, b: Self::I) -> Self::I {
        unsafe { vandq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_or(a: Self::I, b: Self::I) -> Self::I {
        unsafe { vorrq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_max(a: Self::I, b: Self::I) -> Self::I {
        unsafe { vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b))) }
    }
    #[inline(always)]
    unsafe fn i_xor(a: Self::I, b: Self::I) -> Self::I {
        unsafe { veorq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I {
        unsafe { vaddq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I {
        unsafe { vsubq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn i_mul(a: Self::I, b: Self::I) -> Self::I {
        unsafe { vmulq_u32(a, b) }
    }
    // Shifts by a register, so that a shift by 0 is allowed too; the constant is hoisted out of loops.
    #[inline(always)]
    unsafe fn i_shl<const N: i32>(v: Self::I) -> Self::I {
        unsafe { vshlq_u32(v, vdupq_n_s32(N)) }
    }
    #[inline(always)]
    unsafe fn i_shr<const N: i32>(v: Self::I) -> Self::I {
        unsafe { vshlq_u32(v, vdupq_n_s32(-N)) }
    }
    #[inline(always)]
    unsafe fn i_shr_by(v: Self::I, count: u32) -> Self::I {
        unsafe { vshlq_u32(v, vdupq_n_s32(-(count as i32))) }
    }
    #[inline(always)]
    unsafe fn i_sar<const N: i32>(v: Self::I) -> Self::I {
        unsafe { vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(-N))) }
    }
    #[inline(always)]
    unsafe fn i_gather(table: *const u32, index: Self::I) -> Self::I {
        unsafe {
            let mut lanes = [0u32; 4];
            vst1q_u32(lanes.as_mut_ptr(), index);
            vld1q_u32(lanes.map(|i| *table.add(i as usize)).as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn i_look_up(table: &[u8; 16], index: Self::I) -> Self::I {
        unsafe { vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_u32(index))) }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        // Bytes of at most 127 are the same signed and unsigned.
        unsafe { Self::dot_signed(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        let mut acc = acc;
        // SAFETY: works on registers only. (The intrinsic vdotq_s32 is not stable.)
        unsafe {
            asm!("sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b", acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        unsafe {
            let (a, b) = (vreinterpretq_s16_u32(a), vreinterpretq_s16_u32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            let sums = vpaddq_s32(low, vmull_high_s16(a, b));
            vaddq_u32(acc, vreinterpretq_u32_s32(sums))
        }
    }

    #[inline(always)]
    unsafe fn f_max_lane(v: Self::F) -> f32 {
        unsafe { vmaxvq_f32(v) }
    }
    #[inline(always)]
    unsafe fn pin(v: Self::F) -> Self::F {
        let mut v = v;
        // SAFETY: no instruction at all.
        unsafe { asm!("/* {0:v} */", inout(vreg) v, options(nostack, preserves_flags)) };
        v
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint; it never faults.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: a hint; it never faults.
        unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn prefetch_once(p: *const u8) {
        // SAFETY: a hint; it never faults.
        unsafe { asm!("prfm pldl1strm, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
}
