//! Named tensors with random values.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use xdit_core::noise::Generator;

/// The tensors of one component.
pub struct Tensors {
    generator: Generator,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Tensors {
    /// Starts without tensors; the values to come depend on `seed` and on the order of the calls.
    pub fn new(seed: u64) -> Self {
        Self { generator: Generator::from_seed(seed), tensors: BTreeMap::new() }
    }

    /// Adds a normally distributed tensor.
    pub fn normal(&mut self, name: impl Into<String>, shape: &[usize], mean: f32, deviation: f32) {
        let values = self.generator.randn(shape.iter().product());
        let bytes = values.iter().flat_map(|value| (mean + deviation * value).to_le_bytes()).collect();
        self.tensors.insert(name.into(), (shape.to_vec(), bytes));
    }

    /// Adds a linear layer that multiplies the deviation of its input by about `gain`.
    pub fn linear(&mut self, name: &str, c_in: usize, c_out: usize, gain: f32) {
        self.weight(name, c_in, c_out, gain);
        self.normal(format!("{name}.bias"), &[c_out], 0.0, 0.02);
    }

    /// Adds a linear layer without a bias.
    pub fn weight(&mut self, name: &str, c_in: usize, c_out: usize, gain: f32) {
        self.normal(format!("{name}.weight"), &[c_out, c_in], 0.0, gain / (c_in as f32).sqrt());
    }

    /// Adds a convolution with a kernel that covers one pixel, or one patch without overlap.
    pub fn patch_conv(&mut self, name: &str, c_in: usize, c_out: usize, kernel: usize, gain: f32) {
        let deviation = gain / ((c_in * kernel * kernel) as f32).sqrt();
        self.normal(format!("{name}.weight"), &[c_out, c_in, kernel, kernel], 0.0, deviation);
        self.normal(format!("{name}.bias"), &[c_out], 0.0, 0.02);
    }

    /// Adds a 3×3 convolution that mixes channels at random and blurs, for soft pictures.
    pub fn soft_conv(&mut self, name: &str, c_in: usize, c_out: usize, gain: f32) {
        let mix = self.generator.randn(c_out * c_in);
        let deviation = gain / (c_in as f32).sqrt();
        let kernel = [1.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 2.0, 1.0].map(|weight: f32| weight / 16.0);
        let weights = mix.iter().flat_map(|mix| kernel.map(|weight| deviation * mix * weight));
        let bytes = weights.flat_map(f32::to_le_bytes).collect();
        self.tensors.insert(format!("{name}.weight"), (vec![c_out, c_in, 3, 3], bytes));
        self.normal(format!("{name}.bias"), &[c_out], 0.0, 0.02);
    }

    /// Adds a norm with scale and shift.
    pub fn norm(&mut self, name: &str, c: usize) {
        self.normal(format!("{name}.weight"), &[c], 1.0, 0.1);
        self.normal(format!("{name}.bias"), &[c], 0.0, 0.1);
    }

    /// The contents of a safetensors file with all tensors.
    pub fn serialize(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (shape, bytes))| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes)
                    .expect("the number of bytes matches the shape"),
            )
        });
        safetensors::serialize(views, None).expect("valid tensors can be serialized")
    }
}
