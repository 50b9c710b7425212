//! The kernel of attention.

use cubecl::prelude::*;

use super::{ACROSS, KEYS, Load, Tile};
use crate::attention::cube::inputs::Strides;
use crate::cube::UNITS;
use crate::cube::reduce::is_below;

/// Four neighbouring features of a query, key or value, or the weights of four neighbouring keys.
type Four = Vector<f32, Const<4>>;

/// See [`attention_lse`](crate::attention::attention_lse). `nothing` is -inf, which WGSL has no literal for.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn flash<F: Float, O: Float, P: Float, N: Size, M: Size>(
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    bias: ComptimeOption<&[P]>,
    out: &mut [Vector<O, M>],
    lse: &mut [f32],
    of_q: Strides,
    of_k: Strides,
    of_v: Strides,
    of_bias: Strides,
    of_key: usize,
    cubes: usize,
    tiles: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
    scale: f32,
    nothing: f32,
    #[comptime] tile: Tile,
    #[define(F, O, P)] _types: [ElemType; 3],
) {
    // Cubes beyond the last one repeat it.
    let cube = min(CUBE_POS, cubes - 1);
    let image = cube / tiles / heads;
    let head = cube / tiles % heads;
    let first = cube % tiles * comptime![tile.queries()];
    let unit = UNIT_POS as usize;
    // A unit's scores are of the queries `down`, `down` + 16, … and of four neighbouring keys.
    let (down, across) = (unit / ACROSS, unit % ACROSS);
    let of_unit = comptime![tile.of_unit];
    let q_start = image * of_q.of_image + head * of_q.of_head;
    let k_start = image * of_k.of_image + head * of_k.of_head;
    let v_start = image * of_v.of_image + head * of_v.of_head;
    let bias_start = image * of_bias.of_image + head * of_bias.of_head;

    let mut inputs = Shared::<[Four]>::new_slice(comptime![tile.inputs()]);
    let mut weights = Shared::<[Four]>::new_slice(comptime![tile.weights()]);
    let mut factors = Shared::<[f32]>::new_slice(comptime![tile.queries()]);
    let mut exchange =
        Shared::<[f32]>::new_slice(comptime![if tile.plane > 0 { 1 } else { UNITS * tile.of_unit }]);

    let mut scores = Array::<f32>::new(comptime![4 * of_unit]);
    let mut largest = Array::<f32>::new(of_unit);
    let mut sums = Array::<f32>::new(of_unit);
    #[unroll]
    for i in 0..of_unit {
        largest[i] = f32::MIN;
        sums[i] = 0.0f32;
    }
    // A unit's results are of queries that lie so many apart, and of so many vectors of features.
    let (result_down, result_across) = (unit / tile.across, unit % tile.across);
    let apart = comptime![UNITS / tile.across];
    let of_result = comptime![tile.of_result()];
    let mut results = Array::<Four>::new(comptime![tile.results() * tile.of_result()]);
    #[unroll]
    for i in 0..comptime![tile.results() * tile.of_result()] {
        results[i] = Four::new(0.0f32);
    }

    let mut first_key = 0usize.runtime();
    while first_key < keys {
        #[unroll]
        for i in 0..comptime![4 * of_unit] {
            scores[i] = 0.0f32;
        }
        for part in 0..comptime![tile.of_head.div_ceil(tile.features)] {
            let feature = part * tile.features;
            sync_cube();
            let rows = Rows { start: q_start, of_row: of_q.of_row, first, count: queries, feature, d };
            load::<F, N>(q, &mut inputs, rows, comptime![tile.load_queries()]);
            let rows =
                Rows { start: k_start, of_row: of_k.of_row, first: first_key, count: keys, feature, d };
            load::<F, N>(k, &mut inputs, rows, comptime![tile.load_keys()]);
            sync_cube();
            for feature in 0..comptime![tile.features] {
                let mut of_keys = Array::<Four>::new(4usize);
                #[unroll]
                for j in 0..4usize {
                    let slot = comptime![tile.queries()] + across + j * ACROSS;
                    of_keys[j] = inputs[slot * comptime![tile.pitch()] + feature];
                }
                #[unroll]
                for i in 0..of_unit {
                    let query = inputs[(down + i * ACROSS) * comptime![tile.pitch()] + feature];
                    #[unroll]
                    for j in 0..4usize {
                        #[unroll]
                        for e in 0..4usize {
                            let at = 4 * i + j;
                            scores[at] = fma(query.extract(e), of_keys[j].extract(e), scores[at]);
                        }
                    }
                }
            }
        }

        // Scores of keys that do not count are below all others.
        let own_key = first_key + 4 * across;
        let mut tops = Array::<f32>::new(of_unit);
        #[unroll]
        for i in 0..of_unit {
            let query = min(first + down + i * ACROSS, queries - 1);
            tops[i] = f32::MIN;
            #[unroll]
            for j in 0..4usize {
                let mut score = scores[4 * i + j] * scale;
                #[comptime]
                if let ComptimeOption::Some(bias) = bias {
                    let at = bias_start + query * of_bias.of_row + min(own_key + j, keys - 1) * of_key;
                    score += f32::cast_from(bias[at]);
                }
                score = select(own_key + j < keys, score, nothing);
                tops[i] = max(tops[i], score);
                scores[4 * i + j] = score;
            }
        }
        reduce(&mut tops, &mut exchange, tile, true);
        // Nobody reads queries and keys any more.
        sync_cube();
        #[unroll]
        for i in 0..of_unit {
            let row = down + i * ACROSS;
            let top = max(largest[i], tops[i]);
            let factor = (largest[i] - top).exp();
            largest[i] = top;
            let mut four = Four::new(0.0f32);
            let mut sum = sums[i] * factor;
            #[unroll]
            for j in 0..4usize {
                let score = scores[4 * i + j];
                // Exactly 0 for -inf, whatever the device's exponential does.
                let weight = select(score < f32::MIN, 0.0f32, (score - top).exp());
                sum += weight;
                four.insert(j, weight);
            }
            sums[i] = sum;
            weights[row * (ACROSS + 1) + across] = four;
            if across == 0 {
                factors[row] = factor;
            }
        }

        for part in 0..comptime![KEYS / tile.values] {
            let value = part * tile.values;
            if part > 0 {
                sync_cube();
            }
            let first = first_key + value;
            let rows = Rows {
                start: v_start,
                of_row: of_v.of_row,
                first,
                count: keys,
                feature: 0usize.runtime(),
                d,
            };
            load::<F, N>(v, &mut inputs, rows, comptime![tile.load_values()]);
            sync_cube();
            if part == 0 {
                #[unroll]
                for i in 0..comptime![tile.results()] {
                    let factor = factors[result_down + i * apart];
                    #[unroll]
                    for f in 0..of_result {
                        results[i * of_result + f] *= Four::new(factor);
                    }
                }
            }
            for four in 0..comptime![tile.values / 4] {
                let mut of_results = Array::<Four>::new(comptime![tile.results()]);
                #[unroll]
                for i in 0..comptime![tile.results()] {
                    of_results[i] = weights[(result_down + i * apart) * (ACROSS + 1) + value / 4 + four];
                }
                #[unroll]
                for e in 0..4usize {
                    #[unroll]
                    for f in 0..of_result {
                        let feature = result_across + f * tile.across;
                        // Units without a feature repeat the last one.
                        let feature = min(feature, comptime![tile.of_head - 1]);
                        let of_value = inputs[(4 * four + e) * tile.of_head + feature];
                        #[unroll]
                        for i in 0..comptime![tile.results()] {
                            let weight = Four::new(of_results[i].extract(e));
                            results[i * of_result + f] = fma(weight, of_value, results[i * of_result + f]);
                        }
                    }
                }
            }
        }
        first_key += KEYS;
    }

    // A query without keys has a sum of 0, and results of 0, which are divided by 1.
    reduce(&mut sums, &mut exchange, tile, false);
    sync_cube();
    #[unroll]
    for i in 0..of_unit {
        let row = down + i * ACROSS;
        if across == 0 {
            let sum = sums[i];
            factors[row] = 1.0f32 / select(sum == 0.0f32, 1.0f32, sum);
            if first + row < queries {
                let at = (image * queries + first + row) * heads + head;
                lse[at] = select(sum == 0.0f32, nothing, largest[i] + sum.ln());
            }
        }
    }
    sync_cube();
    let width = M::value();
    #[unroll]
    for i in 0..comptime![tile.results()] {
        let row = result_down + i * apart;
        if first + row < queries {
            let factor = Four::new(factors[row]);
            let start = ((image * queries + first + row) * heads + head) * d;
            #[unroll]
            for f in 0..of_result {
                let feature = result_across + f * tile.across;
                let result = results[i * of_result + f] * factor;
                if comptime![width == 4] {
                    if feature < tile.of_head {
                        out[start / 4 + feature] = Vector::cast_from(result);
                    }
                } else {
                    #[unroll]
                    for e in 0..4usize {
                        if 4 * feature + e < d {
                            out[start + 4 * feature + e] = Vector::cast_from(result.extract(e));
                        }
                    }
                }
            }
        }
    }
}

