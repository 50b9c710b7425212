//! Fixed position embeddings.

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::tokens::Positions;

/// A two-dimensional sine-cosine embedding, with its grid stretched to the size that the model was trained on.
///
/// # Source
/// ViT's embedding as in MAE (He et al. 2021) with PixArt's interpolation; diffusers' `PatchEmbed`.
#[derive(Clone, Copy, Debug)]
pub struct SinCos2d {
    /// The number of features of a token, a multiple of 4.
    pub dim: usize,
    /// The side, in tokens, of the images that the model was trained on.
    pub base_size: usize,
    /// The factor by which the grid is compressed.
    pub interpolation_scale: f32,
}

impl SinCos2d {
    /// The embedding of each token: its column in the first half of the features, and its row in the second.
    ///
    /// # Shapes
    /// Result `[1, n, dim]`, f32.
    pub fn embed(&self, positions: &Positions, device: &Device) -> Tensor<3> {
        let [rows, columns] = positions.extent();
        let (by_row, by_column) = (self.table(rows), self.table(columns));
        let half = self.dim / 2;
        let mut data = Vec::with_capacity(positions.ids().len() * self.dim);
        for &[row, column] in positions.ids() {
            data.extend_from_slice(&by_column[column as usize * half..][..half]);
            data.extend_from_slice(&by_row[row as usize * half..][..half]);
        }
        Tensor::from_data(TensorData::new(data, [1, positions.ids().len(), self.dim]), (device, DType::F32))
    }

    /// The embedding of each of `count` positions along one direction: `dim / 4` sines, then as many cosines.
    fn table(&self, count: usize) -> Vec<f32> {
        let quarter = self.dim / 4;
        let stretch = (count as f64 / self.base_size as f64) as f32;
        let mut table = Vec::with_capacity(count * 2 * quarter);
        for place in 0..count {
            let place = f64::from(place as f32 / stretch / self.interpolation_scale);
            let angles = || (0..quarter).map(|i| place / 10000f64.powf(i as f64 / quarter as f64));
            table.extend(angles().map(|angle| angle.sin() as f32));
            table.extend(angles().map(|angle| angle.cos() as f32));
        }
        table
    }
}
