//! Short vectors of f32, one type an instruction set, and the choice among them at run time.

use std::ops::{Add, Mul, Sub};

/// A vector of [`N`](Self::N) f32.
///
/// Code over it is generic and `#[inline(always)]` down from [`Job::run`], which [`Level::run`] compiles once an
/// instruction set. A type's operations may only run under the level it belongs to: nothing but a `Job` uses them.
pub(crate) trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// Elements of a vector; divides 16.
    const N: usize;
    /// Vectors that the processor can hold at once.
    const REGISTERS: usize;

    /// # Safety
    /// `from` must be valid for reading `N` elements.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` must be valid for writing `N` elements.
    unsafe fn store(self, to: *mut f32);
    fn splat(value: f32) -> Self;
    fn div(self, by: Self) -> Self;
    /// `self · a + b`, rounded once where the processor can.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger of each pair; the other's if either is NaN.
    fn max(self, other: Self) -> Self;
    /// Each element within `low..=high`.
    fn clamp(self, low: f32, high: f32) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `2ⁿ` of integers within `-126..=127`.
    fn exp2_integer(self) -> Self;

    /// `self · 2ⁿ` of integers `n` within `-252..=252`: in two steps, because `2ⁿ` alone may be out of range where
    /// the product is not.
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        let half = (n * Self::splat(0.5)).round();
        self * half.exp2_integer() * (n - half).exp2_integer()
    }

    /// The first elements of `from`, and `fill` for those that it lacks.
    #[inline(always)]
    fn load_or(from: &[f32], fill: f32) -> Self {
        if from.len() >= Self::N {
            // SAFETY: just checked.
            return unsafe { Self::load(from.as_ptr()) };
        }
        let mut whole = [fill; 16];
        whole[..from.len()].copy_from_slice(from);
        // SAFETY: `N ≤ 16`.
        unsafe { Self::load(whole.as_ptr()) }
    }

    /// Writes as many elements as `to` has room for.
    #[inline(always)]
    fn store_some(self, to: &mut [f32]) {
        if to.len() >= Self::N {
            // SAFETY: just checked.
            return unsafe { self.store(to.as_mut_ptr()) };
        }
        let mut whole = [0.0f32; 16];
        // SAFETY: `N ≤ 16`.
        unsafe { self.store(whole.as_mut_ptr()) };
        // By powers of two and not by a mask: rows are often stored one right after the other, and a masked write
        // would hold up the read of the next row, whose memory it covers without writing to it.
        let mut at = 0;
        for len in [8, 4, 2, 1] {
            if to.len() & len != 0 {
                to[at..at + len].copy_from_slice(&whole[at..at + len]);
                at += len;
            }
        }
    }

    /// The sum of the elements, by halves.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut parts = [0.0f32; 16];
        // SAFETY: `N ≤ 16`.
        unsafe { self.store(parts.as_mut_ptr()) };
        let mut len = Self::N;
        while len > 1 {
            len /= 2;
            for i in 0..len {
                parts[i] += parts[i + len];
            }
        }
        parts[0]
    }

    /// The vector of every fourth of `4N` elements from the first, from the second, the third and the fourth.
    ///
    /// # Safety
    /// `from` must be valid for reading `4N` elements.
    #[inline(always)]
    unsafe fn load_deinterleaved(from: *const f32) -> [Self; 4] {
        let mut phases = [[0.0f32; 16]; 4];
        for i in 0..Self::N {
            for phase in 0..4 {
                // SAFETY: `4i + phase < 4N`.
                phases[phase][i] = unsafe { *from.add(4 * i + phase) };
            }
        }
        // SAFETY: each row has 16 elements, at least `N`.
        unsafe { [0, 1, 2, 3].map(|phase: usize| Self::load(phases[phase].as_ptr())) }
    }

    /// The inverse of [`load_deinterleaved`](Self::load_deinterleaved): the `4N` elements in order.
    #[inline(always)]
    fn interleave(phases: [Self; 4]) -> [Self; 4] {
        let mut apart = [[0.0f32; 16]; 4];
        let mut together = [0.0f32; 64];
        for phase in 0..4 {
            // SAFETY: each row has 16 elements, at least `N`.
            unsafe { phases[phase].store(apart[phase].as_mut_ptr()) };
            for i in 0..Self::N {
                together[4 * i + phase] = apart[phase][i];
            }
        }
        // SAFETY: `4N ≤ 64`.
        unsafe { [0, 1, 2, 3].map(|part: usize| Self::load(together.as_ptr().add(part * Self::N))) }
    }
}

/// Work over any [`Lanes`].
pub(crate) trait Job {
    type Output;
    /// Does the work. Must be `#[inline(always)]`, and so must all that it calls.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best level of this processor.
    pub(crate) fn detect() -> Self {
        *Self::available().last().expect("`Portable` is always there")
    }

    /// Every level of this processor, best last.
    pub(crate) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            match (avx2, is_x86_feature_detected!("avx512f")) {
                (true, true) => &ALL,
                (true, false) => &ALL[..2],
                (false, _) => &ALL[..1],
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        &[Level::Portable]
    }

    /// Runs `job` with the vectors of this level.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self {
            Self::Portable => job.run::<Portable>(),
            // SAFETY: levels beyond `Portable` are only made by `available`, after looking.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::run_avx2(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { x86::run_avx512(job) },
        }
    }
}

/// What any processor can do, four at a time.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 4]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let (a, b) = (self.0, other.0);
        Self([f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])])
    }
}