/// Rows of a tensor, of which a part is loaded.
#[derive(CubeType, Clone)]
struct Rows {
    /// Where the first row of the image and head begins.
    start: usize,
    of_row: usize,
    /// The first row to load.
    first: usize,
    /// Rows of the tensor.
    count: usize,
    /// The first vector of four features to load.
    feature: usize,
    /// Features of a row.
    d: usize,
}

/// Loads rows into shared memory. Rows and features that the tensor lacks are zeros.
#[cube]
fn load<F: Float, N: Size>(x: &[Vector<F, N>], to: &mut Shared<[Four]>, rows: Rows, #[comptime] load: Load) {
    let total = comptime![load.rows * load.features];
    #[unroll]
    for step in 0..comptime![total.div_ceil(UNITS)] {
        let at = step * UNITS + UNIT_POS as usize;
        if is_below(at, total, comptime![(step + 1) * UNITS <= total]) {
            load_four::<F, N>(x, to, &rows, at, load);
        }
    }
}

/// Loads the vector `at` of a part.
#[cube]
fn load_four<F: Float, N: Size>(
    x: &[Vector<F, N>],
    to: &mut Shared<[Four]>,
    rows: &Rows,
    at: usize,
    #[comptime] load: Load,
) {
    let (row, feature) = (at / load.features, at % load.features);
    let width = N::value();
    let mut four = Four::new(0.0f32);
    let wanted = rows.feature + feature;
    if rows.first + row < rows.count {
        let start = rows.start + (rows.first + row) * rows.of_row;
        if comptime![width == 4] {
            if 4 * wanted < rows.d {
                four = Four::cast_from(x[start + wanted]);
            }
        } else {
            #[unroll]
            for e in 0..4usize {
                if 4 * wanted + e < rows.d {
                    four.insert(e, f32::cast_from(x[start + 4 * wanted + e]));
                }
            }
        }
    }
    let slot = if comptime![load.of_fours] { row % 4 * ACROSS + row / 4 } else { row };
    to[load.start + slot * load.pitch + feature] = four;
}

