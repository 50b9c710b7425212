//! Angles of rotary position embeddings.

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::tokens::Positions;

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
        xdit_kernels::rotary(x, self.cos.clone(), self.sin.clone())
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
