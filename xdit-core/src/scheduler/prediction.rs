//! The quantity that a model predicts, and its conversion to clean data or noise.

use burn::tensor::Tensor;

/// The meaning of the model's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prediction {
    /// The noise ε in x = α · data + σ · ε.
    Epsilon,
    /// The data itself.
    Sample,
    /// The velocity v = α · ε - σ · data.
    Velocity,
    /// The flow from data to noise, ε - data, where α + σ = 1.
    Flow,
}

impl Prediction {
    /// The choices that every scheduler has, with their names in diffusers.
    pub(super) const NAMES: [(&str, Self); 3] =
        [("epsilon", Self::Epsilon), ("sample", Self::Sample), ("v_prediction", Self::Velocity)];

    /// The predicted data, at signal level `alpha` and noise level `sigma`.
    pub(super) fn data(self, sample: Tensor<3>, output: Tensor<3>, alpha: f32, sigma: f32) -> Tensor<3> {
        match self {
            Self::Epsilon => (sample - output * sigma) / alpha,
            Self::Sample => output,
            Self::Velocity => sample * alpha - output * sigma,
            Self::Flow => sample - output * sigma,
        }
    }

    /// The predicted data in data + σ · ε, where the signal has level one. Outputs belong to the sample that was
    /// scaled to variance one.
    pub(super) fn data_beside_noise(self, sample: Tensor<3>, output: Tensor<3>, sigma: f32) -> Tensor<3> {
        match self {
            Self::Velocity => {
                let variance = sigma * sigma + 1.0;
                output * (-sigma / variance.sqrt()) + sample / variance
            }
            Self::Epsilon | Self::Flow => sample - output * sigma,
            Self::Sample => output,
        }
    }

    /// The predicted noise, at signal level `alpha` and noise level `sigma`.
    pub(super) fn noise(self, sample: Tensor<3>, output: Tensor<3>, alpha: f32, sigma: f32) -> Tensor<3> {
        match self {
            Self::Epsilon => output,
            Self::Sample => (sample - output * alpha) / sigma,
            Self::Velocity => output * alpha + sample * sigma,
            Self::Flow => sample + output * alpha,
        }
    }
}

/// A sample in data + σ · ε, scaled to variance one, as the model expects it.
pub(super) fn to_unit_variance(sample: Tensor<3>, sigma: f32) -> Tensor<3> {
    sample / (sigma * sigma + 1.0).sqrt()
}
