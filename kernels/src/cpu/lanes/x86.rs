//! The vectors of x86-64.

use std::arch::x86_64::*;
use std::ops::{Add, Mul, Sub};

use burn::tensor::{bf16, f16};

use super::{Lanes, Vectorized};

/// # Safety
/// The processor must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<W: Vectorized>(work: W) -> W::Output {
    work.run::<Avx2>()
}

/// # Safety
/// The processor must have AVX-512F, AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<W: Vectorized>(work: W) -> W::Output {
    work.run::<Avx512>()
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
                // SAFETY: such vectors exist only in work at this type's level; this holds throughout the module.
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
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe {
            // Adds just under half a unit, or exactly half if the last bit that stays is odd.
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_add_epi32(bits, half);
            // A NaN must not become infinite or wrap around: its upper half is kept, made quiet.
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let upper = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm256_packus_epi32(upper, upper);
            let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
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
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        // SAFETY: as for `add`.
        Self(unsafe { _mm256_permute_ps::<0b10_11_00_01>(self.0) })
    }
}

/// The mask of the first `len` of 16 lanes, for `len` below 16.
#[inline(always)]
fn first(len: usize) -> u16 {
    (1 << len) - 1
}

impl Avx512 {
    /// The elements of `low` and `high`, 32 together, at `index`.
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
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe {
            // As in `Avx2`: adds just under half a unit, or exactly half if the last bit that stays is odd.
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, half);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm512_set1_epi32(0x0040_0000);
            let upper = _mm512_srli_epi32::<16>(_mm512_mask_or_epi32(rounded, nan, bits, quiet));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(upper));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
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
    fn reciprocal(self) -> Self {
        // Fourteen digits, then a step of Newton's method; a division takes as long as the rest of an activation.
        // SAFETY: a value of this type exists only where AVX-512 does.
        let first = Self(unsafe { _mm512_rcp14_ps(self.0) });
        let error = first.mul_add(self, Self::splat(-1.0));
        error.mul_add(Self::splat(0.0) - first, first)
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
    fn swap_pairs(self) -> Self {
        // SAFETY: as for `add`.
        Self(unsafe { _mm512_permute_ps::<0b10_11_00_01>(self.0) })
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
        let [a, b, c, d] = unsafe {
            [Self::load(from), Self::load(from.add(16)), Self::load(from.add(32)), Self::load(from.add(48))]
        };
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
