//! Attention without scores in memory: a cube holds a tile of queries and goes over the keys in tiles of [`KEYS`], with
//! the softmax kept up to date (FlashAttention, Dao et al. 2022). Multiplications are of f32, on every device.

mod kernel;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::inputs::{Bias, heads, strides};
use crate::attention::sizes;
use crate::cube::{UNITS, addresses, buffer, cubes, dims, elem, empty, reduce, wide, width};

/// Units that share the scores of a query.
const ACROSS: usize = 16;

/// Keys of a tile: four for each unit.
const KEYS: usize = 4 * ACROSS;

/// The shape of a cube's work. Features are counted in vectors of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Queries whose scores a unit holds.
    of_unit: usize,
    /// Features of queries and keys in shared memory at a time.
    features: usize,
    /// Features of a head.
    of_head: usize,
    /// Values in shared memory at a time.
    values: usize,
    /// Units that share the features of a result.
    across: usize,
    /// Units of a plane, or 0.
    plane: usize,
}

impl Tile {
    /// The largest tile that fits into the device's shared memory and is not too large for the queries; none if heads
    /// have too many features.
    pub(super) fn new(q: &CubeTensor) -> Option<Self> {
        let [_, nq, _, d] = dims(q);
        let hardware = &q.client.properties().hardware;
        let plane = match reduce::plane(&q.client) {
            plane if plane >= ACROSS => plane,
            _ => 0,
        };
        [(4, 8), (2, 8), (2, 4), (1, 4)]
            .into_iter()
            .filter_map(|(of_unit, features)| Self::of(of_unit, features, d.div_ceil(4).max(1), plane))
            .filter(|tile| tile.bytes() <= hardware.max_shared_memory_size)
            .find(|tile| tile.of_unit == 1 || tile.queries() < 2 * nq)
    }

    fn of(of_unit: usize, features: usize, of_head: usize, plane: usize) -> Option<Self> {
        // Few units idle for want of features, and the results of a unit are those of a whole number of queries.
        let across = [16, 8, 4].into_iter().filter(|across| of_unit * across >= ACROSS);
        let across = across.min_by_key(|across| of_head.next_multiple_of(*across))?;
        let tile = Self { of_unit, features, of_head, values: KEYS, across, plane };
        let values = [KEYS, KEYS / 2, KEYS / 4, KEYS / 8, KEYS / 16];
        let values = values.into_iter().find(|values| values * of_head <= tile.inputs())?;
        Some(Self { values, ..tile })
    }

    /// Queries of a tile.
    fn queries(&self) -> usize {
        self.of_unit * UNITS / ACROSS
    }

    /// Vectors between two queries, keys or rows of weights in shared memory: odd, against conflicts of banks.
    fn pitch(&self) -> usize {
        self.features + 1
    }

    /// Vectors of shared memory for queries and keys, and at other times for values.
    fn inputs(&self) -> usize {
        (self.queries() + KEYS) * self.pitch()
    }

    /// Vectors of shared memory for weights.
    fn weights(&self) -> usize {
        self.queries() * (ACROSS + 1)
    }

    /// How a part of the queries is loaded.
    fn load_queries(&self) -> Load {
        Load { start: 0, rows: self.queries(), features: self.features, pitch: self.pitch(), of_fours: false }
    }

    /// How a part of the keys is loaded.
    fn load_keys(&self) -> Load {
        let start = self.queries() * self.pitch();
        Load { start, rows: KEYS, features: self.features, pitch: self.pitch(), of_fours: true }
    }

    /// How a part of the values is loaded.
    fn load_values(&self) -> Load {
        Load { start: 0, rows: self.values, features: self.of_head, pitch: self.of_head, of_fours: false }
    }

    fn bytes(&self) -> usize {
        let exchange = if self.plane > 0 { 0 } else { UNITS * self.of_unit };
        4 * (4 * (self.inputs() + self.weights()) + self.queries() + exchange)
    }

    /// Queries whose results a unit holds.
    fn results(&self) -> usize {
        self.queries() * self.across / UNITS
    }

    /// Vectors of a result that a unit holds.
    fn of_result(&self) -> usize {
        self.of_head.div_ceil(self.across)
    }
}

/// Where rows go in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Load {
    start: usize,
    rows: usize,
    /// Vectors of four features that are loaded of each row.
    features: usize,
    /// Vectors between two rows.
    pitch: usize,
    /// Whether every fourth row lies together: units that read neighbouring groups of four rows then read neighbours.
    of_fours: bool,
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
    let dtype = q.dtype;
    if b * nq * h == 0 {
        return (empty(&q, [b, nq, h, d], dtype), empty(&q, [b, nq, h], DType::F32));
    }
    let alike = k.dtype == dtype && v.dtype == dtype;
    let inputs = [q, k, v].map(|x| heads(if alike { x } else { wide(x) }));
    let [q, k, v] = &inputs;
    let (out, lse) = (empty(q, [b, nq, h, d], dtype), empty(q, [b, nq, h], DType::F32));

    let divisors = inputs.iter().flat_map(|x| x.meta.strides()[..3].iter().copied()).chain([d]);
    let width_in = if width(&inputs, divisors) >= 4 { 4 } else { 1 };
    let width_out = if d.is_multiple_of(4) { 4 } else { 1 };
    let tiles = nq.div_ceil(tile.queries());
    let (count, dim) = cubes(&q.client, b * h * tiles * UNITS);
    // SAFETY: units read queries below `nq`, and keys and values below `nk`, of `d` features at the tensors' strides,
    // and the bias at its own, which are 0 where it is repeated; they write results of queries below `nq`.
    unsafe {
        kernel::flash::launch_unchecked(
            &q.client,
            count,
            dim,
            addresses(inputs.iter().chain(&bias.tensor).chain([&out])),
            width_in,
            width_out,
            buffer(q),
            buffer(k),
            buffer(v),
            bias.buffer().into(),
            buffer(&out),
            buffer(&lse),
            strides(q, width_in),
            strides(k, width_in),
            strides(v, width_in),
            bias.strides(),
            bias.of_key(),
            b * h * tiles,
            tiles,
            h,
            nq,
            nk,
            d,
            scale,
            f32::NEG_INFINITY,
            tile,
            [elem(q.dtype), elem(dtype), elem(bias.dtype())],
        );
    }
    (out, lse)
}
