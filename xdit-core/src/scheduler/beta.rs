//! Quantiles of the beta distribution that "beta" noise levels follow.

/// Both parameters of the distribution.
const SHAPE: f64 = 0.6;

/// More terms than the series below needs for f64: each is at most half of the one before.
const TERMS: usize = 64;

/// The quantile of `share`, from 0 to 1, of the beta distribution with both parameters 0.6, to about 1e-15.
///
/// # Source
/// "Beta Sampling is All You Need" (arXiv 2407.12173); diffusers 0.42.1 calls `scipy.stats.beta.ppf`.
pub(super) fn quantile(share: f64) -> f64 {
    // The distribution is symmetric, and the series is for its lower half.
    if share > 0.5 {
        return 1.0 - quantile(1.0 - share);
    }
    if share <= 0.0 {
        return 0.0;
    }
    // The integral of the density up to 1/2 is one half of the whole.
    let area = share * 2.0 * integral(0.5);
    // The first term of the series, solved for x, is at least as large as the solution.
    let mut x = (area * SHAPE).powf(1.0 / SHAPE).min(0.5);
    for _ in 0..20 {
        let density = (x * (1.0 - x)).powf(SHAPE - 1.0);
        let next = x - (integral(x) - area) / density;
        if (next - x).abs() <= f64::EPSILON * x {
            return next;
        }
        x = next;
    }
    x
}

/// ∫ (t (1 - t))^(a - 1) dt from 0 to `x` ≤ 1/2, where a is [`SHAPE`]: x^a Σ (1 - a)ₙ xⁿ / (n! (a + n)).
fn integral(x: f64) -> f64 {
    let (mut power, mut sum) = (1.0, 0.0);
    for n in 0..TERMS {
        let n = n as f64;
        sum += power / (SHAPE + n);
        power *= (1.0 - SHAPE + n) / (n + 1.0) * x;
    }
    x.powf(SHAPE) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `scipy.stats.beta.ppf(share, 0.6, 0.6)`, SciPy 1.17.1.
    #[test]
    fn quantiles_equal_those_of_scipy() {
        for (share, expected) in SCIPY {
            let found = quantile(share);
            assert!((found - expected).abs() <= 4e-15 * expected, "{share}: {found} and {expected}");
        }
    }

    const SCIPY: [(f64, f64); 9] = [
        (0.0, 0.0),
        (1e-06, 1.8558824624053043e-10),
        (0.01, 0.0008612388215429059),
        (0.1, 0.03958440558878085),
        (0.25, 0.17568037865269498),
        (0.5, 0.5000000000000001),
        (0.6, 0.6372990092467856),
        (0.9, 0.9604155944112192),
        (1.0, 1.0),
    ];
}
