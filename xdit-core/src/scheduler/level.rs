//! Levels of signal and noise, as solvers that integrate over the signal-to-noise ratio use them.

/// The signal level α, the noise level σ, and half the log signal-to-noise ratio, λ = ln(α / σ).
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) alpha: f32,
    pub(super) sigma: f32,
    pub(super) lambda: f32,
}

impl Level {
    /// The level of `sigma`, which is a share of the sample in flow matching, and otherwise relative to the signal.
    pub(super) fn new(sigma: f32, flow: bool) -> Self {
        let (alpha, sigma) = if flow {
            (1.0 - sigma, sigma)
        } else {
            let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
            (alpha, sigma * alpha)
        };
        Self { alpha, sigma, lambda: ln(alpha) - ln(sigma) }
    }
}

/// The logarithm, correctly rounded except for rare ties.
pub(super) fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// The exponential, correctly rounded except for rare ties.
pub(super) fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// The exponential less one, correctly rounded except for rare ties.
pub(super) fn exp_m1(x: f32) -> f32 {
    f64::from(x).exp_m1() as f32
}
