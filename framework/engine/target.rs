//! The machine a plan is made for: instruction set rows and cores, found at run time.

use crate::error::{Error, Result};
use std::fmt;

/// Rows of the kernel tables, from the plainest. Each row needs all of what stands in its name. Those of two families of
/// processors never meet: a table holds the rows of the family it is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, any processor.
    Portable,
    /// NEON, as every 64-bit ARM processor has it.
    Neon,
    /// The same and the dot products of bytes (`sdot`).
    NeonDot,
    /// The same and the products of bytes of unlike signs (`usdot`).
    NeonI8mm,
    /// AVX2 and FMA.
    Avx2,
    /// The same and 256-bit VNNI, as AVX-VNNI or as a part of AVX-512 VNNI.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// The same and VBMI (`vpermb`).
    Avx512Vbmi,
    /// The same, VBMI2 and AMX (int8), which the system grants to a process that asks.
    Amx,
}

impl Isa {
    pub const ALL: [Isa; 9] = [
        Isa::Portable,
        Isa::Neon,
        Isa::NeonDot,
        Isa::NeonI8mm,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Avx512Vbmi,
        Isa::Amx,
    ];

    /// The best row this processor has.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx512 && is_x86_feature_detected!("avx512vbmi") {
                let vbmi2 = is_x86_feature_detected!("avx512vbmi2");
                return if vbmi2 && amx::granted() { Isa::Amx } else { Isa::Avx512Vbmi };
            }
            if avx512 {
                return Isa::Avx512Vnni;
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                return Isa::AvxVnni;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            let dot = is_aarch64_feature_detected!("dotprod");
            return match dot && is_aarch64_feature_detected!("i8mm") {
                true => Isa::NeonI8mm,
                false if dot => Isa::NeonDot,
                false => Isa::Neon,
            };
        }
        #[allow(unreachable_code)]
        Isa::Portable
    }

    /// All rows this processor has, from the plainest: what tests run.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this processor has the row.
    pub fn is_available(self) -> bool {
        let family = match self {
            Isa::Portable => true,
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => cfg!(target_arch = "aarch64"),
            _ => cfg!(target_arch = "x86_64"),
        };
        family && self <= Isa::detect()
    }

    /// The row of `lacuna_kernels` that goes with this one.
    pub(crate) fn of_tiles(self) -> lacuna_kernels::isa::Isa {
        use lacuna_kernels::isa::Isa as Tiles;
        match self {
            Isa::Portable => Tiles::Portable,
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => Tiles::Neon,
            Isa::Avx2 | Isa::AvxVnni => Tiles::Avx2,
            Isa::Avx512Vnni | Isa::Avx512Vbmi | Isa::Amx => Tiles::Avx512,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
            Isa::NeonI8mm => "neoni8mm",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Vbmi => "avx512vbmi",
            Isa::Amx => "amx",
        }
    }

    /// Reads a name as in `LACUNA_ISA`: a row's name, or `avx512` for the best AVX-512 row there is.
    pub fn from_name(name: &str) -> Option<Isa> {
        match name {
            "avx512" => Some(Isa::detect().clamp(Isa::Avx512Vnni, Isa::Avx512Vbmi)),
            _ => Isa::ALL.into_iter().find(|isa| isa.name() == name),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// Whether the processor has AMX for int8 and the system lets this process use its tiles. Asks once.
    pub fn granted() -> bool {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        *GRANTED.get_or_init(|| present() && ask())
    }

    fn present() -> bool {
        if __cpuid(0).eax < 7 {
            return false;
        }
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        __cpuid_count(7, 0).edx & (TILE | INT8) == TILE | INT8
    }

    /// Asks for the tile registers' state, which Linux hands out to whole processes (Documentation/arch/x86/xstate.rst).
    #[cfg(target_os = "linux")]
    fn ask() -> bool {
        const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        // SAFETY: this call takes two numbers and touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn ask() -> bool {
        false
    }
}

/// Whether this processor multiplies bfloat16, and has what else the kernels with such products need.
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return Isa::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The most threads a session may ask for.
pub const THREADS_MAX: usize = 1024;

/// What passes and the planner know of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub isa: Isa,
    pub threads: usize,
    /// Bytes of a core's second-level cache, for what is done in pieces.
    pub cache_bytes: usize,
    /// f32 layers may multiply in bfloat16: it was asked for, and the processor can.
    pub bf16: bool,
}

/// What most processors' cores have, or more.
const CACHE_BYTES: usize = 1 << 20;

impl Target {
    /// This machine: `LACUNA_ISA` or the best row there is, and all cores.
    pub fn native() -> Result<Target> {
        Target::new(None, None)
    }

    /// `isa` before `LACUNA_ISA` before the best row there is; `threads` before all cores.
    /// Asking for a row this processor lacks is an error.
    pub fn new(isa: Option<Isa>, threads: Option<usize>) -> Result<Target> {
        let isa = match (isa, std::env::var("LACUNA_ISA")) {
            (Some(isa), _) => isa,
            (None, Ok(name)) => Isa::from_name(&name).ok_or_else(|| {
                let names = Isa::ALL.map(Isa::name).join(", ");
                Error::Options(format!("LACUNA_ISA is '{name}'; use avx512 or one of {names}"))
            })?,
            (None, Err(_)) => Isa::detect(),
        };
        if !isa.is_available() {
            let best = Isa::detect();
            return Err(Error::Options(format!("this processor has no {isa}; the best it has is {best}")));
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = threads.unwrap_or(cores);
        if threads == 0 || threads > THREADS_MAX {
            return Err(Error::Options(format!("{threads} threads asked for; use 1 to {THREADS_MAX}")));
        }
        Ok(Target { isa, threads, cache_bytes: CACHE_BYTES, bf16: false })
    }

    /// The same with products in bfloat16, if they are asked for. Asking in vain is an error.
    pub fn with_bf16(self, asked: bool) -> Result<Target> {
        let needs = Isa::Avx512Vnni;
        if asked && !has_bf16() {
            let why = "bf16: this processor does not multiply bfloat16 (AVX512_BF16); leave it out";
            return Err(Error::Options(why.to_string()));
        }
        if asked && self.isa < needs {
            let why = format!("bf16: kernels up to {} do not multiply bfloat16; {needs} do", self.isa);
            return Err(Error::Options(why));
        }
        Ok(Target { bf16: asked, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::from_name("sse9"), None);
    }

    #[test]
    fn impossible_targets_are_refused() {
        assert!(Target::new(Some(Isa::Portable), Some(0)).is_err());
        assert!(Target::new(Some(Isa::Portable), Some(THREADS_MAX + 1)).is_err());
        assert!(Target::new(Some(Isa::Portable), Some(3)).is_ok());
    }
}
