//! Short vectors of f32, with one type for each instruction set, and the choice between them at run time.

use std::ops::{Add, Mul, Sub};

use burn::tensor::{bf16, f16};

#[cfg(target_arch = "x86_64")]
mod x86;

/// A vector of [`N`](Self::N) f32.
///
/// Code over it is generic, and `#[inline(always)]` from [`Vectorized::run`] down: [`Level::run`] compiles it once for
/// each instruction set. The operations of a type may only run at the level that the type belongs to, so only
/// implementors of `Vectorized` use them.
pub(crate) trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// The number of elements of a vector; it divides 16.
    const N: usize;
    /// The number of vectors that fit into the processor's registers.
    const REGISTERS: usize;

    /// # Safety
    /// `from` must be valid for reading `N` elements.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` must be valid for writing `N` elements.
    unsafe fn store(self, to: *mut f32);
    /// Loads `N` bf16 numbers, widened.
    ///
    /// # Safety
    /// `from` must be valid for reading `N` elements.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// Stores the elements, rounded to the nearest bf16, ties to even.
    ///
    /// # Safety
    /// `to` must be valid for writing `N` elements.
    unsafe fn store_bf16(self, to: *mut bf16);
    /// Loads `N` f16 numbers, widened.
    ///
    /// # Safety
    /// `from` must be valid for reading `N` elements.
    unsafe fn load_f16(from: *const f16) -> Self;
    /// Stores the elements, rounded to the nearest f16, ties to even.
    ///
    /// # Safety
    /// `to` must be valid for writing `N` elements.
    unsafe fn store_f16(self, to: *mut f16);
    fn splat(value: f32) -> Self;
    fn div(self, by: Self) -> Self;
    /// `1 / self`, accurate to 2 ulp if both are normal numbers.
    #[inline(always)]
    fn reciprocal(self) -> Self {
        Self::splat(1.0).div(self)
    }
    /// `self · a + b`, rounded once if the processor supports it.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger element of each pair; that of `other` if either is NaN.
    fn max(self, other: Self) -> Self;
    /// Each element, clamped to `low..=high`.
    fn clamp(self, low: f32, high: f32) -> Self;
    /// Each element, rounded to the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `2ⁿ` for integers within `-126..=127`.
    fn exp2_integer(self) -> Self;
    /// Each element swapped with its neighbour: `[1, 0, 3, 2, …]`.
    fn swap_pairs(self) -> Self;

    /// `self · 2ⁿ` for integers `n` within `-252..=252`, in two steps, because `2ⁿ` alone may be out of range even if
    /// the product is not.
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        let half = (n * Self::splat(0.5)).round();
        self * half.exp2_integer() * (n - half).exp2_integer()
    }

    /// The first elements of `from`, with `fill` in place of missing ones.
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
        // Stores powers of two instead of using a mask: rows are often stored one right after another, and a masked
        // write would delay the read of the next row, whose memory it covers without writing to it.
        let mut at = 0;
        for len in [8, 4, 2, 1] {
            if to.len() & len != 0 {
                to[at..at + len].copy_from_slice(&whole[at..at + len]);
                at += len;
            }
        }
    }

    /// The sum of the elements, computed by halving.
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

    /// Loads `4N` elements as four vectors: every fourth element, starting at the first, second, third and fourth.
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
        unsafe {
            [
                Self::load(phases[0].as_ptr()),
                Self::load(phases[1].as_ptr()),
                Self::load(phases[2].as_ptr()),
                Self::load(phases[3].as_ptr()),
            ]
        }
    }

    /// The inverse of [`load_deinterleaved`](Self::load_deinterleaved): stores the `4N` elements in order.
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
        unsafe {
            let from = together.as_ptr();
            [
                Self::load(from),
                Self::load(from.add(Self::N)),
                Self::load(from.add(2 * Self::N)),
                Self::load(from.add(3 * Self::N)),
            ]
        }
    }
}

/// Work that is generic over [`Lanes`].
pub(crate) trait Vectorized {
    type Output;
    /// Does the work. It must be `#[inline(always)]`, and so must everything that it calls; closures cannot be.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// An instruction set of this processor.
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

    /// All levels of this processor, the best last.
    pub(crate) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];
            // Every processor with AVX2 supports F16C, but a hypervisor may hide it.
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match (avx2, is_x86_feature_detected!("avx512f")) {
                (true, true) => &ALL,
                (true, false) => &ALL[..2],
                (false, _) => &ALL[..1],
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        &[Level::Portable]
    }

    /// The number of elements of a vector at this level.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Self::Portable => Portable::N,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::N,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::Avx512::N,
        }
    }

    /// Runs `work` with the vectors of this level.
    pub(crate) fn run<W: Vectorized>(self, work: W) -> W::Output {
        match self {
            Self::Portable => work.run::<Portable>(),
            // SAFETY: levels beyond `Portable` are only created by `available`, after detection.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::run_avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { x86::run_avx512(work) },
        }
    }
}

/// Vectors of four elements for any processor.
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
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[bf16; 4]>().read_unaligned() }.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[bf16; 4]>().write_unaligned(self.0.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f16; 4]>().write_unaligned(self.0.map(f16::from_f32)) }
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
        // Adding 1.5 · 2²³ leaves no bits for a fraction. `f32::round_ties_even` may be a library call.
        let magic = Self::splat(12_582_912.0);
        self + magic - magic
    }
    #[inline(always)]
    fn exp2_integer(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32)))
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        let [a, b, c, d] = self.0;
        Self([b, a, d, c])
    }
}
