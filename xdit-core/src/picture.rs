//! Conversion of a decoder's output to pixels.

use burn::tensor::{DType, Element, Tensor, TensorData, bf16, f16};
use rayon::prelude::*;

/// The values that one thread converts faster than several.
const FEW: usize = 1 << 15;

/// A picture with one byte for each of red, green and blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The width in pixels.
    pub width: usize,
    /// The height in pixels.
    pub height: usize,
    /// `height · width · 3` values, row by row.
    pub rgb: Vec<u8>,
}

/// Scales `image` to cover `size`, then crops its centre.
///
/// # Shapes
/// `[b, c, y, x]` to `[b, c, size[0], size[1]]`.
///
/// # Source
/// diffusers' `PixArtImageProcessor.resize_and_crop_tensor`: bilinear, `align_corners=False`. Where rounding makes its
/// image a pixel smaller than `size`, such as 640×479 for 640×480, this one has the size.
pub fn resize_and_crop(image: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [b, c, height, width] = image.dims();
    if [height, width] == size {
        return image;
    }
    let ratio = (size[0] as f64 / height as f64).max(size[1] as f64 / width as f64);
    let scaled =
        [((height as f64 * ratio) as usize).max(size[0]), ((width as f64 * ratio) as usize).max(size[1])];
    let device = image.device();
    let data = image.cast(DType::F32).into_data();
    let pixels = data.as_slice::<f32>().expect("cast to f32");
    let offset = |i: usize| (scaled[i] - size[i]) / 2;
    let rows = taps(height, scaled[0], offset(0), size[0]);
    let columns = taps(width, scaled[1], offset(1), size[1]);
    let mut out = Vec::with_capacity(b * c * rows.len() * columns.len());
    for plane in pixels.chunks_exact(height * width) {
        for row in &rows {
            let (above, below) = (&plane[row.low * width..][..width], &plane[row.high * width..][..width]);
            for column in &columns {
                let across = |line: &[f32]| {
                    (1.0 - column.weight) * line[column.low] + column.weight * line[column.high]
                };
                out.push((1.0 - row.weight) * across(above) + row.weight * across(below));
            }
        }
    }
    let shape = [b, c, rows.len(), columns.len()];
    Tensor::from_data(TensorData::new(out, shape), (&device, DType::F32))
}

/// The two source positions on either side of a target position.
struct Tap {
    low: usize,
    high: usize,
    /// The weight of `high`.
    weight: f32,
}

/// The taps of `count` targets, from `offset` on, when `from` source positions are stretched to `to`.
fn taps(from: usize, to: usize, offset: usize, count: usize) -> Vec<Tap> {
    let scale = from as f32 / to as f32;
    (offset..offset + count)
        .map(|target| {
            let place = ((target as f32 + 0.5) * scale - 0.5).max(0.0);
            let low = (place as usize).min(from - 1);
            Tap { low, high: (low + 1).min(from - 1), weight: place - low as f32 }
        })
        .collect()
}

/// Converts the image at `index` of a batch of decoded images, with values from -1 to 1, to a picture.
///
/// # Shapes
/// `images`: `[b, 3, y, x]`.
pub fn to_picture(images: &Tensor<4>, index: usize) -> Picture {
    let image = images.clone().narrow(0, index, 1);
    let [_, _, height, width] = image.dims();
    // In the order of a picture, and in the decoder's type, which may have half the bytes of f32.
    let data = image.permute([0, 2, 3, 1]).into_data();
    let rgb = match images.dtype() {
        DType::F16 => bytes(&data, f16::to_f32),
        DType::BF16 => bytes(&data, bf16::to_f32),
        _ => bytes(&data, |value: f32| value),
    };
    Picture { width, height, rgb }
}

/// A byte for each value.
fn bytes<E: Element>(data: &TensorData, wide: impl Fn(E) -> f32 + Sync) -> Vec<u8> {
    let byte = |&value: &E| ((wide(value) / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    data.as_slice::<E>().expect("its own type").par_iter().with_min_len(FEW).map(byte).collect()
}
