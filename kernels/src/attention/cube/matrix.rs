//! Attention of 16-bit tensors by matrix instructions whose registers a kernel may address, which CUDA has: the softmax
//! stays in the registers of the scores, which are those of the weights (FlashAttention-2, Dao 2023).

mod kernel;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::CubeDim;

use super::inputs::{Bias, strides};
use crate::attention::sizes;
use crate::cube::{addresses, buffer, dims, elem, empty, reduce};

/// Rows, columns and products of a matrix instruction.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
const PRODUCTS: usize = 16;

/// Units of a plane.
const PLANE: usize = 32;

/// Keys of a tile.
const KEYS: usize = 64;

/// Elements in a vector of 16 bytes.
const WIDTH: usize = 8;

/// The shape of a cube's work: each of its planes has [`ROWS`] queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    planes: usize,
    /// Features of a head.
    features: usize,
}

impl Tile {
    /// None if the device lacks the instructions, or tensors have types or shapes that the kernel does not take.
    pub(super) fn new([q, k, v]: [&CubeTensor; 3]) -> Option<Self> {
        let [_, nq, _, d] = dims(q);
        let takes = [q, k, v].into_iter().all(|x| {
            let strides = x.meta.strides();
            let aligned = strides[..3].iter().all(|stride| stride.is_multiple_of(WIDTH)) && strides[3] == 1;
            x.dtype == q.dtype && aligned
        });
        let matmul = &q.client.properties().features.matmul;
        let is_half = matches!(q.dtype, DType::F16 | DType::BF16);
        if !is_half || !takes || d % WIDTH != 0 || !(1..=128).contains(&d) {
            return None;
        }
        let elem = elem(q.dtype);
        let config = MmaConfig {
            a_type: elem,
            b_type: elem,
            cd_type: ElemType::Float(FloatKind::F32),
            m: ROWS as u32,
            n: COLUMNS as u32,
            k: PRODUCTS as u32,
        };
        let has = matmul.mma.contains(&config) && matmul.ldmatrix.contains(&elem);
        let planes = if nq <= 4 * ROWS { 4 } else { 8 };
        (has && reduce::plane(&q.client) == PLANE).then_some(Self { planes, features: d })
    }

    /// Units of a cube.
    fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Queries of a cube.
    fn queries(&self) -> usize {
        self.planes * ROWS
    }

    /// Features in whole instructions.
    fn padded(&self) -> usize {
        self.features.next_multiple_of(PRODUCTS)
    }

    /// Vectors between two rows in shared memory: odd, so that eight rows lie in different banks.
    fn pitch(&self) -> usize {
        self.padded() / WIDTH + 1
    }

    /// Vectors of a tile of keys that a unit loads.
    fn loads(&self) -> usize {
        (KEYS * self.padded() / WIDTH).div_ceil(self.units())
    }

    /// Rows in shared memory: keys and values, and before them the queries.
    fn rows(&self) -> usize {
        (2 * KEYS).max(self.queries())
    }
}

/// See [`attention_lse`](crate::attention::attention_lse).
pub(super) fn attention_lse(
    tile: Tile,
    [q, k, v]: [CubeTensor; 3],
    bias: Option<CubeTensor>,
    scale: f32,
) -> (CubeTensor, CubeTensor) {
    let [b, nq, nk, h, d] = sizes(&q.shape(), &k.shape(), &v.shape());
    let bias = Bias::new(bias, [b, h, nq, nk]);
    let (out, lse) = (empty(&q, [b, nq, h, d], q.dtype), empty(&q, [b, nq, h], DType::F32));
    if b * nq * h == 0 {
        return (out, lse);
    }
    let tiles = nq.div_ceil(tile.queries());
    let dim = CubeDim::new_1d(tile.units() as u32);
    // SAFETY: units read vectors of queries below `nq`, and of keys and values below `nk`, at the tensors' strides, and
    // the bias at its own, which are 0 where it is repeated; they write results of queries below `nq`.
    unsafe {
        kernel::attend::launch_unchecked(
            &q.client,
            calculate_cube_count_elemwise(&q.client, b * h * tiles * tile.units(), dim),
            dim,
            addresses([&q, &k, &v, &out].into_iter().chain(&bias.tensor)),
            WIDTH,
            buffer(&q),
            buffer(&k),
            buffer(&v),
            bias.buffer().into(),
            buffer(&out),
            buffer(&lse),
            strides(&q, WIDTH),
            strides(&k, WIDTH),
            strides(&v, WIDTH),
            bias.strides(),
            bias.of_key(),
            b * h * tiles,
            tiles,
            h,
            nq,
            nk,
            scale,
            f32::NEG_INFINITY,
            tile,
            [elem(q.dtype), elem(bias.dtype())],
        );
    }
    (out, lse)
}
