//! Decodes a large latent tile by tile.
//!
//! Tiles overlap by a quarter and are blended there, because each tile is normalised separately. The picture
//! therefore differs from one that is decoded as a whole, but memory use is limited to that of a tile.
//!
//! Source: diffusers' `AutoencoderKL.tiled_decode`.

use burn::tensor::{DType, Tensor, TensorData};

/// The division of a latent into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// The side of a tile in pixels of the picture.
    pub tile: usize,
    /// The side of a latent pixel in pixels of the picture.
    pub scale: usize,
}

impl Tiling {
    /// The side of a tile in latent pixels.
    fn latent_tile(self) -> usize {
        self.tile / self.scale
    }

    /// Whether a latent `[b, c, y, x]` is large enough to be divided.
    pub fn applies(self, z: &Tensor<4>) -> bool {
        let [_, _, rows, columns] = z.dims();
        let tile = self.latent_tile();
        tile >= 4 && (rows > tile || columns > tile)
    }

    /// Decodes each tile with `decode` and blends them.
    ///
    /// # Shapes
    /// `z`: `[b, c, y, x]`; result `[b, 3, y · scale, x · scale]`.
    pub fn decode(self, z: Tensor<4>, decode: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = z.dims();
        let tile = self.latent_tile();
        let stride = tile * 3 / 4;
        let blend = self.tile / 4;
        let keep = self.tile - blend;
        let mut above: Vec<Tensor<4>> = Vec::new();
        let mut bands = Vec::new();
        for top in (0..height).step_by(stride) {
            let band = z.clone().narrow(2, top, tile.min(height - top));
            let mut row: Vec<Tensor<4>> = Vec::new();
            for (column, left) in (0..width).step_by(stride).enumerate() {
                let mut picture = decode(band.clone().narrow(3, left, tile.min(width - left)));
                if let Some(above) = above.get(column) {
                    picture = blend_over(above, picture, 2, blend);
                }
                if let Some(before) = row.last() {
                    picture = blend_over(before, picture, 3, blend);
                }
                row.push(picture);
            }
            let kept = row.iter().map(|tile| crop(crop(tile.clone(), 2, keep), 3, keep)).collect();
            bands.push(Tensor::cat(kept, 3));
            above = row;
        }
        Tensor::cat(bands, 2)
    }
}

fn crop(x: Tensor<4>, dim: usize, keep: usize) -> Tensor<4> {
    let size = x.dims()[dim];
    x.narrow(dim, 0, keep.min(size))
}

/// Fades the last `extent` lines of `before` along `dim` into the first ones of `tile`.
fn blend_over(before: &Tensor<4>, tile: Tensor<4>, dim: usize, extent: usize) -> Tensor<4> {
    let (length, size) = (before.dims()[dim], tile.dims()[dim]);
    let extent = extent.min(length).min(size);
    let ramp: Vec<f32> = (0..extent).map(|line| line as f32 / extent as f32).collect();
    let mut shape = [1; 4];
    shape[dim] = extent;
    let ramp = Tensor::<4>::from_data(TensorData::new(ramp, shape), (&tile.device(), DType::F32));
    let old = before.clone().narrow(dim, length - extent, extent);
    let new = tile.clone().narrow(dim, 0, extent);
    let faded = old * ramp.clone().neg().add_scalar(1.0) + new * ramp;
    match size - extent {
        0 => faded,
        rest => Tensor::cat(vec![faded, tile.narrow(dim, extent, rest)], dim),
    }
}
