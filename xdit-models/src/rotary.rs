//! Angles of rotary position embeddings.

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::tokens::Positions;
use xdit_kernels::{layer_norm_rotary, rms_norm_pair, rms_norm_rotary, rotary};

/// A rotation of a head's features that depends on the position of the token: pair `i` of the `dim` features of one
/// direction is rotated by `position / theta^(2i/dim)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryEmbedding {
    /// The number of features of a head for each direction: frames (a picture has one), rows, and columns. Each number
    /// is even.
    pub dims: [usize; 3],
    /// The base of the frequencies.
    pub theta: f64,
}

/// The cosines and sines of the angles of a set of tokens.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// `[n, d/2]`, f32
    cos: Tensor<2>,
    /// `[n, d/2]`, f32
    sin: Tensor<2>,
}

impl Rotary {
    /// Rotates the heads of these tokens.
    ///
    /// # Shapes
    /// `x`: `[b, n, h, d]`.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        rotary(x, self.cos.clone(), self.sin.clone())
    }

    /// Rotates the root-mean-square norm of the heads of these tokens.
    ///
    /// # Shapes
    /// As [`turn`](Self::turn); `weight`: `[d]`.
    pub fn turn_rms_normed(&self, x: Tensor<4>, weight: Tensor<1>, eps: f64) -> Tensor<4> {
        rms_norm_rotary(x, Some(weight), eps, self.cos.clone(), self.sin.clone())
    }

    /// The root-mean-square norms of the heads of a text and of an image, of which the image's are
    /// [rotated](Self::turn_rms_normed).
    ///
    /// # Shapes
    /// As [`rms_norm_pair`].
    pub fn turn_second_rms_normed(
        &self,
        streams: [Tensor<4>; 2],
        weights: [Tensor<1>; 2],
        eps: f64,
    ) -> [Tensor<4>; 2] {
        rms_norm_pair(streams, weights, eps, Some([self.cos.clone(), self.sin.clone()]))
    }

    /// Rotates the layer norm of the heads of these tokens.
    ///
    /// # Shapes
    /// As [`turn`](Self::turn); `weight`, `bias`: `[d]`.
    pub fn turn_layer_normed(&self, x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<4> {
        layer_norm_rotary(x, Some(weight), Some(bias), eps, self.cos.clone(), self.sin.clone())
    }

    /// The rotation of the same tokens behind `count` others, which are not rotated.
    #[must_use]
    pub fn behind(&self, count: usize) -> Self {
        let [_, pairs] = self.cos.dims();
        let behind = |table: &Tensor<2>, value: f32| {
            let still = Tensor::full([count, pairs], value, (&table.device(), table.dtype()));
            Tensor::cat(vec![still, table.clone()], 0)
        };
        Self { cos: behind(&self.cos, 1.0), sin: behind(&self.sin, 0.0) }
    }
}

impl RotaryEmbedding {
    /// The angles of the tokens at `positions`.
    ///
    /// # Source
    /// diffusers' `get_1d_rotary_pos_embed` with frequencies in f64, for each direction.
    pub fn rotary(&self, positions: &Positions, device: &Device) -> Rotary {
        let extent = positions.extent();
        let table = |of: fn(f64) -> f64| {
            let tables = [0, 1, 2].map(|direction| self.table(self.dims[direction], extent[direction], of));
            let ids = positions.ids().iter();
            let values = ids.flat_map(|id| {
                let rows = tables.iter().zip(id).map(|(table, &place)| &table[place as usize]);
                rows.flatten().copied()
            });
            let shape = [positions.ids().len(), self.dims.iter().sum::<usize>() / 2];
            Tensor::from_data(TensorData::new(values.collect(), shape), (device, DType::F32))
        };
        Rotary { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// `of` applied to the angles at each of `places` positions along one direction.
    fn table(&self, dim: usize, places: usize, of: fn(f64) -> f64) -> Vec<Vec<f32>> {
        let frequency = |pair| 1.0 / self.theta.powf(2.0 * pair as f64 / dim as f64);
        let frequencies: Vec<f64> = (0..dim / 2).map(frequency).collect();
        let at = |place| frequencies.iter().map(|frequency| of(place as f64 * frequency) as f32).collect();
        (0..places).map(at).collect()
    }
}

/// A rotation of a head's features by column and row, where the grid of any picture is stretched so that its longer side
/// has the length of a square's of `base_size` tokens, and its shorter side is centred in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CenteredRotary {
    /// The number of features of a head, a multiple of 4: half of them turn by column, half by row.
    pub dim: usize,
    /// The side of the square in tokens.
    pub base_size: usize,
}

impl CenteredRotary {
    /// The angles of the tokens at `positions`.
    ///
    /// # Source
    /// HunyuanDiT (Li et al. 2024) §2.1; diffusers' `get_resize_crop_region_for_grid` and `get_2d_rotary_pos_embed`, in f32
    /// as there.
    pub fn rotary(&self, positions: &Positions, device: &Device) -> Rotary {
        let [_, rows, columns] = positions.extent();
        let [by_row, by_column] = self.places(rows, columns).map(|places| self.angles(&places));
        let table = |of: fn(f64) -> f64| {
            let ids = positions.ids().iter();
            let angles = ids
                .flat_map(|&[_, row, column]| by_column[column as usize].iter().chain(&by_row[row as usize]));
            let values = angles.map(|&angle| of(f64::from(angle)) as f32).collect();
            let shape = [positions.ids().len(), self.dim / 2];
            Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
        };
        Rotary { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// The place of each row and of each column.
    fn places(&self, rows: usize, columns: usize) -> [Vec<f32>; 2] {
        let base = self.base_size as f64;
        // Python rounds halves to the even number.
        let shorter = |of: usize, by: usize| (base / by as f64 * of as f64).round_ties_even();
        let sizes = match rows > columns {
            true => [base, shorter(columns, rows)],
            false => [shorter(rows, columns), base],
        };
        let along = |size: f64, count: usize| {
            let start = ((base - size) / 2.0).round_ties_even();
            let end = ((start + size) * (count - 1) as f64 / count as f64) as f32;
            linspace(start as f32, end, count)
        };
        [along(sizes[0], rows), along(sizes[1], columns)]
    }

    /// The angle of each pair of features at each of `places`.
    fn angles(&self, places: &[f32]) -> Vec<Vec<f32>> {
        let dim = self.dim / 2;
        let frequency = |pair: usize| 1.0 / 10000f64.powf(f64::from(2.0 * pair as f32 / dim as f32)) as f32;
        let frequencies: Vec<f32> = (0..dim / 2).map(frequency).collect();
        places.iter().map(|place| frequencies.iter().map(|frequency| place * frequency).collect()).collect()
    }
}

/// `count` numbers from `start` to `end`, as PyTorch rounds them: the second half is counted from the end.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = if count > 1 { (end - start) / (count - 1) as f32 } else { 0.0 };
    let at = |index| match index < count / 2 || count == 1 {
        true => start + step * index as f32,
        false => end - step * (count - 1 - index) as f32,
    };
    (0..count).map(at).collect()
}