/// The largest of the values, or their sum, over the units that share queries; for each of them and each query.
#[cube]
fn reduce(
    values: &mut Array<f32>,
    exchange: &mut Shared<[f32]>,
    #[comptime] tile: Tile,
    #[comptime] largest: bool,
) {
    let unit = UNIT_POS as usize;
    if comptime![tile.plane > 0] {
        #[unroll]
        for step in 0..comptime![ACROSS.ilog2()] {
            #[unroll]
            for i in 0..tile.of_unit {
                let other = plane_shuffle_xor(values[i], comptime![1u32 << step].runtime());
                values[i] = combine(values[i], other, largest);
            }
        }
    } else {
        // Results of the last call have been read.
        sync_cube();
        #[unroll]
        for i in 0..tile.of_unit {
            exchange[i * UNITS + unit] = values[i];
        }
        #[unroll]
        for step in 0..comptime![ACROSS.ilog2() as usize] {
            let half = comptime![ACROSS >> (step + 1)];
            sync_cube();
            if unit % ACROSS < half {
                #[unroll]
                for i in 0..tile.of_unit {
                    let at = i * UNITS + unit;
                    exchange[at] = combine(exchange[at], exchange[at + half], largest);
                }
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..tile.of_unit {
            values[i] = exchange[i * UNITS + unit / ACROSS * ACROSS];
        }
    }
}

#[cube]
fn combine(a: f32, b: f32, #[comptime] largest: bool) -> f32 {
    if largest { max(a, b) } else { a + b }
}
