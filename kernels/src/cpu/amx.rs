//! Products of bf16 in hardware: which instructions the processor has, and AMX tiles as small functions.
//!
//! A tile is up to 16 rows of up to 64 bytes. The eight tiles of a thread have no shape until [`Tiles::configure`]
//! gives them one. Intrinsics for them are not stable in Rust, so the functions here are single instructions in inline
//! assembly.
//!
//! Both kinds of dot products take *pairs*: two neighbouring bf16 along the summed dimension in 32 bits. The products
//! of a pair and the sums are in f32; denormal inputs count as zero, and denormal results become zero.

use std::sync::OnceLock;

/// Instructions that multiply bf16 and sum in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dots {
    /// None: bf16 is widened to f32 first.
    Widen,
    /// `_mm512_dpbf16_ps`, with AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// Tiles, with all of `Avx512Bf16`.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
}

impl Dots {
    /// The fastest of this processor.
    ///
    /// Intel's processors with AVX-512-BF16 start a product of pairs every other cycle and two of f32 in each cycle. So
    /// f32 is faster where tiles are missing, or where an operating system or a virtual machine withholds them. AMD's
    /// processors start one of either kind in each cycle.
    pub(crate) fn detect() -> Self {
        match *Self::available().last().expect("`Widen` is always there") {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 if is_intel() => Self::Widen,
            fastest => fastest,
        }
    }

    /// All of this processor, fastest last. The first call asks the operating system for tiles, once a process.
    pub(crate) fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Dots>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let mut all = vec![Self::Widen];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                all.push(Self::Avx512Bf16);
                #[cfg(target_os = "linux")]
                if has_tiles() && may_use_tiles() {
                    all.push(Self::Amx);
                }
            }
            all
        })
    }
}

/// Whether the processor is one of Intel's.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// Whether the processor has tiles of this module's size and multiplies bf16 in them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if __cpuid(0).eax < 0x1d {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // Leaf 1D describes palette 1: bytes of a tile, bytes of a row, number of tiles, number of rows.
    let palette = __cpuid_count(0x1d, 1);
    features & AMX_BF16 != 0
        && features & AMX_TILE != 0
        && palette.eax >> 16 == (ROWS * ROW_BYTES) as u32
        && palette.ebx & 0xffff == ROW_BYTES as u32
        && palette.ebx >> 16 >= 8
        && palette.ecx & 0xffff == ROWS as u32
}

