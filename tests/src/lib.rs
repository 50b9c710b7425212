//! Shared parts of the integration tests: golden cases, a toy transformer with its oracle, worlds to run it in, and
//! the distance between tensors.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use xdit_core::Result;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::weights::Weights;

pub mod full_size;
pub mod in_order;
pub mod on_ranks;
pub mod oracle;
pub mod probe;
pub mod published;
pub mod recorded;
pub mod sparse;
pub mod toy;
pub mod verified;
pub mod watchdog;
pub mod world;
pub mod wrapped;

/// The folder of the golden data: `$XDIT_GOLDENS`, where the tests were compiled on another machine, or the project's.
pub fn goldens() -> PathBuf {
    let folder = std::env::var_os("XDIT_GOLDENS").map(PathBuf::from);
    folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens"))
}

/// A copy of the golden checkpoint `name` with `change` applied to the JSON in `file`.
pub fn changed(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for component in std::fs::read_dir(goldens().join(name)).unwrap().map(Result::unwrap) {
        let to = copy.path().join(component.file_name());
        if component.path().is_file() {
            std::fs::copy(component.path(), to).unwrap();
            continue;
        }
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(component.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    let path = copy.path().join(file);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
    copy
}

/// The folder of a checkpoint that was recorded with the real xDiT and diffusers: `$XDIT_REFERENCE`, or a folder
/// beside the project. It is not part of the project, so tests that need it are ignored by default.
///
/// # Panics
/// If the folder does not exist.
pub fn outside_reference() -> PathBuf {
    let folder = std::env::var_os("XDIT_REFERENCE")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference"));
    let there = folder.join("pixart-alpha-512.expected.json").is_file();
    assert!(there, "no outside reference in `{}`; set XDIT_REFERENCE to its folder", folder.display());
    folder
}

/// The device that tests run on.
pub fn device() -> Device {
    Device::flex()
}

/// The device that `$XDIT_TEST_DEVICE` names, for tests of devices beside the CPU.
///
/// # Panics
/// If the variable is not set, or the device cannot be used.
pub fn device_under_test() -> Device {
    let name = std::env::var("XDIT_TEST_DEVICE").expect("XDIT_TEST_DEVICE names a device, such as `cuda`");
    xdit_core::device::find(&name).unwrap_or_else(|error| panic!("{error}"))
}

/// A recorded run of the reference implementation.
pub struct Case {
    /// The parameters of the run.
    pub json: Value,
    bytes: Vec<u8>,
}

impl Case {
    /// The case `name` of the committed goldens.
    pub fn load(name: &str) -> Self {
        Self::open(&goldens().join("cases").join(name))
    }

    /// The case whose two files are `stem` with `.json` and `.safetensors`.
    pub fn open(stem: &Path) -> Self {
        let file = |extension: &str| {
            stem.with_file_name(format!("{}.{extension}", stem.file_name().unwrap().to_str().unwrap()))
        };
        let read =
            |extension| std::fs::read(file(extension)).unwrap_or_else(|e| panic!("{}: {e}", stem.display()));
        Self { json: serde_json::from_slice(&read("json")).unwrap(), bytes: read("safetensors") }
    }

    /// The recorded f32 tensor `name`.
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let (shape, data) = self.f32(name);
        let shape: [usize; D] =
            shape.try_into().unwrap_or_else(|shape| panic!("`{name}` has shape {shape:?}"));
        Tensor::from_data(TensorData::new(data, shape), (&device(), DType::F32))
    }

    /// The shape and values of an f32 tensor.
    pub fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, dtype, bytes) = self.raw(name);
        assert_eq!(dtype, Dtype::F32, "`{name}`");
        (shape, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The values of an integer or boolean tensor.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        let (_, dtype, bytes) = self.raw(name);
        match dtype {
            Dtype::I64 => bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I32 => {
                bytes.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| i64::from(b)).collect(),
            other => panic!("`{name}` is {other:?}"),
        }
    }

    fn raw(&self, name: &str) -> (Vec<usize>, Dtype, &[u8]) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("`{name}`: {e}"));
        let start = view.data().as_ptr() as usize - self.bytes.as_ptr() as usize;
        (view.shape().to_vec(), view.dtype(), &self.bytes[start..start + view.data().len()])
    }
}

/// The options and the model of component `name` of the case's checkpoint; the weight files are named `stem`.
pub fn component<C, M>(
    case: &Case,
    name: &str,
    stem: &str,
    read: impl FnOnce(Config) -> Result<C>,
    load: impl FnOnce(&C, &Weights) -> Result<M>,
) -> (C, M) {
    let dir = goldens().join(case.json["checkpoint"].as_str().unwrap()).join(name);
    let config = read(Config::read(&dir.join("config.json")).unwrap()).unwrap();
    let weights = Weights::new(Checkpoint::open(&dir, stem, None).unwrap(), &device(), DType::F32);
    let model = load(&config, &weights).unwrap_or_else(|e| panic!("{e}"));
    weights.finish().unwrap_or_else(|e| panic!("{e}"));
    (config, model)
}

/// The bits of all values. In this comparison NaN equals itself, and 0 differs from −0.
pub fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    let values = tensor.to_data().try_to_vec::<f32>().expect("an f32 tensor");
    values.into_iter().map(f32::to_bits).collect()
}

/// ‖actual − expected‖ / ‖expected‖, in f64.
///
/// # Panics
/// If the shapes differ, or a value is not finite.
pub fn relative_l2<const D: usize>(actual: &Tensor<D>, expected: &Tensor<D>) -> f64 {
    assert_eq!(actual.dims(), expected.dims(), "shapes differ");
    let values = |t: &Tensor<D>| t.clone().cast(DType::F32).into_data().try_to_vec::<f32>().unwrap();
    let (actual, expected) = (values(actual), values(expected));
    assert!(actual.iter().all(|x| x.is_finite()), "a value is not finite");
    let square = |x: f64| x * x;
    let error: f64 = actual.iter().zip(&expected).map(|(&a, &e)| square(f64::from(a) - f64::from(e))).sum();
    let norm: f64 = expected.iter().map(|&e| square(f64::from(e))).sum();
    (error / norm).sqrt()
}

/// Fails with the distance if it exceeds `tolerance`.
#[track_caller]
pub fn assert_close<const D: usize>(what: &str, actual: &Tensor<D>, expected: &Tensor<D>, tolerance: f64) {
    let error = relative_l2(actual, expected);
    println!("{what}: relative L2 error {error:.2e} (at most {tolerance:.0e})");
    assert!(error <= tolerance, "{what}: relative L2 error {error:.2e} is over {tolerance:.0e}");
}
