//! The values of a tensor in a file, as the type that is wanted.

use std::ops::Range;

use burn::tensor::{AllocationProperty, Bytes, DType, Element, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::checkpoint::Entry;

/// The bytes of `entry` in `range` where they lie in the mapped file, if they can be used as they are.
pub fn mapped(entry: &Entry, range: Range<usize>, dtype: DType) -> Option<Bytes> {
    let alignment = match (entry.dtype, dtype) {
        (Dtype::F32, DType::F32) => align_of::<f32>(),
        (Dtype::F16, DType::F16) | (Dtype::BF16, DType::BF16) => align_of::<f16>(),
        _ => return None,
    };
    let bytes = entry.bytes.slice(range);
    let aligned = bytes.as_ptr().align_offset(alignment) == 0;
    aligned.then(|| Bytes::from_shared(bytes, AllocationProperty::File))
}

/// The values of `entry` in `ranges` of its bytes, one range after the other. Nothing else is in memory.
///
/// # Errors
/// If the file cannot be read.
pub fn read<const D: usize>(
    entry: &Entry,
    ranges: impl IntoIterator<Item = Range<usize>>,
    shape: [usize; D],
    dtype: DType,
) -> std::io::Result<TensorData> {
    match dtype {
        DType::F16 => read_as(entry, ranges, shape, f16::from_f32),
        DType::BF16 => read_as(entry, ranges, shape, bf16::from_f32),
        _ => read_as(entry, ranges, shape, |value| value),
    }
}

fn read_as<E: Element, const D: usize>(
    entry: &Entry,
    ranges: impl IntoIterator<Item = Range<usize>>,
    shape: [usize; D],
    from_f32: fn(f32) -> E,
) -> std::io::Result<TensorData> {
    let mut values = Vec::with_capacity(shape.iter().product());
    let mut wide = Vec::new();
    entry.read(ranges, |piece| {
        wide.clear();
        widen(piece, entry.dtype, &mut wide);
        values.extend(wide.iter().copied().map(from_f32));
    })?;
    Ok(TensorData::new(values, shape))
}

/// Adds the values of an f32, f16 or bf16 tensor, wherever its bytes lie, to `wide`.
fn widen(bytes: &[u8], dtype: Dtype, wide: &mut Vec<f32>) {
    match dtype {
        Dtype::F16 => {
            let halves: Vec<_> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            wide.resize(halves.len(), 0.0);
            halves.convert_to_f32_slice(wide);
        }
        Dtype::BF16 => {
            wide.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()));
        }
        _ => wide.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
    }
}