/// Asks Linux for the use of tiles, which it grants to all threads of a process or to none.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours. Kernels that do not know it return an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use tiles::{ROW_BYTES, ROWS, Tiles};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::arch::asm;
    use std::marker::PhantomData;

    use super::Dots;

    /// The most rows of a tile.
    pub(crate) const ROWS: usize = 16;

    /// The most bytes of a tile's row: 16 f32, or 16 pairs of bf16.
    pub(crate) const ROW_BYTES: usize = 64;

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// The eight tiles of this thread, configured; dropping the value releases them.
    ///
    /// The state belongs to the thread, so at most one value may be alive in a thread, and code that holds one must not
    /// enter rayon, which might run another task on this thread meanwhile.
    pub(crate) struct Tiles {
        /// Keeps the value in its thread.
        not_send: PhantomData<*const ()>,
    }

    impl Tiles {
        /// Gives tile `t` the shape `shapes[t]`: rows, at most [`ROWS`], and bytes of a row, at most [`ROW_BYTES`].
        /// All tiles become zero.
        ///
        /// For `dot::<C, A, B>`, A is `m` rows of `k` pairs, B is `k` rows of `n` pairs and C is `m` rows of `n` f32.
        ///
        /// # Panics
        /// If the processor has no tiles, or a shape is empty or too large.
        #[inline]
        pub(crate) fn configure(shapes: [(usize, usize); 8]) -> Self {
            assert!(Dots::detect() == Dots::Amx, "tiles are used only where they are available");
            let mut config =
                Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
            for (t, (rows, row_bytes)) in shapes.into_iter().enumerate() {
                assert!((1..=ROWS).contains(&rows) && (4..=ROW_BYTES).contains(&row_bytes));
                assert_eq!(row_bytes % 4, 0, "whole f32 or pairs");
                (config.rows[t], config.row_bytes[t]) = (rows as u8, row_bytes as u16);
            }
            // SAFETY: the processor has tiles and the process may use them, by the assertion; `config` is 64 bytes of a
            // valid configuration.
            unsafe {
                asm!(
                    "ldtilecfg [{0}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                );
            }
            Self { not_send: PhantomData }
        }

        /// All tiles of the full size.
        #[inline]
        pub(crate) fn full() -> Self {
            Self::configure([(ROWS, ROW_BYTES); 8])
        }

        /// Sets tile `T` to zero.
        #[inline(always)]
        pub(crate) fn zero<const T: usize>(&self) {
            macro_rules! zero {
                ($($t:literal $name:tt)*) => {
                    match T {
                        // SAFETY: tiles are configured while `self` lives; only tile `T` changes.
                        $($t => unsafe {
                            asm!(
                                concat!("tilezero ", $name),
                                out($name) _,
                                options(nostack, nomem, preserves_flags),
                            );
                        },)*
                        _ => unreachable!("there are eight tiles"),
                    }
                };
            }
            zero!(0 "tmm0" 1 "tmm1" 2 "tmm2" 3 "tmm3" 4 "tmm4" 5 "tmm5" 6 "tmm6" 7 "tmm7");
        }

        /// Reads tile `T` from rows that lie `stride` bytes apart.
        ///
        /// # Safety
        /// `from` must be valid for reading the tile's rows.
        #[inline(always)]
        pub(crate) unsafe fn load<const T: usize>(&self, from: *const u8, stride: usize) {
            macro_rules! load {
                ($($t:literal $name:tt)*) => {
                    match T {
                        // SAFETY: the caller's promise; tiles are configured while `self` lives.
                        $($t => unsafe {
                            asm!(
                                concat!("tileloadd ", $name, ", [{from} + {stride}*1]"),
                                from = in(reg) from,
                                stride = in(reg) stride,
                                out($name) _,
                                options(nostack, readonly, preserves_flags),
                            );
                        },)*
                        _ => unreachable!("there are eight tiles"),
                    }
                };
            }
            load!(0 "tmm0" 1 "tmm1" 2 "tmm2" 3 "tmm3" 4 "tmm4" 5 "tmm5" 6 "tmm6" 7 "tmm7");
        }

        /// Writes tile `T` to rows that lie `stride` bytes apart.
        ///
        /// # Safety
        /// `to` must be valid for writing the tile's rows.
        #[inline(always)]
        pub(crate) unsafe fn store<const T: usize>(&self, to: *mut u8, stride: usize) {
            const { assert!(T < 8, "there are eight tiles") };
            // SAFETY: the caller's promise; tiles are configured while `self` lives.
            unsafe {
                asm!(
                    "tilestored [{to} + {stride}*1], tmm{tile}",
                    to = in(reg) to,
                    stride = in(reg) stride,
                    tile = const T,
                    options(nostack, preserves_flags),
                );
            }
        }

        /// `C += A · B` for tiles of bf16 pairs: `C[m, n] += Σₖ A[m, k].0 · B[k, n].0 + A[m, k].1 · B[k, n].1`.
        ///
        /// # Panics
        /// The processor faults if the shapes of the three tiles do not match.
        #[inline(always)]
        pub(crate) fn dot<const C: usize, const A: usize, const B: usize>(&self) {
            const { assert!(A < 8 && B < 8 && A != B && A != C && B != C, "three of the eight tiles") };
            macro_rules! dot {
                ($($c:literal $name:tt)*) => {
                    match C {
                        // SAFETY: tiles are configured while `self` lives; only tile `C` changes.
                        $($c => unsafe {
                            asm!(
                                concat!("tdpbf16ps ", $name, ", tmm{a}, tmm{b}"),
                                a = const A,
                                b = const B,
                                out($name) _,
                                options(nostack, nomem, preserves_flags),
                            );
                        },)*
                        _ => unreachable!("there are eight tiles"),
                    }
                };
            }
            dot!(0 "tmm0" 1 "tmm1" 2 "tmm2" 3 "tmm3" 4 "tmm4" 5 "tmm5" 6 "tmm6" 7 "tmm7");
        }
    }

    impl Drop for Tiles {
        #[inline]
        fn drop(&mut self) {
            // SAFETY: releasing tiles touches no memory, and nothing uses them after `self`.
            unsafe {
                asm!(
                    "tilerelease", options(nostack, nomem, preserves_flags),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                );
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use super::*;

    /// bf16 of small integers, which it holds exactly.
    fn bf16(x: i32) -> u16 {
        ((x as f32).to_bits() >> 16) as u16
    }

    #[test]
    fn levels_are_in_order_and_start_with_none() {
        let all = Dots::available();
        assert_eq!(all[0], Dots::Widen);
        assert!(all.is_sorted());
        assert_eq!(all.last(), Some(&Dots::detect()));
    }

    #[test]
    fn tiles_multiply_on_every_thread() {
        if Dots::detect() != Dots::Amx {
            return;
        }
        let [m, n, pairs] = [11, 13, 5];
        let a = |i: usize, k: usize| (3 * i + 5 * k) as i32 % 17 - 8;
        let b = |k: usize, j: usize| (7 * k + 2 * j) as i32 % 13 - 6;
        let multiply = || {
            let mut left = vec![[0u16; 2]; m * pairs];
            let mut right = vec![[0u16; 2]; pairs * n];
            for k in 0..2 * pairs {
                (0..m).for_each(|i| left[i * pairs + k / 2][k % 2] = bf16(a(i, k)));
                (0..n).for_each(|j| right[k / 2 * n + j][k % 2] = bf16(b(k, j)));
            }
            let mut product = vec![f32::NAN; m * n];
            let mut shapes = [(1, 4); 8];
            (shapes[3], shapes[4], shapes[6]) = ((m, 4 * n), (m, 4 * pairs), (pairs, 4 * n));
            let tiles = Tiles::configure(shapes);
            // SAFETY: the vectors are as large as the shapes and strides say.
            unsafe {
                tiles.zero::<3>();
                tiles.load::<4>(left.as_ptr().cast(), 4 * pairs);
                tiles.load::<6>(right.as_ptr().cast(), 4 * n);
                tiles.dot::<3, 4, 6>();
                tiles.dot::<3, 4, 6>();
                tiles.store::<3>(product.as_mut_ptr().cast(), 4 * n);
            }
            product
        };
        let expected: Vec<f32> = (0..m * n)
            .map(|at| (0..2 * pairs).map(|k| 2 * a(at / n, k) * b(k, at % n)).sum::<i32>() as f32)
            .collect();
        std::thread::scope(|scope| {
            for thread in [scope.spawn(multiply), scope.spawn(multiply)] {
                assert_eq!(thread.join().expect("no panic"), expected);
            }
        });
    }
}
