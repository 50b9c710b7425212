//! The values of a tensor in a file, converted to the requested type.

use std::ops::Range;

use burn::tensor::{AllocationProperty, Bytes, DType, Element, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::checkpoint::Entry;

/// The number of bytes read at once, a multiple of every element size.
const PIECE: usize = 1 << 20;

/// The bytes of `entry` in `range`, in the mapped file, if they can be used without conversion.
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

/// Reads the values of `entry` in `ranges` of its bytes, one range after another. Besides the values, only a few pieces
/// of the file are in memory at a time.
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
        _ => read_as(entry, ranges, shape, |value: f32| value),
    }
}

fn read_as<E: Element + Default, const D: usize>(
    entry: &Entry,
    ranges: impl IntoIterator<Item = Range<usize>>,
    shape: [usize; D],
    from_f32: impl Fn(f32) -> E + Copy + Sync,
) -> std::io::Result<TensorData> {
    let size = if entry.dtype == Dtype::F32 { 4 } else { 2 };
    let mut values = vec![E::default(); shape.iter().product()];
    let mut rest = &mut values[..];
    let mut jobs = Vec::new();
    for piece in pieces(ranges) {
        let (part, others) = rest.split_at_mut(piece.iter().map(Range::len).sum::<usize>() / size);
        rest = others;
        jobs.push((piece, part));
    }
    jobs.into_par_iter().try_for_each(|(ranges, mut part)| {
        let mut bytes = Vec::new();
        for range in ranges {
            bytes.resize(range.len(), 0);
            entry.read(range.start, &mut bytes)?;
            let (now, later) = part.split_at_mut(range.len() / size);
            convert(&bytes, entry.dtype, now, from_f32);
            part = later;
        }
        Ok::<_, std::io::Error>(())
    })?;
    Ok(TensorData::new(values, shape))
}

/// Divides `ranges`, in their order, into pieces of about [`PIECE`] bytes.
fn pieces(ranges: impl IntoIterator<Item = Range<usize>>) -> Vec<Vec<Range<usize>>> {
    let mut pieces = vec![Vec::new()];
    let mut room = PIECE;
    for range in ranges {
        for start in range.clone().step_by(PIECE) {
            let part = start..range.end.min(start + PIECE);
            if part.len() > room {
                pieces.push(Vec::new());
                room = PIECE;
            }
            room -= part.len();
            pieces.last_mut().expect("there is one from the start").push(part);
        }
    }
    pieces
}

/// Converts the bytes of an f32, f16 or bf16 tensor, at any alignment.
fn convert<E>(bytes: &[u8], dtype: Dtype, values: &mut [E], from_f32: impl Fn(f32) -> E) {
    match dtype {
        Dtype::F16 => {
            let halves: Vec<_> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            for (value, wide) in values.iter_mut().zip(halves.to_f32_vec()) {
                *value = from_f32(wide);
            }
        }
        Dtype::BF16 => {
            for (value, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = from_f32(bf16::from_le_bytes([b[0], b[1]]).to_f32());
            }
        }
        _ => {
            for (value, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = from_f32(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }
        }
    }
}