impl Add for Portable {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Portable {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul for Portable {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
}

impl Lanes for Portable {
    const N: usize = 4;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    fn div(self, by: Self) -> Self {
        self.zip(by, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        self * a + b
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn clamp(self, low: f32, high: f32) -> Self {
        Self(self.0.map(|x| x.clamp(low, high)))
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding 1.5 · 2²³ leaves no bits for a fraction; `f32::round_ties_even` may be a library call.
        let magic = Self::splat(12_582_912.0);
        self + magic - magic
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::ops::{Add, Mul, Sub};

    use super::{Job, Lanes};

    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<J: Job>(job: J) -> J::Output {
        job.run::<Avx2>()
    }

    /// # Safety
    /// The processor must have AVX-512F, AVX2 and FMA.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn run_avx512<J: Job>(job: J) -> J::Output {
        job.run::<Avx512>()
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    macro_rules! operators {
        ($type:ident, $add:ident, $sub:ident, $mul:ident) => {
            impl Add for $type {
                type Output = Self;
                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    // SAFETY: only jobs under this type's level have such vectors; so throughout this module.
                    Self(unsafe { $add(self.0, other.0) })
                }
            }
            impl Sub for $type {
                type Output = Self;
                #[inline(always)]
                fn sub(self, other: Self) -> Self {
                    // SAFETY: as for `add`.
                    Self(unsafe { $sub(self.0, other.0) })
                }
            }
            impl Mul for $type {
                type Output = Self;
                #[inline(always)]
                fn mul(self, other: Self) -> Self {
                    // SAFETY: as for `add`.
                    Self(unsafe { $mul(self.0, other.0) })
                }
            }
        };
    }
    operators!(Avx2, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps);
    operators!(Avx512, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps);

    impl Lanes for Avx2 {
        const N: usize = 8;
        const REGISTERS: usize = 16;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm256_set1_ps(value) })
        }
        #[inline(always)]
        fn div(self, by: Self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm256_div_ps(self.0, by.0) })
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm256_fmadd_ps(self.0, a.0, b.0) })
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm256_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn clamp(self, low: f32, high: f32) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), self.0)) })
        }
        #[inline(always)]
        fn round(self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
        }
        #[inline(always)]
        fn exp2_integer(self) -> Self {
            // SAFETY: as for `add`.
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
            }
        }
    }

    /// The mask of the first `len` of 16 lanes, for `len` below 16.
    #[inline(always)]
    fn first(len: usize) -> u16 {
        (1 << len) - 1
    }

    impl Avx512 {
        /// Elements `index` of the 32 of `low` and `high`.
        #[inline(always)]
        fn pick(low: Self, index: [i32; 16], high: Self) -> Self {
            // SAFETY: as for `add`; `index` has the 64 bytes that are read.
            unsafe {
                let index = _mm512_loadu_si512(index.as_ptr().cast());
                Self(_mm512_permutex2var_ps(low.0, index, high.0))
            }
        }
    }

    impl Lanes for Avx512 {
        const N: usize = 16;
        const REGISTERS: usize = 32;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        fn div(self, by: Self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_div_ps(self.0, by.0) })
        }
        #[inline(always)]
        fn mul_add(self, a: Self, b: Self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_fmadd_ps(self.0, a.0, b.0) })
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn clamp(self, low: f32, high: f32) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), self.0)) })
        }
        #[inline(always)]
        fn round(self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
        }
        #[inline(always)]
        fn exp2_integer(self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), self.0) })
        }
        #[inline(always)]
        fn scale(self, n: Self) -> Self {
            // SAFETY: as for `add`.
            Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
        }
        #[inline(always)]
        fn load_or(from: &[f32], fill: f32) -> Self {
            if from.len() >= 16 {
                // SAFETY: just checked.
                return unsafe { Self::load(from.as_ptr()) };
            }
            // SAFETY: as for `add`; lanes beyond the slice are masked out of the read.
            Self(unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(from.len()), from.as_ptr()) })
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            // SAFETY: as for `add`.
            unsafe { _mm512_reduce_add_ps(self.0) }
        }

        #[inline(always)]
        unsafe fn load_deinterleaved(from: *const f32) -> [Self; 4] {
            const EVEN: [i32; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
            const ODD: [i32; 16] = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];
            // SAFETY: the caller promises `4N = 64` elements.
            let [a, b, c, d] = unsafe { [0, 16, 32, 48].map(|i: usize| Self::load(from.add(i))) };
            let (even_low, even_high) = (Self::pick(a, EVEN, b), Self::pick(c, EVEN, d));
            let (odd_low, odd_high) = (Self::pick(a, ODD, b), Self::pick(c, ODD, d));
            [
                Self::pick(even_low, EVEN, even_high),
                Self::pick(odd_low, EVEN, odd_high),
                Self::pick(even_low, ODD, even_high),
                Self::pick(odd_low, ODD, odd_high),
            ]
        }

        #[inline(always)]
        fn interleave([a, b, c, d]: [Self; 4]) -> [Self; 4] {
            const LOW: [i32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
            const HIGH: [i32; 16] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];
            let (even_low, even_high) = (Self::pick(a, LOW, c), Self::pick(a, HIGH, c));
            let (odd_low, odd_high) = (Self::pick(b, LOW, d), Self::pick(b, HIGH, d));
            [
                Self::pick(even_low, LOW, odd_low),
                Self::pick(even_low, HIGH, odd_low),
                Self::pick(even_high, LOW, odd_high),
                Self::pick(even_high, HIGH, odd_high),
            ]
        }
    }
}
