//! The instances of [`Simd`] against the scalar one, operation by operation.

use super::generic::scalar::Scalar;
use super::{Isa, Simd};
use proptest::prelude::*;

/// Inputs of one trial: 16 lanes each.
#[derive(Clone, Copy, Debug)]
pub struct Lanes {
    f: [[f32; 16]; 3],
    i: [[u32; 16]; 3],
}

/// What every operation makes of them, as bits, 16 lanes each.
type Results = Vec<[u32; 16]>;

/// Operations of S on the lanes, as 16 / LANES vectors. (Those that gather, look up and transpose are tested with the formats that need them.)
///
/// # Safety
/// The CPU has the ISA of S.
#[inline(always)]
unsafe fn every_operation<S: Simd>(x: *const Lanes, out: *mut Results) {
    unsafe {
        let (x, out) = (&*x, &mut *out);
        for part in (0..16).step_by(S::LANES) {
            let [a, b, c] = [0, 1, 2].map(|k| S::f_load(x.f[k].as_ptr().add(part)));
            let [i, j, k] = [0, 1, 2].map(|k| S::i_load(x.i[k].as_ptr().add(part)));
            let small = S::i_and(j, S::i_splat(0x7f7f_7f7f));
            // The bias of the signed dot product, as kernels take it off: -128 * (sum of the bytes of k).
            let ones = S::dot(S::i_splat(0), S::i_splat(0x0101_0101), k);
            let start =
                if S::SIGNED_BIAS { S::i_sub(S::i_splat(0), S::i_shl::<7>(ones)) } else { S::i_splat(0) };
            let results = [
                S::f_bits(S::f_add(a, b)),
                S::f_bits(S::f_sub(a, b)),
                S::f_bits(S::f_mul(a, b)),
                S::f_bits(S::f_div(a, S::f_max(S::f_mul(b, b), S::f_splat(1e-3)))), // never 0/0
                S::f_bits(S::f_max(a, b)),
                S::f_bits(S::f_min(a, b)),
                S::f_bits(S::f_fma(a, b, c)),
                S::f_bits(S::f_fma_by(a, &x.f[0][3], c)),
                S::f_bits(S::f_load_f16(x.i[0].as_ptr().cast::<u16>().add(part))),
                S::f_bits(S::f_from_i(i)),
                S::f_to_i(a),
                S::f_bits(S::f_splat(x.f[0][3])),
                S::i_and(i, j),
                S::i_max(i, j),
                S::i_or(i, j),
                S::i_xor(i, j),
                S::i_add(i, j),
                S::i_sub(i, j),
                S::i_mul(i, j),
                S::i_shl::<5>(i),
                S::i_shr::<5>(i),
                S::i_shr::<0>(i),
                S::i_shr_by(i, x.i[0][0] & 31),
                S::i_sar::<24>(i),
                S::i_load_u16(x.i[0].as_ptr().cast::<u16>().add(part)),
                S::f_bits(S::f_from_bits(i)),
                S::dot(i, small, k),
                S::dot_signed(start, j, k),
                S::dot_pairs(i, j, k),
                S::dot4::<7>(i, [small; 4], [k; 4]),
                S::dot4::<6>(i, [S::i_and(j, S::i_splat(0x3f3f_3f3f)); 4], [k; 4]),
                S::dot4::<5>(i, [S::i_and(j, S::i_splat(0x1f1f_1f1f)); 4], [k; 4]),
            ];
            out.resize(results.len() + 2, [0; 16]);
            for (r, v) in results.into_iter().enumerate() {
                S::i_store(out[r].as_mut_ptr().add(part), v);
            }
            let narrow = results.len();
            S::i_store_u8(out[narrow].as_mut_ptr().cast::<u8>().add(part), i);
            S::f_store_f16(out[narrow + 1].as_mut_ptr().cast::<u16>().add(part), c);
            S::prefetch(x.f.as_ptr().cast());
            S::prefetch_far(x.f.as_ptr().cast());
        }
    }
}

super::entry_points! {
    /// [`every_operation`] of an ISA.
    fn on_isa(x: *const Lanes, out: *mut Results) = every_operation;
}

fn lanes() -> impl Strategy<Value = Lanes> {
    let float = prop_oneof![-1e6f32..1e6, -1.0f32..1.0, -1e-40f32..1e-40, Just(0.0), Just(-0.0), Just(2.5)];
    let half = |v: u32| (if v & 0x7c00 == 0x7c00 { v ^ 0x400 } else { v }) & 0xffff; // no NaN: payloads may differ
    let word = any::<u32>().prop_map(move |v| half(v) | half(v >> 16) << 16);
    // Activations are clamped to -127..=127.
    let activations =
        proptest::array::uniform4(-127i8..=127).prop_map(|b| u32::from_le_bytes(b.map(|b| b as u8)));
    (
        proptest::array::uniform3(proptest::array::uniform16(float)),
        proptest::array::uniform16(word),
        proptest::array::uniform16(any::<u32>()),
        proptest::array::uniform16(activations),
    )
        .prop_map(|(f, i0, i1, i2)| Lanes { f, i: [i0, i1, i2] })
}

proptest! {
    #[test]
    fn every_isa_computes_what_scalar_computes(x in lanes()) {
        let mut expected = Results::new();
        // SAFETY: plain Rust.
        unsafe { every_operation::<Scalar>(&x, &mut expected) };
        for isa in Isa::available() {
            let mut got = Results::new();
            // SAFETY: the ISA is available.
            unsafe { on_isa(isa, &x, &mut got) };
            for (operation, (got, expected)) in got.iter().zip(&expected).enumerate() {
                prop_assert_eq!(got, expected, "operation {} of {}", operation, isa);
            }
        }
    }
}
