//! Latents as a safetensors file with the key `latents`, `[n, c, h, w]` in f32.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use xdit_core::{Error, Result};

const KEY: &str = "latents";

/// The contents of a safetensors file with `latents`, one after the other.
///
/// # Shapes
/// `latents`: each `[1, c, h, w]`, all alike.
pub fn encode_latents(latents: &[TensorData]) -> Vec<u8> {
    let mut shape = latents[0].shape().to_vec();
    shape[0] = latents.len();
    let values = latents.iter().flat_map(|latents| latents.as_slice::<f32>().expect("latents are f32"));
    let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape, &bytes).expect("the number of bytes matches the shape");
    safetensors::serialize([(KEY, view)], None).expect("one valid tensor can be serialized")
}

/// Reads the latents from the file `path`.
///
/// # Errors
/// If the file cannot be read, or does not contain latents of this form.
pub fn decode_latents(path: &Path, device: &Device) -> Result<Tensor<4>> {
    let shown = path.display();
    let expected = "give a safetensors file with the key `latents`, [n, c, h, w] in f32";
    let bytes = std::fs::read(path)
        .map_err(|error| Error::failure(format!("cannot read `{shown}`: {error}")).hint(expected))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        Error::failure(format!("`{shown}` is not a valid safetensors file: {error}")).hint(expected)
    })?;
    let latents = file.tensor(KEY).map_err(|_| {
        let keys: Vec<_> = file.names().into_iter().map(|name| format!("`{name}`")).collect();
        let only = if keys.is_empty() { String::new() } else { format!(", only {}", keys.join(", ")) };
        Error::usage(format!("`{shown}` has no tensor `{KEY}`{only}")).hint(expected)
    })?;
    let &[n, c, h, w] = latents.shape() else {
        let message = format!("`{KEY}` in `{shown}` has shape `{:?}`, not four dimensions", latents.shape());
        return Err(Error::usage(message).hint(expected));
    };
    if latents.dtype() != Dtype::F32 {
        let message = format!("`{KEY}` in `{shown}` has type `{:?}`, not `F32`", latents.dtype());
        return Err(Error::usage(message).hint(expected));
    }
    let values: Vec<f32> =
        latents.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::usage(format!("`{KEY}` in `{shown}` contains values that are not finite")));
    }
    Ok(Tensor::from_data(TensorData::new(values, [n, c, h, w]), (device, DType::F32)))
}
