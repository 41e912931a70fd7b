//! Which instruction set a kernel runs with: the best of the processor, or a lower one forced for tests.

use std::sync::OnceLock;

/// Ordered: a later one of the same family of processors includes the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust for the target the crate was built for.
    Portable,
    /// NEON, as every 64-bit ARM processor has it: 4 floats. Plain Rust is compiled for it anyway: it matters where sums must
    /// stay in registers.
    Neon,
    /// AVX2 and FMA: 8 floats.
    Avx2,
    /// AVX-512 F, BW, DQ, VL: 16 floats.
    Avx512,
}

impl Isa {
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Whether this processor can run it.
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Portable => true,
            Isa::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_supported()
                    && ["avx512f", "avx512bw", "avx512dq", "avx512vl"].iter().all(|f| detected(f))
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }

    /// The best this processor has, or what the environment variable `LACUNA_ISA` names if that is lower.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let asked = std::env::var("LACUNA_ISA").ok();
            let most = match asked.as_deref() {
                Some("portable") => Isa::Portable,
                Some(name) if name.starts_with("neon") => Isa::Neon,
                Some(name) if name.starts_with("avx2") => Isa::Avx2,
                _ => Isa::Avx512,
            };
            let usable = Isa::ALL.into_iter().filter(|isa| *isa <= most && isa.is_supported());
            usable.max().unwrap_or(Isa::Portable)
        })
    }
}

#[cfg(target_arch = "x86_64")]
fn detected(feature: &str) -> bool {
    match feature {
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512dq" => is_x86_feature_detected!("avx512dq"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        _ => false,
    }
}

/// Compiles a function of plain Rust once per instruction set and calls the best one of this processor.
///
/// ```ignore
/// by_isa! {
///     /// y = max(x, 0)
///     pub fn relu(x: &[f32], y: &mut [f32]) {
///         for (y, &x) in y.iter_mut().zip(x) { *y = x.max(0.0) }
///     }
/// }
/// ```
/// The body and the functions it calls must be `#[inline(always)]` to be compiled for the wider set. Floats are never
/// fused silently: write `a * b + c` and every set rounds alike.
#[macro_export]
macro_rules! by_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::isa::Isa::best() {
                    // SAFETY: the processor has these instructions.
                    $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::isa::Isa::Portable | $crate::isa::Isa::Neon => {}
                }
            }
            body($($arg),*)
        }
    };
}
