//! Random values in place of those in files, for benchmarks of checkpoints that are not there.

use burn::tensor::{DType, Device, Tensor};

use super::Stay;
use crate::noise::Generator;

/// The number of different values. Larger tensors repeat them.
const LEN: usize = 1 << 20;

/// The standard deviation of biases, and the variance of the outputs of a matrix over that of its inputs.
const BIAS: f64 = 0.02;
const GAIN: f64 = 1.0;

/// Normally distributed values on a device.
pub struct RandomValues(Tensor<1>);

impl RandomValues {
    /// Creates the values.
    pub fn new(device: &Device) -> Self {
        let values = Generator::from_seed(0).randn(LEN);
        Self(Tensor::<1>::from_data(values.as_slice(), (device, DType::F32)))
    }

    /// A tensor with values of mean zero. In a matrix or convolution, the variance is one over the number of inputs.
    pub fn tensor<const D: usize>(&self, shape: [usize; D], dtype: DType, stay: Stay) -> Tensor<D> {
        let len: usize = shape.iter().product();
        if len == 0 {
            return Tensor::zeros(shape, (&self.0.device(), dtype));
        }
        let inputs: usize = shape[1..].iter().product();
        let deviation = if D > 1 { GAIN / (inputs.max(1) as f64).sqrt() } else { BIAS };
        let values = match len > LEN {
            true => self.0.clone().repeat_dim(0, len.div_ceil(LEN)),
            false => self.0.clone(),
        };
        let values = values.narrow(0, 0, len);
        // As with values of files, only the result is in persistent memory.
        let device = self.0.device();
        let values = match dtype {
            DType::F32 => stay.allocate(&device, values, |values| values * deviation),
            _ => stay.allocate(&device, values * deviation, |values| values.cast(dtype)),
        };
        values.reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_keep_the_variance() {
        let random = RandomValues::new(&Device::flex());
        let matrix = random.tensor([2048, 1024], DType::F32, Stay::Long);
        let x = Generator::from_seed(1).randn(1024);
        let x = Tensor::<1>::from_data(x.as_slice(), (&Device::flex(), DType::F32)).reshape([1024, 1]);
        assert_eq!(matrix.dims(), [2048, 1024]);
        let outputs = matrix.matmul(x).powf_scalar(2.0).mean().into_scalar::<f32>();
        assert!((0.8..1.25).contains(&outputs), "{outputs}");
        assert_eq!(random.tensor([0, 4], DType::F32, Stay::Long).dims(), [0, 4]);
        assert_eq!(random.tensor([7], DType::F16, Stay::Briefly).dtype(), DType::F16);
    }
}
