//! The device, type and version of one test, its tensors, and the tolerance of its results.

use std::cell::Cell;

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The version of an operation that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The version in plain Burn operations.
    Reference,
    /// The version that the public function selects for the device.
    Own,
}

/// A cell of the matrix.
pub struct Setting {
    operation: &'static str,
    pub dtype: DType,
    pub version: Version,
    device: Device,
    /// The largest error so far, relative to the tolerance.
    worst: Cell<f64>,
}

/// A device and its name in `XDIT_TEST_DEVICE`.
struct Known {
    name: &'static str,
    device: fn() -> Device,
}

const DEVICES: &[Known] = &[
    Known { name: "flex", device: Device::flex },
    #[cfg(feature = "cuda")]
    Known { name: "cuda", device: || Device::cuda(0) },
    #[cfg(feature = "wgpu")]
    Known { name: "wgpu", device: || Device::wgpu(burn::tensor::DeviceKind::DefaultDevice) },
];

fn device_name() -> String {
    std::env::var("XDIT_TEST_DEVICE").unwrap_or_else(|_| "flex".into())
}

fn device() -> Device {
    let wanted = device_name();
    let Some(known) = DEVICES.iter().find(|known| known.name == wanted) else {
        let names = DEVICES.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
        panic!("XDIT_TEST_DEVICE is `{wanted}`; this build has: {names}");
    };
    (known.device)()
}

/// For the rounding of f32 in sums of up to a few thousand terms, with exponentials accurate to a few ulp.
const F32: f64 = 1e-6;

impl Setting {
    pub fn new(operation: &'static str, dtype: DType, version: Version) -> Self {
        Self { operation, dtype, version, device: device(), worst: Cell::new(0.0) }
    }

    /// Runs all cases of an operation, and prints the operation, the device, and the error relative to the tolerance.
    ///
    /// WebGPU has no bf16, and not every GPU has f16 there. The CPU and CUDA have all types.
    pub fn run(self, cases: impl FnOnce(&Self)) {
        if ["vulkan", "wgpu"].contains(&device_name().as_str()) && !self.device.supports_dtype(self.dtype) {
            println!("{} {:?}: left out, as {} lacks the type", self.operation, self.dtype, device_name());
            return;
        }
        cases(&self);
        let Self { operation, dtype, version, worst, .. } = &self;
        let (device, share) = (device_name(), 100.0 * worst.get());
        println!("{operation} {dtype:?} {version:?} on {device}: {share:.0} % of the allowed error");
    }

    /// The tolerance of a result that is rounded `roundings` times to the type of the test.
    ///
    /// It is half a unit in the last place for each rounding, relative to the result: 2⁻¹¹ in f16 and 2⁻⁸ in bf16,
    /// which have 11 and 8 binary digits. Everything else is computed in f32.
    pub fn tolerance(&self, roundings: u32) -> f64 {
        let rounding = match self.dtype {
            DType::F32 => self.tf32(),
            DType::F16 => 1.0 / 2048.0,
            DType::BF16 => 1.0 / 256.0,
            other => panic!("no test of {other:?}"),
        };
        F32 + f64::from(roundings) * rounding
    }

    /// The distance allowed to a result that is f32 whatever the type of the test is.
    pub fn f32_tolerance(&self) -> f64 {
        F32 + if self.dtype == DType::F32 { self.tf32() } else { 0.0 }
    }

    /// The rounding of Burn's own products in f32 on CUDA, which only references use: TF32 has 11 binary digits.
    fn tf32(&self) -> f64 {
        if self.version == Version::Reference && device_name() == "cuda" { 1.0 / 2048.0 } else { 0.0 }
    }

    /// The number of roundings in the version, if it differs between the two.
    pub fn roundings(&self, own: u32, reference: u32) -> u32 {
        if self.version == Version::Own { own } else { reference }
    }

    /// Whether the device's own version consists of several kernels with roundings between them, unlike Flex's.
    pub fn composed(&self) -> bool {
        device_name() != "flex"
    }

    /// The number of roundings of the reference's matrix product. It is one in principle. Flex sums f16 in f16 if the
    /// processor supports it, and CubeCL's backends sum images in the type of their numbers, which amounts to a few more
    /// for the hundreds of terms here.
    pub fn of_product(&self) -> u32 {
        if self.dtype == DType::F16 || self.composed() { 7 } else { 1 }
    }

    /// A tensor with the type of the test.
    pub fn tensor<const D: usize>(&self, data: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        self.typed(data, shape, self.dtype)
    }

    /// A tensor of `dtype`.
    pub fn typed<const D: usize>(&self, data: Vec<f32>, shape: [usize; D], dtype: DType) -> Tensor<D> {
        Tensor::from_data(TensorData::new(data, shape), (&self.device, dtype))
    }

