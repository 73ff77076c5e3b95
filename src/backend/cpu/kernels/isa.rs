//! Which vector unit the kernels use.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__cpuid;

use crate::{Error, Result};

/// An instruction set that the kernels are compiled for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: any processor.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with the 256-bit int8 dot product of AVX-VNNI.
    AvxVnni,
    /// AVX-512 (F, BW, DQ, VL) with the int8 dot product of VNNI.
    Avx512,
    /// 64-bit Arm with the int8 dot product (`dotprod`) and half floats (`fp16`).
    Neon,
}

/// What AVX-512's kernels want to know of the processor beyond its instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// One unit does 512-bit dot products, shuffles, masks and shifts.
    Intel,
    /// Shuffles cost more than the loads that they save; masks and shifts cost less than to keep quants in memory. (AMD's family 25,
    /// of which Zen 4 has AVX-512.)
    Zen4,
    /// Zen 5, whose dot products wait for loads, and what else there may be.
    Other,
}

impl Processor {
    /// All kinds.
    pub const ALL: [Processor; 3] = [Processor::Intel, Processor::Zen4, Processor::Other];

    /// The one that this is.
    pub fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let vendor = __cpuid(0);
            let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
            let version = __cpuid(1).eax;
            let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
            match vendor.as_flattened() {
                b"GenuineIntel" => return Processor::Intel,
                b"AuthenticAMD" if family == 0x19 => return Processor::Zen4,
                _ => {}
            }
        }
        Processor::Other
    }

    /// Whether half of several tokens' activations better come by shuffles than from memory. On Granite Rapids eight tokens' Q4_K
    /// is 5 to 8% slower so, Q6_K 6 to 14%: the loads that they save fit in. One thread of Zen 4 makes 64 tokens a second of four
    /// sequences of a 1.5B so and 72 steadily, of six 66 and 76, of eight 81 and 85.
    pub fn spreads_by_shuffles(self) -> bool {
        self == Processor::Other
    }

    /// Whether dot products leave room for the masks and shifts that make quants, so that several passes may make them anew.
    pub fn unpacks_beside_products(self) -> bool {
        self != Processor::Intel
    }
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Neon];

    /// The name that PENSIVE_ISA takes.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => {
                std::arch::is_aarch64_feature_detected!("dotprod")
                    && std::arch::is_aarch64_feature_detected!("fp16")
            }
            _ => false,
        }
    }

    /// Those that this processor has, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest that this processor has, or the one that the environment variable PENSIVE_ISA names.
    ///
    /// # Errors
    /// [`Error::Usage`] if PENSIVE_ISA names one that does not exist or that this processor lacks.
    pub fn detect() -> Result<Isa> {
        Self::choose(std::env::var("PENSIVE_ISA").ok().as_deref())
    }

    /// [`detect`](Self::detect) with the variable's value.
    fn choose(wanted: Option<&str>) -> Result<Isa> {
        let Some(wanted) = wanted.filter(|w| !w.is_empty()) else {
            return Ok(Self::available().last().unwrap_or(Isa::Scalar));
        };
        let names = || Self::available().map(Isa::name).collect::<Vec<_>>().join(", ");
        match Self::ALL.into_iter().find(|isa| isa.name() == wanted) {
            Some(isa) if isa.is_available() => Ok(isa),
            Some(_) => Err(Error::Usage(format!(
                "PENSIVE_ISA={wanted}: this processor does not have it; it has {}",
                names()
            ))),
            None => Err(Error::Usage(format!(
                "PENSIVE_ISA={wanted}: no such instruction set; this processor has {}",
                names()
            ))),
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_variable_the_fastest_available_is_chosen() {
        assert_eq!(Some(Isa::choose(None).unwrap()), Isa::available().last());
        assert_eq!(Isa::choose(Some("")).unwrap(), Isa::choose(None).unwrap());
    }

    #[test]
    fn the_variable_overrides_the_choice() {
        for isa in Isa::available() {
            assert_eq!(Isa::choose(Some(isa.name())).unwrap(), isa);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name_with_what_there_is() {
        let message = Isa::choose(Some("sse9")).unwrap_err().to_string();
        assert!(message.contains("PENSIVE_ISA=sse9") && message.contains("scalar"), "{message}");
    }

    #[test]
    fn an_instruction_set_of_another_processor_is_refused() {
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            let message = Isa::choose(Some(isa.name())).unwrap_err().to_string();
            assert!(message.contains("does not have it"), "{message}");
        }
    }
}
