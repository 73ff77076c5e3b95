//! The algorithms, each once, over the [`Simd`](super::Simd) trait.
//!
//! SAFETY of the unsafe blocks here: they stand in unsafe functions and lean on what the function's caller promises
//! (the CPU has the ISA of S, pointers are valid for the shapes that are documented); where there is more to say,
//! a line says it.

// Blocks of registers are indexed by row, token and part at once.
#![allow(clippy::needless_range_loop)]

pub mod attention;
pub mod codebooks;
pub mod elementwise;
pub mod few_tokens;
pub mod float;
pub mod formats;
pub mod interleave;
pub mod many_tokens;
pub mod math;
pub mod quantized;
pub mod scalar;

/// Runs `$body` with `$f` as the [`Format`](formats::Format) of `$kind`; `$else` for kinds that are not quantized.
macro_rules! with_format {
    ($kind:expr, $f:ident => $body:expr, $else:expr) => {{
        use $crate::backend::cpu::kernels::generic::{codebooks, formats};
        use $crate::quant::BlockType;
        macro_rules! run {
            ($format:ty) => {{
                type $f = $format;
                $body
            }};
        }
        match $kind {
            BlockType::Q4_0 => run!(formats::Q4_0),
            BlockType::Q4_1 => run!(formats::Q4_1),
            BlockType::Q5_0 => run!(formats::Q5_0),
            BlockType::Q5_1 => run!(formats::Q5_1),
            BlockType::Q8_0 => run!(formats::Q8_0),
            BlockType::Q2_K => run!(formats::Q2K),
            BlockType::Q3_K => run!(formats::Q3K),
            BlockType::Q4_K => run!(formats::Q4K),
            BlockType::Q5_K => run!(formats::Q5K),
            BlockType::Q6_K => run!(formats::Q6K),
            BlockType::IQ1_S => run!(codebooks::Iq1S),
            BlockType::IQ1_M => run!(codebooks::Iq1M),
            BlockType::IQ2_XXS => run!(codebooks::Iq2Xxs),
            BlockType::IQ2_XS => run!(codebooks::Iq2Xs),
            BlockType::IQ2_S => run!(codebooks::Iq2S),
            BlockType::IQ3_XXS => run!(codebooks::Iq3Xxs),
            BlockType::IQ3_S => run!(codebooks::Iq3S),
            BlockType::IQ4_NL => run!(codebooks::Iq4Nl),
            BlockType::IQ4_XS => run!(codebooks::Iq4Xs),
            BlockType::TQ1_0 => run!(codebooks::Tq1),
            BlockType::TQ2_0 => run!(codebooks::Tq2),
            BlockType::MXFP4 => run!(codebooks::Mxfp4),
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => $else,
        }
    }};
}
pub(crate) use with_format;