    /// Normally distributed numbers around `centre`.
    pub fn normal<const D: usize>(
        &self,
        seed: u64,
        shape: [usize; D],
        centre: f64,
        deviation: f64,
    ) -> Tensor<D> {
        let numbers = normal(seed, shape.iter().product());
        self.tensor(numbers.iter().map(|x| (centre + deviation * x) as f32).collect(), shape)
    }

    /// Standard normal numbers.
    pub fn random<const D: usize>(&self, seed: u64, shape: [usize; D]) -> Tensor<D> {
        self.normal(seed, shape, 0.0, 1.0)
    }

    /// `len` elements along `dim`, starting at `first`. Unlike in Burn, `len` may be 0.
    pub fn narrow<const D: usize>(&self, x: &Tensor<D>, dim: usize, first: usize, len: usize) -> Tensor<D> {
        if len > 0 {
            return x.clone().narrow(dim, first, len);
        }
        let mut shape = x.dims();
        shape[dim] = 0;
        self.typed(vec![], shape, x.dtype())
    }

    /// `x` in several memory layouts: contiguous, between other features, with its first two or its last two
    /// dimensions swapped, and as an image whose channels lie together.
    pub fn layouts<const D: usize>(&self, x: &Tensor<D>) -> Vec<Tensor<D>> {
        if x.shape().num_elements() == 0 {
            return vec![x.clone()];
        }
        let between = Tensor::cat(vec![x.clone(), x.clone(), x.clone()], D - 1);
        let features = x.dims()[D - 1];
        let mut layouts = vec![x.clone(), between.narrow(D - 1, features, features)];
        for (a, b) in [(0, 1), (D.saturating_sub(2), D - 1)].into_iter().filter(|_| D > 1) {
            let swapped = x.clone().swap_dims(a, b);
            let (data, shape) = (values(&swapped), swapped.dims());
            let data = data.into_iter().map(|x| x as f32).collect();
            layouts.push(self.typed(data, shape, x.dtype()).swap_dims(a, b));
        }
        if D == 4 {
            layouts.push(self.channels_together(x));
        }
        layouts
    }

    /// `x` with its second dimension innermost in memory.
    pub fn channels_together<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        let by_pixel = x.clone().swap_dims(1, 2).swap_dims(2, 3);
        let (data, shape) = (values(&by_pixel), by_pixel.dims());
        let data = data.into_iter().map(|x| x as f32).collect();
        self.typed(data, shape, x.dtype()).swap_dims(2, 3).swap_dims(1, 2)
    }

    /// Asserts that `actual` is within the [`tolerance`](Self::tolerance) for `roundings` of `expected`, and has the
    /// type of the test.
    #[track_caller]
    pub fn close<const D: usize>(
        &self,
        case: &str,
        actual: &Tensor<D>,
        (expected, shape): (&[f64], [usize; D]),
        roundings: u32,
    ) {
        assert_eq!(actual.dtype(), self.dtype, "{case}");
        self.near(case, actual, (expected, shape), self.tolerance(roundings));
    }

    /// Asserts that `actual` is f32 and accurate up to the rounding of f32.
    #[track_caller]
    pub fn close_f32<const D: usize>(
        &self,
        case: &str,
        actual: &Tensor<D>,
        (expected, shape): (&[f64], [usize; D]),
    ) {
        assert_eq!(actual.dtype(), DType::F32, "{case}");
        self.near(case, actual, (expected, shape), self.f32_tolerance());
    }

    #[track_caller]
    fn near<const D: usize>(
        &self,
        case: &str,
        actual: &Tensor<D>,
        (expected, shape): (&[f64], [usize; D]),
        tolerance: f64,
    ) {
        assert_eq!(actual.dims(), shape, "{case}");
        let actual = values(actual);
        assert_eq!(actual.len(), expected.len(), "{case}");
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let distance = norm(&mut actual.iter().zip(expected).map(|(a, e)| a - e));
        let error = if distance == 0.0 { 0.0 } else { distance / norm(&mut expected.iter().copied()) };
        assert!(error <= tolerance, "{case}: error {error:.2e} of {tolerance:.2e} allowed");
        self.worst.set(self.worst.get().max(error / tolerance));
    }
}

/// The elements of `x` in order.
pub fn values<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
    let data = x.clone().cast(DType::F32).into_data();
    data.try_into_vec::<f32>().expect("f32").into_iter().map(f64::from).collect()
}

/// Normally distributed numbers that depend only on `seed`.
fn normal(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len)
        .map(|_| (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
        .collect()
}
